//! Where the socket of front-ends comes from.

use std::os::fd::RawFd;
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vhost_user_core::socket::{Endpoint, ListenOptions};

use crate::descriptor::descriptor;

/// One that listens at a path, with a mode and a group, one that calls at a path, or one that was
/// handed down.
pub(crate) fn endpoint(
    (listen, mode, group): (Option<PathBuf>, u32, Option<u32>),
    dial: Option<PathBuf>,
    fd: Option<RawFd>,
) -> PyResult<Endpoint> {
    match (listen, dial, fd) {
        (Some(path), None, None) => Ok(Endpoint::Listen(ListenOptions { path, mode, group })),
        (None, Some(path), None) => Ok(Endpoint::Dial { path }),
        (None, None, Some(fd)) => Ok(Endpoint::Inherited(descriptor(fd)?.try_clone_to_owned()?)),
        _ => Err(PyValueError::new_err("exactly one of listen, dial, fd")),
    }
}
