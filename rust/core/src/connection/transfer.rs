//! The messages that carry the device's own state from one back-end to another.
//!
//! The answer to SET_DEVICE_STATE_FD comes at once, and the state travels while further messages are
//! served: the front-end reads, or writes, only when it has the answer. CHECK_DEVICE_STATE is answered
//! when all is done.

use super::state::{Commit, Connection, Handled, Verdict, only_fd, read};
use super::{Action, Refusal};
use crate::wire::payload::{DeviceStateParams, TransferDirection};
use crate::wire::{Frame, Payload};

/// The answer of a back-end that uses the front-end's descriptor, and has none of its own.
const USES_YOURS: u64 = 1 << 8;

impl Connection {
    /// The device is to be stopped, which QEMU calls suspended: no ring runs. Memory and features
    /// need not be there: crosvm loads before it tells of them.
    pub(super) fn set_device_state_fd(&self, frame: Frame) -> Handled {
        let DeviceStateParams { direction } = read(&frame)?;
        if let Some(index) = self.vrings.iter().position(|vring| vring.is_started()) {
            return Err(Refusal(format!(
                "vring {index} is started: the state is saved and loaded when all are stopped"
            )));
        }
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        Ok(Verdict::Act(Action::TransferState { direction, fd }, Commit::Transfer { direction }))
    }

    pub(super) fn check_device_state() -> Verdict {
        Verdict::Act(Action::AwaitState, Commit::Transferred)
    }

    pub(super) fn transfer_has_begun(&mut self, direction: TransferDirection) -> Verdict {
        self.loading = direction == TransferDirection::Load;
        if self.loading {
            // What comes now is another driver's, or an earlier state of the same: no ring that
            // starts elsewhere than it stopped shows a reset.
            self.driver_is_known();
        }
        Verdict::Answer(USES_YOURS.to_bytes())
    }

    /// The front-end knows how the transfer went.
    pub(super) fn transfer_is_over(&mut self) -> Verdict {
        self.loading = false;
        Verdict::Answer(0_u64.to_bytes())
    }

    /// Refuses a ring of which nobody knows yet what device it is to run on.
    pub(super) fn not_while_loading(&self, index: u16) -> Result<(), Refusal> {
        if self.loading {
            return Err(Refusal(format!(
                "vring {index} cannot start while the device's state is being loaded: \
                 CHECK_DEVICE_STATE comes first"
            )));
        }
        Ok(())
    }
}
