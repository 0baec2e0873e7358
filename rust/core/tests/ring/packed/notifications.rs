//! No wake-up is lost: a driver and a device that sleep whenever they may, on two threads.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use vhost_user_core::ring::PackedRing;

use super::driver::*;

/// Far longer than any sleep takes: a limit for a test that fails.
const LIMIT: Duration = Duration::from_secs(30);

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
fn device(mut ring: PackedRing, kicks: &Receiver<()>, calls: &SyncSender<()>, requests: u32) {
    let mut seed = 0x9e37_79b9;
    let mut answered = 0;
    while answered < requests {
        let batch = 1 + random(&mut seed) % 4;
        for _ in 0..batch {
            let Some((token, _)) = pop(&mut ring).unwrap() else { break };
            ring.push(token, 0);
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
    let mut driver = Driver::new(&guest(), size, event_idx, 0);
    let ring = driver.start_device();
    let ((kick, kicks), (call, calls)) = (sync_channel(1), sync_channel(1));
    let worker = thread::spawn(move || device(ring, &kicks, &call, requests));
    let mut seed = 0x2545_f491;
    let (mut sent, mut back) = (0, 0);
    let pieces = [Piece { at: DATA, len: 1, writable: false }; 3];
    while back < requests {
        let window = 1 + random(&mut seed) % u32::from(size);
        for _ in 0..window.min(requests - sent) {
            let count = 1 + random(&mut seed) % u32::from(size.min(3));
            if driver.room() >= count as u16 {
                driver.add(&pieces[..count as usize], Form::Direct);
                sent += 1;
            }
        }
        if driver.expose() {
            signal(&kick);
        }
        back += driver.collect().len() as u32;
        if back < sent && (driver.room() < 3 || sent == requests) && !driver.arm() {
            calls.recv_timeout(LIMIT).expect("the driver slept and was not notified");
            driver.disarm();
        }
    }
    worker.join().unwrap();
}

#[test]
fn no_wake_up_of_a_packed_ring_is_lost_with_event_indices() {
    for size in [1, 2, 3, 8, 256] {
        run(size, true, 30_000);
    }
}

#[test]
fn no_wake_up_of_a_packed_ring_is_lost_with_flags() {
    for size in [1, 2, 3, 8, 256] {
        run(size, false, 30_000);
    }
}
