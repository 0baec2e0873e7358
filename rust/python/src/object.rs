//! What has to be known of a Python object before it is used again.
#![allow(unsafe_code)] // The count of an object's references is read.

use pyo3::ffi;
use pyo3::prelude::*;

/// Whether the one reference that the caller has is the only one.
#[inline]
pub(crate) fn is_unshared<T>(_attached: Python<'_>, object: &Py<T>) -> bool {
    // SAFETY: `object` is alive while it is borrowed; the caller is attached; the count is only
    // read.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) == 1 }
}
