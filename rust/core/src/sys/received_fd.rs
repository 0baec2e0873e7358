//! A descriptor that somebody else passed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fcntl_get_seals;

use super::closer::Closer;
use super::event_kind::EventKind;
use super::private_fd::PrivateFd;

const THERE: &str = "it is there until it is dropped";

/// An owned descriptor of a file that a front-end chose, [private](PrivateFd) to this process.
/// Dropping it never waits: what may wait in
/// `close` is given to the device's [`Closer`].
#[derive(Debug)]
pub struct ReceivedFd {
    /// `None` only while it is being dropped.
    fd: Option<PrivateFd>,
    /// `None`: it is our own.
    closer: Option<Closer>,
}

impl ReceivedFd {
    /// Takes a descriptor, to be closed by `closer`; without one it is closed where it is dropped.
    pub fn new(fd: impl Into<PrivateFd>, closer: Option<&Closer>) -> Self {
        Self { fd: Some(fd.into()), closer: closer.cloned() }
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let fd = self.fd.as_ref().expect(THERE).try_clone()?;
        Ok(Self { fd: Some(fd), closer: self.closer.clone() })
    }

    /// Has `closer` close it when it is dropped.
    pub fn close_with(&mut self, closer: &Closer) {
        self.closer = Some(closer.clone());
    }
}

impl From<OwnedFd> for ReceivedFd {
    fn from(fd: OwnedFd) -> Self {
        Self::new(fd, None)
    }
}

impl From<PrivateFd> for ReceivedFd {
    fn from(fd: PrivateFd) -> Self {
        Self::new(fd, None)
    }
}

impl AsFd for ReceivedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect(THERE).as_fd()
    }
}

impl Drop for ReceivedFd {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        match &self.closer {
            Some(closer) if !closes_at_once(fd.as_fd()) => closer.close(fd),
            _ => drop(fd),
        }
    }
}

/// Returns whether a file is one of those that the kernel closes without waiting for anybody. The
/// file itself is not asked. No socket is one, since those of Unix may have others in their queues.
fn closes_at_once(fd: BorrowedFd<'_>) -> bool {
    // Nothing but memory has seals.
    fcntl_get_seals(fd).is_ok()
        || matches!(EventKind::of(fd), Ok(EventKind::EventFd | EventKind::Pipe))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn what_the_protocol_passes_is_closed_at_once_and_all_else_elsewhere() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let memory = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for fd in [event, memory, reader, writer] {
            assert!(closes_at_once(fd.as_fd()), "{:?}", EventKind::of(fd.as_fd()));
        }
        let (socket, _peer) = UnixStream::pair().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        for fd in [socket.into(), tcp.into(), file.into()] as [OwnedFd; 3] {
            assert!(!closes_at_once(fd.as_fd()), "{:?}", EventKind::of(fd.as_fd()));
        }
    }
}
