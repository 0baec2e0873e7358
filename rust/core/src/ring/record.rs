//! What the records of both formats of rings have in common.

use std::fmt;

/// The only version of the record that there is. 0 says that nobody has used it yet.
pub(super) const VERSION: u16 = 1;

/// A record that cannot be that of its ring. Nothing of it is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// A version that there is not.
    Version(u16),
    /// It is that of a ring with another number of entries.
    Entries {
        /// Entries that it speaks of.
        recorded: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// More requests were given back at once than were in flight.
    Used {
        /// The used index that it has.
        recorded: u16,
        /// The ring's.
        used: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A link in a list names no entry, or one that is in a list already.
    Link {
        /// The link.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A packed ring's place is none, or its wrap counter.
    Place {
        /// The slot.
        slot: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A packed ring's buffer id is none, or that of two requests.
    Id {
        /// The id.
        id: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// More requests are in flight than the driver has made available.
    TooMany {
        /// Requests in flight.
        in_flight: u16,
        /// Requests that were made available and are not used.
        available: u16,
    },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the record of requests in flight (SET_INFLIGHT_FD) is not this ring's: ")?;
        match self {
            Self::Version(version) => write!(f, "version {version}, not {VERSION}"),
            Self::Entries { recorded, size } => {
                write!(f, "it is of {recorded} entries, the ring has {size}")
            }
            Self::Used { recorded, used, size } => {
                write!(f, "used index {recorded}, and the ring of {size} entries stands at {used}")
            }
            Self::Link { next, size } => write!(f, "a wrong link to entry {next} of {size}"),
            Self::Place { slot, size } => {
                write!(f, "it stands at slot {slot} of {size}, or at a wrong wrap counter")
            }
            Self::Id { id, size } => {
                write!(
                    f,
                    "two requests have the buffer id {id}, or the ring of {size} entries has no such"
                )
            }
            Self::TooMany { in_flight, available } => write!(
                f,
                "{in_flight} requests in flight, of {available} that are available and not used"
            ),
        }
    }
}

/// A request that was in flight when the process that had it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its number among all that were ever popped from the ring.
    pub sequence: u64,
    /// Its chain's head.
    pub head: u16,
}
