//! The two directions of a buffer.

use crate::sys::mmap::Protection;

/// The direction of a buffer: it says who may write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The driver wrote it, the device reads it.
    DeviceReadable,
    /// The device writes it.
    DeviceWritable,
}

impl Access {
    /// Returns what a mapping for it must allow.
    pub(super) fn protection(self) -> Protection {
        match self {
            Self::DeviceReadable => Protection::Read,
            Self::DeviceWritable => Protection::ReadWrite,
        }
    }
}
