//! Requests in flight are recorded for the back-end that comes after this one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{Client, Used, Wanted};
use vhost_user_core::request::Request;
use vhost_user_core::wire::ProtocolFeatures;
use vhost_user_core::wire::payload::Inflight;

use super::served::*;

/// Where the first request's readable buffer is; each has 64 bytes, and the writable one follows
/// 2048 bytes behind.
const AT: u64 = MIB / 2;

fn place(number: u16) -> u64 {
    AT + 64 * u64::from(number)
}

/// A device that keeps what it gets, with so long to give it back.
fn keeping(drain: Duration) -> (Served, Receiver<Request>) {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { queues: 1, keep: Some(Mutex::new(keep)), ..Mirror::default() };
    (Served::with(device, |options| options.drain = drain), kept)
}

/// A front-end that keeps a record.
struct Recorded {
    driver: Driver,
    inflight: Inflight,
    fd: OwnedFd,
}

fn wanted(more: ProtocolFeatures) -> Wanted {
    let wanted = Wanted::default();
    Wanted { protocol: wanted.protocol | ProtocolFeatures::INFLIGHT_SHMFD | more, ..wanted }
}

impl Recorded {
    fn new(served: &Served, more: ProtocolFeatures) -> Self {
        let socket = served.directory.join("device.sock");
        let mut driver = Driver::connect_as(&socket, 1, &wanted(more));
        let (inflight, fd) = driver.client.inflight_fd(1, 128).unwrap();
        driver.client.set_inflight_fd(&inflight, fd.as_fd()).unwrap();
        driver.start();
        Self { driver, inflight, fd }
    }

    fn push(&mut self, requests: std::ops::Range<u16>) {
        for number in requests {
            self.driver.push(0, 2 * number, &[number as u8; 8], place(number));
        }
        self.driver.rings[0].publish();
    }

    fn answer(&self, number: u16) -> [u8; 8] {
        let mut answer = [0; 8];
        self.driver.memory.read(GuestAddr(place(number) + 2048), &mut answer).unwrap();
        answer
    }

    /// Leaves without a word, and comes back with the record and the used index, as QEMU does.
    fn reconnect(&mut self, served: &Served) {
        let former = std::mem::replace(
            &mut self.driver.client,
            Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap(),
        );
        drop(former);
        let negotiated = self.driver.client.negotiate(&wanted(ProtocolFeatures::empty())).unwrap();
        self.driver.client.set_features(negotiated.features).unwrap();
        self.driver.client.set_memory(&self.driver.memory).unwrap();
        self.driver.client.set_inflight_fd(&self.inflight, self.fd.as_fd()).unwrap();
        let (client, ring) = (&mut self.driver.client, &self.driver.rings[0]);
        client.set_vring_num(0, RING.into()).unwrap();
        client.set_vring_base(0, ring.used_index().into()).unwrap();
        client.set_vring_addr(&ring.addresses(0)).unwrap();
        client.set_vring_call(0, Some(ring.call_fd())).unwrap();
        client.set_vring_kick(0, Some(ring.kick_fd())).unwrap();
        client.set_vring_enable(0, true).unwrap();
    }

    fn restart(&mut self, base: u32) {
        let (client, ring) = (&mut self.driver.client, &self.driver.rings[0]);
        client.set_vring_base(0, base).unwrap();
        client.set_vring_kick(0, Some(ring.kick_fd())).unwrap();
        client.set_vring_enable(0, true).unwrap();
    }
}

fn next(kept: &Receiver<Request>) -> (Request, u8) {
    let request = kept.recv_timeout(LIMIT).unwrap();
    let mut first = [0];
    request.readable().read_at(0, &mut first);
    (request, first[0])
}

fn complete(request: Request) {
    let written = invert(&request);
    request.complete(written).unwrap();
}

