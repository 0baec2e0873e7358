//! Buffers in memory that is not mapped until it is needed.
//!
//! A chain is popped first: its descriptors say where buffers are, and a buffer in such memory is
//! noted as [`Piece`]s with no place yet. Then all pieces of a batch get their places at once:
//!
//! ```text
//! little data    one copy call      into the request's bounce buffer, and back when it is answered
//! more           one map call       for what the device reads, read-only,
//!                one map call       for what it writes
//! ```
//!
//! A mapped page must be given back before the driver sees the request's used element: it ends
//! its grant then, and cannot while the page is mapped. The pages of one map call are given back
//! together, so requests share one only if the device is done with all of them when it is done
//! with the batch. Requests that it may keep are copied, or have map calls of their own.
//!
//! What cannot be reached is the request's [`Fault`]: the piece becomes private zeroes, so that
//! all others keep their offsets, and the device is not shown the request.

use std::fmt;
use std::sync::{Arc, Weak};

use super::foreign::Foreign;
use super::grant::{GrantMap, Grants, run};
use super::region::{OnDemand, grant_of};
use super::view::{Access, Buffers, Segment};
use crate::address::GuestAddr;
use crate::sys::mmap::Mapping;
use crate::sys::scratch::Scratch;
use crate::xen::{GrantCopy, GrantRef, XEN_PAGE};

/// Pages of the longest piece. Longer buffers are several pieces, so that the kernel's limit of a
/// call can be kept.
const PIECE_PAGES: u64 = 128;

/// Bytes of a piece that is always copied: headers and status bytes. A page would have to be
/// mapped for them, and one page is copied in the time that it takes to map it.
const SMALL: u64 = 512;

/// Bytes of a request that is copied when the device may keep it. Above, it has more pages than
/// a map call of its own is too dear for.
const KEPT: u64 = PIECE_PAGES * XEN_PAGE;

/// Pieces of a request that fail before the others are not tried any more: 4 GiB of nothing are
/// 8192 pieces.
const MAX_FAILED: usize = 16;

/// Bounce bytes that an idle request keeps.
const IDLE_BOUNCE: usize = 64 << 10;

/// What of a chain lies in memory that is mapped on demand.
#[derive(Debug, Default)]
pub(super) struct Demand {
    pieces: Vec<Piece>,
    bounce: Scratch,
    pins: Vec<Pin>,
    fault: Option<Fault>,
}

/// A run of bytes in consecutive pages.
#[derive(Debug)]
struct Piece {
    access: Access,
    /// Which segment of its side it is.
    segment: usize,
    at: GuestAddr,
    len: usize,
    source: Source,
    state: State,
}

/// What a piece is reached by.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Grants of a domain, from the reference that its address names.
    Grants(u16),
    /// The frames that its address names.
    Frames,
    /// Nothing: it may not be used so.
    Nothing,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// In the bounce buffer, from here on.
    Copied(usize),
    Mapped,
    Lost,
}

/// What keeps a piece's place valid.
#[derive(Debug)]
#[expect(dead_code, reason = "held, and never looked at")]
enum Pin {
    Grants(Arc<GrantMap>),
    Private(Mapping),
}

/// A buffer that cannot be reached: it was never granted, not any more, not for writing, or too
/// often at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First address.
    pub at: GuestAddr,
    /// Bytes.
    pub len: usize,
    /// What it was wanted for.
    pub access: Access,
}

/// Map calls that the requests of a batch share.
#[derive(Debug, Default)]
pub struct Shared(Vec<Weak<GrantMap>>);

impl Shared {
    /// Whether no request holds a page of theirs any more.
    pub fn is_free(&self) -> bool {
        self.0.iter().all(|map| map.strong_count() == 0)
    }
}

impl Demand {
    /// Notes `len` bytes at `at`, whose place is not known: empty segments stand for it in
    /// `list`.
    #[cold]
    pub(super) fn add(
        &mut self,
        list: &mut Vec<Segment>,
        (at, len): (GuestAddr, u64),
        how: Option<&OnDemand>,
        access: Access,
    ) {
        let source = match how {
            Some(OnDemand::Grants(_, domid)) => Source::Grants(*domid),
            Some(OnDemand::Frames(_)) => Source::Frames,
            None => Source::Nothing,
        };
        let (mut at, mut left) = (at.0, len);
        while left > 0 {
            let len = left.min(PIECE_PAGES * XEN_PAGE - at % XEN_PAGE);
            self.pieces.push(Piece {
                access,
                segment: list.len(),
                at: GuestAddr(at),
                len: len as usize,
                source,
                state: State::Waiting,
            });
            list.push(Segment::EMPTY);
            (at, left) = (at + len, left - len);
        }
    }

