//! The back-end's own requests, on the second socket.
//!
//! Source: QEMU "Vhost-user Protocol", "Back-end message types".

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::error::{FrontendError, Result};
use crate::address::Iova;
use crate::socket::{Incoming, SocketError, Stream};
use crate::wire::payload::{Iotlb, IotlbAccess, IotlbKind};
use crate::wire::{BackendMessage, Flags, Frame, Payload};

/// Events kept for the caller; the oldest are forgotten first. A back-end may send as many as it
/// likes, and what one of them says is only "look again".
const MAX_EVENTS: usize = 4096;

const NAME: &str = "back-end channel";

/// What a back-end told us unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendEvent {
    /// The configuration space has changed.
    ConfigChange,
    /// An I/O virtual address has no translation: to be answered by
    /// [`Client::answer_miss`](super::Client::answer_miss).
    IotlbMiss(IotlbMiss),
    /// A request, by number, that this front-end does not carry out and has refused.
    Other(u32),
}

/// A translation that a back-end asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IotlbMiss {
    /// The address that has none.
    pub iova: Iova,
    /// The device is to write there, and else to read.
    pub write: bool,
    /// The back-end waits for an acknowledgement.
    pub(super) acknowledged: bool,
}

/// The second socket. It closes itself for good when the back-end closes its end.
#[derive(Debug)]
pub(super) struct Channel {
    stream: Option<Stream>,
    events: VecDeque<BackendEvent>,
}

impl Channel {
    pub(super) fn closed() -> Self {
        Self { stream: None, events: VecDeque::new() }
    }

    pub(super) fn open(stream: Stream) -> Self {
        Self { stream: Some(stream), events: VecDeque::new() }
    }

    /// Readable when [`serve`](Self::serve) has something to do; `None` when the channel is closed.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// The oldest event not taken yet.
    pub(super) fn take(&mut self) -> Option<BackendEvent> {
        self.events.pop_front()
    }

    /// The oldest question for a translation not taken yet.
    pub(super) fn take_miss(&mut self) -> Option<IotlbMiss> {
        let is_miss = |event: &BackendEvent| matches!(event, BackendEvent::IotlbMiss(_));
        match self.events.remove(self.events.iter().position(is_miss)?) {
            Some(BackendEvent::IotlbMiss(miss)) => Some(miss),
            _ => None,
        }
    }

    /// Waits for one request, answers it and keeps its event. `false`: none came in time, or the
    /// channel is closed.
    pub(super) fn serve(&mut self, until: Instant) -> Result<bool> {
        let Some(stream) = &mut self.stream else {
            return Ok(false);
        };
        match stream.receive_until(None, until) {
            Ok(Incoming::Frame(frame)) => self.answer(&frame).map(|()| true),
            Ok(Incoming::Closed | Incoming::Woken) => {
                self.stream = None;
                Ok(false)
            }
            Err(SocketError::TimedOut) => Ok(false),
            Err(source) => Err(FrontendError::Socket { message: NAME, source }),
        }
    }

    /// Serves all that has arrived, without waiting for more.
    pub(super) fn serve_waiting(&mut self) -> Result<()> {
        while self.serve(Instant::now())? {}
        Ok(())
    }

    fn answer(&mut self, request: &Frame) -> Result<()> {
        let number = request.header.request;
        let need_reply = request.header.flags.contains(Flags::NEED_REPLY);
        if number == BackendMessage::IotlbMsg.number()
            && let Some(miss) = miss(request, need_reply)
        {
            self.keep(BackendEvent::IotlbMiss(miss));
            return Ok(());
        }
        let change = BackendMessage::from_number(number) == Some(BackendMessage::ConfigChangeMsg);
        self.keep(if change { BackendEvent::ConfigChange } else { BackendEvent::Other(number) });
        if need_reply { self.acknowledge(number, u64::from(!change)) } else { Ok(()) }
    }

    fn keep(&mut self, event: BackendEvent) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Acknowledges a request with this code; 0: it was carried out.
    pub(super) fn acknowledge(&mut self, number: u32, code: u64) -> Result<()> {
        let flags = Flags::VERSION | Flags::REPLY;
        let reply = Frame::new(number, flags, code.to_bytes(), Vec::new());
        match self.stream.as_mut().map(|stream| stream.send(&reply)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(FrontendError::socket(NAME, Duration::ZERO, source)),
        }
    }
}

/// The translation that a request asks for, if it asks for one.
fn miss(request: &Frame, acknowledged: bool) -> Option<IotlbMiss> {
    let entry = Iotlb::from_bytes(&request.payload).ok()?;
    let write = matches!(entry.access, IotlbAccess::Write | IotlbAccess::ReadWrite);
    let is_miss = entry.kind == IotlbKind::Miss;
    is_miss.then_some(IotlbMiss { iova: entry.iova, write, acknowledged })
}
