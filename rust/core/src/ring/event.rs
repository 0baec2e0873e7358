//! The arithmetic of event indices.

/// Whether the other end wants to hear that its index moved from `old` to `new`: it asked to be
/// told when the index passes `event`. All three are free-running and wrap at 65536.
///
/// VIRTIO 1.3, "Used Buffer Notification Suppression".
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::need_event;

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
}
