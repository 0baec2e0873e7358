//! Descriptors through which a driver or a front-end is told something: calls and errors.
//!
//! The protocol says that they are eventfds. The front-end has them too, and may fill them, or
//! change the flags of the open file, at any time: nothing here waits for it all the same.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::net::SendFlags;

use crate::sys::event_kind::EventKind;
use crate::sys::eventfd::EventSignaller;
use crate::sys::private_fd::PrivateFd;
use crate::sys::received_fd::ReceivedFd;
use crate::sys::{fd_path, no_signal_write};

/// A descriptor to signal through.
#[derive(Clone, Debug)]
pub(crate) struct Notifier(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    EventFd(ReceivedFd, Arc<EventSignaller>),
    /// An open file of our own of the front-end's pipe, which only we can make block.
    Pipe(PrivateFd),
    Socket(ReceivedFd),
}

impl Notifier {
    /// A notifier through `fd`. Its file is not asked what it is: a file system may not answer.
    ///
    /// # Errors
    /// What `fd` is, if it is nothing that can be signalled without waiting.
    pub(crate) fn new(fd: ReceivedFd, signaller: &Arc<EventSignaller>) -> Result<Self, String> {
        let kind = match EventKind::of(fd.as_fd()) {
            Ok(EventKind::EventFd) => Kind::EventFd(fd, Arc::clone(signaller)),
            Ok(EventKind::Socket) => Kind::Socket(fd),
            Ok(EventKind::Pipe) => {
                let opened = open_again(&fd_path(fd.as_fd()));
                Kind::Pipe(opened.map_err(|error| format!("a pipe: {error}"))?)
            }
            Err(name) => return Err(name),
        };
        Ok(Self(Arc::new(kind)))
    }

    /// Signals, and never waits. A descriptor that is full has a signal already, and one that
    /// cannot be written to is the front-end's own loss: neither is an error.
    pub(crate) fn send(&self) {
        let one = 1_u64.to_ne_bytes();
        match &*self.0 {
            Kind::EventFd(fd, signaller) => signaller.signal(fd.as_fd()),
            Kind::Pipe(fd) => drop(no_signal_write::write(fd.as_fd(), &one)),
            Kind::Socket(fd) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                let _ = rustix::net::send(fd, &one, flags);
            }
        }
    }
}

/// Opens a pipe once more, for writing and never waiting.
fn open_again(path: &str) -> rustix::io::Result<PrivateFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    PrivateFd::make(|| rustix::fs::open(path, flags, Mode::empty()))
}
