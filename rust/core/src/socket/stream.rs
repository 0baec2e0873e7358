//! A connected socket that carries frames.
//!
//! A message is read in two steps: its header by `recvmsg`, since descriptors ride on the first
//! byte, then exactly `size` bytes of payload. What has arrived of a message is kept in a
//! [`Partial`], so a wake in the middle loses nothing.
//!
//! Source: QEMU "Vhost-user Protocol", "Message Specification" and "Communication".

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, shutdown, socketpair, sockopt::set_socket_oobinline,
};

use super::SocketError;
use super::wait::{Ready, wait};
use crate::error::HostError;
use crate::sys::closer::Closer;
use crate::sys::private_fd::making;
use crate::sys::{credentials, interrupt};
use crate::wire::{Frame, Header, MAX_FDS, MAX_PAYLOAD, ReceivedFd};

/// How long a message may take from its first byte to its last. A front-end sends one with a
/// single system call; seconds are for a machine that is short of everything.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// Descriptors that Linux passes with one byte: unix(7), SCM_RIGHTS. What there is no room for is
/// closed by the call that receives, which then waits.
const MOST_FDS: usize = 253;

/// What [`Stream::receive`] waited for.
#[derive(Debug)]
pub enum Incoming {
    /// A whole message.
    Frame(Frame),
    /// The peer closed the connection between two messages.
    Closed,
    /// The wake descriptor became readable. What had arrived of a message is kept for the next
    /// call, and so is the message's deadline.
    Woken,
}

/// What [`Stream::wait_beside`] waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The wake descriptor became readable.
    Woken,
    /// The peer will send nothing any more.
    HungUp,
    /// What was waited for is there.
    Ready,
}

/// A connected Unix stream socket.
#[derive(Debug)]
pub struct Stream {
    fd: ReceivedFd,
    /// What closes the descriptors that come.
    closer: Option<Closer>,
    /// Other processes have the same end, and go on with it.
    is_shared: bool,
    deadline: Duration,
    partial: Option<Partial>,
}

/// A message of which at least one byte has arrived.
#[derive(Debug)]
struct Partial {
    started: Instant,
    fds: Vec<ReceivedFd>,
    header: [u8; Header::LEN],
    /// Bytes of the header that arrived.
    header_len: usize,
    /// As long as the header says; empty until the header is whole.
    payload: Vec<u8>,
    /// Bytes of the payload that arrived.
    payload_len: usize,
}

/// What one read brought.
enum Read {
    Bytes(usize),
    End,
    Nothing,
}

impl Stream {
    /// Takes a connected Unix stream socket. Its blocking mode does not matter and is not
    /// changed.
    pub fn new(fd: impl Into<ReceivedFd>) -> Self {
        Self {
            fd: fd.into(),
            closer: None,
            is_shared: false,
            deadline: DEFAULT_DEADLINE,
            partial: None,
        }
    }

    /// Has `closer` close what the peer passes. This may take long, and be it passed with a byte
    /// that is never read.
    pub fn close_with(&mut self, closer: &Closer) {
        // Else an urgent byte is thrown away unread, with its descriptors.
        let _ = set_socket_oobinline(&self.fd, true);
        self.closer = Some(closer.clone());
    }

    /// Says that others may have the same end: it is not hung up when this value is dropped.
    pub fn share(&mut self) {
        self.is_shared = true;
    }

    /// Says that no others go on with the same end, whoever has it: it is hung up.
    pub fn unshare(&mut self) {
        self.is_shared = false;
    }

