//! The connection to one back-end: what it offers, and questions with their answers.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::Failure;
use crate::socket::{Incoming, SocketError, Stream};
use crate::wire::features::PROTOCOL_FEATURES;
use crate::wire::message::Answer;
use crate::wire::{Flags, Frame, FrontendMessage, Payload, ProtocolFeatures};

/// How long a back-end may take to answer what the relay itself asks: it may have to finish
/// requests before it gives a ring's base.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the relay negotiates for itself, whatever the front-end does: to hear of each message
/// whether it was taken, to have requests in flight recorded, and to see that the next back-end
/// can do as much.
const OWN: ProtocolFeatures = ProtocolFeatures::REPLY_ACK
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::MQ)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// A back-end that has said what it offers.
#[derive(Debug)]
pub(super) struct Backend {
    stream: Stream,
    /// Virtio's and vhost's features.
    pub(super) features: u64,
    /// Protocol features; none without vhost's PROTOCOL_FEATURES.
    pub(super) protocol: ProtocolFeatures,
    /// The answer to GET_QUEUE_NUM.
    pub(super) queues: Option<u64>,
    /// The answer to GET_MAX_MEM_SLOTS.
    pub(super) slots: Option<u64>,
}

impl Backend {
    /// Asks a back-end what it offers.
    pub(super) fn meet(mut stream: Stream) -> Result<Self, Failure> {
        stream.set_deadline(PATIENCE);
        let protocol = ProtocolFeatures::empty();
        let mut backend = Self { stream, features: 0, protocol, queues: None, slots: None };
        backend.features = backend.number(FrontendMessage::GetFeatures)?;
        if backend.features & PROTOCOL_FEATURES == 0 {
            return Ok(backend);
        }
        let offered = backend.number(FrontendMessage::GetProtocolFeatures)?;
        backend.protocol = ProtocolFeatures::from_bits_retain(offered);
        backend.accept(ProtocolFeatures::empty())?;
        if backend.protocol.contains(ProtocolFeatures::MQ) {
            backend.queues = Some(backend.number(FrontendMessage::GetQueueNum)?);
        }
        if backend.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            backend.slots = Some(backend.number(FrontendMessage::GetMaxMemSlots)?);
        }
        Ok(backend)
    }

    /// What is accepted when the front-end accepts `wanted`.
    pub(super) fn accepted(&self, wanted: ProtocolFeatures) -> ProtocolFeatures {
        wanted | (self.protocol & OWN)
    }

    /// Accepts protocol features, with those of the relay.
    pub(super) fn accept(&mut self, wanted: ProtocolFeatures) -> Result<(), Failure> {
        let bits = self.accepted(wanted).bits().to_bytes();
        self.tell(&mut request(FrontendMessage::SetProtocolFeatures, bits))
    }

    /// Requests in flight are recorded.
    pub(super) fn records(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD)
    }

    /// Each message is acknowledged.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Says something, and waits until it is taken, if this back-end tells.
    pub(super) fn tell(&mut self, frame: &mut Frame) -> Result<(), Failure> {
        let answered = self.prepare(frame, false);
        self.send(frame)?;
        if !answered {
            return Ok(());
        }
        let (name, reply) = (name(frame), self.reply_to(frame)?);
        match u64::from_bytes(&reply.payload) {
            Ok(0) => Ok(()),
            // With LOG_SHMFD the answer to SET_LOG_BASE has one of several forms.
            _ if frame.header.request == FrontendMessage::SetLogBase.number() => Ok(()),
            Ok(code) => Err(Failure::Refused(format!("the back-end refuses {name} ({code})"))),
            Err(error) => Err(Failure::Lost(format!("its answer to {name}: {error}"))),
        }
    }

    /// Asks something that has an answer of its own.
    pub(super) fn ask(&mut self, frame: &mut Frame) -> Result<Frame, Failure> {
        self.prepare(frame, false);
        self.send(frame)?;
        self.reply_to(frame)
    }

    /// Has a message ask for an acknowledgement if it is `asked` for, or this back-end gives them.
    /// Returns whether an answer comes.
    pub(super) fn prepare(&self, frame: &mut Frame, asked: bool) -> bool {
        let always = match FrontendMessage::from_number(frame.header.request) {
            Some(message) => message.row().answer != Answer::IfAsked,
            None => false,
        };
        let ask = !always && (asked || self.acknowledges());
        let reply = if ask { Flags::NEED_REPLY } else { Flags::empty() };
        frame.header.flags = Flags::VERSION | reply;
        always || ask
    }

    pub(super) fn send(&mut self, frame: &Frame) -> Result<(), Failure> {
        self.stream.send(frame).map_err(Failure::lost)
    }

    /// Waits for an answer, until `wake` is readable: `None`.
    pub(super) fn reply(&mut self, wake: BorrowedFd<'_>) -> Result<Option<Frame>, Failure> {
        heard(self.stream.receive(wake))
    }

    /// Waits for the answer to a message.
    pub(super) fn reply_to(&mut self, frame: &Frame) -> Result<Frame, Failure> {
        let until = Instant::now() + PATIENCE;
        let reply = heard(self.stream.receive_until(None, until))?;
        let reply = reply.ok_or_else(|| Failure::lost("no answer"))?;
        answers(frame, &reply)?;
        Ok(reply)
    }

    fn number(&mut self, message: FrontendMessage) -> Result<u64, Failure> {
        let reply = self.ask(&mut request(message, Vec::new()))?;
        u64::from_bytes(&reply.payload)
            .map_err(|error| Failure::Lost(format!("its answer to {}: {error}", message.name())))
    }
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A request without descriptors.
pub(super) fn request(message: FrontendMessage, payload: Vec<u8>) -> Frame {
    Frame::new(message.number(), Flags::VERSION, payload, Vec::new())
}

/// A message's name, or its number.
pub(super) fn name(frame: &Frame) -> String {
    let number = frame.header.request;
    match FrontendMessage::from_number(number) {
        Some(message) => message.name().to_owned(),
        None => format!("message {number}"),
    }
}

/// Holds an answer against its question.
pub(super) fn answers(frame: &Frame, reply: &Frame) -> Result<(), Failure> {
    let (request, header) = (frame.header.request, reply.header);
    if header.request == request && header.flags.contains(Flags::REPLY) {
        return Ok(());
    }
    let (got, flags) = (header.request, header.flags.bits());
    Err(Failure::Lost(format!("it answers {} by {got} with flags {flags:#x}", name(frame))))
}

fn heard(incoming: Result<Incoming, SocketError>) -> Result<Option<Frame>, Failure> {
    match incoming {
        Ok(Incoming::Frame(frame)) => Ok(Some(frame)),
        Ok(Incoming::Woken) => Ok(None),
        Ok(Incoming::Closed) => Err(Failure::lost("it has closed the connection")),
        Err(error) => Err(Failure::lost(error)),
    }
}
