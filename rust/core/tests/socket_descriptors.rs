//! Descriptors of the whole process: none is left behind, and running out of them is survived.
//! One test, since it counts and limits what all threads share.

use std::fs;
use std::io::IoSlice;
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use vhost_user_core::socket::{Endpoint, Incoming, Listener, Next, SocketError, Stream};

/// Request 1 with 8 bytes of payload, then as much of it as the test sends.
const HEADER: [u32; 3] = [1, 1, 8];

fn send(to: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

fn header() -> Vec<u8> {
    HEADER.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn never() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn pair() -> (Stream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Stream::new(OwnedFd::from(ours)), theirs)
}

/// Leaves room for `spare` more descriptors while `body` runs, whichever numbers were in use.
fn with_room_for<T>(spare: usize, body: impl FnOnce(&dyn Fn()) -> T) -> T {
    let before = getrlimit(Resource::Nofile);
    let highest = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap())
        .max()
        .unwrap();
    let limit = Rlimit { current: Some(highest + 1 + spare as u64), maximum: before.maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut fill: Vec<OwnedFd> = iter::from_fn(|| eventfd(0, EventfdFlags::CLOEXEC).ok()).collect();
    fill.truncate(fill.len() - spare);
    let restore = || setrlimit(Resource::Nofile, before).unwrap();
    let result = body(&restore);
    restore();
    result
}

fn bad_messages_leave_no_descriptor() {
    let fd = never();
    let before = open_descriptors();
    for round in 0..1000 {
        let (mut ours, theirs) = pair();
        let message = header();
        let (bytes, fds) = match round % 4 {
            0 => (&message[..], 33),
            1 => (&message[..], 253),
            2 => (&message[..5], 8),
            _ => (&message[..], 8),
        };
        send(&theirs, bytes, &vec![fd.as_fd(); fds]);
        drop(theirs);
        ours.receive(fd.as_fd()).unwrap_err();
    }
    assert_eq!(open_descriptors(), before);
}

fn descriptors_that_do_not_fit_into_the_process_end_the_connection() {
    let fd = never();
    let mut message = header();
    message.extend([0; 8]);
    let before = open_descriptors();
    for _ in 0..2 {
        let (mut ours, theirs) = pair();
        send(&theirs, &message, &[fd.as_fd(); 8]);
        let result = with_room_for(3, |_| ours.receive(fd.as_fd()));
        assert!(matches!(result, Err(SocketError::FdsCutOff)), "{result:?}");
    }
    assert_eq!(open_descriptors(), before);
    let (mut ours, theirs) = pair();
    send(&theirs, &message, &[fd.as_fd(); 8]);
    assert!(matches!(ours.receive(fd.as_fd()), Ok(Incoming::Frame(frame)) if frame.fds.len() == 8));
}

/// Waiting for a connection must neither spin nor give up while there is no descriptor to be had,
/// and says once what is short. `wait` runs while the process has room for none, and 400 ms later
/// for all.
fn waits_and_recovers(mut wait: impl FnMut() -> Result<Next, SocketError> + Send) {
    let waited = with_room_for(0, |restore| {
        thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                let Next::Held(why) = wait().unwrap() else { panic!("there was a descriptor") };
                (why, wait().unwrap(), clock_gettime(ClockId::ThreadCPUTime))
            });
            let until = Instant::now() + Duration::from_millis(400);
            while Instant::now() < until {
                assert!(!waiting.is_finished(), "the wait ended without a descriptor");
                thread::park_timeout(until - Instant::now());
            }
            restore();
            waiting.join().unwrap()
        })
    });
    let (why, next, busy) = waited;
    assert!(why.to_string().contains("Too many open files"), "{why}");
    assert!(matches!(next, Next::Stream(_)), "{next:?}");
    assert!(busy.tv_sec == 0 && busy.tv_nsec < 100_000_000, "spun for {busy:?} of 400 ms");
}

fn name(what: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vhost-user-{what}-{}", std::process::id()))
}

fn accepting_without_free_descriptors_waits_and_recovers() {
    let path = name("limit");
    let mut listener = Listener::from_fd(UnixListener::bind(&path).unwrap().into()).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let wake = never();
    waits_and_recovers(|| listener.accept(wake.as_fd()));
}

fn dialling_without_free_descriptors_waits_and_recovers() {
    let path = name("dial");
    let _front_end = UnixListener::bind(&path).unwrap();
    let mut source = Endpoint::Dial { path: path.clone() }.open().unwrap();
    let wake = never();
    waits_and_recovers(|| source.next(wake.as_fd()));
    fs::remove_file(&path).unwrap();
}

#[test]
fn descriptors_are_neither_leaked_nor_needed_without_end() {
    bad_messages_leave_no_descriptor();
    descriptors_that_do_not_fit_into_the_process_end_the_connection();
    accepting_without_free_descriptors_waits_and_recovers();
    dialling_without_free_descriptors_waits_and_recovers();
}
