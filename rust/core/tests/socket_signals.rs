//! Signals during every wait. Without the test harness: a signal for the process is delivered to
//! its first thread, and that one has to be the thread under test.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Signal, getpid, kill_process};
use vhost_user_core::socket::{
    Endpoint, Incoming, ListenOptions, Listener, Next, SocketError, Stream,
};
use vhost_user_core::wire::{Flags, Frame};

/// Signals for each step.
const SIGNALS: usize = 20;

struct Storm(Arc<AtomicBool>);

impl Storm {
    /// Interrupts the first thread again and again; each signal has been handled on return.
    fn interrupt(&self) {
        for _ in 0..SIGNALS {
            self.0.store(false, Ordering::SeqCst);
            kill_process(getpid(), Signal::USR1).unwrap();
            let limit = Instant::now() + Duration::from_secs(10);
            while !self.0.load(Ordering::SeqCst) {
                assert!(Instant::now() < limit, "the signal was not handled");
                thread::yield_now();
            }
        }
    }
}

fn never() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn main() {
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, seen.clone()).unwrap();
    let storm = &Storm(seen);
    a_message_is_received_whole(storm);
    a_peer_that_does_not_read_is_waited_for(storm);
    a_deadline_is_not_put_off(storm);
    connections_are_accepted_and_made(storm);
    println!("ok");
}

fn a_message_is_received_whole(storm: &Storm) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut ours = Stream::new(OwnedFd::from(ours));
    let message: Vec<u8> =
        [7_u32, 1, 4, 0xdead_beef].iter().flat_map(|word| word.to_ne_bytes()).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for byte in &message {
                storm.interrupt();
                rustix::io::write(&theirs, &[*byte]).unwrap();
            }
        });
        let Ok(Incoming::Frame(frame)) = ours.receive(never().as_fd()) else {
            panic!("no frame came");
        };
        assert_eq!((frame.header.request, frame.payload.as_slice()), (7, &message[12..]));
    });
}

fn a_peer_that_does_not_read_is_waited_for(storm: &Storm) {
    let (mut ours, mut theirs) = Stream::pair().unwrap();
    const COUNT: u32 = 1000;
    thread::scope(|scope| {
        scope.spawn(|| {
            storm.interrupt();
            for i in 0..COUNT {
                let Ok(Incoming::Frame(frame)) = theirs.receive(never().as_fd()) else {
                    panic!("no frame came");
                };
                assert_eq!((frame.header.request, frame.payload.len()), (i, 4096));
                if i % 100 == 0 {
                    storm.interrupt();
                }
            }
        });
        for i in 0..COUNT {
            ours.send(&Frame::new(i, Flags::VERSION, vec![0; 4096], Vec::new())).unwrap();
        }
    });
}

fn a_deadline_is_not_put_off(storm: &Storm) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut ours = Stream::new(OwnedFd::from(ours));
    ours.set_deadline(Duration::from_millis(50));
    rustix::io::write(&theirs, &[1]).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                storm.interrupt();
            }
        });
        let result = ours.receive(never().as_fd());
        over.store(true, Ordering::SeqCst);
        assert!(matches!(result, Err(SocketError::HalfMessage { got: 1, .. })), "{result:?}");
    });
}

fn connections_are_accepted_and_made(storm: &Storm) {
    let path = std::env::temp_dir().join(format!("vhost-user-signals-{}", std::process::id()));
    let mut listener = Listener::bind(&ListenOptions::new(&path)).unwrap();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            storm.interrupt();
            UnixStream::connect(&path).unwrap()
        });
        assert!(matches!(listener.accept(never().as_fd()), Ok(Next::Stream(_))));
        client.join().unwrap();
    });
    drop(listener);

    let mut source = Endpoint::Dial { path: path.clone() }.open().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            storm.interrupt();
            let listener = UnixListener::bind(&path).unwrap();
            listener.accept().unwrap()
        });
        assert!(matches!(source.next(never().as_fd()), Ok(Next::Stream(_))));
        server.join().unwrap();
    });
    std::fs::remove_file(&path).unwrap();
}
