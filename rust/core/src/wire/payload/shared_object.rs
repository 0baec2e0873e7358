//! Objects that back-ends share by name.

use super::{Payload, PayloadError};
use crate::wire::{Reader, Writer};

/// The name of a shared object: 16 bytes in the order of RFC 4122, big-endian on every host.
///
/// QEMU "Vhost-user Protocol", "VhostUserShared".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Payload for Uuid {
    fn read(reader: &mut Reader<'_>) -> Result<Self, PayloadError> {
        reader.array().map(Self)
    }

    fn write(&self, writer: &mut Writer) {
        writer.bytes(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_vector;
    use super::*;

    #[test]
    fn uuid_is_sixteen_bytes_in_order() {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        check_vector(&bytes, &Uuid(bytes));
    }
}
