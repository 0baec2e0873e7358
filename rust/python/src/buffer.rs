//! Python's own buffers as bytes.
#![allow(unsafe_code)] // Bytes that other objects vouch for.

use std::ptr;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

/// From here on copying takes longer than giving up the interpreter and getting it back.
pub(crate) const LONG_COPY: u64 = 64 << 10;

/// Gives `body` the bytes of a contiguous Python buffer.
///
/// # Errors
/// `BufferError` if it has no bytes to give or they are not contiguous.
pub(crate) fn with_bytes<T>(
    object: &Bound<'_, PyAny>,
    body: impl FnOnce(&[u8]) -> PyResult<T>,
) -> PyResult<T> {
    let buffer = contiguous(object)?;
    let len = buffer.len_bytes();
    let base = if len == 0 { ptr::dangling() } else { buffer.buf_ptr().cast::<u8>().cast_const() };
    // SAFETY: the exporter vouches for `len` bytes at `base` while `buffer` is held; they were
    // found contiguous. Other threads may write them meanwhile, as with any buffer whose owner is
    // detached from the interpreter; they are only copied, by calls of the C library or the
    // kernel, and never looked at here.
    let bytes = unsafe { std::slice::from_raw_parts(base, len) };
    body(bytes)
}

/// Gives `body` the bytes of a contiguous, writable Python buffer.
///
/// # Errors
/// As [`with_bytes`], and if it is read-only.
pub(crate) fn with_bytes_mut<T>(
    object: &Bound<'_, PyAny>,
    body: impl FnOnce(&mut [u8]) -> PyResult<T>,
) -> PyResult<T> {
    let buffer = contiguous(object)?;
    if buffer.readonly() {
        return Err(PyBufferError::new_err("the buffer is read-only"));
    }
    let len = buffer.len_bytes();
    let base = if len == 0 { ptr::dangling_mut() } else { buffer.buf_ptr().cast::<u8>() };
    // SAFETY: as in `with_bytes`; that it is writable was checked.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base, len) };
    body(bytes)
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    Ok(buffer)
}
