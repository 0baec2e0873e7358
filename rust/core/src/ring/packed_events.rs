//! The event areas of a packed ring: in one the driver says which calls it wants, in the other one the
//! device says which kicks.
//!
//! ```text
//! area   slot and, in the highest bit, wrap counter u16 | what is wanted u16
//! ```
//!
//! No wake-up is lost, as each side has a fence between two steps: between writing descriptors and
//! looking at the other side's area, or between writing its own area and looking for descriptors once
//! more. Whichever fence comes first, one of the two sides sees what the other one has written.
//!
//! VIRTIO 1.3, "Packed Virtqueues", "Event Suppression Structure Format".

use super::atomics::{Ordering, fence};
use super::event::need_event_packed;
use crate::memory::Window;
use crate::ring_position::PackedIndex;

/// What is wanted: a notification for all, for nothing, and for one descriptor.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

/// A ring's event areas.
#[derive(Debug)]
pub(super) struct EventAreas {
    driver: Window,
    device: Window,
    /// Event indices were negotiated.
    event_idx: bool,
    /// Entries of the ring.
    size: u16,
    /// The place of the next used descriptor at the last decision to call.
    decided: Option<PackedIndex>,
    /// What the device's area says.
    asked: Option<u32>,
}

impl EventAreas {
    pub(super) fn new(driver: Window, device: Window, event_idx: bool, size: u16) -> Self {
        Self { driver, device, event_idx, size, decided: None, asked: None }
    }

    /// Goes on with areas in another place, of which nothing is known.
    pub(super) fn move_to(&mut self, driver: Window, device: Window) {
        (self.driver, self.device) = (driver, device);
        self.asked = None;
    }

    /// Says whether the driver wants a call, now that the used descriptors up to this place are
    /// written.
    #[inline]
    pub(super) fn wants_call(&mut self, used: PackedIndex) -> bool {
        // It pairs with the driver's fence between its area and its look at the flags.
        fence(Ordering::SeqCst);
        let wish = self.driver.load_u32(0, Ordering::Relaxed);
        let old = self.decided.replace(used);
        match ((wish >> 16) as u16 & 3, old) {
            (DISABLE, _) => false,
            (DESC, Some(old)) if self.event_idx => {
                let event = PackedIndex::from_word(wish as u16);
                need_event_packed(event, used, old, self.size)
            }
            _ => true,
        }
    }

    /// What was decided before counts no more: the driver may not have heard of it.
    pub(super) fn forget_calls(&mut self) {
        self.decided = None;
    }

    /// Asks the driver for a kick when it makes the descriptor at this place available; `true`: that
    /// was written. The ring is to be looked at once more behind it.
    pub(super) fn ask_for_kick(&mut self, at: PackedIndex) -> bool {
        let written =
            self.ask(if self.event_idx { area(DESC, at.to_word()) } else { area(ENABLE, 0) });
        // It pairs with the driver's fence between its flags and its look at the area.
        fence(Ordering::SeqCst);
        written
    }

    /// Tells the driver that no kicks are wanted; `true`: that was written.
    pub(super) fn ask_for_no_kick(&mut self) -> bool {
        self.ask(area(DISABLE, 0))
    }

    fn ask(&mut self, wish: u32) -> bool {
        let is_new = self.asked.replace(wish) != Some(wish);
        if is_new {
            self.device.store_u32(0, wish, Ordering::Relaxed);
        }
        is_new
    }
}

fn area(flags: u16, place: u16) -> u32 {
    u32::from(place) | u32::from(flags) << 16
}
