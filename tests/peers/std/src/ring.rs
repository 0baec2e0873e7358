//! A block driver on one split virtqueue: VIRTIO 1.3, "Split Virtqueues" and "Block Device".

use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use vhost::vhost_user::message::VhostUserVringAddrFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::Guest;

pub const SECTOR: u64 = 512;
/// Far longer than any answer takes.
const LIMIT_MS: i32 = 10_000;
/// A request's descriptors, and the room for its header and status.
const DESCRIPTORS: u16 = 3;
const ROOM: u64 = 32;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// What lies in a status byte that nobody has written.
const NO_STATUS: u8 = 0xa5;

/// What a request does.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// A ring of 64 entries from a guest address on, and its three event descriptors.
pub struct Ring<'a> {
    guest: &'a Guest,
    at: u64,
    available: u16,
    used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
}

/// Waits until an event descriptor was signalled, and clears it; `false` if it was not in time.
pub fn wait(event: &EventFd) -> bool {
    let epoll = Epoll::new().unwrap();
    let readable = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), readable).unwrap();
    let mut events = [EpollEvent::default()];
    epoll.wait(LIMIT_MS, &mut events).unwrap() == 1 && event.read().is_ok()
}

impl<'a> Ring<'a> {
    pub const SIZE: u16 = 64;
    /// Bytes of guest memory that a ring and its headers take.
    pub const BYTES: u64 = 0x2000;

    pub fn new(guest: &'a Guest, at: u64) -> Self {
        guest.write(at, &[0; Self::BYTES as usize]);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call, error) = (event(), event(), event());
        Self { guest, at, available: 0, used: 0, kick, call, error }
    }

    fn available_at(&self) -> u64 {
        self.at + 0x400
    }

    fn used_at(&self) -> u64 {
        self.at + 0x600
    }

    fn header_at(&self, slot: u16) -> u64 {
        self.at + 0x1000 + ROOM * u64::from(slot)
    }

    /// All messages that start the ring and enable it.
    pub fn start(&self, frontend: &mut Frontend, index: usize, base: u16) -> vhost::Result<()> {
        frontend.set_vring_num(index, Self::SIZE)?;
        frontend.set_vring_addr(index, &self.places())?;
        frontend.set_vring_base(index, base)?;
        frontend.set_vring_err(index, &self.error)?;
        frontend.set_vring_call(index, &self.call)?;
        frontend.set_vring_kick(index, &self.kick)?;
        frontend.set_vring_enable(index, true)
    }

    pub fn places(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: Self::SIZE,
            queue_size: Self::SIZE,
            flags: VhostUserVringAddrFlags::empty().bits(),
            desc_table_addr: self.guest.host(self.at),
            used_ring_addr: self.guest.host(self.used_at()),
            avail_ring_addr: self.guest.host(self.available_at()),
            log_addr: None,
        }
    }

    /// Makes a request available whose data lies at `data`; `slot` names it, below 21.
    pub fn submit(&mut self, slot: u16, kind: Kind, sector: u64, data: u64, len: u32) {
        let header = self.header_at(slot);
        let mut bytes = [0; 17];
        bytes[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
        bytes[16] = NO_STATUS;
        self.guest.write(header, &bytes);
        let head = DESCRIPTORS * slot;
        let (data_flags, status) = match kind {
            Kind::Read => (NEXT | WRITE, head + 2),
            Kind::Write | Kind::Flush => (NEXT, head + 2),
        };
        let first = if len == 0 { status } else { head + 1 };
        self.put(head, header, 16, NEXT, first);
        self.put(head + 1, data, len, data_flags, status);
        self.put(status, header + 16, 1, WRITE, 0);
        let entry = self.available_at() + 4 + 2 * u64::from(self.available % Self::SIZE);
        self.guest.write(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.available_at() + 2);
        self.guest.0.store(self.available.to_le(), index, Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
    }

    /// Kicks, whether the device wants it or not, and waits for `count` answers: (slot, status,
    /// bytes written) in the order of the used ring.
    pub fn run(&mut self, count: usize) -> Vec<(u16, u8, u32)> {
        self.kick.write(1).unwrap();
        let mut answers = Vec::new();
        while answers.len() < count {
            if self.used_index() == self.used {
                assert!(wait(&self.call), "{} of {count} answers came", answers.len());
                continue;
            }
            let entry = self.used_at() + 4 + 8 * u64::from(self.used % Self::SIZE);
            let bytes = self.guest.read(entry, 8);
            let word = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let slot = u16::try_from(word(0)).unwrap() / DESCRIPTORS;
            answers.push((slot, self.guest.read(self.header_at(slot) + 16, 1)[0], word(4)));
            self.used = self.used.wrapping_add(1);
        }
        answers
    }

    /// The used index in memory.
    pub fn used_index(&self) -> u16 {
        let index = GuestAddress(self.used_at() + 2);
        u16::from_le(self.guest.0.load(index, Ordering::Acquire).unwrap())
    }

    fn put(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.guest.write(self.at + 16 * u64::from(index), &bytes);
    }
}
