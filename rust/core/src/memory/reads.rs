//! What has to be known of guest memory before anything else can be done: descriptor tables.
#![allow(unsafe_code)] // Raw pointers into memory that is shared with the guest.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use super::access::Access;
use super::fault::Unreachable;
use super::region::Backing;
use super::segment::GuestSlice;
use super::table::{Memory, OutOfMemory};
use super::xen::bounce::{Copies, cut};
use super::xen::foreign::Foreign;
use super::xen::grant::Grants;
use super::xen::on_demand::OnDemand;
use crate::address::GuestAddr;
use crate::xen::XEN_PAGE;

/// The number of bytes of space that are kept while no read waits.
const IDLE_BYTES: usize = 64 << 10;

/// Reads of guest memory, each made once, into memory of ours. Those of mapped memory are made at
/// once; those of memory that is granted on demand wait, to be made together by one call.
#[derive(Debug, Default)]
pub struct Reads {
    /// The reads that wait, one behind the other, and then the read that is being made.
    bytes: Vec<u8>,
    waiting: usize,
    pieces: Vec<Piece>,
    /// The places of bytes that could not be had, in order.
    lost: Vec<usize>,
}

/// A part of a read that waits for one domain's grants.
#[derive(Debug)]
struct Piece {
    grants: Arc<Grants>,
    at: GuestAddr,
    domid: u16,
    bytes: Range<usize>,
}

impl Reads {
    /// Reads `len` bytes at `at`. `None`: they wait, behind the [`waiting`](Self::waiting) bytes
    /// of before.
    #[inline]
    pub fn read(
        &mut self,
        memory: &Memory,
        at: GuestAddr,
        len: usize,
    ) -> Result<Option<&[u8]>, OutOfMemory> {
        let start = self.waiting;
        self.bytes.resize(start + len, 0);
        if read_mapped(memory, at, &mut self.bytes[start..]) || self.read_pieces(memory, at)? {
            return Ok(Some(&self.bytes[start..]));
        }
        Ok(None)
    }

    /// Reads what is not one mapped piece; returns whether nothing of it waits.
    #[cold]
    fn read_pieces(&mut self, memory: &Memory, at: GuestAddr) -> Result<bool, OutOfMemory> {
        let Self { bytes, waiting, pieces, .. } = self;
        let (start, before) = (*waiting, pieces.len());
        let later = |at, (grants, domid): (&Arc<Grants>, u16), part: Range<usize>| {
            let (grants, bytes) = (Arc::clone(grants), start + part.start..start + part.end);
            pieces.push(Piece { grants, at, domid, bytes });
        };
        if let Err(error) = read(memory, at, &mut bytes[start..], later) {
            pieces.truncate(before);
            return Err(error);
        }
        if pieces.len() > before {
            *waiting = bytes.len();
        }
        Ok(pieces.len() == before)
    }

    /// Returns the number of bytes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Makes the reads that wait, in one call for each region.
    pub fn make(&mut self) {
        let Self { bytes, pieces, lost, .. } = self;
        let cells = Cell::from_mut(&mut bytes[..]).as_slice_of_cells();
        let mut copies = Copies::new();
        for Piece { grants, at, domid, bytes } in pieces {
            for copy in cut(*at, *domid, &cells[bytes.clone()], false) {
                copies.add(grants, bytes.start, copy);
            }
        }
        *lost = copies.make();
        lost.sort_unstable();
    }

    /// Returns the bytes of a read that was made; `None` if no grant allowed it.
    pub fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        let first = self.lost.partition_point(|&start| start < range.start);
        let lost = self.lost.get(first).is_some_and(|&start| start < range.end);
        if lost { None } else { self.bytes.get(range) }
    }

    /// Forgets what was read.
    pub fn clear(&mut self) {
        self.waiting = 0;
        self.pieces.clear();
        self.lost.clear();
        self.bytes.truncate(IDLE_BYTES);
        self.bytes.shrink_to(IDLE_BYTES);
    }
}

/// Copies `out.len()` bytes at `at` out of `memory` if they are one mapped piece, as nearly all are.
#[inline]
fn read_mapped(memory: &Memory, at: GuestAddr, out: &mut [u8]) -> bool {
    let place = memory.mapped(at, out.len() as u64, Access::DeviceReadable);
    // SAFETY: `memory` is borrowed and holds its regions; the place has as many bytes as `out`;
    // private memory and guest memory do not overlap.
    place.map(|from| unsafe { from.copy_out(out) }).is_some()
}

/// Copies `out.len()` bytes at `at` out of `memory`, across regions. What is granted on demand is
/// not copied: `later` gets its address, its device and domain, and its place in `out`.
fn read(
    memory: &Memory,
    at: GuestAddr,
    out: &mut [u8],
    mut later: impl FnMut(GuestAddr, (&Arc<Grants>, u16), Range<usize>),
) -> Result<(), OutOfMemory> {
    let (mut done, mut whole) = (0, true);
    memory.backing(at, out.len() as u64, Access::DeviceReadable, |place| {
        let part = done..done + place.len as usize;
        done = part.end;
        match place.backing {
            // SAFETY: as in `read_mapped`, for a part of `out`.
            Backing::Mapped(from) => unsafe { from.copy_out(&mut out[part]) },
            Backing::OnDemand(OnDemand::Grants(grants, domid)) => {
                later(place.at, (grants, *domid), part);
            }
            Backing::OnDemand(OnDemand::Frames(foreign)) => {
                whole &= read_frames(foreign, place.at, &mut out[part]);
            }
            Backing::Denied => whole = false,
        }
    })?;
    if whole {
        return Ok(());
    }
    Err(OutOfMemory { at, len: out.len() as u64, reason: Unreachable::Outside })
}

#[cold]
fn read_frames(foreign: &Foreign, at: GuestAddr, out: &mut [u8]) -> bool {
    let Ok(area) = foreign.map(at, out.len() as u64) else { return false };
    let first = area.base().wrapping_add((at.0 % XEN_PAGE) as usize);
    let from = GuestSlice::new(first, out.len());
    // SAFETY: `map` mapped all pages of `out.len()` bytes at `at`, of which `from` are those bytes,
    // and `area` lives on; private memory and guest memory do not overlap.
    unsafe { from.copy_out(out) };
    true
}
