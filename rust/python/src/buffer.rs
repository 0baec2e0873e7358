//! Python's own buffers as bytes.
#![allow(unsafe_code)] // Bytes that other objects vouch for.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;

use crate::raw_bytes::{RawSource, RawTarget};

/// From here on copying takes longer than giving up the interpreter and getting it back.
pub(crate) const LONG_COPY: u64 = 64 << 10;

/// The bytes of a contiguous Python buffer, to be read. They are its owner's until this is dropped.
pub(crate) struct SourceBuffer(PyUntypedBuffer);

/// The bytes of a contiguous Python buffer, to be written.
pub(crate) struct TargetBuffer(PyUntypedBuffer);

impl SourceBuffer {
    /// Asks `object` for its bytes, which may run its code.
    ///
    /// # Errors
    /// `TypeError` if it has none, `BufferError` if they are not contiguous.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(contiguous(object)?))
    }

    /// The bytes. Anybody may write them meanwhile.
    pub(crate) fn bytes(&self) -> RawSource<'_> {
        // SAFETY: the exporter vouches for `len_bytes` bytes at `buf_ptr` while the buffer is held;
        // they were found contiguous.
        unsafe { RawSource::new(self.0.buf_ptr().cast::<u8>().cast_const(), self.0.len_bytes()) }
    }
}

impl TargetBuffer {
    /// As [`SourceBuffer::of`].
    ///
    /// # Errors
    /// The same; `BufferError` too if it is read-only.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(Self(buffer))
    }

    /// The bytes. Anybody may read and write them meanwhile.
    pub(crate) fn bytes(&self) -> RawTarget<'_> {
        // SAFETY: as in `SourceBuffer::bytes`; that they are writable was checked.
        unsafe { RawTarget::new(self.0.buf_ptr().cast::<u8>(), self.0.len_bytes()) }
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    Ok(buffer)
}
