//! Virtqueues as the device sees them. No protocol message and no device is known here.

mod chain;
#[cfg(test)]
mod crash_formats_tests;
#[cfg(test)]
mod crash_support;
#[cfg(test)]
mod crash_tests;
mod event;
mod held;
mod in_order;
mod indirect;
mod inflight;
mod packed;
mod packed_events;
mod packed_record;
mod packed_slots;
mod part;
mod record;
#[expect(clippy::module_inception, reason = "the noun of the folder")]
mod ring;
mod split;
mod split_areas;
mod split_record;
mod used_log;
mod used_places;

/// The atomics of the files that a model checker's tests compile with their own.
mod atomics {
    pub(super) use std::sync::atomic::{Ordering, fence};
}

use std::fmt;

pub use chain::Origin;
pub use event::{need_event, need_event_packed};
pub use inflight::InflightRecord;
pub use packed::{PackedLayout, PackedRing};
pub use packed_record::PackedRecord;
pub use part::{RingPart, StartError};
pub use record::{RecordError, Unfinished};
pub use ring::{Ring, RingLayout};
pub use split::{SplitLayout, SplitRing};
pub use split_record::SplitRecord;
pub use used_log::UsedLog;

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
    /// A packed ring's chain has more descriptors than the ring has free.
    Endless {
        /// The slot where it begins.
        slot: u16,
        /// Descriptors that neither are in flight nor belong to chains before it.
        room: u16,
    },
    /// A buffer id that a packed ring of this size has not.
    BadId {
        /// The id.
        id: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A buffer id whose chain the device has not given back yet.
    IdInFlight(u16),
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
    /// INDIRECT where it may not be: not negotiated, inside a table, or together with NEXT; in a
    /// packed ring in any chain of several descriptors.
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
            Self::Endless { slot, room } => {
                write!(f, "the chain at slot {slot} has more than {room} descriptors, or no end")
            }
            Self::BadId { id, size } => {
                write!(f, "buffer id {id} in a ring of {size} entries")
            }
            Self::IdInFlight(id) => {
                write!(f, "buffer id {id} was made available while it is in flight")
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
