//! Why a block request fails without a word of the device's own: what it breaks, or what the host
//! says.

use std::fmt;
use std::io;

use super::numbers::{BlkOp, ByteRange, SECTOR, Status};

/// Hears of requests that fail without a word of the device's own.
///
/// Called on any thread that serves a queue, before the driver hears of it, and for each request:
/// a driver may make up any number of them, so who logs them counts them too.
pub trait FailureObserver: fmt::Debug + Send + Sync {
    /// A request is refused: nothing of it was carried out.
    fn refused(&self, queue: u16, why: &Refusal);

    /// The host has failed a request.
    fn failed(&self, queue: u16, what: &Attempt, error: &io::Error);
}

/// A request that the host has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The operation.
    pub op: BlkOp,
    /// Its bytes of the disk; of several ranges the first.
    pub range: ByteRange,
}

/// The rule that a request breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no whole header, or no room for a status.
    NoRequest {
        /// Bytes that the device may read.
        readable: u64,
        /// Bytes that the device may write.
        writable: u64,
    },
    /// The type is none that this device knows.
    UnknownType(u32),
    /// The driver has not accepted the feature that the operation belongs to.
    NotAccepted(BlkOp),
    /// It changes a disk that is read-only.
    ReadOnly(BlkOp),
    /// Its data has no byte, or no whole number of sectors.
    NotSectors {
        /// The operation.
        op: BlkOp,
        /// Bytes of its data.
        bytes: u64,
    },
    /// It is not of whole blocks, and the disk takes no others.
    PartOfBlock {
        /// The operation.
        op: BlkOp,
        /// The first sector.
        sector: u64,
        /// The number of sectors.
        sectors: u64,
        /// The sectors of a block.
        block: u64,
    },
    /// It goes past the end of the disk.
    PastEnd {
        /// The operation.
        op: BlkOp,
        /// The first sector.
        sector: u64,
        /// The number of sectors.
        sectors: u64,
        /// The sectors of the disk.
        capacity: u64,
    },
    /// Its list of ranges is empty, broken or too long.
    BadList {
        /// The operation.
        op: BlkOp,
        /// Bytes of the list.
        bytes: u64,
        /// The most bytes that it may have.
        most: u64,
    },
    /// One of its ranges is too long.
    LongRange {
        /// The operation.
        op: BlkOp,
        /// Sectors of the range.
        sectors: u32,
        /// The most that it may have.
        most: u32,
    },
    /// One of its ranges has flags that it may not have.
    BadFlags {
        /// The operation.
        op: BlkOp,
        /// The flags.
        flags: u32,
    },
}

impl Refusal {
    /// Returns the status that the driver gets; `None` if there is no room for one, or no request.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::NoRequest { .. } => None,
            Self::UnknownType(_) | Self::NotAccepted(_) | Self::BadFlags { .. } => {
                Some(Status::Unsupported)
            }
            _ => Some(Status::IoErr),
        }
    }

    /// Returns the rule in a few words, to sum such requests up by.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NoRequest { .. } => "chains that are no requests",
            Self::UnknownType(_) => "requests of unknown types",
            Self::NotAccepted(_) => "requests of features that were not accepted",
            Self::ReadOnly(_) => "changes of a read-only disk",
            Self::NotSectors { .. } => "data that is not in whole sectors",
            Self::PartOfBlock { .. } => "requests for parts of blocks",
            Self::PastEnd { .. } => "requests past the end of the disk",
            Self::BadList { .. } => "broken lists of ranges",
            Self::LongRange { .. } => "ranges that are too long",
            Self::BadFlags { .. } => "ranges with unknown flags",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Numbers of the driver's: their products may need more than 64 bits.
        let bytes = |sectors: u64| u128::from(sectors) * u128::from(SECTOR);
        match *self {
            Self::NoRequest { readable, writable } => write!(
                f,
                "a chain of {readable} readable and {writable} writable bytes is no request: that \
                 has 16 and 1 at least"
            ),
            Self::UnknownType(number) => write!(f, "a request of unknown type {number:#x}"),
            Self::NotAccepted(op) => {
                write!(f, "a {op}, though the driver has not accepted that feature")
            }
            Self::ReadOnly(op) => write!(f, "a {op}, and the disk is read-only"),
            Self::NotSectors { op, bytes } => {
                write!(f, "a {op} of {bytes} bytes: not whole sectors of {SECTOR}")
            }
            Self::PartOfBlock { op, sector, sectors, block } => write!(
                f,
                "a {op} of {} bytes at offset {}: not whole blocks of {} bytes",
                bytes(sectors),
                bytes(sector),
                bytes(block)
            ),
            Self::PastEnd { op, sector, sectors, capacity } => write!(
                f,
                "a {op} of {} bytes at offset {} ends past the {} bytes of the disk",
                bytes(sectors),
                bytes(sector),
                bytes(capacity)
            ),
            Self::BadList { op, bytes, most } => write!(
                f,
                "a {op} with a list of {bytes} bytes: it has 16 for each range, {most} at most"
            ),
            Self::LongRange { op, sectors, most } => {
                write!(f, "a {op} of {sectors} sectors at once: {most} at most")
            }
            Self::BadFlags { op, flags } => write!(f, "a {op} with unknown flags {flags:#x}"),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, range: ByteRange { offset, length } } = self;
        match op {
            BlkOp::Flush | BlkOp::GetId => write!(f, "{op}"),
            _ => write!(f, "{op} of {length} bytes at offset {offset}"),
        }
    }
}
