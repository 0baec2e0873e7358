//! A driver that rewrites a descriptor while the device reads it. Whatever the device makes of
//! it, it must be one of the two chains that the driver wrote, whole, or an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::{RingError, SplitRing};
use vm_memory::{AtomicAccess, Bytes, GuestAddress};

use crate::driver::{DATA, Descriptor, Driver, INDIRECT, NEXT, TABLES, WRITE, guest, readable};

const ROUNDS: usize = 100_000;
const OFTEN: usize = 100;
/// Far longer than any schedule takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Flips what lies at `at` between two values on another thread, while `look` is given each chain
/// or error that comes of it and says which of the two values it shows. Goes on until both were
/// met often: however the threads are scheduled, the test has seen what it is about.
fn flip<T: AtomicAccess>(
    driver: &Driver,
    at: u64,
    values: [T; 2],
    look: impl Fn(Result<&Buffers, RingError>) -> usize,
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
        let mut device = driver.start_device(0);
        let mut buffers = Buffers::default();
        let (mut met, began) = ([0; 2], Instant::now());
        while met.iter().sum::<usize>() < ROUNDS || met.iter().any(|&count| count < OFTEN) {
            met[pop_again(&mut device, &mut buffers, &look)] += 1;
            assert!(began.elapsed() < LIMIT, "only one side was met: {met:?}");
        }
    });
}

/// Ends the other thread also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pops the one chain on offer and puts it back.
fn pop_again(
    device: &mut SplitRing,
    buffers: &mut Buffers,
    look: &impl Fn(Result<&Buffers, RingError>) -> usize,
) -> usize {
    assert_eq!(device.available(), Ok(1));
    match device.pop(buffers) {
        Ok(head) => {
            device.unpop(head.unwrap());
            look(Ok(buffers))
        }
        Err(error) => look(Err(error)),
    }
}

/// The second half of a descriptor: length, flags and next.
fn half(len: u32, flags: u16, next: u16) -> u64 {
    let bytes = Descriptor { at: 0, len, flags, next }.bytes();
    u64::from_ne_bytes(bytes[8..].try_into().unwrap())
}

fn offered() -> Driver {
    let mut driver = Driver::new(&guest(), 4, false, 0);
    driver.guest.write(DATA, &[1; 64]);
    driver.guest.write(DATA + 64, &[2; 64]);
    driver.put(0, DATA, 16, 0, 0);
    driver.put(1, DATA + 64, 16, WRITE, 0);
    driver.submit(0);
    driver
}

#[test]
fn a_length_that_changes_is_read_once() {
    let driver = offered();
    let values = [half(16, 0, 0), half(u32::MAX, 0, 0)];
    flip(&driver, driver.descriptors + 8, values, |popped| match popped {
        Ok(buffers) => match buffers.fault() {
            None => {
                assert_eq!(readable(buffers), [1; 16]);
                0
            }
            Some(fault) => {
                assert_eq!((fault.len, buffers.readable().len()), (u64::from(u32::MAX), 0));
                1
            }
        },
        Err(error) => panic!("{error}"),
    });
}

#[test]
fn an_address_that_changes_is_read_once() {
    let driver = offered();
    let values = [DATA.to_le(), (DATA + 64).to_le()];
    flip(&driver, driver.descriptors, values, |popped| {
        let bytes = readable(popped.unwrap());
        assert!(bytes == [1; 16] || bytes == [2; 16]);
        usize::from(bytes[0]) - 1
    });
}

#[test]
fn flags_and_next_that_change_are_read_once() {
    let driver = offered();
    let values = [half(16, NEXT, 1), half(16, NEXT | WRITE, 0xffff)];
    flip(&driver, driver.descriptors + 8, values, |popped| match popped {
        Ok(buffers) => {
            assert_eq!((buffers.readable().len(), buffers.writable().len()), (16, 16));
            0
        }
        Err(error) => {
            assert_eq!(error, RingError::BadNext { head: 0, next: 0xffff, table: 4 });
            1
        }
    });
}

#[test]
fn a_table_that_grows_is_read_at_one_length() {
    let driver = offered();
    let entry = |at| Descriptor { at, len: 8, flags: NEXT, next: 1 };
    driver.put_table(TABLES, &[entry(DATA), Descriptor { flags: 0, ..entry(DATA + 64) }]);
    driver.put(0, TABLES, 32, INDIRECT, 0);
    let values = [half(32, INDIRECT, 0), half(16, INDIRECT, 0)];
    flip(&driver, driver.descriptors + 8, values, |popped| match popped {
        Ok(buffers) => {
            assert_eq!(readable(buffers), [[1; 8], [2; 8]].concat());
            0
        }
        Err(error) => {
            assert_eq!(error, RingError::BadNext { head: 0, next: 1, table: 1 });
            1
        }
    });
}

#[test]
fn a_table_whose_entries_change_is_walked_in_a_copy() {
    let driver = offered();
    driver.put_table(TABLES, &[Descriptor { at: DATA, len: 16, flags: 0, next: 0 }]);
    driver.put(0, TABLES, 16, INDIRECT, 0);
    let values = [half(16, 0, 0), half(16, INDIRECT, 0)];
    flip(&driver, TABLES + 8, values, |popped| match popped {
        Ok(buffers) => {
            assert_eq!(readable(buffers), [1; 16]);
            0
        }
        Err(error) => {
            assert_eq!(error, RingError::BadIndirect { head: 0 });
            1
        }
    });
}

#[test]
fn a_head_that_changes_is_read_once() {
    let driver = offered();
    let values = [0_u16, 0x7fff_u16.to_le()];
    flip(&driver, driver.available + 4, values, |popped| match popped {
        Ok(buffers) => {
            assert_eq!(readable(buffers), [1; 16]);
            0
        }
        Err(error) => {
            assert_eq!(error, RingError::BadHead { head: 0x7fff, size: 4 });
            1
        }
    });
}
