//! The feature bits of device types: their names, and what a back-end has to do with one that it did
//! not offer.
//!
//! A front-end answers its driver for parts of some devices by itself: QEMU has the configuration
//! space and the events of SCSI controllers, DPDK's virtio-user the control queue of network
//! devices. It accepts the bits of these parts from its driver, and some pass them on although the
//! back-end has offered none. Most bits mean nothing to a back-end then. Those that change what lies
//! in the buffers that the driver makes available, or which queues there are, do.
//!
//! VIRTIO 1.3, "Device Types", "Feature bits" of each; of types 36, 40 and 45 on VIRTIO 1.4.

/// A feature of a device type.
#[derive(Clone, Copy, Debug)]
struct Feature {
    bit: u8,
    name: &'static str,
    /// It changes what lies in the driver's buffers, or which queues there are.
    changes_queues: bool,
}

/// One that leaves queues and buffers as they are.
const fn plain(bit: u8, name: &'static str) -> Feature {
    Feature { bit, name, changes_queues: false }
}

/// One that changes what lies in the driver's buffers, or which queues there are.
const fn queues(bit: u8, name: &'static str) -> Feature {
    Feature { bit, name, changes_queues: true }
}

const NET: &[Feature] = &[
    queues(0, "CSUM"),
    plain(1, "GUEST_CSUM"),
    plain(2, "CTRL_GUEST_OFFLOADS"),
    plain(3, "MTU"),
    plain(5, "MAC"),
    queues(6, "GSO"),
    plain(7, "GUEST_TSO4"),
    plain(8, "GUEST_TSO6"),
    plain(9, "GUEST_ECN"),
    plain(10, "GUEST_UFO"),
    queues(11, "HOST_TSO4"),
    queues(12, "HOST_TSO6"),
    queues(13, "HOST_ECN"),
    queues(14, "HOST_UFO"),
    queues(15, "MRG_RXBUF"),
    plain(16, "STATUS"),
    plain(17, "CTRL_VQ"),
    plain(18, "CTRL_RX"),
    plain(19, "CTRL_VLAN"),
    plain(20, "CTRL_RX_EXTRA"),
    plain(21, "GUEST_ANNOUNCE"),
    plain(22, "MQ"),
    plain(23, "CTRL_MAC_ADDR"),
    plain(50, "DEVICE_STATS"),
    queues(51, "HASH_TUNNEL"),
    plain(52, "VQ_NOTF_COAL"),
    plain(53, "NOTF_COAL"),
    plain(54, "GUEST_USO4"),
    plain(55, "GUEST_USO6"),
    queues(56, "HOST_USO"),
    queues(57, "HASH_REPORT"),
    plain(59, "GUEST_HDRLEN"),
    plain(60, "RSS"),
    queues(61, "RSC_EXT"),
    plain(62, "STANDBY"),
    plain(63, "SPEED_DUPLEX"),
];

/// A request of a kind that was not offered is answered as unsupported, and without FLUSH a write is
/// durable when it is answered: so none of these does harm.
const BLOCK: &[Feature] = &[
    plain(0, "BARRIER"),
    plain(1, "SIZE_MAX"),
    plain(2, "SEG_MAX"),
    plain(4, "GEOMETRY"),
    plain(5, "RO"),
    plain(6, "BLK_SIZE"),
    plain(7, "SCSI"),
    plain(9, "FLUSH"),
    plain(10, "TOPOLOGY"),
    plain(11, "CONFIG_WCE"),
    plain(12, "MQ"),
    plain(13, "DISCARD"),
    plain(14, "WRITE_ZEROES"),
    plain(15, "LIFETIME"),
    plain(16, "SECURE_ERASE"),
    plain(17, "ZONED"),
];

const CONSOLE: &[Feature] = &[plain(0, "SIZE"), queues(1, "MULTIPORT"), plain(2, "EMERG_WRITE")];

const BALLOON: &[Feature] = &[
    plain(0, "MUST_TELL_HOST"),
    queues(1, "STATS_VQ"),
    plain(2, "DEFLATE_ON_OOM"),
    queues(3, "FREE_PAGE_HINT"),
    plain(4, "PAGE_POISON"),
    queues(5, "PAGE_REPORTING"),
];

const SCSI: &[Feature] =
    &[queues(0, "INOUT"), plain(1, "HOTPLUG"), plain(2, "CHANGE"), queues(3, "T10_PI")];