    /// Two connected ends.
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|e| HostError::new("make a socket pair", e))?;
        Ok((Self::new(a), Self::new(b)))
    }

    /// Sets how long a message may take, received or sent, from its first byte to its last.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Waits for a message, without limit until its first byte has arrived.
    ///
    /// After an error the connection is out of step and must be dropped.
    pub fn receive(&mut self, wake: BorrowedFd<'_>) -> Result<Incoming, SocketError> {
        self.receive_inner(Some(wake), None)
    }

    /// Waits for something beside the connection, whose next message can wait: until `other` is
    /// readable, the peer has gone, or `wake` is readable. That wins over the others.
    pub fn wait_beside(
        &self,
        wake: BorrowedFd<'_>,
        other: BorrowedFd<'_>,
    ) -> Result<Beside, SocketError> {
        let mut fds = [
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
            PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::RDHUP),
        ];
        retry_on_intr(|| poll(&mut fds, None)).map_err(|e| HostError::new("poll a socket", e))?;
        let is_there = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(match fds.iter().position(is_there) {
            Some(0) => Beside::Woken,
            Some(1) => Beside::Ready,
            _ => Beside::HungUp,
        })
    }

    /// As [`receive`](Self::receive), with a limit for the first byte as well
    /// ([`SocketError::TimedOut`]). The connection stays usable after that error. `wake` is optional.
    pub fn receive_until(
        &mut self,
        wake: Option<BorrowedFd<'_>>,
        until: Instant,
    ) -> Result<Incoming, SocketError> {
        self.receive_inner(wake, Some(until))
    }

    /// Takes a message if all of it has arrived: `None` if not, and what has is kept for the next call.
    pub fn take_arrived(&mut self) -> Result<Option<Incoming>, SocketError> {
        loop {
            match self.read_some()? {
                Read::Nothing => return Ok(None),
                Read::End => return self.end().map(Some),
                Read::Bytes(_) => {
                    if let Some(frame) = self.take_whole()? {
                        return Ok(Some(Incoming::Frame(frame)));
                    }
                }
            }
        }
    }

    /// Whether something has arrived, or the peer has gone.
    pub fn has_arrived(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        let ready = retry_on_intr(|| poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
        ready.is_ok_and(|ready| ready > 0)
    }

    /// Sends a whole frame; its descriptors go with the first byte. The header's size field is
    /// taken from the frame as it is.
    ///
    /// After an error the connection is out of step and must be dropped.
    pub fn send(&mut self, frame: &Frame) -> Result<(), SocketError> {
        let until = Instant::now() + self.deadline;
        let bytes = whole(frame);
        while !self.begin(frame, &bytes, until)? {
            self.wait_for_room(0, until)?;
        }
        Ok(())
    }

    /// As [`send`](Self::send), but if the peer has left no room for a first byte nothing is sent:
    /// `false`. A frame without payload goes as a whole or not at all, and this does not wait.
    pub fn offer(&mut self, frame: &Frame) -> Result<bool, SocketError> {
        self.begin(frame, &whole(frame), Instant::now() + self.deadline)
    }

    /// Sends a frame that there is some room for now.
    fn begin(&self, frame: &Frame, bytes: &[u8], until: Instant) -> Result<bool, SocketError> {
        let mut sent = send_some(self.fd.as_fd(), bytes, &frame.fds)?;
        if sent == 0 {
            return Ok(false);
        }
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match send_some(self.fd.as_fd(), rest, &[])? {
                0 => interrupt::whole(|| self.wait_for_room(sent, until))?,
                n => sent += n,
            }
        }
        Ok(true)
    }

    /// Who is at the other end, for a log line: `pid 123`, or `an unknown process` when the
    /// system cannot say (another PID namespace, a socket made elsewhere).
    pub fn peer(&self) -> String {
        credentials::peer_pid(self.fd.as_fd())
            .map_or_else(|| "an unknown process".to_owned(), |pid| format!("pid {pid}"))
    }

    fn receive_inner(
        &mut self,
        wake: Option<BorrowedFd<'_>>,
        first_byte: Option<Instant>,
    ) -> Result<Incoming, SocketError> {
        loop {
            let until = match &self.partial {
                Some(partial) => Some(partial.started + self.deadline),
                None => first_byte,
            };
            match wait(Some((self.fd.as_fd(), PollFlags::IN)), wake, until)? {
                Ready::Wake => return Ok(Incoming::Woken),
                Ready::Time => return Err(self.too_late()),
                Ready::Fd => {}
            }
            match self.read_some()? {
                Read::Nothing => {}
                Read::End => return self.end(),
                Read::Bytes(_) => {
                    if let Some(frame) = self.take_whole()? {
                        return Ok(Incoming::Frame(frame));
                    }
                }
            }
        }
    }

    /// One read of what the message needs next.
    fn read_some(&mut self) -> Result<Read, SocketError> {
        let Some(partial) = &mut self.partial else {
            return self.read_first();
        };
        // Descriptors that come with a later byte belong to no message, and are closed. The kernel
        // would do that as well, and wait for it.
        if partial.header_len < Header::LEN {
            let rest = &mut partial.header[partial.header_len..];
            let (read, _, _) = receive_some(&self.fd, self.closer.as_ref(), rest)?;
            if let Read::Bytes(n) = read {
                partial.header_len += n;
            }
            Ok(read)
        } else {
            let rest = &mut partial.payload[partial.payload_len..];
            let (read, _, _) = receive_some(&self.fd, self.closer.as_ref(), rest)?;
            if let Read::Bytes(n) = read {
                partial.payload_len += n;
            }
            Ok(read)
        }
    }

    /// The first read of a header, with the message's descriptors.
    fn read_first(&mut self) -> Result<Read, SocketError> {
        let mut header = [0; Header::LEN];
        let (read, fds, flags) = receive_some(&self.fd, self.closer.as_ref(), &mut header)?;
        if flags.contains(ReturnFlags::CTRUNC) {
            return Err(SocketError::FdsCutOff);
        }
        if fds.len() > MAX_FDS {
            return Err(SocketError::TooManyFds { got: fds.len() });
        }
        let Read::Bytes(header_len) = read else { return Ok(read) };
        self.partial = Some(Partial {
            started: Instant::now(),
            fds,
            header,
            header_len,
            payload: Vec::new(),
            payload_len: 0,
        });
        Ok(read)
    }

    /// The message if it is whole now. Makes room for the payload once the header is.
    fn take_whole(&mut self) -> Result<Option<Frame>, SocketError> {
        let Some(mut partial) = self.partial.take_if(|p| p.header_len == Header::LEN) else {
            return Ok(None);
        };
        let header = Header::from_bytes(partial.header);
        let size = header.size as usize;
        if size > MAX_PAYLOAD {
            return Err(SocketError::PayloadTooLong { request: header.request, size: header.size });
        }
        partial.payload.resize(size, 0);
        if partial.payload_len < size {
            self.partial = Some(partial);
            return Ok(None);
        }
        Ok(Some(Frame { header, payload: partial.payload, fds: partial.fds }))
    }

    fn end(&mut self) -> Result<Incoming, SocketError> {
        match self.partial.take() {
            None => Ok(Incoming::Closed),
            Some(partial) => Err(SocketError::EndInside { got: partial.len() }),
        }
    }

    fn too_late(&mut self) -> SocketError {
        match self.partial.take() {
            None => SocketError::TimedOut,
            Some(partial) => {
                SocketError::HalfMessage { got: partial.len(), deadline: self.deadline }
            }
        }
    }

    fn wait_for_room(&self, sent: usize, until: Instant) -> Result<(), SocketError> {
        match wait(Some((self.fd.as_fd(), PollFlags::OUT)), None, Some(until))? {
            Ready::Time => Err(SocketError::SendStuck { sent, deadline: self.deadline }),
            Ready::Fd | Ready::Wake => Ok(()),
        }
    }
}

