//! GET_VRING_BASE_INFLIGHT: a machine stops without waiting for requests that may be left.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{DirtyLog, Used, Wanted};
use vhost_user_core::request::Request;
use vhost_user_core::wire::ProtocolFeatures;

use super::served::*;

/// Where the readable buffer of request `number` is; the writable one is 2048 bytes behind.
fn place(number: u16) -> u64 {
    MIB / 2 + 0x1000 * u64::from(number)
}

/// A device that keeps what it gets, and has an hour to give it back.
fn keeping(queues: u16) -> (Served, Receiver<Request>) {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { queues, keep: Some(Mutex::new(keep)), ..Mirror::default() };
    (Served::with(device, |options| options.drain = Duration::from_secs(3600)), kept)
}

/// A front-end that keeps a record, and has accepted GET_VRING_BASE_INFLIGHT.
fn connect(served: &Served, more: ProtocolFeatures) -> Driver {
    let wanted = Wanted::default();
    let protocol = wanted.protocol | ProtocolFeatures::INFLIGHT_SHMFD | more;
    let socket = served.directory.join("device.sock");
    let queues = served.device.queues;
    let mut driver = Driver::connect_as(&socket, queues, &Wanted { protocol, ..wanted });
    let (inflight, fd) = driver.client.inflight_fd(queues, 128).unwrap();
    driver.client.set_inflight_fd(&inflight, fd.as_fd()).unwrap();
    driver.start();
    driver
}

