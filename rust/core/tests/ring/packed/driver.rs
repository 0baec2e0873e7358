//! The driver's side of a packed virtqueue, written from VIRTIO 1.3, "Packed Virtqueues". It can
//! behave, and it can put anything anywhere. It counts descriptors from the start on: slot and wrap
//! counter follow from the count.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vhost_user_core::memory::Buffers;
use vhost_user_core::ring::{PackedLayout, PackedRing, Ring, RingError, RingLayout};
use vhost_user_core::ring_position::{PackedIndex, RingPosition};
use vhost_user_core::token::Token;

pub use crate::driver::{DATA, INDIRECT, NEXT, Piece, RING, TABLES, WRITE, guest};
use crate::guest::{Guest, user};

pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// What an event area asks for.
pub const ENABLE: u16 = 0;
pub const DISABLE: u16 = 1;
pub const DESC: u16 = 2;

/// How a chain is written down.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// In the ring, each piece in a slot.
    Direct,
    /// In an indirect table at an address.
    Indirect(u64),
}

/// A packed virtqueue's driver.
pub struct Driver {
    pub guest: Arc<Guest>,
    pub size: u16,
    pub event_idx: bool,
    pub descriptors: u64,
    pub driver_area: u64,
    pub device_area: u64,
    /// Descriptors written, shown to the device, and taken back, since the ring began.
    pub next: u64,
    pub exposed: u64,
    pub seen: u64,
    /// The flags of first descriptors that are not written yet: where, and what.
    hidden: Vec<(u64, u16)>,
    free: Vec<u16>,
    /// The slots that each chain in flight takes, by its id.
    chains: HashMap<u16, u16>,
}

