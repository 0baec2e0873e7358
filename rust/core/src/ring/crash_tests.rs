//! A process that dies at any store to a ring or to its record of requests in flight, again and
//! again: each request is given back exactly once, and none is lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::crash_support::{Lasting, Numbers, dies_at, u16_at};
use super::{RecordError, RingError, SplitLayout, SplitRecord, SplitRing};
use crate::address::UserAddr;
use crate::memory::{Buffers, InflightFile, Memory, MemoryPolicy};

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// What outlives the process: guest memory with its driver, and the record.
struct World {
    guest: File,
    record: File,
    memory: Arc<Memory>,
    /// The driver's side. A request is named by the number that stands in its descriptor.
    free: Vec<u16>,
    available: u16,
    used: u16,
    /// The request at each head that is in flight.
    at: BTreeMap<u16, u64>,
    made: u64,
    /// How often the device got each request, and how often the driver got it back.
    run: BTreeMap<u64, u32>,
    back: BTreeMap<u64, u32>,
    /// When each request was popped last by a process that saw it new.
    popped_at: BTreeMap<u64, u64>,
    pops: u64,
}

impl World {
    /// One whose ring has been in use until both of its indices were `at`.
    fn new(at: u16) -> Self {
        let Lasting { guest, record, memory } = Lasting::new(SplitRecord::bytes(SIZE));
        guest.write_all_at(&at.to_le_bytes(), AVAILABLE + 2).unwrap();
        guest.write_all_at(&at.to_le_bytes(), USED + 2).unwrap();
        Self {
            guest,
            record,
            memory,
            free: (0..SIZE).collect(),
            available: at,
            used: at,
            at: BTreeMap::new(),
            made: 0,
            run: BTreeMap::new(),
            back: BTreeMap::new(),
            popped_at: BTreeMap::new(),
            pops: 0,
        }
    }

    /// The driver makes a request available.
    fn make(&mut self, numbers: &mut Numbers) {
        if self.free.is_empty() {
            return;
        }
        let pick = numbers.below(self.free.len() as u64) as usize;
        let head = self.free.swap_remove(pick);
        let (request, slot) = (self.made, u64::from(self.available % SIZE));
        self.made += 1;
        self.at.insert(head, request);
        let mut descriptor = [0; 16];
        descriptor[8..12].copy_from_slice(&16_u32.to_le_bytes());
        let guest = &self.guest;
        guest.write_all_at(&descriptor, DESCRIPTORS + 16 * u64::from(head)).unwrap();
        guest.write_all_at(&head.to_le_bytes(), AVAILABLE + 4 + 2 * slot).unwrap();
        self.available = self.available.wrapping_add(1);
        guest.write_all_at(&self.available.to_le_bytes(), AVAILABLE + 2).unwrap();
    }

    /// The driver takes what was given back.
    fn take(&mut self) {
        while self.used != self.u16_at(USED + 2) {
            let mut element = [0; 4];
            let slot = u64::from(self.used % SIZE);
            self.guest.read_exact_at(&mut element, USED + 4 + 8 * slot).unwrap();
            let head = u16::try_from(u32::from_le_bytes(element)).unwrap();
            let request = self.at.remove(&head).expect("a request that is in flight");
            *self.back.entry(request).or_default() += 1;
            self.free.push(head);
            self.used = self.used.wrapping_add(1);
        }
    }

    fn u16_at(&self, at: u64) -> u16 {
        u16_at(&self.guest, at)
    }

