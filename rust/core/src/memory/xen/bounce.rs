//! Copies into bounce buffers and out of them, one call for all of a batch.

use std::cell::Cell;
use std::sync::Arc;

use super::demand::{Demand, State};
use super::grant::{Grants, grant_of, run};
use crate::address::GuestAddr;
use crate::memory::access::Access;
use crate::memory::buffers::Buffers;
use crate::xen::{GrantCopy, XEN_PAGE};

/// Copies to be made, each with the name of what it is a part of. There is one call for each
/// device, and one device is the rule.
pub(in crate::memory) struct Copies<'a, T> {
    calls: Vec<(&'a Arc<Grants>, Vec<T>, Vec<GrantCopy<'a>>)>,
}

impl<'a, T> Copies<'a, T> {
    pub(in crate::memory) fn new() -> Self {
        Self { calls: Vec::new() }
    }

    pub(in crate::memory) fn add(&mut self, grants: &'a Arc<Grants>, of: T, copy: GrantCopy<'a>) {
        let known = self.calls.iter().position(|(known, ..)| Arc::ptr_eq(known, grants));
        let number = known.unwrap_or(self.calls.len());
        if known.is_none() {
            self.calls.push((grants, Vec::new(), Vec::new()));
        }
        let (_, names, copies) = &mut self.calls[number];
        names.push(of);
        copies.push(copy);
    }

    /// Makes the calls; returns whose copies failed.
    pub(in crate::memory) fn make(self) -> Vec<T> {
        let mut failed = Vec::new();
        for (grants, names, mut copies) in self.calls {
            grants.copy(&mut copies);
            let bad = names.into_iter().zip(&copies).filter(|(_, copy)| copy.status != 0);
            failed.extend(bad.map(|(name, _)| name));
        }
        failed
    }
}

/// Writes back what was copied, for requests that are answered. Those with a
/// [`Fault`](crate::memory::Fault) afterwards have not got all of it.
pub fn give_back(done: &mut [&mut Buffers]) {
    copy(done, Access::DeviceWritable);
}

/// Makes all copies of one direction at once.
pub(super) fn copy(batch: &mut [&mut Buffers], access: Access) {
    let mut copies = Copies::new();
    for (number, buffers) in batch.iter_mut().enumerate() {
        let Some(demand) = buffers.demand_mut() else { continue };
        for (piece, grants, copy) in demand.copies(access) {
            copies.add(grants, (number, piece), copy);
        }
    }
    for (number, piece) in copies.make() {
        batch[number].lose(piece);
    }
}

impl Demand {
    /// Returns the copies of all pieces that are copied in one direction, each within one page.
    fn copies(
        &mut self,
        access: Access,
    ) -> impl Iterator<Item = (usize, &Arc<Grants>, GrantCopy<'_>)> {
        let Self { pieces, bounce, .. } = self;
        let cells = bounce.cells(0, bounce.len());
        let these = pieces.iter().enumerate().filter(move |(_, piece)| piece.access == access);
        these.flat_map(move |(number, piece)| {
            let copied = match (piece.state, piece.grants()) {
                (State::Copied(start), Some((grants, domid))) => Some((start, grants, domid)),
                _ => None,
            };
            let to_guest = access == Access::DeviceWritable;
            let cuts = copied.map(|(start, grants, domid)| {
                let cells = &cells[start..start + piece.len];
                cut(piece.at, domid, cells, to_guest).map(move |copy| (number, grants, copy))
            });
            cuts.into_iter().flatten()
        })
    }
}

/// Cuts a run of bytes at the ends of pages.
pub(in crate::memory) fn cut(
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
