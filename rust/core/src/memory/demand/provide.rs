//! Which pieces of a batch are copied, which are mapped, and by which calls.

use std::sync::{Arc, Weak};

use super::copy::copy;
use super::{Demand, IDLE_BOUNCE, PIECE_PAGES, Piece, State};
use crate::memory::grant::{GrantMap, Grants, run};
use crate::memory::region::grant_of;
use crate::memory::view::{Access, Buffers};
use crate::xen::{GrantRef, XEN_PAGE};

/// Bytes of a piece that is always copied: headers and status bytes. A page would have to be
/// mapped for them, and one page is copied in the time that it takes to map it.
const SMALL: u64 = 512;

/// Bytes of one side of a request that is copied when the device may keep it. Above, it has more
/// pages than a map call of its own is too dear for.
const KEPT: u64 = PIECE_PAGES * XEN_PAGE;

/// Pieces of a request that fail before the others are not tried any more: 4 GiB of nothing are
/// 8192 pieces.
const MAX_FAILED: usize = 16;

/// Map calls that the requests of a batch share.
#[derive(Debug, Default)]
pub struct Shared(Vec<Weak<GrantMap>>);

impl Shared {
    /// Whether no request holds a page of theirs any more.
    pub fn is_free(&self) -> bool {
        self.0.iter().all(|map| map.strong_count() == 0)
    }
}

/// Gives every piece of every chain its place. `kept`: the device may keep requests when it is
/// done with the batch. `mapped`: what could be copied is mapped, unless it is small.
pub fn provide(batch: &mut [&mut Buffers], kept: bool, mapped: bool) -> Shared {
    let mut provider = Provider { batch, shared: Shared::default() };
    let devices = provider.devices();
    if let Some(first) = devices.first() {
        provider.plan(first.copy_below(), kept, mapped);
        copy(provider.batch, Access::DeviceReadable);
    }
    for (grants, side) in devices.iter().flat_map(|grants| SIDES.map(|side| (grants, side))) {
        provider.map(grants, side, kept);
    }
    provider.map_frames();
    provider.lose_the_rest();
    provider.shared
}

/// The chains of a batch while they get their places.
struct Provider<'a, 'b> {
    batch: &'a mut [&'b mut Buffers],
    shared: Shared,
}

const SIDES: [Access; 2] = [Access::DeviceReadable, Access::DeviceWritable];

/// A chain, and a piece of it.
type Name = (usize, usize);

impl Provider<'_, '_> {
    /// Decides what is copied.
    fn plan(&mut self, copy_below: u64, kept: bool, mapped: bool) {
        let few = self.few(copy_below);
        for buffers in &mut *self.batch {
            let Some(demand) = buffers.demand_mut() else { continue };
            let own = SIDES.map(|side| kept && demand.bytes(side) <= KEPT);
            let mut end = 0;
            for piece in &mut demand.pieces {
                let side = usize::from(piece.access == Access::DeviceWritable);
                let copied = piece.is_small() || !mapped && (few[side] || own[side]);
                if copied && piece.grants().is_some() {
                    piece.state = State::Copied(end);
                    end += piece.len.next_multiple_of(8);
                }
            }
            demand.bounce.reset(end, IDLE_BOUNCE);
            buffers.place_copied();
        }
    }

    /// Of which sides all that the batch has is copied. A map call is for one side: two of them
    /// for no more pages than one is worth cost more than to copy the lesser side.
    fn few(&self, copy_below: u64) -> [bool; 2] {
        let bytes = SIDES.map(|side| self.demands().map(|d| d.bytes(side)).sum::<u64>());
        let few = bytes.map(|bytes| bytes <= copy_below);
        let pages: usize = self.demands().map(Demand::pages).sum();
        if few == [false; 2] && pages as u64 <= PIECE_PAGES {
            return [bytes[0] <= bytes[1], bytes[0] > bytes[1]];
        }
        few
    }

    /// Maps all pieces of one side that wait for grants of this device.
    fn map(&mut self, grants: &Arc<Grants>, access: Access, kept: bool) {
        let mut group: Vec<Name> = Vec::new();
        let mut pages = 0;
        for name in self.waiting(grants, access) {
            let more = self.pages(name);
            let full = pages + more > grants.limit();
            let other = kept && group.first().is_some_and(|first| first.0 != name.0);
            if full || other {
                self.map_group(grants, &group, access, kept);
                group.clear();
                pages = 0;
            }
            group.push(name);
            pages += more;
        }
        self.map_group(grants, &group, access, kept);
    }

