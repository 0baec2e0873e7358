//! The channel for a back-end's own requests: the configuration has changed, an address has no
//! translation.
//!
//! ```text
//!   front-end <--its own socket--> thread <--a pair for each back-end--> back-end
//! ```
//!
//! A front-end answers in the order in which it was asked, and an answer does not say what it answers.
//! So what it still owes to a back-end that is dead must not reach the next one: answers are counted
//! here. The thread passes messages while the relay waits for an answer of the back-end, which may
//! need a translation first.
//!
//! Who takes the channel up from a keeper that is dead does not know the count. An answer has the
//! number of its question's kind, so it asks something of another kind first: all that comes before
//! the answer to that was owed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{retry_on_intr, write};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::Failure;
use super::backend::request;
use crate::socket::{Incoming, Stream};
use crate::sys::closer::Closer;
use crate::sys::event_kind::EventKind;
use crate::wire::{BackendMessage, Flags, Frame, FrontendMessage, ReceivedFd};

/// A front-end's channel, kept while back-ends come and go.
#[derive(Debug)]
pub(super) struct Channel {
    /// A copy of the front-end's descriptor, for what is said to it from here.
    own: ReceivedFd,
    /// The front-end's end, while no back-end has the other one.
    idle: Option<Front>,
    passing: Option<Passing>,
}

/// A back-end has the other end.
#[derive(Debug)]
struct Passing {
    stop: ReceivedFd,
    thread: JoinHandle<Front>,
}

/// The front-end's end.
#[derive(Debug)]
struct Front {
    stream: Stream,
    /// Answers that it owes to back-ends which are gone.
    owed: usize,
    /// So are all before the answer to [`MARK`].
    is_marked: bool,
}

/// What a back-end never wants to be answered: the configuration has changed.
const MARK: BackendMessage = BackendMessage::ConfigChangeMsg;

impl Channel {
    /// Takes the descriptor of SET_BACKEND_REQ_FD. `closer` closes what comes through it.
    ///
    /// # Errors
    /// It is no Unix stream socket, or cannot be copied: why.
    pub(super) fn open(frame: &Frame, closer: &Closer) -> Result<Self, String> {
        let fd = frame.fds.first().ok_or("no descriptor came with it")?;
        let is_socket = EventKind::of(fd.as_fd())? == EventKind::Socket;
        if !is_socket || socket_type(fd) != Ok(SocketType::STREAM) {
            return Err("its descriptor is not a Unix stream socket".to_owned());
        }
        let copy = || fd.try_clone().map_err(|error| error.to_string());
        let mut stream = Stream::new(copy()?);
        stream.close_with(closer);
        // A front-end may keep its end for another connection.
        stream.share();
        Ok(Self {
            own: copy()?,
            idle: Some(Front { stream, owed: 0, is_marked: false }),
            passing: None,
        })
    }

    /// Takes up what a keeper that is dead had, from the [message](Self::frame) that it left.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the front-end does not read what it is asked: why.
    pub(super) fn reopen(frame: &Frame, answers: bool, closer: &Closer) -> Result<Self, String> {
        let mut channel = Self::open(frame, closer)?;
        if let Some(front) = channel.idle.as_mut().filter(|_| answers) {
            let flags = Flags::VERSION | Flags::NEED_REPLY;
            let mark = Frame::new(MARK.number(), flags, Vec::new(), Vec::new());
            if !front.stream.offer(&mark).map_err(|error| error.to_string())? {
                return Err("the front-end does not read it".to_owned());
            }
            front.is_marked = true;
        }
        Ok(channel)
    }

    /// The message that brought it.
    ///
    /// # Errors
    /// There is no descriptor.
    pub(super) fn frame(&self) -> io::Result<Frame> {
        let mut frame = request(FrontendMessage::SetBackendReqFd, Vec::new());
        frame.fds.push(self.own.try_clone()?);
        Ok(frame)
    }

