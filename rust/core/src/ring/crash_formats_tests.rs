//! As [`crash_tests`](super::crash_tests), of rings of either format, whose driver may want its chains
//! back in order: a process dies at any store, again and again, and each request is given back exactly
//! once, and none is lost.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::crash_support::{Lasting, Numbers, dies_at, u16_at};
use super::{InflightRecord, PackedLayout, RecordError, Ring, RingError, RingLayout, SplitLayout};
use crate::address::UserAddr;
use crate::memory::{Buffers, InflightFile, Memory, MemoryPolicy};
use crate::ring_position::{PackedIndex, RingPosition};
use crate::token::Token;

const DESCRIPTORS: u64 = 0;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;

/// What kind of ring it is.
#[derive(Clone, Copy, Debug)]
struct Kind {
    packed: bool,
    in_order: bool,
    size: u16,
}

const KINDS: [Kind; 5] = [
    Kind { packed: false, in_order: true, size: 8 },
    Kind { packed: true, in_order: false, size: 8 },
    Kind { packed: true, in_order: true, size: 8 },
    Kind { packed: true, in_order: false, size: 5 },
    Kind { packed: true, in_order: true, size: 1 },
];

/// A request that the driver has made available.
struct Made {
    request: u64,
    descriptors: u16,
}

/// What outlives the process: guest memory with its driver, and the record.
struct World {
    kind: Kind,
    guest: File,
    record: File,
    memory: Arc<Memory>,
    /// The driver's side: names that are free, room, and its two places.
    free: Vec<u16>,
    room: u16,
    available: PackedIndex,
    used: PackedIndex,
    indices: (u16, u16),
    /// The request of each name that is in flight, and all of them in order.
    at: BTreeMap<u16, Made>,
    order: VecDeque<u64>,
    made: u64,
    /// How often the device got each request, and how often the driver got it back.
    run: BTreeMap<u64, u32>,
    back: BTreeMap<u64, u32>,
}

impl World {
    fn new(kind: Kind) -> Self {
        let len = InflightRecord::bytes(kind.size, kind.packed);
        let Lasting { guest, record, memory } = Lasting::new(len);
        Self {
            kind,
            guest,
            record,
            memory,
            free: (0..kind.size).collect(),
            room: kind.size,
            available: PackedIndex::INITIAL,
            used: PackedIndex::INITIAL,
            indices: (0, 0),
            at: BTreeMap::new(),
            order: VecDeque::new(),
            made: 0,
            run: BTreeMap::new(),
            back: BTreeMap::new(),
        }
    }

    // --- the driver ------------------------------------------------------------------------------

    /// Makes a request available.
    fn make(&mut self, numbers: &mut Numbers) {
        let most = if self.kind.packed { u64::from(self.room).min(3) } else { 1 };
        if most == 0 || self.free.is_empty() {
            return;
        }
        let descriptors = 1 + numbers.below(most) as u16;
        let pick = numbers.below(self.free.len() as u64) as usize;
        let name = self.free.swap_remove(pick);
        self.at.insert(name, Made { request: self.made, descriptors });
        self.order.push_back(self.made);
        self.made += 1;
        if self.kind.packed {
            self.make_packed(name, descriptors);
        } else {
            self.make_split(name);
        }
    }

    fn make_split(&mut self, head: u16) {
        let slot = u64::from(self.indices.0 % self.kind.size);
        self.write(DESCRIPTORS + 16 * u64::from(head) + 8, &16_u32.to_le_bytes());
        self.write(DRIVER + 4 + 2 * slot, &head.to_le_bytes());
        self.indices.0 = self.indices.0.wrapping_add(1);
        self.write(DRIVER + 2, &self.indices.0.to_le_bytes());
    }

