//! A packed virtqueue against a model that keeps whole lists where the code keeps places: random steps
//! of driver and device in any order, every answer predicted.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;
use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::PackedRing;
use vhost_user_core::token::Token;

use super::driver::*;
use crate::driver::readable;

/// Bytes for the buffers of one chain, and for its table.
const DATA_ROOM: u64 = 256;
const TABLE_ROOM: u64 = 128;
const CANARY: u8 = 0xa5;

/// One step of one side.
#[derive(Clone, Debug)]
enum Step {
    // The driver's.
    Add { lens: Vec<u8>, readable: usize, indirect: bool },
    Expose,
    Arm,
    Disarm,
    Event(i8),
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
    id: u16,
    slots: u64,
    readable: Vec<u8>,
    writable: Vec<Piece>,
}

/// What the driver has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    All,
    Nothing,
    /// The use of the descriptor with this number.
    Of(u64),
}

struct Model {
    driver: Driver,
    device: PackedRing,
    /// Added and not popped, in ring order; how many of them the device may see, and has seen.
    queued: VecDeque<Chain>,
    exposed: usize,
    looked: usize,
    /// Popped and not pushed, in the order of popping.
    held: Vec<(Chain, Token, Buffers)>,
    /// The last one held is also the last one popped: it may be put back.
    last_is_held: bool,
    pushed: Vec<(Chain, u32)>,
    published: VecDeque<(Chain, u32)>,
    /// Descriptors used and published, and those that were used at the last decision to notify.
    used: u64,
    decided: Option<u64>,
    wish: Wish,
    /// Asleep until the driver makes more than this many chains available.
    device_sleeps: Option<usize>,
    driver_sleeps: bool,
    in_flight: HashMap<u16, ()>,
    serial: u8,
}

impl Model {
    fn new(size: u16, event_idx: bool, start: u64) -> Self {
        let driver = Driver::new(&guest(), size, event_idx, start);
        let device = driver.start_device();
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
            used: start,
            decided: None,
            wish: Wish::All,
            device_sleeps: None,
            driver_sleeps: false,
            in_flight: HashMap::new(),
            serial: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add { lens, readable, indirect } => self.add(lens, *readable, *indirect),
            Step::Expose => self.expose(),
            Step::Arm => self.arm(),
            Step::Disarm => self.disarm(),
            Step::Event(distance) => self.wish_for(*distance),
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
        assert_eq!(self.device.tokens_in_flight().len(), self.held.len());
        let last = self.held.last().filter(|_| self.last_is_held).map(|(_, token, _)| *token);
        assert!(last.is_none() || self.device.last_popped() == last);
    }

    // The driver.

