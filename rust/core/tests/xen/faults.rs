//! What a guest or a front-end can do wrong with a domain's memory, and what it meets: the error
//! of one request, a broken ring, or a refused message; never more.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost_user_core::address::{GuestAddr, UserAddr};
use vhost_user_core::backend::Event;
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::frontend::FrontendError;
use vhost_user_core::memory::view::{Access, Buffers};
use vhost_user_core::memory::{Memory, Region, XenKind};
use vhost_user_core::sys::eventfd::EventFd;
use vhost_user_core::sys::guard::Loss;
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::{XenAccess, XenDevice, XenOps};

use super::gate::Gate;
use super::guest::*;
use super::raw::*;
use super::slow::Slow;

const OK: u8 = 0;
const IOERR: u8 = 1;

/// All is copied; all is mapped.
const COPY_BELOW: [u64; 2] = [u64::MAX, 0];

fn served(guest: &Guest, copy_below: u64) -> Served {
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    let device = BlockDevice::new(disk, &BlockOptions::default()).unwrap();
    Served::new(Arc::new(device), guest, copy_below)
}

fn on_demand(guest: &Guest) -> vhost_user_core::frontend::XenMemory {
    guest.whole(RegionLayout::XenMerged, ON_DEMAND)
}

fn reference(page: u64) -> u32 {
    FIRST_REF + page as u32
}

/// What the back-end says of a message that it refuses.
pub(crate) fn refusal(
    served: &Served,
    guest: &Guest,
    memory: vhost_user_core::frontend::XenMemory,
) -> String {
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

#[test]
fn a_reference_that_was_never_granted_fails_its_request_alone() {
    for copy_below in COPY_BELOW {
        let guest = Guest::granting();
        let served = served(&guest, copy_below);
        let mut raw = Raw::start(&served, on_demand(&guest));
        let (good, bad) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 1));
        guest.xen.revoke(DOMID, reference(DATA_PAGE + 1));
        for kind in [READ, WRITE_OUT] {
            assert_eq!(raw.block(kind, &[(bad, 4096)]).0, IOERR);
            assert_eq!(raw.block(kind, &[(good, 4096), (bad, 4096)]).0, IOERR);
            assert_eq!(raw.block(kind, &[(good, 4096)]).0, OK);
        }
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page");
        let told = |event: &Event| matches!(event, Event::RequestFailed { .. });
        assert_eq!(served.events.count(told), 1, "it is said once");
    }
}

#[test]
fn one_bad_request_of_a_batch_fails_and_the_others_do_not() {
    for copy_below in COPY_BELOW {
        let guest = Guest::granting();
        let served = served(&guest, copy_below);
        let mut raw = Raw::start(&served, on_demand(&guest));
        raw.write(DATA_PAGE, &pattern(4096, 1));
        guest.xen.revoke(DOMID, reference(DATA_PAGE + 1));
        raw.write(HEADER_PAGE, &u128::from(WRITE_OUT).to_le_bytes());
        raw.write(STATUS_PAGE, &[0xff; 8]);
        for number in 0..8_u64 {
            let page = if number == 3 { DATA_PAGE + 1 } else { DATA_PAGE };
            let header = (raw.address(HEADER_PAGE), 16, false);
            let status = (raw.address(STATUS_PAGE) + number, 1, true);
            let data = (raw.address(page), 4096, false);
            raw.push(number as u16 * 3, &[header, data, status]);
        }
        raw.ring.publish();
        for _ in 0..8 {
            raw.used();
        }
        assert_eq!(raw.read(STATUS_PAGE, 8), [0, 0, 0, 1, 0, 0, 0, 0]);
    }
}

#[test]
fn a_grant_for_reading_is_read_and_never_written() {
    for copy_below in COPY_BELOW {
        let guest = Guest::granting();
        let served = served(&guest, copy_below);
        let mut raw = Raw::start(&served, on_demand(&guest));
        let content = pattern(4096, 2);
        raw.write(DATA_PAGE, &content);
        guest.xen.grant(DOMID, reference(DATA_PAGE), FIRST_FRAME + DATA_PAGE, false);
        let data = [(raw.address(DATA_PAGE), 4096)];
        assert_eq!(raw.block(WRITE_OUT, &data), (OK, 1));
        let other = [(raw.address(DATA_PAGE + 1), 4096)];
        assert_eq!(raw.block(READ, &other), (OK, 4097));
        assert_eq!(raw.read(DATA_PAGE + 1, 4096), content);
        raw.write(DATA_PAGE + 1, &[0; 4096]);
        assert_eq!(raw.block(WRITE_OUT, &other), (OK, 1));
        assert_eq!(raw.block(READ, &data).0, IOERR, "the disk's zeroes do not get there");
        assert_eq!(raw.read(DATA_PAGE, 4096), content);
    }
}

