//! All of a guest's memory at one moment, and the look-up of addresses in it.
//!
//! A table never changes. A memory message makes a new one, and work in flight goes on in the
//! table that it started with: so no message ever pulls memory from under a request.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::access::Access;
use super::by_host::ByHost;
use super::fault::Unreachable;
use super::index::Index;
use super::region::{Backing, Region};
use super::segment::GuestSlice;
use super::translator::{Addressing, Translator};
use super::window::Window;
use super::xen::on_demand::OnDemand;
use crate::address::{GuestAddr, UserAddr};
use crate::sys::userfault::{Userfault, are_here};

/// All of a guest's memory at one moment.
#[derive(Debug, Default)]
pub struct Memory {
    /// Sorted by guest address, without overlap.
    regions: Box<[Arc<Region>]>,
    /// Finds the region of an address that a chain names; empty where those are translated first.
    index: Index,
    /// Sorted by user address, without those that have none.
    by_user: Box<[Arc<Region>]>,
    user_index: Index,
    /// A region that covers what no other does, if one of them brings it.
    fallback: Option<Arc<Region>>,
    /// Where granted pages are mapped in advance.
    granted: Box<[GuestSlice]>,
    /// Some of it is a domain's: rings may be told by guest addresses.
    of_domain: bool,
    addressing: Addressing,
    translator: Option<Box<Translator>>,
    /// The regions by where they are mapped here, once a dirty log has asked for that.
    by_host: OnceLock<ByHost>,
    /// Who is asked for pages that are on their way.
    userfault: Option<Arc<Userfault>>,
}

/// A range that no region, or no run of adjacent regions, covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The first address of the range.
    pub at: GuestAddr,
    /// The number of bytes of the range.
    pub len: u64,
    /// Why it cannot be reached.
    pub reason: Unreachable,
}

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Two regions share guest addresses.
    GuestOverlap(GuestAddr, GuestAddr),
    /// Two regions share front-end addresses.
    UserOverlap(UserAddr, UserAddr),
    /// No region is exactly this one.
    NoSuchRegion,
    /// With two regions memory of different domains, or reached differently, may be mapped beyond
    /// all regions.
    TwoFallbacks(GuestAddr, GuestAddr),
}

impl Memory {
    /// Returns a table of these regions, where addresses are understood as by default.
    pub fn new(regions: Vec<Arc<Region>>) -> Result<Self, TableError> {
        Self::addressed(regions, Addressing::default())
    }

    /// Returns a table of these regions.
    pub fn addressed(
        mut regions: Vec<Arc<Region>>,
        addressing: Addressing,
    ) -> Result<Self, TableError> {
        regions.sort_unstable_by_key(|r| r.guest());
        if let Some((a, b)) = overlap(&regions, |r| r.guest().0) {
            return Err(TableError::GuestOverlap(a.guest(), b.guest()));
        }
        let has_user_address = |r: &&Arc<Region>| !addressing.guest && !r.has_no_user_address();
        let mut by_user: Vec<_> = regions.iter().filter(has_user_address).map(Arc::clone).collect();
        by_user.sort_unstable_by_key(|r| r.user());
        if let Some((a, b)) = overlap(&by_user, |r| r.user().0) {
            return Err(TableError::UserOverlap(a.user(), b.user()));
        }
        let mut index = Index::new(regions.iter().map(|r| (r.guest().0, r.size())));
        let fallback = the_fallback(&regions)?;
        let granted = regions.iter().flat_map(|r| r.granted_areas()).collect();
        let of_domain = regions.iter().any(|r| r.is_xen());
        let user_index = Index::new(by_user.iter().map(|r| (r.user().0, r.size())));
        let translator = addressing
            .iotlb
            .as_ref()
            .map(|iotlb| Translator::new(iotlb, std::mem::take(&mut index)));
        let userfault = regions.iter().find_map(|r| r.userfault()).map(Arc::clone);
        let (regions, by_user) = (regions.into(), by_user.into());
        Ok(Self {
            regions,
            index,
            by_user,
            user_index,
            fallback,
            granted,
            of_domain,
            addressing,
            translator,
            by_host: OnceLock::new(),
            userfault,
        })
    }

