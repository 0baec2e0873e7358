//! The record of a packed ring's requests in flight, in memory that outlives this process.
//!
//! ```text
//! header   features u64 | version u16 | entries u16 | first free u16 | old first free u16
//!          used u16 | old used u16 | used wrap u8 | old used wrap u8 | -
//! entry    in flight u8 | - | next u16 | last u16 | count u16 | counter u64
//!          id u16 | flags u16 | length u32 | address u64       one for each descriptor
//! ```
//!
//! The driver's descriptors are overwritten by used ones, so the record has copies of them: the
//! [lists](super::held) of chains in flight and of free entries.
//!
//! Laws:
//! - What is read here was written by a process that died, or by a front-end that means harm. It is
//!   read once, when the ring is taken up, and checked. Later the record is only written.
//! - Fields that belong together are stored by one store, in the order that the methods say: so a
//!   crash between any two stores is harmless. A killed process has done all its stores up to one, in
//!   program order: `Release` keeps them in it.
//! - What is given back is published by one store to the ring: that of the first used descriptor. Up
//!   to it the old place and the old free list count, from it on the new ones.
//!
//! QEMU "Vhost-user Protocol", "Inflight I/O tracking", packed virtqueue.

use std::sync::atomic::Ordering;

use super::held::{Entry, Held};
use super::packed_slots::Slots;
use super::record::{RecordError, Unfinished, VERSION};
use crate::memory::{InflightFile, Window};
use crate::ring_position::PackedIndex;

const HEADER: usize = 32;
const ENTRY: usize = 32;

/// Where fields are that are stored together: from the start of the record, and of an entry.
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_FREE: usize = 12;
const AT_USED: usize = 16;
const STATE: usize = 0;
const NEXT: usize = 2;
const COUNTER: usize = 8;
const DESCRIPTOR: usize = 16;
const ADDRESS: usize = 24;

/// One packed ring's record.
#[derive(Debug)]
pub struct PackedRecord {
    window: Window,
    size: u16,
    /// The number of the next request that is popped.
    sequence: u64,
    /// The first free entry, and the place of the next used descriptor, as the record has them.
    free: u16,
    used: PackedIndex,
}

/// What a process that died has left.
#[derive(Debug)]
pub(super) struct Left {
    /// Its chains in flight.
    pub(super) held: Held,
    /// The place of the next used descriptor.
    pub(super) used: PackedIndex,
    /// The requests in flight, oldest first.
    pub(super) unfinished: Vec<Unfinished>,
}

impl PackedRecord {
    /// Bytes of the record of a ring with `size` entries, in whole cache lines.
    pub fn bytes(size: u16) -> u64 {
        (HEADER as u64 + ENTRY as u64 * u64::from(size)).next_multiple_of(64)
    }

    /// The record of a ring with `size` entries at `at` of a file; `None` if it does not fit.
    pub fn find(file: &InflightFile, at: usize, size: u16) -> Option<Self> {
        let window = file.window(at, HEADER + ENTRY * usize::from(size))?;
        Some(Self { window, size, sequence: 0, free: 0, used: PackedIndex::INITIAL })
    }

    /// Forgets all: the driver that had these requests in flight has reset the device. A new record
    /// is not looked through for marks, and all of them are written before it counts.
    pub fn erase(&self) {
        self.window.store_u16(AT_VERSION, 0, Ordering::Release);
    }

    // --- what a process that died has left -------------------------------------------------------

    /// Takes the record up for a ring. A new one begins at `base`, where the front-end says that
    /// the next used descriptor is written; any other one knows better: no front-end can tell where
    /// a packed ring stands whose back-end has died.
    ///
    /// # Errors
    /// The record cannot be this ring's.
    pub(super) fn take_up(
        &mut self,
        base: PackedIndex,
        slots: &Slots,
    ) -> Result<Left, RecordError> {
        let number = |at| self.window.load_u16(at, Ordering::Acquire);
        let (version, recorded) = (number(AT_VERSION), number(AT_ENTRIES));
        if version > VERSION {
            return Err(RecordError::Version(version));
        }
        if version == 0 {
            return Ok(self.begin_anew(base));
        }
        if recorded != self.size {
            // Marks behind the entries that it speaks of are left over from a longer ring of before.
            if (0..recorded.min(self.size)).any(|entry| self.is_marked(entry)) {
                return Err(RecordError::Entries { recorded, size: self.size });
            }
            // Whatever ring it was of, all of its requests are done.
            return Ok(self.begin_anew(base));
        }
        self.recover(slots)
    }

