//! The device's configuration space.

use super::state::{Commit, Connection, Handled, Verdict, read};
use super::{Action, Refusal};
use crate::wire::payload::{Config, MAX_CONFIG_DATA};
use crate::wire::{Frame, Payload};

/// Bytes of configuration space that can be addressed: QEMU uses 256, rust-vmm allows 4096.
const CONFIG_SPACE: u64 = 0x1000;

impl Connection {
    /// Reads past the device's own bytes are legal and give zeros: a front-end may know a longer
    /// structure than the device has.
    pub(super) fn get_config(&mut self, frame: &Frame) -> Handled {
        let Config { offset, flags, data } = read(frame)?;
        let size = check_range(offset, data.len(), CONFIG_SPACE)?;
        let action = Action::ReadConfig { offset, size };
        Ok(Verdict::Act(action, Commit::ReadConfig { offset, flags, size }))
    }

    pub(super) fn config_read(offset: u32, flags: u32, size: u32, data: Vec<u8>) -> Handled {
        if data.len() != size as usize {
            return Err(Refusal(format!("{} bytes were read, {size} asked for", data.len())));
        }
        Ok(Verdict::Answer(Config { offset, flags, data }.to_bytes()))
    }

    pub(super) fn set_config(&mut self, frame: &Frame) -> Handled {
        let Config { offset, data, .. } = read(frame)?;
        check_range(offset, data.len(), self.offer.config_len as u64)?;
        Ok(Verdict::Act(Action::WriteConfig { offset, data }, Commit::WriteConfig))
    }
}

/// Refuses an empty range and one that does not end within `limit` bytes; returns its size.
fn check_range(offset: u32, len: usize, limit: u64) -> Result<u32, Refusal> {
    let size = u32::try_from(len).ok().filter(|_| (1..=MAX_CONFIG_DATA).contains(&len));
    let size = size.ok_or_else(|| Refusal(format!("{len} bytes, 1 to {MAX_CONFIG_DATA} fit")))?;
    if u64::from(offset) + u64::from(size) > limit {
        return Err(Refusal(format!("offset {offset} plus {size} bytes is past {limit}")));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_hold_a_byte_and_end_within_the_limit() {
        for (offset, len, limit, fits) in [
            (0, 1, 1, true),
            (0, 4084, 0x1000, true),
            (12, 4084, 0x1000, true),
            (13, 4084, 0x1000, false),
            (0, 4085, 0x2000, false),
            (0, 0, 0x1000, false),
            (59, 1, 60, true),
            (60, 1, 60, false),
            (u32::MAX, 2, 0x1000, false),
        ] {
            assert_eq!(check_range(offset, len, limit).is_ok(), fits, "{offset} {len} {limit}");
        }
    }
}
