//! The relay: a front-end at one side, a back-end at the other, and one message at a time between
//! them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::backend::{Backend, answers, name, request};
use super::channel::Channel;
use super::store::Store;
use super::told::{Told, number};
use super::wait::first_ready;
use super::{Failure, record};
use crate::socket::{Endpoint, Incoming, Next, SocketError, Source, Stream};
use crate::sys::closer::Closer;
use crate::wire::message::Answer;
use crate::wire::payload::VringState;
use crate::wire::{Flags, Frame, FrontendMessage, Payload, ProtocolFeatures, ReceivedFd};

/// Protocol features whose state is known here. Others are hidden from the front-end: those that
/// hand out what only one process has (page faults of its memory, its descriptors), and Xen's.
const HELD: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::RARP)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::MTU)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CROSS_ENDIAN)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::DEVICE_STATE)
    .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
    .union(ProtocolFeatures::GPA_ADDRESSES);

/// The answer to SET_DEVICE_STATE_FD that a transfer cannot be: an error, and no descriptor.
const NO_TRANSFER: u64 = 0x101;

/// How long a front-end may take for one message, from its first byte to its last.
const MESSAGE: Duration = Duration::from_secs(5);

/// Why [`Relay::run`] has returned.
#[derive(Debug)]
pub enum Event {
    /// The wake descriptor became readable.
    Woken,
    /// A front-end has come: who it is.
    Came(String),
    /// The front-end's connection is over: why, if it was not the front-end that left. So is the
    /// back-end's, which takes another one for the next front-end.
    Left(Option<String>),
    /// The back-end is lost, or there is none: how that showed.
    Lost(String),
    /// No front-end can be taken now: why.
    Held(String),
    /// No other front-end will come.
    Over,
}

/// A front-end's message that has no answer yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) frame: Frame,
    pub(super) message: FrontendMessage,
    /// The front-end wants to be answered.
    pub(super) asked: bool,
    /// What it brings, if it is SET_BACKEND_REQ_FD.
    pub(super) channel: Option<Channel>,
}

/// What the front-end is told if its message does no good.
type Refusal = String;

/// Keeps a front-end's connection, and passes its messages to the back-end that there is.
#[derive(Debug)]
pub struct Relay {
    source: Source,
    pub(super) closer: Closer,
    pub(super) front: Option<Stream>,
    back: Option<Backend>,
    /// The back-end that is to follow.
    next: Option<Backend>,
    pub(super) told: Told,
    pub(super) pending: Option<Pending>,
    /// All rings stand still, and the last back-end has told where.
    parked: bool,
    /// A back-end has died while it transferred the device's state.
    pub(super) transfer_lost: bool,
    /// Where the next keeper finds all this.
    pub(super) store: Option<Store>,
    /// Why there is none any more.
    pub(super) not_stored: Option<io::Error>,
    /// The process of the back-end.
    pub(super) process: Option<ReceivedFd>,
}

