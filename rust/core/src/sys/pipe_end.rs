//! One end of a pipe, or of a Unix stream socket, that somebody else made: read and written without
//! waiting, whatever its other end does and whoever else has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fcntl_getfl, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::socket_type;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};

use super::event_kind::EventKind;
use super::fd_path;
use super::interrupt;
use super::no_signal_write;
use super::private_fd::PrivateFd;
use super::received_fd::ReceivedFd;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They are read here.
    In,
    /// They are written here.
    Out,
}

/// An end of a pipe or a socket.
#[derive(Debug)]
pub struct PipeEnd {
    fd: ReceivedFd,
    is_socket: bool,
    way: Way,
}

impl PipeEnd {
    /// Takes a descriptor. A pipe is opened once more: whether its own open file waits is for
    /// everybody to change who has it.
    ///
    /// # Errors
    /// In words: it is neither a pipe nor a Unix stream socket, or is not open for this way.
    pub fn new(fd: ReceivedFd, way: Way) -> Result<Self, String> {
        let kind = EventKind::of(fd.as_fd())?;
        let flags = fcntl_getfl(&fd).map_err(|error| error.to_string())?;
        let refused = match way {
            Way::In => (OFlags::WRONLY, "open for writing alone"),
            Way::Out => (OFlags::RDONLY, "open for reading alone"),
        };
        match kind {
            EventKind::Socket if socket_type(&fd) == Ok(SocketType::STREAM) => {
                Ok(Self { fd, is_socket: true, way })
            }
            EventKind::Socket => Err("a socket that is no stream".to_owned()),
            EventKind::EventFd => Err("an eventfd".to_owned()),
            EventKind::Pipe if flags & OFlags::ACCMODE == refused.0 => Err(refused.1.to_owned()),
            EventKind::Pipe => Self::reopened(&fd, way).map_err(|error| error.to_string()),
        }
    }

    fn reopened(pipe: &ReceivedFd, way: Way) -> Result<Self, Errno> {
        let access = if way == Way::In { OFlags::RDONLY } else { OFlags::WRONLY };
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = PrivateFd::make(|| open(fd_path(pipe.as_fd()), flags, Mode::empty()))?;
        Ok(Self { fd: fd.into(), is_socket: false, way })
    }

    /// Reads what is there, up to the length of `buffer`: 0 at the end. `None`: nothing now.
    ///
    /// # Errors
    /// The other end is broken.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        later(retry_on_intr(|| match self.is_socket {
            true => recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes),
            false => rustix::io::read(&self.fd, &mut *buffer),
        }))
    }

    /// Writes what there is room for. `None`: nothing now.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub fn write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.is_socket {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            return later(retry_on_intr(|| send(&self.fd, bytes, flags)));
        }
        match no_signal_write::write(self.fd.as_fd(), bytes) {
            Ok(written) => Ok(Some(written)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Waits until there is something to read, or room to write, or until `cancel` is readable:
    /// `false` then.
    ///
    /// # Errors
    /// Nothing can be waited for.
    pub fn wait(&self, cancel: BorrowedFd<'_>) -> io::Result<bool> {
        let mut fds = [
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
            PollFd::from_borrowed_fd(self.fd.as_fd(), self.events()),
        ];
        retry_on_intr(|| poll(&mut fds, None))?;
        Ok(fds[0].revents().is_empty())
    }

    /// As [`wait`](Self::wait), until a point in time: `false` then. For threads that may have to
    /// [give up](interrupt) what they wait for.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), or the thread is to give up.
    pub fn wait_until(&self, until: Instant) -> io::Result<bool> {
        interrupt::wait_for(self.fd.as_fd(), self.events(), until)
    }

    fn events(&self) -> PollFlags {
        if self.way == Way::In { PollFlags::IN } else { PollFlags::OUT }
    }
}

fn later(done: Result<usize, Errno>) -> io::Result<Option<usize>> {
    match done {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::super::eventfd::EventFd;
    use super::*;

    #[test]
    fn neither_a_full_pipe_nor_an_empty_one_is_waited_for_though_they_block() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let out = PipeEnd::new(writer.into(), Way::Out).unwrap();
        let into = PipeEnd::new(reader.into(), Way::In).unwrap();
        let mut buffer = [0; 4096];
        assert_eq!(into.read(&mut buffer).unwrap(), None);
        let mut written = 0;
        while let Some(bytes) = out.write(&[7; 4096]).unwrap() {
            written += bytes;
        }
        assert!(written >= 4096);
        let mut read = 0;
        while let Some(bytes) = into.read(&mut buffer).unwrap() {
            read += bytes;
        }
        assert_eq!((read, buffer), (written, [7; 4096]));
        drop(out);
        assert_eq!(into.read(&mut buffer).unwrap(), Some(0), "it was the last that could write");
    }

    #[test]
    fn a_socket_is_not_waited_for_either() {
        let (near, far) = UnixStream::pair().unwrap();
        let near = std::os::fd::OwnedFd::from(near);
        let into = PipeEnd::new(near.try_clone().unwrap().into(), Way::In).unwrap();
        let out = PipeEnd::new(near.into(), Way::Out).unwrap();
        assert_eq!(into.read(&mut [0; 8]).unwrap(), None);
        while out.write(&[1; 1 << 16]).unwrap().is_some() {}
        drop(far);
        out.write(&[1]).unwrap_err();
    }

    #[test]
    fn a_wait_ends_with_what_it_waits_for_or_when_it_is_cancelled() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let into = PipeEnd::new(reader.into(), Way::In).unwrap();
        let cancel = EventFd::new().unwrap();
        drop(writer);
        assert!(into.wait(cancel.as_fd()).unwrap());
        cancel.signal();
        assert!(!into.wait(cancel.as_fd()).unwrap());
    }

    #[test]
    fn what_cannot_carry_a_stream_this_way_is_refused_in_words() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let refused = |fd: std::os::fd::OwnedFd, way| PipeEnd::new(fd.into(), way).unwrap_err();
        assert_eq!(refused(reader, Way::Out), "open for reading alone");
        assert_eq!(refused(writer, Way::In), "open for writing alone");
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(refused(event, Way::In), "an eventfd");
        let (packets, _) = UnixDatagram::pair().unwrap();
        assert_eq!(refused(packets.into(), Way::In), "a socket that is no stream");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(refused(file.into(), Way::In), "/dev/null");
    }
}
