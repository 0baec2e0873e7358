//! The driver's side of one split ring.
//!
//! ```text
//!   push(head) ──> available ring ──publish──> idx ──kick──> device
//!                                                              │
//!   pop() <── used ring <── idx <──────────────── call ────────┘
//! ```
//!
//! Every part can also be written and read as it is, right or wrong: the raw methods at the end
//! are for tests that play a broken or hostile driver.
//!
//! Source: VIRTIO 1.3, "Split Virtqueues".

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::error::{FrontendError, Result};
use super::memory::GuestMemory;
use super::signals::{self, Signals, UsedSide};
use super::window::Window;
use crate::address::{GuestAddr, UserAddr};

/// Descriptor flag: another descriptor follows.
pub const NEXT: u16 = 0x1;
/// Descriptor flag: device-writable.
pub const WRITE: u16 = 0x2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 0x4;

/// Flag of the available ring: the driver wants no call. Of the used ring: the device wants no
/// kick. Both have no meaning with EVENT_IDX.
const NO_NOTIFICATION: u16 = 0x1;

/// Entries handled between two renewals of a used_event that is meant never to be reached. It
/// must stay well below the 65536 after which the index comes round.
const EVENT_RENEWAL: u16 = 0x4000;

const FLAGS: usize = 0;
const IDX: usize = 2;
const ENTRIES: usize = 4;

/// Where the parts of a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries: a power of two up to 32768.
    pub size: u16,
    /// Descriptor table: 16 bytes an entry, aligned to 16.
    pub descriptors: GuestAddr,
    /// Available ring: 6 bytes and 2 an entry, aligned to 2.
    pub available: GuestAddr,
    /// Used ring: 6 bytes and 8 an entry, aligned to 4.
    pub used: GuestAddr,
}

impl RingLayout {
    /// The three parts one after the other from `base`, a multiple of 64, each on cache lines of
    /// its own.
    pub fn at(base: GuestAddr, size: u16) -> Self {
        let next_line = |at: u64| GuestAddr(at.next_multiple_of(64));
        let available = next_line(base.0 + 16 * u64::from(size));
        let used = next_line(available.0 + 6 + 2 * u64::from(size));
        Self { size, descriptors: base, available, used }
    }

    /// The first address after the ring, if the used ring is the last part.
    pub fn end(&self) -> GuestAddr {
        GuestAddr(self.used.0 + 6 + 8 * u64::from(self.size))
    }
}

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

/// One entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Index of the chain's first descriptor; less than the ring's size.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// The driver's side of one split ring.
#[derive(Debug)]
pub struct SplitRing {
    layout: RingLayout,
    event_idx: bool,
    user: [UserAddr; 3],
    descriptors: Window,
    available: Window,
    used: Window,
    /// Next entry of the available ring to fill.
    next_available: u16,
    /// What the device can see of the available ring.
    published: u16,
    /// Next entry of the used ring to take.
    next_used: u16,
    /// The used ring's index when it was last read.
    seen_used: u16,
    /// `Some(index at the last renewal)` while calls are suppressed.
    suppressed: Option<u16>,
    signals: Signals,
}

impl SplitRing {
    /// An empty ring; its memory is zeroed. `event_idx`: the feature was accepted.
    pub fn new(memory: &Arc<GuestMemory>, layout: RingLayout, event_idx: bool) -> Result<Self> {
        let size = usize::from(layout.size);
        if !layout.size.is_power_of_two() || layout.size > 1 << 15 {
            return Err(FrontendError::range(format!("no split ring has {size} entries")));
        }
        let part = |at: GuestAddr, len: usize, align: u64| {
            if !at.0.is_multiple_of(align) {
                return Err(FrontendError::range(format!("{at} is not aligned to {align}")));
            }
            memory.fill(at, len, 0)?;
            let user = memory.user_address(at).unwrap_or_default();
            Ok((memory.window(at, len)?, user))
        };
        let (descriptors, user_descriptors) = part(layout.descriptors, 16 * size, 16)?;
        let (available, user_available) = part(layout.available, 6 + 2 * size, 2)?;
        let (used, user_used) = part(layout.used, 6 + 8 * size, 4)?;
        Ok(Self {
            layout,
            event_idx,
            user: [user_descriptors, user_available, user_used],
            descriptors,
            available,
            used,
            next_available: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
            suppressed: None,
            signals: Signals::new()?,
        })
    }