    /// Returns the message that gives a back-end its end, in place of the one that the last had.
    pub(super) fn offer(&mut self) -> Result<Frame, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::Refused(format!("a channel: {error}"));
        self.take_back();
        let (ours, theirs) = Stream::pair().map_err(|e| failed(&e))?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(&e))?;
        let stop = ReceivedFd::from(stop);
        let end = theirs.as_fd().try_clone_to_owned().map_err(|e| failed(&e))?;
        let stopped = stop.try_clone().map_err(|e| failed(&e))?;
        let Some(front) = self.idle.take() else { return Err(failed(&"it has ended")) };
        let pass = move || Pass::new(front, ours).run(stopped.as_fd());
        let thread = thread::Builder::new().name("vhost-user channel".to_owned()).spawn(pass);
        self.passing = Some(Passing { stop, thread: thread.map_err(|e| failed(&e))? });
        let mut frame = request(FrontendMessage::SetBackendReqFd, Vec::new());
        frame.fds.push(end.into());
        Ok(frame)
    }

    /// Tells the front-end that the configuration has changed.
    pub(super) fn config_changed(&self) {
        let Ok(fd) = self.own.try_clone() else { return };
        let mut stream = Stream::new(fd);
        stream.share();
        let number = BackendMessage::ConfigChangeMsg.number();
        // Without payload it goes as a whole, beside what the thread sends. Where it finds no room the
        // front-end has one before it that it has not read.
        let _ = stream.offer(&Frame::new(number, Flags::VERSION, Vec::new(), Vec::new()));
    }

    /// Takes the other end away from the back-end that has it.
    fn take_back(&mut self) {
        if let Some(Passing { stop, thread }) = self.passing.take() {
            // There is room for the only event that there is.
            let _ = write(&stop, &1_u64.to_ne_bytes());
            self.idle = thread.join().ok();
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// What passes between the two ends, at most one message at a time in each direction.
struct Pass {
    front: Front,
    back: Stream,
    /// What the back-end has asked for and was not answered.
    open: usize,
    to_front: Option<Frame>,
    to_back: Option<Frame>,
}

/// One of the ends is gone.
struct Ended;

impl Pass {
    fn new(front: Front, back: Stream) -> Self {
        Self { front, back, open: 0, to_front: None, to_back: None }
    }

    /// Passes messages until the back-end is gone, or `stop` is readable.
    fn run(mut self, stop: BorrowedFd<'_>) -> Front {
        while self.wait(stop) && self.turn().is_ok() {}
        self.front.owed += self.open;
        self.front
    }

    /// Waits for something to do; `false`: for nothing any more.
    fn wait(&self, stop: BorrowedFd<'_>) -> bool {
        let direction = |out: bool, full: bool| match (out, full) {
            (false, false) => PollFlags::IN,
            (false, true) => PollFlags::empty(),
            (true, false) => PollFlags::IN | PollFlags::OUT,
            (true, true) => PollFlags::OUT,
        };
        let (to_front, to_back) = (self.to_front.is_some(), self.to_back.is_some());
        let mut fds = [
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(self.front.stream.as_fd(), direction(to_front, to_back)),
            PollFd::from_borrowed_fd(self.back.as_fd(), direction(to_back, to_front)),
        ];
        if retry_on_intr(|| poll(&mut fds, None)).is_err() || !fds[0].revents().is_empty() {
            return false;
        }
        // One that is not read, since the other has no room, would be found gone for ever.
        let is_read = [(&fds[1], !to_back), (&fds[2], !to_front)];
        let gone = PollFlags::HUP | PollFlags::ERR;
        !is_read.iter().any(|(fd, is_read)| !is_read && fd.revents().intersects(gone))
    }

    /// Passes what there is and has room.
    fn turn(&mut self) -> Result<(), Ended> {
        if self.to_front.is_none() {
            self.to_front = arrived(&mut self.back)?;
        }
        if let Some(frame) = &self.to_front
            && self.front.stream.offer(frame).map_err(|_| Ended)?
        {
            self.open += usize::from(frame.header.flags.contains(Flags::NEED_REPLY));
            self.to_front = None;
        }
        if self.to_back.is_none() {
            self.to_back = self.answer()?;
        }
        if let Some(frame) = &self.to_back
            && self.back.offer(frame).map_err(|_| Ended)?
        {
            self.to_back = None;
        }
        Ok(())
    }

    /// The front-end's next answer to this back-end, if it is there.
    fn answer(&mut self) -> Result<Option<Frame>, Ended> {
        while let Some(frame) = arrived(&mut self.front.stream)? {
            if self.front.is_marked {
                let kind = BackendMessage::from_number(frame.header.request);
                self.front.is_marked = kind != Some(MARK);
            } else if self.front.owed > 0 {
                self.front.owed -= 1;
            } else {
                self.open = self.open.saturating_sub(1);
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

/// The next message of a peer, if all of it is there.
fn arrived(stream: &mut Stream) -> Result<Option<Frame>, Ended> {
    match stream.take_arrived() {
        Ok(None) => Ok(None),
        Ok(Some(Incoming::Frame(frame))) => Ok(Some(frame)),
        Ok(Some(Incoming::Closed | Incoming::Woken)) | Err(_) => Err(Ended),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::wire::Payload;

    /// A front-end's channel, and its end of it.
    fn channel() -> (Channel, Stream) {
        let (given, front) = Stream::pair().unwrap();
        let mut frame = request(FrontendMessage::SetBackendReqFd, Vec::new());
        frame.fds.push(given.as_fd().try_clone_to_owned().unwrap().into());
        (Channel::open(&frame, &Closer::default()).unwrap(), front)
    }

    /// The end that a back-end gets.
    fn back_end(channel: &mut Channel) -> Stream {
        Stream::new(channel.offer().unwrap().fds.pop().unwrap())
    }

    fn ask(back: &mut Stream, what: u8) {
        let flags = Flags::VERSION | Flags::NEED_REPLY;
        back.send(&Frame::new(1, flags, vec![what; 32], Vec::new())).unwrap();
    }

    fn answer(front: &mut Stream, code: u64) {
        let flags = Flags::VERSION | Flags::REPLY;
        front.send(&Frame::new(1, flags, code.to_bytes(), Vec::new())).unwrap();
    }

    /// The first byte of the next message.
    fn heard(stream: &mut Stream) -> u8 {
        let until = Instant::now() + Duration::from_secs(60);
        match stream.receive_until(None, until).unwrap() {
            Incoming::Frame(frame) => frame.payload[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_dead_back_end_was_owed_does_not_reach_the_next_one() {
        let (mut channel, mut front) = channel();
        let mut first = back_end(&mut channel);
        (1..=4).for_each(|what| ask(&mut first, what));
        assert_eq!([(); 4].map(|()| heard(&mut front)), [1, 2, 3, 4]);
        // One is answered in time, one when nobody is there, two to the next one's face.
        answer(&mut front, 101);
        assert_eq!(heard(&mut first), 101);
        drop(first);
        answer(&mut front, 102);
        let mut second = back_end(&mut channel);
        answer(&mut front, 103);
        ask(&mut second, 5);
        assert_eq!(heard(&mut front), 5);
        answer(&mut front, 104);
        answer(&mut front, 105);
        assert_eq!(heard(&mut second), 105);
    }

    #[test]
    fn what_needs_no_answer_is_passed_and_owed_none() {
        let (mut channel, mut front) = channel();
        let mut first = back_end(&mut channel);
        first.send(&Frame::new(1, Flags::VERSION, vec![1; 32], Vec::new())).unwrap();
        assert_eq!(heard(&mut front), 1);
        let mut second = back_end(&mut channel);
        ask(&mut second, 2);
        assert_eq!(heard(&mut front), 2);
        answer(&mut front, 102);
        assert_eq!(heard(&mut second), 102);
    }

    /// More questions than a socket has room for wait in the back-end's own.
    #[test]
    fn a_front_end_that_reads_nothing_holds_up_nobody_but_those_who_ask() {
        let (mut channel, mut front) = channel();
        let mut back = back_end(&mut channel);
        let (flags, mut asked) = (Flags::VERSION | Flags::NEED_REPLY, 0_usize);
        while back.offer(&Frame::new(1, flags, vec![7; 32], Vec::new())).unwrap() {
            asked += 1;
        }
        (0..asked).for_each(|_| assert_eq!(heard(&mut front), 7));
        for _ in 0..asked {
            answer(&mut front, 9);
            assert_eq!(heard(&mut back), 9);
        }
    }

    #[test]
    fn what_a_dead_keeper_s_back_end_was_owed_does_not_reach_the_next_one() {
        let (mut former, mut front) = channel();
        let mut first = back_end(&mut former);
        (1..=3).for_each(|what| ask(&mut first, what));
        assert_eq!([(); 3].map(|()| heard(&mut front)), [1, 2, 3]);
        answer(&mut front, 101);
        let mut next = Channel::reopen(&former.frame().unwrap(), true, &Closer::default()).unwrap();
        drop(former);
        let mut second = back_end(&mut next);
        ask(&mut second, 5);
        let until = Instant::now() + Duration::from_secs(60);
        let Incoming::Frame(mark) = front.receive_until(None, until).unwrap() else { panic!() };
        assert_eq!(mark.header.request, 2, "CONFIG_CHANGE_MSG");
        assert_eq!(mark.header.flags, Flags::VERSION | Flags::NEED_REPLY);
        answer(&mut front, 102);
        answer(&mut front, 103);
        let flags = Flags::VERSION | Flags::REPLY;
        front.send(&Frame::new(2, flags, 0_u64.to_bytes(), Vec::new())).unwrap();
        assert_eq!(heard(&mut front), 5);
        answer(&mut front, 105);
        assert_eq!(heard(&mut second), 105);
    }

    #[test]
    fn an_end_that_goes_ends_the_other_one() {
        let (mut channel, front) = channel();
        let mut back = back_end(&mut channel);
        drop(front);
        let until = Instant::now() + Duration::from_secs(60);
        assert!(matches!(back.receive_until(None, until).unwrap(), Incoming::Closed));
    }

    #[test]
    fn what_is_no_socket_is_refused() {
        let mut frame = request(FrontendMessage::SetBackendReqFd, Vec::new());
        let why = |frame: &Frame| Channel::open(frame, &Closer::default()).unwrap_err();
        assert_eq!(why(&frame), "no descriptor came with it");
        frame.fds.push(eventfd(0, EventfdFlags::CLOEXEC).unwrap().into());
        assert_eq!(why(&frame), "its descriptor is not a Unix stream socket");
    }
}
