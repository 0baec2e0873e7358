//! The packed virtqueue, device side.
//!
//! Driver and device write the same descriptors, each behind the other, round the ring. A place in it
//! is a slot and a wrap counter, which tells one lap from the next.
//!
//! ```text
//!        used           available      seen
//!         |               |             |
//!   free  |  in flight    |  available  |  free
//! ```
//!
//! Laws:
//! - Each descriptor is read once, when it is first seen, and the copy is looked at from then on.
//! - A malformed chain is an error and never a shorter chain; after an error the ring is not used
//!   again until it is stopped and started anew.
//! - Chains in flight and chains to be popped have no more descriptors than the ring: what the driver
//!   makes available beyond is not there.
//! - Of the used descriptors that are published together the first is stored last. The driver does not
//!   look at the others before.
//!
//! VIRTIO 1.3, "Packed Virtqueues".

use std::collections::VecDeque;
use std::io;
use std::iter;
use std::sync::Arc;

use super::chain::{Chain, DESC_INDIRECT, DESC_LEN, Descriptor, Origin, TableForm};
use super::held::Held;
use super::indirect::Tables;
use super::packed_events::EventAreas;
use super::packed_record::PackedRecord;
use super::packed_slots::{NEXT, Slots, buffer_id, used_word};
use super::part::{RingPart, StartError};
use super::record::Unfinished;
use super::used_log::UsedLog;
use super::used_places::{EVENT_AREA, UsedPlaces};
use super::{MAX_CHAIN, RingError};
use crate::address::UserAddr;
use crate::memory::{Access, Buffers, DirtyLog, Memory, Window};
use crate::ring_position::PackedIndex;
use crate::token::Token;

/// Where a ring's three parts are, in the front-end's address space.
#[derive(Clone, Copy, Debug)]
pub struct PackedLayout {
    /// Entries: at most 32768.
    pub size: u16,
    /// Descriptors.
    pub descriptors: UserAddr,
    /// Where the driver says which calls it wants.
    pub driver_area: UserAddr,
    /// Where the device says which kicks it wants.
    pub device_area: UserAddr,
    /// Indirect descriptors were negotiated.
    pub indirect: bool,
    /// Event indices were negotiated.
    pub event_idx: bool,
    /// All that indirect tables describe is to be read, whatever their WRITE flags say: on a network
    /// device's transmit queue DPDK's virtio-user sets some.
    pub tables_are_readable: bool,
}

/// The three parts of a ring, mapped.
#[derive(Debug)]
struct Parts {
    slots: Slots,
    driver_area: Window,
    device_area: Window,
}

/// A running packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    layout: PackedLayout,
    slots: Slots,
    events: EventAreas,
    memory: Arc<Memory>,
    /// The next descriptor to pop.
    available: PackedIndex,
    /// The next descriptor to look at.
    seen: PackedIndex,
    /// Copies of the descriptors between the two, by slot.
    copies: Box<[(u64, u64)]>,
    /// How many these are, and how many chains they make.
    seen_slots: u16,
    seen_chains: u16,
    /// What is wrong with the chain behind them.
    bad: Option<RingError>,
    /// Chains that may be popped before the next look.
    batch: u16,
    /// The place of the next used descriptor.
    used: PackedIndex,
    /// Descriptors of chains that were popped, and that the driver has not got back.
    taken: u16,
    /// The first entries of the chains that were pushed and not published yet.
    pushed: Vec<u16>,
    /// Their used descriptors: slot and word.
    words: Vec<(u16, u64)>,
    held: Held,
    /// The id of the chain that was popped just before each slot.
    popped: Box<[u16]>,
    tables: Tables,
    form: TableForm,
    max_chain: u16,
    record: Option<PackedRecord>,
    /// What a process that died has left unfinished, oldest first: popped before anything new.
    unfinished: VecDeque<Unfinished>,
    /// Where the chain that was popped last comes from.
    origin: Origin,
    /// The number of the next chain, if there is no record.
    sequence: u64,
    /// Where writes to the ring are noted, if they are.
    log: Option<UsedPlaces>,
}

