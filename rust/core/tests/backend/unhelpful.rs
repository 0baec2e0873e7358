//! Front-ends that pass odd descriptors, do not read, or take memory away at a bad time.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_core::backend::{Event, Stuck};
use vhost_user_core::frontend::{SplitRing, Used};
use vhost_user_core::request::Request;
use vhost_user_core::socket::{Incoming, Stream};
use vhost_user_core::wire::{Flags, Frame};

use super::served::*;

#[test]
fn a_call_or_an_error_descriptor_without_a_reader_raises_no_signal() {
    // By default it would end the process.
    let raised = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::clone(&raised)).unwrap();
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let (reader, pipe) = rustix::pipe::pipe().unwrap();
    driver.client.set_vring_call(0, Some(pipe.as_fd())).unwrap();
    driver.client.set_vring_err(0, Some(pipe.as_fd())).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(8), "a new descriptor is signalled once");
    driver.push(0, 0, b"call", MIB / 2);
    driver.rings[0].publish();
    assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(8), "a pipe is signalled as well");
    assert_eq!(driver.rings[0].pop().unwrap().map(|used| used.head), Some(0));
    drop(reader);
    driver.rings[0].set_used_event(1);
    driver.push(0, 2, b"none", MIB / 2);
    driver.rings[0].publish();
    eventually("the second call", || served.backend.counters().calls == 2);
    driver.rings[0].set_available_index(RING + 3);
    driver.rings[0].kick();
    // The status says so after the error descriptor was signalled.
    eventually("needs-reset", || driver.client.status().unwrap() & 0x40 != 0);
    assert!(!raised.load(Ordering::SeqCst));
}

/// Requests have more time to come back than the front-end waits for any answer.
fn patient(keep: Option<Mutex<Sender<Request>>>) -> Served {
    let device = Mirror { keep, ..Mirror::default() };
    Served::with(device, |options| options.drain = 10 * LIMIT)
}

fn broke(event: &Event) -> bool {
    matches!(event, Event::QueueBroken { queue: 0, .. })
}

#[test]
fn a_region_with_an_idle_ring_in_it_is_removed_at_once() {
    let served = patient(None);
    let mut driver = served.driver();
    assert_eq!(driver.ask(0, &[1]), [254]);
    let memory = Arc::clone(&driver.memory);
    driver.client.remove_region(&memory.regions()[0]).unwrap();
    assert!(served.events.any(broke));
    assert!(driver.rings[0].error_signalled());
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
    // It comes back with its memory.
    driver.client.add_region(&memory.regions()[0]).unwrap();
    let layout = *driver.rings[0].layout();
    driver.rings[0] = SplitRing::new(&memory, layout, true).unwrap();
    driver.start();
    assert_eq!(driver.ask(0, &[2]), [253]);
}

#[test]
fn a_request_that_is_kept_is_given_back_in_a_ring_whose_region_is_being_removed() {
    let (keep, kept) = mpsc::channel();
    let served = patient(Some(Mutex::new(keep)));
    let mut driver = served.driver();
    driver.push(0, 0, b"late", 2 * MIB);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    let remover = thread::spawn(move || {
        let memory = Arc::clone(&driver.memory);
        driver.client.remove_region(&memory.regions()[0]).unwrap();
        driver
    });
    eventually("the broken ring", || served.events.any(broke));
    assert!(!remover.is_finished());
    request.complete(4).unwrap();
    let mut driver = remover.join().unwrap();
    assert_eq!(driver.rings[0].pop().unwrap(), Some(Used { head: 0, len: 4 }));
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
}

#[test]
fn a_stop_does_not_wait_for_the_removal_of_a_region() {
    let (keep, kept) = mpsc::channel();
    let served = patient(Some(Mutex::new(keep)));
    let mut driver = served.driver();
    driver.push(0, 0, b"kept", 2 * MIB);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    let memory = Arc::clone(&driver.memory);
    let remover = thread::spawn(move || driver.client.remove_region(&memory.regions()[0]));
    eventually("the broken ring", || served.events.any(broke));
    served.backend.request_stop();
    let (stopped, heard) = mpsc::channel();
    let served = thread::spawn(move || {
        let stuck = served.backend.stop(Duration::from_millis(100));
        stopped.send(stuck).unwrap();
        served
    });
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), [Stuck { queue: 0, requests: 1 }]);
    drop((served.join().unwrap(), remover.join().unwrap()));
    assert!(request.complete(4).is_err());
}

#[test]
fn a_back_end_channel_that_is_not_read_holds_nothing_up_and_works_when_it_is() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let (theirs, mut ours) = Stream::pair().unwrap();
    let fd = theirs.as_fd().try_clone_to_owned().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&fd, 0).unwrap();
    driver.client.raw(&Frame::new(21, Flags::VERSION, Vec::new(), vec![fd])).unwrap();
    drop(theirs);
    let unread = |event: &Event| event.to_string().contains("does not read its back-end channel");
    let mut notices = 0;
    for _ in 0..100 {
        served.backend.notify_config();
        // A wake is looked at before a message.
        driver.client.features().unwrap();
    }
    assert_eq!(served.events.count(unread), 1, "it is said once");
    while ours.receive_until(None, Instant::now()).is_ok_and(is_config_change) {
        notices += 1;
    }
    assert!((1..100).contains(&notices), "{notices}");
    served.backend.notify_config();
    assert!(is_config_change(ours.receive_until(None, Instant::now() + LIMIT).unwrap()));
}

fn is_config_change(incoming: Incoming) -> bool {
    matches!(incoming, Incoming::Frame(frame) if frame.header.request == 2)
}