const GPU: &[Feature] = &[
    queues(0, "VIRGL"),
    plain(1, "EDID"),
    queues(2, "RESOURCE_UUID"),
    queues(3, "RESOURCE_BLOB"),
    queues(4, "CONTEXT_INIT"),
];

const CRYPTO: &[Feature] = &[
    queues(0, "REVISION_1"),
    queues(1, "CIPHER_STATELESS_MODE"),
    queues(2, "HASH_STATELESS_MODE"),
    queues(3, "MAC_STATELESS_MODE"),
    queues(4, "AEAD_STATELESS_MODE"),
    queues(5, "AKCIPHER_STATELESS_MODE"),
];

const IOMMU: &[Feature] = &[
    plain(0, "INPUT_RANGE"),
    plain(1, "DOMAIN_RANGE"),
    queues(2, "MAP_UNMAP"),
    plain(3, "BYPASS"),
    queues(4, "PROBE"),
    queues(5, "MMIO"),
    plain(6, "BYPASS_CONFIG"),
];

/// The features of each device type that has some and can be behind vhost-user, by its number.
const TYPES: &[(u32, &[Feature])] = &[
    (1, NET),
    (2, BLOCK),
    (3, CONSOLE),
    (5, BALLOON),
    (8, SCSI),
    (16, GPU),
    (17, &[queues(0, "ALARM")]),
    (19, &[plain(0, "STREAM"), queues(1, "SEQPACKET"), plain(2, "NO_IMPLIED_STREAM")]),
    (20, CRYPTO),
    (23, IOMMU),
    (25, &[queues(0, "CTLS")]),
    (26, &[queues(0, "NOTIFICATION")]),
    (27, &[plain(0, "SHMEM_REGION")]),
    (32, &[queues(0, "P2A_CHANNELS"), plain(1, "SHARED_MEMORY")]),
    (34, &[queues(0, "ZERO_LENGTH_REQUEST")]),
    (
        36,
        &[
            queues(0, "CAN_CLASSIC"),
            queues(1, "CAN_FD"),
            queues(2, "RTR_FRAMES"),
            queues(3, "LATE_TX_ACK"),
        ],
    ),
    (41, &[queues(0, "IRQ")]),
];

/// The standard's name of one bit of a device type.
pub fn name(device_type: u32, bit: u64) -> Option<&'static str> {
    features(device_type).iter().find(|feature| 1 << feature.bit == bit).map(|f| f.name)
}

/// The bits of a device type that a back-end may take no notice of where a front-end accepts them and
/// the back-end has not offered them: they change neither what lies in the driver's buffers nor which
/// queues there are.
pub fn harmless(device_type: u32) -> u64 {
    features(device_type)
        .iter()
        .filter(|feature| !feature.changes_queues)
        .fold(0, |bits, feature| bits | 1 << feature.bit)
}

fn features(device_type: u32) -> &'static [Feature] {
    let found = TYPES.iter().find(|(number, _)| *number == device_type);
    found.map_or(&[], |(_, features)| features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_their_device_type() {
        assert_eq!(name(1, 1 << 15), Some("MRG_RXBUF"));
        assert_eq!(name(2, 1 << 15), Some("LIFETIME"));
        assert_eq!(name(8, 1 << 2), Some("CHANGE"));
        assert_eq!((name(2, 1 << 3), name(4, 1), name(0xffff, 1)), (None, None, None));
    }

    #[test]
    fn no_bit_belongs_to_rings_or_transport_or_comes_twice() {
        for (device_type, features) in TYPES {
            let mut seen = 0_u64;
            for Feature { bit, name, .. } in *features {
                assert!((0..24).contains(bit) || (50..64).contains(bit), "{device_type} {name}");
                assert_eq!(seen >> bit & 1, 0, "{device_type} {name}");
                seen |= 1 << bit;
            }
        }
    }

    #[test]
    fn what_changes_queues_or_their_buffers_is_not_harmless() {
        // SCSI: HOTPLUG and CHANGE, but neither INOUT nor T10_PI.
        assert_eq!(harmless(8), 0b0110);
        // A network device's control queue is its front-end's.
        assert_eq!(harmless(1) & 0xff_0000, 0xff_0000);
        for bit in [0, 6, 11, 12, 13, 14, 15, 56, 57] {
            assert_eq!(harmless(1) >> bit & 1, 0, "bit {bit}");
        }
        assert_eq!((harmless(26), harmless(42)), (0, 0));
    }
}
