//! The bytes of one direction of a descriptor chain, as one sequence.
#![allow(unsafe_code)] // Raw pointers into memory that is shared with the guest.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use super::segment::GuestSlice;
use crate::sys::guard::{is_lost, report_fault};
use crate::sys::io::{VECTORS, preadv, pwritev};
use crate::sys::shared_copy::copy;

/// The device-readable part of a chain, as one sequence of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Readable<'a>(Span<'a>);

impl<'a> Readable<'a> {
    pub(super) fn new(segments: &'a [GuestSlice], len: u64) -> Self {
        Self(Span { segments, len })
    }
}

/// The device-writable part of a chain, as one sequence of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Writable<'a>(Span<'a>);

impl<'a> Writable<'a> {
    pub(super) fn new(segments: &'a [GuestSlice], len: u64) -> Self {
        Self(Span { segments, len })
    }
}

#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    segments: &'a [GuestSlice],
    len: u64,
}

impl<'a> Readable<'a> {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Returns whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies from `offset` on into `out`; returns how many bytes there were.
    #[inline]
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.parts(offset, out.len() as u64) {
            let target = out[done..done + part.len()].as_mut_ptr();
            // SAFETY: the part is mapped while the `Buffers` that this span borrows hold their
            // memory; `target` has `part.len()` bytes by the slicing above. The two may overlap: a
            // Python view of guest memory can be the target.
            unsafe { copy(part.base(), target, part.len()) };
            done += part.len();
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

    /// Returns whether some of it was lost: what has been copied out of it may be zeroes that the
    /// driver did not write, and what was copied into it is nowhere.
    pub fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// Reads a byte of each page, and waits for those that are on their way.
    pub(super) fn touch(&self) {
        self.0.touch();
    }

    /// Returns the contiguous pieces of `len` bytes from `offset` on.
    pub fn parts(&self, offset: u64, len: u64) -> Parts<'a> {
        self.0.parts(offset, len)
    }
}

impl<'a> Writable<'a> {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Returns whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies `data` to `offset`; returns how many bytes there was room for.
    #[inline]
    pub fn write_at(&self, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts(offset, data.len() as u64) {
            let source = data[done..done + part.len()].as_ptr();
            // SAFETY: as in `Readable::read_at`, with the directions turned.
            unsafe { copy(source, part.base(), part.len()) };
            done += part.len();
        }
        done
    }

    /// Sets `len` bytes from `offset` on to `byte`; returns how many there were.
    pub fn fill(&self, offset: u64, len: u64, byte: u8) -> u64 {
        let mut done = 0;
        for part in self.parts(offset, len) {
            // SAFETY: the part is mapped while `self` borrows its segment.
            unsafe { ptr::write_bytes(part.base(), byte, part.len()) };
            done += part.len() as u64;
        }
        done
    }

    /// Reads `len` bytes of `fd` at `at` to `offset` on; returns the bytes read, fewer only where
    /// the file ends.
    pub fn read_from(&self, offset: u64, len: u64, fd: BorrowedFd<'_>, at: u64) -> io::Result<u64> {
        // SAFETY: the vectors are parts of segments that are mapped while `self` borrows them.
        transfer(self.parts(offset, len), at, |v, at| unsafe { preadv(fd, v, at) })
    }

    /// Returns whether some of it was lost: what has been copied out of it may be zeroes that the
    /// driver did not write, and what was copied into it is nowhere.
    pub fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// Reads a byte of each page, and waits for those that are on their way.
    pub(super) fn touch(&self) {
        self.0.touch();
    }

    /// Returns the contiguous pieces of `len` bytes from `offset` on.
    pub fn parts(&self, offset: u64, len: u64) -> Parts<'a> {
        self.0.parts(offset, len)
    }
}

impl<'a> Span<'a> {
    #[inline]
    fn parts(&self, offset: u64, len: u64) -> Parts<'a> {
        Parts { segments: self.segments, skip: offset, left: len }
    }

    fn touch(&self) {
        // SAFETY: the segments are mapped while `self` borrows them.
        self.segments.iter().for_each(|segment| unsafe { segment.touch() });
    }

    fn is_lost(&self) -> bool {
        // SAFETY: the segments are mapped while `self` borrows them.
        self.segments.iter().any(|segment| unsafe { is_lost(segment.base()) })
    }
}

/// Iterates over the contiguous pieces of a span. No piece is empty.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    segments: &'a [GuestSlice],
    skip: u64,
    left: u64,
}

impl Iterator for Parts<'_> {
    type Item = GuestSlice;

    #[inline]
    fn next(&mut self) -> Option<GuestSlice> {
        while self.left > 0 {
            let (&first, rest) = self.segments.split_first()?;
            self.segments = rest;
            if self.skip >= first.len() as u64 {
                self.skip -= first.len() as u64;
                continue;
            }
            let limit = usize::try_from(self.left).unwrap_or(usize::MAX);
            let part = first.part(self.skip as usize, limit);
            self.skip = 0;
            self.left -= part.len() as u64;
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
            *vector = libc::iovec { iov_base: part.base().cast(), iov_len: part.len() };
            wanted += part.len();
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
    /// Leaves the next `bytes` out: no more than there are.
    pub fn advance(&mut self, bytes: u64) {
        self.skip += bytes;
        self.left -= bytes;
    }
}
