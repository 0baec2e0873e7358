//! The places of a batch's buffers, and the calls that they cost.
//!
//! Pieces are mapped in groups, in the order in which they came. A group fails as a whole for one
//! bad page. Then it is found out which requests are to blame, and these are given up:
//!
//! ```text
//! a group                          one call
//!   fails: a byte of each page     one copy call, which says what is not granted
//!   without those requests         one call
//!     fails: each request alone    a call each
//!       fails: its last piece      one call more: the byte that says that it failed
//! ```
//!
//! A request that was given up costs nothing more, however much it names. So those that fail cost
//! a batch no more than six map calls each, of up to [`CALL_PAGES`] pages, and a copy call, and a
//! wait for pages that are paged out that they share.

use std::cell::Cell;
use std::sync::{Arc, Weak};

use super::bounce::copy;
use super::demand::{Demand, Piece, Pin};
use super::foreign::NoPage;
use super::grant::GrantMap;
use super::on_demand::OnDemand;
use super::plan::{SIDES, plan};
use super::resolve_options::ResolveOptions;
use super::retry_budget::RetryBudget;
use crate::memory::access::Access;
use crate::memory::buffers::Buffers;
use crate::xen::{GrantCopy, GrantRef, XEN_PAGE};

/// The most pages of a map call for requests. The call itself costs what some 30 pages do; so twice
/// as many pages in a call would make honest requests no faster, and hostile ones twice as dear.
const CALL_PAGES: usize = 1024;

/// Map calls that the requests of a batch share.
#[derive(Debug, Default)]
pub struct Shared(Vec<Weak<GrantMap>>);

impl Shared {
    /// Returns whether no request holds a page of theirs any more.
    pub fn is_free(&self) -> bool {
        self.0.iter().all(|map| map.strong_count() == 0)
    }
}

/// Gives every piece of every chain its place.
pub fn provide(batch: &mut [&mut Buffers], options: &ResolveOptions<'_>) -> Shared {
    plan(batch, options);
    copy(batch, Access::DeviceReadable);
    let (shared, budget) = (Shared::default(), RetryBudget::default());
    let mut provider = Provider { batch, options, shared, budget, called: false };
    provider.lose_what_is_denied();
    for (source, side) in provider.sources().iter().flat_map(|s| SIDES.map(|side| (s, side))) {
        provider.map(source, side);
    }
    provider.shared
}

/// The chains of a batch while they get their places.
struct Provider<'a, 'b> {
    batch: &'a mut [&'b mut Buffers],
    options: &'a ResolveOptions<'a>,
    shared: Shared,
    budget: RetryBudget,
    called: bool,
}

/// The number of a chain in the batch, and that of a piece of it.
type Name = (usize, usize);

impl Provider<'_, '_> {
    /// Gives up requests with a piece that may not be used so, or that could not be copied.
    fn lose_what_is_denied(&mut self) {
        for number in 0..self.batch.len() {
            let pieces = self.batch[number].demand().map_or(&[][..], |demand| &demand.pieces);
            let denied = |(_, piece): &(usize, &Piece)| piece.waits() && piece.source.is_none();
            let denied = pieces.iter().enumerate().filter(denied).map(|(at, _)| at);
            denied.collect::<Vec<_>>().into_iter().for_each(|at| self.batch[number].lose(at));
            if self.batch[number].fault().is_some() {
                self.give_up(number, &[]);
            }
        }
    }

    /// Maps all pieces of one side that wait for this device.
    fn map(&mut self, source: &OnDemand, access: Access) {
        let most = source.limit().min(CALL_PAGES);
        let mut group: Vec<Name> = Vec::new();
        let mut pages = 0;
        for name in self.waiting(source, access) {
            let more = self.piece(name).map_or(0, Piece::pages);
            let other = self.options.kept && group.first().is_some_and(|first| first.0 != name.0);
            if pages + more > most || other {
                self.map_group(source, &group, access);
                group.clear();
                pages = 0;
            }
            // It may be of a request that has been given up meanwhile.
            if self.waits(name) {
                group.push(name);
                pages += more;
            }
        }
        self.map_group(source, &group, access);
    }

    /// Maps pieces in one call, or finds out whose fault it is that it fails.
    fn map_group(&mut self, source: &OnDemand, group: &[Name], access: Access) {
        let shared = !self.options.kept;
        if group.is_empty() || self.try_map(source, group, access, shared) {
            return;
        }
        self.blame(source, group);
        let rest: Vec<Name> = group.iter().copied().filter(|&name| self.waits(name)).collect();
        let is_less = rest.len() < group.len();
        if rest.is_empty() || is_less && self.try_map(source, &rest, access, shared) {
            return;
        }
        for request in rest.chunk_by(|a, b| a.0 == b.0) {
            let was_alone = request.len() == rest.len();
            if was_alone || !self.try_map(source, request, access, false) {
                self.give_up(request[0].0, request);
            }
        }
    }

    /// Gives up those requests of a group that name a page which is not granted.
    fn blame(&mut self, source: &OnDemand, group: &[Name]) {
        if self.called {
            return;
        }
        for (number, piece) in self.not_granted(source, group) {
            self.batch[number].lose(piece);
        }
        for request in group.chunk_by(|a, b| a.0 == b.0) {
            if self.batch[request[0].0].fault().is_some() {
                self.give_up(request[0].0, request);
            }
        }
    }

