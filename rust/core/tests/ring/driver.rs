//! The driver's side of a split virtqueue, written from VIRTIO 1.3, "Split Virtqueues". It can
//! behave, and it can put anything anywhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::{RingError, SplitLayout, SplitRing};

use crate::guest::{Guest, user};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Where rings are laid out.
pub const RING: u64 = 0x10_0000;
/// Room for indirect tables.
pub const TABLES: u64 = 0x20_0000;
/// Room for buffers.
pub const DATA: u64 = 0x60_0000;
/// Past the last byte of guest memory.
pub const END: u64 = 0xe1_0000;

/// A descriptor as it lies in memory: 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub at: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub at: u64,
    pub len: u32,
    pub writable: bool,
}

/// How a chain is written down.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// In the descriptor table.
    Direct,
    /// This many descriptors in the table, the others in an indirect table at an address.
    Indirect(usize, u64),
}

/// A split virtqueue's driver.
pub struct Driver {
    pub guest: Arc<Guest>,
    pub size: u16,
    pub event_idx: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// Next available index to fill, and what the device was told.
    next: u16,
    exposed: u16,
    /// Next used index to look at.
    seen: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl Descriptor {
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// 13 MiB in three regions without a gap, whose borders cut an indirect table and a buffer.
pub fn guest() -> Arc<Guest> {
    let cuts = [RING, TABLES + 0x20, DATA + 0x10, END];
    Guest::new(&cuts.windows(2).map(|cut| (cut[0], cut[1] - cut[0])).collect::<Vec<_>>())
}

impl Driver {
    /// An empty ring whose indices stand at `start`.
    pub fn new(guest: &Arc<Guest>, size: u16, event_idx: bool, start: u16) -> Self {
        let n = u64::from(size);
        let available = RING + 16 * n;
        let used = (available + 6 + 2 * n).next_multiple_of(4);
        guest.write(RING, &vec![0; (used + 6 + 8 * n - RING) as usize]);
        guest.store_u16(available + 2, start, Ordering::Relaxed);
        guest.store_u16(used + 2, start, Ordering::Relaxed);
        Self {
            guest: Arc::clone(guest),
            size,
            event_idx,
            descriptors: RING,
            available,
            used,
            next: start,
            exposed: start,
            seen: start,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    pub fn layout(&self, indirect: bool) -> SplitLayout {
        SplitLayout {
            size: self.size,
            descriptors: user(self.descriptors),
            available: user(self.available),
            used: user(self.used),
            indirect,
            event_idx: self.event_idx,
        }
    }

    /// The device's side of this ring, with indirect descriptors.
    pub fn start_device(&self, base: u16) -> SplitRing {
        SplitRing::start(&self.guest.device, self.layout(true), base).unwrap()
    }

    /// Writes one descriptor of the table.
    pub fn put(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor { at, len, flags, next };
        self.guest.write(self.descriptors + 16 * u64::from(index), &descriptor.bytes());
    }

    /// Writes an indirect table.
    pub fn put_table(&self, at: u64, table: &[Descriptor]) {
        for (index, descriptor) in (0_u64..).zip(table) {
            self.guest.write(at + 16 * index, &descriptor.bytes());
        }
    }

    /// Fills the next entry of the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.next % self.size);
        self.guest.store_u16(slot, head, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Makes one chain available that begins at `head`, at once.
    pub fn submit(&mut self, head: u16) {
        self.offer(head);
        self.expose();
    }

    /// Whether so many descriptors are free.
    pub fn has_room(&self, descriptors: usize) -> bool {
        self.free.len() >= descriptors
    }

    /// The head that the next chain gets.
    pub fn next_head(&self) -> u16 {
        *self.free.last().unwrap()
    }

    /// Writes a chain down and fills an entry of the available ring.
    pub fn add(&mut self, pieces: &[Piece], form: Form) -> u16 {
        let (direct, table) = match form {
            Form::Direct => (pieces.len(), None),
            Form::Indirect(direct, at) => (direct, Some(at)),
        };
        let count = direct + usize::from(table.is_some());
        let taken = self.free.split_off(self.free.len() - count);
        let taken: Vec<u16> = taken.into_iter().rev().collect();
        for (place, piece) in pieces[..direct].iter().enumerate() {
            let next = taken.get(place + 1).copied();
            self.put(taken[place], piece.at, piece.len, flags(piece, next), next.unwrap_or(0));
        }
        if let Some(at) = table {
            let table = chain_of(&pieces[direct..]);
            self.put_table(at, &table);
            self.put(taken[direct], at, 16 * table.len() as u32, INDIRECT, 0xffff);
        }
        let head = taken[0];
        self.chains.insert(head, taken);
        self.offer(head);
        head
    }

    /// Shows the device what was added; whether it wants a kick.
    ///
    /// "Available Buffer Notification Suppression".
    pub fn expose(&mut self) -> bool {
        let (old, new) = (self.exposed, self.next);
        self.guest.store_u16(self.available + 2, new, Ordering::Release);
        self.exposed = new;
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.used + 4 + 8 * u64::from(self.size);
            let event = self.guest.load_u16(event, Ordering::Relaxed);
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        old != new && self.guest.load_u16(self.used, Ordering::Relaxed) & 1 == 0
    }

    /// Asks to be notified of the next used buffer; `true` if there is one already.
    ///
    /// "Used Buffer Notification Suppression".
    pub fn arm(&self) -> bool {
        if self.event_idx {
            self.set_used_event(self.seen);
        } else {
            self.guest.store_u16(self.available, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.used_index() != self.seen
    }

    /// Asks not to be notified; with event indices there is no such word.
    pub fn disarm(&self) {
        if !self.event_idx {
            self.guest.store_u16(self.available, 1, Ordering::Relaxed);
        }
    }

    pub fn set_used_event(&self, event: u16) {
        let at = self.available + 4 + 2 * u64::from(self.size);
        self.guest.store_u16(at, event, Ordering::Relaxed);
    }

    pub fn used_index(&self) -> u16 {
        self.guest.load_u16(self.used + 2, Ordering::Acquire)
    }

    /// Takes what was used: (head, bytes written), and frees the descriptors.
    pub fn collect(&mut self) -> Vec<(u32, u32)> {
        let mut entries = Vec::new();
        while self.used_index() != self.seen {
            let entry = self.used + 4 + 8 * u64::from(self.seen % self.size);
            let bytes = self.guest.read(entry, 8);
            let word = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let head = word(0);
            let chain = u16::try_from(head).ok().and_then(|head| self.chains.remove(&head));
            self.free.extend(chain.into_iter().flatten().rev());
            entries.push((head, word(4)));
            self.seen = self.seen.wrapping_add(1);
        }
        entries
    }

    pub fn exposed(&self) -> u16 {
        self.exposed
    }

    pub fn seen(&self) -> u16 {
        self.seen
    }
}

/// The pieces as a table of descriptors, each leading to the next.
pub fn chain_of(pieces: &[Piece]) -> Vec<Descriptor> {
    let places = 1..=pieces.len() as u16;
    let entries = places.zip(pieces).map(|(next, piece)| {
        let next = (usize::from(next) < pieces.len()).then_some(next);
        let flags = flags(piece, next);
        Descriptor { at: piece.at, len: piece.len, flags, next: next.unwrap_or(0xffff) }
    });
    entries.collect()
}

fn flags(piece: &Piece, next: Option<u16>) -> u16 {
    let write = if piece.writable { WRITE } else { 0 };
    write | if next.is_some() { NEXT } else { 0 }
}

/// Looks at the available index and pops one chain.
pub fn pop(ring: &mut SplitRing) -> Result<Option<(u16, Buffers)>, RingError> {
    let mut buffers = Buffers::default();
    ring.available()?;
    Ok(ring.pop(&mut buffers)?.map(|head| (head, buffers)))
}

/// What the driver wrote into a chain.
pub fn readable(buffers: &Buffers) -> Vec<u8> {
    let mut bytes = vec![0; buffers.readable().len() as usize];
    assert_eq!(buffers.readable().read_at(0, &mut bytes), bytes.len());
    bytes
}