    /// Forgets everything. Whatever was mapped is given back.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.pins.clear();
        self.fault = None;
        self.bounce.reset(0, IDLE_BOUNCE);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Whether granted pages are mapped for it.
    pub(super) fn maps_grants(&self) -> bool {
        self.pins.iter().any(|pin| matches!(pin, Pin::Grants(_)))
    }

    fn bytes(&self, access: Access) -> u64 {
        let these = self.pieces.iter().filter(|piece| piece.access == access);
        these.filter(|piece| piece.len as u64 > SMALL).map(|piece| piece.len as u64).sum()
    }

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
    cells: &[std::cell::Cell<u8>],
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

/// Gives every piece of every chain its place. All chains are from one table of memory. `kept`:
/// the device may keep requests when it is done with the batch. `mapped`: what could be copied is
/// mapped, unless it is small.
pub fn provide(batch: &mut [&mut Buffers], kept: bool, mapped: bool) -> Shared {
    let Some(memory) = batch.first().and_then(|buffers| buffers.memory()).map(Arc::clone) else {
        return Shared::default();
    };
    let mut provider = Provider { batch, shared: Shared::default() };
    if let Some(grants) = memory.grants() {
        provider.plan(grants, kept, mapped);
        provider.copy_in(grants);
        provider.map(grants, Access::DeviceReadable, kept);
        provider.map(grants, Access::DeviceWritable, kept);
    }
    if let Some(OnDemand::Frames(foreign)) = memory.beyond().and_then(|r| r.on_demand()) {
        provider.map_frames(foreign);
    }
    provider.lose_the_rest();
    provider.shared
}

/// Writes back what was copied, for requests that are answered. Those with a [`Fault`] afterwards
/// have not got all of it.
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
fn copy(batch: &mut [&mut Buffers], grants: &Grants, access: Access) {
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

/// The chains of a batch while they get their places.
struct Provider<'a, 'b> {
    batch: &'a mut [&'b mut Buffers],
    shared: Shared,
}

/// A chain, and a piece of it.
type Name = (usize, usize);

impl Provider<'_, '_> {
    /// Decides what is copied.
    fn plan(&mut self, grants: &Grants, kept: bool, mapped: bool) {
        let sides = [Access::DeviceReadable, Access::DeviceWritable];
        let total = |access| -> u64 { self.demands().map(|d| d.bytes(access)).sum() };
        let few = sides.map(|access| total(access) <= grants.copy_below());
        for buffers in &mut *self.batch {
            let Some(demand) = buffers.demand_mut() else { continue };
            let own: u64 = sides.iter().map(|&access| demand.bytes(access)).sum();
            let mut end = 0;
            for piece in &mut demand.pieces {
                let side = usize::from(piece.access == Access::DeviceWritable);
                let little = few[side] || kept && own <= KEPT;
                let copied = piece.len as u64 <= SMALL || little && !mapped;
                if copied && matches!(piece.source, Source::Grants(_)) {
                    piece.state = State::Copied(end);
                    end += piece.len.next_multiple_of(8);
                }
            }
            demand.bounce.reset(end, IDLE_BOUNCE);
            buffers.place_copied();
        }
    }

    fn copy_in(&mut self, grants: &Grants) {
        copy(self.batch, grants, Access::DeviceReadable);
    }