#[test]
fn a_page_named_more_often_than_the_hypervisor_maps_it_fails_the_request() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut raw = Raw::start(&served, on_demand(&guest));
    let page = raw.address(DATA_PAGE);
    assert_eq!(raw.block(WRITE_OUT, &[(page, 4096); 64]), (OK, 1));
    assert_eq!(raw.block(WRITE_OUT, &[(page, 4096); 65]).0, IOERR);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
}

#[test]
fn a_request_whose_header_cannot_be_read_goes_back_with_nothing_but_its_status() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut raw = Raw::start(&served, on_demand(&guest));
    guest.xen.revoke(DOMID, reference(HEADER_PAGE));
    let data = [(raw.address(DATA_PAGE), 4096)];
    assert_eq!(raw.block(READ, &data), (IOERR, 1));
}

#[test]
fn a_request_whose_status_cannot_be_written_goes_back_and_the_ring_goes_on() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut raw = Raw::start(&served, on_demand(&guest));
    guest.xen.grant(DOMID, reference(STATUS_PAGE), FIRST_FRAME + STATUS_PAGE, false);
    let data = [(raw.address(DATA_PAGE), 4096)];
    assert_eq!(raw.block(READ, &data).0, 0xff);
    guest.xen.grant(DOMID, reference(STATUS_PAGE), FIRST_FRAME + STATUS_PAGE, true);
    assert_eq!(raw.block(READ, &data), (OK, 4097));
}

#[test]
fn a_reference_in_a_space_that_is_all_one_region_fails_if_nobody_granted_it() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut regions = vec![guest.region(0, PAGE, guest.memory.regions()[0].user().0, IN_ADVANCE)];
    let mut rest = guest.region(PAGE, 1 << 40, 0, ON_DEMAND);
    rest.region.size = (1 << 44) - u64::from(FIRST_REF + 1) * PAGE;
    regions.push(rest);
    let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, regions));
    for reference in [0xf_ffff_u64, 0xffff_ffff] {
        let data = [(GRANT | reference << 12, 4096)];
        assert_eq!(raw.block(WRITE_OUT, &data).0, IOERR, "{reference:#x}");
    }
    let long = [(GRANT | 0x10_0000 << 12, 0x4000_0000)];
    let before = guest.xen.calls().map_grants;
    assert_eq!(raw.block(WRITE_OUT, &long).0, IOERR, "a gibibyte of nothing");
    // Four calls of 65536 pages, and 16 tries of a part of each.
    assert_eq!(guest.xen.calls().map_grants - before, 4 * 17);
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 512)]), (OK, 1));
}

