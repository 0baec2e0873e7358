//! The driver's side of one packed ring.
//!
//! ```text
//!   push(id) ──> descriptors ──publish──> flags of the first ──kick──> device
//!                     ^                                                  │
//!   pop() <── flags, id, length at the next used slot <──────── call ────┘
//! ```
//!
//! Driver and device write to the same slots. A slot belongs to the device when its AVAIL bit is
//! the driver's wrap counter and its USED bit is not; it is used when both are. Either counter
//! starts at 1 and flips each time its side comes to the end of the ring.
//!
//! Source: VIRTIO 1.3, "Packed Virtqueues".

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::error::{FrontendError, Result};
use super::in_order::{InOrder, Sent};
use super::memory::GuestMemory;
use super::segment::{Segment, UsedChain};
use super::signals::{self, Signals, UsedSide};
use super::split::{INDIRECT, NEXT, WRITE};
use super::window::Window;
use crate::address::{GuestAddr, UserAddr};

/// Descriptor flag: compared with the driver's wrap counter.
pub const AVAIL: u16 = 1 << 7;
/// Descriptor flag: compared with the device's wrap counter.
pub const USED: u16 = 1 << 15;

/// Of an event suppression area: notify always.
const ENABLE: u16 = 0;
/// Notify never.
const DISABLE: u16 = 1;
/// Notify when a descriptor is passed; with EVENT_IDX only.
const DESC: u16 = 2;

/// Most entries of a ring.
const MOST_ENTRIES: u16 = 1 << 15;

const DESCRIPTOR: usize = 16;
const LEN: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;
/// Of an event suppression area: a slot in 15 bits, and a wrap counter.
const EVENT_SLOT: usize = 0;
const EVENT_FLAGS: usize = 2;

/// Where the parts of a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    /// Entries: 1 to 32768.
    pub size: u16,
    /// Descriptor ring: 16 bytes an entry, aligned to 16.
    pub descriptors: GuestAddr,
    /// Driver event suppression, which the driver writes: 4 bytes, aligned to 4.
    pub driver_event: GuestAddr,
    /// Device event suppression, which the device writes: 4 bytes, aligned to 4.
    pub device_event: GuestAddr,
}

impl PackedLayout {
    /// The three parts one after the other from `base`, a multiple of 64, each on cache lines of
    /// its own.
    pub fn at(base: GuestAddr, size: u16) -> Self {
        let driver = (base.0 + 16 * u64::from(size)).next_multiple_of(64);
        let (driver_event, device_event) = (GuestAddr(driver), GuestAddr(driver + 64));
        Self { size, descriptors: base, driver_event, device_event }
    }

    /// The first address after the ring, if the device's part is the last.
    pub fn end(&self) -> GuestAddr {
        GuestAddr(self.device_event.0 + 4)
    }
}

/// A slot, and how often its side of the ring came by the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    const START: Self = Self { slot: 0, wrap: true };

    /// So many slots further, at most once round.
    #[inline]
    fn after(self, slots: u32, size: u16) -> Self {
        let slot = u32::from(self.slot) + slots;
        match slot.checked_sub(size.into()) {
            Some(slot) => Self { slot: slot as u16, wrap: !self.wrap },
            None => Self { slot: slot as u16, wrap: self.wrap },
        }
    }

    /// As event suppression areas have it, and either half of SET_VRING_BASE.
    fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

/// The driver's side of one packed ring.
#[derive(Debug)]
pub struct PackedRing {
    layout: PackedLayout,
    event_idx: bool,
    user: [UserAddr; 3],
    descriptors: Window,
    driver_event: Window,
    device_event: Window,
    /// The next slot to fill.
    next_available: Position,
    /// Descriptors from the next slot on that were pushed and not published, in two words each.
    pushed: Vec<[u64; 2]>,
    /// The next slot to be used.
    next_used: Position,
    /// Slots of chains in flight.
    filled: u32,
    chains: Chains,
    signals: Signals,
}

