//! The split virtqueue, device side.
//!
//! Laws:
//! - Each value that the driver wrote is read once into a local, and the local is checked.
//! - A malformed chain is an error and never a shorter chain; after an error the ring is not used
//!   again until it is stopped and started anew.
//! - The device's own indices live here. The used index in guest memory is written, never read.
//!
//! VIRTIO 1.3, "Split Virtqueues".

use std::collections::VecDeque;
use std::io;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chain::{Chain, DESC_INDIRECT, DESC_LEN, DESC_NEXT, Descriptor, Origin, TableForm};
use super::indirect::Tables;
use super::part::{RingPart, StartError};
use super::record::Unfinished;
use super::split_areas::{Areas, INDEX};
use super::split_record::SplitRecord;
use super::used_log::{LoggedPart, UsedLog};
use super::{MAX_CHAIN, RingError};
use crate::address::UserAddr;
use crate::memory::{Access, Buffers, DirtyLog, Memory, Window};

/// Where a ring's three parts are, in the front-end's address space.
#[derive(Clone, Copy, Debug)]
pub struct SplitLayout {
    /// Entries: a power of two, at most 32768.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: UserAddr,
    /// Available ring.
    pub available: UserAddr,
    /// Used ring.
    pub used: UserAddr,
    /// Indirect descriptors were negotiated.
    pub indirect: bool,
    /// Event indices were negotiated.
    pub event_idx: bool,
}

/// The three parts of a ring, mapped.
#[derive(Debug)]
struct Parts {
    descriptors: Window,
    available: Window,
    used: Window,
}

/// A running split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    layout: SplitLayout,
    mask: u16,
    descriptors: Window,
    areas: Areas,
    memory: Arc<Memory>,
    /// Next available index to pop.
    next_avail: u16,
    /// The available index as read last: entries before it are safe to read.
    seen_avail: u16,
    /// Nothing is popped from here on before the next look at the available index.
    batch_end: u16,
    /// Next used index to write.
    next_used: u16,
    /// The used index as published last.
    published: u16,
    /// One bit for each descriptor that heads a chain in flight.
    in_flight: Box<[u64]>,
    /// The heads that were popped last, each at its available index.
    popped: Box<[u16]>,
    tables: Tables,
    max_chain: u16,
    /// What outlives this process of the requests in flight.
    record: Option<SplitRecord>,
    /// What a process that died has left unfinished, oldest first: popped before anything new.
    unfinished: VecDeque<Unfinished>,
    /// Where the chain that was popped last comes from.
    origin: Origin,
    /// The number of the next chain, if there is no record.
    sequence: u64,
    /// Where writes to the used ring are noted.
    log: Option<LoggedPart>,
}

impl SplitRing {
    /// Finds the ring in `memory`, and looks at nothing of it before [`begin`](Self::begin):
    /// memory may be slow to answer.
    pub fn find(memory: &Arc<Memory>, layout: SplitLayout, base: u16) -> Result<Self, StartError> {
        Ok(Self::of_parts(memory, layout, base, Parts::find(memory, &layout)?))
    }

    /// Makes a ring that has no place yet, and gets one by [`move_to`](Self::move_to): it stands in
    /// zeroes of this process's own.
    pub fn apart(memory: &Arc<Memory>, layout: SplitLayout, base: u16) -> io::Result<Self> {
        Ok(Self::of_parts(memory, layout, base, Parts::private(&layout)?))
    }

