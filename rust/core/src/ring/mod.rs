//! Virtqueues as the device sees them. No protocol message and no device is known here.

mod chain;
#[cfg(test)]
mod crash_tests;
mod event;
mod indirect;
mod inflight;
#[expect(clippy::module_inception, reason = "the noun of the folder")]
mod ring;
mod split;

use std::fmt;

pub use event::need_event;
pub use inflight::{InflightRecord, RecordError, Unfinished};
pub use ring::{Ring, RingLayout};
pub use split::{Origin, RingPart, SplitLayout, SplitRing, StartError, UsedLog};

/// Descriptors of one chain beyond which it is refused, for rings of up to this size. Real
/// drivers send indirect tables longer than the ring (Windows: 515 entries on any ring).
pub const MAX_CHAIN: u16 = 1024;

/// What a driver did to break its ring. The ring stays broken until it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The available index is further ahead than the ring is long.
    IndexJump {
        /// The index read.
        available: u16,
        /// Where the device is.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// An available entry names no descriptor.
    BadHead {
        /// The entry.
        head: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A head that the device has not given back yet.
    HeadInFlight(u16),
    /// A `next` field names no descriptor of its table.
    BadNext {
        /// The chain's head.
        head: u16,
        /// The field.
        next: u16,
        /// Entries of the table.
        table: u32,
    },
    /// More descriptors than any honest chain has: a loop, most likely.
    TooLong {
        /// The chain's head.
        head: u16,
        /// The limit that was passed.
        limit: u16,
    },
    /// A device-readable descriptor after a device-writable one.
    ReadableAfterWritable {
        /// The chain's head.
        head: u16,
    },
    /// The chain describes 4 GiB or more.
    TooLarge {
        /// The chain's head.
        head: u16,
    },
    /// An indirect table of no, too many, or a broken number of entries.
    BadTable {
        /// The chain's head.
        head: u16,
        /// Bytes of the table.
        len: u32,
    },
    /// The record of requests in flight cannot be that of the ring.
    Record(RecordError),
    /// INDIRECT where it may not be: not negotiated, inside a table, or together with NEXT.
    BadIndirect {
        /// The chain's head.
        head: u16,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IndexJump { available, next, size } => {
                write!(f, "available index {available} is more than {size} entries ahead of {next}")
            }
            Self::BadHead { head, size } => {
                write!(f, "available entry names descriptor {head} of {size}")
            }
            Self::HeadInFlight(head) => {
                write!(f, "descriptor {head} was made available while it is in flight")
            }
            Self::BadNext { head, next, table } => {
                write!(f, "chain {head}: next is {next}, the table has {table} descriptors")
            }
            Self::TooLong { head, limit } => {
                write!(f, "chain {head}: more than {limit} descriptors, or a loop")
            }
            Self::ReadableAfterWritable { head } => {
                write!(f, "chain {head}: a device-readable descriptor follows a writable one")
            }
            Self::Record(ref error) => error.fmt(f),
            Self::TooLarge { head } => write!(f, "chain {head}: 4 GiB or more in one chain"),
            Self::BadTable { head, len } => write!(
                f,
                "chain {head}: an indirect table of {len} bytes is empty, too long or no multiple of 16"
            ),
            Self::BadIndirect { head } => write!(
                f,
                "chain {head}: an indirect table that was not negotiated, is nested, or has a next descriptor"
            ),
        }
    }
}

impl std::error::Error for RingError {}