/// What is in flight.
#[derive(Debug)]
enum Chains {
    /// For each id: slots of the chain, 0 if it is not in flight.
    AnyOrder(Box<[u16]>),
    InOrder(InOrder),
}

impl PackedRing {
    /// An empty ring; its memory is zeroed. `event_idx`, `in_order`: these features were accepted.
    pub fn new(
        memory: &Arc<GuestMemory>,
        layout: PackedLayout,
        event_idx: bool,
        in_order: bool,
    ) -> Result<Self> {
        let size = layout.size;
        if size == 0 || size > MOST_ENTRIES {
            return Err(FrontendError::range(format!("no packed ring has {size} entries")));
        }
        let part = |at: GuestAddr, len: usize, align: u64| {
            if !at.0.is_multiple_of(align) {
                return Err(FrontendError::range(format!("{at} is not aligned to {align}")));
            }
            memory.fill(at, len, 0)?;
            let user = memory.user_address(at).unwrap_or_default();
            Ok((memory.window(at, len)?, user))
        };
        let (descriptors, user_descriptors) =
            part(layout.descriptors, DESCRIPTOR * usize::from(size), 16)?;
        let (driver_event, user_driver) = part(layout.driver_event, 4, 4)?;
        let (device_event, user_device) = part(layout.device_event, 4, 4)?;
        let chains = if in_order {
            Chains::InOrder(InOrder::with_room(size))
        } else {
            Chains::AnyOrder(vec![0; size.into()].into_boxed_slice())
        };
        Ok(Self {
            layout,
            event_idx,
            user: [user_descriptors, user_driver, user_device],
            descriptors,
            driver_event,
            device_event,
            next_available: Position::START,
            pushed: Vec::with_capacity(size.into()),
            next_used: Position::START,
            filled: 0,
            chains,
            signals: Signals::new()?,
        })
    }

    /// Makes a chain available by the buffer id `id`. The device sees it at the next
    /// [`publish`](Self::publish).
    ///
    /// # Panics
    /// If the ring has no room for it, or `id` is in flight.
    #[inline]
    pub fn push(&mut self, id: u16, segments: &[Segment]) {
        self.begin(id, segments.len() as u16);
        for (segment, index) in segments.iter().zip(1..) {
            let next = if index == segments.len() { 0 } else { NEXT };
            self.fill(segment.addr.0, segment.len, id, direction(segment) | next);
        }
    }

    /// As [`push`](Self::push), by a table of descriptors in memory at `table`, where entry
    /// `first` of it begins. In a table only WRITE means anything: its entries follow one another.
    #[inline]
    pub(super) fn push_indirect(
        &mut self,
        id: u16,
        segments: &[Segment],
        table: &Window,
        first: usize,
        at: u64,
    ) {
        for (segment, index) in segments.iter().zip(first..) {
            table.set_u64(DESCRIPTOR * index, segment.addr.0);
            let rest = u64::from(segment.len) | u64::from(direction(segment)) << 48;
            table.set_u64(DESCRIPTOR * index + LEN, rest);
        }
        self.begin(id, 1);
        self.fill(at, (DESCRIPTOR * segments.len()) as u32, id, INDIRECT);
    }

