//! A buffer that cannot be reached.

use std::fmt;

use super::access::Access;
use crate::address::GuestAddr;

/// A buffer that cannot be reached, so that its request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The buffer's first guest address.
    pub at: GuestAddr,
    /// The buffer's length in bytes.
    pub len: u64,
    /// Whether the device wanted to read or to write it.
    pub access: Access,
    /// The reason why it cannot be reached.
    pub reason: Unreachable,
}

/// Why a buffer cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No region of memory has all of it.
    Outside,
    /// The guest has granted it to nobody, or not for this, or has taken it back.
    NotGranted,
    /// The front-end has told no translation of all of it that allows this.
    Untranslated,
    /// By its translations it lies in more pieces than any honest buffer.
    TooManyPieces,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, len, access, reason } = self;
        let what = match access {
            Access::DeviceReadable => "read",
            Access::DeviceWritable => "written",
        };
        write!(f, "{len} bytes at {at} cannot be {what}: ")?;
        f.write_str(match reason {
            Unreachable::NotGranted => "no grant allows it",
            Unreachable::Untranslated => {
                "the front-end has no translation that allows it; most likely the guest's IOMMU does \
                 not map it for the device"
            }
            Unreachable::TooManyPieces => {
                "by its translations it lies in more than 65536 pieces, which are not looked at"
            }
            Unreachable::Outside => {
                "no memory region that the front-end has shared covers them; most likely the VMM \
                 has memory, such as a module plugged in later, that it does not share"
            }
        })
    }
}
