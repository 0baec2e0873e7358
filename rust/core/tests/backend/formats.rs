//! Rings of both formats, whose driver may want its chains back in order, on a running back-end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{
    Client, GuestMemory, RegionSpec, Ring, RingFeatures, Segment, UsedChain, Wanted,
};
use vhost_user_core::request::Request;
use vhost_user_core::wire::ProtocolFeatures;
use vhost_user_core::wire::features::{ACCESS_PLATFORM, IN_ORDER, LOG_ALL, RING_PACKED};
use vhost_user_core::wire::payload::Inflight;

use super::served::*;

/// Every combination.
const KINDS: [RingFeatures; 4] = [
    RingFeatures { packed: false, in_order: false, event_idx: true },
    RingFeatures { packed: false, in_order: true, event_idx: true },
    RingFeatures { packed: true, in_order: false, event_idx: true },
    RingFeatures { packed: true, in_order: true, event_idx: true },
];
const PACKED: RingFeatures = KINDS[2];

/// Where the requests' readable buffers begin, 64 bytes each; the writable ones follow 2048 bytes
/// behind.
const AT: u64 = MIB / 2;

/// A front-end with one ring for each queue, and a record of requests in flight.
struct Front {
    client: Client,
    memory: std::sync::Arc<GuestMemory>,
    rings: Vec<Ring>,
    kind: RingFeatures,
    record: (Inflight, OwnedFd),
}

/// A device that keeps what it gets, with so long to give it back.
fn keeping(queues: u16, drain: Duration) -> (Served, Receiver<Request>) {
    let (keep, kept) = mpsc::channel();
    let device = Mirror { queues, keep: Some(Mutex::new(keep)), ..Mirror::default() };
    (Served::with(device, |options| options.drain = drain), kept)
}

fn wanted(kind: RingFeatures) -> Wanted {
    let wanted = Wanted::default();
    let packed = if kind.packed { RING_PACKED } else { 0 };
    let in_order = if kind.in_order { IN_ORDER } else { 0 };
    Wanted {
        features: wanted.features | packed | in_order,
        protocol: wanted.protocol | ProtocolFeatures::INFLIGHT_SHMFD,
    }
}

impl Front {
    fn new(served: &Served, kind: RingFeatures, size: u16) -> Self {
        let spec = RegionSpec { guest: GuestAddr(0), size: MIB };
        let memory = std::sync::Arc::new(GuestMemory::new(&[spec]).unwrap());
        let mut at = GuestAddr(0);
        let rings = (0..served.device.queues.max(1))
            .map(|_| {
                let ring = Ring::new(&memory, at, size, 2, kind).unwrap();
                at = GuestAddr(Ring::end(at, size, kind.packed).0.next_multiple_of(4096));
                ring
            })
            .collect();
        let mut client = connect(served);
        negotiate(&mut client, kind, &memory);
        let record = client.inflight_fd(1, 128).unwrap();
        client.set_inflight_fd(&record.0, record.1.as_fd()).unwrap();
        let mut front = Self { client, memory, rings, kind, record };
        (0..front.rings.len()).for_each(|queue| front.start(queue));
        front
    }

    fn start(&mut self, queue: usize) {
        self.client.start_ring(queue as u32, &self.rings[queue]).unwrap();
        self.client.set_vring_enable(queue as u32, true).unwrap();
    }

    /// Starts ring 0 where the front-end says, which need not be the truth.
    fn start_at(&mut self, base: u32) {
        let ring = &self.rings[0];
        let addresses = match ring {
            Ring::Split(ring) => ring.ring().addresses(0),
            Ring::Packed(ring) => ring.addresses(0),
        };
        self.client.set_vring_num(0, ring.size().into()).unwrap();
        self.client.set_vring_base(0, base).unwrap();
        self.client.set_vring_addr(&addresses).unwrap();
        self.client.set_vring_call(0, Some(ring.call_fd())).unwrap();
        self.client.set_vring_kick(0, Some(ring.kick_fd())).unwrap();
        self.client.set_vring_enable(0, true).unwrap();
    }

    /// Leaves without a word, and comes back with the record. QEMU names the used index of a split
    /// ring, and of a packed one the place at which it was started before.
    fn reconnect(&mut self, served: &Served, started_at: u32) {
        drop(std::mem::replace(&mut self.client, connect(served)));
        negotiate(&mut self.client, self.kind, &self.memory);
        self.client.set_inflight_fd(&self.record.0, self.record.1.as_fd()).unwrap();
        self.start_at(if self.kind.packed { started_at } else { self.rings[0].base() });
    }

