//! Access to guest memory: bounds-checked copies and atomics, never a reference.
//!
//! The other end may change every byte at any time. So nothing here hands out `&[u8]`: a value is
//! copied once into private memory and the copy is what anybody looks at.
//!
//! Two owners keep what they point to mapped: a [`Window`] holds its region (rings), and
//! [`Buffers`] hold the memory table that their segments were looked up in (descriptor chains).
#![allow(unsafe_code)] // Raw pointers into memory that is shared with the guest.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::demand::{Demand, Fault};
use super::foreign::Foreign;
use super::grant::{GrantMap, Grants, run};
use super::patience::Patience;
use super::region::{OnDemand, Reach, grant_of};
use super::{Memory, OutOfMemory, Region};
use crate::address::GuestAddr;
use crate::sys::guard::{is_lost, report_fault};
use crate::sys::io::{VECTORS, preadv, pwritev};
use crate::sys::mmap::{Mapping, Protection};
use crate::xen::XEN_PAGE;

/// A contiguous piece of mapped guest memory. It is a bare place: whoever holds it must also
/// hold what keeps it mapped. Laid out as the system's `iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segment {
    base: *mut u8,
    len: usize,
}

// SAFETY: a segment is an address and a length; it is only dereferenced by the owners in this
// file, which keep the memory mapped wherever they are sent.
unsafe impl Send for Segment {}
// SAFETY: as above: shared guest memory has no owner thread.
unsafe impl Sync for Segment {}

impl Segment {
    /// No byte anywhere.
    pub(super) const EMPTY: Self = Self { base: ptr::null_mut(), len: 0 };

    pub(super) fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn part(self, skip: usize, len: usize) -> Self {
        Self { base: self.base.wrapping_add(skip), len: len.min(self.len - skip) }
    }
}

/// A fixed piece of one region that stays mapped while this value lives: a part of a ring.
#[derive(Debug)]
pub struct Window {
    place: Segment,
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
}

impl Window {
    /// A piece of `region`; `None` if it is not all of `len` bytes, or not aligned to `align`
    /// where it is mapped here.
    pub(super) fn mapped(
        region: &Arc<Region>,
        place: Segment,
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
        let map = grants.map(&refs, access.protection(), &mut Patience::default()).ok()?;
        let place = Segment::new(map.base().wrapping_add(lead), len);
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
        let place = Segment::new(area.base().wrapping_add(lead), len);
        Self::new(place, len, align, Holder::Frames(area))
    }

    /// `len` zeroes of this process's own, aligned to a page.
    pub(crate) fn private(len: usize) -> io::Result<Self> {
        let area = Mapping::private(len)?;
        Ok(Self { place: Segment::new(area.base(), len), _holder: Holder::Private(area) })
    }

    fn new(place: Segment, len: usize, align: usize, holder: Holder) -> Option<Self> {
        let fits = place.len == len && (place.base as usize).is_multiple_of(align);
        fits.then_some(Self { place, _holder: holder })
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
        let place = self.at(offset, 2).cast::<u16>();
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(place) }.store(value.to_le(), order);
    }

    /// Loads the little-endian `u64` at `offset`, a multiple of 8 in a window aligned to 8.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        let place = self.at(offset, 8).cast::<u64>();
        // SAFETY: as in `load_u16`, with 8 for 2.
        u64::from_le(unsafe { AtomicU64::from_ptr(place) }.load(Ordering::Relaxed))
    }

    /// Stores a used ring element, 8 bytes at a multiple of 4.
    #[inline]
    pub fn store_pair(&self, offset: usize, first: u32, second: u32) {
        let place = self.at(offset, 8).cast::<u64>();
        let value = u64::from(first.to_le()) | u64::from(second.to_le()) << 32;
        let value = if cfg!(target_endian = "little") { value } else { value.rotate_left(32) };
        // SAFETY: `at` checked that the 8 bytes are inside and they stay mapped while `self`
        // lives; the store is unaligned on purpose, and the driver does not look at the element
        // before the index is published.
        unsafe { ptr::write_unaligned(place, value) };
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        // Callers mask their indices, so this never fires; it keeps the file sound on its own.
        assert!(offset + len <= self.place.len, "offset {offset} is outside a ring's window");
        self.place.base.wrapping_add(offset)
    }
}

/// Who may write a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The driver wrote it, the device reads it.
    DeviceReadable,
    /// The device writes it.
    DeviceWritable,
}

