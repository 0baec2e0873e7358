//! The two sets of feature bits and their names.
//!
//! GET_FEATURES and SET_FEATURES carry virtio's own bits plus two of vhost's; the protocol
//! features are a second word with messages of its own.

use bitflags::bitflags;

use super::device_features;

bitflags! {
    /// Protocol features: QEMU "Vhost-user Protocol", "Protocol features".
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ProtocolFeatures: u64 {
        /// GET_QUEUE_NUM.
        const MQ = 1 << 0;
        /// A descriptor goes with SET_LOG_BASE.
        const LOG_SHMFD = 1 << 1;
        /// SEND_RARP.
        const RARP = 1 << 2;
        /// The need-reply flag.
        const REPLY_ACK = 1 << 3;
        /// NET_SET_MTU.
        const MTU = 1 << 4;
        /// SET_BACKEND_REQ_FD: a channel for the back-end's own requests.
        const BACKEND_REQ = 1 << 5;
        /// SET_VRING_ENDIAN.
        const CROSS_ENDIAN = 1 << 6;
        /// CREATE_CRYPTO_SESSION and CLOSE_CRYPTO_SESSION.
        const CRYPTO_SESSION = 1 << 7;
        /// POSTCOPY_ADVISE, POSTCOPY_LISTEN and POSTCOPY_END.
        const PAGEFAULT = 1 << 8;
        /// GET_CONFIG and SET_CONFIG.
        const CONFIG = 1 << 9;
        /// Descriptors on the back-end's channel.
        const BACKEND_SEND_FD = 1 << 10;
        /// VRING_HOST_NOTIFIER_MSG on the back-end's channel.
        const HOST_NOTIFIER = 1 << 11;
        /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
        const INFLIGHT_SHMFD = 1 << 12;
        /// RESET_DEVICE.
        const RESET_DEVICE = 1 << 13;
        /// Kicks and calls as messages.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// GET_MAX_MEM_SLOTS, ADD_MEM_REG and REM_MEM_REG.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// SET_STATUS and GET_STATUS.
        const STATUS = 1 << 16;
        /// Regions carry Xen's mapping fields.
        const XEN_MMAP = 1 << 17;
        /// GET_SHARED_OBJECT, and SHARED_OBJECT_* on the back-end's channel.
        const SHARED_OBJECT = 1 << 18;
        /// SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE.
        const DEVICE_STATE = 1 << 19;
        /// GET_VRING_BASE leaves requests in flight to the in-flight region.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// Addresses of rings and regions are guest-physical.
        const GPA_ADDRESSES = 1 << 21;
        /// GET_SHMEM_CONFIG, and SHMEM_MAP and SHMEM_UNMAP on the back-end's channel.
        const SHMEM = 1 << 22;
        const _ = !0;
    }
}

/// vhost: log all writes to guest memory.
pub const LOG_ALL: u64 = 1 << 26;
/// vhost: GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES are understood; rings start disabled.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Ring: a descriptor may point at a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Ring: notifications are suppressed by index instead of by flag.
pub const EVENT_IDX: u64 = 1 << 29;
/// The device complies with VIRTIO 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;
/// The device's accesses go through an IOMMU or other address translation.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Ring: the packed layout.
pub const RING_PACKED: u64 = 1 << 34;
/// Ring: buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
/// Memory accesses are ordered as the platform orders those of a real device.
pub const ORDER_PLATFORM: u64 = 1 << 36;
/// Single-root I/O virtualisation.
pub const SR_IOV: u64 = 1 << 37;
/// Notifications carry extra data.
pub const NOTIFICATION_DATA: u64 = 1 << 38;
/// Notifications carry a number that the device chose.
pub const NOTIF_CONFIG_DATA: u64 = 1 << 39;
/// Rings can be reset one by one.
pub const RING_RESET: u64 = 1 << 40;

/// Names of the bits that belong to no device type, for messages: VIRTIO 1.3, "Reserved Feature Bits"
/// and "Legacy Interface: Reserved Feature Bits", and vhost's two.
const NAMES: [(u64, &str); 15] = [
    (1 << 24, "NOTIFY_ON_EMPTY"),
    (LOG_ALL, "LOG_ALL"),
    (1 << 27, "ANY_LAYOUT"),
    (INDIRECT_DESC, "INDIRECT_DESC"),
    (EVENT_IDX, "EVENT_IDX"),
    (PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
    (VERSION_1, "VERSION_1"),
    (ACCESS_PLATFORM, "ACCESS_PLATFORM"),
    (RING_PACKED, "RING_PACKED"),
    (IN_ORDER, "IN_ORDER"),
    (ORDER_PLATFORM, "ORDER_PLATFORM"),
    (SR_IOV, "SR_IOV"),
    (NOTIFICATION_DATA, "NOTIFICATION_DATA"),
    (NOTIF_CONFIG_DATA, "NOTIF_CONFIG_DATA"),
    (RING_RESET, "RING_RESET"),
];

/// The names of the bits of `features`, lowest first: with those of a device type, by its number, if
/// it is known. `bit N` for one without a name.
pub fn names(features: u64, device_type: Option<u32>) -> Vec<String> {
    named(features, |bit| {
        let common = NAMES.iter().find(|(mask, _)| *mask == bit).map(|(_, name)| *name);
        common.or_else(|| device_features::name(device_type?, bit))
    })
}

/// The same in words; `none` for 0.
pub fn describe(features: u64, device_type: Option<u32>) -> String {
    words(&names(features, device_type))
}

impl ProtocolFeatures {
    /// The names of the bits, lowest first; `bit N` for one that no specification names.
    pub fn names(self) -> Vec<String> {
        named(self.bits(), |bit| Some(Self::from_bits_retain(bit).iter_names().next()?.0))
    }

    /// The same in words; `none` for the empty set.
    pub fn describe(self) -> String {
        words(&self.names())
    }
}

fn named(bits: u64, name: impl Fn(u64) -> Option<&'static str>) -> Vec<String> {
    (0..64)
        .filter(|n| bits >> n & 1 != 0)
        .map(|n| name(1 << n).map_or_else(|| format!("bit {n}"), str::to_owned))
        .collect()
}

fn words(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_feature_bits_stand_where_the_specification_puts_them() {
        for (number, bit) in [
            (0, ProtocolFeatures::MQ),
            (3, ProtocolFeatures::REPLY_ACK),
            (9, ProtocolFeatures::CONFIG),
            (15, ProtocolFeatures::CONFIGURE_MEM_SLOTS),
            (16, ProtocolFeatures::STATUS),
            (20, ProtocolFeatures::GET_VRING_BASE_INFLIGHT),
            (21, ProtocolFeatures::GPA_ADDRESSES),
            (22, ProtocolFeatures::SHMEM),
        ] {
            assert_eq!(bit.bits(), 1 << number);
        }
    }

    #[test]
    fn bits_are_described_by_name_or_number() {
        assert_eq!(describe(0, None), "none");
        assert_eq!(describe(VERSION_1 | 0x20, None), "bit 5, VERSION_1");
        assert_eq!(describe(VERSION_1 | 0x28, Some(2)), "bit 3, RO, VERSION_1");
        assert_eq!(describe(1 << 27 | 1 << 24 | 0x20, Some(1)), "MAC, NOTIFY_ON_EMPTY, ANY_LAYOUT");
        assert_eq!(names(1 << 63 | 1, Some(3)), ["SIZE", "bit 63"]);
        let odd = ProtocolFeatures::MQ | ProtocolFeatures::from_bits_retain(1 << 63);
        assert_eq!(odd.describe(), "MQ, bit 63");
    }
}
