//! The dirty log's place.

use super::{Payload, PayloadError};
use crate::wire::{Reader, Writer};

/// Where the dirty log stands in its descriptor's file.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | bytes |
/// | 8 | 8 | first byte in the descriptor's file |
///
/// QEMU "Vhost-user Protocol", "Log description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Bytes.
    pub size: u64,
    /// First byte in the descriptor's file.
    pub offset: u64,
}

impl Payload for Log {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let log = Self { size: reader.u64()?, offset: reader.u64()? };
        PayloadError::check_range("log size", log.size, 1, u64::MAX)?;
        PayloadError::check_sum("log offset", log.offset, log.size)?;
        Ok(log)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.size);
        writer.u64(self.offset);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    #[test]
    fn log_is_size_then_offset() {
        let bytes = [0, 0, 4, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0];
        check_vector(&bytes, &Log { size: 0x4_0000, offset: 0x1000 });
    }

    #[test]
    fn an_empty_log_and_one_that_wraps_are_refused() {
        assert!(matches!(Log::from_bytes(&[0; 16]), Err(PayloadError::OutOfRange { .. })));
        let wraps = [&u64::MAX.to_ne_bytes()[..], &1_u64.to_ne_bytes()].concat();
        assert!(matches!(Log::from_bytes(&wraps), Err(PayloadError::Wraps { .. })));
    }
}
