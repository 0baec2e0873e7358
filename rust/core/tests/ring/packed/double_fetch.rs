//! A driver that rewrites a descriptor while the device reads it. Whatever the device makes of it, it
//! must be one of the two that the driver wrote, whole, or an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::{PackedRing, RingError};
use vm_memory::{AtomicAccess, Bytes, GuestAddress};

use super::driver::*;
use crate::driver::readable;

const ROUNDS: usize = 50_000;
const OFTEN: usize = 100;
/// Far longer than any schedule takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Ends the other thread also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Flips what lies at `at` between two values on another thread, while `look` is given what a ring
/// that has just started makes of it, and says which of the two that shows.
fn flip<T: AtomicAccess>(
    driver: &Driver,
    at: u64,
    values: [T; 2],
    look: impl Fn(Result<Option<&Buffers>, RingError>, &PackedRing) -> usize,
) {
    let (guest, stop) = (&driver.guest, AtomicBool::new(false));
    let store = |value| guest.driver.store(value, GuestAddress(at), Ordering::Relaxed).unwrap();
    values.into_iter().rev().for_each(store);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                values.into_iter().for_each(store);
            }
        });
        let mut buffers = Buffers::default();
        let (mut met, began) = ([0; 2], Instant::now());
        while met.iter().sum::<usize>() < ROUNDS || met.iter().any(|&count| count < OFTEN) {
            let mut device = Driver::start_device(driver);
            device.available().unwrap();
            let popped = device.pop(&mut buffers);
            met[look(popped.map(|token| token.map(|_| &buffers)), &device)] += 1;
            assert!(began.elapsed() < LIMIT, "only one side was met: {met:?}");
        }
    });
}

/// The second half of a descriptor: length, id and flags.
fn half(len: u32, id: u16, flags: u16) -> u64 {
    (u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48).to_le()
}

/// A ring at its start, with one chain in it.
fn offered(descriptors: &[(u64, u32, u16)]) -> Driver {
    let mut driver = Driver::new(&guest(), 4, false, 0);
    driver.guest.write(DATA, &[1; 64]);
    driver.guest.write(DATA + 64, &[2; 64]);
    driver.add_raw(0, descriptors);
    driver.expose();
    // A device is to start where the chain is.
    driver.next = 0;
    driver
}

#[test]
fn length_and_flags_that_change_are_read_once_and_together() {
    let driver = offered(&[(DATA, 16, 0)]);
    let values = [half(16, 0, AVAIL), half(8, 1, AVAIL | WRITE)];
    flip(&driver, RING + 8, values, |popped, device| {
        let buffers = popped.unwrap().unwrap();
        let id = device.tokens_in_flight()[0].id;
        match (buffers.readable().len(), buffers.writable().len(), id) {
            (16, 0, 0) => 0,
            (0, 8, 1) => 1,
            mixed => panic!("{mixed:?}"),
        }
    });
}

#[test]
fn an_address_that_changes_is_read_once() {
    let driver = offered(&[(DATA, 16, 0)]);
    flip(&driver, RING, [DATA.to_le(), (DATA + 64).to_le()], |popped, _| {
        let bytes = readable(popped.unwrap().unwrap());
        assert!(bytes == [1; 16] || bytes == [2; 16]);
        usize::from(bytes[0]) - 1
    });
}

/// The length of a chain is what its flags said when it was seen, and its descriptors are those.
#[test]
fn the_end_of_a_chain_that_changes_is_read_once() {
    let driver = offered(&[(DATA, 16, NEXT), (DATA + 64, 16, 0), (DATA, 1, 0)]);
    let values = [half(16, 2, AVAIL), half(16, 2, AVAIL | NEXT)];
    flip(&driver, RING + 16 + 8, values, |popped, device| {
        let len = popped.unwrap().unwrap().readable().len();
        let descriptors = device.tokens_in_flight()[0].descriptors;
        match (len, descriptors) {
            (32, 2) => 0,
            (33, 3) => 1,
            mixed => panic!("{mixed:?}"),
        }
    });
}

/// A descriptor that is made available and taken back, over and over, is there or not.
#[test]
fn flags_that_come_and_go_are_read_once() {
    let driver = offered(&[(DATA, 16, 0)]);
    let values = [half(16, 0, AVAIL), half(99, 9, AVAIL | USED)];
    flip(&driver, RING + 8, values, |popped, _| match popped.unwrap() {
        Some(buffers) => {
            assert_eq!(readable(buffers), [1; 16]);
            0
        }
        None => 1,
    });
}

#[test]
fn a_chain_in_flight_is_as_it_was_when_it_was_seen() {
    let mut driver = offered(&[(DATA, 16, 0)]);
    let mut device = driver.start_device();
    let (token, _) = pop(&mut device).unwrap().unwrap();
    driver.guest.write(RING, &[0xff; 64]);
    let mut buffers = Buffers::default();
    device.walk_again(token, &mut buffers).unwrap();
    assert_eq!(readable(&buffers), [1; 16]);
    driver.next = 1;
    device.unpop(token);
    assert_eq!(device.pop(&mut buffers), Ok(Some(token)));
    assert_eq!(readable(&buffers), [1; 16]);
}
