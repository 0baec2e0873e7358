//! Where a vring stands, in the form in which SET_VRING_BASE names it and GET_VRING_BASE tells it.
//!
//! ```text
//! split    bits 0-15 next available index, free-running
//! packed   bits 0-14 next available slot | 15 its wrap counter
//!          bits 16-30 next used slot     | 31 its wrap counter
//! ```
//!
//! QEMU "Vhost-user Protocol", "A vring descriptor index for split virtqueues" and "Vring descriptor
//! indices for packed virtqueues".

use std::fmt;

/// Where a vring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPosition {
    /// A split ring: its next available index.
    Split(u16),
    /// A packed ring.
    Packed {
        /// The next slot to read.
        available: PackedIndex,
        /// The next slot to write.
        used: PackedIndex,
    },
}

/// A place in a packed ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedIndex {
    /// The slot: below the ring's size.
    pub slot: u16,
    /// The wrap counter: true at first, and changed each time the end of the ring is passed.
    pub wrap: bool,
}

const WRAP: u16 = 1 << 15;

impl RingPosition {
    /// Where a new ring stands.
    pub const fn initial(packed: bool) -> Self {
        if packed {
            Self::Packed { available: PackedIndex::INITIAL, used: PackedIndex::INITIAL }
        } else {
            Self::Split(0)
        }
    }

    /// The position that the number of a message means. `None`: no split ring has it.
    ///
    /// DPDK's virtio-user names the lower half of a packed ring's alone. All that was available is
    /// used then.
    pub fn from_word(word: u32, packed: bool) -> Option<Self> {
        if !packed {
            return u16::try_from(word).ok().map(Self::Split);
        }
        let (low, high) = (word as u16, (word >> 16) as u16);
        let used = if high == 0 { low } else { high };
        Some(Self::Packed {
            available: PackedIndex::from_word(low),
            used: PackedIndex::from_word(used),
        })
    }

    /// The number for a message.
    pub fn to_word(self) -> u32 {
        match self {
            Self::Split(index) => index.into(),
            Self::Packed { available, used } => {
                u32::from(available.to_word()) | u32::from(used.to_word()) << 16
            }
        }
    }

    /// Whether it is one of a packed ring.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    /// Whether a new ring stands there.
    pub fn is_initial(self) -> bool {
        self == Self::initial(self.is_packed())
    }

    /// Whether a ring that was left here may go on where the front-end says now. A split ring shows by
    /// itself where it stands, and some front-ends name another index; a packed one does not.
    pub fn goes_on_at(self, named: Self) -> bool {
        match (self, named) {
            (Self::Split(_), Self::Split(_)) => true,
            (Self::Packed { available, .. }, Self::Packed { available: named, .. }) => {
                available == named
            }
            _ => false,
        }
    }

    /// Whether a ring of so many entries can stand there.
    pub fn fits(self, size: u16) -> bool {
        match self {
            Self::Split(_) => true,
            Self::Packed { available, used } => available.slot < size && used.slot < size,
        }
    }
}

impl PackedIndex {
    /// Where a new ring stands.
    pub const INITIAL: Self = Self { slot: 0, wrap: true };

    /// Reads 15 bits of slot and the wrap counter above them.
    pub fn from_word(word: u16) -> Self {
        Self { slot: word & !WRAP, wrap: word & WRAP != 0 }
    }

    /// The place so many slots further in a ring of `size` entries; at most as many.
    #[inline]
    #[must_use]
    pub fn ahead(self, slots: u16, size: u16) -> Self {
        let (slot, size) = (u32::from(self.slot) + u32::from(slots), u32::from(size));
        if slot < size {
            return Self { slot: slot as u16, wrap: self.wrap };
        }
        Self { slot: (slot - size) as u16, wrap: !self.wrap }
    }

    /// The place so many slots before; at most as many as the ring has.
    #[must_use]
    pub fn back(self, slots: u16, size: u16) -> Self {
        if slots <= self.slot {
            return Self { slot: self.slot - slots, wrap: self.wrap };
        }
        Self { slot: size - (slots - self.slot), wrap: !self.wrap }
    }

    /// The same as a number.
    pub fn to_word(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }
}

impl fmt::Display for RingPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split(index) => write!(f, "{index}"),
            Self::Packed { available, used } if available == used => write!(f, "{available}"),
            Self::Packed { available, used } => write!(f, "{available} (used {used})"),
        }
    }
}

impl fmt::Display for PackedIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} wrap {}", self.slot, u8::from(self.wrap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_base_is_sixteen_bits() {
        assert_eq!(RingPosition::from_word(0xffff, false), Some(RingPosition::Split(0xffff)));
        assert_eq!(RingPosition::from_word(0x1_2345, false), None);
        assert_eq!(RingPosition::Split(0xffff).to_word(), 0xffff);
    }

    #[test]
    fn a_packed_base_has_two_halves_with_a_wrap_counter_each() {
        let position = RingPosition::from_word(0x0041_8078, true).unwrap();
        let available = PackedIndex { slot: 0x78, wrap: true };
        let used = PackedIndex { slot: 0x41, wrap: false };
        assert_eq!(position, RingPosition::Packed { available, used });
        assert_eq!(position.to_word(), 0x0041_8078);
        assert_eq!(position.to_string(), "slot 120 wrap 1 (used slot 65 wrap 0)");
    }

    /// The words are those of QEMU 11.1 and of DPDK 25.11's virtio-user.
    #[test]
    fn a_new_ring_is_named_in_two_ways() {
        let initial = RingPosition::initial(true);
        assert_eq!(RingPosition::from_word(0x8000_8000, true), Some(initial));
        assert_eq!(RingPosition::from_word(0x0000_8000, true), Some(initial));
        assert_eq!(initial.to_word(), 0x8000_8000);
        assert!(initial.is_initial() && RingPosition::initial(false).is_initial());
        assert!(!RingPosition::Split(1).is_initial());
    }

    #[test]
    fn a_packed_ring_goes_on_only_where_it_was_left() {
        let position = |word, packed| RingPosition::from_word(word, packed).unwrap();
        let left = position(0x8004_8007, true);
        assert!(left.goes_on_at(left) && left.goes_on_at(position(0x8007, true)));
        assert!(!left.goes_on_at(RingPosition::initial(true)));
        assert!(position(7, false).goes_on_at(position(0, false)));
        assert!(!position(7, false).goes_on_at(left) && !left.goes_on_at(position(7, false)));
    }

    #[test]
    fn both_slots_must_be_in_the_ring() {
        let position = |word| RingPosition::from_word(word, true).unwrap();
        assert!(position(0x8002_8002).fits(3));
        assert!(!position(0x8002_8003).fits(3));
        assert!(!position(0x8003_8002).fits(3));
        assert!(RingPosition::Split(9).fits(3));
    }

    #[test]
    fn the_wrap_counter_changes_at_the_end_of_the_ring_in_both_directions() {
        let at = |slot, wrap| PackedIndex { slot, wrap };
        assert_eq!(at(0, true).ahead(2, 3), at(2, true));
        assert_eq!(at(2, true).ahead(1, 3), at(0, false));
        assert_eq!(at(1, false).ahead(3, 3), at(1, true));
        assert_eq!(at(0, true).ahead(1, 1), at(0, false));
        assert_eq!(at(32767, true).ahead(32768, 32768), at(32767, false));
        for (slot, wrap) in [(0, true), (1, false), (2, true)] {
            for slots in 0..=3 {
                assert_eq!(at(slot, wrap).ahead(slots, 3).back(slots, 3), at(slot, wrap));
            }
        }
    }
}
