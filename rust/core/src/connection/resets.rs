//! The messages of the device status, and resets.

use super::state::{Commit, Connection, Handled, Verdict, read};
use super::status::Status;
use super::{Action, Refusal, Vring};
use crate::wire::{Frame, Payload};

/// VIRTIO 1.3, "Device Status Field": the driver is content with the features.
const FEATURES_OK: u8 = 0x08;

impl Connection {
    pub(super) fn get_status(&self) -> Handled {
        Ok(Verdict::Answer(u64::from(self.status.byte()).to_bytes()))
    }

    /// FEATURES_OK does not stick while features are missing that the device requires: that is
    /// how the driver is told.
    pub(super) fn set_status(&mut self, frame: &Frame) -> Handled {
        let value: u64 = read(frame)?;
        let byte = u8::try_from(value)
            .map_err(|_| Refusal(format!("status {value:#x} is more than 8 bits")))?;
        let commit = match byte {
            0 => Commit::StatusReset,
            _ if self.has_required_features() => Commit::Status(byte),
            _ => Commit::Status(byte & !FEATURES_OK),
        };
        Ok(Verdict::Act(Action::Status(byte), commit))
    }

    /// All rings stopped, disabled and forgotten, status 0. Features, memory and the back-end's
    /// channel belong to the connection and stay.
    pub(super) fn reset(&mut self) -> Verdict {
        self.vrings.iter_mut().for_each(Vring::reset);
        self.status = Status::default();
        Verdict::Done
    }

    /// As a reset, but for where each ring goes on: QEMU 7.2 and 8.0 write status 0 whenever the
    /// machine pauses, before they ask for the bases, and start the rings again from there.
    pub(super) fn status_reset(&mut self, stopped: &[(u16, u16)]) -> Verdict {
        for &(index, base) in stopped {
            self.change(index, |vring| vring.stop(base));
        }
        self.vrings.iter_mut().for_each(Vring::reset_but_base);
        self.status = Status::default();
        Verdict::Done
    }
}
