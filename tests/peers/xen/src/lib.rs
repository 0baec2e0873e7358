//! The core as back-end on a hypervisor of memory files, and rust-vmm's `vhost` crate, built for
//! Xen, as front-end: what the tests share.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_core::address::GuestAddr;
use vhost_user_core::backend::{Backend, Event, Observer, Options, XenOptions};
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::frontend::{
    Descriptor, GuestMemory, NEXT, RegionSpec, RingLayout, SplitRing, WRITE,
};
use vhost_user_core::socket::{Endpoint, ListenOptions};
use vhost_user_core::wire::XenDesigns;
use vhost_user_core::xen::{FakeXen, XenAccess, XenDevice};
use vmm_sys_util::eventfd::EventFd;

pub const DOMID: u16 = 3;
pub const SIZE: u64 = 1 << 20;
const PAGE: u64 = 4096;
const EVENT_IDX: u64 = 1 << 29;
const RING_PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
const INDIRECT_DESC: u64 = 1 << 28;

/// Where things of the one request lie in guest memory, after the ring.
const HEADER: u64 = 2 * PAGE;
const STATUS: u64 = 3 * PAGE;
const DATA: u64 = 8 * PAGE;

/// A guest whose memory begins at `base`; with bit 63 all of it is granted.
pub struct Guest {
    pub xen: Arc<FakeXen>,
    pub memory: Arc<GuestMemory>,
    pub base: u64,
}

impl Guest {
    pub fn new(base: u64) -> Self {
        let spec = RegionSpec { guest: GuestAddr(base), size: SIZE };
        let memory = Arc::new(GuestMemory::new(&[spec]).unwrap());
        let xen = FakeXen::new();
        let frame = (base & !(1 << 63)) / PAGE;
        let file = memory.regions()[0].as_fd().try_clone_to_owned().unwrap();
        xen.add_memory(DOMID, frame, SIZE / PAGE, file);
        for page in 0..SIZE / PAGE {
            xen.grant(DOMID, (frame + page) as u32, frame + page, true);
        }
        Self { xen, memory, base }
    }

    /// A region as the crate describes it, and its descriptor.
    pub fn region(&self, flags: u32) -> (VhostUserMemoryRegionInfo, OwnedFd) {
        use std::os::fd::AsRawFd;
        let region = &self.memory.regions()[0];
        let fd = match flags & 3 {
            0 => region.as_fd().try_clone_to_owned().unwrap(),
            1 => self.xen.device(XenDevice::Privcmd).unwrap(),
            _ => self.xen.device(XenDevice::Gntdev).unwrap(),
        };
        let info = VhostUserMemoryRegionInfo {
            guest_phys_addr: self.base,
            memory_size: SIZE,
            userspace_addr: region.user().0,
            mmap_offset: 0,
            mmap_handle: fd.as_raw_fd(),
            xen_mmap_flags: flags,
            xen_mmap_data: DOMID.into(),
        };
        (info, fd)
    }
}

/// A back-end with a disk in memory.
pub struct Served {
    pub backend: Backend,
    socket: PathBuf,
    _folder: TempDir,
}

/// Nobody listens: the tests look at what the back-end does.
struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}

impl Served {
    /// `copy_below`: bytes of a batch that are copied rather than mapped.
    pub fn new(guest: &Guest, copy_below: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("disk.sock");
        let disk = FileDisk::in_memory(1 << 20).unwrap();
        let device = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
        let mut options = Options::new(Endpoint::Listen(ListenOptions::new(&socket)));
        let access = XenAccess { ops: Arc::clone(&guest.xen) as _, copy_below };
        options.xen = Some(XenOptions { designs: XenDesigns::ALL, access, domain: None });
        let backend = Backend::start(device, options, Arc::new(Silent)).unwrap();
        Self { backend, socket, _folder: folder }
    }

    /// A front-end that has negotiated all that it and its driver can, XEN_MMAP among it, and asks for
    /// a reply to every message.
    pub fn negotiate(&self) -> Frontend {
        let mut frontend = Frontend::connect(&self.socket, 1).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let known = frontend.get_protocol_features().unwrap();
        assert!(known.contains(VhostUserProtocolFeatures::XEN_MMAP));
        frontend.set_protocol_features(known).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let left_out = EVENT_IDX | INDIRECT_DESC | RING_PACKED | IN_ORDER;
        frontend.set_features(features & !left_out).unwrap();
        frontend
    }
}

/// A ring that the front-end has started.
pub struct Ring<'a> {
    guest: &'a Guest,
    ring: SplitRing,
    kick: EventFd,
    call: EventFd,
}

impl<'a> Ring<'a> {
    pub fn start(guest: &'a Guest, frontend: &mut Frontend) -> Self {
        let layout = RingLayout::at(GuestAddr(guest.base), 64);
        let ring = SplitRing::new(&guest.memory, layout, false).unwrap();
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        let at = ring.addresses(0);
        frontend.set_vring_num(0, 64).unwrap();
        let places = VringConfigData {
            queue_max_size: 64,
            queue_size: 64,
            flags: 0,
            desc_table_addr: at.descriptors.0,
            used_ring_addr: at.used.0,
            avail_ring_addr: at.available.0,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &places).unwrap();
        frontend.set_vring_base(0, 0).unwrap();
        frontend.set_vring_call(0, &call).unwrap();
        frontend.set_vring_kick(0, &kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
        Self { guest, ring, kick, call }
    }

    /// One block request of `len` bytes at sector 0; returns its status.
    pub fn run(&mut self, write: bool, len: u32) -> u8 {
        let base = self.guest.base;
        let memory = &self.guest.memory;
        memory.write(GuestAddr(base + HEADER), &u128::from(write).to_le_bytes()).unwrap();
        memory.write(GuestAddr(base + STATUS), &[0xff]).unwrap();
        let direction = if write { 0 } else { WRITE };
        let parts = [(HEADER, 16, NEXT), (DATA, len, NEXT | direction), (STATUS, 1, WRITE)];
        for (index, (offset, len, flags)) in (0..).zip(parts) {
            let descriptor = Descriptor { addr: base + offset, len, flags, next: index + 1 };
            self.ring.set_descriptor(index, descriptor);
        }
        self.ring.push(0);
        self.ring.publish();
        self.kick.write(1).unwrap();
        while self.ring.pop().unwrap().is_none() {
            self.call.read().unwrap();
        }
        let mut status = [0];
        memory.read(GuestAddr(base + STATUS), &mut status).unwrap();
        status[0]
    }

    pub fn set_data(&self, data: &[u8]) {
        self.guest.memory.write(GuestAddr(self.guest.base + DATA), data).unwrap();
    }

    pub fn data(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.guest.memory.read(GuestAddr(self.guest.base + DATA), &mut data).unwrap();
        data
    }
}