    /// Maps all pieces of one side that wait for grants.
    fn map(&mut self, grants: &Arc<Grants>, access: Access, kept: bool) {
        let mut group: Vec<Name> = Vec::new();
        let mut pages = 0;
        for name in self.waiting(access) {
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

    fn map_frames(&mut self, foreign: &Foreign) {
        for access in [Access::DeviceReadable, Access::DeviceWritable] {
            for buffers in &mut *self.batch {
                buffers.place_frames(foreign, access);
            }
        }
    }

    fn lose_the_rest(&mut self) {
        for buffers in &mut *self.batch {
            buffers.lose_waiting();
        }
    }

    fn demands(&self) -> impl Iterator<Item = &Demand> {
        self.batch.iter().filter_map(|buffers| buffers.demand())
    }

    fn piece(&self, (number, piece): Name) -> Option<&Piece> {
        self.batch[number].demand()?.pieces.get(piece)
    }

    fn waiting(&self, access: Access) -> Vec<Name> {
        let chains = self.batch.iter().enumerate();
        let demands = chains.filter_map(|(number, buffers)| Some((number, buffers.demand()?)));
        demands
            .flat_map(|(number, demand)| {
                let pieces = demand.pieces.iter().enumerate();
                pieces.map(move |(at, piece)| ((number, at), piece))
            })
            .filter(|(_, piece)| piece.access == access && piece.state == State::Waiting)
            .filter(|(_, piece)| matches!(piece.source, Source::Grants(_)))
            .map(|(name, _)| name)
            .collect()
    }

    fn pages(&self, name: Name) -> usize {
        self.piece(name).map_or(0, Piece::pages)
    }

    fn refs(&self, name: Name) -> impl Iterator<Item = GrantRef> + use<> {
        let run = self.piece(name).and_then(|piece| match piece.source {
            Source::Grants(domid) => Some(run(domid, grant_of(piece.at), piece.pages())),
            Source::Frames | Source::Nothing => None,
        });
        run.into_iter().flatten()
    }
}

impl Piece {
    fn pages(&self) -> usize {
        (self.at.0 % XEN_PAGE + self.len as u64).div_ceil(XEN_PAGE) as usize
    }

    /// Its place in an area whose first byte is that of its first page.
    fn inside(&self, first_page: *mut u8) -> Segment {
        Segment::new(first_page.wrapping_add((self.at.0 % XEN_PAGE) as usize), self.len)
    }
}

impl Buffers {
    /// Whether some of it waits to be given a place.
    pub fn waits(&self) -> bool {
        self.demand().is_some_and(|demand| !demand.is_empty())
    }

    /// What of it cannot be reached.
    pub fn fault(&self) -> Option<Fault> {
        self.demand()?.fault()
    }

    fn place_copied(&mut self) {
        self.place_each(|demand, number| match demand.pieces[number].state {
            State::Copied(start) => {
                Some(Segment::new(demand.bounce.at(start), demand.pieces[number].len))
            }
            _ => None,
        });
    }

    /// `page`: of the area, the one that the piece begins in.
    fn place_mapped(&mut self, number: usize, map: &Arc<GrantMap>, page: usize) {
        self.place_one(number, |demand| {
            let piece = demand.pieces.get_mut(number)?;
            let end = (page + piece.pages()) * XEN_PAGE as usize;
            assert!(end <= map.len(), "a piece ends inside the area that was mapped for it");
            piece.state = State::Mapped;
            demand.pins.push(Pin::Grants(Arc::clone(map)));
            Some(demand.pieces[number].inside(map.base().wrapping_add(page * XEN_PAGE as usize)))
        });
    }

    fn place_frames(&mut self, foreign: &Foreign, access: Access) {
        self.place_each(|demand, number| {
            let piece = &mut demand.pieces[number];
            let waits = piece.state == State::Waiting && piece.access == access;
            if !waits || !matches!(piece.source, Source::Frames) {
                return None;
            }
            let area = foreign.map(piece.at, piece.len as u64).ok()?;
            piece.state = State::Mapped;
            let segment = piece.inside(area.base());
            demand.pins.push(Pin::Private(area));
            Some(segment)
        });
    }

    fn lose_waiting(&mut self) {
        let Some(demand) = self.demand() else { return };
        let pieces = demand.pieces.iter().enumerate();
        let waiting: Vec<_> =
            pieces.filter(|(_, p)| p.state == State::Waiting).map(|(number, _)| number).collect();
        waiting.into_iter().for_each(|number| self.lose(number));
    }

    /// Puts private zeroes where a piece should be.
    fn lose(&mut self, number: usize) {
        self.place_one(number, |demand| {
            let piece = demand.pieces.get_mut(number)?;
            piece.state = State::Lost;
            let Piece { at, len, access, .. } = *piece;
            demand.fault.get_or_insert(Fault { at, len, access });
            // Without any memory it stays empty; the device is not shown the request anyway.
            let zeroes = Mapping::private(len).ok()?;
            let segment = Segment::new(zeroes.base(), len);
            demand.pins.push(Pin::Private(zeroes));
            Some(segment)
        });
    }

    fn place_each(&mut self, mut place: impl FnMut(&mut Demand, usize) -> Option<Segment>) {
        for number in 0..self.demand().map_or(0, |demand| demand.pieces.len()) {
            self.place_one(number, |demand| place(demand, number));
        }
    }

    fn place_one(&mut self, number: usize, place: impl FnOnce(&mut Demand) -> Option<Segment>) {
        let Some(demand) = self.demand_mut() else { return };
        let Some(placed) = place(demand) else { return };
        let Piece { access, segment, .. } = demand.pieces[number];
        self.put(access, segment, placed);
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, len, access } = self;
        let what = match access {
            Access::DeviceReadable => "read",
            Access::DeviceWritable => "written",
        };
        write!(f, "{len} bytes at {at} cannot be {what}: no grant allows it")
    }
}
