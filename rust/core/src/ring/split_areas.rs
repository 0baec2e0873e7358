//! The available ring, which the driver writes, and the used ring, which the device writes: the only
//! reads and writes of them.
//!
//! ```text
//! available ring   flags u16 | index u16 | heads u16 ... | used event u16
//! used ring        flags u16 | index u16 | elements, each head u32 | length u32 ... | available event u16
//! ```
//!
//! Each side says in its own ring when it is to be woken. No wake-up is lost, as each has a fence
//! between two steps: between writing its index and looking at what the other side wants, or between
//! saying what it wants and looking for the other side's index once more. Whichever fence comes first,
//! one of the two sides sees what the other one has written.
//!
//! VIRTIO 1.3, "The Virtqueue Available Ring" and "The Virtqueue Used Ring".

use super::atomics::{Ordering, fence};
use super::event::need_event;
use crate::memory::Window;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Where fields are in either ring.
const FLAGS: usize = 0;
pub(super) const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// Bytes of an element of the used ring.
const ELEMENT: usize = 8;

/// The two rings.
#[derive(Debug)]
pub(super) struct Areas {
    available: Window,
    used: Window,
    /// Entries: a power of two.
    size: u16,
    /// Event indices were negotiated.
    event_idx: bool,
    /// The used index at the last decision to call; `None` until the first.
    decided: Option<u16>,
}

impl Areas {
    pub(super) fn new(available: Window, used: Window, size: u16, event_idx: bool) -> Self {
        Self { available, used, size, event_idx, decided: None }
    }

    /// Bytes of the two. The event fields count whether negotiated or not: drivers lay them out
    /// always.
    pub(super) fn lengths(size: u16) -> [usize; 2] {
        let n = usize::from(size);
        [ENTRIES + 2 * n + 2, ENTRIES + ELEMENT * n + 2]
    }

    /// Goes on with the rings in another place.
    pub(super) fn move_to(&mut self, available: Window, used: Window) {
        (self.available, self.used) = (available, used);
    }

    // --- what the driver has written -------------------------------------------------------------

    /// The driver's index.
    #[inline]
    pub(super) fn available_index(&self) -> u16 {
        // Acquire pairs with the driver's release of its index: entries, descriptors and buffers
        // behind it are visible.
        self.available.load_u16(INDEX, Ordering::Acquire)
    }

    /// The head that stands at this index.
    #[inline]
    pub(super) fn head(&self, index: u16) -> u16 {
        self.available.load_u16(ENTRIES + 2 * self.slot(index), Ordering::Relaxed)
    }

    /// Says whether the driver wants a call, now that the used index is this.
    #[inline]
    pub(super) fn wants_call(&mut self, used: u16) -> bool {
        // It pairs with the driver's fence between asking for a call and looking at the index.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.available.load_u16(FLAGS, Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0;
        }
        let at = ENTRIES + 2 * usize::from(self.size);
        let event = self.available.load_u16(at, Ordering::Relaxed);
        let decided = self.decided.replace(used);
        decided.is_none_or(|old| need_event(event, used, old))
    }

    /// What was decided before counts no more: the driver may not have heard of it.
    pub(super) fn forget_calls(&mut self) {
        self.decided = None;
    }

    // --- what the device writes ------------------------------------------------------------------

    /// The used index: looked at when the ring is taken up, and never later.
    pub(super) fn used_index(&self) -> u16 {
        self.used.load_u16(INDEX, Ordering::Relaxed)
    }

    /// Writes the element at this index. The driver does not see it before it is published.
    #[inline]
    pub(super) fn store_used(&self, index: u16, head: u16, written: u32) {
        self.used.store_pair(self.element_at(index), u32::from(head), written);
    }

    /// Shows the driver all elements before this index.
    #[inline]
    pub(super) fn publish(&self, index: u16) {
        // Release pairs with the driver's acquire of the index: elements and buffers are visible.
        self.used.store_u16(INDEX, index, Ordering::Release);
    }

    /// Asks the driver for a kick when its index passes this one. The index is to be looked at once
    /// more behind it.
    pub(super) fn ask_for_kick(&self, event: u16) {
        let wish = if self.event_idx { event } else { 0 };
        self.used.store_u16(self.event_at(), wish, Ordering::Relaxed);
        // It pairs with the driver's fence between its index and its look at what was stored above.
        fence(Ordering::SeqCst);
    }

    /// Tells the driver that no kicks are wanted; `true`: that was written. With event indices nothing
    /// need be said: the event stays behind.
    pub(super) fn ask_for_no_kick(&self) -> bool {
        if !self.event_idx {
            self.used.store_u16(FLAGS, USED_NO_NOTIFY, Ordering::Relaxed);
        }
        !self.event_idx
    }

    /// Where in the used ring the driver is told when to kick: in its last field with event indices,
    /// else in its flags.
    pub(super) fn event_at(&self) -> usize {
        if self.event_idx { ENTRIES + ELEMENT * usize::from(self.size) } else { FLAGS }
    }

    /// Where in the used ring so many elements are from this index on: in one piece, or in two; of
    /// each its first byte, and how many.
    pub(super) fn elements_at(&self, index: u16, count: u16) -> [(usize, usize); 2] {
        let before_the_end = count.min(self.size - self.slot(index) as u16);
        let bytes = |count: u16| ELEMENT * usize::from(count);
        [(self.element_at(index), bytes(before_the_end)), (ENTRIES, bytes(count - before_the_end))]
    }

    #[inline]
    fn element_at(&self, index: u16) -> usize {
        ENTRIES + ELEMENT * self.slot(index)
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }
}