    fn begin_anew(&mut self, used: PackedIndex) -> Left {
        let held = Held::new(self.size);
        // Of a ring of another length: as long as not all is written it is nobody's.
        self.window.store_u16(AT_VERSION, 0, Ordering::Release);
        for index in 0..self.size {
            self.store_state(index, false, held.entry(index));
        }
        self.window.store_u16(AT_ENTRIES, self.size, Ordering::Release);
        self.store_free(held.free());
        self.store_used(used);
        self.window.store_u16(AT_VERSION, VERSION, Ordering::Release);
        Left { held, used, unfinished: Vec::new() }
    }

    fn recover(&mut self, slots: &Slots) -> Result<Left, RecordError> {
        let (free, used) = self.place(slots)?;
        let (entries, marked) = self.entries();
        let id = |request: &Unfinished| {
            let last = entries.get(usize::from(entries[usize::from(request.head)].last));
            last.map_or(u16::MAX, |last| (last.high >> 32) as u16)
        };
        let chains: Vec<_> = marked.iter().map(|request| (id(request), request.head)).collect();
        let (held, live) = Held::of_lists(entries, free, &chains)?;
        let unfinished = marked.iter().zip(&chains).zip(&live);
        let mut unfinished: Vec<_> = unfinished
            .filter(|(_, live)| **live)
            .map(|((request, (id, _)), _)| Unfinished { head: *id, ..*request })
            .collect();
        unfinished.sort_unstable_by_key(|request| (request.sequence, request.head));
        // From here on things are stored, each of which leaves the record as good as it was.
        slots.hide_used(used, held.in_flight().map(|(_, count)| count).sum());
        for (request, _) in marked.iter().zip(&live).filter(|(_, live)| !**live) {
            self.unmark(request.head);
        }
        // In this order: as long as the two places differ, the ring says which of them counts, and so
        // which free list.
        self.store_free(free);
        self.store_used(used);
        Ok(Left { held, used, unfinished })
    }

    /// The first free entry, and the place of the next used descriptor. A publication that the
    /// driver has seen counts, and one that it has not does not.
    fn place(&self, slots: &Slots) -> Result<(u16, PackedIndex), RecordError> {
        let free = self.window.load_u32(AT_FREE, Ordering::Acquire);
        let used = self.window.load_u64(AT_USED, Ordering::Acquire);
        let place = |slot: u64, wrap: u64| {
            let (slot, wrap) = (slot as u16, wrap as u8);
            let index = PackedIndex { slot, wrap: wrap == 1 };
            let is_one = slot < self.size && wrap <= 1;
            is_one.then_some(index).ok_or(RecordError::Place { slot, size: self.size })
        };
        let (new, old) = (place(used, used >> 32)?, place(used >> 16, used >> 40)?);
        if new != old && !slots.is_available(old) {
            return Ok((free as u16, new));
        }
        Ok(((free >> 16) as u16, old))
    }

    /// Copies of all entries, and those that are marked as in flight. New requests are numbered
    /// behind the highest number that is there, of requests that are done too.
    fn entries(&mut self) -> (Vec<Entry>, Vec<Unfinished>) {
        let (mut entries, mut marked) = (Vec::with_capacity(self.size.into()), Vec::new());
        for head in 0..self.size {
            let word = |field| self.window.load_u64(entry(head) + field, Ordering::Acquire);
            let (state, sequence, descriptor) = (word(STATE), word(COUNTER), word(DESCRIPTOR));
            self.sequence = self.sequence.max(sequence.wrapping_add(1));
            entries.push(Entry {
                low: word(ADDRESS),
                high: descriptor.rotate_left(32),
                next: (state >> 16) as u16,
                last: (state >> 32) as u16,
                count: (state >> 48) as u16,
            });
            if state as u8 != 0 {
                marked.push(Unfinished { sequence, head });
            }
        }
        (entries, marked)
    }