    /// Maps pieces in one call. It fails as a whole for one bad page: then each request is mapped
    /// alone, and each piece of a request for which that fails.
    fn map_group(&mut self, grants: &Arc<Grants>, group: &[Name], access: Access, kept: bool) {
        if group.is_empty() || self.try_map(grants, group, access, kept) {
            return;
        }
        for request in group.chunk_by(|a, b| a.0 == b.0) {
            if request.len() < group.len() && self.try_map(grants, request, access, true) {
                continue;
            }
            self.map_pieces(grants, request, access);
        }
    }

    /// Maps each piece of a request alone, the last one first: it may have the byte that says that
    /// the request failed.
    fn map_pieces(&mut self, grants: &Arc<Grants>, request: &[Name], access: Access) {
        let mut failed = 0;
        for &name in request.iter().rev() {
            let try_it = request.len() > 1 && failed < MAX_FAILED;
            if !try_it || !self.try_map(grants, &[name], access, true) {
                failed += 1;
                self.batch[name.0].lose(name.1);
            }
        }
    }

    fn try_map(&mut self, grants: &Arc<Grants>, group: &[Name], access: Access, own: bool) -> bool {
        let refs: Vec<GrantRef> = group.iter().flat_map(|&name| self.refs(name)).collect();
        let Ok(map) = grants.map(&refs, access.protection()) else { return false };
        let mut page = 0;
        for &(number, piece) in group {
            let pages = self.pages((number, piece));
            self.batch[number].place_mapped(piece, &map, page);
            page += pages;
        }
        if !own {
            self.shared.0.push(Arc::downgrade(&map));
        }
        true
    }

    fn map_frames(&mut self) {
        for access in SIDES {
            for buffers in &mut *self.batch {
                buffers.place_frames(access);
            }
        }
    }

    fn lose_the_rest(&mut self) {
        for buffers in &mut *self.batch {
            buffers.lose_waiting();
        }
    }

    /// The grant devices of the batch's regions: one is the rule.
    fn devices(&self) -> Vec<Arc<Grants>> {
        let mut devices: Vec<Arc<Grants>> = Vec::new();
        let pieces = self.demands().flat_map(|demand| &demand.pieces);
        for (grants, _) in pieces.filter_map(Piece::grants) {
            if !devices.iter().any(|known| Arc::ptr_eq(known, grants)) {
                devices.push(Arc::clone(grants));
            }
        }
        devices
    }

    fn demands(&self) -> impl Iterator<Item = &Demand> {
        self.batch.iter().filter_map(|buffers| buffers.demand())
    }

    fn piece(&self, (number, piece): Name) -> Option<&Piece> {
        self.batch[number].demand()?.pieces.get(piece)
    }

    fn waiting(&self, grants: &Arc<Grants>, access: Access) -> Vec<Name> {
        let through = |piece: &Piece| piece.grants().is_some_and(|(g, _)| Arc::ptr_eq(g, grants));
        let chains = self.batch.iter().enumerate();
        let demands = chains.filter_map(|(number, buffers)| Some((number, buffers.demand()?)));
        demands
            .flat_map(|(number, demand)| {
                let pieces = demand.pieces.iter().enumerate();
                pieces.map(move |(at, piece)| ((number, at), piece))
            })
            .filter(|(_, piece)| piece.access == access && piece.state == State::Waiting)
            .filter(|(_, piece)| through(piece))
            .map(|(name, _)| name)
            .collect()
    }

    fn pages(&self, name: Name) -> usize {
        self.piece(name).map_or(0, Piece::pages)
    }

    fn refs(&self, name: Name) -> impl Iterator<Item = GrantRef> + use<> {
        let run = self.piece(name).and_then(|piece| {
            let (_, domid) = piece.grants()?;
            Some(run(domid, grant_of(piece.at), piece.pages()))
        });
        run.into_iter().flatten()
    }
}

impl Demand {
    /// Bytes of one side that are not copied in any case.
    fn bytes(&self, access: Access) -> u64 {
        let these = self.pieces.iter().filter(|piece| piece.access == access && !piece.is_small());
        these.map(|piece| piece.len as u64).sum()
    }

    /// The pages of those bytes.
    fn pages(&self) -> usize {
        self.pieces.iter().filter(|piece| !piece.is_small()).map(Piece::pages).sum()
    }
}

impl Piece {
    fn is_small(&self) -> bool {
        self.len as u64 <= SMALL
    }
}
