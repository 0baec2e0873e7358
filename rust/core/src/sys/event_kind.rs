//! What may tell of an event: files that the kernel itself answers for.

use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, sockopt};

use super::fd_path;

/// A file that is looked at and written to without waiting for anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An eventfd.
    EventFd,
    /// A pipe without a name.
    Pipe,
    /// A Unix socket.
    Socket,
}

impl EventKind {
    /// Returns what `fd` is. Its file is not asked: the file system that it is in may not answer,
    /// be it asked for its size or whether it is readable.
    ///
    /// # Errors
    /// Its name, if it is none of these.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, String> {
        let name = std::fs::read_link(fd_path(fd)).map_err(|error| error.to_string())?;
        match &*name.to_string_lossy() {
            "anon_inode:[eventfd]" => Ok(Self::EventFd),
            pipe if pipe.starts_with("pipe:[") => Ok(Self::Pipe),
            socket if socket.starts_with("socket:[") => unix_only(fd).map(|()| Self::Socket),
            other => Err(other.to_owned()),
        }
    }
}

/// Takes Unix sockets alone: those of networks may wait for their peers, be it in `close`.
fn unix_only(socket: BorrowedFd<'_>) -> Result<(), String> {
    match sockopt::socket_domain(socket) {
        Ok(AddressFamily::UNIX) => Ok(()),
        Ok(other) => Err(format!("a socket of address family {}, not AF_UNIX", other.as_raw())),
        Err(error) => Err(format!("a socket of unknown address family ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn eventfds_pipes_and_sockets_tell_of_events() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(EventKind::of(event.as_fd()), Ok(EventKind::EventFd));
        assert_eq!(EventKind::of(reader.as_fd()), Ok(EventKind::Pipe));
        assert_eq!(EventKind::of(writer.as_fd()), Ok(EventKind::Pipe));
        assert_eq!(EventKind::of(socket.as_fd()), Ok(EventKind::Socket));
    }

    #[test]
    fn sockets_of_networks_do_not() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let why = "a socket of address family 2, not AF_UNIX".to_owned();
        assert_eq!(EventKind::of(tcp.as_fd()), Err(why));
    }

    #[test]
    fn files_devices_and_other_kernel_objects_do_not() {
        let null = File::open("/dev/null").unwrap();
        // A file whose name looks like something else.
        let memory = memfd_create("anon_inode:[eventfd]", MemfdFlags::CLOEXEC).unwrap();
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        assert_eq!(EventKind::of(null.as_fd()), Err("/dev/null".to_owned()));
        assert_eq!(
            EventKind::of(memory.as_fd()),
            Err("/memfd:anon_inode:[eventfd] (deleted)".to_owned())
        );
        assert_eq!(EventKind::of(waiting.as_fd()), Err("anon_inode:[eventpoll]".to_owned()));
    }
}
