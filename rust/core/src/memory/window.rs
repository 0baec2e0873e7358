//! A part of a ring in guest memory: atomics at offsets that are checked.
#![allow(unsafe_code)] // Raw pointers into memory that is shared with the guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::access::Access;
use super::region::Region;
use super::segment::GuestSlice;
use super::xen::foreign::Foreign;
use super::xen::grant::{GrantMap, Grants, grant_of, run};
use super::xen::retry_budget::RetryBudget;
use crate::address::GuestAddr;
use crate::sys::mmap::Mapping;
use crate::xen::XEN_PAGE;

/// A fixed piece of one region that stays mapped while this value lives: a part of a ring.
#[derive(Debug)]
pub struct Window {
    place: GuestSlice,
    _holder: Holder,
}

/// What keeps a window mapped.
#[derive(Debug)]
#[expect(dead_code, reason = "held, and never looked at")]
enum Holder {
    Region(Arc<Region>),
    Grants(Arc<GrantMap>),
    Frames(Arc<Mapping>),
    Private(Mapping),
    File(Arc<Mapping>),
    Stitched(Mapping, Vec<Arc<Region>>),
}

impl Window {
    /// Returns a piece of `region`; `None` if it is not all of `len` bytes, or not aligned to
    /// `align` where it is mapped here.
    pub(super) fn mapped(
        region: &Arc<Region>,
        place: GuestSlice,
        len: usize,
        align: usize,
    ) -> Option<Self> {
        Self::new(place, len, align, Holder::Region(Arc::clone(region)))
    }

    /// Maps the granted pages of `len` bytes at `at`.
    pub(super) fn of_grants(
        grants: &Arc<Grants>,
        domid: u16,
        at: GuestAddr,
        len: usize,
        align: usize,
        access: Access,
    ) -> Option<Self> {
        let lead = (at.0 % XEN_PAGE) as usize;
        let pages = (lead + len).div_ceil(XEN_PAGE as usize);
        let refs: Vec<_> = run(domid, grant_of(at), pages).collect();
        let map = grants.map(&refs, access.protection(), &mut RetryBudget::default()).ok()?;
        let place = GuestSlice::new(map.base().wrapping_add(lead), len);
        Self::new(place, len, align, Holder::Grants(map))
    }

    /// Maps the frames of `len` bytes at `at`.
    pub(super) fn of_frames(
        foreign: &Foreign,
        at: GuestAddr,
        len: usize,
        align: usize,
    ) -> Option<Self> {
        let area = foreign.map(at, len as u64).ok()?;
        let lead = (at.0 % XEN_PAGE) as usize;
        let place = GuestSlice::new(area.base().wrapping_add(lead), len);
        Self::new(place, len, align, Holder::Frames(area))
    }

    /// Maps pieces of files once more, so that they are one. `None`: they are not whole pages but
    /// for their first and their last bytes, or cannot be mapped page by page.
    pub(super) fn stitched(
        pieces: Vec<(Arc<Region>, GuestSlice)>,
        len: usize,
        align: usize,
    ) -> Option<Self> {
        let file = |(region, piece): &(Arc<Region>, GuestSlice)| {
            let (fd, offset) = region.file_of(*piece)?;
            // A copy, as the regions are to be held as well.
            Some((fd.try_clone_to_owned().ok()?, offset, piece.len()))
        };
        let parts = pieces.iter().map(file).collect::<Option<Vec<_>>>()?;
        let (mapping, lead) = Mapping::stitched(&parts).ok()?;
        pieces.first()?.0.watch_as_well(&mapping);
        let place =
            GuestSlice::new(mapping.base().wrapping_add(lead), len.min(mapping.len() - lead));
        let regions = pieces.into_iter().map(|(region, _)| region).collect();
        Self::new(place, len, align, Holder::Stitched(mapping, regions))
    }

    /// Returns a piece of a file that is no guest memory: of a record of requests in flight, or of a
    /// dirty log.
    pub(super) fn of_file(
        mapping: &Arc<Mapping>,
        place: GuestSlice,
        len: usize,
        align: usize,
    ) -> Option<Self> {
        Self::new(place, len, align, Holder::File(Arc::clone(mapping)))
    }

    /// Returns `len` zeroes of this process's own, aligned to a page.
    pub(crate) fn private(len: usize) -> io::Result<Self> {
        let area = Mapping::private(len)?;
        Ok(Self { place: GuestSlice::new(area.base(), len), _holder: Holder::Private(area) })
    }