impl Access {
    /// What a mapping for it must allow.
    pub(super) fn protection(self) -> Protection {
        match self {
            Self::DeviceReadable => Protection::Read,
            Self::DeviceWritable => Protection::ReadWrite,
        }
    }
}

/// The buffers of one descriptor chain, with the memory that they lie in. Reused from chain to
/// chain, so that a chain costs no allocation.
#[derive(Debug, Default)]
pub struct Buffers {
    memory: Option<Arc<Memory>>,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: u64,
    writable_len: u64,
    /// What of the chain is not mapped; made when there first is such a thing. It holds what is
    /// mapped for the segments.
    demand: Option<Box<Demand>>,
}

impl Buffers {
    /// Forgets the former chain and starts one in `memory`.
    #[inline]
    pub fn begin(&mut self, memory: &Arc<Memory>) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
        if let Some(demand) = &mut self.demand {
            demand.clear();
        }
        // The same table as last time is the rule: no reference is counted then.
        if !self.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    /// Adds a descriptor's buffer, in as many segments as it crosses regions.
    #[inline]
    pub fn add(&mut self, at: GuestAddr, len: u32, access: Access) -> Result<(), OutOfMemory> {
        let len = u64::from(len);
        let memory = self.memory.as_ref().ok_or(OutOfMemory { at, len })?;
        let (list, total) = match access {
            Access::DeviceReadable => (&mut self.readable, &mut self.readable_len),
            Access::DeviceWritable => (&mut self.writable, &mut self.writable_len),
        };
        match memory.mapped(at, len, access) {
            Some(segment) => list.push(segment),
            None => add_pieces(memory, list, &mut self.demand, (at, len), access)?,
        }
        *total += len;
        Ok(())
    }

    /// Gives back what is mapped for this chain alone; its segments are gone.
    pub fn unpin(&mut self) {
        if self.demand.as_ref().is_some_and(|demand| !demand.is_empty()) {
            self.forget();
        }
    }

    /// Whether some of it lies in mappings of granted pages, made for it or in advance.
    #[inline]
    pub fn maps_grants(&self) -> bool {
        let granted = self.memory.as_ref().map_or(&[][..], |memory| memory.granted());
        let inside = |area: &Segment, place: &Segment| {
            (place.base as usize).wrapping_sub(area.base as usize) < area.len
        };
        self.demand.as_ref().is_some_and(|demand| demand.maps_grants())
            || granted.iter().any(|area| {
                self.readable.iter().chain(&self.writable).any(|place| inside(area, place))
            })
    }

    /// Whether some of it was lost: what has been copied out of it may be zeroes that the driver
    /// did not write, and what was copied into it is nowhere.
    pub fn is_lost(&self) -> bool {
        // SAFETY: the segments are mapped as long as `self` has them.
        let lost = |segment: &Segment| unsafe { is_lost(segment.base) };
        self.readable.iter().chain(&self.writable).any(lost)
    }

    /// Whether some of it may be a foreign mapping.
    pub fn is_foreign(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_foreign())
    }

    pub(super) fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }

    pub(super) fn demand(&self) -> Option<&Demand> {
        self.demand.as_deref()
    }

    pub(super) fn demand_mut(&mut self) -> Option<&mut Demand> {
        self.demand.as_deref_mut()
    }

    /// Puts a segment in the place of one that was empty. What it points to is held by `demand`.
    pub(super) fn put(&mut self, access: Access, number: usize, segment: Segment) {
        let list = match access {
            Access::DeviceReadable => &mut self.readable,
            Access::DeviceWritable => &mut self.writable,
        };
        if let Some(place) = list.get_mut(number) {
            *place = segment;
        }
    }

    /// Nothing is known of the chain's buffers: its descriptors cannot be read.
    #[cold]
    pub fn fail(&mut self, at: GuestAddr, len: usize) {
        self.forget();
        let fault = Fault { at, len, access: Access::DeviceReadable };
        self.demand.get_or_insert_default().fail(fault);
    }

    /// Says that some of it cannot be reached. What it has of places stays.
    pub(super) fn fail_with(&mut self, fault: Fault) {
        self.demand.get_or_insert_default().fail(fault);
    }

    fn forget(&mut self) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
        if let Some(demand) = &mut self.demand {
            demand.clear();
        }
    }

    /// Lets go of the memory unless it is this.
    #[inline]
    pub fn hold_only(&mut self, memory: &Arc<Memory>) {
        if self.demand.is_some() {
            self.forget();
        }
        if !self.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, memory)) {
            self.release();
        }
    }

    /// Lets go of the memory: an idle value must not keep a region mapped.
    pub fn release(&mut self) {
        self.forget();
        self.memory = None;
    }

    /// What the driver wrote.
    #[inline]
    pub fn readable(&self) -> Readable<'_> {
        Readable(Span { segments: &self.readable, len: self.readable_len })
    }

    /// What the device may write.
    #[inline]
    pub fn writable(&self) -> Writable<'_> {
        Writable(Span { segments: &self.writable, len: self.writable_len })
    }
}

