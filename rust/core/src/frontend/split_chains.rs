//! Chains on a split ring: which entries of the descriptor table each of them has.
//!
//! Each chain has entries of its own, so that they stand still while the chain is out and others
//! come and go. With IN_ORDER the standard has the entries taken in the table's order, round and
//! round: VIRTIO 1.3, "In-order use of descriptors".

use std::sync::Arc;

use super::error::{FrontendError, Result};
use super::in_order::{InOrder, Sent};
use super::memory::GuestMemory;
use super::segment::{Segment, UsedChain};
use super::split::{
    Descriptor, INDIRECT, NEXT, RingLayout, SplitRing, Used, WRITE, write_descriptor,
};
use super::window::Window;

/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;

/// A split ring, and the chains on it.
#[derive(Debug)]
pub struct SplitChains {
    ring: SplitRing,
    /// Descriptors that the longest chain has in the table.
    longest: u16,
    entries: Entries,
}

/// Who has which entries of the descriptor table.
#[derive(Debug)]
enum Entries {
    /// Token `t` has the entries from `t * longest` on. For each token: whether it is in flight.
    Own(Box<[bool]>),
    /// Round and round.
    InOrder { next: u16, chains: InOrder },
}

impl SplitChains {
    /// An empty ring for chains of at most `longest` descriptors. `event_idx`, `in_order`: these
    /// features were accepted.
    pub fn new(
        memory: &Arc<GuestMemory>,
        layout: RingLayout,
        longest: u16,
        event_idx: bool,
        in_order: bool,
    ) -> Result<Self> {
        let ring = SplitRing::new(memory, layout, event_idx)?;
        let chains = layout.size.checked_div(longest).unwrap_or(0);
        let entries = if in_order {
            Entries::InOrder { next: 0, chains: InOrder::with_room(layout.size) }
        } else {
            Entries::Own(vec![false; chains.into()].into_boxed_slice())
        };
        Ok(Self { ring, longest, entries })
    }

    /// Makes a chain available. The device sees it at the next publication.
    ///
    /// # Panics
    /// If `token` is in flight or not less than the number of chains that the ring has room for.
    #[inline]
    pub fn push(&mut self, token: u16, segments: &[Segment]) {
        let mask = self.ring.layout().size - 1;
        let head = self.take_entries(token, segments.len() as u16);
        for (segment, index) in segments.iter().zip(0_u16..) {
            let at = head.wrapping_add(index) & mask;
            let is_last = usize::from(index) + 1 == segments.len();
            self.ring.set_descriptor(at, described(segment, is_last, (at + 1) & mask));
        }
        self.ring.push(head);
    }

    /// As [`push`](Self::push), by a table of descriptors in memory at `table`, where entry
    /// `first` of it begins.
    #[inline]
    pub(super) fn push_indirect(
        &mut self,
        token: u16,
        segments: &[Segment],
        table: &Window,
        first: usize,
        at: u64,
    ) {
        for (segment, index) in segments.iter().zip(0_u16..) {
            let is_last = usize::from(index) + 1 == segments.len();
            let descriptor = described(segment, is_last, index + 1);
            write_descriptor(table, first + usize::from(index), descriptor);
        }
        let head = self.take_entries(token, 1);
        let len = DESCRIPTOR * segments.len() as u32;
        self.ring.set_descriptor(head, Descriptor { addr: at, len, flags: INDIRECT, next: 0 });
        self.ring.push(head);
    }

    /// Takes the next used chain.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<UsedChain>> {
        match &mut self.entries {
            Entries::Own(in_flight) => {
                let Some(used) = self.ring.pop()? else { return Ok(None) };
                owned(in_flight, self.longest, used).map(Some)
            }
            Entries::InOrder { chains, .. } => {
                if let Some(used) = chains.pop() {
                    return Ok(Some(used));
                }
                let Some((used, ready)) = self.ring.peek()? else { return Ok(None) };
                let (count, _) = chains.used(used.head, used.len, ready)?;
                self.ring.skip(count);
                Ok(chains.pop())
            }
        }
    }

    /// Whether a used chain is to be popped without a look at the ring.
    pub(super) fn is_begun(&self) -> bool {
        matches!(&self.entries, Entries::InOrder { chains, .. } if chains.is_begun())
    }

    /// The ring beneath.
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// The ring beneath, to wait on it or to break it.
    pub fn ring_mut(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// The entries of the descriptor table that a chain gets; returns the first.
    #[inline]
    fn take_entries(&mut self, token: u16, count: u16) -> u16 {
        match &mut self.entries {
            Entries::Own(in_flight) => {
                let was_in_flight = std::mem::replace(&mut in_flight[usize::from(token)], true);
                assert!(!was_in_flight, "chain {token} is in flight");
                token * self.longest
            }
            Entries::InOrder { next, chains } => {
                let head = *next;
                *next = head.wrapping_add(count) & (self.ring.layout().size - 1);
                chains.push(Sent { name: head, token, descriptors: count });
                head
            }
        }
    }
}

/// The chain whose head was used, which is free again.
#[inline]
fn owned(in_flight: &mut [bool], longest: u16, used: Used) -> Result<UsedChain> {
    let token = used.head / longest;
    let is_head = used.head.is_multiple_of(longest);
    let entry = in_flight.get_mut(usize::from(token)).filter(|entry| is_head && **entry);
    let Some(entry) = entry else {
        let why = format!("head {} was used and is not in flight", used.head);
        return Err(FrontendError::ring(why));
    };
    *entry = false;
    Ok(UsedChain { token, len: Some(used.len) })
}

#[inline]
fn described(segment: &Segment, is_last: bool, next: u16) -> Descriptor {
    let direction = if segment.device_writes { WRITE } else { 0 };
    let (chained, next) = if is_last { (0, 0) } else { (NEXT, next) };
    Descriptor { addr: segment.addr.0, len: segment.len, flags: direction | chained, next }
}

#[cfg(test)]
#[path = "split_chains_tests.rs"]
mod tests;