    fn new(place: GuestSlice, len: usize, align: usize, holder: Holder) -> Option<Self> {
        let fits = place.len() == len && (place.base() as usize).is_multiple_of(align);
        fits.then_some(Self { place, _holder: holder })
    }

    /// Reads a byte of each of its pages, and waits for those that are on their way.
    pub fn touch(&self) {
        // SAFETY: it is mapped while `self` holds its owner.
        unsafe { self.place.touch() };
    }

    /// Loads the little-endian `u16` at `offset`, an even number inside the window.
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        let place = self.at(offset, 2).cast::<u16>();
        // SAFETY: `at` checked that both bytes are inside; the window was aligned when it was
        // made and offsets are even; the region is mapped while `self` holds it; all access from
        // this process is atomic.
        u16::from_le(unsafe { AtomicU16::from_ptr(place) }.load(order))
    }

    /// Stores a little-endian `u16` at `offset`, an even number inside the window.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        #[cfg(test)]
        super::crash::store();
        let place = self.at(offset, 2).cast::<u16>();
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(place) }.store(value.to_le(), order);
    }

    /// Loads the byte at `offset`.
    #[inline]
    pub fn load_u8(&self, offset: usize, order: Ordering) -> u8 {
        let place = self.at(offset, 1);
        // SAFETY: as in `load_u16`; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(place) }.load(order)
    }

    /// Stores a byte at `offset`.
    #[inline]
    pub fn store_u8(&self, offset: usize, value: u8, order: Ordering) {
        #[cfg(test)]
        super::crash::store();
        let place = self.at(offset, 1);
        // SAFETY: as in `load_u8`.
        unsafe { AtomicU8::from_ptr(place) }.store(value, order);
    }

    /// Stores a little-endian `u64` at `offset`, a multiple of 8 in a window aligned to 8.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        #[cfg(test)]
        super::crash::store();
        let place = self.at(offset, 8).cast::<u64>();
        // SAFETY: as in `load_u16`, with 8 for 2.
        unsafe { AtomicU64::from_ptr(place) }.store(value.to_le(), order);
    }

    /// Loads the little-endian `u64` at `offset`, a multiple of 8 in a window aligned to 8.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        let place = self.at(offset, 8).cast::<u64>();
        // SAFETY: as in `load_u16`, with 8 for 2.
        u64::from_le(unsafe { AtomicU64::from_ptr(place) }.load(order))
    }

    /// Loads the little-endian `u32` at `offset`, a multiple of 4 in a window aligned to 4.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        let place = self.at(offset, 4).cast::<u32>();
        // SAFETY: as in `load_u16`, with 4 for 2.
        u32::from_le(unsafe { AtomicU32::from_ptr(place) }.load(order))
    }

    /// Stores a little-endian `u32` at `offset`, a multiple of 4 in a window aligned to 4.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        #[cfg(test)]
        super::crash::store();
        let place = self.at(offset, 4).cast::<u32>();
        // SAFETY: as in `load_u16`, with 4 for 2.
        unsafe { AtomicU32::from_ptr(place) }.store(value.to_le(), order);
    }

    /// Stores a used ring element, 8 bytes at a multiple of 4. The driver does not look at it before
    /// the index is published.
    #[inline]
    pub fn store_pair(&self, offset: usize, first: u32, second: u32) {
        #[cfg(test)]
        super::crash::store();
        let place = self.at(offset, 8).cast::<u32>();
        for (place, value) in [(place, first), (place.wrapping_add(1), second)] {
            // SAFETY: `at` checked that all 8 bytes are inside; the window was aligned when it was
            // made, to 4 at least, and so are the offsets; the region is mapped while `self` holds
            // it; all access from this process is atomic.
            unsafe { AtomicU32::from_ptr(place) }.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Sets bits of the little-endian `u64` at `offset`, a multiple of 8 in a window aligned to 8,
    /// by one atomic OR. Nothing is stored if they are all set: what has to be visible before the
    /// bits are cleared by somebody else needs a fence before the call.
    #[inline]
    pub fn set_bits(&self, offset: usize, bits: u64) {
        let (place, bits) = (self.at(offset, 8).cast::<u64>(), bits.to_le());
        // SAFETY: as in `load_u16`, with 8 for 2.
        let word = unsafe { AtomicU64::from_ptr(place) };
        if word.load(Ordering::Relaxed) & bits != bits {
            word.fetch_or(bits, Ordering::AcqRel);
        }
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        // Callers mask their indices, so this never fires; it keeps the file sound on its own.
        assert!(offset + len <= self.place.len(), "offset {offset} is outside a ring's window");
        self.place.base().wrapping_add(offset)
    }
}