impl PackedRing {
    /// Finds the ring in `memory`, and looks at nothing of it before [`begin`](Self::begin):
    /// memory may be slow to answer. `used`: the place of the next used descriptor, which is inside.
    pub fn find(
        memory: &Arc<Memory>,
        layout: PackedLayout,
        used: PackedIndex,
    ) -> Result<Self, StartError> {
        Ok(Self::of_parts(memory, layout, used, Parts::find(memory, &layout)?))
    }

    /// Makes a ring that has no place yet: as [`SplitRing::apart`](super::SplitRing::apart).
    pub fn apart(
        memory: &Arc<Memory>,
        layout: PackedLayout,
        used: PackedIndex,
    ) -> io::Result<Self> {
        Ok(Self::of_parts(memory, layout, used, Parts::private(&layout)?))
    }

    fn of_parts(
        memory: &Arc<Memory>,
        layout: PackedLayout,
        used: PackedIndex,
        parts: Parts,
    ) -> Self {
        let size = usize::from(layout.size);
        let readable = layout.tables_are_readable;
        let Parts { slots, driver_area, device_area } = parts;
        Self {
            layout,
            slots,
            events: EventAreas::new(driver_area, device_area, layout.event_idx, layout.size),
            memory: Arc::clone(memory),
            available: used,
            seen: used,
            copies: vec![(0, 0); size].into(),
            seen_slots: 0,
            seen_chains: 0,
            bad: None,
            batch: 0,
            used,
            taken: 0,
            pushed: Vec::with_capacity(size),
            words: Vec::with_capacity(size),
            held: Held::new(layout.size),
            // No id is so high: nothing was popped yet.
            popped: vec![u16::MAX; size].into(),
            tables: Tables::default(),
            form: if readable { TableForm::SequentialReadable } else { TableForm::Sequential },
            max_chain: layout.size.max(MAX_CHAIN),
            record: None,
            unfinished: VecDeque::new(),
            origin: Origin::default(),
            sequence: 0,
            log: None,
        }
    }

    /// Keeps this record of the requests in flight; before [`begin`](Self::begin).
    #[must_use]
    pub fn with_record(mut self, record: Option<PackedRecord>) -> Self {
        self.record = record;
        self
    }