    fn is_marked(&self, head: u16) -> bool {
        self.window.load_u8(entry(head) + STATE, Ordering::Acquire) != 0
    }

    // --- what happens while the ring runs --------------------------------------------------------

    /// The chain that begins at this entry is in flight from now on; returns its number. What is
    /// stored before the free list is of entries that are still free.
    #[inline]
    pub(super) fn popped(&mut self, held: &Held, first: u16) -> u64 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let head = held.entry(first);
        let mut index = first;
        for _ in 0..head.count {
            let Entry { low, high, next, .. } = *held.entry(index);
            self.store_word(index, ADDRESS, low);
            self.store_word(index, DESCRIPTOR, high.rotate_left(32));
            index = next;
        }
        self.store_word(first, COUNTER, sequence);
        self.store_state(first, true, head);
        self.store_free(held.free());
        sequence
    }

    /// The chain that begins at this entry was put back into the ring, and its entries are free
    /// again.
    pub(super) fn unpopped(&mut self, held: &Held, first: u16) {
        self.freed(held, first);
        self.store_free(held.free());
        self.unmark(first);
    }

    /// The entries of the chain that begins at this one are free again: to be
    /// [published](Self::publishes).
    #[inline]
    pub(super) fn freed(&self, held: &Held, first: u16) {
        let last = held.entry(first).last;
        let next = held.entry(last).next;
        self.window.store_u16(entry(last) + NEXT, next, Ordering::Release);
    }

    /// The chains that were [freed](Self::freed) are about to be published.
    #[inline]
    pub(super) fn publishes(&self, free: u16, used: PackedIndex) {
        let both = u32::from(free) | u32::from(self.free) << 16;
        self.window.store_u32(AT_FREE, both, Ordering::Release);
        self.window.store_u64(AT_USED, used_word(used, self.used), Ordering::Release);
    }

    /// The driver has been shown them: they are in flight no more.
    #[inline]
    pub(super) fn published(&mut self, freed: &[u16], free: u16, used: PackedIndex) {
        freed.iter().for_each(|&first| self.unmark(first));
        self.store_free(free);
        self.store_used(used);
    }

    // --- stores ----------------------------------------------------------------------------------

    #[inline]
    fn unmark(&self, first: u16) {
        self.window.store_u8(entry(first) + STATE, 0, Ordering::Release);
    }

    #[inline]
    fn store_state(&self, index: u16, in_flight: bool, of: &Entry) {
        let lists = u64::from(of.next) << 16 | u64::from(of.last) << 32 | u64::from(of.count) << 48;
        self.store_word(index, STATE, lists | u64::from(in_flight));
    }

    #[inline]
    fn store_word(&self, index: u16, field: usize, word: u64) {
        self.window.store_u64(entry(index) + field, word, Ordering::Release);
    }

    /// Stores the first free entry, as the old one too.
    #[inline]
    fn store_free(&mut self, free: u16) {
        self.free = free;
        let both = u32::from(free) | u32::from(free) << 16;
        self.window.store_u32(AT_FREE, both, Ordering::Release);
    }

    /// Stores the place of the next used descriptor, as the old one too.
    #[inline]
    fn store_used(&mut self, used: PackedIndex) {
        self.used = used;
        self.window.store_u64(AT_USED, used_word(used, used), Ordering::Release);
    }
}

#[inline]
fn used_word(new: PackedIndex, old: PackedIndex) -> u64 {
    let slots = u64::from(new.slot) | u64::from(old.slot) << 16;
    slots | u64::from(new.wrap) << 32 | u64::from(old.wrap) << 40
}

/// Where an entry begins. Indices are checked before they come here; a window checks again.
#[inline]
fn entry(index: u16) -> usize {
    HEADER + ENTRY * usize::from(index)
}
