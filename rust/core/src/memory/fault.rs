//! A buffer that cannot be reached.

use std::fmt;

use super::access::Access;
use crate::address::GuestAddr;

/// A buffer that cannot be reached: it was never granted, not any more, not for writing, or too
/// often at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First address.
    pub at: GuestAddr,
    /// Bytes.
    pub len: usize,
    /// What it was wanted for.
    pub access: Access,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, len, access } = self;
        let what = match access {
            Access::DeviceReadable => "read",
            Access::DeviceWritable => "written",
        };
        write!(f, "{len} bytes at {at} cannot be {what}: no grant allows it")
    }
}
