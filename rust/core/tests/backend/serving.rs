//! What a device and its front-end see of a back-end's ordinary life.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::{Backend, Event, Options, State, Stuck, Threads};
use vhost_user_core::frontend::{Descriptor, NEXT, SplitRing, Used, WRITE};
use vhost_user_core::socket::{Endpoint, ListenOptions};

use super::served::*;
use super::support::Directory;

#[test]
fn a_request_is_answered_through_the_socket() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    assert!(served.backend.wait_running(Some(LIMIT)));
    assert_eq!(driver.ask(0, &[1, 2, 3]), [254, 253, 252]);
    assert_eq!(served.backend.counters().requests, 1);
}

#[test]
fn a_front_end_that_comes_back_is_served_again() {
    let served = Served::new(Mirror::default());
    for _ in 0..3 {
        assert_eq!(served.driver().ask(0, b"abc"), [!b'a', !b'b', !b'c']);
    }
    eventually("the third disconnect", || {
        let log = served.device.log.lock().unwrap();
        log.iter().filter(|&&entry| entry == "disconnected").count() == 3
    });
    eventually("the wait for the next", || served.backend.state() == State::Listening);
    assert_eq!(served.backend.counters().sessions, 3);
}

#[test]
fn a_batch_is_half_of_what_is_available_and_no_more_than_the_limit() {
    let served = Served::with(Mirror::default(), |options| options.batch = 24);
    let mut driver = Driver::connect(&served.directory.join("device.sock"), 1);
    for head in 0..60 {
        let buffer = Descriptor { addr: MIB / 2, len: 4, flags: WRITE, next: 0 };
        driver.rings[0].set_descriptor(head, buffer);
        driver.rings[0].push(head);
    }
    driver.rings[0].publish();
    driver.start();
    for _ in 0..60 {
        driver.used(0);
    }
    // 24 of 60; half of 36; 16 are handed over in any case.
    assert_eq!(served.device.batches.lock().unwrap()[..3], [24, 18, 16]);
}

#[test]
fn a_second_front_end_waits_until_the_first_has_left() {
    let served = Served::new(Mirror::default());
    let mut first = served.driver();
    let socket = served.directory.join("device.sock");
    let second = thread::spawn(move || Driver::new(&socket, 1).ask(0, &[7]));
    assert_eq!(first.ask(0, &[1]), [254]);
    drop(first);
    assert_eq!(second.join().unwrap(), [248]);
}

#[test]
fn all_queues_are_served_by_one_thread_as_by_one_each() {
    for threads in [Threads::PerQueue, Threads::Count(1.try_into().unwrap())] {
        let device = Mirror { queues: 4, ..Mirror::default() };
        let served = Served::with(device, |options| options.threads = threads);
        let mut driver = served.driver();
        for queue in 0..4 {
            assert_eq!(driver.ask(queue, &[queue as u8]), [!(queue as u8)]);
        }
    }
}

