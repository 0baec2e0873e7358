//! Where the dirty log knows what a packed ring's device writes.
//!
//! SET_VRING_ADDR tells the log's address of one part of a ring. QEMU 11.1 tells that of the device's
//! event area, and the descriptors are found in the table of memory.

use super::chain::DESC_LEN;
use super::used_log::{LoggedPart, UsedLog, mark_pieces};
use crate::address::{GuestAddr, UserAddr};
use crate::memory::Memory;

/// The bytes of an event area.
pub(super) const EVENT_AREA: usize = 4;

/// A packed ring's places in the dirty log.
#[derive(Debug)]
pub(super) struct UsedPlaces {
    device_area: LoggedPart,
    size: u16,
    /// Where the guest has the descriptors: in more than one piece only by translations.
    descriptors: Vec<(GuestAddr, u64)>,
}

impl UsedPlaces {
    pub(super) fn new(log: UsedLog, size: u16) -> Self {
        Self { device_area: LoggedPart::new(log, EVENT_AREA), size, descriptors: Vec::new() }
    }

    /// Finds the descriptors, and the device's event area, in this table of memory.
    pub(super) fn find(&mut self, memory: &Memory, descriptors: UserAddr) {
        self.device_area.find(memory);
        self.descriptors = memory.guest_places(descriptors, DESC_LEN * usize::from(self.size));
    }

    /// Marks so many descriptors. The last thing before this was a fence.
    #[inline]
    pub(super) fn mark_slots(&self, first: u16, count: u16) {
        let bytes = |slots: u16| DESC_LEN as u64 * u64::from(slots);
        mark_pieces(self.device_area.log(), &self.descriptors, bytes(first), bytes(count));
    }

    /// Marks the device's event area, as [`mark_slots`](Self::mark_slots).
    pub(super) fn mark_device_area(&self) {
        self.device_area.mark(0, EVENT_AREA);
    }
}
