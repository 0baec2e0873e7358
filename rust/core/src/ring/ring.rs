//! A virtqueue of either format: one face, behind which each format does its own.

use std::io;
use std::sync::Arc;

use super::in_order::InOrder;
use super::{
    InflightRecord, Origin, PackedLayout, PackedRing, RingError, RingPart, SplitLayout, SplitRing,
    StartError, UsedLog,
};
use crate::address::Iova;
use crate::memory::{Buffers, Memory, Miss, Window};
use crate::ring_position::{PackedIndex, RingPosition};
use crate::token::Token;

/// Of which format a ring is, where it lies, and what was negotiated for it.
#[derive(Clone, Copy, Debug)]
pub enum RingLayout {
    /// A split ring.
    Split(SplitLayout),
    /// A packed ring.
    Packed(PackedLayout),
}

/// A running virtqueue. See [`SplitRing`] and [`PackedRing`] for what the methods do.
#[derive(Debug)]
pub struct Ring {
    format: Format,
    /// The driver wants its buffers back in the order in which it made them available.
    order: Option<InOrder>,
}

#[derive(Debug)]
enum Format {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// Finds the ring in `memory`, and looks at nothing of it before [`begin`](Self::begin):
    /// memory may be slow to answer. `base`: where the front-end says that it stands.
    pub fn find(
        memory: &Arc<Memory>,
        layout: &RingLayout,
        base: RingPosition,
    ) -> Result<Self, StartError> {
        let format = match *layout {
            RingLayout::Split(layout) => {
                Format::Split(SplitRing::find(memory, layout, split_base(base))?)
            }
            RingLayout::Packed(layout) => {
                Format::Packed(PackedRing::find(memory, layout, packed_base(base))?)
            }
        };
        Ok(Self { format, order: None })
    }

    /// Makes a ring that has no place in memory yet: see [`SplitRing::apart`].
    pub fn apart(
        memory: &Arc<Memory>,
        layout: &RingLayout,
        base: RingPosition,
    ) -> io::Result<Self> {
        let format = match *layout {
            RingLayout::Split(layout) => {
                Format::Split(SplitRing::apart(memory, layout, split_base(base))?)
            }
            RingLayout::Packed(layout) => {
                Format::Packed(PackedRing::apart(memory, layout, packed_base(base))?)
            }
        };
        Ok(Self { format, order: None })
    }

    /// Keeps this record of the requests in flight, which is of the ring's format; before
    /// [`begin`](Self::begin).
    #[must_use]
    pub fn with_record(self, record: Option<InflightRecord>) -> Self {
        let format = match (self.format, record) {
            (Format::Split(ring), Some(InflightRecord::Split(record))) => {
                Format::Split(ring.with_record(Some(record)))
            }
            (Format::Packed(ring), Some(InflightRecord::Packed(record))) => {
                Format::Packed(ring.with_record(Some(record)))
            }
            (format, _) => format,
        };
        Self { format, ..self }
    }

    /// Has chains go back in the order in which they were made available; before
    /// [`begin`](Self::begin).
    #[must_use]
    pub fn in_order(self, in_order: bool) -> Self {
        let order = in_order.then(|| InOrder::new(self.size()));
        Self { order, ..self }
    }

