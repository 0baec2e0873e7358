//! The extension module `vhost_user._core`.

use pyo3::prelude::*;

/// The Rust core of `vhost_user`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
