//! The channel for the back-end's own requests: the configuration changed, and an address has no
//! translation.
//!
//! The front-end may be waiting for us on the main socket, so nothing is waited for here. Where there
//! is no room for a changed configuration nothing is sent: the front-end has not read an earlier such
//! message yet, and looks at the configuration when it does. Requests for translations wait for room,
//! and their acknowledgements are taken when they have come: an epoll instance stands for the session's
//! own wake-up and for the channel.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use crate::address::UserAddr;
use crate::connection::Refusal;
use crate::error::HostError;
use crate::memory::{Access, Miss};
use crate::socket::{Incoming, Stream};
use crate::sys::closer::Closer;
use crate::sys::event_kind::EventKind;
use crate::sys::fd_kind::fd_kind;
use crate::wire::payload::{Iotlb, IotlbAccess, IotlbKind};
use crate::wire::{BackendMessage, Flags, Frame, Payload, ReceivedFd};

/// The most questions that are open at a time; others wait for an answer. A front-end could read them,
/// answer none, and give the queues reason to ask anew for ever. 16 queues have as many at once.
const MOST_OPEN: usize = 1 << 13;

/// The channel: closed until the front-end passes a socket, and again when its peer is gone.
#[derive(Debug, Default)]
pub(super) struct Channel {
    stream: Option<Stream>,
    /// There was no room for the last message.
    full: bool,
    /// What wakes the session; made with the first translation that is asked for.
    wakes: Option<OwnedFd>,
    /// Translations that are to be asked for.
    wanted: VecDeque<Wanted>,
    /// Those that were asked for and not acknowledged, oldest first.
    asked: VecDeque<Wanted>,
    /// It was said that they cannot be asked for.
    told: bool,
}

/// A translation that a queue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The queue.
    pub(super) queue: u16,
    /// The number of its question, which may ask for others too.
    pub(super) question: u64,
    /// What it is.
    pub(super) miss: Miss,
}

/// An acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// What was asked for.
    pub(super) wanted: Wanted,
    /// The front-end says that it has told the translation; else that there is none.
    pub(super) told: bool,
}

impl Channel {
    /// Takes the front-end's descriptor. `closer` closes what it passes on it.
    pub(super) fn open(fd: ReceivedFd, closer: &Closer) -> Result<Self, Refusal> {
        let refused = |what: &str| {
            Refusal(format!(
                "SET_BACKEND_REQ_FD: its descriptor is {what}, not a Unix stream socket"
            ))
        };
        let kind = EventKind::of(fd.as_fd()).map_err(|what| refused(&what))?;
        if kind != EventKind::Socket || socket_type(&fd) != Ok(SocketType::STREAM) {
            return Err(refused(&fd_kind(fd.as_fd())));
        }
        let mut stream = Stream::new(fd);
        stream.close_with(closer);
        // A front-end may keep its end for the next back-end.
        stream.share();
        Ok(Self { stream: Some(stream), ..Self::default() })
    }

