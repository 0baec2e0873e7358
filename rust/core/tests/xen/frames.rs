//! Foreign mapping: which frame lies where, how often the hypervisor is asked, and by a descriptor
//! that reaches whom.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::memory::{
    Access, Buffers, Extent, Memory, MemoryPolicy, Region, RegionError, XenKind,
};
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::{FakeXen, XenAccess, XenDevice};

use super::guest::*;
use super::raw::*;

/// Pages that are mapped by one call.
const PAGES_OF_A_CALL: u64 = 1 << 16;
/// The largest region of a domain: 16 TiB.
const LARGEST: u64 = 1 << 44;

fn whole(guest: &Guest) -> vhost_user_core::frontend::XenMemory {
    guest.whole(RegionLayout::XenMerged, FOREIGN)
}

/// A file that takes no memory where nothing was written.
fn sparse(pages: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, pages * PAGE).unwrap();
    file
}

/// What a device reads at `at`.
fn bytes(memory: &Arc<Memory>, at: u64, len: usize) -> Vec<u8> {
    let mut buffers = Buffers::default();
    buffers.begin(memory);
    buffers.add(GuestAddr(at), len as u32, Access::DeviceReadable);
    let mut bytes = vec![0; len];
    assert_eq!(buffers.readable().read_at(0, &mut bytes), len);
    bytes
}

fn foreign(xen: &Arc<FakeXen>, at: u64, size: u64) -> Result<Arc<Region>, RegionError> {
    let access = XenAccess { ops: Arc::clone(xen) as Arc<_>, copy_below: 0 };
    let fd = xen.device(XenDevice::Privcmd).unwrap();
    let extent = Extent { guest: GuestAddr(at), user: UserAddr(0), size };
    Region::xen(&MemoryPolicy::default(), &access, XenKind::Foreign, DOMID, extent, fd)
}

#[test]
fn a_region_of_more_pages_than_one_call_maps_has_each_frame_at_its_address() {
    let (xen, pages) = (FakeXen::new(), PAGES_OF_A_CALL + 2);
    let file = sparse(pages);
    let marks = [0, 1, PAGES_OF_A_CALL - 1, PAGES_OF_A_CALL, PAGES_OF_A_CALL + 1];
    for page in marks {
        let content = pattern(PAGE as usize, page);
        rustix::io::pwrite(&file, &content, page * PAGE).unwrap();
    }
    xen.add_memory(DOMID, FIRST_FRAME, pages, file);
    // From the half of the first page to the half of the last.
    let start = FIRST_FRAME * PAGE;
    let region = foreign(&xen, start + 0x800, (pages - 1) * PAGE).unwrap();
    assert_eq!((xen.calls().map_frames, xen.calls().frames), (2, pages));
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    for page in &marks[1..4] {
        let found = bytes(&memory, start + page * PAGE, PAGE as usize);
        assert!(found == pattern(PAGE as usize, *page), "page {page:#x}");
    }
    for (page, part) in [(0, 0x800..0x1000), (PAGES_OF_A_CALL + 1, 0..0x800)] {
        let found = bytes(&memory, start + page * PAGE + part.start as u64, 0x800);
        assert!(found == pattern(PAGE as usize, page)[part], "page {page:#x}");
    }
}

#[test]
fn a_region_larger_than_any_domain_is_refused_before_anything_is_mapped() {
    let xen = FakeXen::new();
    xen.add_memory(DOMID, 0, 1, sparse(1));
    let error = foreign(&xen, 0, LARGEST + PAGE).unwrap_err();
    let RegionError::TooLarge { size, most } = error else { panic!("{error}") };
    assert_eq!((size, most), (LARGEST + PAGE, LARGEST));
    assert_eq!(xen.calls().map_frames, 0);
}

