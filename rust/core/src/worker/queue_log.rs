//! The dirty log, as one queue uses it.

use std::sync::Arc;

use super::notifier::Notifier;
use crate::address::GuestAddr;
use crate::memory::DirtyLog;
use crate::request::Done;

/// The dirty log, as one queue uses it.
#[derive(Clone, Debug)]
pub(crate) struct QueueLog {
    pub(crate) log: Arc<DirtyLog>,
    /// The address under which the log knows the used ring; `None`: writes to it are not noted.
    pub(crate) used: Option<GuestAddr>,
    /// Signalled when something was noted.
    pub(crate) event: Option<Notifier>,
}

/// How much of a request's memory was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Any of it may have been.
    Whole,
    /// As many bytes as the answer says, and no other.
    Written,
}

impl QueueLog {
    /// Marks what was written for these requests.
    pub(super) fn mark(&self, done: &[Done], extent: Extent) {
        DirtyLog::order();
        for Done { slot, written } in done {
            let len = match extent {
                Extent::Whole => u64::MAX,
                Extent::Written => u64::from(*written),
            };
            slot.buffers.mark(&self.log, len);
        }
    }
}
