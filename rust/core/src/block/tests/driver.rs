//! A driver: it lays requests out in guest memory by writing to the memory's file, and looks at
//! the answers the same way. It shares nothing with the device's side but that file.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::address::{GuestAddr, UserAddr};
use crate::device::Device;
use crate::memory::{Extent, Memory, MemoryPolicy, Region};
use crate::request::{Batch, CompletionQueue, Doorbell, Request, Slot};
use crate::ring::{SplitLayout, SplitRing};
use crate::token::Token;

/// Where things are in the ring's region, which starts at guest address 0.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const TABLE: u64 = 0x1_0000;
const RING_REGION: u64 = 0x4_0000;

/// Entries of the ring.
const SIZE: u16 = 256;

/// Buffers lie in small regions that are next to each other for the guest and not in the file, so
/// that longer ones cross from one to the next.
const PIECE: u64 = 0x1000;
const PIECES: u64 = 400;
const BUFFERS: u64 = 0x100_0000;

/// What buffer memory holds before a request.
const CANARY: u8 = 0xa5;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A driver and the worker of its one queue.
pub(super) struct Driver {
    file: File,
    ring: SplitRing,
    available: u16,
    completions: Arc<CompletionQueue>,
    batch: Batch,
}

/// What came back for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The used element's length.
    pub(super) used: u32,
    /// The writable part, as it is now.
    pub(super) writable: Vec<u8>,
}

/// A buffer of a chain.
struct Buffer {
    at: u64,
    len: u32,
    writable: bool,
}

impl Answer {
    /// The last writable byte.
    pub(super) fn status(&self) -> u8 {
        *self.writable.last().expect("the request had room for a status")
    }

    /// Asserts that only a status was written, and this one.
    #[track_caller]
    pub(super) fn assert_only_status(&self, status: u8) {
        assert_eq!((self.status(), self.used), (status, 1));
        let data = &self.writable[..self.writable.len() - 1];
        assert!(data.iter().all(|&byte| byte == CANARY), "data was written");
    }

    /// Asserts that nothing at all was written.
    #[track_caller]
    pub(super) fn assert_empty(&self) {
        assert_eq!(self.used, 0);
        assert!(self.writable.iter().all(|&byte| byte == CANARY), "something was written");
    }

    /// The data of a read that went well.
    #[track_caller]
    pub(super) fn data(&self) -> &[u8] {
        let data = &self.writable[..self.writable.len() - 1];
        assert_eq!((self.status(), self.used as usize), (super::OK, data.len() + 1));
        data
    }
}

impl Driver {
    pub(super) fn new() -> Self {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(RING_REGION + PIECE * PIECES).unwrap();
        let region = |guest: u64, size: u64, offset: u64| {
            let fd: OwnedFd = file.try_clone().unwrap().into();
            let extent = Extent { guest: GuestAddr(guest), user: UserAddr(guest), size };
            Region::map(&MemoryPolicy::default(), extent, offset, fd).unwrap()
        };
        let mut regions = vec![region(0, RING_REGION, 0)];
        regions.extend((0..PIECES).map(|i| region(BUFFERS + i * PIECE, PIECE, offset_of(i))));
        let layout = SplitLayout {
            size: SIZE,
            descriptors: UserAddr(DESCRIPTORS),
            available: UserAddr(AVAILABLE),
            used: UserAddr(USED),
            event_idx: false,
            indirect: true,
        };
        let memory = Arc::new(Memory::new(regions).unwrap());
        let ring = SplitRing::start(&memory, layout, 0).unwrap();
        let completions = CompletionQueue::new(SIZE, Doorbell::new().unwrap());
        Self { file, ring, available: 0, completions, batch: Batch::default() }
    }

    /// Sends one request in two descriptors, one for each part, and has `device` handle it.
    pub(super) fn send(&mut self, device: &dyn Device, read: &[u8], writable: usize) -> Answer {
        self.send_cut(device, read, writable, &[])
    }

    /// As [`send`](Self::send), with descriptors ending at these offsets into the readable part
    /// followed by the writable part.
    pub(super) fn send_cut(
        &mut self,
        device: &dyn Device,
        read: &[u8],
        writable: usize,
        cuts: &[usize],
    ) -> Answer {
        let chain = self.lay_out(read, writable, cuts);
        self.make_available(&chain);
        self.work(device);
        self.answer(&chain)
    }

    /// Makes a request available again and again without laying it out anew, and has `device`
    /// handle it each time.
    pub(super) fn repeat(
        &mut self,
        device: &dyn Device,
        read: &[u8],
        writable: usize,
        mut go_on: impl FnMut(Answer) -> bool,
    ) {
        let chain = self.lay_out(read, writable, &[]);
        loop {
            self.make_available(&chain);
            self.work(device);
            if !go_on(self.answer(&chain)) {
                return;
            }
        }
    }

    /// Lays out a request, makes it available and pops it, as a worker would hand it over.
    pub(super) fn pop(&mut self, read: &[u8], writable: usize) -> Request {
        let chain = self.lay_out(read, writable, &[]);
        self.make_available(&chain);
        self.pop_one()
    }

    /// Gives back to the ring what was answered from outside a batch: (head, length) of each.
    pub(super) fn collect(&mut self) -> Vec<(u16, u32)> {
        let mut done = Vec::new();
        self.completions.collect(&mut done);
        let used = done.iter().map(|done| (done.slot.token.id, done.written));
        used.inspect(|&(head, written)| self.ring.push(head, written)).collect()
    }

    /// The ring stops: what is answered later must not reach guest memory.
    pub(super) fn stop(&self) {
        self.completions.close();
    }

