//! The device's own state: saved for another back-end, or loaded from one.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::session::Session;
use crate::backend::event::Event;
use crate::connection::Refusal;
use crate::socket::Beside;
use crate::state::{Transfer, Way};
use crate::wire::ReceivedFd;
use crate::wire::payload::TransferDirection;

/// How long a transfer that nobody wants any more may keep its device, when another is to begin.
const END_LIMIT: Duration = Duration::from_secs(1);

impl Session<'_> {
    /// Begins a transfer. One that was begun before and is not over is given up: its front-end has
    /// lost interest in it.
    pub(super) fn transfer_state(
        &mut self,
        direction: TransferDirection,
        fd: ReceivedFd,
    ) -> Result<(), Refusal> {
        let refused = |why: String| Refusal(format!("SET_DEVICE_STATE_FD: {why}"));
        if !self.end_transfer(Instant::now() + END_LIMIT) {
            return Err(refused("the device is still saving or loading its state".to_owned()));
        }
        let way = match direction {
            TransferDirection::Save => Way::Out,
            TransferDirection::Load => Way::In,
        };
        let device = Arc::clone(&self.context.device);
        let shared = Arc::clone(&self.context.shared);
        let begun = move || shared.adopt(thread::current().id());
        self.transfer = Some(Transfer::begin(device, way, fd, begun).map_err(refused)?);
        Ok(())
    }

    /// Waits for the end of the transfer, for as long as the front-end does.
    pub(super) fn await_state(&mut self) -> Result<(), Refusal> {
        let refused = |why: &str| Refusal(format!("CHECK_DEVICE_STATE: {why}"));
        loop {
            let Some(transfer) = &self.transfer else {
                return Err(refused("no transfer was begun: SET_DEVICE_STATE_FD comes first"));
            };
            if transfer.outcome().is_some() {
                break;
            }
            let wake = self.shared().wake.as_fd();
            let goes_on = match self.stream.wait_beside(wake, transfer.done()) {
                Ok(Beside::Ready) => true,
                Ok(Beside::Woken) => self.pending_events(),
                Ok(Beside::HungUp) | Err(_) => false,
            };
            if !goes_on {
                self.is_over = true;
                return Err(refused("the connection ends before the transfer does"));
            }
        }
        self.forget_transfer().unwrap_or(Ok(())).map_err(|why| refused(&why))
    }

    /// Forgets a transfer that is over, and says how it went: in the log, or by an error for who
    /// has asked. `None`: there is none, or it is not over.
    fn forget_transfer(&mut self) -> Option<Result<(), String>> {
        let outcome = self.transfer.as_ref()?.outcome()?;
        let transfer = self.transfer.take()?;
        self.shared().disown(transfer.thread_id());
        Some(match (outcome, transfer.way()) {
            (Ok(bytes), Way::Out) => {
                self.event(Event::StateSaved { bytes });
                Ok(())
            }
            (Ok(bytes), Way::In) => {
                self.event(Event::StateLoaded { bytes });
                Ok(())
            }
            (Err(why), way) => Err(failed(way, &why)),
        })
    }

    /// Gives the last transfer up. `false`: the device does not return from it before `deadline`.
    pub(super) fn end_transfer(&mut self, deadline: Instant) -> bool {
        let Some(transfer) = &self.transfer else { return true };
        let is_over = transfer.end(deadline.saturating_duration_since(Instant::now()));
        if let Some(Err(why)) = self.forget_transfer() {
            self.event(Event::StateFailed(why));
        }
        is_over
    }
}

fn failed(way: Way, why: &str) -> String {
    match way {
        Way::Out => format!("the device's state was not saved: {why}"),
        Way::In => format!("the device's state was not loaded: {why}"),
    }
}
