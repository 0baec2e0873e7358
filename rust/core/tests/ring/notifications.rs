//! No wake-up is lost: a driver and a device that sleep whenever they may, on two threads.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use vhost_user_core::ring::SplitRing;

use crate::driver::{DATA, Driver, Form, Piece, guest, pop};

/// Far longer than any sleep takes: a limit for a test that fails.
const LIMIT: Duration = Duration::from_secs(30);

/// What an eventfd is between processes.
struct Event(SyncSender<()>, Receiver<()>);

impl Event {
    fn new() -> Self {
        let (sender, receiver) = sync_channel(1);
        Self(sender, receiver)
    }
}

fn signal(event: &SyncSender<()>) {
    match event.try_send(()) {
        Ok(()) | Err(TrySendError::Full(())) => {}
        Err(TrySendError::Disconnected(())) => panic!("the other side is gone"),
    }
}

/// A small generator of numbers: the threads' steps must differ from round to round.
fn random(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

/// Answers until `requests` are answered, sleeping when the ring says that it may.
fn device(mut ring: SplitRing, kicks: &Receiver<()>, calls: &SyncSender<()>, requests: u32) {
    let mut seed = 0x9e37_79b9;
    let mut answered = 0;
    while answered < requests {
        let batch = 1 + random(&mut seed) % 4;
        for _ in 0..batch {
            let Some((head, _)) = pop(&mut ring).unwrap() else { break };
            ring.push(head, 0);
            answered += 1;
        }
        if ring.publish() {
            signal(calls);
        }
        if answered < requests && ring.available() == Ok(0) && !ring.enable_kicks(0).unwrap() {
            kicks.recv_timeout(LIMIT).expect("the device slept and no kick came");
            ring.disable_kicks();
        }
    }
}

fn run(size: u16, event_idx: bool, requests: u32) {
    let mut driver = Driver::new(&guest(), size, event_idx, 0xfff0);
    let ring = driver.start_device(0xfff0);
    let (Event(kick, kicks), Event(call, calls)) = (Event::new(), Event::new());
    let worker = thread::spawn(move || device(ring, &kicks, &call, requests));
    let mut seed = 0x2545_f491;
    let (mut sent, mut back) = (0, 0);
    while back < requests {
        let window = 1 + random(&mut seed) % u32::from(size);
        let burst = window.min(requests - sent);
        for _ in 0..burst {
            if driver.has_room(1) {
                driver.add(&[Piece { at: DATA, len: 1, writable: false }], Form::Direct);
                sent += 1;
            }
        }
        if driver.expose() {
            signal(&kick);
        }
        back += driver.collect().len() as u32;
        if back < sent && (!driver.has_room(1) || sent == requests) && !driver.arm() {
            calls.recv_timeout(LIMIT).expect("the driver slept and was not notified");
            driver.disarm();
        }
    }
    worker.join().unwrap();
    assert_eq!(driver.used_index(), 0xfff0_u16.wrapping_add(requests as u16));
}

#[test]
fn no_wake_up_is_lost_with_event_indices() {
    for size in [1, 2, 8, 256] {
        run(size, true, 30_000);
    }
}

#[test]
fn no_wake_up_is_lost_with_flags() {
    for size in [1, 2, 8, 256] {
        run(size, false, 30_000);
    }
}

/// Two threads that meet, over and over, so closely that their next steps overlap.
struct Meeting([AtomicU32; 2]);

impl Meeting {
    fn meet(&self, who: usize) {
        let round = self.0[who].load(Ordering::Relaxed) + 1;
        self.0[who].store(round, Ordering::Release);
        for turn in 0_u32.. {
            if self.0[1 - who].load(Ordering::Acquire) >= round {
                return;
            }
            if turn % 1024 == 1023 { thread::yield_now() } else { hint::spin_loop() }
        }
    }
}

/// Who leaves, by a failed assertion too, is waited for no longer.
struct Leave<'a>(&'a Meeting, usize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.0[self.1].store(u32::MAX, Ordering::Release);
    }
}

/// The two moments in which a wake-up can be lost, with both sides in them at once: the device
/// asks for kicks while the driver makes a buffer available, and the driver asks for a
/// notification while the device gives one back. Each time one of the two must see the other.
fn run_into_each_other(event_idx: bool, rounds: u32) {
    let mut driver = Driver::new(&guest(), 4, event_idx, 0xfff0);
    let mut ring = driver.start_device(0xfff0);
    let meeting = Meeting([AtomicU32::new(0), AtomicU32::new(0)]);
    let saw = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _leave = Leave(&meeting, 0);
            for _ in 0..rounds {
                ring.disable_kicks();
                meeting.meet(0);
                saw.store(ring.enable_kicks(0).unwrap(), Ordering::Relaxed);
                meeting.meet(0);
                let (head, _) = pop(&mut ring).unwrap().unwrap();
                ring.push(head, 0);
                meeting.meet(0);
                saw.store(ring.publish(), Ordering::Relaxed);
                meeting.meet(0);
            }
        });
        let _leave = Leave(&meeting, 1);
        for round in 0..rounds {
            driver.add(&[Piece { at: DATA, len: 1, writable: false }], Form::Direct);
            meeting.meet(1);
            let kick = driver.expose();
            meeting.meet(1);
            assert!(kick || saw.load(Ordering::Relaxed), "round {round}: no kick, no look");
            driver.disarm();
            meeting.meet(1);
            let look = driver.arm();
            meeting.meet(1);
            assert!(look || saw.load(Ordering::Relaxed), "round {round}: no call, no look");
            driver.collect();
        }
    });
}

#[test]
fn sides_that_run_into_each_other_see_each_other() {
    run_into_each_other(true, 10_000);
    run_into_each_other(false, 10_000);
}

#[test]
fn the_first_used_buffer_after_a_start_is_always_told() {
    let guest = guest();
    for _start in 0..2 {
        let mut driver = Driver::new(&guest, 4, true, 0);
        let mut ring = driver.start_device(0);
        // An event index far behind would tell a running ring to be silent.
        driver.set_used_event(0x7000);
        for told in [true, false] {
            let head = driver.add(&[Piece { at: DATA, len: 1, writable: false }], Form::Direct);
            driver.expose();
            pop(&mut ring).unwrap().unwrap();
            ring.push(head, 0);
            assert_eq!(ring.publish(), told);
            driver.collect();
        }
    }
}

#[test]
fn one_notification_tells_of_a_whole_batch() {
    let mut driver = Driver::new(&guest(), 64, true, 0);
    let mut ring = driver.start_device(0);
    for round in 0..4 {
        assert!(!driver.arm());
        for _ in 0..10 {
            driver.add(&[Piece { at: DATA, len: 1, writable: false }], Form::Direct);
        }
        driver.expose();
        while let Some((head, _)) = pop(&mut ring).unwrap() {
            ring.push(head, 0);
            assert_eq!(driver.used_index(), 10 * round, "an element shown before its batch");
        }
        assert!(ring.publish());
        assert!(!ring.publish(), "told twice of one batch");
        assert_eq!(driver.collect().len(), 10);
    }
    assert_eq!(Arc::strong_count(&driver.guest), 1);
}
