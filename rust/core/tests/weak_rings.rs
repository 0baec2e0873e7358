//! As `weak_memory`, of rings: what driver and device may see of each other on processors that reorder
//! loads and stores, gone through by a model checker. The device's side are the sources themselves;
//! the driver's is written here, from VIRTIO 1.3, "Packed Virtqueues" and "Split Virtqueues".

use loom::sync::Arc;
use loom::thread;

use atomics::{AtomicU64, Ordering, fence};
use memory::Window;
use packed_events::EventAreas;
use packed_slots::{NEXT, Slots, used_word};
use ring_position::PackedIndex;
use split_areas::Areas;

/// In place of the standard library's.
mod atomics {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

/// In place of guest memory.
mod memory {
    use loom::sync::Arc;

    use super::atomics::{AtomicU64, Ordering};

    /// Fields of so many bytes, each at a multiple of it, or longer ones that begin there.
    #[derive(Clone, Debug)]
    pub(crate) struct Window {
        fields: Arc<Vec<AtomicU64>>,
        bytes: usize,
    }

    impl Window {
        pub(crate) fn of(len: usize, bytes: usize) -> Self {
            let fields = (0..len.div_ceil(bytes)).map(|_| AtomicU64::new(0)).collect();
            Self { fields: Arc::new(fields), bytes }
        }

        fn field(&self, offset: usize) -> &AtomicU64 {
            &self.fields[offset / self.bytes]
        }

        pub(crate) fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
            self.field(offset).load(order)
        }

        pub(crate) fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
            self.field(offset).store(value, order);
        }

        pub(crate) fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
            self.load_u64(offset, order) as u32
        }

        pub(crate) fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
            self.store_u64(offset, value.into(), order);
        }

        pub(crate) fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
            self.load_u64(offset, order) as u16
        }

        pub(crate) fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
            self.store_u64(offset, value.into(), order);
        }

        pub(crate) fn store_pair(&self, offset: usize, first: u32, second: u32) {
            self.store_u32(offset, first, Ordering::Relaxed);
            self.store_u32(offset + 4, second, Ordering::Relaxed);
        }
    }
}

mod chain {
    pub(crate) const DESC_LEN: usize = 16;
}

#[allow(dead_code, unreachable_pub)]
#[path = "../src/ring_position.rs"]
mod ring_position;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/ring/event.rs"]
mod event;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/ring/packed_slots.rs"]
mod packed_slots;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/ring/packed_events.rs"]
mod packed_events;

#[allow(dead_code, unreachable_pub)]
#[path = "../src/ring/split_areas.rs"]
mod split_areas;

const SIZE: u16 = 4;
const AT: PackedIndex = PackedIndex::INITIAL;

/// Of a descriptor's word: available and used in the first lap, in which the wrap counters are 1.
const AVAILABLE: u64 = 1 << 55;
const USED: u64 = 1 << 55 | 1 << 63;

/// Of an event area: what is wanted stands in its upper half.
const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const DESC: u32 = 2;

/// A packed ring, and a buffer.
#[derive(Clone)]
struct Packed {
    slots: Window,
    driver_area: Window,
    device_area: Window,
    buffer: Arc<AtomicU64>,
}

impl Packed {
    fn new() -> Self {
        let [slots, driver_area, device_area] =
            [16 * usize::from(SIZE), 4, 4].map(|len| Window::of(len, len.min(8)));
        Self { slots, driver_area, device_area, buffer: Arc::new(AtomicU64::new(0)) }
    }

    // --- the device's side -----------------------------------------------------------------------

    fn slots(&self) -> Slots {
        Slots { window: self.slots.clone(), size: SIZE }
    }

    fn areas(&self, event_idx: bool) -> EventAreas {
        EventAreas::new(self.driver_area.clone(), self.device_area.clone(), event_idx, SIZE)
    }

    // --- the driver's ----------------------------------------------------------------------------

    fn describe(&self, slot: usize, address: u64, word: u64, order: Ordering) {
        self.slots.store_u64(16 * slot, address, Ordering::Relaxed);
        self.slots.store_u64(16 * slot + 8, word, order);
    }

    fn is_used(&self, slot: usize) -> bool {
        self.slots.load_u64(16 * slot + 8, Ordering::Acquire) & USED == USED
    }

