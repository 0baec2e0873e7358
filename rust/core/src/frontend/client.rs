//! The control connection: messages out, replies in.
//!
//! While a reply is awaited the back-end's own channel is read as well, since a back-end may be
//! waiting there for an answer before it goes on.
//!
//! Source: QEMU "Vhost-user Protocol".

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::channel::{BackendEvent, Channel, IotlbMiss};
use super::error::{FrontendError, Result};
use crate::error::HostError;
use crate::socket::{Incoming, Stream};
use crate::wire::message::{Answer, Fds, Needs};
use crate::wire::payload::XenFields;
use crate::wire::{Flags, Frame, FrontendMessage, Payload, ProtocolFeatures};

/// A connection to a back-end.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    timeout: Duration,
    pub(super) channel: Channel,
    /// Accepted protocol features.
    pub(super) protocol: ProtocolFeatures,
    /// Offered virtio-level features, once they were asked for.
    pub(super) offered: u64,
    /// What the last SET_XEN_MMAP said.
    pub(super) xen_said: XenFields,
    /// Replies that are still to come to messages which were given up.
    owed: u32,
}

impl Client {
    /// Connects to a back-end that may not listen yet, trying for as long as `timeout`.
    /// `timeout` is also how long each reply may take.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let stream = Stream::connect(path, timeout)
            .map_err(|source| FrontendError::Connect { path: path.to_owned(), source })?;
        Ok(Self::from_stream(stream, timeout))
    }

    /// Takes a connected socket. `timeout`: how long each reply may take.
    pub fn from_stream(stream: Stream, timeout: Duration) -> Self {
        let protocol = ProtocolFeatures::empty();
        let (channel, xen_said) = (Channel::closed(), XenFields::default());
        Self { stream, timeout, channel, protocol, offered: 0, xen_said, owed: 0 }
    }

    /// Sends a frame as it is. What the protocol says of it is not checked.
    pub fn raw(&mut self, frame: &Frame) -> Result<()> {
        self.stream.send(frame).map_err(|source| self.failed("raw message", source))
    }

    /// Waits for any frame.
    pub fn raw_reply(&mut self) -> Result<Frame> {
        self.next_frame("raw message")
    }

    /// What came on the back-end's channel by now.
    pub fn take_events(&mut self) -> Result<Vec<BackendEvent>> {
        self.channel.serve_waiting()?;
        Ok(std::iter::from_fn(|| self.channel.take()).collect())
    }

    /// Takes the next question for a translation that came on the back-end's channel by now; other
    /// events stay.
    pub(super) fn next_miss(&mut self) -> Result<Option<IotlbMiss>> {
        self.channel.serve_waiting()?;
        Ok(self.channel.take_miss())
    }

    /// The back-end's channel, which is readable when something came there. `None`: it is closed.
    pub(super) fn channel_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.fd()
    }

    /// Waits for something on the back-end's channel. `None`: nothing came in time.
    pub fn wait_event(&mut self, timeout: Duration) -> Result<Option<BackendEvent>> {
        let until = Instant::now() + timeout;
        match self.channel.take() {
            Some(event) => Ok(Some(event)),
            None => {
                self.channel.serve(until)?;
                Ok(self.channel.take())
            }
        }
    }

    /// Who the back-end is, for a log line.
    pub fn peer(&self) -> String {
        self.stream.peer()
    }

    /// How long each reply may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Accepted protocol features.
    pub fn accepted_protocol_features(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// A message that has no reply of its own. Waits for the acknowledgement if REPLY_ACK was
    /// accepted; else it has only been sent when this returns.
    pub(super) fn tell(
        &mut self,
        message: FrontendMessage,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let ask = self.protocol.contains(ProtocolFeatures::REPLY_ACK)
            && message.row().answer == Answer::IfAsked;
        self.send(message, payload, fds, ask)?;
        if !ask {
            return Ok(());
        }
        let reply = self.reply(message)?;
        match read(message, &reply.payload)? {
            0 => Ok(()),
            code => Err(FrontendError::Refused { message: message.name(), code }),
        }
    }

    /// A message that is answered with a payload of its own.
    pub(super) fn ask(&mut self, message: FrontendMessage, payload: Vec<u8>) -> Result<Frame> {
        self.ask_with(message, payload, Vec::new())
    }

    /// As [`ask`](Self::ask), with descriptors.
    pub(super) fn ask_with(
        &mut self,
        message: FrontendMessage,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<Frame> {
        self.send(message, payload, fds, false)?;
        self.reply(message)
    }

    /// As [`ask`](Self::ask), for an answer of one fixed layout.
    pub(super) fn ask_for<P: Payload>(
        &mut self,
        message: FrontendMessage,
        payload: Vec<u8>,
    ) -> Result<P> {
        let reply = self.ask(message, payload)?;
        read(message, &reply.payload)
    }

    pub(super) fn send(
        &mut self,
        message: FrontendMessage,
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
        ask: bool,
    ) -> Result<()> {
        self.check_needs(message)?;
        self.settle(message.name())?;
        let flags = if ask { Flags::VERSION | Flags::NEED_REPLY } else { Flags::VERSION };
        let frame = Frame::new(message.number(), flags, payload, fds);
        self.stream.send(&frame).map_err(|source| self.failed(message.name(), source))
    }

    /// Refuses what the back-end would not understand.
    fn check_needs(&self, message: FrontendMessage) -> Result<()> {
        let met = match message.row().needs {
            Needs::Protocol(features) => self.protocol.contains(features),
            Needs::Offered(features) => self.offered & features == features,
            Needs::Nothing | Needs::Accepted(_) | Needs::DeviceType(_) => true,
        };
        if met { Ok(()) } else { Err(FrontendError::NotOffered { what: message.name() }) }
    }

    /// Reads the replies to messages that nobody waited for to the end.
    fn settle(&mut self, message: &'static str) -> Result<()> {
        while self.owed > 0 {
            self.next_frame(message)?;
            self.owed -= 1;
        }
        Ok(())
    }

    /// Whether each message has its reply.
    pub(super) fn is_settled(&self) -> bool {
        self.owed == 0
    }

    fn reply(&mut self, message: FrontendMessage) -> Result<Frame> {
        let name = message.name();
        self.owed += 1;
        let reply = self.next_frame(name)?;
        self.owed -= 1;
        let bad = |why: String| Err(FrontendError::BadReply { message: name, why });
        let header = reply.header;
        if header.request != message.number() {
            return bad(format!("it is for request {}", header.request));
        }
        // QEMU and DPDK compare the whole word; a back-end that does not pass here fails there.
        if header.flags != Flags::VERSION | Flags::REPLY {
            return bad(format!("flags {:#x} instead of 0x5", header.flags.bits()));
        }
        let fds = reply.fds.len();
        let allowed = match message.row().answer {
            Answer::IfAsked => Fds::NONE,
            Answer::Always { fds, .. } => fds,
        };
        if !allowed.allows(fds) {
            return bad(format!("{fds} descriptors came with it, {allowed} expected"));
        }
        Ok(reply)
    }

    fn next_frame(&mut self, message: &'static str) -> Result<Frame> {
        let until = Instant::now() + self.timeout;
        loop {
            match self.stream.receive_until(self.channel.fd(), until) {
                Ok(Incoming::Frame(frame)) => return Ok(frame),
                Ok(Incoming::Closed) => return Err(FrontendError::Closed { message }),
                Ok(Incoming::Woken) => self.channel.serve(until).map(drop)?,
                Err(source) => return Err(self.failed(message, source)),
            }
        }
    }

    fn failed(&self, message: &'static str, source: crate::socket::SocketError) -> FrontendError {
        FrontendError::socket(message, self.timeout, source)
    }
}

impl AsFd for Client {
    /// The socket: hung up when the back-end is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Reads a reply's payload.
pub(super) fn read<P: Payload>(message: FrontendMessage, payload: &[u8]) -> Result<P> {
    P::from_bytes(payload)
        .map_err(|e| FrontendError::BadReply { message: message.name(), why: e.to_string() })
}

/// A copy of a descriptor, to go with a message.
pub(super) fn copy(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    Ok(fd.try_clone_to_owned().map_err(|e| HostError::new("copy a descriptor", e))?)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