    /// Shows the device what was pushed, all at once, and kicks it if it wants that.
    /// `true`: it was kicked.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.pushed.is_empty() {
            return false;
        }
        // The requests that the descriptors tell of are on their way out first: behind them a
        // descriptor would wait at the head of its cache line while the device takes that away.
        fence(Ordering::SeqCst);
        let published = self.write_pushed();
        // Pairs with the device's fence between asking for a kick and looking at its next slot
        // once more: either it sees the flags, or we see its wish.
        fence(Ordering::SeqCst);
        let wanted = self.is_kick_wanted(published);
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Writes all descriptors that were pushed, the flags of the first last; returns how many.
    ///
    /// They are written together, not as they come: a device that looks for the first would take
    /// the cache line away at each.
    #[inline]
    fn write_pushed(&mut self) -> u32 {
        let size = self.layout.size;
        let first = self.next_available.slot;
        for (&[addr, rest], index) in self.pushed.iter().zip(0..) {
            let at = DESCRIPTOR * usize::from(self.next_available.after(index, size).slot);
            self.descriptors.set_u64(at, addr);
            if index == 0 {
                self.descriptors.set_u32(at + LEN, rest as u32);
                self.descriptors.set_u16(at + ID, (rest >> 32) as u16, Ordering::Relaxed);
            } else {
                self.descriptors.set_u64(at + LEN, rest);
            }
        }
        let flags = (self.pushed[0][1] >> 48) as u16;
        // Pairs with the device's acquire of these flags: all other descriptors and the buffers
        // are written before.
        self.descriptors.set_u16(DESCRIPTOR * usize::from(first) + FLAGS, flags, Ordering::Release);
        let published = self.pushed.len() as u32;
        self.next_available = self.next_available.after(published, size);
        self.pushed.clear();
        published
    }

    /// Kicks the device, whether it wants that or not.
    pub fn kick(&mut self) {
        self.signals.kick();
    }

    /// Takes the next used chain; its token is the id.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<UsedChain>> {
        if let Chains::InOrder(chains) = &mut self.chains
            && let Some(used) = chains.pop()
        {
            return Ok(Some(used));
        }
        let Some((id, len)) = self.peek() else {
            return Ok(None);
        };
        let (slots, used) = match &mut self.chains {
            Chains::AnyOrder(slots) => take_any(slots, id, len)?,
            Chains::InOrder(chains) => {
                let (_, slots) = chains.used(id, len, chains.in_flight())?;
                (slots, chains.pop())
            }
        };
        if slots > self.filled - self.unpublished() {
            let why = format!("id {id} was used and has not been made available");
            return Err(FrontendError::ring(why));
        }
        self.filled -= slots;
        self.next_used = self.next_used.after(slots, self.layout.size);
        Ok(used)
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
            self.set_driver_event(0, DISABLE);
        } else if self.event_idx {
            self.set_driver_event(self.next_used.bits(), DESC);
        } else {
            self.set_driver_event(0, ENABLE);
        }
    }

    /// The ring's place and size.
    pub fn layout(&self) -> &PackedLayout {
        &self.layout
    }

    /// Where the device is to begin, as SET_VRING_BASE has it: after what it has used, with the
    /// available half and the used half alike. Slot 0 and wrap counter 1 of a new ring are
    /// 0x8000_8000.
    pub fn base(&self) -> u32 {
        let half = u32::from(self.next_used.bits());
        half << 16 | half
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.filled == 0
    }

    /// Slots that were pushed and not published.
    fn unpublished(&self) -> u32 {
        self.pushed.len() as u32
    }

    /// The ring's descriptors for signals.
    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    pub(super) fn user_addresses(&self) -> [UserAddr; 3] {
        self.user
    }

    /// The chain is in flight from here on.
    #[inline]
    fn begin(&mut self, id: u16, slots: u16) {
        let (filled, size) = (self.filled + u32::from(slots), self.layout.size);
        assert!(slots != 0 && filled <= size.into(), "{filled} slots in a ring of {size}");
        self.filled = filled;
        match &mut self.chains {
            Chains::AnyOrder(chains) => {
                let before = std::mem::replace(&mut chains[usize::from(id)], slots);
                assert!(before == 0, "id {id} is in flight");
            }
            Chains::InOrder(chains) => {
                chains.push(Sent { name: id, token: id, descriptors: slots });
            }
        }
    }

    /// Pushes the next descriptor.
    #[inline]
    fn fill(&mut self, addr: u64, len: u32, id: u16, flags: u16) {
        let at = self.next_available.after(self.pushed.len() as u32, self.layout.size);
        let flags = flags | if at.wrap { AVAIL } else { USED };
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.pushed.push([addr, rest]);
    }

    /// Id and length at the next used slot, if it is used.
    #[inline]
    fn peek(&self) -> Option<(u16, u32)> {
        let Position { slot, wrap } = self.next_used;
        let at = DESCRIPTOR * usize::from(slot);
        // Pairs with the device's release of the flags: id, length and buffers are read after.
        let flags = self.descriptors.u16(at + FLAGS, Ordering::Acquire);
        if self.filled == self.unpublished() || !is_used(flags, wrap) {
            return None;
        }
        let rest = self.descriptors.u64(at + LEN);
        // Without WRITE the length means nothing.
        let len = if flags & WRITE == 0 { 0 } else { rest as u32 };
        Some(((rest >> 32) as u16, len))
    }

    /// Whether the device wants a kick for the slots that were just published.
    #[inline]
    fn is_kick_wanted(&self, published: u32) -> bool {
        match self.device_event.u16(EVENT_FLAGS, Ordering::Relaxed) & 3 {
            DISABLE => false,
            DESC if self.event_idx => {
                let event = self.device_event.u16(EVENT_SLOT, Ordering::Relaxed);
                is_passed(event, self.next_available, published, self.layout.size)
            }
            _ => true,
        }
    }

    fn set_driver_event(&self, slot: u16, flags: u16) {
        self.driver_event.set_u16(EVENT_SLOT, slot, Ordering::Relaxed);
        // A device that reads these flags reads the slot that goes with them.
        self.driver_event.set_u16(EVENT_FLAGS, flags, Ordering::Release);
    }
}

