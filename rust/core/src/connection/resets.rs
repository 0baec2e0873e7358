//! The messages of the device status, and resets: which message is one, and when a ring that starts
//! shows one.
//!
//! A device with a state of its own forgets it when its driver resets the device, and keeps it
//! when the machine only pauses. Front-ends say which of the two it is in three ways.
//!
//! * RESET_DEVICE is a reset. QEMU sends it at each since 8.2, several times in a row.
//! * SET_STATUS 0 is a reset too, from a front-end that did not accept RESET_DEVICE. From one that
//!   did it says nothing: QEMU writes it whenever the machine pauses.
//! * Crosvm, Cloud Hypervisor and QEMU before 8.2 say nothing more: all rings stop. It shows when
//!   a ring starts again. A driver that goes on finds the ring as it left it. Another one, or the
//!   same after a reset, begins at its beginning, and perhaps in another place or with another kind
//!   of ring. A ring that stopped at its beginning and starts there, in the same place, tells
//!   nothing; the next one may.

use super::device_state::{DeviceState, Driver};
use super::state::{Commit, Connection, Handled, Verdict, read};
use super::status::Status;
use super::{Action, Refusal, Vring};
use crate::ring_position::RingPosition;
use crate::wire::{Frame, Payload, ProtocolFeatures};

/// VIRTIO 1.3, "Device Status Field": the driver is set up and ready to drive the device.
const DRIVER_OK: u8 = 0x04;
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
        if byte == 0 {
            let reset = self.status_zero_resets();
            return Ok(Verdict::Act(Action::StopRings { reset }, Commit::StatusZero { reset }));
        }
        let refused = if self.has_required_features() { 0 } else { FEATURES_OK };
        let byte = byte & !refused;
        Ok(Verdict::Act(Action::Status(byte), Commit::Status(byte)))
    }

    pub(super) fn reset_device(&self) -> Verdict {
        let reset = self.device_state != DeviceState::Initial;
        Verdict::Act(Action::StopRings { reset }, Commit::Reset)
    }

    /// All rings stopped, disabled and forgotten, status 0. Features, memory and the back-end's
    /// channel belong to the connection and stay.
    pub(super) fn reset(&mut self) -> Verdict {
        self.vrings.iter_mut().for_each(Vring::reset);
        self.status = Status::default();
        self.device_is_initial();
        Verdict::Done
    }

    /// As a reset, but for where each ring goes on: QEMU 7.2 and 8.0 write status 0 whenever the
    /// machine pauses, before they ask for the bases, and start the rings again from there.
    pub(super) fn status_is_zero(
        &mut self,
        stopped: &[(u16, RingPosition)],
        reset: bool,
    ) -> Verdict {
        for &(index, base) in stopped {
            self.ring_has_stopped(index, base);
        }
        self.vrings.iter_mut().for_each(Vring::reset_but_base);
        self.status = Status::default();
        if reset {
            self.device_is_initial();
        }
        Verdict::Done
    }

    /// The status byte was written, and not as 0. With DRIVER_OK the rings that the driver wants
    /// have started, and what they did not tell will not be told.
    pub(super) fn set_status_byte(&mut self, byte: u8) {
        self.status.set(byte);
        self.device_state.touched();
        if byte & DRIVER_OK != 0 && self.any_ring_runs() {
            self.driver_is_known();
        }
    }

    /// A ring runs from now on.
    pub(super) fn ring_has_started(&mut self, index: u16, enabled: bool, driver: Driver) {
        self.change(index, |vring| vring.start(enabled));
        match driver {
            Driver::Unknown => {}
            Driver::Same | Driver::Another => self.driver_is_known(),
        }
    }

    /// A ring stands still, and goes on at `base`.
    pub(super) fn ring_has_stopped(&mut self, index: u16, base: RingPosition) {
        let features = self.ring_features();
        self.change(index, |vring| vring.stop(index, base, features));
        self.device_state =
            if self.any_ring_runs() { DeviceState::Used } else { DeviceState::Unclear };
    }

    /// Whether status 0 means a reset of a device that is not in its initial state.
    fn status_zero_resets(&self) -> bool {
        let tells_resets = self.protocol_features.contains(ProtocolFeatures::RESET_DEVICE);
        !tells_resets && self.device_state != DeviceState::Initial
    }

    fn device_is_initial(&mut self) {
        self.driver_is_known();
        self.device_state = DeviceState::Initial;
    }

    pub(super) fn driver_is_known(&mut self) {
        self.device_state = DeviceState::Used;
        self.vrings.iter_mut().for_each(Vring::forget_last_run);
    }

    fn any_ring_runs(&self) -> bool {
        self.vrings.iter().any(Vring::is_started)
    }
}
