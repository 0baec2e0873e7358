//! Errors by whose fault they are.

use std::fmt;
use std::io;

/// A host-side failure: what was attempted, and what the system said.
#[derive(Debug)]
pub struct HostError {
    what: String,
    source: io::Error,
}

impl HostError {
    /// `what` reads as "cannot ..." would: "bind ram.sock".
    pub fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { what: what.into(), source: source.into() }
    }

    /// The system's error number, if it has one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.source)
    }
}

impl std::error::Error for HostError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
