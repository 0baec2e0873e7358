//! What messages carry, as types. Reading checks all that can be checked without knowing the
//! connection: every field present, nothing left over, no unknown flag, no range that wraps.
//!
//! Source of the layouts: QEMU "Vhost-user Protocol", "Message Specification".

mod config;
mod device_state;
mod inflight;
mod iotlb;
mod log;
mod region;
mod shared_object;
mod shmem;
mod vring;
pub mod xen;

use std::fmt;

pub use config::{Config, MAX_CONFIG_DATA};
pub use device_state::{DeviceStateParams, TransferDirection};
pub use inflight::Inflight;
pub use iotlb::{Iotlb, IotlbAccess, IotlbKind};
pub use log::Log;
pub use region::{MAX_REGION_SIZE, MAX_REGIONS, MemoryTable, Region, SingleRegion};
pub use shared_object::Uuid;
pub use shmem::{MAX_SHMEM_REGIONS, ShmemConfig, ShmemMap};
pub use vring::{VringAddress, VringArea, VringFd, VringState};
pub use xen::{XenFields, XenMapping, XenMeans};

use super::{Reader, Writer};

/// A payload with one layout.
pub trait Payload: Sized {
    /// Reads the fields in order.
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError>;

    /// Writes the fields in order.
    fn write(&self, writer: &mut Writer);

    /// Reads a whole payload; bytes left over are an error.
    fn from_bytes(bytes: &[u8]) -> Result<Self, PayloadError> {
        let mut reader = Reader::new(bytes);
        let payload = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(payload)
    }

    /// The payload as it travels.
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.write(&mut writer);
        writer.into_bytes()
    }
}

/// A message without payload.
impl Payload for () {
    fn read(_: &mut Reader<'_>) -> Result<Self, PayloadError> {
        Ok(())
    }

    fn write(&self, _: &mut Writer) {}
}

/// A single 64-bit number: features, counts, the status, acknowledgements.
impl Payload for u64 {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        reader.u64()
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(*self);
    }
}

/// Why bytes are not the payload that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadError {
    /// A field is cut short.
    Truncated {
        /// Bytes that the field takes.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes follow the last field.
    Trailing {
        /// How many.
        left: usize,
    },
    /// Bits are set that have no meaning.
    UnknownBits {
        /// The field's name.
        field: &'static str,
        /// The bits.
        bits: u64,
    },
    /// A number is outside its range.
    OutOfRange {
        /// The field's name.
        field: &'static str,
        /// The number.
        got: u64,
        /// The smallest that is allowed.
        min: u64,
        /// The largest that is allowed.
        max: u64,
    },
    /// A start and a size whose sum does not fit into 64 bits.
    Wraps {
        /// The name of the start.
        field: &'static str,
        /// The start.
        start: u64,
        /// The size.
        size: u64,
    },
    /// Flags that contradict each other.
    BadFlags {
        /// The field's name.
        field: &'static str,
        /// The flags.
        got: u64,
        /// The rule.
        rule: &'static str,
    },
    /// Two numbers that must be equal are not.
    Mismatch {
        /// The name of the first.
        field: &'static str,
        /// The number.
        got: u64,
        /// What it must be.
        wanted: u64,
    },
}

impl PayloadError {
    /// Refuses `got` outside `min..=max`.
    pub(crate) fn check_range(
        field: &'static str,
        got: u64,
        min: u64,
        max: u64,
    ) -> Result<(), Self> {
        if (min..=max).contains(&got) {
            return Ok(());
        }
        Err(Self::OutOfRange { field, got, min, max })
    }

    /// Refuses bits of `got` outside `known`.
    pub(crate) fn check_bits(field: &'static str, got: u64, known: u64) -> Result<(), Self> {
        match got & !known {
            0 => Ok(()),
            bits => Err(Self::UnknownBits { field, bits }),
        }
    }

    /// Refuses a `start + size` past the end of the address space.
    pub(crate) fn check_sum(field: &'static str, start: u64, size: u64) -> Result<(), Self> {
        start.checked_add(size).map(drop).ok_or(Self::Wraps { field, start, size })
    }
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, left } => {
                write!(f, "payload too short: a field of {needed} bytes, {left} bytes left")
            }
            Self::Trailing { left } => write!(f, "payload too long: {left} bytes left over"),
            Self::UnknownBits { field, bits } => write!(f, "unknown bits in {field}: {bits:#x}"),
            Self::OutOfRange { field, got, min, max } => {
                write!(f, "{field} out of range: {got} is not {min} to {max}")
            }
            Self::Wraps { field, start, size } => {
                write!(f, "{field} plus size wraps: {start:#x} + {size:#x}")
            }
            Self::BadFlags { field, got, rule } => write!(f, "{field} {got:#x}: {rule}"),
            Self::Mismatch { field, got, wanted } => {
                write!(f, "{field} does not match: {got}, should be {wanted}")
            }
        }
    }
}

impl std::error::Error for PayloadError {}

#[cfg(test)]
pub(crate) mod testing {
    //! The claims that every payload must meet.

    use std::fmt::Debug;

    use super::{Payload, PayloadError};

    /// `bytes` reads as `value` and is written back as `bytes`; every truncation and a byte
    /// too many are refused.
    pub(crate) fn check_vector<P: Payload + PartialEq + Debug>(bytes: &[u8], value: &P) {
        assert_eq!(P::from_bytes(bytes).as_ref(), Ok(value));
        assert_eq!(value.to_bytes(), bytes);
        for len in 0..bytes.len() {
            assert!(P::from_bytes(&bytes[..len]).is_err(), "{len} bytes were enough");
        }
        let longer = [bytes, &[0]].concat();
        assert_eq!(P::from_bytes(&longer), Err(PayloadError::Trailing { left: 1 }));
    }

    #[test]
    fn a_number_travels_in_native_order() {
        check_vector(&[0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01], &0x0102_0304_0506_0708u64);
    }

    #[test]
    fn an_empty_payload_takes_no_byte() {
        check_vector(&[], &());
    }
}
