//! A driver that places every descriptor itself.

use std::os::fd::AsFd;
use std::sync::Arc;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::Event;
use vhost_user_core::frontend::{
    Client, Descriptor, FrontendError, GuestMemory, IMPLEMENTED, INDIRECT, NEXT, RingLayout,
    SplitRing, Used, WRITE, Wanted, XenMemory,
};
use vhost_user_core::wire::ProtocolFeatures;

use super::guest::*;

/// Where a block request's header and status byte are, in pages of their own.
pub(crate) const HEADER_PAGE: u64 = 2;
pub(crate) const STATUS_PAGE: u64 = 3;
/// Data begins here.
pub(crate) const DATA_PAGE: u64 = 8;

/// Types of block requests.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE_OUT: u32 = 1;

/// Their statuses.
pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;

/// A buffer: first address, bytes, and whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

/// One ring, in the first page of a guest's memory.
pub(crate) struct Raw {
    pub(crate) client: Client,
    pub(crate) ring: SplitRing,
    memory: Arc<GuestMemory>,
}

/// Connected and negotiated; nothing told yet.
pub(crate) fn connect(served: &Served) -> Client {
    let mut client = Client::connect(&served.socket(), LIMIT).unwrap();
    let protocol = IMPLEMENTED | ProtocolFeatures::XEN_MMAP;
    let negotiated = client.negotiate(&Wanted { protocol, ..Wanted::default() }).unwrap();
    client.set_features(negotiated.features).unwrap();
    client
}

/// What the back-end says of memory that it refuses.
pub(crate) fn refusal(served: &Served, guest: &Guest, memory: XenMemory) -> String {
    let mut client = connect(served);
    let refused = client.set_xen_memory(&memory);
    assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
    let why = served.events.wait(|event| match event {
        Event::Refused(why) => Some(why.to_string()),
        _ => None,
    });
    drop(client);
    served.events.wait_disconnected();
    guest.assert_left_alone();
    why
}

impl Raw {
    pub(crate) fn start(served: &Served, memory: XenMemory) -> Self {
        let base = memory.memory.regions()[0].guest();
        Self::with_layout(served, memory, RingLayout::at(base, 128))
    }

    /// With the ring elsewhere.
    pub(crate) fn with_layout(served: &Served, memory: XenMemory, layout: RingLayout) -> Self {
        let mut client = connect(served);
        client.set_xen_memory(&memory).unwrap();
        Self::over(client, memory.memory, layout)
    }

    /// In memory that the back-end was told of already.
    pub(crate) fn over(mut client: Client, memory: Arc<GuestMemory>, layout: RingLayout) -> Self {
        let ring = SplitRing::new(&memory, layout, true).unwrap();
        client.start_ring(0, &ring).unwrap();
        client.set_vring_enable(0, true).unwrap();
        Self { client, ring, memory }
    }

    /// Returns when the worker has done all that there is to do with what it has taken.
    pub(crate) fn settle(&mut self) {
        self.client.set_vring_enable(0, true).unwrap();
    }

    pub(crate) fn address(&self, page: u64) -> u64 {
        self.memory.regions()[0].guest().0 + page * PAGE
    }

    /// Makes a chain available; not published yet.
    pub(crate) fn push(&mut self, head: u16, buffers: &[Buffer]) {
        self.push_at(&indices(head, buffers), buffers);
    }

    /// The same, with its descriptors at these indices.
    pub(crate) fn push_at(&mut self, indices: &[u16], buffers: &[Buffer]) {
        for (&index, descriptor) in indices.iter().zip(chain(indices, buffers)) {
            self.ring.set_descriptor(index, descriptor);
        }
        self.ring.push(indices[0]);
    }

    /// Makes a chain available that lies in a table, from the start of a page on.
    pub(crate) fn push_table(&mut self, head: u16, page: u64, buffers: &[Buffer]) {
        let len = self.write_table(page, buffers);
        self.push_indirect(head, page, len);
    }

    /// Writes a table from the start of a page on; returns its bytes.
    pub(crate) fn write_table(&self, page: u64, buffers: &[Buffer]) -> u32 {
        let table: Vec<u8> = chain(&indices(0, buffers), buffers).flat_map(bytes_of).collect();
        self.write(page, &table);
        table.len() as u32
    }

    /// Makes `len` bytes available as a table, whatever lies there.
    pub(crate) fn push_indirect(&mut self, head: u16, page: u64, len: u32) {
        let addr = self.address(page);
        self.ring.set_descriptor(head, Descriptor { addr, len, flags: INDIRECT, next: 0 });
        self.ring.push(head);
    }

    /// Shows the device what was made available while it does not look: so it takes all of it as
    /// one batch, up to its limit.
    pub(crate) fn publish_at_once(&mut self, push: impl FnOnce(&mut Self)) {
        self.client.set_vring_enable(0, false).unwrap();
        push(self);
        self.ring.publish();
        self.client.set_vring_enable(0, true).unwrap();
    }

    pub(crate) fn used(&mut self) -> Used {
        loop {
            if let Some(used) = self.ring.pop().unwrap() {
                return used;
            }
            assert!(self.ring.wait(LIMIT, self.client.as_fd()).unwrap(), "nothing came back");
        }
    }

    /// One block request with these data buffers; returns its status and what was written.
    pub(crate) fn block(&mut self, kind: u32, data: &[(u64, u32)]) -> (u8, u32) {
        let (header, status) = (self.address(HEADER_PAGE), self.address(STATUS_PAGE));
        let memory = &self.memory;
        memory.write(GuestAddr(header), &u128::from(kind).to_le_bytes()).unwrap();
        memory.write(GuestAddr(status), &[0xff]).unwrap();
        let mut buffers = vec![(header, 16, false)];
        buffers.extend(data.iter().map(|&(at, len)| (at, len, kind == READ)));
        buffers.push((status, 1, true));
        self.push(0, &buffers);
        self.ring.publish();
        let used = self.used();
        let mut byte = [0];
        self.memory.read(GuestAddr(status), &mut byte).unwrap();
        (byte[0], used.len)
    }

    pub(crate) fn read(&self, page: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddr(self.address(page)), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn write(&self, page: u64, data: &[u8]) {
        self.memory.write(GuestAddr(self.address(page)), data).unwrap();
    }
}

fn indices(first: u16, buffers: &[Buffer]) -> Vec<u16> {
    (first..).take(buffers.len()).collect()
}

/// The descriptors of a chain that lie at `indices`.
fn chain(indices: &[u16], buffers: &[Buffer]) -> impl Iterator<Item = Descriptor> {
    let following = indices.iter().skip(1).map(Some).chain([None]);
    buffers.iter().zip(following).map(|(&(addr, len, writable), next)| {
        let flags = if writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
        Descriptor { addr, len, flags, next: next.copied().unwrap_or(0) }
    })
}

/// VIRTIO 1.3, "The Virtqueue Descriptor Table".
fn bytes_of(Descriptor { addr, len, flags, next }: Descriptor) -> [u8; 16] {
    let high = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    (u128::from(addr) | u128::from(high) << 64).to_le_bytes()
}
