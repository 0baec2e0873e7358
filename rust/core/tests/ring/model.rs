//! A split virtqueue against a model that keeps whole lists where the code keeps indices: random
//! steps of driver and device in any order, every answer predicted.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::SplitRing;

use crate::driver::{DATA, Driver, Form, Piece, TABLES, guest, readable};

/// Bytes for the buffers of one chain, and for its table.
const DATA_ROOM: u64 = 256;
const TABLE_ROOM: u64 = 128;
const CANARY: u8 = 0xa5;

/// One step of one side.
#[derive(Clone, Debug)]
enum Step {
    // The driver's.
    Add { lens: Vec<u8>, readable: usize, direct: Option<usize> },
    Fill,
    Expose,
    Arm,
    Disarm,
    UsedEvent(i16),
    Collect,
    // The device's.
    Look,
    Pop(u16),
    Unpop,
    Push { which: usize, written: u8 },
    PushAll,
    Publish,
    EnableKicks(u16),
    DisableKicks,
    Move,
    Restart,
}

/// A chain as the driver meant it.
#[derive(Clone, Debug)]
struct Chain {
    head: u16,
    readable: Vec<u8>,
    writable: Vec<Piece>,
}

struct Model {
    driver: Driver,
    device: SplitRing,
    /// Added and not popped, in ring order; how many of them the device may see, and has seen.
    queued: VecDeque<Chain>,
    exposed: usize,
    looked: usize,
    /// Popped and not pushed, in the order of popping.
    held: Vec<(Chain, Buffers)>,
    /// The last one held is also the last one popped: it may be put back.
    last_is_held: bool,
    pushed: Vec<(u16, u32)>,
    published: VecDeque<(u16, u32)>,
    used_index: u16,
    chains: HeldByDriver,
    serial: u8,
    // Notification, in words of the standard.
    device_event: u16,
    device_quiet: bool,
    /// Asleep until the driver makes more than this many available.
    device_sleeps: Option<usize>,
    driver_event: u16,
    driver_quiet: bool,
    driver_sleeps: bool,
    decided: Option<u16>,
}

/// What the driver knows of the chains that it will get back.
type HeldByDriver = std::collections::HashMap<u16, Chain>;

impl Model {
    fn new(size: u16, event_idx: bool, start: u16) -> Self {
        let driver = Driver::new(&guest(), size, event_idx, start);
        let device = driver.start_device(start);
        Self {
            driver,
            device,
            queued: VecDeque::new(),
            exposed: 0,
            looked: 0,
            held: Vec::new(),
            last_is_held: false,
            pushed: Vec::new(),
            published: VecDeque::new(),
            used_index: start,
            chains: HeldByDriver::new(),
            serial: 0,
            device_event: 0,
            device_quiet: false,
            device_sleeps: None,
            driver_event: 0,
            driver_quiet: false,
            driver_sleeps: false,
            decided: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add { lens, readable, direct } => self.add(lens, *readable, *direct),
            Step::Fill => (0..self.driver.size).for_each(|_| self.add(&[1], 1, None)),
            Step::Expose => self.expose(),
            Step::Arm => self.arm(),
            Step::Disarm => self.disarm(),
            Step::UsedEvent(distance) => self.wish_for(*distance),
            Step::Collect => self.collect(),
            Step::Look => self.look(),
            Step::Pop(count) => (0..*count).for_each(|_| self.pop()),
            Step::Unpop => self.unpop(),
            Step::Push { which, written } => self.push(*which, *written),
            Step::PushAll => (0..self.held.len()).for_each(|n| self.push(n, n as u8)),
            Step::Publish => self.publish(),
            Step::EnableKicks(left) => self.enable_kicks(*left),
            Step::DisableKicks => self.disable_kicks(),
            Step::Move => self.device.move_to(&self.driver.guest.device).unwrap(),
            Step::Restart => self.restart(),
        }
        assert_eq!(self.device.in_flight(), self.held.len() as u32);
        assert_eq!(self.driver.used_index(), self.used_index, "used index before its time");
    }

    // The driver.

