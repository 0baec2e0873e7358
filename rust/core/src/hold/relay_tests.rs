//! A relay between a front-end and back-ends that are scripts: what each of them hears.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::wire::features::{LOG_ALL, PROTOCOL_FEATURES, RING_PACKED, VERSION_1};
use crate::wire::payload::Inflight;

/// What a back-end heard: a message's number, the first eight bytes of its payload as a number, and
/// how many descriptors came with it.
type Heard = (u32, u64, usize);

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn pair() -> (OwnedFd, Stream) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    (ours, Stream::new(theirs))
}

/// A back-end that takes all that it hears, until the connection ends.
fn back_end(features: u64) -> (Stream, JoinHandle<Vec<Heard>>) {
    let (theirs, ours) = Stream::pair().unwrap();
    (theirs, thread::spawn(move || take_all(ours, features)))
}

fn take_all(stream: Stream, features: u64) -> Vec<Heard> {
    take_some(stream, features, HELD | ProtocolFeatures::PAGEFAULT, u32::MAX)
}

/// Hangs up at the message `last` instead of answering it.
fn take_some(
    mut stream: Stream,
    features: u64,
    protocol: ProtocolFeatures,
    last: u32,
) -> Vec<Heard> {
    let never = event();
    let mut heard = Vec::new();
    while let Ok(Incoming::Frame(frame)) = stream.receive(never.as_fd()) {
        if frame.header.request == last {
            break;
        }
        let first = frame.payload.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        heard.push((frame.header.request, first, frame.fds.len()));
        let number = match frame.header.request {
            1 => features,
            15 => protocol.bits(),
            17 => 2,
            36 => 509,
            _ => 0,
        };
        let asked = FrontendMessage::from_number(frame.header.request).unwrap();
        let always = asked.row().answer != Answer::IfAsked;
        if always || frame.header.flags.contains(Flags::NEED_REPLY) {
            let flags = Flags::VERSION | Flags::REPLY;
            let mut payload = number.to_bytes();
            let mut fds = Vec::new();
            if frame.header.request == 31 {
                let made = Inflight { mmap_size: 64, mmap_offset: 0, num_queues: 2, queue_size: 1 };
                (payload, fds) = (made.to_bytes(), vec![event()]);
            }
            stream.send(&Frame::new(frame.header.request, flags, payload, fds)).unwrap();
        }
    }
    heard
}

/// Passes a front-end's messages, each of which is answered, and gives the answers.
fn pass_all(relay: &mut Relay, front: &mut Stream, frames: Vec<Frame>) -> Vec<Vec<u8>> {
    let wake = event();
    thread::scope(|scope| {
        let wake = wake.as_fd();
        let run = scope.spawn(move || {
            loop {
                match relay.run(wake).unwrap() {
                    Event::Came(_) => {}
                    event => return event,
                }
            }
        });
        let mut answers = Vec::new();
        for frame in frames {
            front.send(&frame).unwrap();
            let until = Instant::now() + Duration::from_secs(60);
            match front.receive_until(None, until).unwrap() {
                Incoming::Frame(reply) => answers.push(reply.payload),
                incoming => panic!("{incoming:?}"),
            }
        }
        rustix::io::write(wake, &1_u64.to_ne_bytes()).unwrap();
        assert!(matches!(run.join().unwrap(), Event::Woken));
        answers
    })
}

fn message(number: u32, payload: &[u8], fds: usize) -> Frame {
    let flags = Flags::VERSION | Flags::NEED_REPLY;
    Frame::new(number, flags, payload.to_vec(), (0..fds).map(|_| event()).collect())
}

/// SET_BACKEND_REQ_FD, with a channel whose other end is gone.
fn channel() -> Frame {
    let (theirs, _ours) = pair();
    let flags = Flags::VERSION | Flags::NEED_REPLY;
    Frame::new(21, flags, Vec::new(), vec![theirs])
}

fn state(number: u32, index: u32, num: u32) -> Frame {
    message(number, &VringState { index, num }.to_bytes(), 0)
}

fn relay() -> (Relay, Stream) {
    let (given, front) = pair();
    (Relay::open(Endpoint::Inherited(given)).unwrap(), front)
}

const FEATURES: u64 = VERSION_1 | PROTOCOL_FEATURES | LOG_ALL;

