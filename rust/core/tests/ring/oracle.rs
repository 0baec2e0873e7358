//! Random rings, read by the code under test and by `virtio-queue`, with a plain walk of the
//! standard's rules as judge. On valid chains all three agree byte for byte.
//!
//! On malformed ones the code under test must refuse for the judge's reason. `virtio-queue` is
//! laxer there: it hands out
//! - a chain without buffers for a head that names no descriptor,
//! - a shorter chain where `next` leaves the table, where the chain loops, where its lengths pass
//!   4 GiB, and where a table is nested, broken in length, or outside memory,
//! - the table's chain where INDIRECT stands beside NEXT or was not negotiated, and for tables of
//!   up to 65535 entries on any ring,
//! - readable and writable buffers in any order, and buffers outside memory, unchecked (a chain
//!   with such a buffer or table is a request that fails, and the ring goes on),
//! - one head twice while it is in flight.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vhost_user_core::memory::{Buffers, Unreachable};
use vhost_user_core::ring::{RingError, SplitRing};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::driver::{Descriptor, Driver, INDIRECT, NEXT, Piece, RING, WRITE, pop, readable};
use crate::guest::Guest;
use crate::judge::{Chain, Fault, Table, judge};

/// The chains' longest length on rings this short.
const LIMIT: usize = 1024;
/// Two regions without a gap and, after a hole, a third.
const PLACES: [(u64, u64); 3] = [(RING, 0x1_0000), (RING + 0x1_0000, 0x8000), (0x20_0000, 0x8000)];
/// Where random tables are put, 64 entries each, the second one across a border.
const TABLES: [u64; 3] = [RING + 0x8000, RING + 0x1_0000 - 0x200, 0x20_0000];
const TABLE_ENTRIES: usize = 64;

/// A random ring: the descriptor table, three tables for indirect ones, and entries.
#[derive(Clone, Debug)]
struct Ring {
    size: u16,
    descriptors: Vec<Descriptor>,
    tables: Vec<Vec<Descriptor>>,
    heads: Vec<u16>,
}

