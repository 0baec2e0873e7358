//! Vectored file I/O on memory that may not be referenced.
#![allow(unsafe_code)] // preadv and pwritev take raw pointers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most vectors passed in one system call. The kernel takes 1024; 64 keep the array on the
/// stack, and a longer list goes in several calls.
pub const VECTORS: usize = 64;

/// Reads from `fd` at `offset` into `vectors`; returns the bytes read, 0 at the end of the file.
///
/// # Safety
/// Each vector must describe memory that stays mapped during the call. The kernel checks the
/// access itself: memory that has lost its file fails with EFAULT.
pub unsafe fn preadv(
    fd: BorrowedFd<'_>,
    vectors: &[libc::iovec],
    offset: u64,
) -> io::Result<usize> {
    let count = vectors.len() as libc::c_int;
    // SAFETY: the pointer and count describe the slice; its targets are the caller's promise.
    retry(|| unsafe { libc::preadv(fd.as_raw_fd(), vectors.as_ptr(), count, file_offset(offset)) })
}

/// Writes `vectors` to `fd` at `offset`; returns the bytes written. `durable`: the data is on
/// stable storage when the call returns (RWF_DSYNC).
///
/// # Safety
/// The same as for [`preadv`].
pub unsafe fn pwritev(
    fd: BorrowedFd<'_>,
    vectors: &[libc::iovec],
    offset: u64,
    durable: bool,
) -> io::Result<usize> {
    let count = vectors.len() as libc::c_int;
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    let (fd, at) = (fd.as_raw_fd(), file_offset(offset));
    // SAFETY: the pointer and count describe the slice; its targets are the caller's promise.
    retry(|| unsafe { libc::pwritev2(fd, vectors.as_ptr(), count, at, flags) })
}

fn file_offset(offset: u64) -> libc::off_t {
    // An offset past i64 becomes i64::MAX, which the kernel refuses: never a wrong place.
    libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX)
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