    #[inline]
    pub(super) fn userfault(&self) -> Option<&Arc<Userfault>> {
        self.userfault.as_ref()
    }

    /// Returns how its addresses are understood.
    pub fn addressing(&self) -> &Addressing {
        &self.addressing
    }

    pub(super) fn translator(&self) -> Option<&Translator> {
        self.translator.as_deref()
    }

    /// Returns the region for every address that no other has.
    pub fn fallback(&self) -> Option<&Arc<Region>> {
        self.fallback.as_ref()
    }

    /// Returns whether chains can have buffers that are not mapped yet: some of it is a domain's,
    /// and the hypervisor is asked for it.
    #[inline]
    pub fn needs_resolving(&self) -> bool {
        self.of_domain || self.fallback.is_some()
    }

    /// Returns whether some of it is, or is to be, foreign mappings, which have no pages that the
    /// kernel could do direct I/O on.
    pub fn is_foreign(&self) -> bool {
        self.regions.iter().chain(&self.fallback).any(|region| region.is_foreign())
    }

    /// This table and one region more.
    pub fn with(&self, region: Arc<Region>) -> Result<Self, TableError> {
        let mut regions = self.regions.to_vec();
        regions.push(region);
        Self::addressed(regions, self.addressing.clone())
    }

    /// This table without the one region that has exactly these addresses and this size.
    pub fn without(
        &self,
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
    ) -> Result<(Self, Arc<Region>), TableError> {
        let mut regions = self.regions.to_vec();
        let same = |r: &Arc<Region>| r.guest() == guest && r.user() == user && r.size() == size;
        let at = regions.iter().position(same).ok_or(TableError::NoSuchRegion)?;
        let removed = regions.remove(at);
        Ok((Self::addressed(regions, self.addressing.clone())?, removed))
    }

    /// Returns the regions, by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Calls `found` for each contiguous piece of `[at, at + len)`, in order. Nothing of a range
    /// that is not wholly covered and mapped counts: on an error what was found is to be thrown
    /// away.
    #[inline]
    pub fn segments(
        &self,
        at: GuestAddr,
        len: u64,
        mut found: impl FnMut(GuestSlice),
    ) -> Result<(), OutOfMemory> {
        let mut mapped = true;
        self.backing(at, len, Access::DeviceReadable, |place| match place.backing {
            Backing::Mapped(segment) => found(segment),
            Backing::OnDemand(_) | Backing::Denied => mapped = false,
        })?;
        if mapped { Ok(()) } else { Err(OutOfMemory { at, len, reason: Unreachable::Outside }) }
    }

    /// `[at, at + len)` if it is one mapped piece and not empty, as nearly every buffer is.
    #[inline]
    pub(super) fn mapped(&self, at: GuestAddr, len: u64, access: Access) -> Option<GuestSlice> {
        let region = self.regions.get(self.index.find(at.0))?;
        region.mapped(at.0.checked_sub(region.guest().0)?, len, access)
    }

    /// Calls `found` for each piece of `[at, at + len)` with one backing, in order. On
    /// an error what was found is to be thrown away.
    #[inline]
    pub(super) fn backing<'a>(
        &'a self,
        at: GuestAddr,
        len: u64,
        access: Access,
        mut found: impl FnMut(Place<'a>),
    ) -> Result<(), OutOfMemory> {
        if let Some(translator) = self.translator() {
            return self.translated(translator, (at, len), access, found);
        }
        let outside = || OutOfMemory { at, len, reason: Unreachable::Outside };
        at.checked_add(len).ok_or_else(outside)?;
        let (mut next, mut left) = (at.0, len);
        let mut place = self.index.find(next);
        while left > 0 {
            let inside = self.regions.get(place).and_then(|region| {
                let offset = next.checked_sub(region.guest().0)?;
                let here = region.size().checked_sub(offset).filter(|&here| here > 0)?;
                Some((region, offset, here))
            });
            let Some((region, offset, here)) = inside else {
                let fallback = self.fallback_at(next).ok_or_else(outside)?;
                let done = left.min(fallback.len);
                found(Place { at: GuestAddr(next), len: done, backing: fallback.backing });
                (next, left) = (next + done, left - done);
                place = self.index.find(next);
                continue;
            };
            let backing = region.backing(offset, left.min(here), access);
            let done = match &backing {
                Backing::Mapped(segment) => segment.len() as u64,
                Backing::OnDemand(_) | Backing::Denied => left.min(here),
            };
            found(Place { at: GuestAddr(next), len: done, backing });
            (next, left) = (next + done, left - done);
            place += usize::from(done == here);
        }
        Ok(())
    }