    fn add(&mut self, lens: &[u8], readable: usize, indirect: bool) {
        let slots = if indirect { 1 } else { lens.len() as u64 };
        if u64::from(self.driver.room()) < slots {
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        // No other chain in flight has this place: there are fewer of them.
        let place = (0..).find(|n| {
            let taken = |chain: &Chain| chain.writable.iter().any(|piece| room_of(piece.at) == *n);
            let chains = self.queued.iter().chain(self.held.iter().map(|(chain, ..)| chain));
            let more = self.pushed.iter().chain(&self.published).map(|(chain, _)| chain);
            !chains.chain(more).any(taken)
        });
        let place: u64 = place.unwrap();
        let mut at = DATA + place * DATA_ROOM;
        let mut pieces = Vec::new();
        for (n, &len) in lens.iter().enumerate() {
            pieces.push(Piece { at, len: u32::from(len), writable: n >= readable });
            at += u64::from(len);
        }
        let mut bytes = Vec::new();
        for piece in &pieces {
            let byte = if piece.writable { CANARY } else { self.serial };
            let part = vec![byte; piece.len as usize];
            self.driver.guest.write(piece.at, &part);
            bytes.extend(if piece.writable { Vec::new() } else { part });
        }
        let form =
            if indirect { Form::Indirect(TABLES + place * TABLE_ROOM) } else { Form::Direct };
        let id = self.driver.add(&pieces, form);
        assert!(self.in_flight.insert(id, ()).is_none());
        pieces.retain(|piece| piece.writable);
        // It marks its place even if it has nothing to be written.
        pieces.push(Piece { at: DATA + place * DATA_ROOM, len: 0, writable: true });
        self.queued.push_back(Chain { id, slots, readable: bytes, writable: pieces });
    }

    fn expose(&mut self) {
        let kick = self.driver.expose();
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
        self.wish = if self.driver.event_idx { Wish::Of(self.driver.seen) } else { Wish::All };
    }

    fn disarm(&mut self) {
        self.driver.disarm();
        (self.wish, self.driver_sleeps) = (Wish::Nothing, false);
    }

    /// Any place at all in this lap and the next: it costs or saves notifications and nothing else.
    fn wish_for(&mut self, distance: i8) {
        if self.driver.event_idx {
            let size = i64::from(self.driver.size);
            let distance = i64::from(distance) % size;
            let event = self.driver.seen.saturating_add_signed(distance);
            self.driver.wish(DESC, self.driver.event(event));
            (self.wish, self.driver_sleeps) = (Wish::Of(event), false);
        }
    }

    fn collect(&mut self) {
        for (id, written) in self.driver.collect() {
            let (chain, expected) = self.published.pop_front().expect("one out of nothing");
            assert_eq!((id, written), (chain.id, expected));
            self.in_flight.remove(&id);
            let mut bytes = Vec::new();
            for piece in &chain.writable {
                bytes.extend(self.driver.guest.read(piece.at, piece.len as usize));
            }
            let (wrote, left) = bytes.split_at(written as usize);
            assert!(wrote.iter().all(|&byte| byte == !(id as u8)));
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
        let token = self.device.pop(&mut buffers).unwrap();
        if self.looked == 0 {
            assert_eq!(token, None);
            return;
        }
        let (token, chain) = (token.unwrap(), self.queued.pop_front().unwrap());
        assert_eq!((token.id, u64::from(token.descriptors)), (chain.id, chain.slots));
        assert_eq!(readable(&buffers), chain.readable);
        let room: u32 = chain.writable.iter().map(|piece| piece.len).sum();
        assert_eq!(buffers.writable().len(), u64::from(room));
        self.held.push((chain, token, buffers));
        (self.exposed, self.looked) = (self.exposed - 1, self.looked - 1);
        self.last_is_held = true;
    }

    fn unpop(&mut self) {
        if !self.last_is_held {
            return;
        }
        let (chain, token, _) = self.held.pop().unwrap();
        self.device_sleeps = None;
        self.device.unpop(token);
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
        let (chain, token, buffers) = self.held.remove(which);
        let written = u64::from(written).min(buffers.writable().len());
        assert_eq!(buffers.writable().fill(0, written, !(chain.id as u8)), written);
        self.device.push(token, written as u32);
        self.pushed.push((chain, written as u32));
    }

    fn publish(&mut self) {
        let old = self.used;
        self.used += self.pushed.iter().map(|(chain, _)| chain.slots).sum::<u64>();
        let fresh = !self.pushed.is_empty();
        let call = self.device.publish();
        self.published.extend(self.pushed.drain(..));
        let first = self.decided.is_none();
        let expected = fresh
            && match self.wish {
                Wish::All => true,
                Wish::Nothing => false,
                // The wrap counter tells two laps apart, not more.
                Wish::Of(event) => {
                    let laps = 2 * u64::from(self.driver.size);
                    first || (old..self.used).any(|count| count % laps == event % laps)
                }
            };
        assert_eq!(call, expected);
        assert!(call || !fresh || !self.driver_sleeps, "the driver sleeps and is not notified");
        if fresh {
            (self.driver_sleeps, self.decided) = (false, Some(self.used));
        }
    }

    fn enable_kicks(&mut self, left: u16) {
        let ready = self.device.enable_kicks(left).unwrap();
        assert_eq!(ready, self.exposed > usize::from(left));
        self.looked = self.exposed;
        self.device_sleeps = (!ready).then_some(left.into());
    }

    fn disable_kicks(&mut self) {
        self.device.disable_kicks();
        self.device_sleeps = None;
    }

    /// Stops the ring once everything is back, as GET_VRING_BASE does, and takes it up again.
    fn restart(&mut self) {
        while !self.held.is_empty() {
            self.push(0, 0);
        }
        self.publish();
        let (available, used) = (self.device.next_available(), self.device.next_used());
        assert_eq!(available, used);
        let memory = &self.driver.guest.device;
        self.device = PackedRing::find(memory, self.driver.layout(), used).unwrap();
        self.looked = 0;
        (self.last_is_held, self.device_sleeps, self.decided) = (false, None, None);
    }
}

fn room_of(at: u64) -> u64 {
    (at - DATA) / DATA_ROOM
}

fn steps() -> impl Strategy<Value = Step> {
    let lens = prop::collection::vec(0..=32_u8, 1..=6);
    let add = (lens, 0..=6_usize, any::<bool>());
    prop_oneof![
        12 => add.prop_map(|(lens, readable, indirect)| Step::Add { lens, readable, indirect }),
        8 => Just(Step::Expose),
        3 => Just(Step::Arm),
        1 => Just(Step::Disarm),
        1 => any::<i8>().prop_map(Step::Event),
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_order_of_steps_on_a_packed_ring_goes_as_the_standard_says(
        size in prop_oneof![6 => 1..=9_u16, 2 => 10..=300_u16, 1 => Just(32768_u16)],
        event_idx in any::<bool>(),
        start in 0..1000_u64,
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
        prop_assert!(model.in_flight.is_empty());
    }
}