impl Relay {
    /// Opens the socket of front-ends.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(endpoint: Endpoint) -> Result<Self, SocketError> {
        let (mut source, closer) = (endpoint.open()?, Closer::default());
        source.close_with(&closer);
        Ok(Self {
            source,
            closer,
            front: None,
            back: None,
            next: None,
            told: Told::default(),
            pending: None,
            parked: false,
            transfer_lost: false,
            store: None,
            not_stored: None,
            process: None,
        })
    }

    /// Takes a back-end in place of the last one, which is dead, or [parked](Self::park): tells it
    /// what the last one was told, and puts to it the message that is not answered yet.
    ///
    /// # Errors
    /// It is lost too, or cannot follow the last one.
    pub fn attach(&mut self, stream: Stream) -> Result<(), Failure> {
        self.back = None;
        let backend = Backend::meet(stream)?;
        self.install(backend)
    }

    /// Takes a back-end that is to follow, once it has said that it can.
    ///
    /// # Errors
    /// It cannot. All goes on with the present one.
    pub fn prepare(&mut self, stream: Stream) -> Result<(), Failure> {
        self.next = None;
        let backend = Backend::meet(stream)?;
        self.told.check(&backend)?;
        self.next = Some(backend);
        Ok(())
    }

    /// Has the present back-end finish what it has in hand and give up all rings, and hangs up.
    ///
    /// # Errors
    /// It has not done so: it may go on with the rings until it is dead.
    pub fn park(&mut self) -> Result<(), Failure> {
        let parked = self.finish().and_then(|()| self.stop_rings());
        self.back = None;
        self.parked = parked.is_ok();
        parked
    }

    /// Goes on with the back-end that was [prepared](Self::prepare).
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn take_over(&mut self) -> Result<(), Failure> {
        let next = self.next.take();
        self.install(next.ok_or_else(|| Failure::lost("no back-end follows"))?)
    }

    /// Hangs up on the front-end and the back-end.
    pub fn hang_up(&mut self) {
        let cleared = self.store.as_mut().map_or(Ok(()), Store::clear);
        self.has_stored(cleared);
        if let Some(front) = &mut self.front {
            front.unshare();
        }
        (self.front, self.back, self.pending) = (None, None, None);
        self.told = Told::default();
        (self.parked, self.transfer_lost) = (false, false);
    }

    /// Whether there is a front-end.
    pub fn has_frontend(&self) -> bool {
        self.front.is_some()
    }

    /// Whether a ring runs, or would if there were a back-end.
    pub fn runs(&self) -> bool {
        self.told.runs()
    }

    /// Whether the back-end records what is in flight, so that another one can go on when it dies.
    pub fn records(&self) -> bool {
        self.back.as_ref().is_some_and(Backend::records)
    }

    /// What the back-end offers and the front-end is not shown, in words.
    pub fn hidden(&self) -> Option<String> {
        let hidden = self.back.as_ref().map_or_else(ProtocolFeatures::empty, |b| b.protocol) - HELD;
        (!hidden.is_empty()).then(|| hidden.describe())
    }

    /// Passes messages, until something comes to pass that is not for the relay to deal with.
    ///
    /// # Errors
    /// No front-end can be waited for any more.
    pub fn run(&mut self, wake: BorrowedFd<'_>) -> Result<Event, SocketError> {
        loop {
            let event = match (&self.front, &self.pending) {
                (None, _) => Some(self.accept(wake)?),
                (Some(_), None) => self.hear(wake)?,
                (Some(_), Some(_)) => self.await_answer(wake),
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    fn accept(&mut self, wake: BorrowedFd<'_>) -> Result<Event, SocketError> {
        Ok(match self.source.next(wake)? {
            Next::Woken => Event::Woken,
            Next::Held(error) => Event::Held(error.to_string()),
            Next::Over => Event::Over,
            Next::Stream(stream) => {
                let peer = stream.peer();
                self.came(stream);
                Event::Came(peer)
            }
        })
    }

    pub(super) fn came(&mut self, mut stream: Stream) {
        stream.close_with(&self.closer);
        stream.set_deadline(MESSAGE);
        if self.store.is_some() {
            stream.share();
        }
        self.front = Some(stream);
        self.save();
    }

    /// Waits for the front-end's next message, and passes it on.
    fn hear(&mut self, wake: BorrowedFd<'_>) -> Result<Option<Event>, SocketError> {
        let (Some(front), Some(back)) = (&mut self.front, &self.back) else {
            return Ok(Some(Event::Lost("there is none".to_owned())));
        };
        match first_ready(&[wake, back.as_fd(), front.as_fd()])? {
            0 => return Ok(Some(Event::Woken)),
            1 => return Ok(Some(self.back_spoke(wake))),
            _ => {}
        }
        let incoming = front.receive_until(None, Instant::now() + MESSAGE);
        Ok(match incoming {
            Ok(Incoming::Frame(frame)) => self.pass(frame),
            Ok(Incoming::Closed | Incoming::Woken) => Some(self.leave(None)),
            Err(error) => Some(self.leave(Some(error.to_string()))),
        })
    }

    /// The back-end has hung up, or says something that it was not asked.
    fn back_spoke(&mut self, wake: BorrowedFd<'_>) -> Event {
        let reply = self.back.as_mut().map(|back| back.reply(wake));
        self.lose(match reply {
            Some(Err(failure)) => failure.to_string(),
            _ => "it speaks without being asked".to_owned(),
        })
    }

    /// Takes a message of the front-end.
    fn pass(&mut self, frame: Frame) -> Option<Event> {
        let flags = frame.header.flags;
        if flags - Flags::NEED_REPLY != Flags::VERSION {
            return Some(self.leave(Some(format!("a request with flags {:#x}", flags.bits()))));
        }
        let asked = flags.contains(Flags::NEED_REPLY);
        match FrontendMessage::from_number(frame.header.request) {
            None => self.refuse(&frame, asked, "unknown".to_owned()),
            Some(FrontendMessage::CheckDeviceState) if self.transfer_lost => {
                self.transfer_lost = false;
                self.answer(&frame, 1)
            }
            Some(message) => match self.channel_of(message, &frame) {
                Err(why) => self.refuse(&frame, asked, why),
                Ok(channel) => {
                    self.pending = Some(Pending { frame, message, asked, channel });
                    self.put().err().map(|failure| self.failed(failure))
                }
            },
        }
    }

    /// The channel that a message brings, if it does. Refuses one that cannot be passed on.
    pub(super) fn channel_of(
        &self,
        message: FrontendMessage,
        frame: &Frame,
    ) -> Result<Option<Channel>, Refusal> {
        if let Some(why) = self.objection(message, frame) {
            return Err(why);
        }
        let brings = message == FrontendMessage::SetBackendReqFd;
        brings.then(|| Channel::open(frame, &self.closer)).transpose()
    }

    fn objection(&self, message: FrontendMessage, frame: &Frame) -> Option<Refusal> {
        if message != FrontendMessage::SetProtocolFeatures {
            return self.told.objection(message, frame);
        }
        let hidden = ProtocolFeatures::from_bits_retain(number(frame)?) - HELD;
        (!hidden.is_empty()).then(|| format!("not offered: {}", hidden.describe()))
    }

    /// Puts the pending message to the back-end.
    fn put(&mut self) -> Result<(), Failure> {
        let (Some(pending), Some(back)) = (&mut self.pending, &mut self.back) else {
            return Ok(());
        };
        if pending.message == FrontendMessage::SetVringKick {
            record::make(&mut self.told, back)?;
        }
        self.save();
        let (Some(pending), Some(back)) = (&mut self.pending, &mut self.back) else {
            return Ok(());
        };
        let answered = match own_words(pending, back)? {
            Some(mut frame) => {
                let answered = back.prepare(&mut frame, pending.asked);
                back.send(&frame)?;
                answered
            }
            None => {
                let answered = back.prepare(&mut pending.frame, pending.asked);
                back.send(&pending.frame)?;
                answered
            }
        };
        if !answered && let Some(Pending { frame, message, channel, .. }) = self.pending.take() {
            self.told.learn(message, frame, None);
            self.told.channel = channel.or(self.told.channel.take());
            self.save();
        }
        Ok(())
    }

    /// Waits for the back-end's answer.
    fn await_answer(&mut self, wake: BorrowedFd<'_>) -> Option<Event> {
        let Some(back) = &mut self.back else {
            return Some(Event::Lost("there is none".to_owned()));
        };
        match back.reply(wake) {
            Ok(None) => Some(Event::Woken),
            Ok(Some(reply)) => self.answered(reply),
            Err(failure) => Some(self.failed(failure)),
        }
    }

    /// Keeps what the back-end has taken, and passes its answer on.
    fn answered(&mut self, mut reply: Frame) -> Option<Event> {
        let Pending { frame, message, asked, channel } = self.pending.take()?;
        if let Err(failure) = answers(&frame, &reply) {
            self.pending = Some(Pending { frame, message, asked, channel });
            return Some(self.failed(failure));
        }
        let acknowledges = message.row().answer == Answer::IfAsked;
        let taken = match (message, number(&reply)) {
            (FrontendMessage::SetDeviceStateFd, Some(code)) => code & 0xff == 0,
            (_, Some(code)) if acknowledges => code == 0,
            _ => true,
        };
        if message == FrontendMessage::GetProtocolFeatures
            && let Some(offered) = number(&reply)
        {
            reply.payload = (offered & HELD.bits()).to_bytes();
        }
        if taken {
            self.transfer_lost &= message != FrontendMessage::SetDeviceStateFd;
            self.told.learn(message, frame, Some(&reply));
            self.told.channel = channel.or(self.told.channel.take());
        }
        self.save();
        match (asked || !acknowledges, taken) {
            (true, _) => self.reply(&reply),
            (false, true) => None,
            (false, false) => {
                let name = message.name();
                Some(self.leave(Some(format!("the back-end refuses {name}: its log says why"))))
            }
        }
    }

    /// Refuses a message here, as a back-end does.
    fn refuse(&mut self, frame: &Frame, asked: bool, why: Refusal) -> Option<Event> {
        if asked {
            return self.answer(frame, 1);
        }
        let name = name(frame);
        Some(self.leave(Some(format!("{name}: {why}"))))
    }

    fn answer(&mut self, frame: &Frame, code: u64) -> Option<Event> {
        let flags = Flags::VERSION | Flags::REPLY;
        let reply = Frame::new(frame.header.request, flags, code.to_bytes(), Vec::new());
        self.reply(&reply)
    }

    fn reply(&mut self, reply: &Frame) -> Option<Event> {
        let sent = self.front.as_mut()?.send(reply);
        sent.err().map(|error| self.leave(Some(error.to_string())))
    }

    fn failed(&mut self, failure: Failure) -> Event {
        match failure {
            Failure::Lost(why) => self.lose(why),
            Failure::Refused(why) => self.leave(Some(why)),
        }
    }

    fn lose(&mut self, why: String) -> Event {
        self.back = None;
        Event::Lost(why)
    }

    fn leave(&mut self, why: Option<String>) -> Event {
        self.hang_up();
        Event::Left(why)
    }

    /// Has a back-end take up what is there.
    fn install(&mut self, mut backend: Backend) -> Result<(), Failure> {
        self.told.check(&backend)?;
        if self.may_run() && self.told.record.is_none() && !self.parked {
            let why = "the requests that were in flight are not known: the last back-end has not \
                       recorded them (INFLIGHT_SHMFD)";
            return Err(Failure::Refused(why.to_owned()));
        }
        self.save();
        self.told.say(&mut backend)?;
        self.back = Some(backend);
        self.parked = false;
        self.give_up_transfer();
        self.save();
        self.put()
    }

    /// Whether a ring may have run at the last back-end: one that has started, or whose start it has
    /// not answered.
    fn may_run(&self) -> bool {
        let starts = |p: &Pending| p.message == FrontendMessage::SetVringKick;
        self.told.runs() || self.pending.as_ref().is_some_and(starts)
    }

    /// A transfer of the device's state ended with its back-end: the front-end hears that it failed.
    fn give_up_transfer(&mut self) {
        self.transfer_lost |= std::mem::take(&mut self.told.transfers);
        let is_begun = |p: &mut Pending| p.message == FrontendMessage::SetDeviceStateFd;
        let is_asked = |p: &mut Pending| p.message == FrontendMessage::CheckDeviceState;
        if let Some(Pending { frame, .. }) = self.pending.take_if(is_begun) {
            self.answer(&frame, NO_TRANSFER);
        } else if self.transfer_lost
            && let Some(Pending { frame, .. }) = self.pending.take_if(is_asked)
        {
            self.transfer_lost = false;
            self.answer(&frame, 1);
        }
    }

    /// Waits for the answer to the message that is put to the back-end.
    fn finish(&mut self) -> Result<(), Failure> {
        let (Some(pending), Some(back)) = (&self.pending, &mut self.back) else { return Ok(()) };
        let reply = back.reply_to(&pending.frame)?;
        match self.answered(reply) {
            Some(Event::Lost(why)) => Err(Failure::Lost(why)),
            _ => Ok(()),
        }
    }

    fn stop_rings(&mut self) -> Result<(), Failure> {
        for index in self.told.started() {
            let Some(back) = &mut self.back else { break };
            let asked = VringState { index, num: 0 }.to_bytes();
            let reply = back.ask(&mut request(FrontendMessage::GetVringBase, asked))?;
            let base = VringState::from_bytes(&reply.payload).map_err(Failure::lost)?;
            self.told.stands_at(base);
        }
        Ok(())
    }
}

/// The message that stands for the front-end's, where it is not the same.
fn own_words(pending: &mut Pending, back: &Backend) -> Result<Option<Frame>, Failure> {
    if let Some(channel) = &mut pending.channel {
        return channel.offer().map(Some);
    }
    if pending.message != FrontendMessage::SetProtocolFeatures {
        return Ok(None);
    }
    let accepted = |wanted| back.accepted(ProtocolFeatures::from_bits_retain(wanted));
    let own = |wanted| request(pending.message, accepted(wanted).bits().to_bytes());
    Ok(number(&pending.frame).map(own))
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