#[test]
fn an_address_outside_every_region_breaks_the_ring() {
    for address in [GRANT | 0xf_ffff << 12, GRANT | 1 << 44, 1 << 62, 0x1000] {
        let guest = Guest::granting();
        let served = served(&guest, 0);
        let mut raw = Raw::start(&served, on_demand(&guest));
        raw.push(0, &[(address, 16, false), (raw.address(STATUS_PAGE), 1, true)]);
        raw.ring.publish();
        let why = served.events.wait(|event| match event {
            Event::QueueBroken { error, .. } => Some(error.clone()),
            _ => None,
        });
        assert!(why.contains(&format!("{address:#x}")), "{why}");
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}

/// Eight requests at once, each in a table in a page of its own from `TABLE_PAGE` on.
fn push_eight_tables(raw: &mut Raw) {
    raw.write(HEADER_PAGE, &u128::from(WRITE_OUT).to_le_bytes());
    raw.write(STATUS_PAGE, &[0xff; 8]);
    for number in 0..8 {
        let header = (raw.address(HEADER_PAGE), 16, false);
        let data = (raw.address(DATA_PAGE), 4096, false);
        let status = (raw.address(STATUS_PAGE) + number, 1, true);
        raw.push_table(number as u16, TABLE_PAGE + number, &[header, data, status]);
    }
}

const TABLE_PAGE: u64 = 16;

#[test]
fn an_indirect_table_that_cannot_be_read_fails_its_request_alone() {
    for copy_below in COPY_BELOW {
        let guest = Guest::granting();
        let served = served(&guest, copy_below);
        let mut raw = Raw::start(&served, on_demand(&guest));
        for bad in [0, 3, 7] {
            guest.xen.revoke(DOMID, reference(TABLE_PAGE + bad));
            raw.publish_at_once(push_eight_tables);
            let mut used: Vec<_> = (0..8).map(|_| raw.used()).collect();
            used.sort_unstable_by_key(|used| used.head);
            let written: Vec<_> = used.iter().map(|used| used.len).collect();
            let expected: Vec<_> = (0..8).map(|number| u32::from(number != bad)).collect();
            assert_eq!(written, expected, "the status bytes of the others");
            let left: Vec<_> = (0..8).map(|n| if n == bad { 0xff } else { OK }).collect();
            assert_eq!(raw.read(STATUS_PAGE, 8), left);
            let frame = FIRST_FRAME + TABLE_PAGE + bad;
            guest.xen.grant(DOMID, reference(TABLE_PAGE + bad), frame, true);
        }
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page");
        let told = |event: &Event| matches!(event, Event::RequestFailed { .. });
        assert_eq!(served.events.count(told), 1, "it is said once");
    }
}

#[test]
fn an_indirect_table_that_is_malformed_breaks_the_ring_after_those_before_it() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut raw = Raw::start(&served, on_demand(&guest));
    raw.publish_at_once(|raw| {
        push_eight_tables(raw);
        // The sixth table's first descriptor goes on at one that the table does not have.
        raw.write(TABLE_PAGE + 5, &[&[0_u8; 12][..], &[1, 0, 3, 0]].concat());
    });
    let heads: Vec<_> = (0..5).map(|_| raw.used().head).collect();
    assert_eq!(heads, [0, 1, 2, 3, 4]);
    let why = served.events.wait(|event| match event {
        Event::QueueBroken { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(why.contains("chain 5: next is 3, the table has 3 descriptors"), "{why}");
    assert!(raw.ring.pop().unwrap().is_none());
    assert_eq!(raw.read(STATUS_PAGE, 8), [0, 0, 0, 0, 0, 0xff, 0xff, 0xff]);
    assert_eq!(raw.client.vring_base(0).unwrap(), 5);
}

#[test]
fn a_chain_that_is_bad_in_the_ring_does_not_hide_a_bad_table_before_it() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut raw = Raw::start(&served, on_demand(&guest));
    raw.publish_at_once(|raw| {
        raw.push_indirect(0, TABLE_PAGE, 16);
        raw.write(TABLE_PAGE, &[&[0_u8; 12][..], &[4, 0, 0, 0]].concat());
        raw.push_indirect(1, TABLE_PAGE, 15);
    });
    let why = served.events.wait(|event| match event {
        Event::QueueBroken { error, .. } => Some(error.clone()),
        _ => None,
    });
    assert!(why.contains("chain 0: an indirect table"), "{why}");
}

#[test]
fn a_ring_that_cannot_be_mapped_is_not_started() {
    for writable in [None, Some(false)] {
        let guest = Guest::granting();
        let served = served(&guest, 0);
        match writable {
            None => drop(guest.xen.revoke(DOMID, FIRST_REF)),
            Some(writable) => guest.xen.grant(DOMID, FIRST_REF, FIRST_FRAME, writable),
        }
        let mut client = connect(&served);
        client.set_xen_memory(&on_demand(&guest)).unwrap();
        let layout =
            vhost_user_core::frontend::RingLayout::at(guest.memory.regions()[0].guest(), 128);
        let ring = vhost_user_core::frontend::SplitRing::new(&guest.memory, layout, true).unwrap();
        let refused = client.start_ring(0, &ring);
        assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
        assert_eq!(guest.xen.in_use(DOMID), []);
    }
}

#[test]
fn a_hole_in_a_foreign_region_is_refused_by_its_address() {
    let guest = Guest::foreign();
    guest.xen.add_hole(DOMID, FIRST_FRAME + 1000);
    let why = refusal(&served(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, FOREIGN));
    let page = (FIRST_FRAME + 1000) * PAGE;
    assert!(why.contains(&format!("domain 5 has no page at {page:#x}")), "{why}");
}

#[test]
fn a_domain_that_does_not_exist_is_refused() {
    let guest = Guest::foreign();
    guest.xen.destroy(DOMID);
    let why = refusal(&served(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, FOREIGN));
    assert!(why.contains("there is no domain 5"), "{why}");
}

#[test]
fn pages_that_are_paged_out_are_waited_for_and_not_for_ever() {
    let guest = Guest::foreign();
    guest.xen.page_out(DOMID, FIRST_FRAME + 3, 20);
    let backend = served(&guest, 0);
    let mut raw = Raw::start(&backend, guest.whole(RegionLayout::XenMerged, FOREIGN));
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 512)]), (OK, 1));
    drop(raw);
    backend.events.wait_disconnected();
    let guest = Guest::foreign();
    guest.xen.page_out(DOMID, FIRST_FRAME + 3, u32::MAX);
    let why = refusal(&served(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, FOREIGN));
    assert!(why.contains("stays paged out"), "{why}");
}