fn address() -> impl Strategy<Value = u64> {
    let inside = |(at, size): (u64, u64)| (at + 0x2000..at + size).boxed();
    prop_oneof![
        20 => inside(PLACES[0]),
        10 => inside(PLACES[1]),
        10 => inside(PLACES[2]),
        4 => RING + 0xff00..RING + 0x1_0100,
        1 => RING + 0x1_7f00..RING + 0x1_8100,
        1 => any::<u64>(),
        1 => u64::MAX - 0x100..=u64::MAX,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![60 => 0..300_u32, 1 => any::<u32>(), 1 => u32::MAX - 40..=u32::MAX]
}

/// A descriptor of a table of `count`, mostly one that leads on to a later one.
fn descriptor(count: u16, index: u16, indirect: u32) -> impl Strategy<Value = Descriptor> {
    let forward = index.saturating_add(1)..count.max(index.saturating_add(2));
    let next = prop_oneof![30 => forward, 2 => 0..count + 2, 1 => any::<u16>()];
    let flags = prop_oneof![
        8 => Just(0),
        // Writable ones late in the table, so that most chains are in order.
        8 => Just(if index > count / 2 { WRITE } else { 0 }),
        1 => Just(WRITE),
        1 => any::<u16>().prop_map(|flags| flags & !INDIRECT),
    ];
    let goes_on = prop_oneof![2 => Just(NEXT), 1 => Just(0)];
    let table = (prop::sample::select(&TABLES[..]), 1..=TABLE_ENTRIES as u32, 0..16_u32);
    let len = table.prop_map(|(at, entries, odd)| (at, 16 * entries + odd.saturating_sub(14)));
    let plain = (address(), length(), flags, goes_on, next.clone()).prop_map(
        |(at, len, flags, goes_on, next)| {
            let last = next == u16::MAX;
            Descriptor { at, len, flags: flags | if last { 0 } else { goes_on }, next }
        },
    );
    let outer = (len, next, prop_oneof![9 => Just(0), 1 => Just(NEXT), 1 => Just(WRITE)])
        .prop_map(|((at, len), next, more)| Descriptor { at, len, flags: INDIRECT | more, next });
    prop_oneof![40 => plain, indirect => outer]
}

fn table(count: u16, indirect: u32) -> impl Strategy<Value = Vec<Descriptor>> {
    (0..count).map(|index| descriptor(count, index, indirect)).collect::<Vec<_>>()
}

fn rings() -> impl Strategy<Value = Ring> {
    (0..=6_u32).prop_flat_map(|bits| {
        let size = 1 << bits;
        let head = prop_oneof![40 => 0..size, 1 => any::<u16>()];
        let tables = prop::collection::vec(table(TABLE_ENTRIES as u16, 1), TABLES.len());
        (table(size, 12), tables, prop::collection::vec(head, 1..=usize::from(size)))
            .prop_map(move |(descriptors, tables, heads)| Ring { size, descriptors, tables, heads })
    })
}

impl Ring {
    /// Guest memory whose bytes differ from place to place, with the ring in it.
    fn lay_out(&self) -> (Driver, Table) {
        let guest = Guest::new(&PLACES);
        for (at, size) in PLACES {
            let words = (at..at + size).step_by(8);
            let bytes =
                words.flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            guest.write(at, &bytes.collect::<Vec<_>>());
        }
        let mut driver = Driver::new(&guest, self.size, false, 0);
        driver.put_table(driver.descriptors, &self.descriptors);
        for (at, entries) in TABLES.into_iter().zip(&self.tables) {
            driver.put_table(at, entries);
        }
        self.heads.iter().for_each(|&head| driver.offer(head));
        driver.expose();
        let table = Table { at: driver.descriptors, count: self.size.into() };
        (driver, table)
    }
}

/// `virtio-queue`'s side of the same ring.
fn peer(driver: &Driver) -> Queue {
    let mut queue = Queue::new(driver.size).unwrap();
    queue.try_set_desc_table_address(GuestAddress(driver.descriptors)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(driver.available)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(driver.used)).unwrap();
    queue.set_ready(true);
    queue
}

fn peer_chain(queue: &mut Queue, guest: &Guest) -> (u16, Vec<Piece>) {
    let chain = queue.pop_descriptor_chain(&guest.driver).expect("a chain is on offer");
    let head = chain.head_index();
    let pieces = chain.map(|descriptor| Piece {
        at: descriptor.addr().0,
        len: descriptor.len(),
        writable: descriptor.is_write_only(),
    });
    (head, pieces.filter(|piece| piece.len > 0).collect())
}

fn bytes_of(guest: &Guest, pieces: &[Piece], writable: bool) -> Vec<u8> {
    let pieces = pieces.iter().filter(|piece| piece.writable == writable);
    pieces.flat_map(|piece| guest.read(piece.at, piece.len as usize)).collect()
}

fn fault_of(error: RingError) -> Option<Fault> {
    Some(match error {
        RingError::BadHead { .. } => Fault::Head,
        RingError::BadNext { .. } => Fault::Next,
        RingError::TooLong { .. } => Fault::Length,
        RingError::ReadableAfterWritable { .. } => Fault::Order,
        RingError::TooLarge { .. } => Fault::Sum,
        RingError::BadTable { .. } => Fault::Table,
        RingError::BadIndirect { .. } => Fault::Indirect,
        RingError::IndexJump { .. } | RingError::HeadInFlight(_) | RingError::Record(_) => {
            return None;
        }
        RingError::Endless { .. } | RingError::BadId { .. } | RingError::IdInFlight(_) => {
            unreachable!("of packed rings")
        }
    })
}

/// What the device's writes must do to memory: the pieces filled in order, and nothing else.
fn check_writable(guest: &Guest, buffers: &Buffers, pieces: &[Piece]) {
    let pieces: Vec<_> = pieces.iter().filter(|piece| piece.writable).collect();
    let room: u32 = pieces.iter().map(|piece| piece.len).sum();
    assert_eq!(buffers.writable().len(), u64::from(room));
    if room == 0 {
        return;
    }
    let data: Vec<u8> = (0..room).map(|n| (n % 253) as u8).collect();
    let all = || PLACES.map(|(at, size)| guest.read(at, size as usize));
    let before = all();
    let mut rest = data.as_slice();
    for piece in pieces {
        let (part, more) = rest.split_at(piece.len as usize);
        guest.write(piece.at, part);
        rest = more;
    }
    let expected = all();
    let restore = || PLACES.iter().zip(&before).for_each(|(&(at, _), old)| guest.write(at, old));
    restore();
    assert_eq!(buffers.writable().write_at(0, &data), data.len());
    assert!(all() == expected, "bytes in the wrong places");
    restore();
}

/// How a chain was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Good,
    Outside,
    Malformed(Fault),
}

