//! The messages about the dirty log.
//!
//! A front-end switches logging while rings run, in any order: QEMU gives the log first when a
//! migration begins, and last when a ring is started again while one is under way. So LOG_ALL may
//! be there without a log, and a log without LOG_ALL: nothing is logged then.

use super::state::{Commit, Connection, Handled, Verdict, only_fd, read};
use super::{Action, Refusal};
use crate::wire::payload::Log;
use crate::wire::{Frame, Payload};

impl Connection {
    /// Gives a log, the first or another, at any time.
    pub(super) fn set_log_base(&self, frame: Frame) -> Handled {
        let log: Log = read(&frame)?;
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        Ok(Verdict::Act(Action::SetLog { log, fd }, Commit::Log(log)))
    }

    /// The former log is not used any more. The answer is the payload of the request: rust-vmm's
    /// front-end waits for as many bytes, and QEMU takes any number.
    pub(super) fn log_taken(log: Log) -> Verdict {
        Verdict::Answer(log.to_bytes())
    }

    pub(super) fn set_log_fd(&self, frame: Frame) -> Handled {
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        Ok(Verdict::Act(Action::SetLogEvent(fd), Commit::Nothing))
    }
}