#[test]
fn requests_come_back_in_any_order_from_any_thread() {
    let (served, kept) = Served::keeping();
    let mut driver = served.driver();
    for n in 0..16 {
        driver.push(0, 2 * n, &[n as u8], MIB / 2 + 4096 * u64::from(n));
    }
    driver.rings[0].publish();
    let mut requests: Vec<_> = (0..16).map(|_| kept.recv_timeout(LIMIT).unwrap()).collect();
    requests.reverse();
    let threads: Vec<_> = requests
        .into_iter()
        .map(|request| {
            thread::spawn(move || {
                let written = invert(&request);
                request.complete(written).unwrap();
            })
        })
        .collect();
    let heads: HashSet<_> = (0..16).map(|_| driver.used(0).head).collect();
    assert_eq!(heads, (0..16).map(|n| 2 * n).collect());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn stopping_a_ring_waits_for_its_requests() {
    let (served, kept) = Served::keeping();
    let mut driver = served.driver();
    driver.push(0, 0, b"late", MIB / 2);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    let (asked, heard) = mpsc::channel();
    let stopper = thread::spawn(move || {
        asked.send(()).unwrap();
        let base = driver.client.vring_base(0).unwrap();
        // The used entry was written before the answer was.
        assert_eq!(driver.rings[0].pop().unwrap(), Some(Used { head: 0, len: 4 }));
        base
    });
    heard.recv().unwrap();
    let written = invert(&request);
    request.complete(written).unwrap();
    assert_eq!(stopper.join().unwrap(), 1);
}

#[test]
fn requests_that_do_not_come_back_within_the_limit_fail_and_the_connection_stays() {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { keep: Some(Mutex::new(keep)), ..Mirror::default() };
    let served = Served::with(device, |o| o.drain = Duration::from_millis(100));
    let mut driver = served.driver();
    driver.push(0, 0, b"kept", MIB / 2);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
    assert_eq!(driver.rings[0].pop().unwrap(), Some(Used { head: 0, len: 0 }));
    assert!(served.events.any(|e| matches!(e, Event::Stuck(s) if s.requests == 1)));
    // Its memory is not the device's any more, though the device still has it.
    let bytes = || {
        let mut bytes = [0; 8192];
        driver.memory.read(GuestAddr(MIB / 2), &mut bytes).unwrap();
        bytes
    };
    let before = bytes();
    let mut seen = [0; 4];
    request.readable().read_at(0, &mut seen);
    assert_eq!(&seen, b"kept");
    request.writable().fill(0, 4, 0x55);
    assert_eq!(bytes(), before);
    assert!(request.complete(4).is_err());
    assert_eq!(driver.client.vring_base(0).unwrap(), 1);
}

#[test]
fn stop_returns_within_its_limit_and_says_what_is_stuck() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut driver = served.driver();
    served.device.block.set(true);
    driver.push(0, 0, b"stuck", MIB / 2);
    driver.rings[0].publish();
    eventually("the callback", || served.backend.counters().in_flight == 1);
    let stuck = served.backend.stop(Duration::from_millis(100));
    assert_eq!(stuck, [Stuck { queue: 0, requests: 1 }]);
    assert_eq!(served.backend.state(), State::Stopped);
    assert!(!served.directory.join("device.sock").exists());
    served.device.block.set(false);
}

#[test]
fn a_region_stays_mapped_until_the_last_request_in_it_is_answered() {
    let (served, kept) = Served::keeping();
    let mut driver = served.driver();
    driver.push(0, 0, b"held", 2 * MIB);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    let memory = Arc::clone(&driver.memory);
    let (asked, heard) = mpsc::channel();
    let remover = thread::spawn(move || {
        asked.send(()).unwrap();
        driver.client.remove_region(&memory.regions()[1]).unwrap();
        driver
    });
    heard.recv().unwrap();
    let written = invert(&request);
    assert_eq!(written, 4);
    request.complete(written).unwrap();
    let mut driver = remover.join().unwrap();
    assert_eq!(driver.used(0), Used { head: 0, len: 4 });
    // What the other regions hold is served on.
    driver.push(0, 2, b"next", 4 * MIB);
    driver.rings[0].publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    request.complete(0).unwrap();
    assert_eq!(driver.used(0), Used { head: 2, len: 0 });
    // A request in the removed region fails; the device does not see it.
    driver.push(0, 4, b"gone", 2 * MIB);
    driver.rings[0].publish();
    assert_eq!(driver.used(0), Used { head: 4, len: 0 });
    assert!(kept.try_recv().is_err());
}

#[test]
fn requests_outside_memory_fail_alone_and_are_told_once() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let outside = |addr, flags| Descriptor { addr, len: 4, flags, next: 1 };
    for (turn, chain) in [[9 * MIB, MIB / 2], [MIB / 2, 9 * MIB], [u64::MAX - 1, 3 * MIB]]
        .into_iter()
        .cycle()
        .take(30)
        .enumerate()
    {
        // In one batch with good ones before and behind.
        driver.push(0, 4, b"abc", MIB / 2 + 64);
        driver.rings[0].set_descriptor(0, outside(chain[0], NEXT));
        driver.rings[0].set_descriptor(1, outside(chain[1], WRITE));
        driver.rings[0].push(0);
        driver.push(0, 8, b"abc", MIB / 2 + 128);
        driver.rings[0].publish();
        let used = [(); 3].map(|()| driver.used(0));
        for (head, len) in [(4, 3), (0, 0), (8, 3)] {
            assert!(used.contains(&Used { head, len }), "{turn}: {used:?}");
        }
    }
    let told = |event: &Event| match event {
        Event::RequestFailed { queue: 0, error } => {
            error.starts_with("4 bytes at 0x900000 cannot be read: no memory region that")
        }
        _ => false,
    };
    assert_eq!(served.events.count(told), 1);
    assert_eq!(served.events.count(|event| matches!(event, Event::RequestFailed { .. })), 1);
    assert!(!driver.rings[0].error_signalled());
}

