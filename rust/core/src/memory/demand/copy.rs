//! Copying into bounce buffers and out of them, one call for all of a batch.

use std::cell::Cell;
use std::sync::Arc;

use super::{Demand, Source, State};
use crate::address::GuestAddr;
use crate::memory::grant::{Grants, run};
use crate::memory::region::grant_of;
use crate::memory::view::{Access, Buffers};
use crate::xen::{GrantCopy, XEN_PAGE};

/// Writes back what was copied, for requests that are answered. Those with a
/// [`Fault`](super::Fault) afterwards have not got all of it.
pub fn give_back(done: &mut [&mut Buffers]) {
    let mut rest = done;
    while let Some(first) = rest.first() {
        // Requests that were kept may be from an older table than those of the last batch.
        let memory = first.memory().map(Arc::clone);
        let same = |b: &&mut Buffers| matches!((b.memory(), &memory), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        let count = rest.iter().position(|b| !same(b)).unwrap_or(rest.len()).max(1);
        let (these, others) = rest.split_at_mut(count);
        if let Some(grants) = memory.as_ref().and_then(|memory| memory.grants()) {
            copy(these, grants, Access::DeviceWritable);
        }
        rest = others;
    }
}

/// Makes all copies of one direction in one call.
pub(super) fn copy(batch: &mut [&mut Buffers], grants: &Grants, access: Access) {
    let mut names = Vec::new();
    let mut copies = Vec::new();
    for (number, buffers) in batch.iter_mut().enumerate() {
        let Some(demand) = buffers.demand_mut() else { continue };
        for (piece, copy) in demand.copies(access) {
            names.push((number, piece));
            copies.push(copy);
        }
    }
    grants.copy(&mut copies);
    let failed: Vec<_> =
        names.iter().zip(&copies).filter(|(_, copy)| copy.status != 0).map(|(&n, _)| n).collect();
    drop(copies);
    for (number, piece) in failed {
        batch[number].lose(piece);
    }
}

impl Demand {
    /// The copies of all pieces that are copied in one direction, each within one page.
    fn copies(&mut self, access: Access) -> impl Iterator<Item = (usize, GrantCopy<'_>)> {
        let Self { pieces, bounce, .. } = self;
        let cells = bounce.cells(0, bounce.len());
        let these = pieces.iter().enumerate().filter(move |(_, piece)| piece.access == access);
        these.flat_map(move |(number, piece)| {
            let copied = match (piece.state, piece.source) {
                (State::Copied(start), Source::Grants(domid)) => Some((start, domid)),
                _ => None,
            };
            let to_guest = access == Access::DeviceWritable;
            let cuts = copied.map(|(start, domid)| {
                let cells = &cells[start..start + piece.len];
                cut(piece.at, domid, cells, to_guest).map(move |copy| (number, copy))
            });
            cuts.into_iter().flatten()
        })
    }
}

/// Cuts a run of bytes at the ends of pages.
pub(super) fn cut(
    at: GuestAddr,
    domid: u16,
    cells: &[Cell<u8>],
    to_guest: bool,
) -> impl Iterator<Item = GrantCopy<'_>> {
    let page = XEN_PAGE as usize;
    let (first, lead) = (grant_of(at), (at.0 % XEN_PAGE) as usize);
    let pages = (lead + cells.len()).div_ceil(page);
    run(domid, first, pages).enumerate().map(move |(number, grant)| {
        let offset = if number == 0 { lead } else { 0 };
        let start = (number * page).saturating_sub(lead);
        let end = ((number + 1) * page - lead).min(cells.len());
        let local = &cells[start..end];
        GrantCopy { grant, offset: offset as u16, local, to_guest, status: 0 }
    })
}