    /// VIRTIO 1.3, "Placing Available Buffers Into The Descriptor Ring": the first flags last.
    fn make_packed(&mut self, id: u16, descriptors: u16) {
        let mut first_flags = (0, [0; 2]);
        for place in 0..descriptors {
            let at = DESCRIPTORS + 16 * u64::from(self.available.slot);
            let is_last = place + 1 == descriptors;
            let wrap = if self.available.wrap { 1 << 7 } else { 1 << 15 };
            let flags: u16 = wrap | u16::from(!is_last);
            self.write(at, &(0x3000 + u64::from(place)).to_le_bytes());
            self.write(at + 8, &16_u32.to_le_bytes());
            // Only the last descriptor has the id, as DPDK does it.
            self.write(at + 12, &if is_last { id } else { 0x7777 }.to_le_bytes());
            if place == 0 {
                first_flags = (at + 14, flags.to_le_bytes());
            } else {
                self.write(at + 14, &flags.to_le_bytes());
            }
            self.available = self.available.ahead(1, self.kind.size);
        }
        self.write(first_flags.0, &first_flags.1);
        self.room -= descriptors;
    }

    /// Takes what was given back.
    fn take(&mut self) {
        if self.kind.packed {
            while let Some(id) = self.next_used_packed() {
                let descriptors = self.has_back(id);
                self.used = self.used.ahead(descriptors, self.kind.size);
                self.room += descriptors;
            }
            return;
        }
        while self.indices.1 != self.u16_at(DEVICE + 2) {
            let slot = u64::from(self.indices.1 % self.kind.size);
            let head = self.u16_at(DEVICE + 4 + 8 * slot);
            self.has_back(head);
            self.indices.1 = self.indices.1.wrapping_add(1);
        }
    }

    /// VIRTIO 1.3, "Receiving Used Buffers From The Device".
    fn next_used_packed(&self) -> Option<u16> {
        let at = DESCRIPTORS + 16 * u64::from(self.used.slot);
        let flags = self.u16_at(at + 14);
        let (avail, used) = (flags & 1 << 7 != 0, flags & 1 << 15 != 0);
        (avail == used && used == self.used.wrap).then(|| self.u16_at(at + 12))
    }

    fn has_back(&mut self, name: u16) -> u16 {
        let made = self.at.remove(&name).expect("a request that is in flight");
        *self.back.entry(made.request).or_default() += 1;
        if self.kind.in_order {
            assert_eq!(self.order.pop_front(), Some(made.request), "not in order");
        }
        self.free.push(name);
        made.descriptors
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.guest.write_all_at(bytes, at).unwrap();
    }

    fn u16_at(&self, at: u64) -> u16 {
        u16_at(&self.guest, at)
    }

    // --- the device ------------------------------------------------------------------------------

    /// A new process takes the ring up. Its front-end names the place of the first start.
    fn process(&self) -> Ring {
        let Kind { packed, in_order, size } = self.kind;
        let [descriptors, driver, device] = [DESCRIPTORS, DRIVER, DEVICE].map(UserAddr);
        let layout = if packed {
            RingLayout::Packed(PackedLayout {
                size,
                descriptors,
                driver_area: driver,
                device_area: device,
                indirect: true,
                event_idx: true,
                tables_are_readable: false,
            })
        } else {
            RingLayout::Split(SplitLayout {
                size,
                descriptors,
                available: driver,
                used: device,
                indirect: true,
                event_idx: true,
            })
        };
        let fd: OwnedFd = self.record.try_clone().unwrap().into();
        let len = InflightRecord::bytes(size, packed);
        let file = InflightFile::map(&MemoryPolicy::default(), fd.into(), 0, len).unwrap();
        let record = InflightRecord::find(&file, 0, size, packed).unwrap();
        let ring = Ring::find(&self.memory, &layout, RingPosition::initial(packed)).unwrap();
        ring.with_record(Some(record)).in_order(in_order)
    }

    fn popped(&mut self, ring: &mut Ring) -> Option<Token> {
        let mut buffers = Buffers::default();
        let token = ring.pop(&mut buffers).unwrap()?;
        let made = &self.at[&token.id];
        assert_eq!(token.descriptors, made.descriptors);
        assert_eq!(buffers.readable().len(), 16 * u64::from(made.descriptors));
        *self.run.entry(made.request).or_default() += 1;
        Some(token)
    }