/// Adds a buffer that is not one mapped piece.
#[inline(never)]
fn add_pieces(
    memory: &Memory,
    list: &mut Vec<Segment>,
    demand: &mut Option<Box<Demand>>,
    (at, len): (GuestAddr, u64),
    access: Access,
) -> Result<(), OutOfMemory> {
    memory.reach(at, len, access, |place| {
        let how = match place.reach {
            Reach::Mapped(segment) => return list.push(segment),
            Reach::OnDemand(how) => Some(how),
            Reach::Denied => None,
        };
        demand.get_or_insert_default().add(list, (place.at, place.len), how, access);
    })
}

/// The device-readable part of a chain, as one sequence of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Readable<'a>(Span<'a>);

/// The device-writable part of a chain, as one sequence of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Writable<'a>(Span<'a>);

#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    segments: &'a [Segment],
    len: u64,
}

impl<'a> Readable<'a> {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies from `offset` on into `out`; returns how many bytes there were.
    #[inline]
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.parts(offset, out.len() as u64) {
            let target = out[done..done + part.len].as_mut_ptr();
            // SAFETY: the part is mapped while the `Buffers` that this span borrows hold their
            // memory; `target` has `part.len` bytes by the slicing above. The two may overlap: a
            // Python view of guest memory can be the target.
            unsafe { ptr::copy(part.base, target, part.len) };
            done += part.len;
        }
        done
    }

    /// Writes `len` bytes from `offset` on to `fd` at `at`; returns the bytes written, fewer only
    /// where the file takes no more. `durable`: on stable storage when this returns.
    pub fn write_to(
        &self,
        offset: u64,
        len: u64,
        fd: BorrowedFd<'_>,
        at: u64,
        durable: bool,
    ) -> io::Result<u64> {
        // SAFETY: the vectors are parts of segments that are mapped while `self` borrows them.
        transfer(self.parts(offset, len), at, |v, at| unsafe { pwritev(fd, v, at, durable) })
    }

    /// The contiguous pieces of `len` bytes from `offset` on.
    pub fn parts(&self, offset: u64, len: u64) -> Parts<'a> {
        self.0.parts(offset, len)
    }
}

impl<'a> Writable<'a> {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies `data` to `offset`; returns how many bytes there was room for.
    #[inline]
    pub fn write_at(&self, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts(offset, data.len() as u64) {
            let source = data[done..done + part.len].as_ptr();
            // SAFETY: as in `Readable::read_at`, with the directions turned.
            unsafe { ptr::copy(source, part.base, part.len) };
            done += part.len;
        }
        done
    }

    /// Sets `len` bytes from `offset` on to `byte`; returns how many there were.
    pub fn fill(&self, offset: u64, len: u64, byte: u8) -> u64 {
        let mut done = 0;
        for part in self.parts(offset, len) {
            // SAFETY: the part is mapped while `self` borrows its segment.
            unsafe { ptr::write_bytes(part.base, byte, part.len) };
            done += part.len as u64;
        }
        done
    }

    /// Reads `len` bytes of `fd` at `at` to `offset` on; returns the bytes read, fewer only where
    /// the file ends.
    pub fn read_from(&self, offset: u64, len: u64, fd: BorrowedFd<'_>, at: u64) -> io::Result<u64> {
        // SAFETY: the vectors are parts of segments that are mapped while `self` borrows them.
        transfer(self.parts(offset, len), at, |v, at| unsafe { preadv(fd, v, at) })
    }

    /// The contiguous pieces of `len` bytes from `offset` on.
    pub fn parts(&self, offset: u64, len: u64) -> Parts<'a> {
        self.0.parts(offset, len)
    }
}

impl<'a> Span<'a> {
    #[inline]
    fn parts(&self, offset: u64, len: u64) -> Parts<'a> {
        Parts { segments: self.segments, skip: offset, left: len }
    }
}

/// Iterates over the contiguous pieces of a span. No piece is empty.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    segments: &'a [Segment],
    skip: u64,
    left: u64,
}

