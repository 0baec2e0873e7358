//! A part of a ring, of either format, and its place in memory.

use std::fmt;

use crate::address::UserAddr;
use crate::memory::{Access, Memory, Window};

/// A part of a ring, as the front-end has told where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPart {
    /// Which part.
    pub name: &'static str,
    /// Its first address.
    pub at: UserAddr,
    /// Its bytes.
    pub len: usize,
    /// What the device does with it.
    pub access: Access,
}

impl RingPart {
    /// Finds it in `memory`, at a multiple of `align`.
    pub(super) fn find(self, memory: &Memory, align: usize) -> Result<Window, StartError> {
        let Self { name: part, at, len, access } = self;
        memory.ring_part(at, len, align, access).ok_or(StartError { part, at, len })
    }
}

/// A part of a ring that is not wholly in one region of guest memory, or misaligned in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartError {
    /// Which part.
    pub part: &'static str,
    /// Where it should be.
    pub at: UserAddr,
    /// Its bytes.
    pub len: usize,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, at, len } = self;
        write!(
            f,
            "the {part} ({len} bytes at {at}) is not inside one region of guest memory, has no \
             translation, or cannot be mapped"
        )
    }
}

impl std::error::Error for StartError {}
