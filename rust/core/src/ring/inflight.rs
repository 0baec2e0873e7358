//! The record of a ring's requests in flight, in memory that outlives this process: each format of
//! rings has its own.

use super::packed_record::PackedRecord;
use super::split_record::SplitRecord;
use crate::memory::InflightFile;

/// One ring's record, of the ring's format.
#[derive(Debug)]
pub enum InflightRecord {
    /// Of a split ring.
    Split(SplitRecord),
    /// Of a packed ring.
    Packed(PackedRecord),
}

impl InflightRecord {
    /// Bytes of the record of a ring with `size` entries, in whole cache lines.
    pub fn bytes(size: u16, packed: bool) -> u64 {
        if packed { PackedRecord::bytes(size) } else { SplitRecord::bytes(size) }
    }

    /// The record of a ring with `size` entries at `at` of a file; `None` if it does not fit.
    pub fn find(file: &InflightFile, at: usize, size: u16, packed: bool) -> Option<Self> {
        if packed {
            PackedRecord::find(file, at, size).map(Self::Packed)
        } else {
            SplitRecord::find(file, at, size).map(Self::Split)
        }
    }

    /// Forgets all: the driver that had these requests in flight has reset the device.
    pub fn erase(&self) {
        match self {
            Self::Split(record) => record.erase(),
            Self::Packed(record) => record.erase(),
        }
    }
}