    fn u16_of_record(&self, at: u64, value: u16) {
        self.record.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    /// A new process takes the ring up. QEMU names the used index.
    fn process(&self) -> SplitRing {
        let layout = SplitLayout {
            size: SIZE,
            descriptors: UserAddr(DESCRIPTORS),
            available: UserAddr(AVAILABLE),
            used: UserAddr(USED),
            event_idx: true,
            indirect: true,
        };
        let fd: OwnedFd = self.record.try_clone().unwrap().into();
        let len = SplitRecord::bytes(SIZE);
        let file = InflightFile::map(&MemoryPolicy::default(), fd.into(), 0, len).unwrap();
        let record = SplitRecord::find(&file, 0, SIZE).unwrap();
        let base = self.u16_at(USED + 2);
        SplitRing::find(&self.memory, layout, base).unwrap().with_record(Some(record))
    }

    fn popped(&mut self, ring: &mut SplitRing) -> Option<u16> {
        let head = ring.pop(&mut Buffers::default()).unwrap()?;
        let request = self.at[&head];
        *self.run.entry(request).or_default() += 1;
        if !ring.origin().resubmitted {
            self.pops += 1;
            self.popped_at.insert(request, self.pops);
        }
        Some(head)
    }

    /// Works for a while; gives back in any order, in batches.
    fn work(&mut self, ring: &mut SplitRing, numbers: &mut Numbers, steps: u32) {
        ring.begin().unwrap();
        let mut held = Vec::new();
        let mut last_again = 0;
        for _ in 0..steps {
            match numbers.below(8) {
                0 | 1 => self.make(numbers),
                2..=4 => {
                    ring.available().unwrap();
                    let popped = self.popped(ring);
                    if let Some(head) = popped.filter(|_| ring.origin().resubmitted) {
                        let at = self.popped_at[&self.at[&head]];
                        assert!(at > last_again, "not in the order in which they were popped");
                        last_again = at;
                    }
                    held.extend(popped);
                }
                5 if !held.is_empty() => {
                    let pick = numbers.below(held.len() as u64) as usize;
                    ring.push(held.swap_remove(pick), 0);
                }
                6 => {
                    ring.publish();
                    self.take();
                }
                7 if ring.last_popped().is_some_and(|last| held.last() == Some(&last)) => {
                    ring.unpop(held.pop().unwrap());
                }
                _ => {}
            }
        }
    }

    /// Works until all that was made available is back.
    fn finish(&mut self, ring: &mut SplitRing) {
        ring.begin().unwrap();
        ring.available().unwrap();
        while let Some(head) = self.popped(ring) {
            ring.push(head, 0);
        }
        ring.publish();
        self.take();
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.at.is_empty(), "requests that never came back: {:?}", self.at);
        let once = (0..self.made).all(|request| self.back.get(&request) == Some(&1));
        assert!(once, "given back: {:?}", self.back);
        assert!((0..self.made).all(|request| self.run.contains_key(&request)));
    }
}

#[test]
fn a_crash_at_any_store_loses_no_request_and_gives_none_back_twice() {
    let mut crashes = 0;
    for seed in 0..60 {
        let at = if seed % 2 == 0 { 0 } else { 65530 };
        for store in 0.. {
            let (mut world, mut numbers) = (World::new(at), Numbers(seed));
            let lived = dies_at(store, || {
                let mut ring = world.process();
                world.work(&mut ring, &mut numbers, 120);
            });
            // The next ones die young.
            for _ in 0..3 {
                world.take();
                let store = numbers.below(12);
                dies_at(store, || {
                    let mut ring = world.process();
                    world.work(&mut ring, &mut numbers, 30);
                });
            }
            world.take();
            let mut ring = world.process();
            world.finish(&mut ring);
            world.check();
            if lived {
                break;
            }
            crashes += 1;
        }
    }
    assert!(crashes > 2000, "{crashes} are few");
}

#[test]
fn what_was_in_flight_comes_again_in_the_order_in_which_it_was_popped_with_its_number() {
    let (mut world, mut numbers) = (World::new(3), Numbers(1));
    (0..SIZE).for_each(|_| world.make(&mut numbers));
    let mut ring = world.process();
    assert_eq!(ring.begin(), Ok(3));
    assert_eq!(ring.available(), Ok(SIZE));
    let mut first = Vec::new();
    for _ in 0..6 {
        let head = world.popped(&mut ring).unwrap();
        assert!(!ring.origin().resubmitted);
        first.push((head, ring.origin().sequence));
    }
    for given_back in [4, 1, 2] {
        ring.push(first.remove(given_back).0, 0);
    }
    ring.publish();
    drop(ring);
    let mut ring = world.process();
    assert_eq!(ring.begin(), Ok(3 + 6), "behind what is used and what is in flight");
    assert_eq!((ring.unfinished(), ring.available()), (3, Ok(3 + 2)));
    for (head, sequence) in first {
        assert_eq!(world.popped(&mut ring), Some(head));
        assert_eq!((ring.origin().sequence, ring.origin().resubmitted), (sequence, true));
    }
    world.popped(&mut ring).unwrap();
    assert_eq!((ring.origin().sequence, ring.origin().resubmitted), (6, false));
}