    fn of_parts(memory: &Arc<Memory>, layout: SplitLayout, base: u16, parts: Parts) -> Self {
        let size = usize::from(layout.size);
        let Parts { descriptors, available, used } = parts;
        Self {
            layout,
            mask: layout.size - 1,
            descriptors,
            areas: Areas::new(available, used, layout.size, layout.event_idx),
            memory: Arc::clone(memory),
            next_avail: base,
            seen_avail: base,
            batch_end: base,
            next_used: base,
            published: base,
            in_flight: vec![0; size.div_ceil(64)].into(),
            // No head is so high: nothing was popped yet.
            popped: vec![u16::MAX; size].into(),
            tables: Tables::default(),
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
    pub fn with_record(mut self, record: Option<SplitRecord>) -> Self {
        self.record = record;
        self
    }

    /// Finds the ring in `memory` and takes it up; see [`begin`](Self::begin).
    pub fn start(memory: &Arc<Memory>, layout: SplitLayout, base: u16) -> Result<Self, StartError> {
        let mut ring = Self::find(memory, layout, base)?;
        // Without a record nothing can be wrong.
        let _ = ring.begin();
        Ok(ring)
    }

    /// Takes the ring up where it stands; returns the available index that it goes on from.
    ///
    /// The used index is read from the ring. If it differs from the base that the front-end named
    /// the ring goes on from it, as long as the driver's index fits it. Cloud Hypervisor names the
    /// driver's index as base on the first start, which would skip what the driver made available
    /// early; DPDK's virtio-user names 0 at each reconnection, wherever the ring stands; QEMU names
    /// the used index itself after a back-end that did not tell where it stopped.
    ///
    /// A record that knows of requests in flight goes before both: they come first, and the ring
    /// goes on behind them.
    ///
    /// # Errors
    /// The record cannot be that of this ring.
    pub fn begin(&mut self) -> Result<u16, RingError> {
        let (used, available) = (self.areas.used_index(), self.areas.available_index());
        if let Some(record) = &mut self.record {
            let unfinished = record.take_up(used, available).map_err(RingError::Record)?;
            if !unfinished.is_empty() {
                return Ok(self.go_on_behind(used, unfinished));
            }
        }
        if available.wrapping_sub(used) <= self.layout.size {
            self.next_avail = used;
        }
        let next = self.next_avail;
        (self.seen_avail, self.batch_end) = (next, next);
        (self.next_used, self.published) = (next, next);
        Ok(next)
    }

    /// Takes the ring up behind requests that were popped before.
    fn go_on_behind(&mut self, used: u16, unfinished: Vec<Unfinished>) -> u16 {
        // No more than the ring is long.
        let next = used.wrapping_add(unfinished.len() as u16);
        self.next_avail = next;
        (self.seen_avail, self.batch_end) = (next, next);
        (self.next_used, self.published) = (used, used);
        self.unfinished = unfinished.into();
        next
    }

    /// Chains that a process that died has left unfinished, and that were not popped again yet.
    pub fn unfinished(&self) -> u16 {
        self.unfinished.len() as u16
    }

    /// The heads of these, oldest first.
    pub fn unfinished_heads(&self) -> impl Iterator<Item = u16> + '_ {
        self.unfinished.iter().map(|request| request.head)
    }

    /// Takes the oldest of these without a look at it, to be pushed.
    pub fn take_unfinished(&mut self) -> Option<u16> {
        let head = self.unfinished.pop_front()?.head;
        self.flip_in_flight(head);
        Some(head)
    }

    /// Whether the requests in flight are recorded.
    pub fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// Where the chain that was popped last comes from.
    #[inline]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Goes on in another table of memory. On an error the ring still stands in the old one.
    pub fn move_to(&mut self, memory: &Arc<Memory>) -> Result<(), StartError> {
        self.stand_in(Parts::find(memory, &self.layout)?, memory);
        self.find_log();
        Ok(())
    }

    /// The parts of the ring once more, for who waits for their pages.
    pub fn windows(&self) -> Vec<Window> {
        let parts = Parts::find(&self.memory, &self.layout);
        parts.map_or_else(
            |_| Vec::new(),
            |parts| vec![parts.descriptors, parts.available, parts.used],
        )
    }

    /// Lets go of guest memory: the ring stands in zeroes of this process's own from now on, which
    /// no driver sees. Where it stood in the available ring stays known.
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
        self.descriptors = parts.descriptors;
        self.areas.move_to(parts.available, parts.used);
        self.memory = Arc::clone(memory);
    }

    /// Its parts, as the front-end has told where they are.
    pub fn parts(&self) -> [RingPart; 3] {
        self.layout.parts()
    }

    /// How many chains there are to pop: those of a process that died, and those that the driver has
    /// made available.
    #[inline]
    pub fn available(&mut self) -> Result<u16, RingError> {
        let available = self.areas.available_index();
        let ahead = available.wrapping_sub(self.next_avail);
        let (next, size) = (self.next_avail, self.layout.size);
        if ahead > size {
            return Err(RingError::IndexJump { available, next, size });
        }
        self.seen_avail = available;
        self.batch_end = available;
        // Together they are no more than the ring is long: both are available and not used.
        Ok(ahead.saturating_add(self.unfinished()))
    }

