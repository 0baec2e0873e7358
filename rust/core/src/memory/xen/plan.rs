//! Which pieces of a batch are copied. The others are mapped.

use std::sync::Arc;

use super::bounce_budget::{BounceBudget, MOST};
use super::demand::{Demand, IDLE_BOUNCE, PIECE_PAGES, Piece, State};
use super::resolve_options::ResolveOptions;
use crate::memory::access::Access;
use crate::memory::buffers::Buffers;
use crate::xen::XEN_PAGE;

/// A piece of so many bytes, as headers and status bytes are, is always copied if there is room. A
/// page would have to be mapped for them, and one page is copied in the time that it takes to map
/// it.
const SMALL: u64 = 512;

/// So many bytes of one side of a request are copied when the device may keep it. A longer one has
/// so many pages that a map call of its own is worth it.
const KEPT: u64 = PIECE_PAGES as u64 * XEN_PAGE;

/// Decides what is copied, and makes bounce buffers for it.
pub(super) fn plan(batch: &mut [&mut Buffers], options: &ResolveOptions<'_>) {
    let demands = || batch.iter().filter_map(|buffers| buffers.demand());
    let grants = demands().flat_map(|demand| &demand.pieces).find_map(Piece::grants);
    let Some(copy_below) = grants.map(|(grants, _)| grants.copy_below()) else { return };
    let few = few(demands, copy_below);
    // Who wants more to be copied than there is room for otherwise has said so.
    let most = MOST.max(usize::try_from(copy_below).unwrap_or(usize::MAX));
    for buffers in batch {
        let Some(demand) = buffers.demand_mut() else { continue };
        let own = SIDES.map(|side| options.kept && demand.bytes(side) <= KEPT);
        let copied = |piece: &Piece| {
            let side = usize::from(piece.access == Access::DeviceWritable);
            piece.is_small() || !options.mapped && (few[side] || own[side])
        };
        // Headers and status bytes still have room when there is none for data.
        let _ = demand.copy_into(options.budget, most, copied)
            || demand.copy_into(options.budget, most.saturating_mul(2), Piece::is_small);
        buffers.place_copied();
    }
}

pub(super) const SIDES: [Access; 2] = [Access::DeviceReadable, Access::DeviceWritable];

/// Says for each side whether all that the batch has of it is copied. A map call is for one side:
/// two of them for no more pages than one is worth cost more than to copy the lesser side.
fn few<'a, D: Iterator<Item = &'a Demand>>(demands: impl Fn() -> D, copy_below: u64) -> [bool; 2] {
    let bytes = SIDES.map(|side| demands().map(|d| d.bytes(side)).sum::<u64>());
    let few = bytes.map(|bytes| bytes <= copy_below);
    let pages: usize = demands().map(Demand::pages).sum();
    if few == [false; 2] && pages <= PIECE_PAGES {
        return [bytes[0] <= bytes[1], bytes[0] > bytes[1]];
    }
    few
}

impl Demand {
    /// Has these pieces copied, if there is room.
    fn copy_into(
        &mut self,
        budget: &Arc<BounceBudget>,
        most: usize,
        these: impl Fn(&Piece) -> bool,
    ) -> bool {
        let these = |piece: &Piece| piece.grants().is_some() && these(piece);
        let size = |piece: &Piece| piece.len.next_multiple_of(8);
        let bytes = self.pieces.iter().filter(|piece| these(piece)).map(size).sum();
        self.share = budget.take(bytes, most);
        if self.share.is_none() {
            return false;
        }
        let mut end = 0;
        for piece in self.pieces.iter_mut().filter(|piece| these(piece)) {
            piece.state = State::Copied(end);
            end += size(piece);
        }
        self.bounce.reset(bytes, IDLE_BOUNCE);
        true
    }

    /// Returns the number of bytes of one side that are not copied in any case.
    fn bytes(&self, access: Access) -> u64 {
        let these = self.pieces.iter().filter(|piece| piece.access == access && !piece.is_small());
        these.map(|piece| piece.len as u64).sum()
    }

    /// Returns the number of pages that those bytes lie in.
    fn pages(&self) -> usize {
        self.pieces.iter().filter(|piece| !piece.is_small()).map(Piece::pages).sum()
    }
}

impl Piece {
    fn is_small(&self) -> bool {
        self.len as u64 <= SMALL
    }
}