    /// Returns which pieces have pages that are not granted. One copy call says that of each page,
    /// and is cheap: nothing is mapped, and no memory is needed to map it to.
    fn not_granted(&self, source: &OnDemand, group: &[Name]) -> Vec<Name> {
        let OnDemand::Grants(grants, _) = source else { return Vec::new() };
        let of_piece =
            |&name| self.piece(name).into_iter().flat_map(Piece::refs).map(move |r| (name, r));
        let pages: Vec<(Name, GrantRef)> = group.iter().flat_map(of_piece).collect();
        let bytes = vec![Cell::new(0); pages.len()];
        let probe = |(&(_, grant), local)| GrantCopy {
            grant,
            offset: 0,
            local,
            to_guest: false,
            status: 0,
        };
        let mut copies: Vec<_> = pages.iter().zip(bytes.chunks(1)).map(probe).collect();
        if !grants.copy(&mut copies) {
            return Vec::new();
        }
        let bad = pages.iter().zip(&copies).filter(|(_, copy)| copy.status != 0);
        bad.map(|(&(name, _), _)| name).collect()
    }

    /// Gives a request up. Only its last piece is mapped if it can be, unless it is all that was
    /// `tried`: it may have the byte that says that the request failed.
    fn give_up(&mut self, number: usize, tried: &[Name]) {
        if self.called {
            return;
        }
        let Some(last) = self.batch[number].lose_all_but_last() else { return };
        let name = (number, last);
        let source = self.piece(name).and_then(|piece| piece.source.clone());
        let try_it = source.filter(|_| tried != [name]);
        let mapped =
            try_it.is_some_and(|s| self.try_map(&s, &[name], Access::DeviceWritable, false));
        if !mapped && !self.called && self.waits(name) {
            self.batch[number].lose(last);
        }
    }

    /// Maps pieces in one call. `shared`: the pages of several requests are given back together.
    fn try_map(&mut self, source: &OnDemand, group: &[Name], access: Access, shared: bool) -> bool {
        self.called = self.called || (self.options.is_called)();
        if self.called {
            return false;
        }
        let Some(area) = self.map_pages(source, group, access) else { return false };
        let mut page = 0;
        for &(number, piece) in group {
            let pages = self.piece((number, piece)).map_or(0, Piece::pages);
            self.batch[number].place_mapped(piece, &area, page);
            page += pages;
        }
        if let Pin::Grants(map) = &area
            && shared
        {
            self.shared.0.push(Arc::downgrade(map));
        }
        true
    }

    fn map_pages(&mut self, source: &OnDemand, group: &[Name], access: Access) -> Option<Pin> {
        let pieces = || group.iter().filter_map(|&name| self.piece(name));
        match source {
            OnDemand::Grants(grants, _) => {
                let refs: Vec<GrantRef> = pieces().flat_map(Piece::refs).collect();
                let map = grants.map(&refs, access.protection(), &mut self.budget);
                map.ok().map(Pin::Grants)
            }
            OnDemand::Frames(foreign) => {
                let frames: Vec<u64> = pieces().flat_map(Piece::frames).collect();
                let map = foreign.map_pages(frames.len(), |page| frames[page], &mut self.budget);
                map.map_err(|no_page| self.lose_page(group, &no_page)).ok().map(Pin::Frames)
            }
        }
    }

    /// Loses the piece that `page` belongs to.
    fn lose_page(&mut self, group: &[Name], page: &NoPage) {
        let frame = page.at().0 / XEN_PAGE;
        let has = |name: &Name| self.piece(*name).is_some_and(|p| p.frames().any(|f| f == frame));
        if let Some(&(number, piece)) = group.iter().find(|name| has(name)) {
            self.batch[number].lose(piece);
        }
    }

    /// Returns the devices that pieces wait for: one is the rule.
    fn sources(&self) -> Vec<OnDemand> {
        let mut sources: Vec<OnDemand> = Vec::new();
        let demands = self.batch.iter().filter_map(|buffers| buffers.demand());
        let waiting = demands.flat_map(|demand| &demand.pieces).filter(|piece| piece.waits());
        for source in waiting.filter_map(|piece| piece.source.as_ref()) {
            if !sources.iter().any(|known| known.is(source)) {
                sources.push(source.clone());
            }
        }
        sources
    }

    fn piece(&self, (number, piece): Name) -> Option<&Piece> {
        self.batch[number].demand()?.pieces.get(piece)
    }

    fn waits(&self, name: Name) -> bool {
        self.piece(name).is_some_and(Piece::waits)
    }

    fn waiting(&self, source: &OnDemand, access: Access) -> Vec<Name> {
        let through = |piece: &Piece| piece.source.as_ref().is_some_and(|other| other.is(source));
        let these = |piece: &Piece| piece.waits() && piece.access == access && through(piece);
        let of_chain = |(number, demand): (usize, &Demand)| -> Vec<Name> {
            let pieces = demand.pieces.iter().enumerate().filter(|(_, piece)| these(piece));
            pieces.map(|(at, _)| (number, at)).collect()
        };
        let chains = self.batch.iter().enumerate();
        chains.filter_map(|(n, buffers)| Some((n, buffers.demand()?))).flat_map(of_chain).collect()
    }
}