    /// Works for a while; gives back in any order, in batches.
    fn work(&mut self, ring: &mut Ring, numbers: &mut Numbers, steps: u32) {
        ring.begin().unwrap();
        let mut held = Vec::new();
        let mut last_again = None;
        for _ in 0..steps {
            match numbers.below(8) {
                0 | 1 => self.make(numbers),
                2..=4 => {
                    ring.available().unwrap();
                    let popped = self.popped(ring);
                    if let Some(token) = popped.filter(|_| ring.origin().resubmitted) {
                        let request = self.at[&token.id].request;
                        assert!(last_again < Some(request), "not in the order of availability");
                        last_again = Some(request);
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
    fn finish(&mut self, ring: &mut Ring) {
        ring.begin().unwrap();
        ring.available().unwrap();
        while let Some(token) = self.popped(ring) {
            ring.push(token, 0);
        }
        ring.publish();
        self.take();
    }

    #[track_caller]
    fn check(&self) {
        let left: Vec<_> = self.at.values().map(|made| made.request).collect();
        assert!(left.is_empty(), "requests that never came back: {left:?}");
        let once = (0..self.made).all(|request| self.back.get(&request) == Some(&1));
        assert!(once, "given back: {:?}", self.back);
        assert!((0..self.made).all(|request| self.run.contains_key(&request)));
    }
}

#[test]
fn a_crash_at_any_store_is_harmless_in_rings_of_each_kind() {
    for kind in KINDS {
        let mut crashes = 0;
        for seed in 0..16 {
            for store in 0.. {
                let (mut world, mut numbers) = (World::new(kind), Numbers(seed));
                let lived = dies_at(store, || {
                    let mut ring = world.process();
                    world.work(&mut ring, &mut numbers, 120);
                });
                // The next ones die young, while they take the record up among others.
                for _ in 0..4 {
                    world.take();
                    let store = numbers.below(14);
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
        assert!(crashes > 600, "{kind:?}: {crashes} are few");
    }
}

const SPLIT: Kind = Kind { packed: false, in_order: false, size: 8 };
const PACKED: Kind = Kind { packed: true, in_order: false, size: 8 };

/// Firmware may have had a shorter ring than the driver before it and the one behind it.
#[test]
fn marks_that_a_longer_ring_has_left_are_not_those_of_the_present_one() {
    for kind in [SPLIT, PACKED] {
        let (mut world, mut numbers) = (World::new(kind), Numbers(7));
        // A ring of four entries was begun in it; entry 6 was in flight before that.
        world.record.write_all_at(&[1, 0, 4, 0], 8).unwrap();
        let entry = if kind.packed { 32 + 32 * 6 } else { 16 + 16 * 6 };
        world.record.write_all_at(&[1], entry).unwrap();
        let mut ring = world.process();
        assert!(ring.begin().is_ok(), "{kind:?}");
        world.make(&mut numbers);
        ring.available().unwrap();
        world.popped(&mut ring).unwrap();
        let mut ring = world.process();
        ring.begin().unwrap();
        assert_eq!(ring.unfinished(), 1, "{kind:?}");
        ring = world.process();
        world.finish(&mut ring);
        world.check();
    }
}

#[test]
fn a_crash_while_a_record_of_another_length_is_begun_anew_is_harmless() {
    for kind in [SPLIT, PACKED] {
        for store in 0.. {
            let (mut world, mut numbers) = (World::new(kind), Numbers(8));
            // What a ring of five entries has left that stood at slot 3: nothing is in flight.
            let header: &[u8] = &[1, 0, 5, 0, 4, 0, 4, 0, 3, 0, 3, 0];
            let header = if kind.packed { header } else { &header[..8] };
            world.record.write_all_at(header, 8).unwrap();
            let lived = dies_at(store, || {
                let _ = world.process().begin();
            });
            world.make(&mut numbers);
            let mut ring = world.process();
            world.finish(&mut ring);
            world.check();
            if lived {
                break;
            }
        }
    }
}

/// A process that has given back some of its requests and died.
fn with_requests_in_flight() -> (World, Ring, Vec<Token>) {
    let (mut world, mut numbers) = (World::new(PACKED), Numbers(1));
    (0..3).for_each(|_| world.make(&mut numbers));
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    let mut tokens: Vec<_> = (0..3).map(|_| world.popped(&mut ring).unwrap()).collect();
    ring.push(tokens.remove(1), 0);
    ring.publish();
    world.take();
    (world, ring, tokens)
}

#[test]
fn a_packed_ring_goes_on_where_its_record_says_with_the_numbers_that_requests_had() {
    let (mut world, ring, tokens) = with_requests_in_flight();
    let position = ring.position();
    drop(ring);
    let mut ring = world.process();
    assert_eq!(ring.begin(), Ok(position), "the front-end says that it is a new ring");
    for (token, sequence) in tokens.iter().zip([0, 2]) {
        assert_eq!(world.popped(&mut ring), Some(*token));
        assert_eq!((ring.origin().sequence, ring.origin().resubmitted), (sequence, true));
        ring.push(*token, 0);
    }
    ring.publish();
    world.take();
    // Nothing is in flight now, and still the record knows where the ring stands.
    let position = ring.position();
    let mut ring = world.process();
    assert_eq!((ring.begin(), ring.unfinished()), (Ok(position), 0));
    world.finish(&mut ring);
    world.check();
}

#[test]
fn a_new_record_of_a_packed_ring_begins_where_the_front_end_says() {
    let world = World::new(PACKED);
    let base = RingPosition::from_word(0x0005_0005, true).unwrap();
    let layout = PackedLayout {
        size: 8,
        descriptors: UserAddr(DESCRIPTORS),
        driver_area: UserAddr(DRIVER),
        device_area: UserAddr(DEVICE),
        indirect: false,
        event_idx: false,
        tables_are_readable: false,
    };
    let fd: OwnedFd = world.record.try_clone().unwrap().into();
    let len = InflightRecord::bytes(8, true);
    let file = InflightFile::map(&MemoryPolicy::default(), fd.into(), 0, len).unwrap();
    let ring = || {
        let record = InflightRecord::find(&file, 0, 8, true);
        Ring::find(&world.memory, &RingLayout::Packed(layout), base).unwrap().with_record(record)
    };
    assert_eq!(ring().begin(), Ok(base));
    // The bytes of QEMU "Vhost-user Protocol", "Inflight I/O tracking", packed virtqueue.
    let mut header = [0; 32];
    world.record.read_exact_at(&mut header, 0).unwrap();
    assert_eq!(header[8..24], [1, 0, 8, 0, 0, 0, 0, 0, 5, 0, 5, 0, 0, 0, 0, 0]);
    let mut entry = [0; 32];
    world.record.read_exact_at(&mut entry, 32 + 32 * 7).unwrap();
    assert_eq!(entry[..8], [0, 0, 8, 0, 0, 0, 0, 0]);
}

#[test]
fn a_packed_record_has_the_bytes_of_the_specification() {
    let mut world = three(PACKED);
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    let token = world.popped(&mut ring).unwrap();
    let mut bytes = [0; 32 + 3 * 32];
    world.record.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[8..24], [1, 0, 8, 0, 3, 0, 3, 0, 0, 0, 0, 0, 1, 1, 0, 0]);
    let head = [1, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(bytes[32..48], head, "in flight, next 1, last 2, three of them, counter 0");
    let last = [token.id as u8, 0, 0x80, 0, 16, 0, 0, 0, 2, 0x30, 0, 0, 0, 0, 0, 0];
    assert_eq!(bytes[32 + 64 + 16..], last, "id, flags, length, address");
}

/// A world whose driver has made one chain of three descriptors available.
fn three(kind: Kind) -> World {
    let mut world = World::new(kind);
    world.free.retain(|&id| id != 4);
    world.at.insert(4, Made { request: 0, descriptors: 3 });
    world.order.push_back(0);
    world.made = 1;
    world.make_packed(4, 3);
    world
}

#[test]
fn nonsense_in_a_packed_record_is_an_error_and_is_not_followed() {
    let error = |at: u64, bytes: &[u8]| {
        let (world, ring, _) = with_requests_in_flight();
        drop(ring);
        world.record.write_all_at(bytes, at).unwrap();
        match world.process().begin() {
            Err(RingError::Record(error)) => error,
            other => panic!("{at}: {other:?}"),
        }
    };
    let (world, ring, tokens) = with_requests_in_flight();
    let RingPosition::Packed { used, .. } = ring.position() else { unreachable!() };
    let (first, last) = (32, 32 + 32 * (u64::from(tokens[0].descriptors) - 1));
    drop((ring, world));
    assert_eq!(error(8, &[2, 0]), RecordError::Version(2));
    let entries = RecordError::Entries { recorded: 0xffff, size: 8 };
    assert_eq!(error(10, &[0xff, 0xff]), entries);
    assert_eq!(error(14, &[0xff, 0xff]), RecordError::Link { next: 0xffff, size: 8 });
    assert_eq!(error(18, &[8, 0]), RecordError::Place { slot: 8, size: 8 });
    assert_eq!(error(16, &[0xff, 0xff]), RecordError::Place { slot: 0xffff, size: 8 });
    let wrap = RecordError::Place { slot: used.slot, size: 8 };
    assert_eq!((error(20, &[2]), error(21, &[7])), (wrap, wrap));
    assert_eq!(error(first + 6, &[0, 0]), RecordError::Link { next: last_of(&tokens), size: 8 });
    assert_eq!(error(first + 4, &[9, 0]), RecordError::Link { next: 9, size: 8 });
    assert!(matches!(error(first + 6, &[9, 0]), RecordError::Link { .. }));
    assert!(matches!(error(32, &[0xff; 256]), RecordError::Link { .. }));
    let id = RecordError::Id { id: 0xffff, size: 8 };
    assert_eq!(error(last + 16, &[0xff, 0xff]), id);
}

fn last_of(tokens: &[Token]) -> u16 {
    tokens[0].descriptors - 1
}

/// Two chains of one descriptor were given back together, and the process died at the store with
/// this number of their publication.
fn died_while_it_gave_two_back(store: u64) -> World {
    let mut world = World::new(PACKED);
    for id in [6, 3] {
        world.free.retain(|&free| free != id);
        world.at.insert(id, Made { request: world.made, descriptors: 1 });
        world.made += 1;
        world.make_packed(id, 1);
    }
    let mut ring = world.process();
    ring.begin().unwrap();
    ring.available().unwrap();
    let tokens = [world.popped(&mut ring).unwrap(), world.popped(&mut ring).unwrap()];
    tokens.into_iter().for_each(|token| ring.push(token, 0));
    let lived = dies_at(store, || _ = ring.publish());
    assert!(!lived, "the second is written before the last store");
    world
}

#[test]
fn used_descriptors_that_the_driver_was_not_shown_are_hidden() {
    let mut worlds = (0..).map(died_while_it_gave_two_back);
    let mut world = worlds.find(|world| world.u16_at(16 + 14) != 0x0080).unwrap();
    assert_eq!(world.u16_at(16 + 14), 0x8080, "the second is written");
    assert_eq!(world.u16_at(14), 0x0080, "the first is not");
    let mut ring = world.process();
    ring.begin().unwrap();
    assert_eq!(world.u16_at(16 + 14), 0x0080, "and was not");
    // The other one comes back first.
    let [first, second] = [world.popped(&mut ring).unwrap(), world.popped(&mut ring).unwrap()];
    ring.push(second, 0);
    ring.publish();
    world.take();
    assert_eq!(world.back, BTreeMap::from([(1, 1)]), "nothing else is back");
    ring.push(first, 0);
    ring.publish();
    world.take();
    world.check();
}
