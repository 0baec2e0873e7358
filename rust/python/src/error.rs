//! From the core's errors to Python's exceptions. The only such conversion.

use std::fmt::Display;

use pyo3::exceptions::{PyConnectionError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use rustix::io::Errno;
use vhost_user_core::backend::StartFailed;
use vhost_user_core::block::InvalidBlock;
use vhost_user_core::error::HostError;
use vhost_user_core::frontend::{BlockStatus, FrontendError};
use vhost_user_core::socket::SocketError;

const NO_XEN: &str = "XEN_MMAP was not negotiated: serve with xen=XenOptions() or --xen, and connect \
                      with xen=True";

/// The class `name` of `vhost_user.errors`. They are written in Python, since some have two bases.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || py.import("vhost_user.errors").map(Bound::unbind))?;
    Ok(module.bind(py).getattr(name)?.cast_into::<PyType>()?)
}

/// An exception of a class of `vhost_user.errors`.
fn raise(py: Python<'_>, name: &str, text: String) -> PyErr {
    class(py, name).map_or_else(|error| error, |class| PyErr::from_type(class, text))
}

/// An `OSError` with its number, so that Python picks the subclass.
fn os_error(errno: Errno, text: &str) -> PyErr {
    PyOSError::new_err((errno.raw_os_error(), text.to_owned()))
}

/// `StaleRequestError`: the request is not this caller's any more.
pub(crate) fn stale(py: Python<'_>, text: &str) -> PyErr {
    raise(py, "StaleRequestError", text.to_owned())
}

/// `VhostUserError`: something that cannot be done now.
pub(crate) fn refused(py: Python<'_>, text: impl Display) -> PyErr {
    raise(py, "VhostUserError", text.to_string())
}

/// `OSError` with ENOMEM: there is no memory, or no more is allowed.
pub(crate) fn no_memory(text: impl Display) -> PyErr {
    os_error(Errno::NOMEM, &text.to_string())
}

/// `GuestError`: the driver does what no device can work with.
pub(crate) fn guest(py: Python<'_>, text: impl Display) -> PyErr {
    raise(py, "GuestError", text.to_string())
}

/// A failure of the host.
pub(crate) fn host(error: &HostError) -> PyErr {
    // The system's words are in the text already; Python puts the number before it.
    match error.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, error.to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}

/// A failure to make or use a socket.
pub(crate) fn socket(py: Python<'_>, error: &SocketError) -> PyErr {
    let text = error.to_string();
    match error {
        SocketError::Host(error) => host(error),
        SocketError::BadPath { .. } | SocketError::NotUnixStream { .. } => {
            PyValueError::new_err(text)
        }
        SocketError::NotASocket { .. } => os_error(Errno::EXIST, &text),
        SocketError::InUse { .. } => os_error(Errno::ADDRINUSE, &text),
        SocketError::TimedOut | SocketError::SendStuck { .. } => os_error(Errno::TIMEDOUT, &text),
        SocketError::PeerGone => os_error(Errno::PIPE, &text),
        _ => raise(py, "ProtocolError", text),
    }
}

/// A back-end that did not start.
pub(crate) fn start(py: Python<'_>, error: &StartFailed) -> PyErr {
    match error {
        StartFailed::Socket(error) => socket(py, error),
        StartFailed::Host(error) => host(error),
        StartFailed::NoSuchCpu(_) | StartFailed::Options(_) => {
            PyValueError::new_err(error.to_string())
        }
    }
}

/// What went wrong at a front-end.
pub(crate) fn frontend(py: Python<'_>, error: &FrontendError) -> PyErr {
    let text = error.to_string();
    match error {
        FrontendError::Connect { source: SocketError::Host(source), .. } => {
            match source.raw_os_error() {
                Some(errno) => PyOSError::new_err((errno, text)),
                None => PyConnectionError::new_err(text),
            }
        }
        FrontendError::Connect { .. } => PyConnectionError::new_err(text),
        FrontendError::Closed { .. } => os_error(Errno::CONNRESET, &text),
        FrontendError::TimedOut { .. } => os_error(Errno::TIMEDOUT, &text),
        FrontendError::NotOffered { what: "XEN_MMAP" } => {
            raise(py, "NegotiationError", NO_XEN.to_owned())
        }
        FrontendError::NotOffered { .. } => raise(py, "NegotiationError", text),
        FrontendError::Refused { .. } if error.refuses_memory() => {
            raise(py, "MappingError", format!("{text}: its log says why"))
        }
        FrontendError::Socket { .. }
        | FrontendError::Refused { .. }
        | FrontendError::BadReply { .. }
        | FrontendError::Ring { .. } => raise(py, "ProtocolError", text),
        FrontendError::Request { status, .. } => request(py, *status, text),
        FrontendError::OutOfRange { .. } => PyValueError::new_err(text),
        FrontendError::Host(source) => host(source),
    }
}

/// The device said no.
fn request(py: Python<'_>, status: BlockStatus, text: String) -> PyErr {
    let errno = match status {
        BlockStatus::Unsupported => Errno::OPNOTSUPP,
        BlockStatus::IoError | BlockStatus::Other(_) => Errno::IO,
    };
    let arguments = (errno.raw_os_error(), text);
    class(py, "RequestError").map_or_else(|error| error, |c| PyErr::from_type(c, arguments))
}

/// A block device that cannot be.
pub(crate) fn block(error: &InvalidBlock) -> PyErr {
    PyValueError::new_err(error.to_string())
}
