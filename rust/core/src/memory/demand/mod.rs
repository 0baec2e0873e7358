//! Buffers in memory that is not mapped until it is needed.
//!
//! A chain is popped first: its descriptors say where buffers are, and a buffer in such memory is
//! noted as [`Piece`]s with no place yet. Indirect tables in such memory are [`Reads`] that wait.
//! Then everything of a batch is done at once:
//!
//! ```text
//! tables         one copy call      and the rest of the chains is known
//! little data    one copy call      into the request's bounce buffer, and back when it is answered
//! more           one map call       for what the device reads, read-only,
//!                one map call       for what it writes; both only for more than 128 pages
//! ```
//!
//! Each region has a device of its own, and everything is done through the device of its region:
//! there are as many calls more as a batch has buffers in different regions.
//!
//! A mapped page must be given back before the driver sees the request's used element: it ends
//! its grant then, and cannot while the page is mapped. The pages of one map call are given back
//! together, so requests share one only if the device is done with all of them when it is done
//! with the batch. Requests that it may keep are copied, or have map calls of their own.
//!
//! What cannot be reached is the request's [`Fault`]: the piece becomes private zeroes, so that
//! all others keep their offsets, and the device is not shown the request. A map call fails as a
//! whole for one page: what a guest gains by naming pages that are none is bounded, see
//! [`provide`].

mod copy;
mod place;
mod plan;
mod provide;
mod reads;
mod room;

use std::fmt;
use std::sync::Arc;

use super::grant::{GrantMap, Grants, run};
use super::region::{OnDemand, grant_of};
use super::view::{Access, Buffers, Segment};
use crate::address::GuestAddr;
use crate::sys::mmap::Mapping;
use crate::sys::scratch::Scratch;
use crate::xen::{GrantRef, XEN_PAGE};
pub use copy::give_back;
pub use provide::{Shared, Terms, provide};
pub use reads::Reads;
pub use room::Room;
use room::Taken;

/// Pages of the longest piece, if the kernel takes so many in a call. Longer buffers are several
/// pieces.
const PIECE_PAGES: usize = 128;

/// Bounce bytes that an idle request keeps.
const IDLE_BOUNCE: usize = 64 << 10;

/// What of a chain lies in memory that is mapped on demand.
#[derive(Debug, Default)]
pub(super) struct Demand {
    pieces: Vec<Piece>,
    bounce: Scratch,
    room: Option<Taken>,
    pins: Vec<Pin>,
    /// In place of all pieces that are lost; as long as the longest.
    zeroes: Option<Mapping>,
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
    /// What it is reached by; nothing if it may not be used so.
    source: Option<OnDemand>,
    state: State,
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

/// Pages that were mapped in one call. They keep the places of pieces valid.
#[derive(Clone, Debug)]
enum Pin {
    Grants(Arc<GrantMap>),
    Frames(Arc<Mapping>),
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
            list.push(Segment::EMPTY);
            (at, left) = (at + len, left - len);
        }
    }

    /// Forgets everything. Whatever was mapped is given back.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.pins.clear();
        self.zeroes = None;
        self.fault = None;
        self.bounce.reset(0, IDLE_BOUNCE);
        self.room = None;
    }

    /// Whether there is nothing of it.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.fault.is_none()
    }

    pub(super) fn fail(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// A piece for `access` whose pages were taken back since they were mapped.
    pub(super) fn taken(&self, access: Access) -> Option<Fault> {
        let mapped = |piece: &&Piece| piece.access == access && piece.state == State::Mapped;
        let has_ended = |piece: &&Piece| piece.source.as_ref().is_some_and(OnDemand::has_ended);
        let piece = self.pieces.iter().filter(mapped).find(has_ended)?;
        Some(Fault { at: piece.at, len: piece.len, access })
    }

    /// Whether granted pages are mapped for it.
    pub(super) fn maps_grants(&self) -> bool {
        self.pins.iter().any(|pin| matches!(pin, Pin::Grants(_)))
    }
}

impl Pin {
    fn base(&self) -> *mut u8 {
        match self {
            Self::Grants(map) => map.base(),
            Self::Frames(area) => area.base(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Grants(map) => map.len(),
            Self::Frames(area) => area.len(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.base() == other.base()
    }
}

impl OnDemand {
    /// Most pages of a call.
    fn limit(&self) -> usize {
        match self {
            Self::Grants(grants, _) => grants.limit(),
            Self::Frames(_) => usize::MAX,
        }
    }

    /// Whether it is the same device.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Grants(one, _), Self::Grants(other, _)) => Arc::ptr_eq(one, other),
            (Self::Frames(one), Self::Frames(other)) => Arc::ptr_eq(one, other),
            (Self::Grants(..), Self::Frames(_)) | (Self::Frames(_), Self::Grants(..)) => false,
        }
    }
}

impl Piece {
    fn waits(&self) -> bool {
        self.state == State::Waiting
    }

    /// The grants of its pages.
    fn refs(&self) -> impl Iterator<Item = GrantRef> + use<> {
        let (first, pages) = (grant_of(self.at), self.pages());
        let domid = self.grants().map(|(_, domid)| domid);
        domid.into_iter().flat_map(move |domid| run(domid, first, pages))
    }

    /// The frames of its pages.
    fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.at.0 / XEN_PAGE;
        first..first + self.pages() as u64
    }

    /// The device and the domain of its grants.
    fn grants(&self) -> Option<(&Arc<Grants>, u16)> {
        match &self.source {
            Some(OnDemand::Grants(grants, domid)) => Some((grants, *domid)),
            Some(OnDemand::Frames(_)) | None => None,
        }
    }

    fn pages(&self) -> usize {
        (self.at.0 % XEN_PAGE + self.len as u64).div_ceil(XEN_PAGE) as usize
    }

    /// Its place in an area whose first byte is that of its first page.
    fn inside(&self, first_page: *mut u8) -> Segment {
        Segment::new(first_page.wrapping_add((self.at.0 % XEN_PAGE) as usize), self.len)
    }
}

impl Buffers {
    /// Whether some of it has no place yet.
    pub fn is_undone(&self) -> bool {
        self.demand().is_some_and(|demand| demand.pieces.iter().any(Piece::waits))
    }

    /// Whether some of it has to be given a place, or cannot be.
    pub fn waits(&self) -> bool {
        self.demand().is_some_and(|demand| !demand.is_empty())
    }

    /// What of it cannot be reached.
    pub fn fault(&self) -> Option<Fault> {
        self.demand()?.fault()
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
