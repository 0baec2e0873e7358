//! A guest on the fake hypervisor, a back-end that serves it, and what both show to a test.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::backend::{Backend, Event, Observer, Options, XenOptions};
use vhost_user_core::block::{BlockDevice, BlockOptions as DiskOptions, FileDisk};
use vhost_user_core::device::Device;
use vhost_user_core::frontend::{
    BlockDriver, BlockOptions, GuestMemory, RegionSpec, XenMemory, XenRegion,
};
use vhost_user_core::socket::{Endpoint, ListenOptions};
use vhost_user_core::wire::payload::{Region, XenFields};
use vhost_user_core::wire::{RegionLayout, XenDesigns};
use vhost_user_core::xen::{FakeXen, XenAccess, XenDevice};

use super::support::Directory;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const DOMID: u16 = 5;
pub(crate) const PAGE: u64 = 4096;
pub(crate) const SIZE: u64 = 8 << 20;

/// Grant addresses have this bit.
pub(crate) const GRANT: u64 = 1 << 63;
/// The reference of the first page of memory, and its frame, at 5 GiB.
pub(crate) const FIRST_REF: u32 = 16;
pub(crate) const FIRST_FRAME: u64 = 0x14_0000;

/// Flags of a region: foreign, grant, and both numbers for "not in advance".
pub(crate) const FOREIGN: u32 = 0x1;
pub(crate) const IN_ADVANCE: u32 = 0x2;
pub(crate) const ON_DEMAND: u32 = 0x102;
pub(crate) const ON_DEMAND_RUST_VMM: u32 = 0xa;

/// Limits with which all data is copied, and all that is not small is mapped.
pub(crate) const COPIED_OR_MAPPED: [u64; 2] = [u64::MAX, 0];

/// A guest with memory, all of it granted for writing.
pub(crate) struct Guest {
    pub(crate) xen: Arc<FakeXen>,
    pub(crate) memory: Arc<GuestMemory>,
}

impl Guest {
    /// Its driver uses guest addresses, as foreign mapping has them.
    pub(crate) fn foreign() -> Self {
        Self::at(FIRST_FRAME * PAGE, |memory| memory)
    }

    /// Its driver uses grant addresses.
    pub(crate) fn granting() -> Self {
        Self::at(GRANT | (u64::from(FIRST_REF) * PAGE), |memory| memory)
    }

    /// The same, behind a front-end that has not mapped the memory.
    pub(crate) fn unmapped() -> Self {
        Self::at(GRANT | (u64::from(FIRST_REF) * PAGE), GuestMemory::with_guest_addresses)
    }

    pub(crate) fn at(base: u64, change: impl FnOnce(GuestMemory) -> GuestMemory) -> Self {
        let memory = GuestMemory::new(&[RegionSpec { guest: GuestAddr(base), size: SIZE }]);
        let memory = Arc::new(change(memory.unwrap()));
        let xen = FakeXen::new();
        let file = memory.regions()[0].as_fd().try_clone_to_owned().unwrap();
        xen.add_memory(DOMID, FIRST_FRAME, SIZE / PAGE, file);
        for page in 0..SIZE / PAGE {
            xen.grant(DOMID, FIRST_REF + page as u32, FIRST_FRAME + page, true);
        }
        Self { xen, memory }
    }

    /// For regions with these flags.
    pub(crate) fn for_flags(flags: u32) -> Self {
        if flags == FOREIGN { Self::foreign() } else { Self::granting() }
    }

    pub(crate) fn base(&self) -> u64 {
        self.memory.regions()[0].guest().0
    }

    /// All memory as one region.
    pub(crate) fn whole(&self, layout: RegionLayout, flags: u32) -> XenMemory {
        let region = self.region(0, SIZE, self.memory.regions()[0].user().0, flags);
        self.told(layout, vec![region])
    }

    /// All memory as one region, whose pages are mapped when they are needed.
    pub(crate) fn all_on_demand(&self) -> XenMemory {
        self.whole(RegionLayout::XenMerged, ON_DEMAND)
    }

    pub(crate) fn told(&self, layout: RegionLayout, regions: Vec<XenRegion>) -> XenMemory {
        XenMemory { memory: Arc::clone(&self.memory), regions, layout }
    }

