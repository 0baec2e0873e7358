//! What a disk under load holds: eight-byte words that say where they belong.

use super::super::block::{BlockDriver, BlockQueue, SECTOR};
use super::super::error::Result;

/// Words of a sector.
const WORDS: u64 = SECTOR / 8;
/// An odd number without obvious structure, so that no two words of a disk are alike:
/// multiplication by it is one to one.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes written at once when a disk is prepared.
const CHUNK: usize = 1 << 20;

/// Word `w` of sector `s` is `seed + (64 s + w) × STEP`, little-endian: data at a wrong place, of
/// another run, or never written are all told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Makes the data of one run differ from another's.
    pub seed: u64,
}

impl Pattern {
    /// The content of `out.len()` bytes from `sector` on.
    pub fn write(self, sector: u64, out: &mut [u8]) {
        for (chunk, word) in out.chunks_mut(8).zip(self.words(sector)) {
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }

    /// Compares `data` with what belongs there. The error is the first sector that differs.
    pub fn check(self, sector: u64, data: &[u8]) -> std::result::Result<(), u64> {
        let words = data.chunks(8).zip(self.words(sector));
        let good = |(chunk, word): (&[u8], u64)| *chunk == word.to_le_bytes()[..chunk.len()];
        first_bad(sector, words.map(good))
    }

    /// Writes the whole disk, through the device.
    pub fn prepare(self, driver: &mut BlockDriver) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        let size = driver.size();
        for offset in (0..size).step_by(CHUNK) {
            let len = (size - offset).min(CHUNK as u64) as usize;
            self.write(offset / SECTOR, &mut chunk[..len]);
            driver.pwrite(&chunk[..len], offset)?;
        }
        driver.set_pattern(Some(self.seed));
        Ok(())
    }

    /// As [`write`](Self::write), into a request's data.
    pub(super) fn fill(self, queue: &BlockQueue, slot: u16, sector: u64, len: u32) {
        for (offset, word) in (0..len as usize).step_by(8).zip(self.words(sector)) {
            queue.set_word(slot, offset, word);
        }
    }

    /// As [`check`](Self::check), of a request's data.
    pub(super) fn check_slot(
        self,
        queue: &BlockQueue,
        slot: u16,
        sector: u64,
        len: u32,
    ) -> std::result::Result<(), u64> {
        let words = (0..len as usize).step_by(8).zip(self.words(sector));
        first_bad(sector, words.map(|(offset, word)| queue.word(slot, offset) == word))
    }

    fn words(self, sector: u64) -> impl Iterator<Item = u64> {
        let first = self.seed.wrapping_add(sector.wrapping_mul(WORDS).wrapping_mul(STEP));
        std::iter::successors(Some(first), |word| Some(word.wrapping_add(STEP)))
    }
}

/// The sector of the first word that is not good.
fn first_bad(sector: u64, mut good: impl Iterator<Item = bool>) -> std::result::Result<(), u64> {
    match good.position(|good| !good) {
        None => Ok(()),
        Some(index) => Err(sector + index as u64 / WORDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_holds_what_its_place_says() {
        let mut out = [0; 24];
        Pattern { seed: 5 }.write(0, &mut out);
        assert_eq!(out[..8], [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(out[8..16], [0x1a, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e]);
    }

    #[test]
    fn sectors_join_without_a_seam() {
        let pattern = Pattern { seed: 77 };
        let (mut whole, mut second) = ([0; 1024], [0; 512]);
        pattern.write(9, &mut whole);
        pattern.write(10, &mut second);
        assert_eq!(whole[512..], second);
        assert_eq!(pattern.check(9, &whole), Ok(()));
    }

    #[test]
    fn the_first_wrong_sector_is_named() {
        let pattern = Pattern { seed: 1 };
        let mut data = [0; 2048];
        pattern.write(100, &mut data);
        data[1024 + 511] ^= 1;
        assert_eq!(pattern.check(100, &data), Err(102));
        assert_eq!(pattern.check(101, &data), Err(101));
        assert_eq!(Pattern { seed: 2 }.check(100, &data), Err(100));
    }
}
