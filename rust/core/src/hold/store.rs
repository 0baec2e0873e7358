//! A service manager that keeps descriptors: sd_notify(3), "FDSTORE=1".

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

use crate::sys::private_fd::PrivateFd;

/// How long the manager may leave no room for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// A service manager's store of descriptors. One is kept at a time.
#[derive(Debug)]
pub(super) struct Store {
    socket: PrivateFd,
    manager: SocketAddrUnix,
    /// The number of the last one, which is part of its name.
    generation: u64,
    is_empty: bool,
}

impl Store {
    /// That of the manager at this address: a path, or behind `@` an abstract name.
    pub(super) fn at(address: &str) -> io::Result<Self> {
        let manager = match address.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            None => SocketAddrUnix::new(address)?,
        };
        let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
        let socket = PrivateFd::make(|| socket_with(family, kind, SocketFlags::CLOEXEC, None))?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(Self { socket, manager, generation: 0, is_empty: true })
    }

    /// The store has what a former process has put there with this number.
    pub(super) fn goes_on_from(&mut self, generation: u64) {
        (self.generation, self.is_empty) = (generation, false);
    }

    /// Has a descriptor kept in place of the last one: at each moment one of the two is.
    pub(super) fn put(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let (former, next) = (self.name(), self.generation + 1);
        let was_empty = std::mem::replace(&mut self.is_empty, false);
        self.generation = next;
        // Whether its other end is there makes no difference to what is in it.
        self.tell(&format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", self.name()), Some(fd))?;
        if was_empty { Ok(()) } else { self.remove(&former) }
    }

    /// Has nothing kept any more.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.is_empty, true) {
            return Ok(());
        }
        self.remove(&self.name())
    }

    /// As the package's Python half knows it.
    fn name(&self) -> String {
        format!("vhost-user-hold-{}", self.generation)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    fn tell(&self, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds: Vec<_> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let (bytes, flags) = ([IoSlice::new(text.as_bytes())], SendFlags::NOSIGNAL);
        let socket = self.socket.as_fd();
        retry_on_intr(|| sendmsg_addr(socket, &self.manager, &bytes, &mut control, flags))?;
        Ok(())
    }
}