    fn add(&mut self, lens: &[u8], readable: usize, direct: Option<usize>) {
        let direct = direct.map(|direct| direct.min(lens.len() - 1));
        let needed = direct.map_or(lens.len(), |direct| direct + 1);
        if !self.driver.has_room(needed) {
            return;
        }
        let slot = u64::from(self.driver.next_head());
        let mut at = DATA + slot * DATA_ROOM;
        let pieces: Vec<_> = (0..lens.len())
            .map(|n| {
                let piece = Piece { at, len: u32::from(lens[n]), writable: n >= readable };
                at += u64::from(lens[n]);
                piece
            })
            .collect();
        self.serial = self.serial.wrapping_add(1);
        let (writable, readable) = pieces.iter().partition::<Vec<Piece>, _>(|piece| piece.writable);
        let mut bytes = Vec::new();
        for piece in &readable {
            let part: Vec<_> = (0..piece.len as u8).map(|n| n ^ self.serial).collect();
            self.driver.guest.write(piece.at, &part);
            bytes.extend(part);
        }
        for piece in &writable {
            self.driver.guest.write(piece.at, &vec![CANARY; piece.len as usize]);
        }
        let table = TABLES + slot * TABLE_ROOM;
        let form = direct.map_or(Form::Direct, |direct| Form::Indirect(direct, table));
        let head = self.driver.add(&pieces, form);
        let chain = Chain { head, readable: bytes, writable };
        self.chains.insert(head, chain.clone());
        self.queued.push_back(chain);
    }

    fn expose(&mut self) {
        let fresh = self.queued.len() - self.exposed;
        let old = self.driver.exposed();
        let kick = self.driver.expose();
        let expected = match self.driver.event_idx {
            true => passes(self.device_event, old, fresh),
            false => fresh > 0 && !self.device_quiet,
        };
        assert_eq!(kick, expected);
        if self.device_sleeps.is_some_and(|left| self.queued.len() > left) {
            assert!(kick, "the device sleeps and gets no kick");
        }
        self.device_sleeps = self.device_sleeps.filter(|_| !kick);
        self.exposed = self.queued.len();
    }

    fn arm(&mut self) {
        let ready = self.driver.arm();
        assert_eq!(ready, !self.published.is_empty());
        self.driver_sleeps = !ready;
        (self.driver_event, self.driver_quiet) = (self.driver.seen(), false);
    }

    fn disarm(&mut self) {
        self.driver.disarm();
        self.driver_quiet = true;
        self.driver_sleeps &= self.driver.event_idx;
    }

    /// Any event index at all: it costs or saves notifications and nothing else.
    fn wish_for(&mut self, distance: i16) {
        self.driver_event = self.driver.seen().wrapping_add_signed(distance);
        self.driver.set_used_event(self.driver_event);
        self.driver_sleeps &= !self.driver.event_idx;
    }

    fn collect(&mut self) {
        for (head, written) in self.driver.collect() {
            let expected = self.published.pop_front().expect("a used element out of nothing");
            assert_eq!((head, written), (u32::from(expected.0), expected.1));
            let chain = self.chains.remove(&expected.0).unwrap();
            let mut bytes = Vec::new();
            for piece in &chain.writable {
                bytes.extend(self.driver.guest.read(piece.at, piece.len as usize));
            }
            let (wrote, left) = bytes.split_at(written as usize);
            assert!(wrote.iter().all(|&byte| byte == !(expected.0 as u8)));
            assert!(left.iter().all(|&byte| byte == CANARY));
        }
        assert!(self.published.is_empty());
    }

    // The device.

    fn look(&mut self) {
        assert_eq!(self.device.available(), Ok(self.exposed as u16));
        self.looked = self.exposed;
    }

    fn pop(&mut self) {
        self.device_sleeps = None;
        let mut buffers = Buffers::default();
        let head = self.device.pop(&mut buffers).unwrap();
        if self.looked == 0 {
            assert_eq!(head, None);
            return;
        }
        let chain = self.queued.pop_front().unwrap();
        assert_eq!(head, Some(chain.head));
        assert_eq!(readable(&buffers), chain.readable);
        let room: u32 = chain.writable.iter().map(|piece| piece.len).sum();
        assert_eq!(buffers.writable().len(), u64::from(room));
        self.held.push((chain, buffers));
        (self.exposed, self.looked) = (self.exposed - 1, self.looked - 1);
        self.last_is_held = true;
    }

    fn unpop(&mut self) {
        if !self.last_is_held {
            return;
        }
        let (chain, _) = self.held.pop().unwrap();
        self.device_sleeps = None;
        self.device.unpop(chain.head);
        self.queued.push_front(chain);
        (self.exposed, self.looked) = (self.exposed + 1, self.looked + 1);
        self.last_is_held = false;
    }

    fn push(&mut self, which: usize, written: u8) {
        if self.held.is_empty() {
            return;
        }
        let which = which % self.held.len();
        self.last_is_held &= which + 1 < self.held.len();
        let (chain, buffers) = self.held.remove(which);
        let written = u64::from(written).min(buffers.writable().len());
        assert_eq!(buffers.writable().fill(0, written, !(chain.head as u8)), written);
        self.device.push(chain.head, written as u32);
        self.pushed.push((chain.head, written as u32));
    }

