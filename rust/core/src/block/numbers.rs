//! The numbers of virtio-blk: VIRTIO 1.3, "Block Device".

use std::fmt;
use std::io;

/// The number of the device type: VIRTIO 1.3, "Device Types".
pub const VIRTIO_ID: u32 = 2;

/// The number of bytes of a sector, the unit of all virtio-blk addresses, whatever the block size.
pub const SECTOR: u64 = 512;

/// The number of bytes of a serial number.
pub(super) const ID_LEN: usize = 20;

/// Feature bits: VIRTIO 1.3, "Block Device", "Feature bits".
pub mod feature {
    /// The configuration says how many segments a request may have.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// The configuration says the block size.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// The device has a volatile cache and takes flushes.
    pub const FLUSH: u64 = 1 << 9;
    /// The configuration says how blocks are best aligned.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver may turn the write cache off and on.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// The device has several queues.
    pub const MQ: u64 = 1 << 12;
    /// The device takes discards.
    pub const DISCARD: u64 = 1 << 13;
    /// The device takes write zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// The driver complies with VIRTIO 1.0 or later; else it uses the legacy interface. No bit of
    /// block devices alone.
    pub(in crate::block) const VERSION_1: u64 = 1 << 32;
}

/// The operation that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlkOp {
    /// A read: VIRTIO_BLK_T_IN.
    Read,
    /// A write: VIRTIO_BLK_T_OUT.
    Write,
    /// A flush: VIRTIO_BLK_T_FLUSH.
    Flush,
    /// A discard: VIRTIO_BLK_T_DISCARD.
    Discard,
    /// A request to write zeroes: VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// A request for the serial number: VIRTIO_BLK_T_GET_ID.
    GetId,
}

impl BlkOp {
    /// Returns the operation of a header's type field, if it is one that this device knows.
    #[inline]
    pub(super) fn from_type(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            _ => return None,
        })
    }

    /// Returns the operation of a type field that only drivers of the legacy interface write: VIRTIO
    /// 1.3, "Block Device", "Legacy Interface: Device Operation". VIRTIO_BLK_T_FLUSH_OUT is a flush.
    #[cold]
    pub(super) fn from_legacy_type(number: u32) -> Option<Self> {
        (number == 5).then_some(Self::Flush)
    }

    /// Returns whether it changes the disk.
    #[inline]
    pub(super) fn modifies(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }

    /// Returns a short lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
            Self::GetId => "get_id",
        }
    }
}

impl fmt::Display for BlkOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The status byte that ends each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The request was carried out: VIRTIO_BLK_S_OK.
    Ok = 0,
    /// The request failed: VIRTIO_BLK_S_IOERR.
    IoErr = 1,
    /// The device does not know such requests: VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

impl From<&io::Error> for Status {
    /// What the system cannot do at all is "unsupported"; all else is an I/O error.
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Unsupported => Self::Unsupported,
            _ => Self::IoErr,
        }
    }
}

/// A range of bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ByteRange {
    /// The offset of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

impl ByteRange {
    /// Returns the blocks of `block` bytes that lie in the range as a whole; a length of 0 if none
    /// does.
    pub(super) fn whole_blocks(self, block: u64) -> Self {
        let (offset, end) = (self.offset.next_multiple_of(block), self.offset + self.length);
        Self { offset, length: (end - end % block).saturating_sub(offset) }
    }
}