    /// The writable part of a request of these lengths that was laid out last.
    pub(super) fn writable(&self, read: usize, writable: usize) -> Vec<u8> {
        let start = if read == 0 { 0 } else { read as u64 + 1 };
        self.load(start, writable as u64)
    }

    /// What another processor of the guest may do at any time: write `bytes` over the first
    /// buffer, from `at` on, in one piece.
    pub(super) fn meddler(&self) -> impl Fn(u64, &[u8]) + Send + use<> {
        let file = self.file.try_clone().unwrap();
        move |at, bytes| file.write_all_at(bytes, offset_of(0) + at).unwrap()
    }

    fn lay_out(&mut self, read: &[u8], writable: usize, cuts: &[usize]) -> Vec<Buffer> {
        let total = read.len() + writable;
        let mut ends: Vec<_> = cuts.iter().copied().chain([read.len(), total]).collect();
        ends.sort_unstable();
        ends.dedup();
        let (mut chain, mut start, mut at) = (Vec::new(), 0, 0);
        for end in ends.into_iter().filter(|&end| end > 0) {
            let len = (end - start) as u32;
            // One byte is left free after each buffer: nobody may write there.
            chain.push(Buffer { at, len, writable: start >= read.len() });
            at += u64::from(len) + 1;
            start = end;
        }
        assert!(at < PIECE * PIECES, "the request does not fit buffer memory");
        self.store(0, &vec![CANARY; at as usize]);
        let mut rest = read;
        for buffer in chain.iter().filter(|b| !b.writable) {
            let (bytes, later) = rest.split_at(buffer.len as usize);
            self.store(buffer.at, bytes);
            rest = later;
        }
        chain
    }

    /// Writes to buffer memory, piece by piece.
    fn store(&self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let here = bytes.len().min((PIECE - at % PIECE) as usize);
            let offset = offset_of(at / PIECE) + at % PIECE;
            self.file.write_all_at(&bytes[..here], offset).unwrap();
            (at, bytes) = (at + here as u64, &bytes[here..]);
        }
    }

    fn load(&self, mut at: u64, len: u64) -> Vec<u8> {
        let (end, mut bytes) = (at + len, Vec::new());
        while at < end {
            let mut here = vec![0; (end - at).min(PIECE - at % PIECE) as usize];
            self.file.read_exact_at(&mut here, offset_of(at / PIECE) + at % PIECE).unwrap();
            at += here.len() as u64;
            bytes.extend(here);
        }
        bytes
    }

    /// Puts the chain into the ring: direct where that is short enough, in a table where not.
    fn make_available(&mut self, chain: &[Buffer]) {
        let direct = chain.len() <= 8 && !chain.is_empty();
        self.write_table(if direct { DESCRIPTORS } else { TABLE }, chain);
        if !direct {
            let len = 16 * chain.len() as u32;
            self.file.write_all_at(&descriptor(TABLE, len, INDIRECT, 0), DESCRIPTORS).unwrap();
        }
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.file.write_all_at(&0_u16.to_le_bytes(), slot).unwrap();
        self.available = self.available.wrapping_add(1);
        self.file.write_all_at(&self.available.to_le_bytes(), AVAILABLE + 2).unwrap();
    }

    fn write_table(&self, at: u64, chain: &[Buffer]) {
        let last = chain.len() - 1;
        let mut bytes = Vec::new();
        for (i, buffer) in chain.iter().enumerate() {
            let next = if i == last { 0 } else { NEXT };
            let write = if buffer.writable { WRITE } else { 0 };
            let place = BUFFERS + buffer.at;
            bytes.extend(descriptor(place, buffer.len, next | write, (i + 1) as u16));
        }
        self.file.write_all_at(&bytes, at).unwrap();
    }

    /// What a worker does at a kick.
    fn work(&mut self, device: &dyn Device) {
        let request = self.pop_one();
        self.batch.push(request);
        device.handle(0, &mut self.batch);
        assert!(self.batch.is_empty(), "the device left a request");
        for done in self.batch.take_done() {
            self.ring.push(done.slot.token.id, done.written);
        }
        self.ring.publish();
    }

    fn pop_one(&mut self) -> Request {
        let mut slot = Slot::new(0, Arc::clone(&self.completions));
        self.ring.available().unwrap();
        let head = self.ring.pop(&mut slot.buffers).unwrap().expect("a chain was made available");
        slot.token = Token { id: head, descriptors: 1 };
        Request::new(slot)
    }

    /// Reads the answer, and checks that nothing outside the writable part has changed.
    fn answer(&self, chain: &[Buffer]) -> Answer {
        let mut index = [0; 2];
        self.file.read_exact_at(&mut index, USED + 2).unwrap();
        assert_eq!(u16::from_le_bytes(index), self.available, "the request did not come back");
        let slot = USED + 4 + 8 * u64::from(self.available.wrapping_sub(1) % SIZE);
        let mut element = [0; 8];
        self.file.read_exact_at(&mut element, slot).unwrap();
        let used = u32::from_le_bytes(*element.last_chunk().unwrap());
        let mut writable = Vec::new();
        for buffer in chain {
            let bytes = self.load(buffer.at, u64::from(buffer.len) + 1);
            let (&after, inside) = bytes.split_last().unwrap();
            assert_eq!(after, CANARY, "the byte after a buffer was written");
            if buffer.writable {
                writable.extend(inside);
            }
        }
        Answer { used, writable }
    }
}

/// Where a piece of buffer memory is in the file: the last first.
fn offset_of(piece: u64) -> u64 {
    RING_REGION + (PIECES - 1 - piece) * PIECE
}

fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = Vec::from(at.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}
