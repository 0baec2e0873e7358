//! Which interpreter of the process this is.
#![allow(unsafe_code)] // The interpreter's number is asked for.

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// The number of a process's first interpreter.
const MAIN: i64 = 0;

const ANOTHER: &str = "vhost_user works in the main interpreter of a process only, where its threads \
                       call devices, and not in a subinterpreter. Serve devices from a process of \
                       their own";

/// Refuses to be loaded in any interpreter but the main one: that is where threads of the core
/// attach, whichever interpreter an object is of.
pub(crate) fn check_main(_attached: Python<'_>) -> PyResult<()> {
    // SAFETY: the caller is attached, so that there is a current interpreter.
    let current = unsafe { ffi::PyInterpreterState_Get() };
    // SAFETY: the interpreter is the caller's own, which lives on meanwhile.
    let number = unsafe { ffi::PyInterpreterState_GetID(current) };
    if number == MAIN { Ok(()) } else { Err(PyImportError::new_err(ANOTHER)) }
}
