#![allow(unsafe_code)] // getsockopt(SO_PEERCRED): rustix gives the pid a type that cannot be 0.
//! Who is at the other end of a Unix socket.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns the process at the other end, as it was when the sockets were connected. `None` if the
/// system does not say: no Unix socket, or a peer from a PID namespace that is not visible here
/// (the kernel then reports 0).
pub fn peer_pid(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut credentials = MaybeUninit::<libc::ucred>::uninit();
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` and `len` are live, writable locals and `len` holds the size of
    // `credentials`, so the kernel writes within it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if result != 0 || len as usize != size_of::<libc::ucred>() {
        return None;
    }
    // SAFETY: the call succeeded and wrote all of the structure, as `len` says; every bit
    // pattern is a valid `ucred`.
    let credentials = unsafe { credentials.assume_init() };
    u32::try_from(credentials.pid).ok().filter(|&pid| pid != 0)
}
