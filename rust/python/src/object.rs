//! What has to be known of a Python object before it is used again.
//!
//! Where the interpreter has its lock, a count of 1 means that nobody else can reach the object as
//! long as the lock is held. Without the lock the count is the sum of two numbers, one for the
//! thread that made the object and one for the others, which are not read at one moment: a
//! reference that is handed from thread to thread meanwhile may be missed. So nothing is used again
//! there.
#![allow(unsafe_code)] // The count of an object's references is read.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

/// The interpreter runs one thread at a time. Set when the module is loaded, and never again: a lock
/// that comes later (an extension that needs it is loaded) does no harm.
static LOCKED: AtomicBool = AtomicBool::new(true);

/// Finds out whether the interpreter has its lock.
pub(crate) fn ask_for_lock(py: Python<'_>) -> PyResult<()> {
    let system = py.import(intern!(py, "sys"))?;
    if let Some(has_lock) = system.getattr_opt(intern!(py, "_is_gil_enabled"))? {
        LOCKED.store(has_lock.call0()?.is_truthy()?, Ordering::Relaxed);
    }
    Ok(())
}

/// Whether the one reference that the caller has is the only one, as far as that can be known.
#[inline]
pub(crate) fn is_unshared<T>(_attached: Python<'_>, object: &Py<T>) -> bool {
    if !LOCKED.load(Ordering::Relaxed) {
        return false;
    }
    // SAFETY: `object` is alive while it is borrowed; the caller is attached; the count is only
    // read.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) == 1 }
}
