//! The transfer of a device's state.

use super::{Payload, PayloadError};
use crate::wire::{Reader, Writer};

/// Which way a device's state travels.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | direction: 0 save, 1 load |
/// | 4 | 4 | phase: 0, all rings stopped |
///
/// QEMU "Vhost-user Protocol", "Device state transfer parameters".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStateParams {
    /// Which way. The phase has one value and is not kept.
    pub direction: TransferDirection,
}

/// Which way a device's state travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferDirection {
    /// The back-end writes it.
    Save = 0,
    /// The back-end reads it.
    Load = 1,
}

impl Payload for DeviceStateParams {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let direction = reader.u32()?;
        let phase = reader.u32()?;
        PayloadError::check_range("transfer direction", direction.into(), 0, 1)?;
        PayloadError::check_range("transfer phase", phase.into(), 0, 0)?;
        let load = direction == TransferDirection::Load as u32;
        let direction = if load { TransferDirection::Load } else { TransferDirection::Save };
        Ok(Self { direction })
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.direction as u32);
        writer.u32(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    #[test]
    fn parameters_are_direction_then_phase() {
        let load = DeviceStateParams { direction: TransferDirection::Load };
        let save = DeviceStateParams { direction: TransferDirection::Save };
        check_vector(&[1, 0, 0, 0, 0, 0, 0, 0], &load);
        check_vector(&[0; 8], &save);
    }

    #[test]
    fn unknown_direction_and_phase_are_refused() {
        assert!(DeviceStateParams::from_bytes(&[2, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(DeviceStateParams::from_bytes(&[0, 0, 0, 0, 1, 0, 0, 0]).is_err());
    }
}
