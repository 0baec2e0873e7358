//! Negotiation: the two feature words.

use super::state::{Commit, Connection, Handled, Verdict, read};
use super::{Action, Offer, Refusal};
use crate::wire::device_features::harmless;
use crate::wire::features::{
    ACCESS_PLATFORM, LOG_ALL, PROTOCOL_FEATURES, RING_PACKED, VERSION_1, describe,
};
use crate::wire::{Flags, Frame, Payload, ProtocolFeatures};

/// Protocol features that mean nothing without others.
const DEPENDENCIES: [(ProtocolFeatures, ProtocolFeatures); 4] = [
    (ProtocolFeatures::HOST_NOTIFIER, ProtocolFeatures::BACKEND_REQ),
    (
        ProtocolFeatures::INBAND_NOTIFICATIONS,
        ProtocolFeatures::BACKEND_REQ.union(ProtocolFeatures::REPLY_ACK),
    ),
    (ProtocolFeatures::GET_VRING_BASE_INFLIGHT, ProtocolFeatures::INFLIGHT_SHMFD),
    (ProtocolFeatures::SHMEM, ProtocolFeatures::BACKEND_REQ),
];

impl Connection {
    pub(super) fn get_features(&self) -> Handled {
        Ok(Verdict::Answer(self.offer.features.to_bytes()))
    }

    pub(super) fn get_protocol_features(&self) -> Handled {
        Ok(Verdict::Answer(self.offer.protocol_features.bits().to_bytes()))
    }

    pub(super) fn set_features(&mut self, frame: &Frame) -> Handled {
        let accepted: u64 = read(frame)?;
        let ignored = accepted & !self.offer.features & harmless(self.offer.device_type);
        let features = accepted & !ignored;
        let surplus = features & !self.offer.features;
        if surplus != 0 {
            return Err(self
                .not_offered(&self.describe(surplus), surplus & (LOG_ALL | ACCESS_PLATFORM) != 0));
        }
        if self.is_first_half(features, frame.header.flags) {
            return Ok(Verdict::Done);
        }
        let missing = self.offer.required_features & !features;
        if missing != 0 {
            return Err(Refusal(format!("required: {}", self.requirement(missing))));
        }
        if features & RING_PACKED != 0 && features & VERSION_1 == 0 {
            return Err(Refusal("RING_PACKED needs VERSION_1".to_owned()));
        }
        let changed = (features ^ self.features) & !LOG_ALL;
        if changed != 0 && self.any_ring_is_started() {
            let changed = self.describe(changed);
            return Err(Refusal(format!("changed while a vring is started: {changed}")));
        }
        let enable_all = features & PROTOCOL_FEATURES == 0;
        let action = Action::Features { features, enable_all, ignored };
        Ok(Verdict::Act(action, Commit::Features { features, enable_all }))
    }

    fn any_ring_is_started(&self) -> bool {
        self.vrings.iter().any(|vring| vring.is_started())
    }

    /// `not_on_xen`: with XEN_MMAP there is none of it.
    fn not_offered(&self, names: &str, not_on_xen: bool) -> Refusal {
        let xen = not_on_xen && self.offer.xen.is_some();
        let why = if xen { " (not possible with XEN_MMAP)" } else { "" };
        Refusal(format!("not offered: {names}{why}"))
    }

    /// The driver writes its features in two halves of 32 bits, and crosvm passes each on as it
    /// comes: first the lower half alone, without VERSION_1, then both. The lower half has no
    /// effect; if nothing follows, no ring can be started. A front-end that asks for an
    /// acknowledgement does not do so and learns at once that VERSION_1 is required.
    fn is_first_half(&self, features: u64, flags: Flags) -> bool {
        self.features == 0
            && !flags.contains(Flags::NEED_REPLY)
            && features >> 32 == 0
            && self.offer.required_features >> 32 != 0
    }

    pub(super) fn accept(&mut self, features: u64, enable_all: bool) {
        self.features = features;
        self.enable_at_start = enable_all;
        if enable_all {
            self.vrings.iter_mut().for_each(|vring| vring.enable(true));
        }
    }

    /// Whether the driver has accepted all that the device cannot do without.
    pub(super) fn has_required_features(&self) -> bool {
        self.features & self.offer.required_features == self.offer.required_features
    }

    /// Required features that are missing, in words, with what to do about it.
    pub(super) fn requirement(&self, missing: u64) -> String {
        let names = self.describe(missing);
        if missing & VERSION_1 == 0 {
            return names;
        }
        format!(
            "{names}: the driver uses the legacy interface, which this device does not have (give \
             QEMU's device disable-legacy=on)"
        )
    }

    /// Feature bits in words, with the names of the device type.
    pub(super) fn describe(&self, features: u64) -> String {
        describe(features, Some(self.offer.device_type))
    }

    pub(super) fn set_protocol_features(&mut self, frame: &Frame) -> Handled {
        let accepted = ProtocolFeatures::from_bits_retain(read(frame)?);
        let surplus = accepted.difference(self.offer.protocol_features);
        if !surplus.is_empty() {
            let not_on_xen = Offer::NOT_ON_XEN.intersects(surplus);
            return Err(self.not_offered(&surplus.describe(), not_on_xen));
        }
        check_dependencies(accepted)?;
        let changed = accepted.symmetric_difference(self.protocol_features);
        if changed.contains(ProtocolFeatures::GPA_ADDRESSES) && self.any_ring_is_started() {
            return Err(Refusal("changed while a vring is started: GPA_ADDRESSES".to_owned()));
        }
        self.protocol_features = accepted;
        Ok(Verdict::Done)
    }
}

fn check_dependencies(accepted: ProtocolFeatures) -> Result<(), Refusal> {
    for (feature, needed) in DEPENDENCIES {
        if accepted.contains(feature) && !accepted.contains(needed) {
            let missing = needed.difference(accepted).describe();
            return Err(Refusal(format!("{} needs {missing}", feature.describe())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_feature_without_what_it_needs_is_refused() {
        use ProtocolFeatures as P;
        for (accepted, fits) in [
            (P::INBAND_NOTIFICATIONS, false),
            (P::INBAND_NOTIFICATIONS | P::REPLY_ACK, false),
            (P::INBAND_NOTIFICATIONS | P::REPLY_ACK | P::BACKEND_REQ, true),
            (P::GET_VRING_BASE_INFLIGHT, false),
            (P::GET_VRING_BASE_INFLIGHT | P::INFLIGHT_SHMFD, true),
            (P::HOST_NOTIFIER, false),
            (P::SHMEM, false),
            (P::SHMEM | P::BACKEND_REQ, true),
            (P::MQ | P::CONFIG, true),
        ] {
            assert_eq!(check_dependencies(accepted).is_ok(), fits, "{accepted:?}");
        }
    }
}
