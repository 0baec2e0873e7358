//! File descriptors that Python names by their numbers.
#![allow(unsafe_code)] // A number is taken for an open descriptor.

use std::os::fd::{BorrowedFd, RawFd};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A descriptor that Python names by its number, as `os.preadv` takes it.
///
/// # Errors
/// `ValueError` if it is negative.
pub(crate) fn descriptor(fd: RawFd) -> PyResult<BorrowedFd<'static>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is not a file descriptor")));
    }
    // SAFETY: it is not -1. Whether it is open is the caller's business, as it is with the
    // functions of Python's `os`: a call on one that is not fails with EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
