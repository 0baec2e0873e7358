//! What a queue notes in the dirty log.
//!
//! What the device wrote for a request is marked when the request is given back: only then is all of
//! it written, and whoever wrote it has nothing of the request any more. All of the writable part is
//! marked, whatever the device says that it has written: a read from a disk that fails half-way has
//! written, and so may have a view that Python had.

use std::sync::Arc;

use super::queue::Queue;
use super::queue_log::{Extent, QueueLog};
use crate::memory::{Buffers, DirtyLog};
use crate::request::Done;
use crate::ring::UsedLog;
use crate::token::Token;

impl Queue {
    /// Notes what is written from now on in this log, or in none.
    pub(super) fn set_log(&mut self, log: Option<QueueLog>) {
        let used = |log: &QueueLog| Some(UsedLog { log: Arc::clone(&log.log), at: log.used? });
        self.ring.set_log(log.as_ref().and_then(used));
        self.log = log;
    }

    /// Marks what was written for requests that are given back.
    #[inline]
    pub(super) fn mark(&self, done: &[Done], extent: Extent) {
        if let Some(log) = &self.log {
            log.mark(done, extent);
        }
    }

    /// Marks what may have been written to a chain that is in flight, and that its device does not
    /// give back. A driver that has changed the chain meanwhile has changed what is marked.
    pub(super) fn mark_chain(&mut self, token: Token) {
        let Some(QueueLog { log, .. }) = &self.log else { return };
        let (log, mut buffers) = (Arc::clone(log), Buffers::default());
        if self.ring.walk_again(token, &mut buffers).is_ok() {
            DirtyLog::order();
            buffers.mark(&log, u64::MAX);
        }
    }

    /// Marks what may have been written to all chains that are in flight.
    pub(super) fn mark_rest(&mut self) {
        if self.log.is_some() {
            self.ring.tokens_in_flight().into_iter().for_each(|token| self.mark_chain(token));
        }
    }

    /// Tells that something was noted, and what the log has no bit for.
    #[cold]
    pub(super) fn tell_logged(&self) {
        let Some(QueueLog { log, event, .. }) = &self.log else { return };
        if let Some(event) = event {
            event.send();
        }
        if let Some(beyond) = log.take_beyond() {
            self.report.log_too_short(self.index, beyond);
        }
    }
}
