//! What a session knows of the dirty log.

use std::sync::Arc;

use crate::address::GuestAddr;
use crate::memory::DirtyLog;
use crate::worker::{Notifier, QueueLog};

/// What the front-end has said about the dirty log.
#[derive(Default)]
pub(super) struct Logging {
    /// LOG_ALL is among the accepted features.
    pub(super) is_on: bool,
    pub(super) log: Option<Arc<DirtyLog>>,
    /// Signalled when something was noted.
    pub(super) event: Option<Notifier>,
}

impl Logging {
    /// The log for a queue with its used ring there; `None`: nothing is noted.
    pub(super) fn of_queue(&self, used: Option<GuestAddr>) -> Option<QueueLog> {
        let log = self.log.as_ref().filter(|_| self.is_on)?;
        Some(QueueLog { log: Arc::clone(log), used, event: self.event.clone() })
    }
}