fn suspendable(served: &Served) -> Driver {
    connect(served, ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
}

/// Makes a request available: one that may be left begins with `r`.
fn push(driver: &mut Driver, queue: usize, number: u16, data: &[u8]) {
    driver.push(queue, 2 * number, data, place(number));
    driver.rings[queue].publish();
}

fn disable(driver: &mut Driver) {
    for index in 0..driver.rings.len() as u32 {
        driver.client.set_vring_enable(index, false).unwrap();
    }
}

fn restart(driver: &mut Driver, index: u32, base: u32) {
    let (client, ring) = (&mut driver.client, &driver.rings[index as usize]);
    client.set_vring_base(index, base).unwrap();
    client.set_vring_kick(index, Some(ring.kick_fd())).unwrap();
    client.set_vring_enable(index, true).unwrap();
}

fn next(kept: &Receiver<Request>) -> Request {
    kept.recv_timeout(LIMIT).unwrap()
}

fn complete(request: Request) {
    let written = invert(&request);
    request.complete(written).unwrap();
}

fn answer(driver: &Driver, number: u16) -> [u8; 4] {
    let mut bytes = [0; 4];
    driver.memory.read(GuestAddr(place(number) + 2048), &mut bytes).unwrap();
    bytes
}

/// Waits until so many queues are about to stop.
fn stopping(served: &Served, queues: u32) {
    eventually("the stop", || served.device.stopping.load(Ordering::SeqCst) == queues);
}

#[test]
fn requests_that_may_be_left_are_not_waited_for_and_come_again_in_order() {
    let (served, kept) = keeping(1);
    let mut driver = suspendable(&served);
    (0..3).for_each(|number| push(&mut driver, 0, number, b"read"));
    let requests: Vec<_> = (0..3).map(|_| next(&kept)).collect();
    disable(&mut driver);
    assert_eq!(driver.client.vring_base(0).unwrap(), 3, "those that were taken count");
    assert_eq!(driver.rings[0].used_index(), 0);
    // What the device does now reaches neither the ring nor guest memory.
    for request in requests {
        invert(&request);
        assert!(request.complete(4).is_err());
    }
    assert_eq!(driver.rings[0].used_index(), 0);
    assert!((0..3).all(|number| answer(&driver, number) == [0; 4]));
    let said = |event: &Event| matches!(event, Event::LeftInRecord { queue: 0, requests: 3 });
    assert!(served.events.any(said));
    assert!(!served.events.any(|event| matches!(event, Event::Stuck(_))));
    restart(&mut driver, 0, 3);
    for number in 0..3 {
        let request = next(&kept);
        assert_eq!((request.head(), request.is_resubmitted()), (2 * number, true));
        complete(request);
        assert_eq!(driver.used(0), Used { head: 2 * number, len: 4 });
        assert_eq!(answer(&driver, number), b"read".map(|byte| !byte));
    }
}

#[test]
fn a_request_that_may_not_be_left_is_waited_for_and_those_beside_it_are_not() {
    let (served, kept) = keeping(1);
    let mut driver = suspendable(&served);
    push(&mut driver, 0, 0, b"read");
    push(&mut driver, 0, 1, b"write");
    let (read, write) = (next(&kept), next(&kept));
    disable(&mut driver);
    let stop = thread::spawn(move || (driver.client.vring_base(0).unwrap(), driver));
    stopping(&served, 1);
    complete(write);
    let (base, mut driver) = stop.join().unwrap();
    assert_eq!(base, 2);
    assert_eq!(driver.used(0), Used { head: 2, len: 5 });
    assert!(read.complete(0).is_err());
    restart(&mut driver, 0, 2);
    let again = next(&kept);
    assert_eq!((again.head(), again.is_resubmitted()), (0, true));
    complete(again);
    assert_eq!(driver.used(0), Used { head: 0, len: 4 });
}

#[test]
fn what_other_queues_have_is_answered_as_ever_after_one_was_left() {
    let (served, kept) = keeping(2);
    let mut driver = suspendable(&served);
    push(&mut driver, 0, 0, b"read");
    let read = next(&kept);
    push(&mut driver, 1, 1, b"write");
    let write = next(&kept);
    disable(&mut driver);
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
    let stop = thread::spawn(move || (driver.client.vring_base(1).unwrap(), driver));
    stopping(&served, 2);
    complete(write);
    let (base, mut driver) = stop.join().unwrap();
    assert_eq!((base, driver.used(1)), (1, Used { head: 2, len: 5 }));
    assert_eq!(answer(&driver, 1), *b"writ".map(|byte| !byte).first_chunk().unwrap());
    // All rings have stopped: nothing of the other queue's reaches guest memory either.
    invert(&read);
    assert_eq!(answer(&driver, 0), [0; 4]);
    drop(read);
}

#[test]
fn a_ring_that_stops_alone_waits_for_all_of_its_requests() {
    let (served, kept) = keeping(2);
    let mut driver = suspendable(&served);
    push(&mut driver, 0, 0, b"read");
    let read = next(&kept);
    driver.client.set_vring_enable(0, false).unwrap();
    let stop = thread::spawn(move || (driver.client.vring_base(0).unwrap(), driver));
    stopping(&served, 1);
    complete(read);
    let (base, mut driver) = stop.join().unwrap();
    assert_eq!((base, driver.used(0)), (1, Used { head: 0, len: 4 }));
}

#[test]
fn without_the_feature_all_requests_are_waited_for() {
    let (served, kept) = keeping(1);
    let mut driver = connect(&served, ProtocolFeatures::empty());
    push(&mut driver, 0, 0, b"read");
    let read = next(&kept);
    disable(&mut driver);
    let stop = thread::spawn(move || (driver.client.vring_base(0).unwrap(), driver));
    stopping(&served, 1);
    complete(read);
    let (base, mut driver) = stop.join().unwrap();
    assert_eq!((base, driver.used(0)), (1, Used { head: 0, len: 4 }));
}

/// The machine does not stop after all.
#[test]
fn a_ring_that_is_enabled_again_goes_on_beside_one_that_was_left() {
    let (served, kept) = keeping(2);
    let mut driver = suspendable(&served);
    push(&mut driver, 0, 0, b"read");
    let read = next(&kept);
    disable(&mut driver);
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
    driver.client.set_vring_enable(1, true).unwrap();
    invert(&read);
    assert_eq!(answer(&driver, 0), [0; 4], "its memory was taken before the guest runs");
    push(&mut driver, 1, 1, b"next");
    complete(next(&kept));
    assert_eq!(driver.used(1), Used { head: 2, len: 4 });
    restart(&mut driver, 0, 1);
    complete(next(&kept));
    assert_eq!(driver.used(0), Used { head: 0, len: 4 });
    assert!(read.complete(0).is_err());
}

#[test]
fn what_a_request_had_written_that_is_left_is_marked_in_the_dirty_log() {
    let (served, kept) = keeping(1);
    let mut driver = suspendable(&served);
    let log = DirtyLog::of(&driver.memory).unwrap();
    driver.client.set_log(&log).unwrap();
    let features = 1 << 26 | 1 << 32 | 1 << 30 | Wanted::default().features;
    driver.client.set_features(features).unwrap();
    push(&mut driver, 0, 0, b"read");
    let read = next(&kept);
    read.writable().fill(0, 2, 0x5a);
    disable(&mut driver);
    driver.client.vring_base(0).unwrap();
    assert_eq!(answer(&driver, 0), [0x5a, 0x5a, 0, 0]);
    assert_eq!(log.take(), [place(0) >> 12]);
}
