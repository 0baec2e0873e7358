//! The dirty log, as a ring uses it.

use std::sync::Arc;

use crate::address::GuestAddr;
use crate::memory::DirtyLog;

/// Where writes to the used ring are noted.
#[derive(Clone, Debug)]
pub struct UsedLog {
    /// The log.
    pub log: Arc<DirtyLog>,
    /// The address under which the log knows the used ring.
    pub at: GuestAddr,
}

impl UsedLog {
    /// Marks `len` bytes of the used ring from `offset` on.
    #[inline]
    pub(super) fn mark(&self, offset: usize, len: usize) {
        // An address that wraps is beyond every log, as the last one is.
        self.log.mark(GuestAddr(self.at.0.saturating_add(offset as u64)), len as u64);
    }
}