impl UsedSide for PackedRing {
    fn signals(&mut self) -> &mut Signals {
        &mut self.signals
    }

    fn look(&mut self) -> Result<bool> {
        Ok(self.peek().is_some() || matches!(&self.chains, Chains::InOrder(c) if c.is_begun()))
    }

    fn ask_for_call(&mut self) -> Result<bool> {
        self.suppress_calls(false);
        // Pairs with the device's fence between writing a used descriptor and reading our wish:
        // either it sees the wish, or we see the descriptor.
        fence(Ordering::SeqCst);
        self.look()
    }
}

#[inline]
fn direction(segment: &Segment) -> u16 {
    if segment.device_writes { WRITE } else { 0 }
}

/// Whether a descriptor with these flags is used, in the lap of this wrap counter.
#[inline]
fn is_used(flags: u16, wrap: bool) -> bool {
    (flags & AVAIL != 0) == wrap && (flags & USED != 0) == wrap
}

/// Whether moving on by `moved` slots to `now` passes the slot that an event names.
#[inline]
fn is_passed(event: u16, now: Position, moved: u32, size: u16) -> bool {
    let size = i64::from(size);
    // Slots are counted from the beginning of the lap that `now` is in.
    let (now_at, old_at) = (i64::from(now.slot), i64::from(now.slot) - i64::from(moved));
    let (slot, wrap) = (i64::from(event & 0x7fff), event & 0x8000 != 0);
    let event_at = if wrap == now.wrap { slot } else { slot - size };
    old_at <= event_at && event_at < now_at
}

/// The chain of this id, which is free again: its slots, and itself.
#[inline]
fn take_any(chains: &mut [u16], id: u16, len: u32) -> Result<(u32, Option<UsedChain>)> {
    let size = chains.len();
    match chains.get_mut(usize::from(id)) {
        None => Err(FrontendError::ring(format!("used id {id} in a ring of {size}"))),
        Some(0) => Err(FrontendError::ring(format!("id {id} was used and is not in flight"))),
        Some(slots) => {
            let slots = u32::from(std::mem::take(slots));
            Ok((slots, Some(UsedChain { token: id, len: Some(len) })))
        }
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
