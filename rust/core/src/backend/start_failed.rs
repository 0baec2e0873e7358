//! Why a back-end did not start.

use crate::error::HostError;
use crate::socket::SocketError;

/// Why a back-end did not start.
#[derive(Debug)]
pub enum StartFailed {
    /// The socket cannot be made or used.
    Socket(SocketError),
    /// The host lacks something.
    Host(HostError),
    /// Options that contradict each other; the rule.
    Options(&'static str),
    /// A processor number that this process may not run on.
    NoSuchCpu(usize),
}

impl From<SocketError> for StartFailed {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

impl From<HostError> for StartFailed {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl std::fmt::Display for StartFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(error) => error.fmt(f),
            Self::Host(error) => error.fmt(f),
            Self::Options(rule) => f.write_str(rule),
            Self::NoSuchCpu(cpu) => write!(f, "this process may not run on processor {cpu}"),
        }
    }
}

impl std::error::Error for StartFailed {}
