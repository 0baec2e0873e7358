//! The dirty log, as a ring uses it.

use std::sync::Arc;

use crate::address::{GuestAddr, UserAddr};
use crate::memory::{DirtyLog, Memory};

/// Where writes to the used ring are noted.
#[derive(Clone, Debug)]
pub struct UsedLog {
    /// The log.
    pub log: Arc<DirtyLog>,
    /// The address of the used ring that the front-end has told for the log: the guest's, or where
    /// addresses are translated an I/O virtual one.
    pub at: GuestAddr,
}

/// What the device writes, and where the log knows it.
#[derive(Debug)]
pub(super) struct LoggedPart {
    told: UsedLog,
    len: usize,
    /// Where the guest has it: in more than one piece only by translations.
    pieces: Vec<(GuestAddr, u64)>,
}

impl LoggedPart {
    pub(super) fn new(told: UsedLog, len: usize) -> Self {
        Self { told, len, pieces: Vec::new() }
    }

    pub(super) fn log(&self) -> &DirtyLog {
        &self.told.log
    }

    /// Finds it in this table of memory. What has no translation is written by nobody.
    pub(super) fn find(&mut self, memory: &Memory) {
        self.pieces = if memory.translates() {
            memory.guest_places(UserAddr(self.told.at.0), self.len)
        } else {
            vec![(self.told.at, self.len as u64)]
        };
    }

    /// Marks `len` bytes of it from `offset` on. The last thing before this was a fence.
    #[inline]
    pub(super) fn mark(&self, offset: usize, len: usize) {
        mark_pieces(self.log(), &self.pieces, offset as u64, len as u64);
    }
}

/// Marks so many bytes of what lies in pieces, behind the first `skip`.
#[inline]
pub(super) fn mark_pieces(log: &DirtyLog, pieces: &[(GuestAddr, u64)], skip: u64, len: u64) {
    let (mut skip, mut left) = (skip, len);
    for &(at, size) in pieces {
        let here = size.saturating_sub(skip).min(left);
        if here > 0 {
            // An address that wraps is beyond every log, as the last one is.
            log.mark(GuestAddr(at.0.saturating_add(skip)), here);
        }
        (skip, left) = (skip.saturating_sub(size), left - here);
    }
}
