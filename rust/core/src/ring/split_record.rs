//! The record of a split ring's requests in flight, in memory that outlives this process.
//!
//! ```text
//! header   features u64 | version u16 | entries u16 | last head u16 | used index u16
//! entry    in flight u8 | - | next u16 | counter u64          one for each descriptor
//! ```
//!
//! Laws:
//! - What is read here was written by a process that died, or by a front-end that means harm. It is
//!   read once, when the ring is taken up, and checked. Later the record is only written.
//! - The order of the stores is what makes a crash between any two of them harmless. A killed
//!   process has done all its stores up to one, in program order: `Release` keeps them in it.
//!
//! QEMU "Vhost-user Protocol", "Inflight I/O tracking", split virtqueue.

use std::sync::atomic::Ordering;

use super::record::{RecordError, Unfinished, VERSION};
use crate::memory::{InflightFile, Window};

const HEADER: usize = 16;
const ENTRY: usize = 16;

/// Where fields are: from the start of the record, and from the start of an entry.
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST_HEAD: usize = 12;
const AT_USED: usize = 14;
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// One split ring's record.
#[derive(Debug)]
pub struct SplitRecord {
    window: Window,
    size: u16,
    /// The number of the next request that is popped.
    sequence: u64,
    /// The head that was given back last.
    last_head: u16,
    /// The heads that were given back since the used index was published.
    unpublished: Vec<u16>,
}

impl SplitRecord {
    /// Bytes of the record of a ring with `size` entries, in whole cache lines.
    pub fn bytes(size: u16) -> u64 {
        (HEADER as u64 + ENTRY as u64 * u64::from(size)).next_multiple_of(64)
    }

    /// The record of a ring with `size` entries at `at` of a file; `None` if it does not fit.
    pub fn find(file: &InflightFile, at: usize, size: u16) -> Option<Self> {
        let window = file.window(at, HEADER + ENTRY * usize::from(size))?;
        let unpublished = Vec::with_capacity(size.into());
        Some(Self { window, size, sequence: 0, last_head: 0, unpublished })
    }

    /// Takes the record up for a ring that stands at these indices. Returns what was in flight, in
    /// the order in which it was popped.
    ///
    /// # Errors
    /// The record cannot be this ring's.
    pub fn take_up(&mut self, used: u16, available: u16) -> Result<Vec<Unfinished>, RecordError> {
        let number = |at| self.window.load_u16(at, Ordering::Acquire);
        let (version, recorded) = (number(AT_VERSION), number(AT_ENTRIES));
        let (last_head, old_used) = (number(AT_LAST_HEAD), number(AT_USED));
        if version > VERSION {
            return Err(RecordError::Version(version));
        }
        // Marks behind the entries that it speaks of are left over from a longer ring of before.
        let entries = if version == 0 { 0 } else { recorded.min(self.size) };
        let unfinished = self.marked(entries);
        if unfinished.is_empty() {
            // Whatever ring it was of, all of its requests are done.
            self.begin_anew(used);
            return Ok(unfinished);
        }
        if recorded != self.size {
            return Err(RecordError::Entries { recorded, size: self.size });
        }
        let unfinished = self.without_used(unfinished, last_head, old_used, used)?;
        let available = available.wrapping_sub(used);
        if unfinished.len() > usize::from(available) {
            let in_flight = unfinished.len().try_into().unwrap_or(u16::MAX);
            return Err(RecordError::TooMany { in_flight, available });
        }
        self.last_head = last_head;
        self.window.store_u16(AT_USED, used, Ordering::Release);
        Ok(unfinished)
    }

    /// All that is marked as in flight in so many entries, oldest first. New requests are numbered
    /// behind the highest number that is there, of requests that are done too.
    fn marked(&mut self, entries: u16) -> Vec<Unfinished> {
        let mut unfinished = Vec::new();
        for head in 0..entries {
            let sequence = self.window.load_u64(entry(head) + COUNTER, Ordering::Relaxed);
            self.sequence = self.sequence.max(sequence.wrapping_add(1));
            if self.is_marked(head) {
                unfinished.push(Unfinished { sequence, head });
            }
        }
        unfinished.sort_unstable_by_key(|request| (request.sequence, request.head));
        unfinished
    }

