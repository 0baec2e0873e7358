//! Memory that a device shares with its driver.

use super::{Payload, PayloadError};
use crate::wire::{Reader, Writer};

/// Shared-memory regions of a device: their number is an 8-bit index.
pub const MAX_SHMEM_REGIONS: usize = 256;

/// The sizes of a device's shared-memory regions.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | number of sizes that are not 0 |
/// | 4 | 4 | padding |
/// | 8 | 8 × 256 | bytes of each region, by its number |
///
/// QEMU "Vhost-user Protocol", "VIRTIO Shared Memory Region configuration".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShmemConfig {
    /// Bytes of each region; 0 where there is none.
    pub sizes: [u64; MAX_SHMEM_REGIONS],
}

impl Payload for ShmemConfig {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let got = reader.u32()?.into();
        reader.padding::<4>()?;
        let mut sizes = [0; MAX_SHMEM_REGIONS];
        for size in &mut sizes {
            *size = reader.u64()?;
        }
        let config = Self { sizes };
        let wanted = config.count().into();
        if got != wanted {
            return Err(PayloadError::Mismatch { field: "number of regions", got, wanted });
        }
        Ok(config)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.count());
        writer.padding::<4>();
        for size in self.sizes {
            writer.u64(size);
        }
    }
}

impl ShmemConfig {
    fn count(&self) -> u32 {
        self.sizes.iter().map(|&size| u32::from(size != 0)).sum()
    }
}

/// A piece of a file in a shared-memory region.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 1 | region number |
/// | 1 | 7 | padding |
/// | 8 | 8 | first byte in the descriptor's file |
/// | 16 | 8 | first byte in the region |
/// | 24 | 8 | bytes |
/// | 32 | 8 | flags: bit 0, writable |
///
/// QEMU "Vhost-user Protocol", "VIRTIO Shared Memory Region mapping".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemMap {
    /// Region number.
    pub shmid: u8,
    /// First byte in the descriptor's file.
    pub fd_offset: u64,
    /// First byte in the region.
    pub shm_offset: u64,
    /// Bytes.
    pub len_bytes: u64,
    /// The driver may write.
    pub writable: bool,
}

impl ShmemMap {
    const WRITABLE: u64 = 0x1;
}

impl Payload for ShmemMap {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let shmid = reader.u8()?;
        reader.padding::<7>()?;
        let (fd_offset, shm_offset) = (reader.u64()?, reader.u64()?);
        let (len_bytes, flags) = (reader.u64()?, reader.u64()?);
        PayloadError::check_bits("shmem flags", flags, Self::WRITABLE)?;
        PayloadError::check_sum("shmem file offset", fd_offset, len_bytes)?;
        PayloadError::check_sum("shmem region offset", shm_offset, len_bytes)?;
        Ok(Self { shmid, fd_offset, shm_offset, len_bytes, writable: flags == Self::WRITABLE })
    }

    fn write(&self, writer: &mut Writer) {
        writer.u8(self.shmid);
        writer.padding::<7>();
        writer.u64(self.fd_offset);
        writer.u64(self.shm_offset);
        writer.u64(self.len_bytes);
        writer.u64(if self.writable { Self::WRITABLE } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    #[test]
    fn configuration_is_a_count_and_256_sizes() {
        let mut bytes = vec![0; 2056];
        bytes[0] = 1;
        bytes[8 + 8 * 3 + 1] = 0x10;
        let mut sizes = [0; MAX_SHMEM_REGIONS];
        sizes[3] = 0x1000;
        check_vector(&bytes, &ShmemConfig { sizes });
    }

    #[test]
    fn a_count_that_does_not_match_the_sizes_is_refused() {
        let mut bytes = vec![0; 2056];
        bytes[0] = 1;
        assert!(matches!(ShmemConfig::from_bytes(&bytes), Err(PayloadError::Mismatch { .. })));
    }

    const MAP: [u8; 40] = [
        2, 0, 0, 0, 0, 0, 0, 0, // region number, padding
        0, 0x10, 0, 0, 0, 0, 0, 0, // in the file
        0, 0x20, 0, 0, 0, 0, 0, 0, // in the region
        0, 0x40, 0, 0, 0, 0, 0, 0, // bytes
        1, 0, 0, 0, 0, 0, 0, 0, // flags
    ];

    #[test]
    fn map_is_number_two_offsets_length_flags() {
        let value = ShmemMap {
            shmid: 2,
            fd_offset: 0x1000,
            shm_offset: 0x2000,
            len_bytes: 0x4000,
            writable: true,
        };
        check_vector(&MAP, &value);
    }

    #[test]
    fn unknown_flags_and_ranges_that_wrap_are_refused() {
        for at in [8, 16] {
            let mut bytes = MAP;
            bytes[at..at + 8].fill(0xff);
            assert!(matches!(ShmemMap::from_bytes(&bytes), Err(PayloadError::Wraps { .. })));
        }
        let mut bytes = MAP;
        bytes[32] = 3;
        assert!(matches!(ShmemMap::from_bytes(&bytes), Err(PayloadError::UnknownBits { .. })));
    }
}
