//! What a block device says of itself.

use super::{SECTOR, feature};

/// The configuration space of a block device, as far as this driver looks at it.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | capacity, sectors of 512 bytes |
/// | 8 | 4 | longest segment |
/// | 12 | 4 | most segments |
/// | 20 | 4 | block size |
/// | 32 | 1 | write cache on |
/// | 34 | 2 | queues |
/// | 36 | 4 | most sectors of a discard |
/// | 48 | 4 | most sectors of a write of zeroes |
///
/// A field whose feature was not accepted is `None`. VIRTIO 1.3, "Block Device", "Device
/// configuration layout".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// Sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Bytes of the longest segment.
    pub size_max: Option<u32>,
    /// Most segments of a request.
    pub seg_max: Option<u32>,
    /// Bytes of a block; a hint.
    pub blk_size: Option<u32>,
    /// The write cache is on: a write is only durable after a flush.
    pub writeback: Option<bool>,
    /// Queues.
    pub num_queues: Option<u16>,
    /// Most sectors of a discard.
    pub max_discard_sectors: Option<u32>,
    /// Most sectors of a write of zeroes.
    pub max_write_zeroes_sectors: Option<u32>,
}

impl BlockConfig {
    /// Bytes that are asked for: up to the fields for zeroes. Every device type that offers them
    /// has that many.
    pub(super) const LEN: u32 = 60;

    /// Reads [`LEN`](Self::LEN) bytes, `features` being those accepted.
    pub(super) fn new(bytes: &[u8], features: u64) -> Self {
        let has = |feature| features & feature != 0;
        let u32 = |at, feature| has(feature).then(|| u32::from_le_bytes(array(bytes, at)));
        Self {
            capacity_sectors: u64::from_le_bytes(array(bytes, 0)),
            size_max: u32(8, feature::SIZE_MAX),
            seg_max: u32(12, feature::SEG_MAX),
            blk_size: u32(20, feature::BLK_SIZE),
            writeback: has(feature::CONFIG_WCE).then(|| array::<1>(bytes, 32) != [0]),
            num_queues: has(feature::MQ).then(|| u16::from_le_bytes(array(bytes, 34))),
            max_discard_sectors: u32(36, feature::DISCARD),
            max_write_zeroes_sectors: u32(48, feature::WRITE_ZEROES),
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.capacity_sectors.saturating_mul(SECTOR)
    }
}

/// The bytes at `at`, zeroes where there are none.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_puts_them_and_need_their_feature() {
        let mut bytes = [0; BlockConfig::LEN as usize];
        bytes[0..8].copy_from_slice(&[1, 2, 0, 0, 0, 0, 0, 0]);
        bytes[8] = 3;
        bytes[12] = 4;
        bytes[21] = 2;
        bytes[32] = 1;
        bytes[34] = 5;
        bytes[36] = 6;
        bytes[48] = 7;
        let config = BlockConfig::new(&bytes, feature::ALL);
        let expected = BlockConfig {
            capacity_sectors: 0x201,
            size_max: Some(3),
            seg_max: Some(4),
            blk_size: Some(512),
            writeback: Some(true),
            num_queues: Some(5),
            max_discard_sectors: Some(6),
            max_write_zeroes_sectors: Some(7),
        };
        assert_eq!(config, expected);
        assert_eq!(config.size(), 0x201 * 512);
        let bare = BlockConfig::new(&bytes, 0);
        assert_eq!((bare.size_max, bare.writeback, bare.num_queues), (None, None, None));
    }
}