/// A disk's messages up to a ring that runs, as a front-end sends them whose driver has started.
fn to_a_running_ring(protocol: ProtocolFeatures) -> Vec<Frame> {
    let mut address = vec![0; 40];
    address[8..].fill(0x10);
    vec![
        message(16, &protocol.bits().to_bytes(), 0),
        channel(),
        message(3, &[], 0),
        message(13, &0_u64.to_bytes(), 1),
        message(14, &0_u64.to_bytes(), 1),
        message(2, &FEATURES.to_bytes(), 0),
        message(39, &0xb_u64.to_bytes(), 0),
        message(37, &[0; 40], 1),
        state(8, 0, 64),
        state(10, 0, 7),
        message(9, &address, 0),
        message(12, &0_u64.to_bytes(), 1),
        state(18, 0, 1),
        message(39, &0xf_u64.to_bytes(), 0),
    ]
}

#[test]
fn the_next_back_end_is_told_all_in_the_order_of_qemus_reconnection() {
    let (mut relay, mut front) = relay();
    let (stream, first) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    let protocol = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::LOG_SHMFD;
    let mut frames = to_a_running_ring(protocol);
    frames.push(message(6, &[1; 16], 1));
    assert!(pass_all(&mut relay, &mut front, frames).iter().all(|answer| *answer == [0; 8]));

    let (stream, second) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    drop(relay);
    first.join().unwrap();
    let numbers: Vec<u32> = second.join().unwrap().iter().map(|heard| heard.0).collect();
    let meeting = [1, 15, 16, 17, 36];
    let connection = [16, 21, 3, 6, 14, 13, 2, 32];
    let start = [39, 37, 8, 10, 9, 12, 18, 39];
    assert_eq!(numbers, [&meeting[..], &connection, &start].concat());
}

#[test]
fn a_record_is_made_for_a_front_end_without_one_before_its_first_ring_starts() {
    let (mut relay, mut front) = relay();
    let (stream, first) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    pass_all(&mut relay, &mut front, to_a_running_ring(ProtocolFeatures::REPLY_ACK));
    let (stream, second) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    drop(relay);
    let heard = first.join().unwrap();
    let at = |number| heard.iter().position(|heard| heard.0 == number).unwrap();
    assert_eq!((at(31) + 1, at(32) + 1), (at(32), at(12)));
    // The next one gets it, and makes none.
    let heard = second.join().unwrap();
    let record: Vec<&Heard> = heard.iter().filter(|heard| [31, 32].contains(&heard.0)).collect();
    assert_eq!(record, [&(32, 64, 1)]);
}

/// As a guest's firmware leaves its split ring to a kernel with a packed one, and that to one with a
/// longer one. Each ring is one of a new driver, which has nothing in flight.
#[test]
fn a_record_that_is_kept_is_made_anew_for_rings_of_another_kind_or_longer_ones() {
    let (mut relay, mut front) = relay();
    let (stream, back) = back_end(FEATURES | RING_PACKED);
    relay.attach(stream).unwrap();
    let kick = || message(12, &0_u64.to_bytes(), 1);
    let mut frames = to_a_running_ring(ProtocolFeatures::REPLY_ACK);
    // The same driver again; a packed ring; a longer one.
    frames.extend([state(11, 0, 0), kick(), state(11, 0, 0)]);
    frames.push(message(2, &(FEATURES | RING_PACKED).to_bytes(), 0));
    frames.extend([kick(), state(11, 0, 0), state(8, 0, 2048), kick()]);
    pass_all(&mut relay, &mut front, frames);
    drop(relay);
    let heard = back.join().unwrap();
    let numbers = heard.iter().map(|heard| heard.0).filter(|number| [31, 32, 12].contains(number));
    assert_eq!(numbers.collect::<Vec<_>>(), [31, 32, 12, 12, 31, 32, 12, 31, 32, 12]);
}