#[test]
fn one_that_comes_again_may_be_left_and_comes_first_once_more() {
    let (mut world, mut numbers) = (World::new(0), Numbers(7));
    (0..4).for_each(|_| world.make(&mut numbers));
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    let heads: Vec<_> = (0..3).map(|_| world.popped(&mut ring).unwrap()).collect();
    ring.push(heads[0], 0);
    ring.publish();
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    let again = world.popped(&mut ring).unwrap();
    assert_eq!((again, ring.last_popped()), (heads[1], None));
    ring.unpop_unfinished(again, ring.origin().sequence);
    assert_eq!(ring.available(), Ok(3));
    assert_eq!(world.popped(&mut ring), Some(heads[1]));
    assert_eq!(world.popped(&mut ring), Some(heads[2]));
    ring.push(heads[1], 0);
    ring.push(heads[2], 0);
    ring.publish();
    world.take();
    let mut ring = world.process();
    world.finish(&mut ring);
    world.check();
}

#[test]
fn a_chain_that_was_put_back_is_not_in_flight() {
    let (mut world, mut numbers) = (World::new(0), Numbers(5));
    (0..2).for_each(|_| world.make(&mut numbers));
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    world.popped(&mut ring).unwrap();
    let last = world.popped(&mut ring).unwrap();
    ring.unpop(last);
    let mut ring = world.process();
    assert_eq!((ring.begin(), ring.unfinished()), (Ok(1), 1));
}

#[test]
fn a_kick_is_asked_for_the_next_request_however_many_come_again() {
    let (mut world, mut numbers) = (World::new(3), Numbers(6));
    (0..4).for_each(|_| world.make(&mut numbers));
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    (0..3).for_each(|_| {
        let _ = world.popped(&mut ring);
    });
    let mut ring = world.process();
    assert_eq!((ring.begin(), ring.available()), (Ok(3 + 3), Ok(3 + 1)));
    // The device has left the three.
    assert_eq!(ring.enable_kicks(3), Ok(true));
    let event = USED + 4 + 8 * u64::from(SIZE);
    assert_eq!(world.u16_at(event), 6, "the driver's next entry");
}

#[test]
fn a_new_record_begins_where_the_ring_stands() {
    let (mut world, mut numbers) = (World::new(331), Numbers(2));
    world.make(&mut numbers);
    let mut ring = world.process();
    assert_eq!((ring.begin(), ring.unfinished()), (Ok(331), 0));
    // It dies before it gives anything back.
    ring.available().unwrap();
    world.popped(&mut ring).unwrap();
    let mut ring = world.process();
    assert_eq!((ring.begin(), ring.unfinished()), (Ok(332), 1));
    world.popped(&mut ring).unwrap();
}

#[test]
fn a_record_with_nothing_in_flight_is_taken_for_any_ring() {
    let (mut world, mut numbers) = (World::new(0), Numbers(3));
    world.make(&mut numbers);
    let mut ring = world.process();
    world.finish(&mut ring);
    world.u16_of_record(10, 4096); // entries
    world.u16_of_record(14, 40000); // used index
    let mut ring = world.process();
    world.make(&mut numbers);
    world.finish(&mut ring);
    world.check();
}

#[test]
fn nonsense_in_a_record_is_an_error_and_is_not_followed() {
    let error = |change: &dyn Fn(&World)| {
        let (mut world, mut numbers) = (World::new(100), Numbers(4));
        (0..4).for_each(|_| world.make(&mut numbers));
        let mut ring = world.process();
        ring.begin().unwrap();
        ring.available().unwrap();
        let heads: Vec<_> = (0..3).map(|_| world.popped(&mut ring).unwrap()).collect();
        ring.push(heads[1], 0);
        ring.publish();
        change(&world);
        match world.process().begin() {
            Err(RingError::Record(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let version = |world: &World| world.u16_of_record(8, 2);
    assert_eq!(error(&version), RecordError::Version(2));
    let entries = |world: &World| world.u16_of_record(10, 9);
    assert_eq!(error(&entries), RecordError::Entries { recorded: 9, size: SIZE });
    let used = |world: &World| world.u16_of_record(14, 102);
    let wrong = RecordError::Used { recorded: 102, used: 101, size: SIZE };
    assert_eq!(error(&used), wrong);
    let link = |world: &World| {
        world.u16_of_record(14, 100);
        world.u16_of_record(12, 8);
    };
    assert_eq!(error(&link), RecordError::Link { next: 8, size: SIZE });
    let all = |world: &World| {
        (0..SIZE).for_each(|i| world.record.write_all_at(&[1], 16 + 16 * u64::from(i)).unwrap());
    };
    assert_eq!(error(&all), RecordError::TooMany { in_flight: 8, available: 3 });
    let looped = |world: &World| {
        world.u16_of_record(14, 98);
        world.u16_of_record(12, 5);
        world.u16_of_record(16 + 16 * 5 + 6, 5);
    };
    assert_eq!(error(&looped), RecordError::Link { next: 5, size: SIZE });
}
