//! The kernel's errors.

use std::io;

pub(super) fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

pub(super) fn absent() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}