    /// Puts a chain into the available ring. The device sees it at the next
    /// [`publish`](Self::publish).
    #[inline]
    pub fn push(&mut self, head: u16) {
        self.set_available_entry(self.next_available, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device what was pushed, all at once, and kicks it if it wants that.
    /// `true`: it was kicked.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.published = new;
        // Pairs with the device's acquire of the index: descriptors, buffers and ring entries are
        // written before.
        self.available.set_u16(IDX, new, Ordering::Release);
        // Pairs with the device's fence between asking for a kick and looking at the index
        // once more: either it sees the new index, or we see its wish.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            need_event(self.available_event(), new, old)
        } else {
            self.used_flags() & NO_NOTIFICATION == 0
        };
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Kicks the device, whether it wants that or not.
    pub fn kick(&mut self) {
        self.signals.kick();
    }

    /// Takes the next used chain.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>> {
        let Some((used, _)) = self.peek()? else {
            return Ok(None);
        };
        self.skip(1);
        Ok(Some(used))
    }

    /// The used ring's next entry, and how many chains are used from there on.
    #[inline]
    pub(super) fn peek(&mut self) -> Result<Option<(Used, u16)>> {
        if self.next_used == self.seen_used && !self.look()? {
            return Ok(None);
        }
        let (head, len) = self.used_entry(self.next_used);
        if head >= u32::from(self.layout.size) {
            let size = self.layout.size;
            return Err(FrontendError::ring(format!("used head {head} in a ring of {size}")));
        }
        let ready = self.seen_used.wrapping_sub(self.next_used);
        Ok(Some((Used { head: head as u16, len }, ready)))
    }

    /// Moves on by so many used chains, of those that [`peek`](Self::peek) has seen.
    #[inline]
    pub(super) fn skip(&mut self, chains: u16) {
        self.next_used = self.next_used.wrapping_add(chains);
    }

    /// Waits for a used chain, asleep on the call descriptor. `false`: none came in time.
    ///
    /// `alive` is the connection's socket: when the back-end hangs up, or signals the ring's
    /// error descriptor, and nothing is used, that is an error at once.
    pub fn wait(&mut self, timeout: Duration, alive: BorrowedFd<'_>) -> Result<bool> {
        signals::wait(self, timeout, alive)
    }

    /// For a driver that polls: asks the device for no calls, or (until the next
    /// [`wait`](Self::wait)) for calls again.
    pub fn suppress_calls(&mut self, suppress: bool) {
        if suppress {
            self.suppressed = Some(self.next_used);
            self.set_used_event(self.next_used.wrapping_sub(1));
            self.set_available_flags(if self.event_idx { 0 } else { NO_NOTIFICATION });
        } else {
            self.suppressed = None;
            self.set_used_event(self.next_used);
            self.set_available_flags(0);
        }
    }

    /// The ring's place and size.
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// Where the device is to begin in the available ring: after what it has used.
    pub fn base(&self) -> u16 {
        self.next_used
    }

    /// Chains that the device has and has not used yet.
    pub fn in_flight(&self) -> u16 {
        self.published.wrapping_sub(self.next_used)
    }

    /// Kicks sent.
    pub fn kicks(&self) -> u64 {
        self.signals.kicks()
    }

    /// Calls taken while waiting.
    pub fn calls(&self) -> u64 {
        self.signals.calls()
    }