    /// Returns what lies at an address that no region has, up to the next region.
    #[cold]
    fn fallback_at(&self, at: u64) -> Option<Place<'_>> {
        let fallback = self.fallback.as_ref()?;
        let offset = at.checked_sub(fallback.guest().0)?;
        let room = fallback.size().checked_sub(offset).filter(|&room| room > 0)?;
        let next = self.regions.iter().map(|r| r.guest().0).find(|&start| start > at);
        let len = next.map_or(room, |next| room.min(next - at));
        let backing = Backing::OnDemand(fallback.on_demand()?);
        Some(Place { at: GuestAddr(at), len, backing })
    }

    /// Pins `len` bytes at a front-end address: all in one region and aligned.
    pub fn window(&self, at: UserAddr, len: usize, align: usize) -> Option<Window> {
        self.ring_part(at, len, align, Access::DeviceWritable)
    }

    /// Pins a part of a ring, as [`window`](Self::window). Front-ends on Xen that have not mapped
    /// the guest's memory tell guest addresses instead. Pages that are mapped on demand stay
    /// mapped as long as the window is there. What lies in several pieces by its translations is
    /// mapped once more, in one piece.
    pub fn ring_part(
        &self,
        at: UserAddr,
        len: usize,
        align: usize,
        access: Access,
    ) -> Option<Window> {
        let guest = self.ring_address(at)?;
        let mut places = Vec::new();
        self.backing(guest, len as u64, access, |place| places.push(place)).ok()?;
        let [place] = &places[..] else {
            return self.translates().then(|| self.stitched(&places, len, align))?;
        };
        match &place.backing {
            Backing::Mapped(segment) => {
                Window::mapped(self.holder(*segment)?, *segment, len, align)
            }
            Backing::OnDemand(OnDemand::Grants(grants, domid)) => {
                Window::of_grants(grants, *domid, guest, len, align, access)
            }
            Backing::OnDemand(OnDemand::Frames(foreign)) => {
                Window::of_frames(foreign, guest, len, align)
            }
            Backing::Denied => None,
        }
    }

    /// Returns what stands for an address of a ring in chains: the guest's, or the I/O virtual one.
    fn ring_address(&self, at: UserAddr) -> Option<GuestAddr> {
        if self.translates() || self.addressing.guest {
            return Some(GuestAddr(at.0));
        }
        let known = self.at_user(at.0);
        let guest = known.and_then(|(region, offset)| region.guest().checked_add(offset));
        guest.or_else(|| self.of_domain.then_some(GuestAddr(at.0)))
    }

    /// Returns where the guest has a part of a ring: its addresses, and bytes, piece by piece.
    pub fn guest_places(&self, at: UserAddr, len: usize) -> Vec<(GuestAddr, u64)> {
        let mut places = Vec::new();
        let Some(guest) = self.ring_address(at) else { return places };
        let found = self.backing(guest, len as u64, Access::DeviceWritable, |place| {
            if let Backing::Mapped(segment) = place.backing
                && let Some(at) = self.by_host().guest_of(segment)
            {
                places.push((at, segment.len() as u64));
            }
        });
        if found.is_err() {
            places.clear();
        }
        places
    }

    /// Pins the pieces of a part of a ring, for who waits for their pages.
    pub fn ring_pieces(&self, at: UserAddr, len: usize, access: Access) -> Vec<Window> {
        let mut pieces = Vec::new();
        let Some(guest) = self.ring_address(at) else { return pieces };
        // What is found before an error is in no ring, and can be waited for all the same.
        let _ = self.backing(guest, len as u64, access, |place| {
            if let Backing::Mapped(segment) = place.backing
                && let Some(holder) = self.holder(segment)
            {
                pieces.extend(Window::mapped(holder, segment, segment.len(), 1));
            }
        });
        pieces
    }

    /// Maps pieces of files once more, one behind the other. While pages are on their way they come to
    /// the addresses that the front-end was told, so that all of these have to be there.
    fn stitched(&self, places: &[Place<'_>], len: usize, align: usize) -> Option<Window> {
        let piece = |place: &Place<'_>| match place.backing {
            Backing::Mapped(segment) => Some((Arc::clone(self.holder(segment)?), segment)),
            Backing::OnDemand(_) | Backing::Denied => None,
        };
        let pieces = places.iter().map(piece).collect::<Option<Vec<_>>>()?;
        let is_here = |(_, piece): &(_, GuestSlice)| are_here(piece.base(), piece.len());
        let are_here = !self.awaits_pages() || pieces.iter().all(is_here);
        are_here.then(|| Window::stitched(pieces, len, align))?
    }

    /// Returns the region that has this address of the front-end's, and the offset in it.
    pub(super) fn at_user(&self, at: u64) -> Option<(&Arc<Region>, u64)> {
        let region = self.by_user.get(self.user_index.find(at))?;
        let offset = at.checked_sub(region.user().0).filter(|&offset| offset < region.size())?;
        Some((region, offset))
    }

    /// Returns the region that has this address of the guest's, and the offset in it.
    pub(super) fn at_guest(&self, at: u64) -> Option<(&Arc<Region>, u64)> {
        let index = self.translator.as_ref().map_or(&self.index, |known| &known.by_guest);
        let region = self.regions.get(index.find(at))?;
        let offset = at.checked_sub(region.guest().0).filter(|&offset| offset < region.size())?;
        Some((region, offset))
    }

    /// Returns the region that a mapped piece was found in.
    fn holder(&self, piece: GuestSlice) -> Option<&Arc<Region>> {
        self.regions.iter().find(|region| region.has_mapped(piece))
    }

    /// Returns the regions of files by where they are mapped here.
    #[inline]
    pub(super) fn by_host(&self) -> &ByHost {
        self.by_host.get_or_init(|| ByHost::new(&self.regions))
    }

    /// Returns where granted pages are mapped in advance.
    #[inline]
    pub(super) fn granted(&self) -> &[GuestSlice] {
        &self.granted
    }
}

