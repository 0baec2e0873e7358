//! The device status byte.

/// VIRTIO 1.3, "Device Status Field": the device has met an error that it cannot recover from.
const NEEDS_RESET: u8 = 0x40;

/// The device status byte: what the driver wrote, and what the device adds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    written: u8,
    needs_reset: bool,
}

impl Status {
    pub(super) fn set(&mut self, byte: u8) {
        self.written = byte;
    }

    pub(super) fn reset_needed(&mut self) {
        self.needs_reset = true;
    }

    pub(super) fn byte(self) -> u8 {
        self.written | if self.needs_reset { NEEDS_RESET } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needed_reset_shows_whatever_the_driver_writes() {
        let mut status = Status::default();
        status.reset_needed();
        status.set(0x0f);
        assert_eq!(status.byte(), 0x4f);
    }
}
