//! A virtqueue of any format: one face, behind which each format does its own.

use std::io;
use std::sync::Arc;

use super::{
    InflightRecord, Origin, RingError, RingPart, SplitLayout, SplitRing, StartError, UsedLog,
};
use crate::address::Iova;
use crate::memory::{Buffers, Memory, Miss, Window};
use crate::ring_position::RingPosition;
use crate::token::Token;

/// Of which format a ring is, and where it lies.
#[derive(Clone, Copy, Debug)]
pub enum RingLayout {
    /// A split ring.
    Split(SplitLayout),
}

/// A running virtqueue. See [`SplitRing`] for what the methods do.
#[derive(Debug)]
pub struct Ring {
    format: Format,
}

#[derive(Debug)]
enum Format {
    Split(SplitRing),
}

impl Ring {
    /// Finds the ring in `memory`, and looks at nothing of it before [`begin`](Self::begin):
    /// memory may be slow to answer. `base`: where the front-end says that it stands.
    pub fn find(
        memory: &Arc<Memory>,
        layout: &RingLayout,
        base: RingPosition,
    ) -> Result<Self, StartError> {
        let format = match (layout, base) {
            (RingLayout::Split(layout), RingPosition::Split(base)) => {
                Format::Split(SplitRing::find(memory, *layout, base)?)
            }
            (RingLayout::Split(layout), RingPosition::Packed { .. }) => {
                Format::Split(SplitRing::find(memory, *layout, 0)?)
            }
        };
        Ok(Self { format })
    }

    /// Makes a ring that has no place in memory yet: see [`SplitRing::apart`].
    pub fn apart(
        memory: &Arc<Memory>,
        layout: &RingLayout,
        base: RingPosition,
    ) -> io::Result<Self> {
        let format = match (layout, base) {
            (RingLayout::Split(layout), RingPosition::Split(base)) => {
                Format::Split(SplitRing::apart(memory, *layout, base)?)
            }
            (RingLayout::Split(layout), RingPosition::Packed { .. }) => {
                Format::Split(SplitRing::apart(memory, *layout, 0)?)
            }
        };
        Ok(Self { format })
    }

    /// Keeps this record of the requests in flight; before [`begin`](Self::begin).
    #[must_use]
    pub fn with_record(self, record: Option<InflightRecord>) -> Self {
        let format = match self.format {
            Format::Split(ring) => Format::Split(ring.with_record(record)),
        };
        Self { format }
    }

