//! What can go wrong at the front-end's end, by whose fault.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::HostError;
use crate::socket::SocketError;
use crate::wire::FrontendMessage as M;

/// An error of the front-end's side.
#[derive(Debug)]
pub enum FrontendError {
    /// Nobody answered at the socket in time.
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the last attempt said.
        source: SocketError,
    },
    /// The connection broke while a message was sent or its reply awaited.
    Socket {
        /// The message's name.
        message: &'static str,
        /// What happened.
        source: SocketError,
    },
    /// The back-end closed the connection.
    Closed {
        /// What we were waiting for: a message's name, or "requests".
        message: &'static str,
    },
    /// The back-end did not answer in time.
    TimedOut {
        /// What we were waiting for: a message's name, or "requests".
        message: &'static str,
        /// How long.
        timeout: Duration,
    },
    /// The back-end said no.
    Refused {
        /// The message's name.
        message: &'static str,
        /// Its acknowledgement, which is not 0.
        code: u64,
    },
    /// A reply is not what the protocol says.
    BadReply {
        /// The message's name.
        message: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The back-end does not offer what is needed.
    NotOffered {
        /// The feature's name.
        what: &'static str,
    },
    /// The back-end broke a ring.
    Ring {
        /// What is wrong with it.
        why: String,
    },
    /// The device completed a request with an error.
    Request {
        /// The request's kind.
        op: &'static str,
        /// First byte on the disk.
        offset: u64,
        /// What the device said.
        status: BlockStatus,
    },
    /// The caller asked for what cannot be: outside the disk, outside the memory, too much.
    OutOfRange {
        /// What, with the numbers.
        why: String,
    },
    /// The system refused.
    Host(HostError),
}

/// How a block device says no: VIRTIO 1.3, "Block Device", "Device Operation".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockStatus {
    /// 1: the request failed.
    IoError,
    /// 2: the device does not know this request.
    Unsupported,
    /// Anything else. 0xff is what the driver put there before: nothing was answered.
    Other(u8),
}

/// Results of the front-end's side.
pub type Result<T> = std::result::Result<T, FrontendError>;

impl FrontendError {
    pub(crate) fn ring(why: impl Into<String>) -> Self {
        Self::Ring { why: why.into() }
    }

    pub(crate) fn range(why: impl Into<String>) -> Self {
        Self::OutOfRange { why: why.into() }
    }

    /// Whether the back-end has refused guest memory.
    pub fn refuses_memory(&self) -> bool {
        let about_memory = [M::SetMemTable, M::AddMemReg, M::RemMemReg, M::SetXenMmap];
        matches!(self, Self::Refused { message, .. }
            if about_memory.iter().any(|about| about.name() == *message))
    }

    /// Whether the back-end is gone, or went in the middle of an exchange.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Socket { source: SocketError::Host(_), .. })
    }

    /// A failed exchange: ends and silences get variants of their own.
    pub(crate) fn socket(message: &'static str, timeout: Duration, source: SocketError) -> Self {
        match source {
            SocketError::TimedOut => Self::TimedOut { message, timeout },
            SocketError::PeerGone => Self::Closed { message },
            source => Self::Socket { message, source },
        }
    }
}

impl BlockStatus {
    /// The status byte as a result.
    pub(crate) fn check(status: u8) -> std::result::Result<(), Self> {
        match status {
            0 => Ok(()),
            1 => Err(Self::IoError),
            2 => Err(Self::Unsupported),
            other => Err(Self::Other(other)),
        }
    }
}

impl fmt::Display for BlockStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoError => f.write_str("I/O error (1)"),
            Self::Unsupported => f.write_str("unsupported (2)"),
            Self::Other(status) => write!(f, "unknown status {status:#x}"),
        }
    }
}

impl fmt::Display for FrontendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // It names the path itself.
            Self::Connect { source: SocketError::Host(source), .. } => source.fmt(f),
            Self::Connect { path, source } => {
                write!(f, "cannot connect to {}: {source}", path.display())
            }
            Self::Socket { message, source } => write!(f, "{message}: {source}"),
            Self::Closed { message } => {
                write!(f, "{message}: the back-end closed the connection")
            }
            Self::TimedOut { message, timeout } => {
                write!(f, "{message}: no answer within {timeout:?}")
            }
            Self::Refused { message, code } => {
                write!(f, "{message}: refused by the back-end with {code:#x}")
            }
            Self::BadReply { message, why } => write!(f, "{message}: bad reply: {why}"),
            Self::NotOffered { what } => write!(f, "the back-end does not offer {what}"),
            Self::Ring { why } => write!(f, "the back-end broke the ring: {why}"),
            Self::Request { op, offset, status } => {
                write!(f, "{op} at offset {offset} failed: {status}")
            }
            Self::OutOfRange { why } => f.write_str(why),
            Self::Host(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for FrontendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Socket { source, .. } => Some(source),
            Self::Host(error) => Some(error),
            _ => None,
        }
    }
}

impl From<HostError> for FrontendError {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}
