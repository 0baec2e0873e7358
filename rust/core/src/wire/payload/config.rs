//! Part of a device's configuration space.

use super::{Payload, PayloadError};
use crate::wire::{MAX_PAYLOAD, Reader, Writer};

/// Bytes of configuration space that fit into one message.
pub const MAX_CONFIG_DATA: usize = MAX_PAYLOAD - Config::HEADER_LEN;

/// Bytes of the configuration space and where they stand.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | first byte |
/// | 4 | 4 | bytes |
/// | 8 | 4 | flags |
/// | 12 | n | the bytes |
///
/// The flags tell a driver's write (0) from one of a migration (1); rust-vmm's front-end uses 1
/// for a driver's write and 2 for a migration's. So both bits are known and neither decides
/// anything. QEMU "Vhost-user Protocol", "Virtio device config space".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// First byte.
    pub offset: u32,
    /// Bits 0 and 1, see above.
    pub flags: u32,
    /// The bytes. In a request to read they have no meaning, only their number has.
    pub data: Vec<u8>,
}

impl Config {
    /// Bytes in front of the data.
    pub const HEADER_LEN: usize = 12;
    const KNOWN_FLAGS: u64 = 0x3;
}

impl Payload for Config {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let offset = reader.u32()?;
        let size = reader.u32()?;
        let flags = reader.u32()?;
        PayloadError::check_bits("config flags", flags.into(), Self::KNOWN_FLAGS)?;
        if size as usize != reader.left() {
            let (got, wanted) = (size.into(), reader.left() as u64);
            return Err(PayloadError::Mismatch { field: "config size", got, wanted });
        }
        Ok(Self { offset, flags, data: reader.rest().to_vec() })
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.offset);
        writer.u32(self.data.len() as u32);
        writer.u32(self.flags);
        writer.bytes(&self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: [u8; 15] = [8, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0xaa, 0xbb, 0xcc];

    #[test]
    fn config_is_offset_size_flags_bytes() {
        let value = Config { offset: 8, flags: 1, data: vec![0xaa, 0xbb, 0xcc] };
        assert_eq!(Config::from_bytes(&CONFIG), Ok(value.clone()));
        assert_eq!(value.to_bytes(), CONFIG);
    }

    #[test]
    fn every_truncation_and_a_byte_too_many_are_refused() {
        for len in 0..CONFIG.len() {
            assert!(Config::from_bytes(&CONFIG[..len]).is_err());
        }
        let longer = [&CONFIG[..], &[0]].concat();
        assert_eq!(
            Config::from_bytes(&longer),
            Err(PayloadError::Mismatch { field: "config size", got: 3, wanted: 4 })
        );
    }

    #[test]
    fn flags_other_than_bits_0_and_1_are_refused() {
        for (flags, known) in [(0, true), (1, true), (2, true), (4, false), (u32::MAX, false)] {
            let mut bytes = CONFIG;
            bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
            assert_eq!(Config::from_bytes(&bytes).is_ok(), known, "{flags:#x}");
        }
    }

    #[test]
    fn a_size_that_lies_about_the_bytes_is_refused_without_allocating_it() {
        let mut bytes = CONFIG;
        bytes[4..8].fill(0xff);
        assert!(matches!(Config::from_bytes(&bytes), Err(PayloadError::Mismatch { .. })));
    }
}
