//! How a disk is to be driven, and what that asks of its back-end.

use std::time::Duration;

use super::super::error::{FrontendError, Result};
use super::super::messages::{IMPLEMENTED, Negotiated, Wanted};
use super::{BlockConfig, feature};
use crate::wire::{ProtocolFeatures, features};

/// How to drive a disk.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Queues to use.
    pub num_queues: u16,
    /// Entries of each ring: a power of two, but for packed rings.
    pub queue_size: u16,
    /// Bytes of the longest request; longer reads and writes are cut.
    pub request_bytes: u32,
    /// Use indirect descriptors if the device offers them.
    pub indirect: bool,
    /// Use the event index if the device offers it.
    pub event_idx: bool,
    /// Have packed rings, and fail if the device does not offer them; else split ones.
    pub packed: bool,
    /// Have the device use requests in order, and fail if it does not offer that.
    pub in_order: bool,
    /// Keep a record of the requests in flight (INFLIGHT_SHMFD), and fail if the back-end does not
    /// offer that. When the back-end is gone in the middle of requests, the driver then connects
    /// again, within `timeout`, and the next one finishes them.
    pub inflight: bool,
    /// Have the back-end note in a dirty log what it writes to guest memory, as while a guest
    /// moves, and fail if it does not offer that.
    pub dirty_log: bool,
    /// Sit behind an IOMMU (ACCESS_PLATFORM), and fail if the device does not offer that: the device
    /// sees the data of each request while it is in flight, at addresses that are others' next.
    pub iommu: bool,
    /// Block features to accept if offered.
    pub features: u64,
    /// Protocol features to accept if offered.
    pub protocol: ProtocolFeatures,
    /// How long the socket, each reply and each request may take.
    pub timeout: Duration,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            num_queues: 1,
            queue_size: 128,
            request_bytes: 128 << 10,
            indirect: true,
            event_idx: true,
            packed: false,
            in_order: false,
            inflight: false,
            dirty_log: false,
            iommu: false,
            features: feature::ALL,
            protocol: IMPLEMENTED,
            timeout: Duration::from_secs(5),
        }
    }
}

/// What a driver with these options asks of a back-end.
pub(super) fn wanted(options: &BlockOptions, on_xen: bool) -> Wanted {
    let bit = |is_wanted: bool, bit| if is_wanted { bit } else { 0 };
    let features = options.features & feature::ALL
        | bit(options.indirect, features::INDIRECT_DESC)
        | bit(options.event_idx, features::EVENT_IDX)
        | bit(options.iommu, features::ACCESS_PLATFORM);
    let mut protocol = options.protocol;
    if on_xen {
        protocol |= ProtocolFeatures::XEN_MMAP;
    }
    if options.inflight {
        protocol |= ProtocolFeatures::INFLIGHT_SHMFD;
    }
    Wanted { features, protocol }.with_rings(options.packed, options.in_order)
}

/// There are as many queues as are asked for.
pub(super) fn check_queues(
    options: &BlockOptions,
    negotiated: &Negotiated,
    config: &BlockConfig,
) -> Result<()> {
    let known = [negotiated.num_queues, config.num_queues.map(u64::from)];
    let most = known.into_iter().flatten().min().unwrap_or(1);
    let asked = options.num_queues;
    if asked == 0 || u64::from(asked) > most {
        return Err(FrontendError::range(format!("{asked} queues asked of a device with {most}")));
    }
    Ok(())
}
