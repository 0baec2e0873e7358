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
            Unreachable::Outside => {
                "no memory region that the front-end has shared covers them; most likely the VMM \
                 has memory, such as a module plugged in later, that it does not share"
            }
        })
    }
}