    fn push(&mut self, queue: usize, requests: std::ops::Range<u16>) {
        for number in requests {
            let at = AT + 64 * u64::from(number);
            self.memory.write(GuestAddr(at), &[number as u8; 8]).unwrap();
            let segments =
                [Segment::readable(GuestAddr(at), 8), Segment::writable(GuestAddr(at + 2048), 8)];
            self.rings[queue].push(number, &segments);
        }
        self.rings[queue].publish();
    }

    /// The next request that is back, its answer checked.
    fn used(&mut self, queue: usize) -> u16 {
        let begun = Instant::now();
        let Self { rings, client, .. } = self;
        loop {
            if let Some(UsedChain { token, len }) = rings[queue].pop().unwrap() {
                assert_eq!(len, Some(8));
                let mut answer = [0; 8];
                let at = AT + 64 * u64::from(token) + 2048;
                self.memory.read(GuestAddr(at), &mut answer).unwrap();
                assert_eq!(answer, [!(token as u8); 8]);
                return token;
            }
            assert!(begun.elapsed() < LIMIT, "nothing came back");
            // A ring that was broken once has its error descriptor signalled: look again.
            let _ = rings[queue].wait(LIMIT, client.as_fd());
        }
    }

    fn is_quiet(&mut self) -> bool {
        self.rings[0].pop().unwrap().is_none()
    }
}

fn connect(served: &Served) -> Client {
    Client::connect(&served.directory.join("device.sock"), LIMIT).unwrap()
}

fn negotiate(client: &mut Client, kind: RingFeatures, memory: &GuestMemory) {
    let negotiated = client.negotiate(&wanted(kind)).unwrap();
    assert_eq!(negotiated.features & RING_PACKED != 0, kind.packed);
    assert_eq!(negotiated.features & IN_ORDER != 0, kind.in_order);
    client.set_features(negotiated.features).unwrap();
    client.set_memory(memory).unwrap();
}

fn next(kept: &Receiver<Request>) -> (u16, Request) {
    let request = kept.recv_timeout(LIMIT).unwrap();
    let mut first = [0];
    request.readable().read_at(0, &mut first);
    (first[0].into(), request)
}

fn some(kept: &Receiver<Request>, count: u16) -> Vec<Request> {
    (0..count).map(|_| next(kept).1).collect()
}

fn complete(request: Request) {
    let written = invert(&request);
    request.complete(written).unwrap();
}

#[test]
fn requests_answered_in_any_order_come_back_as_the_driver_wants_them() {
    for kind in KINDS {
        let (served, kept) = keeping(1, LIMIT);
        let mut front = Front::new(&served, kind, 16);
        // Several times round the ring.
        for _ in 0..9 {
            front.push(0, 0..5);
            let mut requests = some(&kept, 5);
            requests.rotate_left(2);
            requests.into_iter().for_each(complete);
            let back: Vec<_> = (0..5).map(|_| front.used(0)).collect();
            let order = if kind.in_order { [0, 1, 2, 3, 4] } else { [2, 3, 4, 0, 1] };
            assert_eq!(back, order, "{kind:?}");
        }
    }
}

#[test]
fn with_a_driver_that_wants_order_an_answer_is_held_until_its_turn() {
    for kind in KINDS.into_iter().filter(|kind| kind.in_order) {
        let (served, kept) = keeping(1, LIMIT);
        let mut front = Front::new(&served, kind, 16);
        front.push(0, 0..3);
        let [first, second, third] = some(&kept, 3).try_into().unwrap();
        complete(third);
        complete(second);
        // The worker has looked at both once it takes the next request.
        front.push(0, 3..4);
        let fourth = next(&kept).1;
        assert!(front.is_quiet());
        complete(first);
        assert_eq!([(); 3].map(|()| front.used(0)), [0, 1, 2]);
        complete(fourth);
        assert_eq!(front.used(0), 3);
    }
}

#[test]
fn a_stopped_ring_says_where_it_stands_and_goes_on_there() {
    for (kind, size, base) in [
        (KINDS[0], 16, 3),
        (KINDS[1], 16, 3),
        (PACKED, 16, 0x8006_8006),
        (KINDS[3], 4, 0x0002_0002),
    ] {
        let (served, kept) = keeping(1, LIMIT);
        let mut front = Front::new(&served, kind, size);
        for number in 0..3 {
            front.push(0, number..number + 1);
            complete(next(&kept).1);
            assert_eq!(front.used(0), number);
        }
        assert_eq!(front.client.vring_base(0).unwrap(), base, "{kind:?}");
        front.push(0, 3..4);
        front.start_at(base);
        complete(next(&kept).1);
        assert_eq!(front.used(0), 3);
        let told = |event: &Event| event.to_string().contains("queue 0 stopped at");
        assert!(served.events.any(told));
    }
}

