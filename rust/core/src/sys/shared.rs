//! Memory of our own that is shared with another process.
#![allow(unsafe_code)] // Shared memory is reached by raw pointers: a reference to it is undefined behaviour.
//!
//! Laws:
//!
//! * No `&` or `&mut` to the memory, ever: the other process writes to it when it likes. Bytes are
//!   copied in and out, numbers are atomics at their natural width.
//! * Every access is checked against the length, as slice indexing is, and panics like it. An
//!   offset that came from outside must be checked by the caller first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::mmap::Mapping;
use super::private_fd::PrivateFd;

/// A memfd and its mapping.
#[derive(Debug)]
pub struct SharedMemory {
    fd: PrivateFd,
    mapping: Mapping,
}

macro_rules! number {
    ($load:ident, $store:ident, $type:ty, $atomic:ty) => {
        /// Loads the number at `offset`, which must be aligned to its size.
        #[inline]
        pub fn $load(&self, offset: usize, order: Ordering) -> $type {
            let at = self.at(offset, size_of::<$type>(), align_of::<$atomic>());
            // SAFETY: `at` checked that the number lies in the mapping and is aligned; the
            // mapping lives as long as `self`; all access from this process goes through atomics
            // or copies of raw bytes, never through references.
            unsafe { <$atomic>::from_ptr(at.cast()) }.load(order)
        }

        /// Stores the number at `offset`, which must be aligned to its size.
        #[inline]
        pub fn $store(&self, offset: usize, value: $type, order: Ordering) {
            let at = self.at(offset, size_of::<$type>(), align_of::<$atomic>());
            // SAFETY: as for the load.
            unsafe { <$atomic>::from_ptr(at.cast()) }.store(value, order);
        }
    };
}

impl SharedMemory {
    /// Returns `len` bytes of zeroes that another process can be given. `name` shows in `/proc`.
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = PrivateFd::make(|| memfd_create(name, flags))?;
        ftruncate(&fd, len as u64)?;
        let mapping = Mapping::shared(fd.as_fd(), 0, len)?;
        Ok(Self { fd, mapping })
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Returns whether there is nothing; never so for a value that exists.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// Returns the address of the first byte, as a number to tell the other process.
    pub fn address(&self) -> u64 {
        self.mapping.base() as u64
    }

    /// Copies bytes out.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        let at = self.at(offset, out.len(), 1);
        // SAFETY: `at` checked that the range lies in the mapping, which lives as long as `self`;
        // `out` is a unique reference to other memory. Bytes that the other process writes
        // meanwhile may be old or new ones, and any byte is a valid `u8`.
        unsafe { at.copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, offset: usize, data: &[u8]) {
        let at = self.at(offset, data.len(), 1);
        // SAFETY: as for `read`, the other way round.
        unsafe { at.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }

    number!(load_u16, store_u16, u16, AtomicU16);
    number!(load_u32, store_u32, u32, AtomicU32);
    number!(load_u64, store_u64, u64, AtomicU64);

    /// Stores the number at `offset`, which must be aligned to its size; returns the former one.
    #[inline]
    pub fn swap_u64(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        let at = self.at(offset, size_of::<u64>(), align_of::<AtomicU64>());
        // SAFETY: as for the loads.
        unsafe { AtomicU64::from_ptr(at.cast()) }.swap(value, order)
    }

    /// Returns a pointer to `len` bytes at `offset`, aligned to `align` (a power of two).
    #[inline]
    fn at(&self, offset: usize, len: usize, align: usize) -> *mut u8 {
        let end = offset.checked_add(len).filter(|&end| end <= self.len());
        assert!(
            end.is_some() && offset & (align - 1) == 0,
            "{len} bytes at {offset:#x} are outside {:#x} bytes or not aligned to {align}",
            self.len(),
        );
        // SAFETY: the offset lies within the mapping, as just checked. The mapping itself starts
        // on a page, so the offset's alignment is the pointer's.
        unsafe { self.mapping.base().add(offset) }
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_is_in_the_file() {
        let memory = SharedMemory::new("test", 8192).unwrap();
        memory.write(5000, b"hello");
        memory.store_u32(8, 0x0102_0304, Ordering::Relaxed);
        let mut out = [0; 5];
        memory.read(5000, &mut out);
        assert_eq!(&out, b"hello");
        assert_eq!(rustix::io::pread(&memory, &mut out, 5000), Ok(5));
        assert_eq!(&out, b"hello");
        assert_eq!(memory.load_u16(8, Ordering::Relaxed), 0x0304_u16.to_le());
    }

    #[test]
    #[should_panic(expected = "outside 0x1000 bytes")]
    fn an_access_past_the_end_panics_as_a_slice_does() {
        SharedMemory::new("test", 4096).unwrap().load_u64(4096, Ordering::Relaxed);
    }

    #[test]
    #[should_panic(expected = "not aligned to 2")]
    fn an_unaligned_number_panics() {
        SharedMemory::new("test", 4096).unwrap().store_u16(1, 0, Ordering::Relaxed);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_range_that_wraps_panics() {
        SharedMemory::new("test", 4096).unwrap().read(usize::MAX, &mut [0; 2]);
    }
}
