//! Locks on ranges of a file that belong to an open file description.
#![allow(unsafe_code)] // fcntl takes a pointer to its argument.

use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Who else may hold a lock on the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody else may.
    Alone,
    /// Others that share may.
    Shared,
}

/// Bytes of a file, which need not exist. A length of 0 goes to the last that there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// The first byte.
    pub start: i64,
    /// The number of bytes.
    pub length: i64,
}

/// Locks a range of the file of `fd` (F_OFD_SETLK), or fails at once with
/// [`io::ErrorKind::WouldBlock`] if others are in the way. A range that the description has locked
/// is locked the new way from then on. The lock belongs to the open file description: it goes with
/// its last descriptor, and another descriptor of the same file that this process closes does not
/// take it along.
pub fn lock_range(fd: BorrowedFd<'_>, hold: Hold, range: LockRange) -> io::Result<()> {
    let kind = match hold {
        Hold::Alone => libc::F_WRLCK,
        Hold::Shared => libc::F_RDLCK,
    };
    match call(fd, libc::F_OFD_SETLK, &mut lock(kind, range)) {
        // POSIX allows either number for "somebody else holds it".
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        done => done,
    }
}

/// Unlocks a range of the file of `fd`, whatever part of it the description has locked.
pub fn unlock_range(fd: BorrowedFd<'_>, range: LockRange) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, &mut lock(libc::F_UNLCK, range))
}

/// Returns whether another open file description holds a lock, of either kind, on a part of the
/// range.
pub fn is_locked_by_others(fd: BorrowedFd<'_>, range: LockRange) -> io::Result<bool> {
    let mut asked = lock(libc::F_WRLCK, range);
    call(fd, libc::F_OFD_GETLK, &mut asked)?;
    Ok(c_int::from(asked.l_type) != libc::F_UNLCK)
}

fn lock(kind: c_int, range: LockRange) -> libc::flock {
    libc::flock {
        l_type: kind as c_short,
        l_whence: libc::SEEK_SET as c_short,
        l_start: range.start,
        l_len: range.length,
        l_pid: 0,
    }
}

fn call(fd: BorrowedFd<'_>, command: c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the argument of these commands is a `flock` that the kernel reads and may write; it
    // lives, and is borrowed by nobody else, to the end of the call.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut *lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
