//! A piece of guest memory.
//!
//! The other end may change every byte at any time. So nobody is handed a `&[u8]`: a value is
//! copied once into private memory, and the copy is what anybody looks at.
#![allow(unsafe_code)] // Raw pointers into memory that is shared with the guest.

use std::ptr;

use crate::sys::shared_copy::copy;

/// A contiguous piece of mapped guest memory. It is a bare place: whoever holds it must also
/// hold what keeps it mapped. It is laid out as the system's `iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GuestSlice {
    base: *mut u8,
    len: usize,
}

// SAFETY: a segment is an address and a length; it is only dereferenced by the owners in this
// folder, which keep the memory mapped wherever they are sent.
unsafe impl Send for GuestSlice {}
// SAFETY: as above: shared guest memory has no owner thread.
unsafe impl Sync for GuestSlice {}

impl GuestSlice {
    /// A slice without a byte.
    pub(super) const EMPTY: Self = Self { base: ptr::null_mut(), len: 0 };

    pub(super) fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// Returns the address of the first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn part(self, skip: usize, len: usize) -> Self {
        Self { base: self.base.wrapping_add(skip), len: len.min(self.len - skip) }
    }

    /// Reads a byte of each of its pages. Where some are still on their way this waits for them.
    ///
    /// # Safety
    /// It is mapped.
    pub(super) unsafe fn touch(self) {
        let page = rustix::param::page_size();
        let mut at = 0;
        while at < self.len {
            let place = self.base.wrapping_add(at);
            // SAFETY: `at` is inside of what is mapped, by the caller's word; a byte is aligned.
            unsafe { place.read_volatile() };
            at += page - place.addr() % page;
        }
    }

    /// Copies all of it out, each byte once: what is looked at is the copy.
    ///
    /// # Safety
    /// It is mapped, and does not overlap `out`.
    ///
    /// # Panics
    /// `out` is not as long.
    #[inline]
    pub(super) unsafe fn copy_out(self, out: &mut [u8]) {
        assert_eq!(self.len, out.len(), "a place is as long as what it is read into");
        // SAFETY: it is mapped, by the caller's word, for the length of `out`, checked above; the
        // two do not overlap, by the caller's word.
        unsafe { copy(self.base, out.as_mut_ptr(), out.len()) };
    }
}
