//! Payloads that name one vring.

use super::{Payload, PayloadError};
use crate::address::{GuestAddr, UserAddr};
use crate::wire::{Reader, Writer};

/// A vring index and a number: a size, a base, an enable flag.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | index |
/// | 4 | 4 | number |
///
/// QEMU "Vhost-user Protocol", "A vring state description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Which vring; not yet checked against their number.
    pub index: u32,
    /// What it means depends on the message.
    pub num: u32,
}

impl Payload for VringState {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        Ok(Self { index: reader.u32()?, num: reader.u32()? })
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.index);
        writer.u32(self.num);
    }
}

/// Where the parts of a vring are. The used ring precedes the available ring.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | index |
/// | 4 | 4 | flags: bit 0, log writes to the used ring |
/// | 8 | 8 | descriptor table |
/// | 16 | 8 | used ring |
/// | 24 | 8 | available ring |
/// | 32 | 8 | guest address for logging the used ring |
///
/// QEMU "Vhost-user Protocol", "A vring address description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddress {
    /// Which vring; not yet checked against their number.
    pub index: u32,
    /// Writes to the used ring are logged.
    pub log_used: bool,
    /// Descriptor table.
    pub descriptors: UserAddr,
    /// Used ring.
    pub used: UserAddr,
    /// Available ring.
    pub available: UserAddr,
    /// Where the log says the used ring is.
    pub log: GuestAddr,
}

impl VringAddress {
    const LOG_USED: u32 = 0x1;
}

impl Payload for VringAddress {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let index = reader.u32()?;
        let flags = reader.u32()?;
        let address = Self {
            index,
            log_used: flags & Self::LOG_USED != 0,
            descriptors: UserAddr(reader.u64()?),
            used: UserAddr(reader.u64()?),
            available: UserAddr(reader.u64()?),
            log: GuestAddr(reader.u64()?),
        };
        PayloadError::check_bits("vring address flags", flags.into(), Self::LOG_USED.into())?;
        Ok(address)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u32(self.index);
        writer.u32(if self.log_used { Self::LOG_USED } else { 0 });
        writer.u64(self.descriptors.0);
        writer.u64(self.used.0);
        writer.u64(self.available.0);
        writer.u64(self.log.0);
    }
}

/// Which vring a kick, call or error descriptor is for, and whether there is one.
///
/// A 64-bit number: bits 0-7 the index, bit 8 "no descriptor", the rest zero. QEMU "Vhost-user
/// Protocol", "VHOST_USER_SET_VRING_KICK".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFd {
    /// Which vring; not yet checked against their number.
    pub index: u8,
    /// No descriptor goes with the message.
    pub no_fd: bool,
}

const NO_FD: u64 = 1 << 8;

impl VringFd {
    fn from_word(word: u64) -> Result<Self, PayloadError> {
        PayloadError::check_bits("vring index", word, 0xff | NO_FD)?;
        Ok(Self { index: (word & 0xff) as u8, no_fd: word & NO_FD != 0 })
    }

    fn to_word(self) -> u64 {
        u64::from(self.index) | if self.no_fd { NO_FD } else { 0 }
    }
}

impl Payload for VringFd {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        Self::from_word(reader.u64()?)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.to_word());
    }
}

/// A page through which a vring can be notified without system calls.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | as [`VringFd`] |
/// | 8 | 8 | bytes |
/// | 16 | 8 | first byte in the descriptor's file |
///
/// QEMU "Vhost-user Protocol", "Vring area description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringArea {
    /// Which vring, and whether a descriptor goes with the message.
    pub vring: VringFd,
    /// Bytes.
    pub size: u64,
    /// First byte in the descriptor's file.
    pub offset: u64,
}

impl Payload for VringArea {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let vring = VringFd::read(reader)?;
        let area = Self { vring, size: reader.u64()?, offset: reader.u64()? };
        PayloadError::check_sum("area offset", area.offset, area.size)?;
        Ok(area)
    }

    fn write(&self, writer: &mut Writer) {
        self.vring.write(writer);
        writer.u64(self.size);
        writer.u64(self.offset);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    #[test]
    fn state_is_index_then_number() {
        check_vector(&[2, 0, 0, 0, 0, 1, 0, 0], &VringState { index: 2, num: 256 });
    }

    /// Laid out by hand: addresses in the front-end, used before available.
    const ADDRESS: [u8; 40] = [
        1, 0, 0, 0, 1, 0, 0, 0, // index, flags
        0x00, 0x00, 0x40, 0xaf, 0xff, 0x7f, 0, 0, // descriptors
        0x00, 0x20, 0x40, 0xaf, 0xff, 0x7f, 0, 0, // used
        0x00, 0x10, 0x40, 0xaf, 0xff, 0x7f, 0, 0, // available
        0x00, 0x20, 0x40, 0x0f, 0, 0, 0, 0, // log
    ];

    #[test]
    fn address_has_used_before_available() {
        check_vector(
            &ADDRESS,
            &VringAddress {
                index: 1,
                log_used: true,
                descriptors: UserAddr(0x7fff_af40_0000),
                used: UserAddr(0x7fff_af40_2000),
                available: UserAddr(0x7fff_af40_1000),
                log: GuestAddr(0x0f40_2000),
            },
        );
    }

    #[test]
    fn address_with_an_unknown_flag_is_refused_by_its_bits() {
        let mut bytes = ADDRESS;
        bytes[4..8].copy_from_slice(&0xffff_fffe_u32.to_ne_bytes());
        assert_eq!(
            VringAddress::from_bytes(&bytes),
            Err(PayloadError::UnknownBits { field: "vring address flags", bits: 0xffff_fffe })
        );
    }

    #[test]
    fn descriptor_word_holds_index_and_bit_8() {
        check_vector(&[7, 0, 0, 0, 0, 0, 0, 0], &VringFd { index: 7, no_fd: false });
        check_vector(&[0xff, 1, 0, 0, 0, 0, 0, 0], &VringFd { index: 255, no_fd: true });
    }

    #[test]
    fn descriptor_word_with_higher_bits_is_refused() {
        for bit in 9..64 {
            let word = 1_u64 << bit;
            assert_eq!(
                VringFd::from_bytes(&word.to_ne_bytes()),
                Err(PayloadError::UnknownBits { field: "vring index", bits: word })
            );
        }
    }

    const AREA: [u8; 24] = [
        3, 0, 0, 0, 0, 0, 0, 0, // vring
        0, 0x10, 0, 0, 0, 0, 0, 0, // size
        0, 0x20, 0, 0, 0, 0, 0, 0, // offset
    ];

    #[test]
    fn area_is_vring_size_offset() {
        let vring = VringFd { index: 3, no_fd: false };
        check_vector(&AREA, &VringArea { vring, size: 0x1000, offset: 0x2000 });
    }

    #[test]
    fn area_that_wraps_is_refused() {
        let mut bytes = AREA;
        bytes[16..].fill(0xff);
        assert!(matches!(VringArea::from_bytes(&bytes), Err(PayloadError::Wraps { .. })));
    }
}