    /// The kick descriptor.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.signals.kick_fd()
    }

    /// The call descriptor.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.signals.call_fd()
    }

    /// The error descriptor.
    pub fn error_fd(&self) -> BorrowedFd<'_> {
        self.signals.error_fd()
    }

    /// Whether the back-end has signalled the error descriptor.
    pub fn error_signalled(&self) -> bool {
        self.signals.error_signalled()
    }

    pub(super) fn user_addresses(&self) -> [UserAddr; 3] {
        self.user
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }
}

impl UsedSide for SplitRing {
    fn signals(&mut self) -> &mut Signals {
        &mut self.signals
    }

    fn look(&mut self) -> Result<bool> {
        // Pairs with the device's release of the index: entries and buffers are read after.
        let seen = self.used.u16(IDX, Ordering::Acquire);
        let (new, in_flight) = (seen.wrapping_sub(self.next_used), self.in_flight());
        if new > in_flight {
            let why = format!("{new} chains used where {in_flight} were in flight");
            return Err(FrontendError::ring(why));
        }
        self.seen_used = seen;
        if self.suppressed.is_some_and(|at| self.next_used.wrapping_sub(at) >= EVENT_RENEWAL) {
            self.suppress_calls(true);
        }
        Ok(new != 0)
    }

    fn ask_for_call(&mut self) -> Result<bool> {
        self.suppress_calls(false);
        // Pairs with the device's fence between writing the used index and reading our wish:
        // either it sees the wish, or we see the index.
        fence(Ordering::SeqCst);
        self.look()
    }
}

/// Raw access: nothing is checked but the place in memory. Indexes are taken modulo the ring's
/// size.
impl SplitRing {
    /// Writes a descriptor as it is.
    #[inline]
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        write_descriptor(&self.descriptors, self.slot(index), descriptor);
    }

    /// Reads a descriptor.
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let at = 16 * self.slot(index);
        let rest = self.descriptors.u64(at + 8);
        Descriptor {
            addr: self.descriptors.u64(at),
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// Writes an entry of the available ring.
    #[inline]
    pub fn set_available_entry(&self, index: u16, head: u16) {
        self.available.set_u16(ENTRIES + 2 * self.slot(index), head, Ordering::Relaxed);
    }

    /// Writes the available ring's index; later pushes go on from there.
    pub fn set_available_index(&mut self, index: u16) {
        (self.next_available, self.published) = (index, index);
        self.available.set_u16(IDX, index, Ordering::Release);
    }

    /// Writes the available ring's flags.
    pub fn set_available_flags(&self, flags: u16) {
        self.available.set_u16(FLAGS, flags, Ordering::Relaxed);
    }

    /// Writes the used_event field.
    pub fn set_used_event(&self, index: u16) {
        let at = ENTRIES + 2 * usize::from(self.layout.size);
        self.available.set_u16(at, index, Ordering::Relaxed);
    }

    /// The used ring's index.
    pub fn used_index(&self) -> u16 {
        self.used.u16(IDX, Ordering::Acquire)
    }

    /// An entry of the used ring: head and length, unchecked.
    #[inline]
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = ENTRIES + 8 * self.slot(index);
        (self.used.u32(at), self.used.u32(at + 4))
    }

    /// The used ring's flags.
    pub fn used_flags(&self) -> u16 {
        self.used.u16(FLAGS, Ordering::Relaxed)
    }

    /// The avail_event field.
    pub fn available_event(&self) -> u16 {
        self.used.u16(ENTRIES + 8 * usize::from(self.layout.size), Ordering::Relaxed)
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.layout.size - 1))
    }
}

/// Writes entry `index` of a descriptor table, in two stores.
#[inline]
pub(super) fn write_descriptor(table: &Window, index: usize, descriptor: Descriptor) {
    let Descriptor { addr, len, flags, next } = descriptor;
    table.set_u64(16 * index, addr);
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    table.set_u64(16 * index + 8, rest);
}

/// Whether moving an index from `old` to `new` passes `event`: VIRTIO 1.3, "Used Buffer
/// Notification Suppression".
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