    fn publish(&mut self) {
        let (old, fresh) = (self.used_index, self.pushed.len());
        let call = self.device.publish();
        self.used_index = old.wrapping_add(fresh as u16);
        self.published.extend(self.pushed.drain(..));
        if fresh == 0 {
            assert!(!call, "a notification of nothing");
            return;
        }
        let expected = match self.driver.event_idx {
            true => self.decided.is_none_or(|_| passes(self.driver_event, old, fresh)),
            false => !self.driver_quiet,
        };
        assert_eq!(call, expected);
        assert!(call || !self.driver_sleeps, "the driver sleeps and is not notified");
        self.driver_sleeps = false;
        self.decided = Some(self.used_index);
    }

    fn enable_kicks(&mut self, left: u16) {
        let ready = self.device.enable_kicks(left).unwrap();
        assert_eq!(ready, self.exposed > usize::from(left));
        self.looked = self.exposed;
        self.device_sleeps = (!ready).then_some(left.into());
        self.device_quiet = false;
        self.device_event = self.device.next_available().wrapping_add(left);
    }

    fn disable_kicks(&mut self) {
        self.device.disable_kicks();
        self.device_quiet = true;
        self.device_sleeps = self.device_sleeps.filter(|_| self.driver.event_idx);
    }

    /// Stops the ring once everything is back, as GET_VRING_BASE does, and takes it up again.
    fn restart(&mut self) {
        while !self.held.is_empty() {
            self.push(0, 0);
        }
        self.publish();
        self.device = self.driver.start_device(self.device.next_available());
        self.looked = 0;
        (self.last_is_held, self.device_sleeps) = (false, None);
        self.decided = None;
        assert_eq!(self.driver.guest.load_u16(self.driver.used, Ordering::Relaxed) & !1, 0);
    }
}

/// Whether `count` steps from `old` on leave `event` behind.
fn passes(event: u16, old: u16, count: usize) -> bool {
    (0..count).any(|step| old.wrapping_add(step as u16) == event)
}

fn sizes() -> impl Strategy<Value = u16> {
    prop_oneof![6 => 0..=4_u32, 2 => 5..=9_u32, 1 => 10..=15_u32].prop_map(|bits| 1 << bits)
}

fn steps() -> impl Strategy<Value = Step> {
    let lens = prop::collection::vec(0..=32_u8, 1..=6);
    let add = (lens, 0..=6_usize, prop::option::of(0..=3_usize));
    prop_oneof![
        12 => add.prop_map(|(lens, readable, direct)| Step::Add { lens, readable, direct }),
        1 => Just(Step::Fill),
        8 => Just(Step::Expose),
        3 => Just(Step::Arm),
        1 => Just(Step::Disarm),
        1 => (-20..20_i16).prop_map(Step::UsedEvent),
        6 => Just(Step::Collect),
        6 => Just(Step::Look),
        8 => (1..=20_u16).prop_map(Step::Pop),
        2 => Just(Step::Unpop),
        8 => (any::<usize>(), any::<u8>()).prop_map(|(which, written)| Step::Push { which, written }),
        2 => Just(Step::PushAll),
        8 => Just(Step::Publish),
        4 => (0..=1_u16).prop_map(Step::EnableKicks),
        1 => (0..=9_u16).prop_map(Step::EnableKicks),
        1 => Just(Step::DisableKicks),
        1 => Just(Step::Move),
        1 => Just(Step::Restart),
    ]
}

/// Around the places where an index wraps or changes its sign, or anywhere.
fn starts() -> impl Strategy<Value = u16> {
    let near = |at: u16| (0..40_u16).prop_map(move |n| at.wrapping_sub(20).wrapping_add(n));
    prop_oneof![near(0), near(0x8000), any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_order_of_steps_goes_as_the_standard_says(
        size in sizes(),
        event_idx in any::<bool>(),
        start in starts(),
        steps in prop::collection::vec(steps(), 1..150),
    ) {
        let mut model = Model::new(size, event_idx, start);
        for step in &steps {
            model.step(step);
        }
        // Whatever was offered comes back in the end.
        for step in [Step::Expose, Step::Look, Step::Pop(size), Step::PushAll, Step::Publish] {
            model.step(&step);
        }
        model.step(&Step::Collect);
        prop_assert!(model.chains.is_empty());
    }
}
