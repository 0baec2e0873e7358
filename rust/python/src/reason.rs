//! Why a device fails a request: what `fail` takes.

use std::io;
use std::ops::RangeInclusive;

use pyo3::exceptions::{
    PyBaseException, PyNotImplementedError, PyOSError, PyOverflowError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use rustix::io::Errno;
use vhost_user_core::block::Status;

/// The error numbers that Linux may have.
pub(crate) const ERRNOS: RangeInclusive<i32> = 1..=4095;

/// Why a device fails a request.
pub(crate) enum Reason {
    /// An error number of the system.
    Number(io::Error),
    /// An exception.
    Exception(Py<PyBaseException>),
}

impl Default for Reason {
    /// An I/O error.
    fn default() -> Self {
        Self::Number(Errno::IO.into())
    }
}

impl Reason {
    /// The reason that Python code gives.
    ///
    /// # Errors
    /// `ValueError` for a number that is no errno; `TypeError` if it is neither a number nor an
    /// exception.
    pub(crate) fn of(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(exception) = value.cast::<PyBaseException>() {
            return Ok(Self::Exception(exception.clone().unbind()));
        }
        match value.extract::<i32>() {
            Ok(number) if ERRNOS.contains(&number) => {
                Ok(Self::Number(io::Error::from_raw_os_error(number)))
            }
            Ok(_) => Err(no_errno(value)),
            Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
                Err(no_errno(value))
            }
            Err(_) => {
                let text = format!(
                    "fail takes an errno, as errno.EIO, or an exception, as OSError(5, \"worn out\"), not {}",
                    value.repr()?
                );
                Err(PyTypeError::new_err(text))
            }
        }
    }

    /// The status that the driver gets for it.
    pub(crate) fn status(&self, py: Python<'_>) -> Status {
        match self {
            Self::Number(error) => Status::from(error),
            Self::Exception(error) => status_of(error.bind(py)),
        }
    }
}

/// Says which numbers there are.
fn no_errno(value: &Bound<'_, PyAny>) -> PyErr {
    let text = format!("fail takes an errno from 1 to 4095, as errno.EIO, not {value}");
    PyValueError::new_err(text)
}

/// The status for an exception: that of its number if it is an `OSError` that has one.
fn status_of(error: &Bound<'_, PyBaseException>) -> Status {
    if error.is_instance_of::<PyNotImplementedError>() {
        return Status::Unsupported;
    }
    let is_of_system = error.is_instance_of::<PyOSError>();
    let number = is_of_system.then(|| error.getattr("errno")?.extract::<i32>());
    match number {
        Some(Ok(number)) => Status::from(&io::Error::from_raw_os_error(number)),
        _ => Status::IoErr,
    }
}
