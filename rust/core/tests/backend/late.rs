//! Requests that a device does not give back in time: whose memory is it from then on?

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::Used;
use vhost_user_core::request::Request;

use super::served::*;

/// Where a request's readable buffer is; the writable one follows.
const AT: u64 = MIB / 2;
const ANSWER: u64 = AT + 2048;

/// A device that keeps what it gets, with so long to give it back.
fn keeping(queues: u16, drain: Duration) -> (Served, Receiver<Request>) {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { queues, keep: Some(Mutex::new(keep)), ..Mirror::default() };
    (Served::with(device, |options| options.drain = drain), kept)
}

fn read<const N: usize>(driver: &Driver, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    driver.memory.read(GuestAddr(at), &mut bytes).unwrap();
    bytes
}

#[test]
fn its_buffers_are_the_drivers_alone_once_the_driver_sees_it_used() {
    let (served, kept) = keeping(1, Duration::from_millis(100));
    let mut driver = served.driver();
    driver.push(0, 0, b"kept", AT);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    let memory = Arc::clone(&driver.memory);
    let mut rings = std::mem::take(&mut driver.rings);
    let stop = thread::spawn(move || {
        let base = driver.client.vring_base(0);
        (base, driver)
    });
    let mut used = None;
    eventually("the request that failed", || {
        used = rings[0].pop().unwrap();
        used.is_some()
    });
    assert_eq!(used, Some(Used { head: 0, len: 0 }));
    // The driver uses its buffers for something else, and the device does not know better.
    memory.write(GuestAddr(ANSWER), b"MINE").unwrap();
    memory.write(GuestAddr(AT), b"NEXT").unwrap();
    request.writable().fill(0, 4, 0x55);
    let mut bytes = [0; 4];
    memory.read(GuestAddr(ANSWER), &mut bytes).unwrap();
    assert_eq!(&bytes, b"MINE");
    let (base, driver) = stop.join().unwrap();
    assert_eq!(base.unwrap(), 1);
    request.readable().read_at(0, &mut bytes);
    assert_eq!(&bytes, b"kept");
    // That stays so when the front-end leaves.
    drop(driver);
    eventually("the end of the connection", || {
        served.events.any(|event| matches!(event, Event::Disconnected))
    });
    request.readable().read_at(0, &mut bytes);
    assert_eq!(&bytes, b"kept");
}

#[test]
fn another_queues_request_that_ends_later_fails_rather_than_lose_its_data() {
    let (served, kept) = keeping(2, Duration::from_millis(100));
    let mut driver = served.driver();
    driver.push(0, 0, b"late", AT);
    driver.rings[0].publish();
    let late = kept.recv_timeout(LIMIT).unwrap();
    driver.push(1, 0, b"good", AT + 64);
    driver.rings[1].publish();
    let good = kept.recv_timeout(LIMIT).unwrap();
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
    let written = invert(&good);
    good.complete(written).unwrap();
    assert_eq!(driver.used(1), Used { head: 0, len: 0 });
    assert_eq!(read::<4>(&driver, ANSWER + 64), [0; 4]);
    // What comes after that is served as ever.
    driver.push(1, 2, b"next", AT + 128);
    driver.rings[1].publish();
    let next = kept.recv_timeout(LIMIT).unwrap();
    let written = invert(&next);
    next.complete(written).unwrap();
    assert_eq!(driver.used(1), Used { head: 2, len: 4 });
    assert_eq!(read::<4>(&driver, ANSWER + 128), b"next".map(|byte| !byte));
    drop(late);
}

#[test]
fn a_thread_that_is_held_up_while_it_completes_holds_up_no_stop_for_good() {
    let (served, kept) = keeping(1, Duration::from_millis(100));
    let mut driver = served.driver();
    driver.push(0, 0, b"held", AT);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel();
    let completing = thread::spawn(move || {
        // As a store to guest memory that does not answer.
        request.complete_with(|_| {
            begun.send(()).unwrap();
            let _ = wait.recv();
            0
        })
    });
    begins.recv_timeout(LIMIT).unwrap();
    let stopped = thread::scope(|scope| {
        let stop = scope.spawn(|| served.backend.stop(Duration::from_millis(100)));
        eventually("the end of the stop", || stop.is_finished());
        stop.join().unwrap()
    });
    assert_eq!(stopped.len(), 1);
    assert!(!served.events.any(|event| matches!(event, Event::NotStopped)));
    drop(go);
    assert!(completing.join().unwrap().is_ok(), "it was not closed when it began");
    drop(driver);
}
