//! Entries of the I/O address translation.

use super::{Payload, PayloadError};
use crate::address::{Iova, UserAddr};
use crate::wire::{Reader, Writer};

/// One entry of the translation, or a request about one.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | I/O virtual address |
/// | 8 | 8 | bytes |
/// | 16 | 8 | user address |
/// | 24 | 1 | access |
/// | 25 | 1 | kind |
/// | 26 | 6 | padding |
///
/// Sizes may reach to the end of the space: "invalidate everything" is sent as address 0 with
/// the largest size. QEMU "Vhost-user Protocol", "An IOTLB message".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iotlb {
    /// First I/O virtual address.
    pub iova: Iova,
    /// Bytes.
    pub size: u64,
    /// First address in the front-end.
    pub user: UserAddr,
    /// What is allowed, or wanted.
    pub access: IotlbAccess,
    /// What to do.
    pub kind: IotlbKind,
}

/// Accesses that an entry allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbAccess {
    /// None: in messages where the field has no meaning.
    None = 0,
    /// The device may read.
    Read = 1,
    /// The device may write.
    Write = 2,
    /// The device may read and write.
    ReadWrite = 3,
}

/// What an IOTLB message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbKind {
    /// Back-end to front-end: no entry for this address.
    Miss = 1,
    /// Front-end to back-end: use this entry from now on.
    Update = 2,
    /// Front-end to back-end: forget what this range covers.
    Invalidate = 3,
    /// Back-end to front-end: the access is not allowed.
    AccessFail = 4,
}

impl IotlbAccess {
    fn from_byte(byte: u8) -> Result<Self, PayloadError> {
        Ok(match byte {
            0 => Self::None,
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::ReadWrite,
            _ => {
                let got = byte.into();
                return Err(PayloadError::OutOfRange {
                    field: "iotlb access",
                    got,
                    min: 0,
                    max: 3,
                });
            }
        })
    }
}

impl IotlbKind {
    fn from_byte(byte: u8) -> Result<Self, PayloadError> {
        Ok(match byte {
            1 => Self::Miss,
            2 => Self::Update,
            3 => Self::Invalidate,
            4 => Self::AccessFail,
            _ => {
                let got = byte.into();
                return Err(PayloadError::OutOfRange { field: "iotlb type", got, min: 1, max: 4 });
            }
        })
    }
}

impl Payload for Iotlb {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        let entry = Self {
            iova: Iova(reader.u64()?),
            size: reader.u64()?,
            user: UserAddr(reader.u64()?),
            access: IotlbAccess::from_byte(reader.u8()?)?,
            kind: IotlbKind::from_byte(reader.u8()?)?,
        };
        reader.padding::<6>()?;
        Ok(entry)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.iova.0);
        writer.u64(self.size);
        writer.u64(self.user.0);
        writer.u8(self.access as u8);
        writer.u8(self.kind as u8);
        writer.padding::<6>();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    const UPDATE: [u8; 32] = [
        0, 0x10, 0, 0, 0, 0, 0, 0, // iova
        0, 0x20, 0, 0, 0, 0, 0, 0, // size
        0, 0, 0x40, 0xaf, 0xff, 0x7f, 0, 0, // user address
        3, 2, 0, 0, 0, 0, 0, 0, // access, kind, padding
    ];

    #[test]
    fn iotlb_is_iova_size_user_access_kind() {
        check_vector(
            &UPDATE,
            &Iotlb {
                iova: Iova(0x1000),
                size: 0x2000,
                user: UserAddr(0x7fff_af40_0000),
                access: IotlbAccess::ReadWrite,
                kind: IotlbKind::Update,
            },
        );
    }

    #[test]
    fn unknown_access_and_kind_are_refused() {
        for (offset, value) in [(24, 4), (24, 255), (25, 0), (25, 5)] {
            let mut bytes = UPDATE;
            bytes[offset] = value;
            assert!(matches!(Iotlb::from_bytes(&bytes), Err(PayloadError::OutOfRange { .. })));
        }
    }

    #[test]
    fn padding_may_hold_anything() {
        let mut bytes = UPDATE;
        bytes[26..].fill(0xee);
        assert!(Iotlb::from_bytes(&bytes).is_ok());
    }
}