    /// Pops one of the chains that [`available`](Self::available) counted, into `buffers`;
    /// returns its head. `None`: that many have been popped, or there is so much to do for
    /// [`finish_walks`](Self::finish_walks) that it comes first.
    #[inline]
    pub fn pop(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, RingError> {
        if let Some(&first) = self.unfinished.front() {
            return self.pop_unfinished(first, buffers).map(Some);
        }
        if self.next_avail == self.batch_end {
            return Ok(None);
        }
        let head = self.areas.head(self.next_avail);
        if head > self.mask {
            return Err(RingError::BadHead { head, size: self.layout.size });
        }
        if self.is_in_flight(head) {
            return Err(RingError::HeadInFlight(head));
        }
        buffers.begin(&self.memory);
        self.walk(head, buffers)?;
        self.flip_in_flight(head);
        self.popped[usize::from(self.next_avail & self.mask)] = head;
        self.next_avail = self.next_avail.wrapping_add(1);
        let sequence = match &mut self.record {
            Some(record) => record.popped(head),
            None => self.sequence,
        };
        self.sequence = sequence.wrapping_add(1);
        self.origin = Origin { sequence, resubmitted: false };
        Ok(Some(head))
    }

    /// Pops the oldest of the chains that a process that died has left unfinished.
    #[cold]
    fn pop_unfinished(
        &mut self,
        Unfinished { sequence, head }: Unfinished,
        buffers: &mut Buffers,
    ) -> Result<u16, RingError> {
        buffers.begin(&self.memory);
        self.walk(head, buffers)?;
        self.unfinished.pop_front();
        self.flip_in_flight(head);
        self.origin = Origin { sequence, resubmitted: true };
        Ok(head)
    }

    /// Ends the walks of chains whose indirect tables lie in memory that is granted on demand:
    /// the tables are read by one call. `popped`: all chains popped since the last call, in order.
    /// To be called after a batch was popped from memory [of Xen](Memory::needs_resolving).
    ///
    /// # Errors
    /// The number of good chains before a bad one, and what is bad. That one and those behind it
    /// are to be put back.
    pub fn finish_walks<'a>(
        &mut self,
        popped: impl Iterator<Item = (u16, &'a mut Buffers)>,
    ) -> Result<(), (usize, RingError)> {
        self.tables.walk(popped)
    }

    /// Chains that [`available`](Self::available) counted last and that were not popped.
    pub fn seen(&self) -> u16 {
        self.seen_avail.wrapping_sub(self.next_avail).saturating_add(self.unfinished())
    }

    /// Puts back the chain that was popped last of those not put back: it stays available.
    pub fn unpop(&mut self, head: u16) {
        if let Some(record) = &self.record {
            record.unpopped(head);
        }
        self.flip_in_flight(head);
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    /// Puts back a chain that [came again](Origin::resubmitted), in front of all others.
    pub fn unpop_unfinished(&mut self, head: u16, sequence: u64) {
        self.flip_in_flight(head);
        self.unfinished.push_front(Unfinished { sequence, head });
    }

    /// The head of the chain that was popped last, if it is in flight.
    pub fn last_popped(&self) -> Option<u16> {
        let head = self.popped[usize::from(self.next_avail.wrapping_sub(1) & self.mask)];
        (head <= self.mask && self.is_in_flight(head)).then_some(head)
    }

    /// The heads of all chains in flight.
    pub fn heads_in_flight(&self) -> Vec<u16> {
        (0..self.layout.size).filter(|&head| self.is_in_flight(head)).collect()
    }

    /// Walks a chain that is in flight once more: whoever popped it does not give it back.
    ///
    /// # Errors
    /// The driver has changed the chain meanwhile, and this is wrong with it now.
    pub fn walk_again(&mut self, head: u16, buffers: &mut Buffers) -> Result<(), RingError> {
        buffers.begin(&self.memory);
        self.walk(head, buffers)?;
        self.tables.walk(iter::once((head, buffers))).map_err(|(_, error)| error)
    }

    /// Writes a used element. The driver does not see it before [`publish`](Self::publish).
    #[inline]
    pub fn push(&mut self, head: u16, written: u32) {
        self.flip_in_flight(head);
        if let Some(record) = &mut self.record {
            record.pushed(head);
        }
        self.areas.store_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all elements pushed since the last call, at once; returns whether it
    /// wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.next_used == self.published {
            return false;
        }
        let first = self.published;
        if let Some(log) = &self.log {
            // A process that dies behind the next store leaves marks that are nearly always there.
            self.mark_published(log, first);
        }
        self.areas.publish(self.next_used);
        self.published = self.next_used;
        if let Some(record) = &mut self.record {
            record.published(self.next_used);
        }
        if let Some(log) = &self.log {
            DirtyLog::order();
            self.mark_published(log, first);
        }
        self.areas.wants_call(self.next_used)
    }

    /// Has writes to the used ring noted from now on, or no more.
    pub fn set_log(&mut self, log: Option<UsedLog>) {
        let [.., used] = Parts::lengths(self.layout.size);
        self.log = log.map(|log| LoggedPart::new(log, used));
        self.find_log();
    }

    fn find_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.find(&self.memory);
        }
    }

    /// Marks the used index, and the elements from the one numbered `first` on.
    fn mark_published(&self, log: &LoggedPart, first: u16) {
        log.mark(INDEX, 2);
        for (at, len) in self.areas.elements_at(first, self.next_used.wrapping_sub(first)) {
            log.mark(at, len);
        }
    }

    /// What was published before counts for no decision to notify any more: the driver may not
    /// have heard of it.
    pub fn forget_notifications(&mut self) {
        self.areas.forget_calls();
    }

    /// Asks the driver for a kick when it makes more than the next `left` chains available, then
    /// looks once more; `true` if it has done so already, so that no kick may come for it.
    pub fn enable_kicks(&mut self, left: u16) -> Result<bool, RingError> {
        // Chains that come again are none of those that the driver makes available.
        let event = self.next_avail.wrapping_add(left.saturating_sub(self.unfinished()));
        self.areas.ask_for_kick(event);
        if let Some(log) = &self.log {
            DirtyLog::order();
            log.mark(self.areas.event_at(), 2);
        }
        Ok(self.available()? > left)
    }

    /// Tells the driver that the device looks by itself.
    pub fn disable_kicks(&mut self) {
        if self.areas.ask_for_no_kick()
            && let Some(log) = &self.log
        {
            DirtyLog::order();
            log.mark(self.areas.event_at(), 2);
        }
    }

    /// The table of memory that chains are looked up in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// The next available index: what GET_VRING_BASE reports once all requests are back.
    pub fn next_available(&self) -> u16 {
        self.next_avail
    }

    /// Chains popped and not pushed.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.iter().map(|word| word.count_ones()).sum()
    }

    #[inline]
    fn is_in_flight(&self, head: u16) -> bool {
        self.in_flight[usize::from(head / 64)] >> (head % 64) & 1 != 0
    }

    #[inline]
    fn flip_in_flight(&mut self, head: u16) {
        self.in_flight[usize::from(head / 64)] ^= 1 << (head % 64);
    }

    /// Walks the chain at `head` once, from descriptor to descriptor.
    #[inline]
    fn walk(&mut self, head: u16, buffers: &mut Buffers) -> Result<(), RingError> {
        let mut chain = Chain::new(head, self.max_chain, TableForm::Linked);
        let mut index = head;
        loop {
            let descriptor = self.descriptor(index);
            if descriptor.flags & DESC_INDIRECT != 0 {
                return self.walk_table(descriptor, chain, buffers);
            }
            chain.add(descriptor, buffers)?;
            if descriptor.flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if index > self.mask {
                let table = u32::from(self.layout.size);
                return Err(RingError::BadNext { head, next: index, table });
            }
        }
    }

    /// Reads the indirect table that ends a chain, and walks it unless it is to be read later.
    fn walk_table(
        &mut self,
        outer: Descriptor,
        chain: Chain,
        buffers: &mut Buffers,
    ) -> Result<(), RingError> {
        if !self.layout.indirect || outer.flags & DESC_NEXT != 0 {
            return Err(RingError::BadIndirect { head: chain.head });
        }
        if let Some(table) = self.tables.read(&self.memory, outer, chain, buffers)? {
            return chain.walk_table(table, buffers);
        }
        if self.tables.is_full() {
            self.batch_end = self.next_avail.wrapping_add(1);
        }
        Ok(())
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        let at = DESC_LEN * usize::from(index);
        let table = &self.descriptors;
        Descriptor::new(
            table.load_u64(at, Ordering::Relaxed),
            table.load_u64(at + 8, Ordering::Relaxed),
        )
    }
}

impl SplitLayout {
    /// The descriptor table, the available ring and the used ring.
    fn parts(&self) -> [RingPart; 3] {
        let (read, write) = (Access::DeviceReadable, Access::DeviceWritable);
        let [descriptors, available, used] = Parts::lengths(self.size);
        [
            ("descriptor table", self.descriptors, descriptors, read),
            ("available ring", self.available, available, read),
            ("used ring", self.used, used, write),
        ]
        .map(|(name, at, len, access)| RingPart { name, at, len, access })
    }
}

impl Parts {
    fn find(memory: &Memory, layout: &SplitLayout) -> Result<Self, StartError> {
        let [descriptors, available, used] = layout.parts();
        Ok(Self {
            descriptors: descriptors.find(memory, 16)?,
            available: available.find(memory, 2)?,
            used: used.find(memory, 4)?,
        })
    }

    fn private(layout: &SplitLayout) -> io::Result<Self> {
        let [descriptors, available, used] = Self::lengths(layout.size).map(Window::private);
        Ok(Self { descriptors: descriptors?, available: available?, used: used? })
    }

    fn lengths(size: u16) -> [usize; 3] {
        let [available, used] = Areas::lengths(size);
        [DESC_LEN * usize::from(size), available, used]
    }
}