    /// Whether the device wants a kick for the descriptor in slot 0.
    fn wants_kick(&self) -> bool {
        let area = self.device_area.load_u32(0, Ordering::Relaxed);
        match area >> 16 {
            DISABLE => false,
            DESC => area as u16 == AT.to_word(),
            _ => true,
        }
    }

    /// Asks for a call when slot 0 is used.
    fn arm(&self, event_idx: bool) {
        let flags = if event_idx { DESC } else { ENABLE };
        let event = if event_idx { AT.to_word() } else { 0 };
        self.driver_area.store_u32(0, flags << 16 | u32::from(event), Ordering::Relaxed);
    }
}

#[test]
fn a_packed_chain_is_seen_whole_or_not_at_all() {
    loom::model(|| {
        let ring = Packed::new();
        let driver = ring.clone();
        let driver = thread::spawn(move || {
            driver.buffer.store(7, Ordering::Relaxed);
            // The chain's first flags are written last.
            driver.describe(1, 0x2000, AVAILABLE | 1, Ordering::Relaxed);
            driver.describe(0, 0x1000, AVAILABLE | NEXT | 1, Ordering::Release);
        });
        let slots = ring.slots();
        if let Some(word) = slots.load_available(AT) {
            let next = word & NEXT != 0 && slots.load_word(1) == AVAILABLE | 1;
            assert!(next, "half a chain");
            assert_eq!((slots.load_address(0), slots.load_address(1)), (0x1000, 0x2000));
            assert_eq!(ring.buffer.load(Ordering::Relaxed), 7, "a buffer of before");
        }
        driver.join().unwrap();
    });
}

#[test]
fn used_descriptors_that_are_published_together_are_seen_together() {
    loom::model(|| {
        let ring = Packed::new();
        let device = ring.clone();
        let device = thread::spawn(move || {
            device.buffer.store(7, Ordering::Relaxed);
            let words = [(0, used_word(0, 8, true)), (1, used_word(1, 8, true))];
            device.slots().store_used(&words);
        });
        if ring.is_used(0) {
            assert!(ring.is_used(1), "the second is missing");
            assert_eq!(ring.buffer.load(Ordering::Relaxed), 7, "an answer of before");
        }
        device.join().unwrap();
    });
}

#[test]
fn no_kick_of_a_packed_ring_is_lost() {
    for event_idx in [false, true] {
        loom::model(move || {
            let ring = Packed::new();
            let mut areas = ring.areas(event_idx);
            areas.ask_for_no_kick();
            let device = ring.clone();
            let device = thread::spawn(move || {
                areas.ask_for_kick(AT);
                device.slots().load_available(AT).is_none()
            });
            ring.describe(0, 0x1000, AVAILABLE, Ordering::Release);
            fence(Ordering::SeqCst);
            let kicked = ring.wants_kick();
            let sleeps = device.join().unwrap();
            assert!(kicked || !sleeps, "the device sleeps, and was not kicked");
        });
    }
}

#[test]
fn no_call_of_a_packed_ring_is_lost() {
    for event_idx in [false, true] {
        loom::model(move || {
            let ring = Packed::new();
            ring.driver_area.store_u32(0, DISABLE << 16, Ordering::Relaxed);
            let mut areas = ring.areas(event_idx);
            assert!(!areas.wants_call(AT));
            let device = ring.clone();
            let device = thread::spawn(move || {
                device.slots().store_used(&[(0, used_word(0, 8, true))]);
                areas.wants_call(AT.ahead(1, SIZE))
            });
            ring.arm(event_idx);
            fence(Ordering::SeqCst);
            let sleeps = !ring.is_used(0);
            let called = device.join().unwrap();
            assert!(called || !sleeps, "the driver sleeps, and was not called");
        });
    }
}

/// A split ring, and a buffer.
#[derive(Clone)]
struct Split {
    available: Window,
    used: Window,
    event_idx: bool,
    buffer: Arc<AtomicU64>,
}

const FLAGS: usize = 0;
const INDEX: usize = 2;
const USED_EVENT: usize = 4 + 2 * SIZE as usize;
const AVAIL_EVENT: usize = 4 + 8 * SIZE as usize;