/// DPDK's virtio-user names the lower half alone.
#[test]
fn a_packed_ring_begins_at_half_a_base() {
    let (served, kept) = keeping(1, LIMIT);
    let mut front = Front::new(&served, PACKED, 255);
    front.client.vring_base(0).unwrap();
    front.start_at(0x8000);
    front.push(0, 0..1);
    complete(next(&kept).1);
    assert_eq!(front.used(0), 0);
}

#[test]
fn what_a_back_end_that_died_has_not_given_back_comes_again_first_and_in_order() {
    for kind in KINDS {
        let (served, kept) = keeping(1, Duration::from_millis(100));
        let mut front = Front::new(&served, kind, 16);
        front.push(0, 0..4);
        let mut requests = some(&kept, 4);
        complete(requests.remove(1));
        let mut left = vec![0, 1, 2, 3];
        if !kind.in_order {
            left.remove(usize::from(front.used(0)));
        }
        front.push(0, 4..5);
        left.push(4);
        let late = (requests, next(&kept).1);
        front.reconnect(&served, 0x8000_8000);
        for &number in &left {
            let (first, request) = next(&kept);
            assert_eq!((first, request.is_resubmitted()), (number, true), "{kind:?}");
            complete(request);
            assert_eq!(front.used(0), number);
        }
        let again = left.len() as u32;
        let told = |event: &Event| matches!(event, Event::Resubmitted { requests, .. } if *requests == again);
        assert!(served.events.any(told));
        drop(late);
        front.push(0, 0..2);
        for number in 0..2 {
            let (first, request) = next(&kept);
            assert_eq!((first, request.is_resubmitted()), (number, false));
            complete(request);
            assert_eq!(front.used(0), number);
        }
    }
}

/// What was answered behind a late request was not given back either, and so it comes again too.
#[test]
fn requests_that_are_late_stay_in_the_record_with_those_that_wait_for_them() {
    for kind in KINDS {
        let (served, kept) = keeping(1, Duration::from_millis(100));
        let mut front = Front::new(&served, kind, 16);
        front.push(0, 0..3);
        let [late, second, third] = some(&kept, 3).try_into().unwrap();
        complete(second);
        complete(third);
        let base = front.client.vring_base(0).unwrap();
        let (expected, again) = match (kind.packed, kind.in_order) {
            (false, true) => (3, vec![0, 1, 2]),
            (false, false) => (3, vec![0]),
            (true, true) => (0x8000_8006, vec![0, 1, 2]),
            (true, false) => (0x8004_8006, vec![0]),
        };
        assert_eq!(base, expected, "{kind:?}");
        assert!(late.complete(0).is_err());
        front.start_at(base);
        for &number in &again {
            let (first, request) = next(&kept);
            assert_eq!((first, request.is_resubmitted()), (number, true));
            complete(request);
        }
        let mut back: Vec<_> = (0..3).map(|_| front.used(0)).collect();
        back.sort_unstable();
        assert_eq!(back, [0, 1, 2]);
    }
}

#[test]
fn without_a_record_late_requests_fail_and_those_that_wait_for_them_come_back_whole() {
    for kind in KINDS {
        let (served, kept) = keeping(1, Duration::from_millis(100));
        let mut front = Front::new(&served, kind, 16);
        // A record of another queue's: none of this one.
        front.client.vring_base(0).unwrap();
        let small = Inflight { mmap_size: 64, ..front.record.0 };
        front.client.set_inflight_fd(&small, front.record.1.as_fd()).unwrap();
        front.start_at(front.rings[0].base());
        front.push(0, 0..3);
        let [late, second, third] = some(&kept, 3).try_into().unwrap();
        complete(second);
        complete(third);
        let base = front.client.vring_base(0).unwrap();
        assert_eq!(base, if kind.packed { 0x8006_8006 } else { 3 }, "all is used");
        assert!(late.complete(0).is_err());
        let mut back = Vec::new();
        while let Some(UsedChain { token, len }) = front.rings[0].pop().unwrap() {
            back.push((token, len));
        }
        back.sort_unstable();
        assert_eq!(back, [(0, Some(0)), (1, Some(8)), (2, Some(8))], "{kind:?}");
    }
}

