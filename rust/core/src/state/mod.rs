//! A device's state on its way out of one back-end and into another.
//!
//! Laws:
//!
//! * The front-end never waits for a device, and no device for a front-end. A state is whole in
//!   memory before its first byte is sent, and when its last has come before the device sees one.
//! * What does not fit changes nothing: it is refused before the device is called.
//! * To save takes nothing away: the device goes on as it was.
//!
//! Source: QEMU "Vhost-user Protocol", "Migrating back-end state".

mod crc;
mod envelope;
mod transfer;

pub use envelope::MOST_BYTES;
pub use transfer::{Transfer, Way};