    /// Sends CONFIG_CHANGE_MSG. The error is for the log, and comes once of a kind.
    pub(super) fn config_changed(&mut self) -> Result<(), Refusal> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let number = BackendMessage::ConfigChangeMsg.number();
        let why = match stream.offer(&Frame::new(number, Flags::VERSION, Vec::new(), Vec::new())) {
            Ok(sent) => {
                let known = std::mem::replace(&mut self.full, !sent);
                if sent || known {
                    return Ok(());
                }
                "the front-end does not read its back-end channel".to_owned()
            }
            Err(error) => {
                self.close();
                error.to_string()
            }
        };
        Err(Refusal(format!("CONFIG_CHANGE_MSG: {why}")))
    }

    /// Is readable when there is something to do here, or `wake` is.
    pub(super) fn wakes<'a>(&'a self, wake: BorrowedFd<'a>) -> BorrowedFd<'a> {
        self.wakes.as_ref().map_or(wake, AsFd::as_fd)
    }

    /// Asks for what was asked for by the former channel and not acknowledged.
    pub(super) fn go_on_for(&mut self, former: Self) {
        self.wanted = still_wanted(former.asked.into_iter().chain(former.wanted));
    }

    /// Notes translations that a queue waits for, in the place of those that it wanted before.
    pub(super) fn want(&mut self, wanted: Vec<Wanted>) {
        self.wanted.retain(|old| !wanted.iter().any(|new| new.queue == old.queue));
        self.wanted.extend(wanted);
    }

    /// Asks for as many of the translations that are wanted as there is room for. The error is for the
    /// log, and comes once.
    pub(super) fn ask(&mut self, wake: BorrowedFd<'_>, acknowledged: bool) -> Result<(), Refusal> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let why = match self.try_ask(wake, acknowledged) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if std::mem::replace(&mut self.told, true) {
            return Ok(());
        }
        Err(Refusal(format!("IOTLB_MSG: translations of addresses cannot be asked for: {why}")))
    }

    fn try_ask(&mut self, wake: BorrowedFd<'_>, acknowledged: bool) -> Result<(), String> {
        let Self { stream, wakes, wanted, asked, .. } = self;
        let Some(channel) = stream else {
            return Err("the front-end has no back-end channel".to_owned());
        };
        if wakes.is_none() {
            *wakes = Some(watch(wake, channel.as_fd()).map_err(|error| error.to_string())?);
        }
        let mut room = true;
        while let Some(&next) = wanted.front()
            && asked.len() < MOST_OPEN
        {
            match channel.offer(&request(next.miss, acknowledged)) {
                Ok(true) => {}
                Ok(false) => {
                    room = false;
                    break;
                }
                Err(error) => {
                    self.close();
                    return Err(error.to_string());
                }
            }
            wanted.pop_front();
            if acknowledged {
                asked.push_back(next);
            }
        }
        self.watch_for_room(!room);
        Ok(())
    }

    /// Has the session woken when there is room, or not.
    fn watch_for_room(&self, watch: bool) {
        let (Some(wakes), Some(stream)) = (&self.wakes, &self.stream) else { return };
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, watch);
        // It was added with the same arguments.
        let _ = epoll::modify(wakes, stream.as_fd(), epoll::EventData::new_u64(0), flags);
    }

    /// Takes the acknowledgements that have come. The error is for the log: the channel is closed then.
    pub(super) fn answers(&mut self) -> Result<Vec<Answer>, Refusal> {
        let mut answers = Vec::new();
        if self.wakes.is_none() {
            return Ok(answers);
        }
        // A front-end may send more for ever: the rest is for the next call.
        for _ in 0..=self.asked.len() {
            let Some(stream) = &mut self.stream else { break };
            let code = match stream.take_arrived() {
                Ok(None) => break,
                Ok(Some(Incoming::Frame(frame))) => acknowledgement(&frame),
                Ok(Some(Incoming::Closed | Incoming::Woken)) => {
                    Err("the front-end has closed it".into())
                }
                Err(error) => Err(error.to_string()),
            };
            match code {
                Ok(code) => {
                    let asked = self.asked.pop_front();
                    answers.extend(asked.map(|wanted| Answer { wanted, told: code == 0 }));
                }
                Err(why) => {
                    self.close();
                    return Err(Refusal(format!("the back-end channel is closed: {why}")));
                }
            }
        }
        Ok(answers)
    }

    /// Closes it. What queues still wait for may be asked for on another.
    fn close(&mut self) {
        (self.stream, self.wakes) = (None, None);
        let asked = std::mem::take(&mut self.asked);
        self.wanted = still_wanted(asked.into_iter().chain(std::mem::take(&mut self.wanted)));
    }
}

/// Those of the questions that a queue has asked last: it waits for no others.
fn still_wanted(asked: impl Iterator<Item = Wanted>) -> VecDeque<Wanted> {
    let asked: Vec<Wanted> = asked.collect();
    let mut last = BTreeMap::new();
    for Wanted { queue, question, .. } in &asked {
        last.insert(*queue, *question);
    }
    asked.into_iter().filter(|wanted| last.get(&wanted.queue) == Some(&wanted.question)).collect()
}

/// Makes what is readable when one of the two is.
fn watch(wake: BorrowedFd<'_>, channel: BorrowedFd<'_>) -> Result<OwnedFd, HostError> {
    let failed = |error: Errno| HostError::new("wait for the back-end channel", error);
    let wakes = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    for fd in [wake, channel] {
        let data = epoll::EventData::new_u64(0);
        epoll::add(&wakes, fd, data, epoll::EventFlags::IN).map_err(failed)?;
    }
    Ok(wakes)
}

fn request(Miss { iova, access }: Miss, acknowledged: bool) -> Frame {
    let access = match access {
        Access::DeviceReadable => IotlbAccess::Read,
        Access::DeviceWritable => IotlbAccess::Write,
    };
    let kind = IotlbKind::Miss;
    let payload = Iotlb { iova, size: 0, user: UserAddr(0), access, kind }.to_bytes();
    let flags = if acknowledged { Flags::VERSION | Flags::NEED_REPLY } else { Flags::VERSION };
    Frame::new(BackendMessage::IotlbMsg.number(), flags, payload, Vec::new())
}

/// The code of an acknowledgement; what is wrong with one that is none.
fn acknowledgement(frame: &Frame) -> Result<u64, String> {
    let header = frame.header;
    if header.request != BackendMessage::IotlbMsg.number() || !header.flags.contains(Flags::REPLY) {
        let (number, flags) = (header.request, header.flags.bits());
        return Err(format!("message {number} with flags {flags:#x} is no answer to IOTLB_MSG"));
    }
    u64::from_bytes(&frame.payload).map_err(|error| format!("an acknowledgement: {error}"))
}
