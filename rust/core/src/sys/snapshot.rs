//! What is kept of a mapping whose pages go, and what comes in the place of the rest.
#![allow(unsafe_code)] // Reads a mapping by system calls on raw pointers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

use super::io::pwritev;

/// A piece of memory: its first byte, and how many there are.
pub type Place = (*mut u8, usize);

/// Bytes that are kept of one mapping. Requests in flight have a tenth of it where nobody means
/// harm; a guest that has all of its memory in flight does not get it copied.
pub(super) const MOST: usize = 256 << 20;

/// Bytes that are copied at a time.
const CHUNK: usize = 64 << 10;

/// Returns a file of `len` bytes: at the place of each byte of a mapping that starts at `base` what
/// it holds, if it is `needed`, and else zero. Only what is needed takes memory.
///
/// # Errors
/// Those of the system; EFAULT where the mapping cannot be read; EFBIG if too much is needed.
///
/// # Safety
/// `len` bytes from `base` on are mapped, and stay it.
pub(super) unsafe fn copy(base: *mut u8, len: usize, needed: &[Place]) -> io::Result<OwnedFd> {
    let parts = parts(base, len, needed)?;
    let file = memfd_create("kept guest memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len as u64)?;
    for (mut at, len) in parts {
        let end = at + len;
        while at < end {
            let from = base.wrapping_add(at);
            let vector = libc::iovec { iov_base: from.cast(), iov_len: end - at };
            // SAFETY: the vector lies in the mapping, see `part`, which stays, by the caller's
            // word.
            match unsafe { pwritev(file.as_fd(), &[vector], at as u64, false) }? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                done => at += done,
            }
        }
    }
    Ok(file)
}

/// As [`copy`], of a mapping of `file` from `offset` on: what is needed is read from the file, whose
/// missing pages are zeroes and stay missing. Nothing of the mapping is touched.
///
/// # Errors
/// Those of the system; EFBIG if too much is needed.
pub(super) fn copy_of_file(
    file: BorrowedFd<'_>,
    offset: u64,
    base: *mut u8,
    len: usize,
    needed: &[Place],
) -> io::Result<OwnedFd> {
    let parts = parts(base, len, needed)?;
    let kept = memfd_create("kept guest memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&kept, len as u64)?;
    let mut buffer = vec![0; CHUNK];
    for (mut at, len) in parts {
        let end = at + len;
        while at < end {
            let chunk = &mut buffer[..CHUNK.min(end - at)];
            match pread(file, &mut *chunk, offset + at as u64)? {
                // The file was cut: what follows is zeroes.
                0 => break,
                read => {
                    pwrite(&kept, &chunk[..read], at as u64)?;
                    at += read;
                }
            }
        }
    }
    Ok(kept)
}

/// Returns where in a mapping of `len` bytes at `base` the needed places lie.
fn parts(base: *mut u8, len: usize, needed: &[Place]) -> io::Result<Vec<(usize, usize)>> {
    let parts: Vec<_> = needed.iter().filter_map(|&place| part(base, len, place)).collect();
    if parts.iter().map(|(_, len)| len).sum::<usize>() > MOST {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(parts)
}

/// Returns where in a mapping of `len` bytes at `base` a place lies, and how many bytes of it.
fn part(base: *mut u8, len: usize, (start, bytes): Place) -> Option<(usize, usize)> {
    let (base, start) = (base.addr(), start.addr());
    let first = start.max(base);
    let end = start.checked_add(bytes)?.min(base + len);
    (first < end).then(|| (first - base, end - first))
}

/// Returns a file without a byte. System calls on a mapping of it fail with EFAULT, and an access
/// to it is answered as one to a file that was cut.
pub(super) fn nothing() -> io::Result<BorrowedFd<'static>> {
    static FILE: OnceLock<OwnedFd> = OnceLock::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = FILE.get() {
        return Ok(file.as_fd());
    }
    let file = memfd_create("no guest memory", MemfdFlags::CLOEXEC)?;
    Ok(FILE.get_or_init(|| file).as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_as_far_as_it_lies_in_the_mapping() {
        let at = std::ptr::without_provenance_mut::<u8>;
        let part = |start: usize, bytes| part(at(0x4000), 0x2000, (at(start), bytes));
        assert_eq!(part(0x4000, 0x2000), Some((0, 0x2000)));
        assert_eq!(part(0x4010, 1), Some((0x10, 1)));
        assert_eq!(part(0x3fff, 2), Some((0, 1)));
        assert_eq!(part(0x5fff, 9), Some((0x1fff, 1)));
        assert_eq!(part(0x1000, 0x10000), Some((0, 0x2000)));
        assert_eq!(part(0x3000, 0x1000), None);
        assert_eq!(part(0x6000, 1), None);
        assert_eq!(part(0x5000, 0), None);
        assert_eq!(part(0x5000, usize::MAX), None);
    }
}
