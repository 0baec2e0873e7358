//! Locks on whole files that belong to an open file description.
#![allow(unsafe_code)] // fcntl takes a pointer to its argument.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Who else may hold a lock on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody else may.
    Alone,
    /// Others that share may.
    Shared,
}

/// Locks the whole file of `fd` (F_OFD_SETLK), or fails at once with
/// [`io::ErrorKind::WouldBlock`] if others are in the way. The lock belongs to the open file
/// description: it goes with its last descriptor, and another descriptor of the same file that
/// this process closes does not take it along.
pub fn lock_description(fd: BorrowedFd<'_>, hold: Hold) -> io::Result<()> {
    let kind = match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Shared => libc::F_RDLCK,
    };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the argument of F_OFD_SETLK is a `flock` that the kernel only reads, and it lives
    // to the end of the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // POSIX allows either number for "somebody else holds it".
            e if e.raw_os_error() == Some(libc::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
            e => Err(e),
        },
    }
}
