//! What a device and the core can do together.

use super::options::XenOptions;
use crate::connection::Offer;
use crate::device::Device;
use crate::sys::userfault::Userfault;
use crate::wire::ProtocolFeatures;
use crate::wire::features::{
    ACCESS_PLATFORM, EVENT_IDX, IN_ORDER, INDIRECT_DESC, LOG_ALL, RING_PACKED, RING_RESET,
    VERSION_1,
};

/// Regions taken at the same time: what libvhost-user takes, and as many as KVM has slots for.
const MEMORY_SLOTS: u64 = 509;

/// The feature bits that belong to device types: VIRTIO 1.3, "Feature Bits".
const DEVICE_BITS: u64 = ((1 << 24) - 1) | !((1 << 50) - 1);

/// What rings do.
const RING_BITS: u64 = VERSION_1 | INDIRECT_DESC | EVENT_IDX | RING_PACKED | IN_ORDER;

/// The device type of network devices: VIRTIO 1.3, "Device Types".
const NETWORK: u32 = 1;

/// What is offered for this device type besides. The reset of one ring comes as a stop and a start of
/// that ring. QEMU passes it on so for network devices; of others it would tell nothing, and drive
/// rings that the back-end knows in another place.
fn ring_bits(device: &dyn Device) -> u64 {
    if device.virtio_id() == NETWORK { RING_BITS | RING_RESET } else { RING_BITS }
}

/// Whether a driver without VERSION_1 is served. It takes and gives numbers in the order of bytes of
/// its guest, which is taken to be little endian as the host is: a front-end whose guest is not has to
/// say so by SET_VRING_ENDIAN, for which CROSS_ENDIAN is not offered.
fn serves_legacy_drivers(device: &dyn Device) -> bool {
    cfg!(target_endian = "little") && device.is_transitional()
}

/// Whether this process may hear of page faults, which postcopy needs: in words why not.
pub(super) fn postcopy() -> Result<(), String> {
    Userfault::new().map(drop)
}

/// What is offered to a front-end.
pub(super) fn offer(device: &dyn Device, xen: Option<&XenOptions>) -> Offer {
    let mut protocol_features = Offer::CARRIED_OUT;
    // QEMU warns about a configuration space that its device type has no use for.
    protocol_features.set(ProtocolFeatures::CONFIG, device.config_len() > 0);
    protocol_features.set(ProtocolFeatures::DEVICE_STATE, device.state_form().is_some());
    protocol_features.set(ProtocolFeatures::PAGEFAULT, postcopy().is_ok());
    Offer {
        features: device.features() & DEVICE_BITS | ring_bits(device) | LOG_ALL | ACCESS_PLATFORM,
        required_features: if serves_legacy_drivers(device) { 0 } else { VERSION_1 },
        protocol_features,
        num_queues: device.num_queues(),
        device_type: device.virtio_id(),
        max_queue_size: device.max_queue_size(),
        max_memory_slots: MEMORY_SLOTS,
        config_len: device.config_len(),
        xen: xen.map(|xen| xen.designs),
    }
}
