//! One face for the driver's side of both ring formats.
//!
//! A chain is known by a token that the driver chooses: less than the number of chains that the
//! ring has room for, and that of no other chain in flight.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::error::Result;
use super::memory::GuestMemory;
use super::packed::{PackedLayout, PackedRing};
use super::segment::{Segment, UsedChain};
use super::signals::Signals;
use super::split::RingLayout;
use super::split_chains::SplitChains;
use super::window::Window;
use crate::address::GuestAddr;

/// What was agreed on that a ring has to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// RING_PACKED.
    pub packed: bool,
    /// IN_ORDER: the device uses chains in the order in which they were made available.
    pub in_order: bool,
    /// EVENT_IDX.
    pub event_idx: bool,
}

/// The driver's side of one ring.
#[derive(Debug)]
pub enum Ring {
    /// In the split format.
    Split(SplitChains),
    /// In the packed format.
    Packed(PackedRing),
}

impl Ring {
    /// An empty ring of `size` entries from `base` on, a multiple of 64, for chains of at most
    /// `longest` descriptors. Its memory is zeroed.
    pub fn new(
        memory: &Arc<GuestMemory>,
        base: GuestAddr,
        size: u16,
        longest: u16,
        features: RingFeatures,
    ) -> Result<Self> {
        let RingFeatures { packed, in_order, event_idx } = features;
        if packed {
            let layout = PackedLayout::at(base, size);
            return PackedRing::new(memory, layout, event_idx, in_order).map(Self::Packed);
        }
        let layout = RingLayout::at(base, size);
        SplitChains::new(memory, layout, longest, event_idx, in_order).map(Self::Split)
    }

    /// The first address after a ring that [`new`](Self::new) would make.
    pub fn end(base: GuestAddr, size: u16, packed: bool) -> GuestAddr {
        if packed { PackedLayout::at(base, size).end() } else { RingLayout::at(base, size).end() }
    }

    /// Makes a chain available. The device sees it at the next [`publish`](Self::publish).
    ///
    /// # Panics
    /// If the token is in flight or too high, or the ring has no room.
    #[inline]
    pub fn push(&mut self, token: u16, segments: &[Segment]) {
        match self {
            Self::Split(ring) => ring.push(token, segments),
            Self::Packed(ring) => ring.push(token, segments),
        }
    }

    /// As [`push`](Self::push), by a table of descriptors at guest address `at`, where entry
    /// `first` of `table` is.
    #[inline]
    pub(super) fn push_indirect(
        &mut self,
        token: u16,
        segments: &[Segment],
        table: &Window,
        first: usize,
        at: u64,
    ) {
        match self {
            Self::Split(ring) => ring.push_indirect(token, segments, table, first, at),
            Self::Packed(ring) => ring.push_indirect(token, segments, table, first, at),
        }
    }

    /// Shows the device what was pushed, all at once, and kicks it if it wants that.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.ring_mut().publish(),
            Self::Packed(ring) => ring.publish(),
        }
    }

    /// Kicks the device, whether it wants that or not.
    pub fn kick(&mut self) {
        match self {
            Self::Split(ring) => ring.ring_mut().kick(),
            Self::Packed(ring) => ring.kick(),
        }
    }

    /// Takes the next used chain.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<UsedChain>> {
        match self {
            Self::Split(ring) => ring.pop(),
            Self::Packed(ring) => ring.pop(),
        }
    }

    /// Waits for a used chain, asleep on the call descriptor. `false`: none came in time.
    ///
    /// `alive` is the connection's socket: when the back-end hangs up, or signals the ring's
    /// error descriptor, and nothing is used, that is an error at once.
    pub fn wait(&mut self, timeout: Duration, alive: BorrowedFd<'_>) -> Result<bool> {
        match self {
            Self::Split(ring) if ring.is_begun() => Ok(true),
            Self::Split(ring) => ring.ring_mut().wait(timeout, alive),
            Self::Packed(ring) => ring.wait(timeout, alive),
        }
    }

    /// For a driver that polls: asks the device for no calls, or (until the next
    /// [`wait`](Self::wait)) for calls again.
    pub fn suppress_calls(&mut self, suppress: bool) {
        match self {
            Self::Split(ring) => ring.ring_mut().suppress_calls(suppress),
            Self::Packed(ring) => ring.suppress_calls(suppress),
        }
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.ring().layout().size,
            Self::Packed(ring) => ring.layout().size,
        }
    }

    /// Where the device is to begin, as SET_VRING_BASE has it: after what it has used.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.ring().base().into(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// Kicks sent.
    pub fn kicks(&self) -> u64 {
        self.signals().kicks()
    }

    /// Calls taken while waiting.
    pub fn calls(&self) -> u64 {
        self.signals().calls()
    }

    /// The kick descriptor.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.signals().kick_fd()
    }

    /// The call descriptor.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.signals().call_fd()
    }

    /// The error descriptor.
    pub fn error_fd(&self) -> BorrowedFd<'_> {
        self.signals().error_fd()
    }

    /// Whether the back-end has signalled the error descriptor.
    pub fn error_signalled(&self) -> bool {
        self.signals().error_signalled()
    }

    /// For the next back-end: what the last one has reported is over.
    pub(super) fn clear_error(&self) {
        self.signals().clear_error();
    }

    fn signals(&self) -> &Signals {
        match self {
            Self::Split(ring) => ring.ring().signals(),
            Self::Packed(ring) => ring.signals(),
        }
    }
}
