//! The record of requests in flight.

use super::{Payload, PayloadError};
use crate::wire::{Reader, Writer};

/// Where the record of requests in flight stands, and for how many rings of which size.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | bytes |
/// | 8 | 8 | first byte in the descriptor's file |
/// | 16 | 2 | queues |
/// | 18 | 2 | entries of each |
/// | 20 | 0 or 4 | padding at the end of the C structure |
///
/// Read with or without the padding, written with it, as QEMU and DPDK do. A size of 0 says
/// "none": the answer of a back-end that has no record to give. QEMU "Vhost-user Protocol",
/// "Inflight description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// Bytes.
    pub mmap_size: u64,
    /// First byte in the descriptor's file.
    pub mmap_offset: u64,
    /// Queues.
    pub num_queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

impl Payload for Inflight {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let inflight = Self {
            mmap_size: reader.u64()?,
            mmap_offset: reader.u64()?,
            num_queues: reader.u16()?,
            queue_size: reader.u16()?,
        };
        if reader.left() > 0 {
            reader.padding::<4>()?;
        }
        PayloadError::check_sum("inflight offset", inflight.mmap_offset, inflight.mmap_size)?;
        Ok(inflight)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.mmap_size);
        writer.u64(self.mmap_offset);
        writer.u16(self.num_queues);
        writer.u16(self.queue_size);
        writer.padding::<4>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFLIGHT: [u8; 24] = [
        0, 0x20, 0, 0, 0, 0, 0, 0, // size
        0, 0x10, 0, 0, 0, 0, 0, 0, // offset
        4, 0, 0x80, 0, 0, 0, 0, 0, // queues, entries, padding
    ];

    #[test]
    fn inflight_is_read_with_and_without_its_padding_and_written_with_it() {
        let value =
            Inflight { mmap_size: 0x2000, mmap_offset: 0x1000, num_queues: 4, queue_size: 128 };
        assert_eq!(Inflight::from_bytes(&INFLIGHT), Ok(value));
        assert_eq!(Inflight::from_bytes(&INFLIGHT[..20]), Ok(value));
        assert_eq!(value.to_bytes(), INFLIGHT);
    }

    #[test]
    fn every_other_length_is_refused() {
        let longer = [&INFLIGHT[..], &[0]].concat();
        for len in (0..=longer.len()).filter(|len| ![20, 24].contains(len)) {
            assert!(Inflight::from_bytes(&longer[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_record_that_wraps_is_refused() {
        let mut bytes = INFLIGHT;
        bytes[8..16].fill(0xff);
        assert!(matches!(Inflight::from_bytes(&bytes), Err(PayloadError::Wraps { .. })));
    }
}
