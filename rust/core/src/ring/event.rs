//! The arithmetic of event indices.

use crate::ring_position::PackedIndex;

/// Whether the other end wants to hear that its index moved from `old` to `new`: it asked to be
/// told when the index passes `event`. All three are free-running and wrap at 65536.
///
/// VIRTIO 1.3, "Used Buffer Notification Suppression".
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// As [`need_event`], of a packed ring of so many entries: its places move from slot to slot, and on to
/// the other wrap counter behind the last. A place outside of the ring is always passed.
#[inline]
pub fn need_event_packed(
    event: PackedIndex,
    new: PackedIndex,
    old: PackedIndex,
    size: u16,
) -> bool {
    if event.slot >= size {
        return true;
    }
    // Places of two laps, in a row: they come round after that.
    let size = u32::from(size);
    let place = |index: PackedIndex| u32::from(index.slot) + if index.wrap { 0 } else { size };
    let ahead = |index| {
        let (to, from) = (place(index), place(old));
        if to >= from { to - from } else { to + 2 * size - from }
    };
    ahead(event) < ahead(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in words: some step from `old` to `new` leaves `event` behind.
    fn passes(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    #[test]
    fn an_event_is_needed_exactly_when_its_index_is_passed() {
        for old in [0_u16, 1, 5, 0x7ffe, 0x8000, 0xfff0, 0xffff] {
            for step in 0..40_u16 {
                for around in 0..80_u16 {
                    let (new, event) =
                        (old.wrapping_add(step), old.wrapping_add(around).wrapping_sub(20));
                    assert_eq!(need_event(event, new, old), passes(event, new, old));
                }
            }
        }
    }

    #[test]
    fn no_progress_needs_no_event() {
        for event in 0..=u16::MAX {
            assert!(!need_event(event, 77, 77));
        }
    }

    #[test]
    fn in_a_packed_ring_an_event_is_needed_exactly_when_its_place_is_passed() {
        for size in [1, 2, 3, 7] {
            let all =
                || (0..size).flat_map(|slot| [false, true].map(|wrap| PackedIndex { slot, wrap }));
            let next = |at: PackedIndex| {
                let slot = (at.slot + 1) % size;
                PackedIndex { slot, wrap: at.wrap ^ (slot == 0) }
            };
            for (old, event) in all().flat_map(|old| all().map(move |event| (old, event))) {
                let (mut new, mut passed) = (old, false);
                for _ in 0..=size {
                    assert_eq!(need_event_packed(event, new, old, size), passed);
                    passed |= new == event;
                    new = next(new);
                }
            }
        }
    }

    #[test]
    fn an_event_outside_of_the_ring_is_needed_always() {
        let (at, event) = (PackedIndex::INITIAL, PackedIndex { slot: 5, wrap: true });
        assert!(need_event_packed(event, at, at, 5));
    }
}
