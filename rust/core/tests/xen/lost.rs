//! Memory of a domain that vanishes while it is mapped.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::backend::Event;
use vhost_user_core::memory::{Access, Buffers, Extent, Memory, MemoryPolicy, Region, XenKind};
use vhost_user_core::sys::eventfd::EventFd;
use vhost_user_core::sys::guard::Loss;
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::XenAccess;

use super::guest::*;
use super::raw::*;

#[test]
fn mapped_memory_that_vanishes_ends_the_connection_and_not_the_process() {
    for flags in [FOREIGN, IN_ADVANCE, ON_DEMAND] {
        let guest = Guest::for_flags(flags);
        let served = Served::disk(&guest, 0);
        let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, flags));
        assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 4096)]).0, OK);
        ftruncate(guest.memory.regions()[0].as_fd(), 0).unwrap();
        // The worker looks at the ring: a load, and no system call.
        raw.ring.kick();
        let why = served.events.wait(|event| match event {
            Event::Closed(why) => Some(why.clone()),
            _ => None,
        });
        assert_eq!(why, "memory of the guest's domain is not there any more");
        served.events.wait_disconnected();
        connect(&served);
    }
}

#[test]
fn foreign_memory_that_a_system_call_cannot_reach_fails_its_request_alone() {
    let guest = Guest::foreign();
    let served = Served::disk(&guest, 0);
    let first = FIRST_FRAME + SIZE / PAGE;
    let file = memfd_create("more memory", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 16 * PAGE).unwrap();
    guest.xen.add_memory(DOMID, first, 16, file.try_clone().unwrap());
    let mut memory = guest.whole(RegionLayout::XenMerged, FOREIGN);
    let user = memory.regions[0].region.user.0 + SIZE;
    memory.regions.push(guest.region(SIZE, 16 * PAGE, user, FOREIGN));
    let mut raw = Raw::start(&served, memory);
    let beyond = raw.address(SIZE / PAGE);
    assert_eq!(raw.block(READ, &[(beyond, 4096)]).0, OK);
    // As with direct I/O, which the kernel refuses on a foreign mapping.
    ftruncate(&file, 0).unwrap();
    assert_eq!(raw.block(READ, &[(beyond, 4096)]).0, IOERR);
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 4096)]).0, OK);
    assert_eq!(served.events.count(|event| matches!(event, Event::Closed(_))), 0);
}

#[test]
fn a_region_of_a_domain_shows_private_zeroes_when_it_has_vanished() {
    let guest = Guest::foreign();
    let access = XenAccess { ops: Arc::clone(&guest.xen) as Arc<_>, copy_below: 0 };
    let (at, fd) = (GuestAddr(guest.base()), guest.device(FOREIGN));
    let extent = Extent { guest: at, user: UserAddr(0), size: SIZE };
    let policy = MemoryPolicy::default();
    let region = Region::xen(&policy, &access, XenKind::Foreign, DOMID, extent, fd).unwrap();
    let wake = Arc::new(EventFd::new().unwrap());
    let loss = Loss::new(wake);
    region.watch(&loss);
    guest.memory.write(at, &[7; 8]).unwrap();
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(at, 8, Access::DeviceReadable);
    let read = || {
        let mut bytes = [1; 8];
        assert_eq!(buffers.readable().read_at(0, &mut bytes), 8);
        bytes
    };
    assert_eq!((read(), loss.has_happened()), ([7; 8], false));
    ftruncate(guest.memory.regions()[0].as_fd(), 0).unwrap();
    assert_eq!((read(), loss.has_happened()), ([0; 8], true));
}