    /// `size` bytes of memory from `offset` on, as a region.
    pub(crate) fn region(&self, offset: u64, size: u64, user: u64, flags: u32) -> XenRegion {
        let xen = Some(XenFields { flags: flags.into(), domid: DOMID.into() });
        let guest = GuestAddr(self.base() + offset);
        let region = Region { guest, size, user: UserAddr(user), mmap_offset: 0, xen };
        XenRegion { region, fd: self.device(flags) }
    }

    pub(crate) fn device(&self, flags: u32) -> OwnedFd {
        let kind = if flags & FOREIGN != 0 { XenDevice::Privcmd } else { XenDevice::Gntdev };
        self.xen.device(kind).unwrap()
    }

    /// Where the guest's memory is mapped in this process, by how many mappings.
    pub(crate) fn mappings(&self) -> usize {
        let inode = rustix::fs::fstat(self.memory.regions()[0].as_fd()).unwrap().st_ino.to_string();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
    }

    /// Nothing of the guest is in use any more: its grants can be ended, and this process has its
    /// memory mapped as the driver alone.
    pub(crate) fn assert_left_alone(&self) {
        assert_eq!(self.xen.in_use(DOMID), []);
        assert_eq!(self.mappings(), 1);
        let calls = self.xen.calls();
        assert!(calls.unmap_grants <= calls.map_grants, "{calls:?}");
    }
}

/// Remembers what happened, and lets a test wait for it.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Event>>, Condvar);

impl Observer for Events {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
        self.1.notify_all();
    }
}

impl Events {
    /// Waits for the first event that `wanted` says something about.
    pub(crate) fn wait<T>(&self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let events = self.0.lock().unwrap();
        let none = |events: &mut Vec<Event>| !events.iter().any(|event| wanted(event).is_some());
        let (events, timeout) = self.1.wait_timeout_while(events, LIMIT, none).unwrap();
        assert!(!timeout.timed_out(), "it did not happen: {events:?}");
        events.iter().find_map(wanted).unwrap()
    }

    pub(crate) fn wait_disconnected(&self) {
        self.wait(|event| matches!(event, Event::Disconnected).then_some(()));
    }

    /// Waits from now on for what happens from now on.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }
}

/// A back-end that serves one device, on Xen as elsewhere.
pub(crate) struct Served {
    pub(crate) backend: Backend,
    pub(crate) events: Arc<Events>,
    directory: Directory,
}

impl Served {
    /// A disk of a mebibyte of zeroes.
    pub(crate) fn disk(guest: &Guest, copy_below: u64) -> Self {
        let disk = FileDisk::in_memory(1 << 20).unwrap();
        let device = BlockDevice::new(disk, &DiskOptions::default()).unwrap();
        Self::new(Arc::new(device), guest, copy_below)
    }

    pub(crate) fn new(device: Arc<dyn Device>, guest: &Guest, copy_below: u64) -> Self {
        Self::with(device, guest, |xen| xen.access.copy_below = copy_below)
    }

    pub(crate) fn with(
        device: Arc<dyn Device>,
        guest: &Guest,
        change: impl FnOnce(&mut XenOptions),
    ) -> Self {
        Self::draining(device, guest, LIMIT, change)
    }

    /// Waits no longer than `drain` for requests in flight.
    pub(crate) fn draining(
        device: Arc<dyn Device>,
        guest: &Guest,
        drain: Duration,
        change: impl FnOnce(&mut XenOptions),
    ) -> Self {
        let ops = Arc::clone(&guest.xen) as Arc<_>;
        let access = XenAccess { ops, copy_below: 0 };
        let mut xen = XenOptions { designs: XenDesigns::ALL, access, domain: None };
        change(&mut xen);
        let directory = Directory::new();
        let mut options =
            Options::new(Endpoint::Listen(ListenOptions::new(directory.join("device.sock"))));
        options.xen = Some(xen);
        options.drain = drain;
        let events = Arc::new(Events::default());
        let backend =
            Backend::start(device, options, Arc::clone(&events) as Arc<dyn Observer>).unwrap();
        Self { backend, events, directory }
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.join("device.sock")
    }

    pub(crate) fn driver(&self, memory: XenMemory) -> BlockDriver {
        self.driver_with(memory, |_| ())
    }

    pub(crate) fn driver_with(
        &self,
        memory: XenMemory,
        change: impl FnOnce(&mut BlockOptions),
    ) -> BlockDriver {
        let mut options = BlockOptions { memory: SIZE, timeout: LIMIT, ..BlockOptions::default() };
        change(&mut options);
        BlockDriver::connect_xen(&self.socket(), options, memory).unwrap()
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
