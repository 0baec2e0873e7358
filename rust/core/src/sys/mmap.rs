//! Shared mappings of a front-end's memory.
#![allow(unsafe_code)] // mmap, munmap and madvise change the address space.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// A mapping that unmaps itself. Its memory is shared with processes that we do not trust:
/// nothing here hands out a reference to it.
#[derive(Debug)]
pub struct Mapping {
    base: *mut c_void,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; the pointer is only handed out as a
// raw pointer and unmapped once, by the owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; `sever` replaces the pages atomically in the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, a multiple of the page size, readable and
    /// writable, left out of core dumps and of forked children.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a null hint lets the kernel choose a free range, so no memory in use changes.
        let base = unsafe { mm::mmap(ptr::null_mut(), len, prot, flags, fd, offset) }?;
        let mapping = Self { base, len };
        mapping.advise(Advice::LinuxDontDump);
        mapping.advise(Advice::LinuxDontFork);
        Ok(mapping)
    }

    /// The first byte. Valid for [`len`](Self::len) bytes while this value lives.
    pub fn base(&self) -> *mut u8 {
        self.base.cast()
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never so for a value that exists.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Replaces the pages by private zeroes: later accesses touch nothing of the front-end's and
    /// cannot fault. The address range stays taken until this value is dropped.
    pub fn sever(&self) -> io::Result<()> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is exactly the one that this value owns; nobody holds a reference
        // into it, only raw pointers whose users expect the contents to change at any time.
        unsafe { mm::mmap_anonymous(self.base, self.len, prot, flags) }?;
        Ok(())
    }

    fn advise(&self, advice: Advice) {
        // SAFETY: the range is our own mapping, and neither piece of advice changes its contents
        // in this process. A kernel that does not know the advice leaves things as they were.
        let _ = unsafe { mm::madvise(self.base, self.len, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `shared`, is unmapped only here, and every user of the
        // raw pointer holds the owner of this value.
        let _ = unsafe { mm::munmap(self.base, self.len) };
    }
}
