//! What messages carry, as types. Reading checks all that can be checked without knowing the
//! connection: every field present, nothing left over, no unknown flag, no range that wraps.
//!
//! Source of the layouts: QEMU "Vhost-user Protocol", "Message Specification".

mod config;
mod device_state;
mod error;
mod inflight;
mod iotlb;
mod log;
mod region;
mod shared_object;
mod shmem;
mod vring;
pub mod xen;

pub use config::{Config, MAX_CONFIG_DATA};
pub use device_state::{DeviceStateParams, TransferDirection};
pub use error::PayloadError;
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