    /// Takes the ring up where it stands; returns where that is.
    ///
    /// # Errors
    /// The record cannot be that of this ring.
    pub fn begin(&mut self) -> Result<RingPosition, RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.begin().map(RingPosition::Split),
        }
    }

    /// The parts of the ring once more, for who waits for their pages.
    pub fn windows(&self) -> Vec<Window> {
        match &self.format {
            Format::Split(ring) => ring.windows(),
        }
    }

    /// Goes on in another table of memory. On an error the ring still stands in the old one.
    pub fn move_to(&mut self, memory: &Arc<Memory>) -> Result<(), StartError> {
        match &mut self.format {
            Format::Split(ring) => ring.move_to(memory),
        }
    }

    /// Lets go of guest memory: see [`SplitRing::leave`].
    pub fn leave(&mut self) -> io::Result<()> {
        match &mut self.format {
            Format::Split(ring) => ring.leave(),
        }
    }

    /// Leaves its place, to get one in this table of memory by [`move_to`](Self::move_to).
    pub fn stand_apart(&mut self, memory: &Arc<Memory>) -> io::Result<()> {
        match &mut self.format {
            Format::Split(ring) => ring.stand_apart(memory),
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
        }
    }

    // --- chains out of the ring ----------------------------------------------------------------

    /// How many chains there are to pop.
    #[inline]
    pub fn available(&mut self) -> Result<u16, RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.available(),
        }
    }

    /// Pops one of the chains that [`available`](Self::available) counted, into `buffers`. `None`:
    /// that many have been popped, or [`finish_walks`](Self::finish_walks) comes first.
    #[inline]
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<Token>, RingError> {
        match &mut self.format {
            Format::Split(ring) => Ok(ring.pop(buffers)?.map(split_token)),
        }
    }

    /// Where the chain that was popped last comes from.
    #[inline]
    pub fn origin(&self) -> Origin {
        match &self.format {
            Format::Split(ring) => ring.origin(),
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
        }
    }

    /// Chains that [`available`](Self::available) counted last and that were not popped.
    pub fn seen(&self) -> u16 {
        match &self.format {
            Format::Split(ring) => ring.seen(),
        }
    }

    /// Puts back the chain that was popped last of those not put back: it stays available.
    pub fn unpop(&mut self, token: Token) {
        match &mut self.format {
            Format::Split(ring) => ring.unpop(token.id),
        }
    }

    /// The chain that was popped last, if it is in flight.
    pub fn last_popped(&self) -> Option<Token> {
        match &self.format {
            Format::Split(ring) => ring.last_popped().map(split_token),
        }
    }

    /// All chains in flight.
    pub fn tokens_in_flight(&self) -> Vec<Token> {
        match &self.format {
            Format::Split(ring) => ring.heads_in_flight().into_iter().map(split_token).collect(),
        }
    }

    /// Walks a chain that is in flight once more: whoever popped it does not give it back.
    ///
    /// # Errors
    /// The driver has changed the chain meanwhile, and this is wrong with it now.
    pub fn walk_again(&mut self, token: Token, buffers: &mut Buffers) -> Result<(), RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.walk_again(token.id, buffers),
        }
    }

    // --- chains of a process that died -----------------------------------------------------------

    /// Whether the requests in flight are recorded.
    pub fn is_recorded(&self) -> bool {
        match &self.format {
            Format::Split(ring) => ring.is_recorded(),
        }
    }

    /// Chains that a process that died has left unfinished, and that were not popped again yet.
    pub fn unfinished(&self) -> u16 {
        match &self.format {
            Format::Split(ring) => ring.unfinished(),
        }
    }

    /// Takes the oldest of these without a look at it, to be pushed.
    pub fn take_unfinished(&mut self) -> Option<Token> {
        match &mut self.format {
            Format::Split(ring) => ring.take_unfinished().map(split_token),
        }
    }

    /// Puts back a chain that [came again](Origin::resubmitted), in front of all others.
    pub fn unpop_unfinished(&mut self, token: Token, sequence: u64) {
        match &mut self.format {
            Format::Split(ring) => ring.unpop_unfinished(token.id, sequence),
        }
    }

    // --- chains back to the driver ---------------------------------------------------------------

    /// Gives a chain back. The driver does not see it before [`publish`](Self::publish).
    #[inline]
    pub fn push(&mut self, token: Token, written: u32) {
        match &mut self.format {
            Format::Split(ring) => ring.push(token.id, written),
        }
    }

    /// Shows the driver all that was pushed since the last call, at once; returns whether it wants
    /// to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.format {
            Format::Split(ring) => ring.publish(),
        }
    }

    /// Has writes to the part of the ring that the driver reads noted from now on, or no more.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        match &mut self.format {
            Format::Split(ring) => ring.set_log(log),
        }
    }

    // --- notifications ---------------------------------------------------------------------------

    /// What was published before counts for no decision to notify any more.
    pub fn forget_notifications(&mut self) {
        match &mut self.format {
            Format::Split(ring) => ring.forget_notifications(),
        }
    }

    /// Asks the driver for a kick when it makes more than the next `left` chains available; `true`
    /// if it has done so already.
    pub fn enable_kicks(&mut self, left: u16) -> Result<bool, RingError> {
        match &mut self.format {
            Format::Split(ring) => ring.enable_kicks(left),
        }
    }

    /// Tells the driver that the device looks by itself.
    pub fn disable_kicks(&mut self) {
        match &mut self.format {
            Format::Split(ring) => ring.disable_kicks(),
        }
    }

    // --- what it is ------------------------------------------------------------------------------

    /// The table of memory that chains are looked up in.
    #[inline]
    pub fn memory(&self) -> &Arc<Memory> {
        match &self.format {
            Format::Split(ring) => ring.memory(),
        }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        match &self.format {
            Format::Split(ring) => ring.size(),
        }
    }

    /// Where it stands: what GET_VRING_BASE reports once all requests are back.
    pub fn position(&self) -> RingPosition {
        match &self.format {
            Format::Split(ring) => RingPosition::Split(ring.next_available()),
        }
    }
}

#[inline]
fn split_token(head: u16) -> Token {
    Token { id: head, descriptors: 1 }
}