#[test]
fn what_was_not_given_back_comes_again_first_and_in_order() {
    let (served, kept) = keeping(Duration::from_millis(100));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..4);
    let requests: Vec<_> = (0..4).map(|_| next(&kept)).collect();
    let sequences: Vec<_> = requests.iter().map(|(request, _)| request.sequence()).collect();
    assert_eq!(sequences, [0, 1, 2, 3]);
    let mut requests = requests.into_iter().map(|(request, _)| request);
    let (first, second) = (requests.next().unwrap(), requests.next().unwrap());
    complete(second);
    assert_eq!(front.driver.used(0), Used { head: 2, len: 8 });
    front.push(4..5);
    let late = [first, requests.next().unwrap(), requests.next().unwrap(), next(&kept).0];
    front.reconnect(&served);
    for (number, sequence) in [(0, 0), (2, 2), (3, 3), (4, 4)] {
        let (request, first) = next(&kept);
        assert_eq!(u16::from(first), number);
        assert_eq!((request.sequence(), request.is_resubmitted()), (sequence, true));
        complete(request);
        assert_eq!(front.driver.used(0), Used { head: 2 * number, len: 8 });
        assert_eq!(front.answer(number), [!(number as u8); 8]);
    }
    assert!(served.events.any(|event| matches!(event, Event::Resubmitted { requests: 4, .. })));
    for request in late {
        assert!(request.complete(0).is_err(), "the connection that it came from has ended");
    }
    front.push(5..6);
    let (request, _) = next(&kept);
    assert_eq!((request.sequence(), request.is_resubmitted()), (5, false));
    complete(request);
    assert_eq!(front.driver.used(0).head, 10);
}

#[test]
fn a_record_is_made_for_the_largest_ring_whatever_the_front_end_asks() {
    let (served, _kept) = keeping(Duration::from_millis(100));
    let front = Recorded::new(&served, ProtocolFeatures::empty());
    // 1024 entries of 16 bytes and a header, in whole lines of 64.
    assert_eq!((front.inflight.mmap_size, front.inflight.queue_size), (64 * 257, 128));
    assert!(!served.events.any(|event| matches!(event, Event::NotRecorded { .. })));
}

#[test]
fn a_ring_that_the_record_has_no_room_for_runs_without_and_the_log_says_so() {
    let served = Served::new(Mirror { queues: 1, ..Mirror::default() });
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 0);
    let small = Inflight { mmap_size: 64 * 3, ..front.inflight };
    front.driver.client.set_inflight_fd(&small, front.fd.as_fd()).unwrap();
    front.restart(0);
    assert_eq!(front.driver.ask(0, b"plain"), b"plain".map(|byte| !byte));
    let told = |event: &Event| {
        let why = "the record (SET_INFLIGHT_FD) has 192 bytes for each queue, and a ring of 64 \
                   entries needs 1088";
        matches!(event, Event::NotRecorded { queue: 0, why: told } if told == why)
    };
    assert!(served.events.any(told));
}

#[test]
fn requests_that_are_late_stay_in_the_record_and_come_again_at_the_next_start() {
    let (served, kept) = keeping(Duration::from_millis(100));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..3);
    let requests: Vec<_> = (0..3).map(|_| next(&kept).0).collect();
    let [first, second, third] = requests.try_into().unwrap();
    complete(second);
    assert_eq!(front.driver.used(0).head, 2);
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 3);
    assert_eq!(front.driver.rings[0].used_index(), 1, "the others are not given back");
    assert!(first.complete(0).is_err() && third.complete(0).is_err());
    front.restart(3);
    for number in [0, 2] {
        let (request, first) = next(&kept);
        assert_eq!((u16::from(first), request.is_resubmitted()), (number, true));
        complete(request);
        assert_eq!(front.driver.used(0), Used { head: 2 * number, len: 8 });
    }
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 3);
}

#[test]
fn what_the_device_leaves_of_it_is_offered_again_at_the_next_kick() {
    let (served, kept) = keeping(Duration::from_millis(100));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..2);
    let lost = [next(&kept).0, next(&kept).0];
    served.device.leave.store(true, Ordering::SeqCst);
    front.reconnect(&served);
    drop(lost);
    // The worker sleeps: it has asked for a kick behind what it took before.
    eventually("a wish for a kick", || front.driver.rings[0].available_event() >= 2);
    assert_eq!(front.driver.rings[0].available_event(), 2, "for the next request");
    served.device.leave.store(false, Ordering::SeqCst);
    front.push(2..3);
    for number in 0..3 {
        let (request, first) = next(&kept);
        assert_eq!((u16::from(first), request.is_resubmitted()), (number, number < 2));
        complete(request);
    }
}

#[test]
fn what_the_device_leaves_of_it_delays_no_stop() {
    let (served, kept) = keeping(Duration::from_secs(3600));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..2);
    let lost = [next(&kept).0, next(&kept).0];
    served.device.leave.store(true, Ordering::SeqCst);
    front.reconnect(&served);
    drop(lost);
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 2, "within the time of an answer");
    assert_eq!(front.driver.rings[0].used_index(), 0);
    served.device.leave.store(false, Ordering::SeqCst);
    front.restart(2);
    let (request, first) = next(&kept);
    assert_eq!((first, request.is_resubmitted()), (0, true));
    complete(request);
}