impl Split {
    fn new(event_idx: bool) -> Self {
        let [available, used] = Areas::lengths(SIZE).map(|len| Window::of(len, 2));
        Self { available, used, event_idx, buffer: Arc::new(AtomicU64::new(0)) }
    }

    /// The device's side.
    fn areas(&self) -> Areas {
        Areas::new(self.available.clone(), self.used.clone(), SIZE, self.event_idx)
    }

    // --- the driver's ----------------------------------------------------------------------------

    fn offer(&self, head: u16) {
        self.available.store_u16(4, head, Ordering::Relaxed);
        self.available.store_u16(INDEX, 1, Ordering::Release);
    }

    fn used_index(&self) -> u16 {
        self.used.load_u16(INDEX, Ordering::Acquire)
    }

    /// Whether the device wants a kick for the first entry.
    fn wants_kick(&self) -> bool {
        if self.event_idx {
            return self.used.load_u16(AVAIL_EVENT, Ordering::Relaxed) == 0;
        }
        self.used.load_u16(FLAGS, Ordering::Relaxed) == 0
    }

    /// Asks for no call, or for one when the first element is used.
    fn arm(&self, wants: bool) {
        let (at, wish) = if self.event_idx {
            (USED_EVENT, if wants { 0 } else { 0x8000 })
        } else {
            (FLAGS, u16::from(!wants))
        };
        self.available.store_u16(at, wish, Ordering::Relaxed);
    }
}

#[test]
fn an_entry_of_a_split_ring_is_seen_with_all_that_is_behind_it() {
    loom::model(|| {
        let ring = Split::new(true);
        let driver = ring.clone();
        let driver = thread::spawn(move || {
            driver.buffer.store(7, Ordering::Relaxed);
            driver.offer(3);
        });
        let areas = ring.areas();
        if areas.available_index() == 1 {
            assert_eq!(areas.head(0), 3, "an entry of before");
            assert_eq!(ring.buffer.load(Ordering::Relaxed), 7, "a buffer of before");
        }
        driver.join().unwrap();
    });
}

#[test]
fn elements_of_a_split_ring_are_seen_with_their_answers() {
    loom::model(|| {
        let ring = Split::new(true);
        let device = ring.clone();
        let device = thread::spawn(move || {
            device.buffer.store(7, Ordering::Relaxed);
            let areas = device.areas();
            areas.store_used(0, 3, 8);
            areas.publish(1);
        });
        if ring.used_index() == 1 {
            let element = [4, 8].map(|at| ring.used.load_u32(at, Ordering::Relaxed));
            assert_eq!(element, [3, 8], "an element of before");
            assert_eq!(ring.buffer.load(Ordering::Relaxed), 7, "an answer of before");
        }
        device.join().unwrap();
    });
}

#[test]
fn no_kick_of_a_split_ring_is_lost() {
    for event_idx in [false, true] {
        loom::model(move || {
            let ring = Split::new(event_idx);
            let areas = ring.areas();
            if !areas.ask_for_no_kick() {
                // The event stays behind.
                ring.used.store_u16(AVAIL_EVENT, 0x8000, Ordering::Relaxed);
            }
            let device = thread::spawn(move || {
                areas.ask_for_kick(0);
                areas.available_index() == 0
            });
            ring.offer(3);
            fence(Ordering::SeqCst);
            let kicked = ring.wants_kick();
            let sleeps = device.join().unwrap();
            assert!(kicked || !sleeps, "the device sleeps, and was not kicked");
        });
    }
}

#[test]
fn no_call_of_a_split_ring_is_lost() {
    for event_idx in [false, true] {
        loom::model(move || {
            let ring = Split::new(event_idx);
            let mut areas = ring.areas();
            ring.arm(false);
            // The first decision with event indices is for a call, whatever the driver wants.
            areas.wants_call(0);
            let device = thread::spawn(move || {
                areas.store_used(0, 3, 8);
                areas.publish(1);
                areas.wants_call(1)
            });
            ring.arm(true);
            fence(Ordering::SeqCst);
            let sleeps = ring.used_index() == 0;
            let called = device.join().unwrap();
            assert!(called || !sleeps, "the driver sleeps, and was not called");
        });
    }
}
