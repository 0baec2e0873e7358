//! What has to be known of guest memory before anything else can be done: descriptor tables.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use super::copy::{Copies, cut};
use crate::address::GuestAddr;
use crate::memory::grant::Grants;
use crate::memory::{Memory, OutOfMemory, view};

/// Bytes of space that are kept when no read waits.
const IDLE_BYTES: usize = 64 << 10;

/// Reads of guest memory, each made once, into memory of ours. Those of mapped memory are made at
/// once; those of memory that is granted on demand wait, to be made together by one call.
#[derive(Debug, Default)]
pub struct Reads {
    /// First what waits, one read behind the other; then the read that is being made.
    bytes: Vec<u8>,
    waiting: usize,
    pieces: Vec<Piece>,
    /// Where bytes that could not be had begin, in order.
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
        if view::read_mapped(memory, at, &mut self.bytes[start..])
            || self.read_pieces(memory, at)?
        {
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
        if let Err(error) = view::read(memory, at, &mut bytes[start..], later) {
            pieces.truncate(before);
            return Err(error);
        }
        if pieces.len() > before {
            *waiting = bytes.len();
        }
        Ok(pieces.len() == before)
    }

    /// Bytes that wait.
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

    /// Bytes of a read that was made; `None` if no grant allowed it.
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
