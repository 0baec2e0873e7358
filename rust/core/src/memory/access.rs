//! The two directions of a buffer.

use crate::sys::mmap::Protection;

/// Who may write a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The driver wrote it, the device reads it.
    DeviceReadable,
    /// The device writes it.
    DeviceWritable,
}

impl Access {
    /// What a mapping for it must allow.
    pub(super) fn protection(self) -> Protection {
        match self {
            Self::DeviceReadable => Protection::Read,
            Self::DeviceWritable => Protection::ReadWrite,
        }
    }
}