#[test]
fn a_stop_right_after_a_start_waits_for_what_comes_again() {
    let (served, kept) = keeping(Duration::from_secs(5));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..2);
    let lost = [next(&kept).0, next(&kept).0];
    front.reconnect(&served);
    front.driver.client.set_vring_enable(0, false).unwrap();
    drop(lost);
    let answering = std::thread::spawn(move || {
        for _ in 0..2 {
            complete(next(&kept).0);
        }
    });
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 2);
    answering.join().unwrap();
    assert_eq!(front.driver.rings[0].used_index(), 2);
}

#[test]
fn what_a_driver_left_before_it_reset_the_device_does_not_come_again() {
    let (served, kept) = keeping(Duration::from_millis(100));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..2);
    let late = [next(&kept).0, next(&kept).0];
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 2);
    front.driver.client.reset_device().unwrap();
    drop(late);
    let ring = &mut front.driver.rings[0];
    let index = ring.used_index();
    ring.set_available_index(index);
    let (client, ring) = (&mut front.driver.client, &front.driver.rings[0]);
    client.start_ring(0, ring).unwrap();
    client.set_vring_enable(0, true).unwrap();
    front.push(5..6);
    let (request, first) = next(&kept);
    assert_eq!((first, request.is_resubmitted()), (5, false));
    complete(request);
}

#[test]
fn a_record_of_nonsense_breaks_its_queue_and_no_more() {
    let (served, kept) = keeping(Duration::from_millis(100));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.push(0..1);
    let lost = next(&kept).0;
    // The used index that was recorded last.
    rustix::io::pwrite(&front.fd, &[99, 9], 14).unwrap();
    front.reconnect(&served);
    eventually("a broken queue", || {
        served.events.any(|event| {
            let says = "the record of requests in flight (SET_INFLIGHT_FD) is not this ring's: \
                        used index 2403, and the ring of 64 entries stands at 0";
            matches!(event, Event::QueueBroken { queue: 0, error } if error == says)
        })
    });
    drop(lost);
    assert_eq!(front.driver.client.vring_base(0).unwrap(), 0);
}

#[test]
fn a_record_is_refused_that_cannot_be_one() {
    let (served, _kept) = keeping(Duration::from_millis(100));
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    let (client, inflight, fd) = (&mut front.driver.client, front.inflight, front.fd.as_fd());
    assert!(client.set_inflight_fd(&inflight, fd).is_err(), "a ring runs");
    client.vring_base(0).unwrap();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    assert!(client.set_inflight_fd(&inflight, pipe.as_fd()).is_err());
    for wrong in [
        Inflight { mmap_size: 0, ..inflight },
        Inflight { mmap_size: 31, ..inflight },
        Inflight { mmap_size: inflight.mmap_size + 1, ..inflight },
        Inflight { mmap_offset: 64, ..inflight },
        Inflight { num_queues: 0, ..inflight },
        Inflight { num_queues: 2, ..inflight },
    ] {
        assert!(client.set_inflight_fd(&wrong, fd).is_err(), "{wrong:?}");
    }
    assert!(client.set_inflight_fd(&inflight, fd).is_ok());
    assert!(client.inflight_fd(2, 128).is_err(), "the device has one queue");
    assert!(client.inflight_fd(1, 128).is_ok(), "and the connection stays");
}

#[test]
fn a_record_that_is_cut_ends_the_connection_and_not_the_process() {
    let served = Served::new(Mirror { queues: 1, ..Mirror::default() });
    let mut front = Recorded::new(&served, ProtocolFeatures::empty());
    front.driver.client.vring_base(0).unwrap();
    // Not one of ours, which are sealed.
    let file = rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, front.inflight.mmap_size).unwrap();
    front.driver.client.set_inflight_fd(&front.inflight, file.as_fd()).unwrap();
    rustix::fs::ftruncate(&file, 0).unwrap();
    let ring = &front.driver.rings[0];
    // The worker looks at the record as soon as the ring starts.
    front.driver.client.set_vring_kick(0, Some(ring.kick_fd())).unwrap();
    let _ = front.driver.client.set_vring_enable(0, true);
    eventually("the end of the connection", || {
        served.events.any(|event| matches!(event, Event::Disconnected))
    });
    let mut next = served.driver();
    assert_eq!(next.ask(0, b"next"), b"next".map(|byte| !byte));
}

#[test]
fn nobody_can_cut_a_record_of_ours() {
    let (served, _kept) = keeping(Duration::from_millis(100));
    let front = Recorded::new(&served, ProtocolFeatures::empty());
    assert!(rustix::fs::ftruncate(&front.fd, 0).is_err());
    assert!(rustix::fs::ftruncate(&front.fd, 1 << 20).is_err());
}