    /// Takes the ring up where it stands; returns where that is.
    ///
    /// # Errors
    /// The record cannot be that of this ring.
    pub fn begin(&mut self) -> Result<RingPosition, RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.begin().map(drop),
            Format::Packed(ring) => ring.begin(),
        }?;
        // They keep their place in the order, whoever pops them and puts them back.
        let unfinished = self.unfinished_tokens();
        if let Some(order) = &mut self.order {
            unfinished.into_iter().for_each(|token| order.popped(token));
        }
        Ok(self.position())
    }

    /// The parts of the ring once more, for who waits for their pages.
    pub fn windows(&self) -> Vec<Window> {
        match &self.format {
            Format::Split(ring) => ring.windows(),
            Format::Packed(ring) => ring.windows(),
        }
    }

    /// What its parts consist of, for who waits for their pages before it has a place there.
    pub fn pieces(&self) -> Vec<Window> {
        let pieces = |part: RingPart| self.memory().ring_pieces(part.at, part.len, part.access);
        self.parts().into_iter().flat_map(pieces).collect()
    }

    /// Goes on in another table of memory. On an error the ring still stands in the old one.
    pub fn move_to(&mut self, memory: &Arc<Memory>) -> Result<(), StartError> {
        match &mut self.format {
            Format::Split(ring) => ring.move_to(memory),
            Format::Packed(ring) => ring.move_to(memory),
        }
    }

    /// Lets go of guest memory: see [`SplitRing::leave`].
    pub fn leave(&mut self) -> io::Result<()> {
        match &mut self.format {
            Format::Split(ring) => ring.leave(),
            Format::Packed(ring) => ring.leave(),
        }
    }

    /// Leaves its place, to get one in this table of memory by [`move_to`](Self::move_to).
    pub fn stand_apart(&mut self, memory: &Arc<Memory>) -> io::Result<()> {
        match &mut self.format {
            Format::Split(ring) => ring.stand_apart(memory),
            Format::Packed(ring) => ring.stand_apart(memory),
        }
    }

    /// The translations that its parts lack.
    pub fn misses(&self) -> Vec<Miss> {
        let mut misses = Vec::new();
        for RingPart { at, len, access, .. } in self.parts() {
            self.memory().add_misses(at.0, len as u64, access, &mut misses);
        }
        misses
    }

    /// Whether a byte of it lies from `first` to `last`, if it is told by I/O virtual addresses.
    pub fn touches(&self, first: Iova, last: Iova) -> bool {
        let touches = |part: RingPart| {
            let end = part.at.0.saturating_add(part.len as u64);
            part.at.0 <= last.0 && first.0 < end
        };
        self.parts().into_iter().any(touches)
    }

    fn parts(&self) -> [RingPart; 3] {
        match &self.format {
            Format::Split(ring) => ring.parts(),
            Format::Packed(ring) => ring.parts(),
        }
    }

    // --- chains out of the ring ----------------------------------------------------------------

    /// How many chains there are to pop.
    #[inline]
    pub fn available(&mut self) -> Result<u16, RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.available(),
            Format::Packed(ring) => ring.available(),
        }
    }

    /// Pops one of the chains that [`available`](Self::available) counted, into `buffers`. `None`:
    /// that many have been popped, or [`finish_walks`](Self::finish_walks) comes first.
    #[inline]
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<Token>, RingError> {
        let popped = match &mut self.format {
            Format::Split(ring) => ring.pop(buffers)?.map(split_token),
            Format::Packed(ring) => ring.pop(buffers)?,
        };
        if let (Some(token), Some(_)) = (popped, &self.order) {
            self.has_popped(token);
        }
        Ok(popped)
    }

    fn has_popped(&mut self, token: Token) {
        let again = self.origin().resubmitted;
        if let Some(order) = self.order.as_mut().filter(|_| !again) {
            order.popped(token);
        }
    }

    /// Where the chain that was popped last comes from.
    #[inline]
    pub fn origin(&self) -> Origin {
        match &self.format {
            Format::Split(ring) => ring.origin(),
            Format::Packed(ring) => ring.origin(),
        }
    }

    /// Ends the walks of chains: see [`SplitRing::finish_walks`].
    ///
    /// # Errors
    /// The number of good chains before a bad one, and what is bad.
    pub fn finish_walks<'a>(
        &mut self,
        popped: impl Iterator<Item = (u16, &'a mut Buffers)>,
    ) -> Result<(), (usize, RingError)> {
        match &mut self.format {
            Format::Split(ring) => ring.finish_walks(popped),
            Format::Packed(ring) => ring.finish_walks(popped),
        }
    }

    /// Chains that [`available`](Self::available) counted last and that were not popped.
    pub fn seen(&self) -> u16 {
        match &self.format {
            Format::Split(ring) => ring.seen(),
            Format::Packed(ring) => ring.seen(),
        }
    }

    /// Puts back the chain that was popped last of those not put back: it stays available.
    pub fn unpop(&mut self, token: Token) {
        match &mut self.format {
            Format::Split(ring) => ring.unpop(token.id),
            Format::Packed(ring) => ring.unpop(token),
        }
        if let Some(order) = &mut self.order {
            order.unpopped();
        }
    }

    /// The chain that was popped last, if it was not pushed.
    pub fn last_popped(&self) -> Option<Token> {
        let last = match &self.format {
            Format::Split(ring) => ring.last_popped().map(split_token),
            Format::Packed(ring) => ring.last_popped(),
        };
        last.filter(|&token| !self.is_answered(token))
    }

    /// All chains that were popped and not pushed.
    pub fn tokens_in_flight(&self) -> Vec<Token> {
        let mut tokens = match &self.format {
            Format::Split(ring) => ring.heads_in_flight().into_iter().map(split_token).collect(),
            Format::Packed(ring) => ring.tokens_in_flight(),
        };
        tokens.retain(|&token| !self.is_answered(token));
        tokens
    }

    /// Walks a chain that is in flight once more: whoever popped it does not give it back.
    ///
    /// # Errors
    /// The driver has changed the chain meanwhile, and this is wrong with it now.
    pub fn walk_again(&mut self, token: Token, buffers: &mut Buffers) -> Result<(), RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.walk_again(token.id, buffers),
            Format::Packed(ring) => ring.walk_again(token, buffers),
        }
    }

    // --- chains of a process that died -----------------------------------------------------------

    /// Whether the requests in flight are recorded.
    pub fn is_recorded(&self) -> bool {
        match &self.format {
            Format::Split(ring) => ring.is_recorded(),
            Format::Packed(ring) => ring.is_recorded(),
        }
    }

    /// Chains that a process that died has left unfinished, and that were not popped again yet.
    pub fn unfinished(&self) -> u16 {
        match &self.format {
            Format::Split(ring) => ring.unfinished(),
            Format::Packed(ring) => ring.unfinished(),
        }
    }

    fn unfinished_tokens(&self) -> Vec<Token> {
        match &self.format {
            Format::Split(ring) => ring.unfinished_heads().map(split_token).collect(),
            Format::Packed(ring) => ring.unfinished_tokens().collect(),
        }
    }

    /// Takes the oldest of these without a look at it, to be pushed.
    pub fn take_unfinished(&mut self) -> Option<Token> {
        match &mut self.format {
            Format::Split(ring) => ring.take_unfinished().map(split_token),
            Format::Packed(ring) => ring.take_unfinished(),
        }
    }

    /// Puts back a chain that [came again](Origin::resubmitted), in front of all others.
    pub fn unpop_unfinished(&mut self, token: Token, sequence: u64) {
        match &mut self.format {
            Format::Split(ring) => ring.unpop_unfinished(token.id, sequence),
            Format::Packed(ring) => ring.unpop_unfinished(token, sequence),
        }
    }

    // --- chains back to the driver ---------------------------------------------------------------

    /// Gives a chain back. The driver does not see it before [`publish`](Self::publish); one that
    /// wants its buffers in order sees it once all in front of it were pushed too.
    #[inline]
    pub fn push(&mut self, token: Token, written: u32) {
        if self.order.is_some() {
            return self.push_in_order(token, written);
        }
        self.format.push(token, written);
    }

    fn push_in_order(&mut self, token: Token, written: u32) {
        let Some(order) = &mut self.order else { return };
        order.answered(token, written);
        while let Some((token, written)) = order.next_due() {
            self.format.push(token, written);
        }
    }

    fn is_answered(&self, token: Token) -> bool {
        self.order.as_ref().is_some_and(|order| order.is_answered(token))
    }

    /// Shows the driver all that was pushed since the last call, at once; returns whether it wants
    /// to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.format {
            Format::Split(ring) => ring.publish(),
            Format::Packed(ring) => ring.publish(),
        }
    }

    /// Has writes to the part of the ring that the driver reads noted from now on, or no more.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        match &mut self.format {
            Format::Split(ring) => ring.set_log(log),
            Format::Packed(ring) => ring.set_log(log),
        }
    }

    // --- notifications ---------------------------------------------------------------------------

    /// What was published before counts for no decision to notify any more.
    pub fn forget_notifications(&mut self) {
        match &mut self.format {
            Format::Split(ring) => ring.forget_notifications(),
            Format::Packed(ring) => ring.forget_notifications(),
        }
    }

    /// Asks the driver for a kick when it makes more than the next `left` chains available; `true`
    /// if it has done so already.
    pub fn enable_kicks(&mut self, left: u16) -> Result<bool, RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.enable_kicks(left),
            Format::Packed(ring) => ring.enable_kicks(left),
        }
    }

    /// Tells the driver that the device looks by itself.
    pub fn disable_kicks(&mut self) {
        match &mut self.format {
            Format::Split(ring) => ring.disable_kicks(),
            Format::Packed(ring) => ring.disable_kicks(),
        }
    }

    // --- what it is ------------------------------------------------------------------------------

    /// The table of memory that chains are looked up in.
    #[inline]
    pub fn memory(&self) -> &Arc<Memory> {
        match &self.format {
            Format::Split(ring) => ring.memory(),
            Format::Packed(ring) => ring.memory(),
        }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        match &self.format {
            Format::Split(ring) => ring.size(),
            Format::Packed(ring) => ring.size(),
        }
    }

    /// Where it stands: what GET_VRING_BASE reports once all requests are back.
    pub fn position(&self) -> RingPosition {
        match &self.format {
            Format::Split(ring) => RingPosition::Split(ring.next_available()),
            Format::Packed(ring) => {
                RingPosition::Packed { available: ring.next_available(), used: ring.next_used() }
            }
        }
    }
}

impl Format {
    #[inline]
    fn push(&mut self, token: Token, written: u32) {
        match self {
            Self::Split(ring) => ring.push(token.id, written),
            Self::Packed(ring) => ring.push(token, written),
        }
    }
}

/// Where the front-end says that a split ring stands.
fn split_base(base: RingPosition) -> u16 {
    if let RingPosition::Split(base) = base { base } else { 0 }
}

/// Where the front-end says that a packed ring's next used descriptor is written.
fn packed_base(base: RingPosition) -> PackedIndex {
    if let RingPosition::Packed { used, .. } = base { used } else { PackedIndex::INITIAL }
}

#[inline]
fn split_token(head: u16) -> Token {
    Token { id: head, descriptors: 1 }
}