/// SeaBIOS drives a disk by a split ring, and Linux by a packed one, on the same connection and with
/// the same record if the front-end does not ask for a new one.
#[test]
fn a_packed_ring_follows_a_split_one_on_the_same_connection() {
    let (served, kept) = keeping(1, LIMIT);
    let mut front = Front::new(&served, KINDS[0], 16);
    front.push(0, 0..3);
    some(&kept, 3).into_iter().for_each(complete);
    assert_eq!([(); 3].map(|()| front.used(0)), [0, 1, 2]);
    assert_eq!(front.client.vring_base(0).unwrap(), 3);
    front.client.reset_device().unwrap();
    let features = front.client.features().unwrap();
    front.client.set_features(features & !(IN_ORDER | LOG_ALL | ACCESS_PLATFORM)).unwrap();
    front.record = front.client.inflight_fd(1, 128).unwrap();
    // 1024 entries of 32 bytes and a header, in whole lines of 64.
    assert_eq!(front.record.0.mmap_size, 64 * 513);
    front.client.set_inflight_fd(&front.record.0, front.record.1.as_fd()).unwrap();
    front.rings[0] = Ring::new(&front.memory, GuestAddr(0x8000), 100, 2, PACKED).unwrap();
    front.kind = PACKED;
    front.start(0);
    for _ in 0..60 {
        front.push(0, 0..3);
        some(&kept, 3).into_iter().for_each(complete);
        assert_eq!([(); 3].map(|()| front.used(0)), [0, 1, 2]);
    }
}

/// RING_RESET as vhost-user carries it: a stop and a start of one ring, while others run. The record
/// still knows the place of before.
#[test]
fn one_ring_is_reset_while_another_runs() {
    for kind in KINDS {
        let (served, kept) = keeping(2, LIMIT);
        let mut front = Front::new(&served, kind, 16);
        for queue in [0, 1, 0] {
            front.push(queue, 0..2);
            some(&kept, 2).into_iter().for_each(complete);
            assert_eq!([front.used(queue), front.used(queue)], [0, 1]);
        }
        front.push(1, 0..1);
        let held = next(&kept).1;
        front.client.vring_base(0).unwrap();
        front.rings[0] = Ring::new(&front.memory, GuestAddr(0x8000), 8, 2, kind).unwrap();
        front.start(0);
        for _ in 0..5 {
            front.push(0, 1..3);
            some(&kept, 2).into_iter().for_each(complete);
            assert_eq!([front.used(0), front.used(0)], [1, 2], "{kind:?}");
        }
        complete(held);
        assert_eq!(front.used(1), 0);
        assert!(!served.events.any(|event| matches!(event, Event::QueueBroken { .. })));
    }
}

#[test]
fn a_packed_ring_that_its_driver_breaks_comes_back_by_a_stop_and_a_start() {
    let (served, kept) = keeping(1, LIMIT);
    let mut front = Front::new(&served, PACKED, 8);
    front.push(0, 0..1);
    let first = next(&kept).1;
    // A buffer id that the ring has not, in slot 2: AVAIL and no more.
    front.memory.write(GuestAddr(2 * 16 + 8), &[1, 0, 0, 0, 99, 0, 0x80, 0]).unwrap();
    front.rings[0].kick();
    eventually("the ring breaks", || {
        served.events.any(|event| {
            let wanted = "buffer id 99 in a ring of 8 entries";
            matches!(event, Event::QueueBroken { error, .. } if error == wanted)
        })
    });
    complete(first);
    // What was in flight comes back all the same.
    eventually("the first request is back", || front.rings[0].pop().unwrap().is_some());
    front.memory.write(GuestAddr(2 * 16 + 8), &[0; 8]).unwrap();
    assert_eq!(front.client.vring_base(0).unwrap(), 0x8002_8002);
    front.start_at(0x8002_8002);
    front.push(0, 1..2);
    complete(next(&kept).1);
    assert_eq!(front.used(0), 1);
}

#[test]
fn a_packed_record_of_nonsense_breaks_its_ring_and_the_log_says_why() {
    let (served, kept) = keeping(1, Duration::from_millis(100));
    let mut front = Front::new(&served, PACKED, 8);
    front.push(0, 0..1);
    let late = next(&kept).1;
    let file = std::fs::File::from(front.record.1.try_clone().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff, 0xff], 14).unwrap();
    front.reconnect(&served, 0x8000_8000);
    drop(late);
    eventually("the ring breaks", || {
        let why = "the record of requests in flight (SET_INFLIGHT_FD) is not this ring's: \
                   a wrong link to entry 65535 of 8";
        served.events.any(|event| matches!(event, Event::QueueBroken { error, .. } if error == why))
    });
}