/// Compares the three on every chain of a ring; counts chains by how they were judged.
fn compare(ring: &Ring, counts: &mut BTreeMap<Verdict, usize>) {
    let (driver, table) = ring.lay_out();
    let guest = &driver.guest;
    let mut peer = peer(&driver);
    let mut buffers = Buffers::default();
    for (index, &head) in (0..).zip(&ring.heads) {
        // Each chain is read by a ring that begins with it: an error ends a ring's life.
        guest.store_u16(driver.used + 2, index, Ordering::Relaxed);
        let mut device = driver.start_device(index);
        assert_eq!(device.available(), Ok(ring.heads.len() as u16 - index));
        let judged = judge(guest, table, head, LIMIT);
        let verdict = match &judged {
            Ok(Chain::Good(_)) => Verdict::Good,
            Ok(Chain::Outside) => Verdict::Outside,
            Err(fault) => Verdict::Malformed(*fault),
        };
        *counts.entry(verdict).or_default() += 1;
        let (peer_head, peer_pieces) = peer_chain(&mut peer, guest);
        assert_eq!(peer_head, head);
        match (device.pop(&mut buffers), judged) {
            (Ok(popped), Ok(Chain::Outside)) => {
                assert_eq!(popped, Some(head));
                assert_eq!(buffers.fault().unwrap().reason, Unreachable::Outside);
            }
            (Ok(popped), Ok(Chain::Good(pieces))) => {
                assert_eq!((popped, buffers.fault()), (Some(head), None));
                assert_eq!(pieces, peer_pieces);
                assert_eq!(readable(&buffers), bytes_of(guest, &pieces, false));
                check_writable(guest, &buffers, &pieces);
            }
            (Err(error), Err(fault)) => assert_eq!(fault_of(error), Some(fault), "{error}"),
            (ours, judged) => panic!("{ours:?}, but {judged:?}"),
        }
    }
}

#[test]
fn random_rings_are_read_as_the_judge_and_virtio_queue_read_them() {
    let counts = RefCell::new(BTreeMap::new());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(400));
    let run = runner.run(&rings(), |ring| {
        compare(&ring, &mut counts.borrow_mut());
        Ok(())
    });
    run.unwrap();
    let counts = counts.into_inner();
    let faults = [
        (Fault::Head, 10),
        (Fault::Next, 10),
        (Fault::Length, 1),
        (Fault::Order, 10),
        (Fault::Sum, 1),
        (Fault::Table, 10),
        (Fault::Indirect, 10),
    ];
    assert!(counts[&Verdict::Good] > 500, "few valid chains: {counts:?}");
    assert!(counts[&Verdict::Outside] > 50, "few chains outside: {counts:?}");
    for (fault, least) in faults {
        assert!(
            counts.get(&Verdict::Malformed(fault)).is_some_and(|&met| met >= least),
            "{fault:?}: {counts:?}"
        );
    }
}

/// The pieces that both sides see of the one chain at descriptor 0.
fn both(descriptors: &[Descriptor], indirect: bool) -> (Result<u64, RingError>, Vec<Piece>) {
    let guest = Guest::new(&PLACES);
    let mut driver = Driver::new(&guest, 4, false, 0);
    driver.put_table(driver.descriptors, descriptors);
    driver.put_table(TABLES[0], &[Descriptor { flags: 0, ..PIECE }]);
    driver.submit(0);
    let mut device = SplitRing::start(&guest.device, driver.layout(indirect), 0).unwrap();
    let ours = pop(&mut device).map(|popped| popped.unwrap().1.readable().len());
    (ours, peer_chain(&mut peer(&driver), &guest).1)
}

const PIECE: Descriptor = Descriptor { at: RING + 0x2000, len: 16, flags: NEXT, next: 1 };
const TABLE: Descriptor = Descriptor { at: TABLES[0], len: 16, flags: INDIRECT, next: 0 };

#[test]
fn where_virtio_queue_hands_out_a_shorter_chain_the_ring_refuses() {
    let loops = [PIECE, Descriptor { next: 0, ..PIECE }];
    let leaves = [PIECE, Descriptor { next: 4, ..PIECE }];
    let too_large = [PIECE, Descriptor { len: u32::MAX, flags: 0, ..PIECE }];
    let odd_table = [PIECE, Descriptor { len: 17, ..TABLE }];
    for (chain, seen) in [(&loops, 4), (&leaves, 2), (&too_large, 1), (&odd_table, 1)] {
        let (ours, theirs) = both(chain, true);
        assert!(ours.is_err());
        assert_eq!(theirs.len(), seen);
    }
}

#[test]
fn where_virtio_queue_hands_out_buffers_unchecked_the_ring_refuses() {
    let order = [Descriptor { flags: WRITE | NEXT, ..PIECE }, Descriptor { flags: 0, ..PIECE }];
    let outside = [PIECE, Descriptor { at: u64::MAX - 3, flags: 0, ..PIECE }];
    for (chain, ours) in [(&order, Err(())), (&outside, Ok(0))] {
        let (refused, theirs) = both(chain, true);
        assert_eq!(refused.map_err(|_| ()), ours);
        assert_eq!(theirs.len(), 2);
    }
}

#[test]
fn where_virtio_queue_follows_any_indirect_descriptor_the_ring_refuses() {
    assert_eq!(
        both(&[TABLE], true),
        (Ok(16), vec![Piece { at: PIECE.at, len: 16, writable: false }])
    );
    let (ours, theirs) = both(&[TABLE], false);
    assert_eq!((ours, theirs.len()), (Err(RingError::BadIndirect { head: 0 }), 1));
    let (ours, theirs) = both(&[Descriptor { flags: INDIRECT | NEXT, ..TABLE }], true);
    assert_eq!((ours, theirs.len()), (Err(RingError::BadIndirect { head: 0 }), 1));
}