/// A piece of guest memory with one backing.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) at: GuestAddr,
    pub(super) len: u64,
    pub(super) backing: Backing<'a>,
}

/// Two neighbours of a sorted list that share an address, if any do.
fn overlap(sorted: &[Arc<Region>], start: impl Fn(&Region) -> u64) -> Option<(&Region, &Region)> {
    let pairs = sorted.windows(2).map(|pair| (&*pair[0], &*pair[1]));
    // The distance cannot wrap (sorted), and sizes were checked not to wrap past the end.
    pairs.into_iter().find(|(a, b)| start(b) - start(a) < a.size())
}

/// Returns the one region that these bring for all other addresses.
fn the_fallback(regions: &[Arc<Region>]) -> Result<Option<Arc<Region>>, TableError> {
    let mut bringing = regions.iter().filter_map(|region| Some((region, region.fallback()?)));
    let Some((first, fallback)) = bringing.next() else { return Ok(None) };
    match bringing.find(|(_, other)| !other.is_like(fallback)) {
        Some((second, _)) => Err(TableError::TwoFallbacks(first.guest(), second.guest())),
        None => Ok(Some(Arc::clone(fallback))),
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, len, reason } = self;
        match reason {
            Unreachable::Untranslated => {
                write!(f, "{len:#x} bytes at {at} are not all translated by the front-end")
            }
            Unreachable::Outside | Unreachable::NotGranted | Unreachable::TooManyPieces => {
                write!(f, "{len:#x} bytes at {at} are not all in guest memory")
            }
        }
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestOverlap(a, b) => {
                write!(f, "the regions at guest addresses {a} and {b} overlap")
            }
            Self::UserOverlap(a, b) => {
                write!(f, "the regions at user addresses {a} and {b} overlap")
            }
            Self::TwoFallbacks(a, b) => write!(
                f,
                "the regions at guest addresses {a} and {b} allow to map more, of different domains"
            ),
            Self::NoSuchRegion => f.write_str("no region has these addresses and this size"),
        }
    }
}
