//! What of a chain lies in memory that is mapped on demand.

use std::sync::Arc;

use super::bounce_budget::Share;
use super::grant::{GrantMap, Grants, grant_of, run};
use super::on_demand::OnDemand;
use crate::address::GuestAddr;
use crate::memory::access::Access;
use crate::memory::fault::{Fault, Unreachable};
use crate::memory::segment::GuestSlice;
use crate::memory::translator::Miss;
use crate::sys::mmap::Mapping;
use crate::sys::scratch::Scratch;
use crate::xen::{GrantRef, XEN_PAGE};

/// The most pages of one piece, if the kernel takes so many in a call. A longer buffer is several
/// pieces.
pub(super) const PIECE_PAGES: usize = 128;

/// The most bytes of bounce buffer that an idle request keeps.
pub(super) const IDLE_BOUNCE: usize = 64 << 10;

/// The part of a chain that lies in memory which is mapped on demand.
#[derive(Debug, Default)]
pub(in crate::memory) struct Demand {
    pub(super) pieces: Vec<Piece>,
    pub(super) bounce: Scratch,
    pub(super) share: Option<Share>,
    pub(super) pins: Vec<Pin>,
    /// Zeroes in the place of all pieces that are lost. They are as long as the longest piece.
    pub(super) zeroes: Option<Mapping>,
    pub(super) fault: Option<Fault>,
    /// Translations of I/O virtual addresses that the front-end has to be asked for.
    pub(in crate::memory) misses: Vec<Miss>,
}

/// A run of bytes in consecutive pages.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) access: Access,
    /// The number of its segment among those of its side.
    pub(super) segment: usize,
    pub(super) at: GuestAddr,
    pub(super) len: usize,
    /// The device that it is reached by; `None` if it may not be used so.
    pub(super) source: Option<OnDemand>,
    pub(super) state: State,
}

/// The state of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    /// It is in the bounce buffer, from this byte on.
    Copied(usize),
    Mapped,
    Lost,
}

/// Pages that were mapped in one call. They keep the places of pieces valid.
#[derive(Clone, Debug)]
pub(super) enum Pin {
    Grants(Arc<GrantMap>),
    Frames(Arc<Mapping>),
}

impl Demand {
    /// Notes `len` bytes at `at`, whose place is not known: empty segments stand for it in
    /// `list`.
    #[cold]
    pub(in crate::memory) fn add(
        &mut self,
        list: &mut Vec<GuestSlice>,
        (at, len): (GuestAddr, u64),
        how: Option<&OnDemand>,
        access: Access,
    ) {
        let pages = how.map_or(PIECE_PAGES, |how| how.limit().min(PIECE_PAGES));
        let (mut at, mut left) = (at.0, len);
        while left > 0 {
            let len = left.min(pages as u64 * XEN_PAGE - at % XEN_PAGE);
            self.pieces.push(Piece {
                access,
                segment: list.len(),
                at: GuestAddr(at),
                len: len as usize,
                source: how.cloned(),
                state: State::Waiting,
            });
            list.push(GuestSlice::EMPTY);
            (at, left) = (at + len, left - len);
        }
    }

    /// Forgets everything. Whatever was mapped is given back.
    pub(in crate::memory) fn clear(&mut self) {
        self.pieces.clear();
        self.pins.clear();
        self.zeroes = None;
        self.fault = None;
        self.misses.clear();
        self.bounce.reset(0, IDLE_BOUNCE);
        self.share = None;
    }

    /// Returns whether there is no piece, and no fault.
    pub(in crate::memory) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.fault.is_none()
    }

    /// Forgets the pieces of one side: their segments are gone.
    pub(in crate::memory) fn forget_side(&mut self, access: Access) {
        self.pieces.retain(|piece| piece.access != access);
    }

    /// Returns whether a piece has no place yet.
    pub(in crate::memory) fn waits(&self) -> bool {
        self.pieces.iter().any(Piece::waits)
    }

    pub(in crate::memory) fn fail(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    pub(in crate::memory) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Returns a piece for `access` whose pages were taken back since they were mapped.
    pub(in crate::memory) fn taken(&self, access: Access) -> Option<Fault> {
        let mapped = |piece: &&Piece| piece.access == access && piece.state == State::Mapped;
        let has_ended = |piece: &&Piece| piece.source.as_ref().is_some_and(OnDemand::has_ended);
        let piece = self.pieces.iter().filter(mapped).find(has_ended)?;
        let Piece { at, len, .. } = *piece;
        Some(Fault { at, len: len as u64, access, reason: Unreachable::NotGranted })
    }

    /// Returns whether granted pages are mapped for it.
    pub(in crate::memory) fn maps_grants(&self) -> bool {
        self.pins.iter().any(|pin| matches!(pin, Pin::Grants(_)))
    }
}

impl Pin {
    pub(super) fn base(&self) -> *mut u8 {
        match self {
            Self::Grants(map) => map.base(),
            Self::Frames(area) => area.base(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Grants(map) => map.len(),
            Self::Frames(area) => area.len(),
        }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.base() == other.base()
    }
}

impl Piece {
    pub(super) fn waits(&self) -> bool {
        self.state == State::Waiting
    }

    /// Returns the grants of its pages.
    pub(super) fn refs(&self) -> impl Iterator<Item = GrantRef> + use<> {
        let (first, pages) = (grant_of(self.at), self.pages());
        let domid = self.grants().map(|(_, domid)| domid);
        domid.into_iter().flat_map(move |domid| run(domid, first, pages))
    }

    /// Returns the frames of its pages.
    pub(super) fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.at.0 / XEN_PAGE;
        first..first + self.pages() as u64
    }

    /// Returns the device and the domain of its grants.
    pub(super) fn grants(&self) -> Option<(&Arc<Grants>, u16)> {
        match &self.source {
            Some(OnDemand::Grants(grants, domid)) => Some((grants, *domid)),
            Some(OnDemand::Frames(_)) | None => None,
        }
    }

    pub(super) fn pages(&self) -> usize {
        (self.at.0 % XEN_PAGE + self.len as u64).div_ceil(XEN_PAGE) as usize
    }

    /// Returns its place in an area whose first byte is that of its first page.
    pub(super) fn inside(&self, first_page: *mut u8) -> GuestSlice {
        GuestSlice::new(first_page.wrapping_add((self.at.0 % XEN_PAGE) as usize), self.len)
    }
}