    /// Takes the ring up where it stands.
    ///
    /// Without a record that is where the front-end says that the next used descriptor is written:
    /// whatever is available from there on comes. A record goes before that, since no front-end can
    /// tell where a packed ring stands whose back-end has died: QEMU names the place of the start
    /// before. Requests in flight that it knows come first, and the ring goes on behind them.
    ///
    /// # Errors
    /// The record cannot be that of this ring.
    pub fn begin(&mut self) -> Result<(), RingError> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let left = record.take_up(self.used, &self.slots).map_err(RingError::Record)?;
        if let Some(log) = &self.log {
            // Some may have been hidden.
            DirtyLog::order();
            log.mark_slots(0, self.layout.size);
        }
        self.taken = left.held.in_flight().map(|(_, descriptors)| descriptors).sum();
        (self.held, self.used) = (left.held, left.used);
        self.available = self.used.ahead(self.taken, self.layout.size);
        self.seen = self.available;
        self.unfinished = left.unfinished.into();
        Ok(())
    }

    /// Goes on in another table of memory. On an error the ring still stands in the old one.
    pub fn move_to(&mut self, memory: &Arc<Memory>) -> Result<(), StartError> {
        self.stand_in(Parts::find(memory, &self.layout)?, memory);
        if let Some(log) = &mut self.log {
            log.find(&self.memory, self.layout.descriptors);
        }
        Ok(())
    }

    /// The parts of the ring once more, for who waits for their pages.
    pub fn windows(&self) -> Vec<Window> {
        let parts = Parts::find(&self.memory, &self.layout);
        parts.map_or_else(
            |_| Vec::new(),
            |parts| vec![parts.slots.window, parts.driver_area, parts.device_area],
        )
    }

    /// Lets go of guest memory: the ring stands in zeroes of this process's own from now on, which
    /// no driver sees. Where it stood stays known.
    pub fn leave(&mut self) -> io::Result<()> {
        self.stand_apart(&Arc::default())
    }

    /// Leaves its place, as [`leave`](Self::leave), to get one in this table of memory by
    /// [`move_to`](Self::move_to).
    pub fn stand_apart(&mut self, memory: &Arc<Memory>) -> io::Result<()> {
        self.stand_in(Parts::private(&self.layout)?, memory);
        Ok(())
    }

    fn stand_in(&mut self, parts: Parts, memory: &Arc<Memory>) {
        self.slots = parts.slots;
        self.events.move_to(parts.driver_area, parts.device_area);
        self.memory = Arc::clone(memory);
    }

    /// Its parts, as the front-end has told where they are.
    pub fn parts(&self) -> [RingPart; 3] {
        self.layout.parts()
    }

    // --- chains out of the ring ----------------------------------------------------------------

    /// How many chains there are to pop: those of a process that died, and those that the driver has
    /// made available. A bad one counts too.
    #[inline]
    pub fn available(&mut self) -> Result<u16, RingError> {
        self.look();
        let chains = self.seen_chains + u16::from(self.bad.is_some());
        self.batch = chains;
        Ok(chains.saturating_add(self.unfinished()))
    }

    /// Copies the descriptors that the driver has made available since the last look.
    #[inline]
    fn look(&mut self) {
        while self.bad.is_none() {
            let room = self.layout.size - self.taken - self.seen_slots;
            if room == 0 {
                return;
            }
            let Some(mut word) = self.slots.load_available(self.seen) else { return };
            let (first, mut count) = (self.seen.slot, 1);
            let mut slot = first;
            self.copies[usize::from(slot)] = (self.slots.load_address(slot), word);
            while word & NEXT != 0 {
                if count == room {
                    self.bad = Some(RingError::Endless { slot: first, room });
                    return;
                }
                count += 1;
                slot = if slot + 1 == self.layout.size { 0 } else { slot + 1 };
                word = self.slots.load_word(slot);
                self.copies[usize::from(slot)] = (self.slots.load_address(slot), word);
            }
            self.seen_slots += count;
            self.seen_chains += 1;
            self.seen = self.seen.ahead(count, self.layout.size);
        }
    }

    /// Pops one of the chains that [`available`](Self::available) counted, into `buffers`. `None`:
    /// that many have been popped, or there is so much to do for
    /// [`finish_walks`](Self::finish_walks) that it comes first.
    #[inline]
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<Token>, RingError> {
        if let Some(&first) = self.unfinished.front() {
            return self.pop_unfinished(first, buffers).map(Some);
        }
        if self.batch == 0 {
            return Ok(None);
        }
        if self.seen_chains == 0 {
            return self.bad.map_or(Ok(None), Err);
        }
        let token = self.next_token()?;
        let first = self.take(token);
        buffers.begin(&self.memory);
        if let Err(error) = self.walk(token.id, first, buffers) {
            self.held.forget(token.id);
            self.held.free_chain(first);
            return Err(error);
        }
        self.has_popped(token, first);
        Ok(Some(token))
    }

    /// The chain that is next in the ring. Its last descriptor has its id.
    #[inline]
    fn next_token(&self) -> Result<Token, RingError> {
        let (mut slot, mut descriptors, size) = (self.available.slot, 1, self.layout.size);
        // The copies of a chain end, and are all there: that was seen to.
        while self.copies[usize::from(slot)].1 & NEXT != 0 {
            slot = if slot + 1 == size { 0 } else { slot + 1 };
            descriptors += 1;
        }
        let id = buffer_id(self.copies[usize::from(slot)].1);
        if id >= size {
            return Err(RingError::BadId { id, size });
        }
        if self.held.is_in_flight(id) {
            return Err(RingError::IdInFlight(id));
        }
        Ok(Token { id, descriptors })
    }

    /// Holds the descriptors of the next chain; returns their first entry.
    #[inline]
    fn take(&mut self, Token { id, descriptors }: Token) -> u16 {
        let Self { copies, held, .. } = self;
        let slots = usize::from(self.available.slot)..;
        let size = copies.len();
        let slots = slots.map(|slot| if slot < size { slot } else { slot - size });
        let descriptors_of_it = slots.take(descriptors.into()).map(|slot| copies[slot]);
        held.take(id, descriptors, descriptors_of_it)
    }

    #[inline]
    fn has_popped(&mut self, token: Token, first: u16) {
        let count = token.descriptors;
        self.available = self.available.ahead(count, self.layout.size);
        self.popped[usize::from(self.available.slot)] = token.id;
        self.seen_slots -= count;
        self.seen_chains -= 1;
        self.batch = self.batch.saturating_sub(1);
        self.taken += count;
        let sequence = match &mut self.record {
            Some(record) => record.popped(&self.held, first),
            None => self.sequence,
        };
        self.sequence = sequence.wrapping_add(1);
        self.origin = Origin { sequence, resubmitted: false };
    }

    /// Walks a chain that is held, once.
    #[inline]
    fn walk(&mut self, id: u16, first: u16, buffers: &mut Buffers) -> Result<(), RingError> {
        let mut chain = Chain::new(id, self.max_chain, self.form);
        let head = *self.held.entry(first);
        let descriptor = Descriptor::packed(head.low, head.high);
        if head.count == 1 && descriptor.flags & DESC_INDIRECT != 0 {
            return self.walk_table(descriptor, chain, buffers);
        }
        let mut index = first;
        for _ in 0..head.count {
            let entry = self.held.entry(index);
            let descriptor = Descriptor::packed(entry.low, entry.high);
            if descriptor.flags & DESC_INDIRECT != 0 {
                return Err(RingError::BadIndirect { head: id });
            }
            chain.add(descriptor, buffers)?;
            index = entry.next;
        }
        Ok(())
    }

    /// Reads an indirect table, and walks it unless it is to be read later.
    fn walk_table(
        &mut self,
        outer: Descriptor,
        chain: Chain,
        buffers: &mut Buffers,
    ) -> Result<(), RingError> {
        if !self.layout.indirect {
            return Err(RingError::BadIndirect { head: chain.head });
        }
        if let Some(table) = self.tables.read(&self.memory, outer, chain, buffers)? {
            return chain.walk_table(table, buffers);
        }
        if self.tables.is_full() {
            // This chain is the last of its batch.
            self.batch = 1;
        }
        Ok(())
    }

    /// Where the chain that was popped last comes from.
    #[inline]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Ends the walks of chains whose indirect tables lie in memory that is granted on demand: as
    /// [`SplitRing::finish_walks`](super::SplitRing::finish_walks).
    ///
    /// # Errors
    /// The number of good chains before a bad one, and what is bad.
    pub fn finish_walks<'a>(
        &mut self,
        popped: impl Iterator<Item = (u16, &'a mut Buffers)>,
    ) -> Result<(), (usize, RingError)> {
        self.tables.walk(popped)
    }

    /// Chains that [`available`](Self::available) counted last and that were not popped.
    pub fn seen(&self) -> u16 {
        self.seen_chains.saturating_add(self.unfinished())
    }

    /// Puts back the chain that was popped last of those not put back: it stays available, as it was
    /// when it was seen.
    pub fn unpop(&mut self, Token { id, descriptors }: Token) {
        let first = self.held.forget(id);
        self.held.free_chain(first);
        if let Some(record) = &mut self.record {
            record.unpopped(&self.held, first);
        }
        self.available = self.available.back(descriptors, self.layout.size);
        self.seen_slots += descriptors;
        self.seen_chains += 1;
        self.batch += 1;
        self.taken -= descriptors;
    }

    /// The chain that was popped last, if it is in flight.
    pub fn last_popped(&self) -> Option<Token> {
        self.token(self.popped[usize::from(self.available.slot)])
    }

    /// All chains in flight.
    pub fn tokens_in_flight(&self) -> Vec<Token> {
        let mut popped = vec![true; self.layout.size.into()];
        self.unfinished.iter().for_each(|request| popped[usize::from(request.head)] = false);
        let in_flight = self.held.in_flight().filter(|&(id, _)| popped[usize::from(id)]);
        in_flight.map(|(id, descriptors)| Token { id, descriptors }).collect()
    }

    fn token(&self, id: u16) -> Option<Token> {
        let descriptors = self.held.entry(self.held.first(id)?).count;
        Some(Token { id, descriptors })
    }

    /// Walks a chain that is in flight once more: whoever popped it does not give it back.
    ///
    /// # Errors
    /// The driver has changed its indirect table meanwhile, and this is wrong with it now.
    pub fn walk_again(&mut self, token: Token, buffers: &mut Buffers) -> Result<(), RingError> {
        buffers.begin(&self.memory);
        let (id, first) = (token.id, self.first_of(token.id)?);
        self.walk(id, first, buffers)?;
        self.tables.walk(iter::once((id, buffers))).map_err(|(_, error)| error)
    }

    // --- chains of a process that died -----------------------------------------------------------

    /// Whether the requests in flight are recorded.
    pub fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// Chains that a process that died has left unfinished, and that were not popped again yet.
    pub fn unfinished(&self) -> u16 {
        self.unfinished.len() as u16
    }

    /// These chains, oldest first.
    pub fn unfinished_tokens(&self) -> impl Iterator<Item = Token> + '_ {
        self.unfinished.iter().filter_map(|request| self.token(request.head))
    }

    /// Pops the oldest of these.
    #[cold]
    fn pop_unfinished(
        &mut self,
        Unfinished { sequence, head: id }: Unfinished,
        buffers: &mut Buffers,
    ) -> Result<Token, RingError> {
        let first = self.first_of(id)?;
        buffers.begin(&self.memory);
        self.walk(id, first, buffers)?;
        self.unfinished.pop_front();
        self.origin = Origin { sequence, resubmitted: true };
        Ok(Token { id, descriptors: self.held.entry(first).count })
    }

    /// The first entry of a chain that is in flight.
    fn first_of(&self, id: u16) -> Result<u16, RingError> {
        self.held.first(id).ok_or(RingError::BadId { id, size: self.layout.size })
    }

    /// Takes the oldest of these without a look at it, to be pushed.
    pub fn take_unfinished(&mut self) -> Option<Token> {
        let id = self.unfinished.pop_front()?.head;
        self.token(id)
    }

    /// Puts back a chain that [came again](Origin::resubmitted), in front of all others.
    pub fn unpop_unfinished(&mut self, token: Token, sequence: u64) {
        self.unfinished.push_front(Unfinished { sequence, head: token.id });
    }

    // --- chains back to the driver ---------------------------------------------------------------

    /// Gives a chain back. The driver sees that at the next [`publish`](Self::publish), which writes
    /// all used descriptors together: while it looks for the first, each write into the same cache
    /// line would have to win the line back.
    #[inline]
    pub fn push(&mut self, token: Token, written: u32) {
        let PackedIndex { slot, wrap } = self.used;
        self.words.push((slot, used_word(token.id, written, wrap)));
        self.used = self.used.ahead(token.descriptors, self.layout.size);
        self.pushed.push(self.held.forget(token.id));
    }

    /// Has writes to the ring noted from now on, or no more.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        let places = |log| UsedPlaces::new(log, self.layout.size);
        self.log = log.map(places);
        if let Some(log) = &mut self.log {
            log.find(&self.memory, self.layout.descriptors);
        }
    }

    /// Marks the descriptors from this slot on up to the next used one.
    fn mark_published(&self, log: &UsedPlaces, first: u16) {
        let (size, end) = (self.layout.size, self.used.slot);
        if first < end {
            return log.mark_slots(first, end - first);
        }
        log.mark_slots(first, size - first);
        log.mark_slots(0, end);
    }

    /// Shows the driver all that was pushed since the last call, at once; returns whether it wants
    /// to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let Some(&(slot, _)) = self.words.first() else { return false };
        for &first in &self.pushed {
            self.taken -= self.held.entry(first).count;
            self.held.free_chain(first);
            if let Some(record) = &self.record {
                record.freed(&self.held, first);
            }
        }
        if let Some(record) = &self.record {
            record.publishes(self.held.free(), self.used);
        }
        if let Some(log) = &self.log {
            // A process that dies behind the next store leaves marks that are nearly always there.
            self.mark_published(log, slot);
        }
        self.slots.store_used(&self.words);
        self.words.clear();
        if let Some(record) = &mut self.record {
            record.published(&self.pushed, self.held.free(), self.used);
        }
        self.pushed.clear();
        if let Some(log) = &self.log {
            DirtyLog::order();
            self.mark_published(log, slot);
        }
        self.events.wants_call(self.used)
    }

    // --- notifications ---------------------------------------------------------------------------

    /// What was published before counts for no decision to notify any more: the driver may not
    /// have heard of it.
    pub fn forget_notifications(&mut self) {
        self.events.forget_calls();
    }

    /// Asks the driver for a kick when it makes more than the next `left` chains available, then
    /// looks once more; `true` if it has done so already, so that no kick may come for it.
    ///
    /// Where chains end that were not made available yet is not known. So a kick comes for the next
    /// one, though there may be no more than `left` with it.
    pub fn enable_kicks(&mut self, left: u16) -> Result<bool, RingError> {
        self.look();
        let written = self.events.ask_for_kick(self.seen);
        self.mark_device_area(written);
        Ok(self.available()? > left)
    }

    /// Tells the driver that the device looks by itself.
    pub fn disable_kicks(&mut self) {
        let written = self.events.ask_for_no_kick();
        self.mark_device_area(written);
    }

    fn mark_device_area(&self, written: bool) {
        if let Some(log) = self.log.as_ref().filter(|_| written) {
            DirtyLog::order();
            log.mark_device_area();
        }
    }

    // --- what it is ------------------------------------------------------------------------------

    /// The table of memory that chains are looked up in.
    #[inline]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// The place of the next descriptor to pop.
    pub fn next_available(&self) -> PackedIndex {
        self.available
    }

    /// The place of the next used descriptor.
    pub fn next_used(&self) -> PackedIndex {
        self.used
    }
}

impl PackedLayout {
    /// The descriptors and the two event areas.
    fn parts(&self) -> [RingPart; 3] {
        let (read, write) = (Access::DeviceReadable, Access::DeviceWritable);
        [
            ("descriptor ring", self.descriptors, DESC_LEN * usize::from(self.size), write),
            ("driver event area", self.driver_area, EVENT_AREA, read),
            ("device event area", self.device_area, EVENT_AREA, write),
        ]
        .map(|(name, at, len, access)| RingPart { name, at, len, access })
    }
}

impl Parts {
    fn find(memory: &Memory, layout: &PackedLayout) -> Result<Self, StartError> {
        let [descriptors, driver_area, device_area] = layout.parts();
        Ok(Self {
            slots: Slots { window: descriptors.find(memory, 16)?, size: layout.size },
            driver_area: driver_area.find(memory, 4)?,
            device_area: device_area.find(memory, 4)?,
        })
    }

    fn private(layout: &PackedLayout) -> io::Result<Self> {
        let window = Window::private(DESC_LEN * usize::from(layout.size))?;
        Ok(Self {
            slots: Slots { window, size: layout.size },
            driver_area: Window::private(EVENT_AREA)?,
            device_area: Window::private(EVENT_AREA)?,
        })
    }
}
