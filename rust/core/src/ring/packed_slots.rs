//! The descriptors of a packed ring in guest memory: the only reads and writes of them.
//!
//! ```text
//! descriptor   address u64 | length u32 | buffer id u16 | flags u16
//! ```
//!
//! The last three are one word, which is read and written whole. The driver stores the flags last:
//! whoever reads them new reads the rest of the word, and all that was stored before, new too.
//!
//! VIRTIO 1.3, "Packed Virtqueues", "Available and used descriptors".

use super::atomics::Ordering;
use super::chain::DESC_LEN;
use crate::memory::Window;
use crate::ring_position::PackedIndex;

/// Flags of a descriptor, where they stand in its word.
pub(super) const NEXT: u64 = 1 << 48;
const WRITE: u64 = 1 << 49;
const AVAIL: u64 = 1 << 55;
const USED: u64 = 1 << 63;

const WORD: usize = 8;
const FLAGS: usize = 14;

/// A ring's descriptors.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) window: Window,
    pub(super) size: u16,
}

impl Slots {
    /// Reads the word of the descriptor at this place, if the driver has made it available.
    #[inline]
    pub(super) fn load_available(&self, at: PackedIndex) -> Option<u64> {
        // Acquire pairs with the driver's barrier before its store of the flags: the rest of the
        // buffer is visible.
        let word = self.window.load_u64(place(at.slot) + WORD, Ordering::Acquire);
        is_available(word, at.wrap).then_some(word)
    }

    /// Reads the word of a descriptor that follows one which was available.
    #[inline]
    pub(super) fn load_word(&self, slot: u16) -> u64 {
        self.window.load_u64(place(slot) + WORD, Ordering::Relaxed)
    }

    /// Reads the address of a descriptor whose word was read.
    #[inline]
    pub(super) fn load_address(&self, slot: u16) -> u64 {
        self.window.load_u64(place(slot), Ordering::Relaxed)
    }

    /// Writes used descriptors: slots and words. The driver looks at none of them before the first one
    /// is used, which is written last.
    #[inline]
    pub(super) fn store_used(&self, words: &[(u16, u64)]) {
        let Some((&(first, word), others)) = words.split_first() else { return };
        for &(slot, word) in others {
            self.window.store_u64(place(slot) + WORD, word, Ordering::Relaxed);
        }
        // Release pairs with the driver's barrier after its look at the flags: the other used
        // descriptors and the buffers are visible.
        self.window.store_u64(place(first) + WORD, word, Ordering::Release);
    }

    /// Whether what the driver made available at this place is still there.
    pub(super) fn is_available(&self, at: PackedIndex) -> bool {
        is_available(self.load_word(at.slot), at.wrap)
    }

    /// Hides used descriptors in so many slots from here on. The process that has written them died
    /// before it wrote the first of them: the driver, when it finds that used, would take the others
    /// for used too.
    pub(super) fn hide_used(&self, from: PackedIndex, count: u16) {
        let places = (0..count.min(self.size)).map(|slots| from.ahead(slots, self.size));
        for at in places.filter(|&at| is_used(self.load_word(at.slot), at.wrap)) {
            let flags = if at.wrap { AVAIL } else { USED } >> 48;
            self.window.store_u16(place(at.slot) + FLAGS, flags as u16, Ordering::Release);
        }
    }
}

/// The word of a used descriptor.
#[inline]
pub(super) fn used_word(id: u16, written: u32, wrap: bool) -> u64 {
    let flags = if wrap { AVAIL | USED } else { 0 } | if written > 0 { WRITE } else { 0 };
    u64::from(written) | u64::from(id) << 32 | flags
}

/// The buffer id in a descriptor's word.
#[inline]
pub(super) fn buffer_id(word: u64) -> u16 {
    (word >> 32) as u16
}

#[inline]
fn is_available(word: u64, wrap: bool) -> bool {
    (word & AVAIL != 0) == wrap && (word & USED != 0) != wrap
}

#[inline]
fn is_used(word: u64, wrap: bool) -> bool {
    (word & AVAIL != 0) == wrap && (word & USED != 0) == wrap
}

/// Where a descriptor begins. Slots are checked before they come here; a window checks again.
#[inline]
fn place(slot: u16) -> usize {
    DESC_LEN * usize::from(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VIRTIO 1.3, "Driver and Device Ring Wrap Counters".
    #[test]
    fn flags_say_whose_a_descriptor_is() {
        let word = |avail: u64, used: u64| avail << 55 | used << 63;
        for (avail, used, wrap, available, is_now_used) in [
            (1, 0, true, true, false),
            (0, 1, true, false, false),
            (0, 0, true, false, false),
            (1, 1, true, false, true),
            (0, 1, false, true, false),
            (1, 0, false, false, false),
            (0, 0, false, false, true),
            (1, 1, false, false, false),
        ] {
            let is = word(avail, used);
            assert_eq!(is_available(is, wrap), available, "{avail} {used} {wrap}");
            assert_eq!(is_used(is, wrap), is_now_used, "{avail} {used} {wrap}");
        }
    }

    #[test]
    fn a_used_descriptor_has_length_id_and_flags() {
        assert_eq!(used_word(0x1234, 0x0005_0006, true), 0x8082_1234_0005_0006);
        assert_eq!(used_word(7, 0, true), 0x8080_0007_0000_0000);
        assert_eq!(used_word(7, 1, false), 0x0002_0007_0000_0001);
        assert_eq!(buffer_id(0x8082_1234_0005_0006), 0x1234);
    }
}