#[test]
fn frames_are_mapped_on_a_host_whose_pages_are_larger_and_grants_are_not() {
    for flags in [FOREIGN, IN_ADVANCE, ON_DEMAND] {
        let guest = Guest::for_flags(flags);
        guest.xen.set_host_page(64 << 10);
        let served = Served::disk(&guest, 0);
        let part = guest.region(0, 17 * PAGE, guest.memory.regions()[0].user().0, flags);
        let memory = guest.told(RegionLayout::XenMerged, vec![part]);
        if flags == FOREIGN {
            let mut raw = Raw::start(&served, memory);
            assert_eq!(raw.block(WRITE_OUT, &[(raw.address(16), 4096)]), (0, 1));
            continue;
        }
        let why = refusal(&served, &guest, memory);
        let expected = "grants need a host with pages of 4096 bytes, and here they have 65536";
        assert!(why.ends_with(expected), "{why}");
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_at_the_first_try() {
    let (hole, none) = (Guest::foreign(), Guest::foreign());
    hole.xen.add_hole(DOMID, FIRST_FRAME + 7);
    none.xen.destroy(DOMID);
    for guest in [hole, none] {
        refusal(&Served::disk(&guest, 0), &guest, whole(&guest));
        assert_eq!(guest.xen.calls().map_frames, 1);
    }
}

#[test]
fn a_page_that_is_paged_out_is_asked_for_alone_until_it_is_there() {
    let guest = Guest::foreign();
    for (page, times) in [(3, 20), (1000, 2)] {
        guest.xen.page_out(DOMID, FIRST_FRAME + page, times);
    }
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, whole(&guest));
    // The first try of all pages counts as one for each of these.
    let calls = guest.xen.calls();
    assert_eq!((calls.map_frames, calls.frames), (1 + 20 + 2, SIZE / PAGE + 20 + 2));
    raw.write(1000, &pattern(4096, 1));
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(1000), 4096)]), (0, 1));
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 4096)]), (0, 4097));
    assert!(raw.read(DATA_PAGE, 4096) == pattern(4096, 1));
}

#[test]
fn a_page_that_is_found_to_be_gone_when_it_is_tried_again_is_refused_as_such() {
    let guest = Guest::foreign();
    guest.xen.page_out(DOMID, FIRST_FRAME + 3, 5);
    guest.xen.add_hole(DOMID, FIRST_FRAME + 3);
    let why = refusal(&Served::disk(&guest, 0), &guest, whole(&guest));
    let page = (FIRST_FRAME + 3) * PAGE;
    assert!(why.contains(&format!("domain 5 has no page at {page:#x}")), "{why}");
    assert_eq!(guest.xen.calls().map_frames, 1 + 5);
}

#[test]
fn a_descriptor_is_restricted_to_its_domain_before_it_is_used() {
    let guest = Guest::foreign();
    let memory = whole(&guest);
    let copy = memory.regions[0].fd.try_clone().unwrap();
    let served = Served::disk(&guest, 0);
    let raw = Raw::start(&served, memory);
    assert_eq!(guest.xen.calls().unrestricted, 0);
    let other = vhost_user_core::xen::XenOps::restrict(&*guest.xen, copy.as_fd(), DOMID + 1);
    assert!(other.is_err(), "it is restricted already");
    drop(raw);
}

#[test]
fn a_kernel_that_cannot_restrict_a_descriptor_maps_all_the_same() {
    let guest = Guest::foreign();
    guest.xen.set_can_restrict(false);
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, whole(&guest));
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 512)]), (0, 1));
    assert_eq!(guest.xen.calls().unrestricted, 1);
}

#[test]
fn a_hole_in_a_foreign_region_is_refused_by_its_address() {
    let guest = Guest::foreign();
    guest.xen.add_hole(DOMID, FIRST_FRAME + 1000);
    let why =
        refusal(&Served::disk(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, FOREIGN));
    let page = (FIRST_FRAME + 1000) * PAGE;
    assert!(why.contains(&format!("domain 5 has no page at {page:#x}")), "{why}");
}

#[test]
fn a_domain_that_does_not_exist_is_refused() {
    let guest = Guest::foreign();
    guest.xen.destroy(DOMID);
    let why =
        refusal(&Served::disk(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, FOREIGN));
    assert!(why.contains("there is no domain 5"), "{why}");
}

#[test]
fn pages_that_are_paged_out_are_waited_for_and_not_for_ever() {
    let guest = Guest::foreign();
    guest.xen.page_out(DOMID, FIRST_FRAME + 3, 20);
    let backend = Served::disk(&guest, 0);
    let mut raw = Raw::start(&backend, guest.whole(RegionLayout::XenMerged, FOREIGN));
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 512)]), (OK, 1));
    drop(raw);
    backend.events.wait_disconnected();
    let guest = Guest::foreign();
    guest.xen.page_out(DOMID, FIRST_FRAME + 3, u32::MAX);
    let why =
        refusal(&Served::disk(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, FOREIGN));
    assert!(why.contains("stays paged out"), "{why}");
}
