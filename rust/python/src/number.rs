//! Numbers among a method's arguments: one that is out of range is a `ValueError` that names it.

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// `max` of `Queue.batch`.
pub(crate) fn max(value: &Bound<'_, PyAny>) -> PyResult<usize> {
    in_range(value, "max is a number of requests")
}

/// `max_buffers` of `Queue.send`.
pub(crate) fn max_buffers(value: &Bound<'_, PyAny>) -> PyResult<u16> {
    in_range(value, "max_buffers is 1 to 65535")
}

/// `count_at` of `Queue.send`.
pub(crate) fn count_at(value: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    in_range(value, "count_at is an offset into the data")
}

/// `written` of `Request.complete`.
pub(crate) fn written(value: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    in_range(value, "written is a number of bytes")
}

/// The number, or an error that says `what` it is.
fn in_range<'py, T>(value: &Bound<'py, PyAny>, what: &str) -> PyResult<T>
where
    T: FromPyObjectOwned<'py, Error = PyErr>,
{
    value.extract::<T>().map_err(|error| {
        if !error.is_instance_of::<PyOverflowError>(value.py()) {
            return error;
        }
        PyValueError::new_err(format!("{what}, not {value}"))
    })
}