#[test]
fn memory_can_be_replaced_while_rings_run() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let mappings = guest_mappings();
    for n in 0..200 {
        driver.client.set_memory_table(&driver.memory.clone()).unwrap();
        assert_eq!(driver.ask(0, &[n]), [!n]);
    }
    eventually("the old tables' end", || guest_mappings() <= mappings);
}

#[test]
fn a_broken_ring_leaves_the_others_alone_and_comes_back_after_a_stop() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut driver = served.driver();
    driver.rings[0].set_available_index(RING + 1);
    driver.rings[0].kick();
    eventually("the error signal", || driver.rings[0].error_signalled());
    assert_eq!(driver.ask(1, &[9]), [246]);
    eventually("needs-reset", || driver.client.status().unwrap() & 0x40 != 0);
    driver.client.vring_base(0).unwrap();
    let layout = *driver.rings[0].layout();
    driver.rings[0] = SplitRing::new(&driver.memory, layout, true).unwrap();
    driver.client.start_ring(0, &driver.rings[0]).unwrap();
    assert_eq!(driver.ask(0, &[9]), [246]);
    assert!(served.events.any(|e| matches!(e, Event::QueueBroken { queue: 0, .. })));
}

#[test]
fn what_the_device_leaves_is_offered_again_at_the_next_kick() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    served.device.leave.store(true, Ordering::SeqCst);
    driver.push(0, 0, &[1], MIB / 2);
    driver.rings[0].publish();
    eventually("the kick", || served.backend.counters().kicks > 0);
    served.device.leave.store(false, Ordering::SeqCst);
    driver.rings[0].kick();
    assert_eq!(driver.used(0), Used { head: 0, len: 1 });
}

#[test]
fn a_device_that_leaves_requests_is_not_asked_again_and_again() {
    let device = Mirror { queues: 2, ..Mirror::default() };
    let served = Served::with(device, |o| o.threads = Threads::Count(1.try_into().unwrap()));
    let mut driver = served.driver();
    served.device.leave.store(true, Ordering::SeqCst);
    for n in 0..RING / 2 {
        driver.push(0, 2 * n, &[1], MIB / 2 + 4096 * u64::from(n % 8));
    }
    driver.rings[0].publish();
    eventually("the kick", || served.backend.counters().kicks > 0);
    // Many times as long as a look takes.
    let asked = served.backend.counters().batches;
    driver.push(1, 0, &[7], 4 * MIB);
    for _ in 0..50 {
        driver.client.features().unwrap();
    }
    assert!(served.backend.counters().batches <= asked + 2);
    served.device.leave.store(false, Ordering::SeqCst);
    driver.rings[1].publish();
    assert_eq!(driver.used(1), Used { head: 0, len: 1 });
    driver.rings[0].kick();
    for n in 0..RING / 2 {
        assert_eq!(driver.used(0), Used { head: 2 * n, len: 1 });
    }
}

#[test]
fn buffers_that_wait_when_a_ring_is_enabled_need_no_kick() {
    let served = Served::new(Mirror::default());
    let mut driver = Driver::connect(&served.directory.join("device.sock"), 1);
    let layout = *driver.rings[0].layout();
    driver.client.start_ring(0, &driver.rings[0]).unwrap();
    driver.push(0, 0, &[1], MIB / 2);
    // Published behind the ring's back: no kick is sent.
    driver.rings[0].set_available_index(1);
    assert_eq!(served.backend.state(), State::Paused);
    driver.client.set_vring_enable(0, true).unwrap();
    eventually("the answer", || driver.rings[0].used_index() == 1);
    assert_eq!(layout.size, RING);
}

