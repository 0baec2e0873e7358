//! The driver of a block device: VIRTIO 1.3, "Block Device".

mod behind;
mod config;
mod driver;
mod mappings;
mod migrating;
mod options;
mod queue;
mod record;
mod recovery;
mod request;
mod transfer;

pub use config::BlockConfig;
pub use driver::BlockDriver;
pub use mappings::IommuCounts;
pub use options::BlockOptions;
pub use queue::{BlockQueue, Completion};
pub use request::{BlockRequest, Op};

/// Bytes of a sector, whatever the device's own block size.
pub const SECTOR: u64 = 512;

/// Feature bits of the block device: VIRTIO 1.3, "Block Device", "Feature bits".
pub mod feature {
    /// The longest segment is in the configuration space.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// The largest number of segments is in the configuration space.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// The block size is in the configuration space.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// The device can flush.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology is in the configuration space.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver can switch the write cache.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// The number of queues is in the configuration space.
    pub const MQ: u64 = 1 << 12;
    /// The device can discard.
    pub const DISCARD: u64 = 1 << 13;
    /// The device can write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// All that this driver makes use of.
    pub const ALL: u64 = SIZE_MAX
        | SEG_MAX
        | RO
        | BLK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MQ
        | DISCARD
        | WRITE_ZEROES;
}