impl Iterator for Parts<'_> {
    type Item = Segment;

    #[inline]
    fn next(&mut self) -> Option<Segment> {
        while self.left > 0 {
            let (&first, rest) = self.segments.split_first()?;
            self.segments = rest;
            if self.skip >= first.len as u64 {
                self.skip -= first.len as u64;
                continue;
            }
            let limit = usize::try_from(self.left).unwrap_or(usize::MAX);
            let part = first.part(self.skip as usize, limit);
            self.skip = 0;
            self.left -= part.len as u64;
            return Some(part);
        }
        None
    }
}

/// Moves all parts with as few calls as possible, going on after short transfers.
fn transfer(
    mut parts: Parts<'_>,
    mut at: u64,
    mut call: impl FnMut(&[libc::iovec], u64) -> io::Result<usize>,
) -> io::Result<u64> {
    let mut total = 0;
    loop {
        let ahead = parts.clone();
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; VECTORS];
        let (mut count, mut wanted) = (0, 0);
        for (vector, part) in vectors.iter_mut().zip(&mut parts) {
            *vector = libc::iovec { iov_base: part.base.cast(), iov_len: part.len };
            wanted += part.len;
            count += 1;
        }
        if count == 0 {
            return Ok(total);
        }
        let moved = call(&vectors[..count], at).inspect_err(|error| {
            if error.raw_os_error() == Some(libc::EFAULT) {
                // SAFETY: the parts are of a span, whose owner keeps them mapped.
                unsafe { report_fault(vectors[0].iov_base.cast()) };
            }
        })?;
        if moved == 0 {
            return Ok(total);
        }
        total += moved as u64;
        at += moved as u64;
        if moved < wanted {
            parts = ahead;
            parts.advance(moved as u64);
        }
    }
}

impl Parts<'_> {
    fn advance(&mut self, bytes: u64) {
        self.skip += bytes;
        self.left -= bytes;
    }
}

/// Copies `out.len()` bytes at `at` out of `memory` if they are one mapped piece, as nearly all are.
#[inline]
pub(super) fn read_mapped(memory: &Memory, at: GuestAddr, out: &mut [u8]) -> bool {
    let place = memory.mapped(at, out.len() as u64, Access::DeviceReadable);
    // SAFETY: `memory` is borrowed and holds its regions; the place has as many bytes as `out`;
    // private memory and guest memory do not overlap.
    place.map(|from| unsafe { copy_out(from, out) }).is_some()
}

/// Copies `out.len()` bytes at `at` out of `memory`, across regions. What is granted on demand is
/// not copied: `later` gets its address, its device and domain, and its place in `out`.
pub(super) fn read(
    memory: &Memory,
    at: GuestAddr,
    out: &mut [u8],
    mut later: impl FnMut(GuestAddr, (&Arc<Grants>, u16), Range<usize>),
) -> Result<(), OutOfMemory> {
    let (mut done, mut whole) = (0, true);
    memory.reach(at, out.len() as u64, Access::DeviceReadable, |place| {
        let part = done..done + place.len as usize;
        done = part.end;
        match place.reach {
            // SAFETY: as in `read_mapped`, for a part of `out`.
            Reach::Mapped(from) => unsafe { copy_out(from, &mut out[part]) },
            Reach::OnDemand(OnDemand::Grants(grants, domid)) => {
                later(place.at, (grants, *domid), part);
            }
            Reach::OnDemand(OnDemand::Frames(foreign)) => {
                whole &= read_frames(foreign, place.at, &mut out[part]);
            }
            Reach::Denied => whole = false,
        }
    })?;
    if whole { Ok(()) } else { Err(OutOfMemory { at, len: out.len() as u64 }) }
}

/// # Safety
/// `from` is mapped and does not overlap `out`.
#[inline]
unsafe fn copy_out(from: Segment, out: &mut [u8]) {
    assert_eq!(from.len, out.len(), "a place is as long as what it is read into");
    // SAFETY: `from` is mapped, by the caller's word, for the length of `out`, checked above; the
    // two do not overlap, by the caller's word.
    unsafe { ptr::copy_nonoverlapping(from.base, out.as_mut_ptr(), out.len()) };
}

#[cold]
fn read_frames(foreign: &Foreign, at: GuestAddr, out: &mut [u8]) -> bool {
    let Ok(area) = foreign.map(at, out.len() as u64) else { return false };
    let from = area.base().wrapping_add((at.0 % XEN_PAGE) as usize);
    // SAFETY: `map` mapped all pages of `out.len()` bytes at `at`, of which `from` is the first,
    // and `area` lives on; private memory and guest memory do not overlap.
    unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
    true
}
