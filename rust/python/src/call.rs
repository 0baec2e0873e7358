//! Calls of Python code from the package's own threads.
//!
//! When the interpreter exits while such a thread is inside Python code, CPython before 3.14 ends
//! the thread with `pthread_exit` at its next attempt to get the interpreter back. That unwinds
//! its stack by force, and Rust aborts the process when the unwinding comes to a call that was
//! declared not to unwind, as all calls of PyO3 are. So the calls here are declared to unwind, and
//! hold a guard that parks the thread for ever instead: what CPython does itself from 3.14 on.
//! The process exits meanwhile, with its own exit code.
#![allow(unsafe_code)] // Calls that may unwind have to be declared here.

use std::mem;
use std::ptr;
use std::thread;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::turns;

unsafe extern "C-unwind" {
    fn PyObject_CallFunctionObjArgs(callable: *mut PyObject, ...) -> *mut PyObject;
    fn PyObject_Call(
        callable: *mut PyObject,
        args: *mut PyObject,
        kwargs: *mut PyObject,
    ) -> *mut PyObject;
}

/// Parks its thread for ever when it is dropped, which happens in a forced unwinding only.
struct Park;

impl Drop for Park {
    fn drop(&mut self) {
        loop {
            thread::park();
        }
    }
}

/// Most arguments of a callback.
const MOST: usize = 3;

/// Calls a callback, `name` to its author, with at most three positional arguments.
///
/// # Errors
/// What it raises; `TypeError` if it returns anything. That would be lost: most likely it is data
/// that the driver waits for.
#[inline]
pub(crate) fn call<'py, const N: usize>(
    py: Python<'py>,
    name: &str,
    callable: &Py<PyAny>,
    arguments: [&Bound<'py, PyAny>; N],
) -> PyResult<()> {
    let result = call_for_value(py, callable, arguments)?;
    if result.is_none() { Ok(()) } else { Err(returned(name, &result)) }
}

/// Says what to do instead of returning something.
#[cold]
fn returned(name: &str, result: &Bound<'_, PyAny>) -> PyErr {
    let advice = match name {
        _ if result.hasattr("__await__").unwrap_or(false) => "nobody awaits it: use a plain method",
        "read" => "copy the data into the view that it is handed, as in buf[:] = data",
        "on_batch" => "copy the data of a read into request.data, or call request.copy_from(data)",
        "on_queue" => "copy the answer into request.writable, and call request.complete()",
        _ => "raise OSError if it failed",
    };
    let class = result.get_type();
    let class = class.name().map_or_else(|_| "an object".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("{name} returned {class}, where it is to return None: {advice}"))
}

/// Calls a callback that returns something, with at most three positional arguments. No tuple is
/// made for them.
#[inline]
pub(crate) fn call_for_value<'py, const N: usize>(
    py: Python<'py>,
    callable: &Py<PyAny>,
    arguments: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    const { assert!(N <= MOST) };
    let mut raw = [ptr::null_mut(); MOST];
    for (slot, argument) in raw.iter_mut().zip(arguments) {
        *slot = argument.as_ptr();
    }
    let [a, b, c] = raw;
    let end = ptr::null_mut::<PyObject>();
    turns::next();
    let park = Park;
    // SAFETY: the thread is attached; all objects are alive while they are borrowed here; the
    // first null ends the arguments and there is one at the end in any case.
    let result = unsafe { PyObject_CallFunctionObjArgs(callable.as_ptr(), a, b, c, end) };
    mem::forget(park);
    // SAFETY: the result is a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, result) }
}

/// Calls `callable` with any arguments.
pub(crate) fn call_with<'py>(
    callable: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyTuple>,
    keywords: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let park = Park;
    // SAFETY: the thread is attached; all objects are alive while they are borrowed here and have
    // the types that the call wants.
    let result = unsafe { PyObject_Call(callable.as_ptr(), arguments.as_ptr(), keywords.as_ptr()) };
    mem::forget(park);
    // SAFETY: the result is a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), result) }
}
