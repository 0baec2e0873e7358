//! What an address means: the front-end's own or a guest's, inside a region or beyond all.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::memory::{
    Access, Buffers, Extent, Memory, MemoryPolicy, Region, ResolveOptions, XenKind, provide,
};
use vhost_user_core::xen::{FakeXen, XenAccess, XenDevice};

use super::guest::{DOMID, PAGE};

const MIB: u64 = 1 << 20;

/// A file whose every byte is `mark`.
fn marked(len: u64, mark: u8) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    rustix::io::pwrite(&file, &vec![mark; len as usize], 0).unwrap();
    file
}

/// A domain's memory: a mebibyte of each of these marks from these addresses on.
fn domain(parts: &[(u64, u8)]) -> XenAccess {
    let xen = FakeXen::new();
    for &(at, mark) in parts {
        xen.add_memory(DOMID, at / PAGE, MIB / PAGE, marked(MIB, mark));
    }
    XenAccess { ops: xen, copy_below: 0 }
}

fn foreign(access: &XenAccess, guest: u64, user: u64) -> Arc<Region> {
    let fd = access.ops.open(XenDevice::Privcmd).unwrap();
    let policy = MemoryPolicy::default();
    Region::xen(&policy, access, XenKind::Foreign, DOMID, extent(guest, user), fd).unwrap()
}

fn ordinary(guest: u64, user: u64, mark: u8) -> Arc<Region> {
    let file = marked(MIB, mark);
    Region::map(&MemoryPolicy::default(), extent(guest, user), 0, file).unwrap()
}

fn extent(guest: u64, user: u64) -> Extent {
    Extent { guest: GuestAddr(guest), user: UserAddr(user), size: MIB }
}

/// The mark where a ring would be that is told at this address.
fn mark_at(memory: &Memory, address: u64) -> Option<u16> {
    let window = memory.window(UserAddr(address), 64, 16)?;
    Some(window.load_u16(0, Ordering::Relaxed))
}

#[test]
fn an_address_of_the_front_ends_own_goes_before_the_same_one_of_the_guests() {
    let access = domain(&[(MIB, 1), (2 * MIB, 2)]);
    let regions = vec![foreign(&access, MIB, 2 * MIB), foreign(&access, 2 * MIB, 3 * MIB)];
    let memory = Memory::new(regions).unwrap();
    assert_eq!(mark_at(&memory, 2 * MIB), Some(0x0101));
    assert_eq!(mark_at(&memory, 3 * MIB), Some(0x0202));
    assert_eq!(mark_at(&memory, MIB), Some(0x0101), "only the guest has this one");
    assert_eq!(mark_at(&memory, 4 * MIB), None);
}

#[test]
fn a_front_end_that_has_no_memory_of_xen_is_never_taken_to_mean_guest_addresses() {
    let memory = Memory::new(vec![ordinary(MIB, 8 * MIB, 1)]).unwrap();
    assert_eq!(mark_at(&memory, 8 * MIB), Some(0x0101));
    assert_eq!(mark_at(&memory, MIB), None);
}

#[test]
fn what_may_be_mapped_beyond_all_regions_ends_where_a_region_begins() {
    // The domain has frames there too, with other bytes than the front-end's file.
    let access = domain(&[(0, 1), (MIB, 2)]);
    let fd = access.ops.open(XenDevice::Privcmd).unwrap();
    let fallback = Region::xen_fallback(&access, XenKind::Foreign, DOMID, fd).unwrap();
    let mut regions = vec![ordinary(MIB, 8 * MIB, 3), ordinary(2 * MIB, 9 * MIB, 4)];
    regions[1].allow_more(fallback);
    let memory = Arc::new(Memory::new(regions).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    let at = GuestAddr(MIB - 512);
    buffers.add(at, 1024, Access::DeviceReadable);
    buffers.add(GuestAddr(2 * MIB - 4), 8, Access::DeviceReadable);
    let budget = Arc::default();
    let options =
        ResolveOptions { kept: false, mapped: false, budget: &budget, is_called: &|| false };
    drop(provide(&mut [&mut buffers], &options));
    assert_eq!(buffers.fault(), None);
    let mut bytes = [0; 1024 + 8];
    assert_eq!(buffers.readable().read_at(0, &mut bytes), bytes.len());
    let expected = [vec![1; 512], vec![3; 512], vec![3; 4], vec![4; 4]].concat();
    assert!(bytes[..] == expected);
}
