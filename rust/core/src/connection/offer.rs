//! What a back-end offers to a front-end.

use crate::wire::features::{ACCESS_PLATFORM, LOG_ALL, PROTOCOL_FEATURES};
use crate::wire::{ProtocolFeatures, XenDesigns};

/// What a back-end offers; constant for the life of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio feature bits: the ring's and the device type's. [`Connection::new`] adds
    /// PROTOCOL_FEATURES and drops the bits that it cannot honour: LOG_ALL without LOG_SHMFD, and
    /// ACCESS_PLATFORM where a front-end could not be asked for translations, or XEN_MMAP is offered.
    ///
    /// [`Connection::new`]: super::Connection::new
    pub features: u64,
    /// Virtio feature bits without which no ring is run: VERSION_1, or none for a device that serves
    /// drivers of the legacy interface too.
    pub required_features: u64,
    /// Protocol features; those outside [`Offer::CARRIED_OUT`] are dropped.
    pub protocol_features: ProtocolFeatures,
    /// Virtqueues of the device.
    pub num_queues: u16,
    /// The device type's number: VIRTIO 1.3, "Device Types".
    pub device_type: u32,
    /// Entries of the largest ring that is taken, a power of two of at most 32768.
    pub max_queue_size: u16,
    /// Memory regions that fit at the same time. QEMU refuses a device whose number shrinks
    /// between connections.
    pub max_memory_slots: u64,
    /// Bytes of the device's configuration space.
    pub config_len: usize,
    /// Offers XEN_MMAP in these designs. Front-ends acknowledge the bit that know nothing of it
    /// (QEMU does), so it is not offered unless the device is meant for Xen.
    pub xen: Option<XenDesigns>,
}

impl Offer {
    /// The protocol features that the connection knows how to carry out. All others are never
    /// offered, so their messages are refused by the rule "not negotiated".
    pub const CARRIED_OUT: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::LOG_SHMFD)
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::INFLIGHT_SHMFD)
        .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::STATUS)
        .union(ProtocolFeatures::PAGEFAULT)
        .union(ProtocolFeatures::DEVICE_STATE)
        .union(ProtocolFeatures::GPA_ADDRESSES);

    /// What cannot go together with XEN_MMAP, and is not offered where that is: which addresses are
    /// which is told with XEN_MMAP, and not known before; and pages that come and go have no place
    /// in a dirty log, nor pages that come once among those that come later; and a domain's memory is
    /// not taken away from requests that are left.
    pub(super) const NOT_ON_XEN: ProtocolFeatures = ProtocolFeatures::GPA_ADDRESSES
        .union(ProtocolFeatures::LOG_SHMFD)
        .union(ProtocolFeatures::PAGEFAULT)
        .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT);

    /// Refuses what nobody could tell apart: the rule, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let object = self.protocol_features.contains(ProtocolFeatures::SHARED_OBJECT);
        if object && self.xen.is_some_and(|designs| designs.message) {
            return Err("SET_XEN_MMAP and SHARED_OBJECT's message have the same number: \
                        leave out one of them");
        }
        Ok(())
    }

    /// The offer as the front-end gets to see it.
    pub(super) fn honest(mut self) -> Self {
        self.protocol_features &= Self::CARRIED_OUT;
        self.protocol_features.set(ProtocolFeatures::XEN_MMAP, self.xen.is_some());
        let asks = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::REPLY_ACK;
        if self.xen.is_some() || !self.protocol_features.contains(asks) {
            self.features &= !ACCESS_PLATFORM;
        }
        if self.xen.is_some() {
            self.protocol_features -= Self::NOT_ON_XEN;
        }
        if !self.protocol_features.contains(ProtocolFeatures::LOG_SHMFD) {
            self.features &= !LOG_ALL;
        }
        self.features |= PROTOCOL_FEATURES;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers nothing.
    fn nothing() -> Offer {
        Offer {
            features: 0,
            required_features: 0,
            protocol_features: ProtocolFeatures::empty(),
            num_queues: 1,
            device_type: 2,
            max_queue_size: 256,
            max_memory_slots: 8,
            config_len: 0,
            xen: None,
        }
    }

    #[test]
    fn what_is_not_carried_out_is_not_offered() {
        let everything = Offer {
            features: u64::MAX,
            protocol_features: ProtocolFeatures::from_bits_retain(u64::MAX),
            ..nothing()
        };
        let honest = everything.honest();
        assert_eq!(honest.features, u64::MAX);
        assert_eq!(honest.protocol_features.bits(), 0x39_b32b);
    }

    #[test]
    fn translated_addresses_are_offered_where_they_can_be_asked_for_and_xen_mmap_is_not() {
        use ProtocolFeatures as P;
        let offers = |protocol_features, xen| {
            let offer = Offer { features: 1 << 33, protocol_features, xen, ..nothing() };
            offer.honest().features >> 33 & 1 != 0
        };
        assert!(offers(P::BACKEND_REQ | P::REPLY_ACK, None));
        assert!(!offers(P::BACKEND_REQ, None));
        assert!(!offers(P::REPLY_ACK, None));
        assert!(!offers(P::all(), Some(XenDesigns::MERGED)));
    }

    #[test]
    fn protocol_features_bit_is_always_offered() {
        assert_eq!(nothing().honest().features, 1 << 30);
    }

    #[test]
    fn xen_mmap_is_offered_only_when_asked_for() {
        let mut offer = Offer { protocol_features: ProtocolFeatures::all(), ..nothing() };
        let offers = |offer: &Offer| offer.clone().honest().protocol_features.bits() >> 17 & 1;
        assert_eq!(offers(&offer), 0);
        offer.xen = Some(XenDesigns::MERGED);
        assert_eq!(offers(&offer), 1);
    }

    #[test]
    fn guest_addresses_are_offered_unless_xen_mmap_is() {
        let mut offer = Offer { protocol_features: ProtocolFeatures::all(), ..nothing() };
        let offers = |offer: &Offer| offer.clone().honest().protocol_features.bits() >> 21 & 1;
        assert_eq!(offers(&offer), 1);
        offer.xen = Some(XenDesigns::ALL);
        assert_eq!(offers(&offer), 0);
    }

    #[test]
    fn the_two_messages_with_the_same_number_are_not_offered_together() {
        let mut offer = Offer {
            protocol_features: ProtocolFeatures::SHARED_OBJECT,
            xen: Some(XenDesigns::ALL),
            ..nothing()
        };
        assert!(offer.check().is_err());
        offer.xen = Some(XenDesigns::MERGED);
        assert_eq!(offer.check(), Ok(()));
        offer.xen = Some(XenDesigns::MESSAGE);
        offer.protocol_features = ProtocolFeatures::empty();
        assert_eq!(offer.check(), Ok(()));
    }
}