#[test]
fn grants_of_pages_that_are_paged_out_are_waited_for() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    let mut raw = Raw::start(&served, on_demand(&guest));
    guest.xen.set_busy(3);
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 4096)]), (OK, 1));
}

#[test]
fn a_region_of_grants_that_stay_paged_out_is_refused_as_such() {
    let guest = Guest::granting();
    guest.xen.set_busy(u32::MAX);
    let why = refusal(&served(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    let what = "the 2048 pages from reference 16 on of domain 5 stay paged out";
    assert!(why.ends_with(what), "{why}");
}

#[test]
fn a_region_with_one_bad_grant_is_refused_by_its_reference() {
    let guest = Guest::granting();
    guest.xen.revoke(DOMID, FIRST_REF + 100);
    let why = refusal(&served(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    assert!(why.contains("domain 5 does not grant the 2048 pages from reference 16 on"), "{why}");
}

#[test]
fn a_region_granted_for_reading_is_mapped_for_reading() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    guest.xen.grant(DOMID, reference(DATA_PAGE), FIRST_FRAME + DATA_PAGE, false);
    let user = guest.memory.regions()[0].user().0;
    let at = |page: u64, pages: u64| {
        guest.region(page * PAGE, pages * PAGE, user + page * PAGE, IN_ADVANCE)
    };
    let regions = vec![at(0, DATA_PAGE), at(DATA_PAGE, 1), at(DATA_PAGE + 1, 8)];
    let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, regions));
    let content = pattern(4096, 4);
    raw.write(DATA_PAGE, &content);
    let (read_only, writable) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 1));
    assert_eq!(raw.block(WRITE_OUT, &[(read_only, 4096)]), (OK, 1));
    assert_eq!(raw.block(READ, &[(writable, 4096)]), (OK, 4097));
    assert_eq!(raw.read(DATA_PAGE + 1, 4096), content);
    raw.write(DATA_PAGE + 1, &[0; 4096]);
    assert_eq!(raw.block(WRITE_OUT, &[(writable, 4096)]), (OK, 1));
    assert_eq!(raw.block(READ, &[(read_only, 4096)]).0, IOERR);
    assert_eq!(raw.read(DATA_PAGE, 4096), content);
}

#[test]
fn a_descriptor_that_is_no_such_device_is_replaced_by_an_own_one() {
    for flags in [FOREIGN, IN_ADVANCE, ON_DEMAND] {
        for wrong in [FOREIGN, IN_ADVANCE] {
            let guest = Guest::for_flags(flags);
            let served = served(&guest, 0);
            let mut memory = guest.whole(RegionLayout::XenMerged, flags);
            memory.regions[0].fd = match (flags == FOREIGN) == (wrong == FOREIGN) {
                true => std::fs::File::open("/dev/null").unwrap().into(),
                false => guest.device(wrong),
            };
            let mut raw = Raw::start(&served, memory);
            assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 4096)]), (OK, 1));
        }
    }
}

#[test]
fn a_wrong_descriptor_is_refused_where_no_own_one_can_be_had() {
    for (flags, name) in [(FOREIGN, "/dev/xen/privcmd"), (ON_DEMAND, "/dev/xen/gntdev")] {
        let guest = Guest::for_flags(flags);
        guest.xen.set_can_open(false);
        let mut memory = guest.whole(RegionLayout::XenMerged, flags);
        memory.regions[0].fd = std::fs::File::open("/dev/null").unwrap().into();
        let why = refusal(&served(&guest, 0), &guest, memory);
        let what = format!("its descriptor is a character device (1:3), not {name}, which cannot");
        assert!(why.contains(&what), "{why}");
    }
}

#[test]
fn another_file_in_place_of_the_own_device_is_refused_as_such() {
    for (flags, name) in [
        (FOREIGN, "/dev/xen/privcmd"),
        (IN_ADVANCE, "/dev/xen/gntdev"),
        (ON_DEMAND, "/dev/xen/gntdev"),
    ] {
        let guest = Guest::for_flags(flags);
        guest.xen.set_opens_another(true);
        let mut memory = guest.whole(RegionLayout::XenMerged, flags);
        memory.regions[0].fd = std::fs::File::open("/proc").unwrap().into();
        let why = refusal(&served(&guest, 0), &guest, memory);
        let what = format!("is a directory, not {name}, which is a regular file here");
        assert!(why.ends_with(&what), "{why}");
    }
}