impl Driver {
    /// An empty ring of which so many descriptors have been used already.
    pub fn new(guest: &Arc<Guest>, size: u16, event_idx: bool, start: u64) -> Self {
        let driver_area = RING + 16 * u64::from(size);
        let device_area = driver_area + 4;
        let mut ring = vec![0; 16 * usize::from(size) + 8];
        // What was used there says so, in the lap of its own.
        for count in start.saturating_sub(size.into())..start {
            let (slot, wrap) = place(count, size);
            let flags = if wrap { AVAIL | USED } else { 0 };
            let at = 16 * usize::from(slot) + 14;
            ring[at..at + 2].copy_from_slice(&flags.to_le_bytes());
        }
        guest.write(RING, &ring);
        Self {
            guest: Arc::clone(guest),
            size,
            event_idx,
            descriptors: RING,
            driver_area,
            device_area,
            next: start,
            exposed: start,
            seen: start,
            hidden: Vec::new(),
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    pub fn layout(&self) -> PackedLayout {
        PackedLayout {
            size: self.size,
            descriptors: user(self.descriptors),
            driver_area: user(self.driver_area),
            device_area: user(self.device_area),
            indirect: true,
            event_idx: self.event_idx,
            tables_are_readable: false,
        }
    }

    /// The device's side of this ring.
    pub fn start_device(&self) -> PackedRing {
        let (slot, wrap) = place(self.next, self.size);
        let used = PackedIndex { slot, wrap };
        PackedRing::find(&self.guest.device, self.layout(), used).unwrap()
    }

    /// The same behind the face of all formats, for a driver that wants its chains in order.
    pub fn start_in_order(&self) -> Ring {
        let (slot, wrap) = place(self.next, self.size);
        let at = PackedIndex { slot, wrap };
        let base = RingPosition::Packed { available: at, used: at };
        let layout = RingLayout::Packed(self.layout());
        Ring::find(&self.guest.device, &layout, base).unwrap().in_order(true)
    }

    /// Writes a descriptor that counts as number `count`; its flags are made available unless they
    /// are those of a chain's first.
    fn put(&mut self, count: u64, piece: (u64, u32, u16, u16), is_first: bool) {
        let (at, len, id, flags) = piece;
        let (slot, wrap) = place(count, self.size);
        let flags = flags | if wrap { AVAIL } else { USED };
        let to = self.descriptors + 16 * u64::from(slot);
        self.guest.write(to, &at.to_le_bytes());
        self.guest.write(to + 8, &len.to_le_bytes());
        self.guest.write(to + 12, &id.to_le_bytes());
        if is_first {
            self.hidden.push((to + 14, flags));
        } else {
            self.guest.store_u16(to + 14, flags, Ordering::Relaxed);
        }
    }

    pub fn room(&self) -> u16 {
        self.size - (self.next - self.seen) as u16
    }

    /// Writes a chain of descriptors as they are given, with these flags and the id in the last.
    pub fn add_raw(&mut self, id: u16, descriptors: &[(u64, u32, u16)]) {
        for (place, &(at, len, flags)) in descriptors.iter().enumerate() {
            let is_last = place + 1 == descriptors.len();
            let id = if is_last { id } else { 0xbad0 };
            self.put(self.next, (at, len, id, flags), place == 0);
            self.next += 1;
        }
        self.chains.insert(id, descriptors.len() as u16);
    }

    /// Writes a chain down; returns its id.
    pub fn add(&mut self, pieces: &[Piece], form: Form) -> u16 {
        let id = self.free.pop().unwrap();
        let write = |piece: &Piece| if piece.writable { WRITE } else { 0 };
        match form {
            Form::Direct => {
                let next = |place| if place + 1 < pieces.len() { NEXT } else { 0 };
                let descriptor = |(place, piece): (usize, &Piece)| {
                    (piece.at, piece.len, write(piece) | next(place))
                };
                let chain: Vec<_> = pieces.iter().enumerate().map(descriptor).collect();
                self.add_raw(id, &chain);
            }
            Form::Indirect(table) => {
                for (place, piece) in (0..).zip(pieces) {
                    let at = table + 16 * place;
                    self.guest.write(at, &piece.at.to_le_bytes());
                    self.guest.write(at + 8, &piece.len.to_le_bytes());
                    self.guest.write(at + 12, &0xdead_u16.to_le_bytes());
                    self.guest.write(at + 14, &write(piece).to_le_bytes());
                }
                self.add_raw(id, &[(table, 16 * pieces.len() as u32, INDIRECT)]);
            }
        }
        id
    }

    /// Shows the device what was added, all at once; whether it wants a kick.
    ///
    /// "Driver notifications".
    pub fn expose(&mut self) -> bool {
        while let Some((at, flags)) = self.hidden.pop() {
            self.guest.store_u16(at, flags, Ordering::Release);
        }
        let (old, new) = (self.exposed, self.next);
        self.exposed = new;
        fence(Ordering::SeqCst);
        let event = self.guest.load_u16(self.device_area, Ordering::Relaxed);
        match self.guest.load_u16(self.device_area + 2, Ordering::Relaxed) {
            ENABLE => new != old,
            DISABLE => false,
            _ => (old..new).any(|count| is_at(event, count, self.size)),
        }
    }

    /// Asks to be notified of the next used buffer; `true` if there is one already.
    pub fn arm(&self) -> bool {
        if self.event_idx {
            self.wish(DESC, self.event(self.seen));
        } else {
            self.wish(ENABLE, 0);
        }
        fence(Ordering::SeqCst);
        self.next_used().is_some()
    }

    pub fn disarm(&self) {
        self.wish(DISABLE, 0);
    }

    /// The event that means the descriptor with this number.
    pub fn event(&self, count: u64) -> u16 {
        let (slot, wrap) = place(count, self.size);
        slot | u16::from(wrap) << 15
    }

    pub fn wish(&self, flags: u16, event: u16) {
        self.guest.store_u16(self.driver_area, event, Ordering::Relaxed);
        self.guest.store_u16(self.driver_area + 2, flags, Ordering::Release);
    }

    fn next_used(&self) -> Option<u16> {
        let (slot, wrap) = place(self.seen, self.size);
        let at = self.descriptors + 16 * u64::from(slot);
        let flags = self.guest.load_u16(at + 14, Ordering::Acquire);
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        (avail == used && used == wrap).then_some(slot)
    }

    /// Takes what was used: (id, bytes written), and frees the descriptors.
    pub fn collect(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while let Some(slot) = self.next_used() {
            let bytes = self.guest.read(self.descriptors + 16 * u64::from(slot) + 8, 8);
            let len = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let id = u16::from_le_bytes(bytes[4..6].try_into().unwrap());
            let written = u16::from_le_bytes(bytes[6..].try_into().unwrap()) & WRITE != 0;
            assert_eq!(written, len > 0, "WRITE says whether anything was written");
            let slots = self.chains.remove(&id).expect("a chain that is in flight");
            self.seen += u64::from(slots);
            self.free.push(id);
            used.push((id, len));
        }
        used
    }
}

/// Where the descriptor with this number stands.
pub fn place(count: u64, size: u16) -> (u16, bool) {
    let size = u64::from(size);
    ((count % size) as u16, (count / size).is_multiple_of(2))
}

fn is_at(event: u16, count: u64, size: u16) -> bool {
    let (slot, wrap) = place(count, size);
    event == slot | u16::from(wrap) << 15
}

/// Looks at the ring and pops one chain.
pub fn pop(ring: &mut PackedRing) -> Result<Option<(Token, Buffers)>, RingError> {
    let mut buffers = Buffers::default();
    ring.available()?;
    Ok(ring.pop(&mut buffers)?.map(|token| (token, buffers)))
}