#[test]
fn a_disabled_ring_is_left_alone_and_keeps_its_place() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    for n in 0..50 {
        driver.client.set_vring_enable(0, false).unwrap();
        driver.push(0, 0, &[n], MIB / 2);
        driver.rings[0].publish();
        assert_eq!(driver.rings[0].pop().unwrap(), None);
        driver.client.set_vring_enable(0, true).unwrap();
        assert_eq!(driver.used(0), Used { head: 0, len: 1 });
    }
}

#[test]
fn no_kick_is_lost_when_the_kick_descriptor_is_replaced() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for n in 0..1000_u32 {
        let data = n.to_le_bytes();
        driver.push(0, 0, &data, MIB / 2);
        driver.rings[0].publish();
        driver.client.set_vring_kick(0, Some(driver.rings[0].kick_fd())).unwrap();
        assert_eq!(driver.used(0), Used { head: 0, len: 4 });
    }
    // Other tests of this program open and close descriptors at the same time.
    eventually("the old descriptors' end", || descriptors() < before + 100);
}

#[test]
fn a_ring_without_a_kick_descriptor_is_polled() {
    let served = Served::new(Mirror::default());
    let mut driver = Driver::connect(&served.directory.join("device.sock"), 1);
    let ring = &driver.rings[0];
    driver.client.set_vring_num(0, RING.into()).unwrap();
    driver.client.set_vring_addr(&ring.addresses(0)).unwrap();
    driver.client.set_vring_call(0, Some(ring.call_fd())).unwrap();
    driver.client.set_vring_kick(0, None).unwrap();
    driver.client.set_vring_enable(0, true).unwrap();
    for n in 0..20 {
        driver.push(0, 0, &[n], MIB / 2);
        driver.rings[0].publish();
        assert_eq!(driver.used(0), Used { head: 0, len: 1 });
    }
}

#[test]
fn the_device_hears_of_its_life_in_order() {
    let served = Served::new(Mirror { queues: 2, ..Mirror::default() });
    let mut driver = served.driver();
    driver.client.vring_base(0).unwrap();
    driver.client.vring_base(1).unwrap();
    driver.client.reset_device().unwrap();
    drop(driver);
    served.backend.stop(LIMIT);
    let log = served.device.log.lock().unwrap().clone();
    assert_eq!(log, ["started", "stopped", "reset", "disconnected"]);
}

#[test]
fn the_front_end_is_told_of_a_changed_configuration() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    assert_eq!(driver.client.config(2, 4).unwrap(), [3, 4, 5, 6]);
    assert_eq!(driver.client.config(6, 4).unwrap(), [7, 8, 0, 0]);
    served.backend.notify_config();
    let event = driver.client.wait_event(LIMIT).unwrap();
    assert!(event.is_some());
}

#[test]
fn a_reset_stops_the_rings_and_keeps_memory() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    assert_eq!(driver.ask(0, &[1]), [254]);
    driver.client.reset_device().unwrap();
    assert_eq!(served.backend.state(), State::Negotiating);
    let layout = *driver.rings[0].layout();
    driver.rings[0] = SplitRing::new(&driver.memory, layout, true).unwrap();
    driver.start();
    assert_eq!(driver.ask(0, &[1]), [254]);
}

#[test]
fn the_second_round_of_a_ring_starts_where_the_first_ended() {
    let served = Served::new(Mirror::default());
    let mut driver = served.driver();
    for round in 1..5 {
        assert_eq!(driver.ask(0, &[3]), [252]);
        assert_eq!(driver.client.vring_base(0).unwrap(), round);
        driver.client.start_ring(0, &driver.rings[0]).unwrap();
    }
}

#[test]
fn a_processor_that_does_not_exist_is_refused_at_once() {
    let directory = Directory::new();
    let mut options = Options::new(Endpoint::Listen(ListenOptions::new(directory.join("s"))));
    options.cpus = vec![100_000];
    let started = Backend::start(Arc::new(Mirror::default()), options, Arc::new(Events::default()));
    assert_eq!(started.unwrap_err().to_string(), "this process may not run on processor 100000");
}