/// It may have fetched requests before it died, and has told nobody where it stood.
#[test]
fn a_ring_whose_start_was_not_answered_may_have_had_requests_in_flight() {
    let (mut relay, mut front) = relay();
    let (theirs, ours) = Stream::pair().unwrap();
    let silent = thread::spawn(move || take_some(ours, FEATURES, ProtocolFeatures::REPLY_ACK, 12));
    relay.attach(theirs).unwrap();
    let mut frames = to_a_running_ring(ProtocolFeatures::REPLY_ACK);
    let start = frames.iter().position(|frame| frame.header.request == 12).unwrap();
    frames.truncate(start + 1);
    let kick = frames.pop().unwrap();
    pass_all(&mut relay, &mut front, frames);
    front.send(&kick).unwrap();
    let wake = event();
    assert!(matches!(relay.run(wake.as_fd()).unwrap(), Event::Lost(_)));
    silent.join().unwrap();
    let (stream, _next) = back_end(FEATURES);
    assert!(
        matches!(relay.attach(stream), Err(Failure::Refused(why)) if why.contains("in flight"))
    );
}

#[test]
fn what_was_taken_back_is_not_told_again() {
    let (mut relay, mut front) = relay();
    let (stream, _first) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    let mut frames = to_a_running_ring(HELD);
    frames.extend([state(11, 0, 0), message(34, &[], 0), message(38, &[0; 40], 0)]);
    pass_all(&mut relay, &mut front, frames);
    assert!(!relay.runs());
    let (stream, second) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    drop(relay);
    let heard = second.join().unwrap();
    let of_rings = [8, 9, 10, 12, 18, 37, 39];
    assert_eq!(heard.iter().find(|heard| of_rings.contains(&heard.0)), None);
}

#[test]
fn a_transfer_of_state_ends_with_its_back_end_and_the_next_one_is_whole() {
    let (mut relay, mut front) = relay();
    let (stream, _first) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    let begin = || message(42, &[0; 8], 1);
    pass_all(&mut relay, &mut front, vec![message(16, &HELD.bits().to_bytes(), 0), begin()]);
    let (stream, _second) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    let frames = vec![message(43, &[], 0), message(43, &[], 0), begin(), message(43, &[], 0)];
    let answers = pass_all(&mut relay, &mut front, frames);
    assert_eq!(answers, [1_u64, 0, 0, 0].map(|code| code.to_bytes()));
}

#[test]
fn what_is_hidden_is_neither_shown_nor_accepted() {
    let (mut relay, mut front) = relay();
    let (stream, _back) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    let wanted = HELD | ProtocolFeatures::PAGEFAULT;
    let frames = vec![message(15, &[], 0), message(16, &wanted.bits().to_bytes(), 0)];
    let answers = pass_all(&mut relay, &mut front, frames);
    assert_eq!(answers, [HELD.bits().to_bytes(), 1_u64.to_bytes()]);
    assert_eq!(relay.hidden().as_deref(), Some("PAGEFAULT"));
}

#[test]
fn a_back_end_that_lacks_what_the_driver_uses_is_refused() {
    let (mut relay, mut front) = relay();
    let (stream, _first) = back_end(FEATURES);
    relay.attach(stream).unwrap();
    pass_all(&mut relay, &mut front, to_a_running_ring(ProtocolFeatures::REPLY_ACK));
    let (stream, _second) = back_end(PROTOCOL_FEATURES);
    let why = "the back-end lacks what the driver uses: LOG_ALL, VERSION_1";
    assert_eq!(relay.attach(stream), Err(Failure::Refused(why.to_owned())));
}

/// Whatever a front-end says, and a back-end without acknowledgements lets pass: it is kept or
/// dropped, within bounds, and can be said again.
#[test]
fn whatever_was_told_is_kept_within_bounds_and_can_be_told_again() {
    // A fixed sequence (xorshift), the same in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % end
    };
    let mut told = Told::default();
    for _ in 0..20_000 {
        let number = 1 + below(44) as u32;
        let Some(kind) = FrontendMessage::from_number(number) else { continue };
        let size = [0, 3, 8, 12, 40, 48, 200][below(7) as usize];
        let payload: Vec<u8> = (0..size).map(|_| below(4) as u8).collect();
        let frame = message(number, &payload, below(3) as usize);
        let reply = message(number, &payload, 0);
        if told.objection(kind, &frame).is_none() {
            told.learn(kind, frame, (below(2) == 0).then_some(&reply));
        }
    }
    assert!(told.vrings() <= 256);
    let (stream, heard) = back_end(FEATURES);
    let mut backend = Backend::meet(stream).unwrap();
    told.say(&mut backend).unwrap();
    drop(backend);
    // Less than a message of each kind for each vring, and one for each region.
    assert!(heard.join().unwrap().len() < 8 * 256 + 1024 + 4096);
}