    /// Leaves out those that the driver has seen used, though they are still marked: the process
    /// died between the two.
    fn without_used(
        &self,
        unfinished: Vec<Unfinished>,
        last_head: u16,
        old_used: u16,
        used: u16,
    ) -> Result<Vec<Unfinished>, RecordError> {
        let size = self.size;
        let count = used.wrapping_sub(old_used);
        if count > size {
            return Err(RecordError::Used { recorded: old_used, used, size });
        }
        let mut is_used = vec![false; size.into()];
        let mut head = last_head;
        for _ in 0..count {
            let seen = is_used.get_mut(usize::from(head));
            if seen.is_none_or(|seen| std::mem::replace(seen, true)) {
                return Err(RecordError::Link { next: head, size });
            }
            head = self.window.load_u16(entry(head) + NEXT, Ordering::Acquire);
        }
        let (done, left): (Vec<_>, Vec<_>) =
            unfinished.into_iter().partition(|request| is_used[usize::from(request.head)]);
        done.iter().for_each(|request| self.unmark(request.head));
        Ok(left)
    }

    /// Forgets all: the driver that had these requests in flight has reset the device.
    pub fn erase(&self) {
        // In this order: a new record is not looked through for marks.
        (0..self.size).for_each(|head| self.unmark(head));
        self.window.store_u16(AT_VERSION, 0, Ordering::Release);
    }

    fn begin_anew(&mut self, used: u16) {
        (0..self.size).filter(|&head| self.is_marked(head)).for_each(|head| self.unmark(head));
        self.window.store_u16(AT_ENTRIES, self.size, Ordering::Release);
        self.window.store_u16(AT_LAST_HEAD, 0, Ordering::Release);
        self.window.store_u16(AT_USED, used, Ordering::Release);
        self.window.store_u16(AT_VERSION, VERSION, Ordering::Release);
    }

    /// The request at `head` is in flight from now on; returns its number.
    #[inline]
    pub fn popped(&mut self, head: u16) -> u64 {
        let (entry, sequence) = (entry(head), self.sequence);
        self.sequence = sequence.wrapping_add(1);
        self.window.store_u64(entry + COUNTER, sequence, Ordering::Release);
        self.window.store_u8(entry + IN_FLIGHT, 1, Ordering::Release);
        sequence
    }

    /// The request at `head` was put back into the ring.
    pub fn unpopped(&self, head: u16) {
        self.unmark(head);
    }

    /// The request at `head` is about to be given back: it joins those of the next publication.
    #[inline]
    pub fn pushed(&mut self, head: u16) {
        self.window.store_u16(entry(head) + NEXT, self.last_head, Ordering::Release);
        self.window.store_u16(AT_LAST_HEAD, head, Ordering::Release);
        self.last_head = head;
        self.unpublished.push(head);
    }

    /// The driver has been shown the used index: what was pushed is in flight no more.
    #[inline]
    pub fn published(&mut self, used: u16) {
        for &head in &self.unpublished {
            self.window.store_u8(entry(head) + IN_FLIGHT, 0, Ordering::Release);
        }
        self.unpublished.clear();
        self.window.store_u16(AT_USED, used, Ordering::Release);
    }

    fn is_marked(&self, head: u16) -> bool {
        self.window.load_u8(entry(head) + IN_FLIGHT, Ordering::Acquire) != 0
    }

    fn unmark(&self, head: u16) {
        self.window.store_u8(entry(head) + IN_FLIGHT, 0, Ordering::Release);
    }
}

/// Where an entry begins. Heads are checked before they come here; a window checks again.
#[inline]
fn entry(head: u16) -> usize {
    HEADER + ENTRY * usize::from(head)
}
