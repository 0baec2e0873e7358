//! The dirty log of a session: taken from the front-end, and given to the queues.

use std::sync::Arc;

use super::rings::held_up;
use super::session::Session;
use crate::address::GuestAddr;
use crate::connection::Refusal;
use crate::memory::DirtyLog;
use crate::wire::ReceivedFd;
use crate::wire::payload::Log;
use crate::worker::{HeldUp, Notifier};

impl Session<'_> {
    /// Takes a log. When this returns nobody uses the former one any more, and it is unmapped.
    pub(super) fn set_log(&mut self, place: Log, fd: ReceivedFd) -> Result<(), Refusal> {
        let Log { size, offset } = place;
        let log = DirtyLog::map(&self.memory_policy, fd, offset, size).map_err(|error| {
            Refusal(format!("SET_LOG_BASE: the log of {size:#x} bytes at {offset:#x}: {error}"))
        })?;
        log.watch(&self.loss);
        self.logging.log = Some(Arc::new(log));
        self.pass_log_on("SET_LOG_BASE")
    }

    pub(super) fn set_log_event(&mut self, fd: ReceivedFd) -> Result<(), Refusal> {
        // No queue's own: the first one's counts what becomes of it.
        let event = Notifier::new(fd, &self.shared().signaller(0)).map_err(|what| {
            Refusal(format!("SET_LOG_FD: its descriptor is {what}, not an eventfd"))
        })?;
        self.logging.event = Some(event);
        self.pass_log_on("SET_LOG_FD")
    }

    /// Has all queues note what they write, or no more, as the front-end has accepted LOG_ALL or
    /// not.
    pub(super) fn switch_logging(&mut self, is_on: bool) -> Result<(), Refusal> {
        if std::mem::replace(&mut self.logging.is_on, is_on) == is_on {
            return Ok(());
        }
        self.pass_log_on("SET_FEATURES")
    }

    /// Has writes to the used ring of a started vring noted under this address.
    pub(super) fn log_used_ring(
        &mut self,
        index: u16,
        at: Option<GuestAddr>,
    ) -> Result<(), Refusal> {
        self.vrings[usize::from(index)].used_log = at;
        self.pass_log_on("SET_VRING_ADDR")
    }

    fn pass_log_on(&self, message: &str) -> Result<(), Refusal> {
        for vring in &self.vrings {
            let Some(queue) = &vring.queue else { continue };
            let set = queue.set_log(self.logging.of_queue(vring.used_log));
            set.map_err(|HeldUp| held_up(message, queue.index()))?;
        }
        Ok(())
    }
}
