//! What can go wrong on a socket, by whose fault.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::MAX_PATH;
use crate::error::HostError;
use crate::wire::{MAX_FDS, MAX_PAYLOAD};

/// An error after which a connection, or an attempt to get one, is over.
#[derive(Debug)]
pub enum SocketError {
    /// The peer announced a longer payload than any message has.
    PayloadTooLong {
        /// The message's number.
        request: u32,
        /// Bytes announced.
        size: u32,
    },
    /// The peer sent more descriptors than a message may carry.
    TooManyFds {
        /// Descriptors received.
        got: usize,
    },
    /// The kernel cut the ancillary data short: more descriptors than there is room for, or this
    /// process has no free descriptor numbers. Those that did arrive are closed.
    FdsCutOff,
    /// The peer closed the connection inside a message.
    EndInside {
        /// Bytes of the message that arrived, header included.
        got: usize,
    },
    /// A message began and did not end in time.
    HalfMessage {
        /// Bytes of the message that arrived, header included.
        got: usize,
        /// The time it had.
        deadline: Duration,
    },
    /// No message began in the time given by the caller.
    TimedOut,
    /// The peer did not take a message in time.
    SendStuck {
        /// Bytes of the message that were taken, header included.
        sent: usize,
        /// The time it had.
        deadline: Duration,
    },
    /// The peer is gone; nothing can be sent.
    PeerGone,
    /// A socket path is empty, too long or has a zero byte in it.
    BadPath {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something that is no socket has the name already.
    NotASocket {
        /// The path as given.
        path: PathBuf,
    },
    /// Somebody answers at the path.
    InUse {
        /// The path as given.
        path: PathBuf,
    },
    /// A descriptor handed down is not a Unix stream socket that listens or is connected.
    NotUnixStream {
        /// What it is.
        what: String,
    },
    /// The system refused.
    Host(HostError),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PayloadTooLong { request, size } => write!(
                f,
                "request {request} announces {size} bytes of payload, {MAX_PAYLOAD} is the limit"
            ),
            Self::TooManyFds { got } => {
                write!(f, "message with {got} file descriptors, {MAX_FDS} is the limit")
            }
            Self::FdsCutOff => write!(
                f,
                "file descriptors of a message were cut off: more than {MAX_FDS}, or none free here"
            ),
            Self::EndInside { got } => {
                write!(f, "connection closed inside a message, after {got} bytes")
            }
            Self::HalfMessage { got, deadline } => {
                write!(f, "message not complete after {deadline:?}: {got} bytes arrived")
            }
            Self::TimedOut => write!(f, "no message in time"),
            Self::SendStuck { sent, deadline } => {
                write!(f, "peer took {sent} bytes of a message and no more within {deadline:?}")
            }
            Self::PeerGone => write!(f, "peer has closed the connection"),
            Self::BadPath { path, why } if path.as_os_str().is_empty() => {
                write!(f, "socket path {why}")
            }
            Self::BadPath { path, why } => write!(
                f,
                "socket path {why}: {} bytes, at most {MAX_PATH} fit: {}",
                path.as_os_str().len(),
                path.display()
            ),
            Self::NotASocket { path } => {
                write!(f, "{} exists and is not a socket", path.display())
            }
            Self::InUse { path } => {
                write!(f, "socket {} is in use: somebody answers there", path.display())
            }
            Self::NotUnixStream { what } => {
                write!(f, "not a connected or listening unix stream socket: {what}")
            }
            Self::Host(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SocketError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Host(error) => Some(error),
            _ => None,
        }
    }
}

impl From<HostError> for SocketError {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}
