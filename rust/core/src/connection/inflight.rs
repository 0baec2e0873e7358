//! The messages about the record of requests in flight.

use std::os::fd::OwnedFd;

use super::state::{Commit, Connection, Handled, Verdict, only_fd, read};
use super::{Action, Refusal};
use crate::wire::payload::Inflight;
use crate::wire::{Frame, Payload};

impl Connection {
    /// Asks for a new record. The front-end names the entries that it thinks its rings have, which
    /// is not what its driver makes them: QEMU 10 names 128 for rings of 1024.
    pub(super) fn get_inflight_fd(&self, frame: &Frame) -> Handled {
        let asked: Inflight = read(frame)?;
        self.check_queues(asked.num_queues)?;
        Ok(Verdict::Act(Action::MakeRecord { asked }, Commit::Nothing))
    }

    pub(super) fn record_made(inflight: Inflight, fd: OwnedFd) -> Verdict {
        Verdict::AnswerWith(inflight.to_bytes(), fd)
    }

    /// Takes a record: one that was just made, or the one of a back-end that died.
    pub(super) fn set_inflight_fd(&self, frame: Frame) -> Handled {
        let inflight: Inflight = read(&frame)?;
        self.check_queues(inflight.num_queues)?;
        if let Some(index) = self.vrings.iter().position(|vring| vring.is_started()) {
            return Err(Refusal(format!("vring {index} is started")));
        }
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        Ok(Verdict::Act(Action::SetRecord { inflight, fd }, Commit::Nothing))
    }

    fn check_queues(&self, queues: u16) -> Result<(), Refusal> {
        let most = self.offer.num_queues;
        if queues == 0 || queues > most {
            return Err(Refusal(format!("a record of {queues} queues, the device has {most}")));
        }
        Ok(())
    }
}