impl Drop for Stream {
    /// Hangs up. What the peer has sent and nobody has read goes with the socket, and with it the
    /// descriptors in there: who closes that may have to wait.
    fn drop(&mut self) {
        let Some(closer) = &self.closer else { return };
        if !self.is_shared {
            // Nothing more comes in.
            let _ = shutdown(&self.fd, Shutdown::Both);
        }
        if !matches!(ioctl_fionread(&self.fd), Ok(0)) {
            self.fd.close_with(closer);
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Partial {
    fn len(&self) -> usize {
        self.header_len + self.payload_len
    }
}

fn whole(frame: &Frame) -> Vec<u8> {
    [&frame.header.to_bytes()[..], &frame.payload].concat()
}

/// Reads some bytes, with the descriptors that came with them.
fn receive_some(
    fd: &ReceivedFd,
    closer: Option<&Closer>,
    buffer: &mut [u8],
) -> Result<(Read, Vec<ReceivedFd>, ReturnFlags), SocketError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = making(|| {
        let received = recvmsg(fd, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
        Ok((received.bytes, take_fds(&mut control, closer), received.flags))
    });
    match received {
        Ok((0, fds, flags)) => Ok((Read::End, fds, flags)),
        Ok((bytes, fds, flags)) => Ok((Read::Bytes(bytes), fds, flags)),
        Err(error) => Ok((no_bytes(error)?, Vec::new(), ReturnFlags::empty())),
    }
}

/// A failed read. A peer that closes with our replies unread shows as a reset: an end like any
/// other, since what it had sent was delivered before.
fn no_bytes(error: Errno) -> Result<Read, SocketError> {
    match error {
        Errno::AGAIN | Errno::INTR => Ok(Read::Nothing),
        Errno::CONNRESET => Ok(Read::End),
        error => Err(HostError::new("receive a message", error).into()),
    }
}

fn take_fds(control: &mut RecvAncillaryBuffer<'_>, closer: Option<&Closer>) -> Vec<ReceivedFd> {
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights.map(|fd| ReceivedFd::new(fd, closer)));
        }
    }
    fds
}

/// Bytes sent; 0 when there is no room now.
fn send_some(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[ReceivedFd]) -> Result<usize, SocketError> {
    if fds.len() > MAX_FDS {
        return Err(SocketError::TooManyFds { got: fds.len() });
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(&borrowed));
        debug_assert!(pushed, "the buffer has room for MAX_FDS");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match retry_on_intr(|| sendmsg(fd, &[IoSlice::new(bytes)], &mut control, flags)) {
        Ok(n) => Ok(n),
        Err(Errno::AGAIN) => Ok(0),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(SocketError::PeerGone),
        Err(error) => Err(HostError::new("send a message", error).into()),
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
