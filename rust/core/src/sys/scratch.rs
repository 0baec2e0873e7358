//! Private memory that guest memory is copied into and out of.
#![allow(unsafe_code)] // Its bytes are reached through raw pointers, as those of guest memory are.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::{self, NonNull};

/// Bytes of our own, for which the pointers that [`at`](Self::at) gives out stay valid until the
/// next [`reset`](Self::reset).
#[derive(Debug)]
pub struct Scratch {
    base: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the memory belongs to this value alone and to no thread.
unsafe impl Send for Scratch {}
// SAFETY: a shared reference gives out raw pointers and nothing else.
unsafe impl Sync for Scratch {}

impl Default for Scratch {
    fn default() -> Self {
        Self { base: NonNull::dangling(), len: 0, capacity: 0 }
    }
}

impl Scratch {
    /// Becomes `len` zero bytes, maybe elsewhere: pointers given out before are invalid. Space for
    /// more than `keep` bytes is given up as soon as it is not needed.
    pub fn reset(&mut self, len: usize, keep: usize) {
        let wanted = if self.capacity > keep { len } else { len.max(self.capacity) };
        if wanted != self.capacity {
            *self = Self::with_capacity(wanted);
        } else if self.len > 0 {
            // SAFETY: `len <= capacity` bytes from `base` on are ours.
            unsafe { ptr::write_bytes(self.base.as_ptr(), 0, self.len) };
        }
        self.len = len;
    }

    fn with_capacity(capacity: usize) -> Self {
        if capacity == 0 {
            return Self::default();
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        Self { base, len: 0, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::array::<u8>(capacity).expect("a capacity that was allocated, or is far below")
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the byte at `offset`.
    ///
    /// # Panics
    /// If it lies outside.
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "offset {offset} of {} bytes", self.len);
        self.base.as_ptr().wrapping_add(offset)
    }

    /// Returns `len` bytes from `offset` on. The pointers that were given out are not to be used
    /// while the cells are.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn cells(&mut self, offset: usize, len: usize) -> &[Cell<u8>] {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{len} bytes at {offset} of {}", self.len);
        let start = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: the bytes are inside the allocation and initialised (zeroed when it was made);
        // `Cell<u8>` has the layout of `u8`; `self` is borrowed mutably, so this is the only
        // reference to them.
        unsafe { std::slice::from_raw_parts(start.cast::<Cell<u8>>(), len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.capacity > 0 {
            // SAFETY: allocated by `with_capacity` with this layout, freed only here.
            unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_after_each_reset() {
        let mut scratch = Scratch::default();
        for len in [16, 8, 300, 0, 64] {
            scratch.reset(len, 256);
            let cells = scratch.cells(0, len);
            assert!(cells.iter().all(|cell| cell.get() == 0), "{len}");
            cells.iter().for_each(|cell| cell.set(0xff));
        }
    }

    #[test]
    fn much_space_is_given_up_when_it_is_not_needed() {
        let mut scratch = Scratch::default();
        scratch.reset(1000, 256);
        scratch.reset(10, 256);
        assert_eq!(scratch.capacity, 10);
        scratch.reset(200, 256);
        scratch.reset(1, 256);
        assert_eq!(scratch.capacity, 200);
    }

    #[test]
    #[should_panic(expected = "5 bytes at 4 of 8")]
    fn cells_outside_panic_as_a_slice_does() {
        let mut scratch = Scratch::default();
        scratch.reset(8, 8);
        scratch.cells(4, 5);
    }
}
