//! Anonymous memory, taken from the system and given back to it page by page.
//!
//! Fresh pages read as zeroes and cost nothing before they are written to. Where there is no memory
//! the system says so: nothing here ends the process.
#![allow(unsafe_code)] // Memory is mapped and unmapped.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::raw_bytes::RawTarget;

/// A mapping of zeroes, which no other value has.
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, and to this value alone; no thread is tied to it.
unsafe impl Send for Pages {}
// SAFETY: a shared reference gives out nothing but raw bytes.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes, not 0, as zeroes.
    ///
    /// # Errors
    /// The system's: as a rule that there is no memory, or no room for addresses.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so no other mapping is touched.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes. Python code that has views of them touches them too.
    pub(crate) fn bytes(&self) -> RawTarget<'_> {
        // SAFETY: they are mapped while `self` is there, for any thread.
        unsafe { RawTarget::new(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `new` made, and nobody has an address in it any
        // more: `bytes` borrows `self`, and views are counted by their loan.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
