//! The channel for the back-end's own requests, of which one is sent: the configuration changed.
//!
//! The front-end may be waiting for us on the main socket, so nothing is waited for here: no answer
//! is asked for, and where there is no room nothing is sent. The front-end then has not read an
//! earlier such message yet, and looks at the configuration when it does.

use std::os::fd::AsFd;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use crate::connection::Refusal;
use crate::socket::Stream;
use crate::sys::event_kind::EventKind;
use crate::sys::fd_kind::fd_kind;
use crate::wire::{BackendMessage, Flags, Frame, ReceivedFd};

/// The channel: closed until the front-end passes a socket, and again when its peer is gone.
#[derive(Debug, Default)]
pub(super) struct Channel {
    stream: Option<Stream>,
    /// There was no room for the last message.
    full: bool,
}

impl Channel {
    /// Takes the front-end's descriptor.
    pub(super) fn open(fd: ReceivedFd) -> Result<Self, Refusal> {
        let refused = |what: &str| {
            Refusal(format!(
                "SET_BACKEND_REQ_FD: its descriptor is {what}, not a Unix stream socket"
            ))
        };
        let kind = EventKind::of(fd.as_fd()).map_err(|what| refused(&what))?;
        if kind != EventKind::Socket || socket_type(&fd) != Ok(SocketType::STREAM) {
            return Err(refused(&fd_kind(fd.as_fd())));
        }
        Ok(Self { stream: Some(Stream::new(fd)), full: false })
    }

    /// Sends CONFIG_CHANGE_MSG. The error is for the log, and comes once of a kind.
    pub(super) fn config_changed(&mut self) -> Result<(), Refusal> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let number = BackendMessage::ConfigChangeMsg.number();
        let why = match stream.offer(&Frame::new(number, Flags::VERSION, Vec::new(), Vec::new())) {
            Ok(sent) => {
                let known = std::mem::replace(&mut self.full, !sent);
                if sent || known {
                    return Ok(());
                }
                "the front-end does not read its back-end channel".to_owned()
            }
            Err(error) => {
                self.stream = None;
                error.to_string()
            }
        };
        Err(Refusal(format!("CONFIG_CHANGE_MSG: {why}")))
    }
}