#[test]
fn a_descriptor_restricted_to_another_domain_is_refused() {
    let guest = Guest::foreign();
    let memory = guest.whole(RegionLayout::XenMerged, FOREIGN);
    guest.xen.restrict(std::os::fd::AsFd::as_fd(&memory.regions[0].fd), DOMID + 1).unwrap();
    let why = refusal(&served(&guest, 0), &guest, memory);
    assert!(why.contains("restricted to another domain"), "{why}");
}

#[test]
fn another_domain_than_the_one_served_is_refused() {
    let guest = Guest::granting();
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    let device = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
    let served = Served::with(device, &guest, |xen| xen.domain = Some(7));
    let why = refusal(&served, &guest, on_demand(&guest));
    assert!(why.contains("xen domain id 5: only domain 7 is served"), "{why}");
}

#[test]
fn devices_are_told_apart_by_kind() {
    let guest = Guest::foreign();
    let (privcmd, gntdev) = (guest.device(FOREIGN), guest.device(IN_ADVANCE));
    let is = |kind, fd| guest.xen.is_device(kind, std::os::fd::AsFd::as_fd(fd));
    assert!(is(XenDevice::Privcmd, &privcmd) && !is(XenDevice::Gntdev, &privcmd));
    assert!(is(XenDevice::Gntdev, &gntdev) && !is(XenDevice::Privcmd, &gntdev));
}

#[test]
fn mapped_memory_that_vanishes_ends_the_connection_and_not_the_process() {
    for flags in [FOREIGN, IN_ADVANCE, ON_DEMAND] {
        let guest = Guest::for_flags(flags);
        let served = served(&guest, 0);
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
    let served = served(&guest, 0);
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
    let (at, user, fd) = (GuestAddr(guest.base()), UserAddr(0), guest.device(FOREIGN));
    let region = Region::xen(&access, XenKind::Foreign, DOMID, at, user, SIZE, fd).unwrap();
    let wake = Arc::new(EventFd::new().unwrap());
    let loss = Loss::new(wake);
    region.watch(&loss);
    guest.memory.write(at, &[7; 8]).unwrap();
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let mut buffers = Buffers::default();
    buffers.begin(&memory);
    buffers.add(at, 8, Access::DeviceReadable).unwrap();
    let read = || {
        let mut bytes = [1; 8];
        assert_eq!(buffers.readable().read_at(0, &mut bytes), 8);
        bytes
    };
    assert_eq!((read(), loss.has_happened()), ([7; 8], false));
    ftruncate(guest.memory.regions()[0].as_fd(), 0).unwrap();
    assert_eq!((read(), loss.has_happened()), ([0; 8], true));
}

#[test]
fn a_descriptor_that_cannot_be_restricted_is_refused_unless_the_kernel_is_too_old_for_that() {
    for (error, good) in [(libc::EPERM, false), (libc::EIO, false), (libc::ENOTTY, true)] {
        let guest = Guest::foreign();
        let (gate, _keeper) = Gate::new(&guest);
        gate.fail_restrictions(error);
        let disk = FileDisk::in_memory(1 << 20).unwrap();
        let device = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
        let served = Served::with(device, &guest, |xen| xen.access.ops = gate);
        let mut client = connect(&served);
        let told = client.set_xen_memory(&guest.whole(RegionLayout::XenMerged, FOREIGN));
        assert_eq!(told.is_ok(), good, "{error}: {told:?}");
    }
}

#[test]
fn a_region_whose_pages_are_paged_out_is_refused_and_not_mapped_for_reading_only() {
    let guest = Guest::granting();
    let served = served(&guest, 0);
    // As often as a map call is tried.
    guest.xen.set_busy(101);
    let why = refusal(&served, &guest, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    assert!(why.contains("stay paged out"), "{why}");
    let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 4096)]).0, OK);
}

#[test]
fn a_device_is_not_entered_for_requests_that_all_failed() {
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = Served::new(device, &guest, u64::MAX);
    let mut raw = Raw::start(&served, on_demand(&guest));
    guest.xen.revoke(DOMID, reference(DATA_PAGE));
    raw.push(0, &[(raw.address(DATA_PAGE), 4096, false)]);
    raw.ring.publish();
    assert_eq!((raw.used().head, hands.entered.try_recv().is_ok()), (0, false));
}
