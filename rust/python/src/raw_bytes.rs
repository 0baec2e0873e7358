//! Bytes that others may read and write at any time.
//!
//! Guest memory, the buffers of Python's objects and the private copies that views show are all of
//! that kind: another thread of Python, the guest or the kernel may change them while they are
//! copied, and a view of ours may be the source and the target of the same copy. So they never
//! stand behind a Rust reference, which promises that there is no other writer. They are named by
//! address and length, and copied as the C library's `memmove` copies: what is changed meanwhile
//! arrives in the old state or in the new.
#![allow(unsafe_code)] // Raw memory is copied.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

use crate::traits::Parts;

/// Bytes copied between two looks at whether to go on.
const STEP: usize = 1 << 20;

/// Bytes that can be read while `'a` lasts.
#[derive(Clone, Copy)]
pub(crate) struct RawSource<'a> {
    base: *const u8,
    len: usize,
    life: PhantomData<&'a ()>,
}

/// Bytes that can be read and written while `'a` lasts.
#[derive(Clone, Copy)]
pub(crate) struct RawTarget<'a> {
    base: *mut u8,
    len: usize,
    life: PhantomData<&'a ()>,
}

// SAFETY: an address and a length. What they name may be touched from any thread: whoever made the
// value vouches for it, see `new`.
unsafe impl Send for RawSource<'_> {}
// SAFETY: as above.
unsafe impl Sync for RawSource<'_> {}
// SAFETY: as above.
unsafe impl Send for RawTarget<'_> {}
// SAFETY: as above.
unsafe impl Sync for RawTarget<'_> {}

impl<'a> RawSource<'a> {
    /// Names `len` bytes at `base`.
    ///
    /// # Safety
    /// They stay readable, from any thread, while `'a` lasts.
    pub(crate) unsafe fn new(base: *const u8, len: usize) -> Self {
        Self { base, len, life: PhantomData }
    }

    /// How many bytes there are.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Some of the bytes; those past the end are left out.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        Self { base: self.base.wrapping_add(start), len: end - start, life: PhantomData }
    }

    /// Copies to the pieces of a request's memory, until either ends; returns the bytes copied.
    #[inline]
    pub(crate) fn copy_to(self, parts: Parts<'_>) -> u64 {
        self.copy_while(parts, || true)
    }

    /// As [`copy_to`](Self::copy_to), and stops when `go_on` says so, which is asked for each piece
    /// and from time to time within one.
    pub(crate) fn copy_while(self, parts: Parts<'_>, mut go_on: impl FnMut() -> bool) -> u64 {
        let mut done = 0;
        for part in parts {
            let end = self.len.min(done + part.len());
            let mut to = part.base();
            while done < end {
                if !go_on() {
                    return done as u64;
                }
                let count = (end - done).min(STEP);
                let from = self.base.wrapping_add(done);
                // SAFETY: `from` has `count` bytes, as `done + count` is at most `self.len`, and
                // they are readable by the contract of `new`. `to` has as many: it is inside the
                // part, which is mapped while `parts` borrows its request. The two may overlap.
                unsafe { ptr::copy(from, to, count) };
                done += count;
                to = to.wrapping_add(count);
            }
        }
        done as u64
    }

    /// Copies to private memory, as many bytes as both have.
    pub(crate) fn read(self, out: &mut [u8]) {
        let count = self.len.min(out.len());
        // SAFETY: both have `count` bytes; those of `self` are readable by the contract of `new`.
        // The two may not overlap, since `out` is private, and it does not matter if they do.
        unsafe { ptr::copy(self.base, out.as_mut_ptr(), count) };
    }
}

impl<'a> RawTarget<'a> {
    /// Names `len` bytes at `base`.
    ///
    /// # Safety
    /// They stay readable and writable, from any thread, while `'a` lasts.
    pub(crate) unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len, life: PhantomData }
    }

    /// How many bytes there are.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// The address of the first byte.
    pub(crate) fn base(self) -> *mut u8 {
        self.base
    }

    /// The same bytes, to be read.
    pub(crate) fn source(self) -> RawSource<'a> {
        RawSource { base: self.base, len: self.len, life: PhantomData }
    }

    /// Some of the bytes; those past the end are left out.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        Self { base: self.base.wrapping_add(start), len: end - start, life: PhantomData }
    }

    /// Copies from the pieces of a request's memory, until either ends; returns the bytes copied.
    #[inline]
    pub(crate) fn copy_from(self, parts: Parts<'_>) -> u64 {
        let mut done = 0;
        for part in parts {
            let count = part.len().min(self.len - done);
            let to = self.base.wrapping_add(done);
            // SAFETY: `to` has `count` bytes, as `done + count` is at most `self.len`, and they are
            // writable by the contract of `new`. The part is mapped while `parts` borrows its
            // request. The two may overlap.
            unsafe { ptr::copy(part.base(), to, count) };
            done += count;
        }
        done as u64
    }

    /// Copies as many bytes as both have; returns how many.
    pub(crate) fn write(self, from: RawSource<'_>) -> u64 {
        let count = self.len.min(from.len);
        // SAFETY: both have `count` bytes that may be touched, by the contracts of the two `new`.
        // They may overlap.
        unsafe { ptr::copy(from.base, self.base, count) };
        count as u64
    }

    /// Copies private bytes to `at`, as far as there is room.
    pub(crate) fn write_at(self, at: usize, from: &[u8]) {
        let part = self.part(at..at.saturating_add(from.len()));
        // SAFETY: the part has `part.len` bytes that are writable by the contract of `new`, and
        // `from` has as many.
        unsafe { ptr::copy(from.as_ptr(), part.base, part.len) };
    }

    /// Sets each byte.
    pub(crate) fn fill(self, byte: u8) {
        // SAFETY: the bytes are writable by the contract of `new`.
        unsafe { ptr::write_bytes(self.base, byte, self.len) };
    }
}
