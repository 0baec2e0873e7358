//! What a guest or a front-end can do wrong with a domain's memory, and what it meets: the error
//! of one request, a broken ring, or a refused message; never more.

use std::sync::Arc;

use vhost_user_core::backend::Event;
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::frontend::FrontendError;
use vhost_user_core::wire::RegionLayout;

use super::guest::*;
use super::raw::*;
use super::slow::Slow;

fn reference(page: u64) -> u32 {
    FIRST_REF + page as u32
}

#[test]
fn a_reference_that_was_never_granted_fails_its_request_alone() {
    for copy_below in COPIED_OR_MAPPED {
        let guest = Guest::granting();
        let served = Served::disk(&guest, copy_below);
        let mut raw = Raw::start(&served, guest.all_on_demand());
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
    for copy_below in COPIED_OR_MAPPED {
        let guest = Guest::granting();
        let served = Served::disk(&guest, copy_below);
        let mut raw = Raw::start(&served, guest.all_on_demand());
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
    for copy_below in COPIED_OR_MAPPED {
        let guest = Guest::granting();
        let served = Served::disk(&guest, copy_below);
        let mut raw = Raw::start(&served, guest.all_on_demand());
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
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    let page = raw.address(DATA_PAGE);
    assert_eq!(raw.block(WRITE_OUT, &[(page, 4096); 64]), (OK, 1));
    assert_eq!(raw.block(WRITE_OUT, &[(page, 4096); 65]).0, IOERR);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
}

#[test]
fn a_request_whose_header_cannot_be_read_goes_back_with_nothing_but_its_status() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    guest.xen.revoke(DOMID, reference(HEADER_PAGE));
    let data = [(raw.address(DATA_PAGE), 4096)];
    assert_eq!(raw.block(READ, &data), (IOERR, 1));
}

#[test]
fn a_request_whose_status_cannot_be_written_goes_back_and_the_ring_goes_on() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    guest.xen.grant(DOMID, reference(STATUS_PAGE), FIRST_FRAME + STATUS_PAGE, false);
    let data = [(raw.address(DATA_PAGE), 4096)];
    assert_eq!(raw.block(READ, &data).0, 0xff);
    guest.xen.grant(DOMID, reference(STATUS_PAGE), FIRST_FRAME + STATUS_PAGE, true);
    assert_eq!(raw.block(READ, &data), (OK, 4097));
}

#[test]
fn a_reference_in_a_space_that_is_all_one_region_fails_if_nobody_granted_it() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
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
    assert_eq!(guest.xen.calls().map_grants - before, 1);
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 512)]), (OK, 1));
}

#[test]
fn a_request_with_an_address_outside_every_region_fails_alone() {
    for address in [GRANT | 0xf_ffff << 12, GRANT | 1 << 44, 1 << 62, 0x1000] {
        let guest = Guest::granting();
        let served = Served::disk(&guest, 0);
        let mut raw = Raw::start(&served, guest.all_on_demand());
        raw.push(0, &[(address, 16, false), (raw.address(STATUS_PAGE), 1, true)]);
        raw.ring.publish();
        assert_eq!((raw.used().len, raw.read(STATUS_PAGE, 1)), (1, vec![IOERR]));
        let why = served.events.wait(|event| match event {
            Event::RequestFailed { error, .. } => Some(error.clone()),
            _ => None,
        });
        assert!(why.contains(&format!("16 bytes at {address:#x} cannot be read")), "{why}");
        for data in [[(address, 512)], [(raw.address(DATA_PAGE), 512)]] {
            let served = if data[0].0 == address { (IOERR, 1) } else { (OK, 513) };
            assert_eq!(raw.block(READ, &data), served);
        }
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}

#[test]
fn a_ring_that_cannot_be_mapped_is_not_started() {
    for writable in [None, Some(false)] {
        let guest = Guest::granting();
        let served = Served::disk(&guest, 0);
        match writable {
            None => drop(guest.xen.revoke(DOMID, FIRST_REF)),
            Some(writable) => guest.xen.grant(DOMID, FIRST_REF, FIRST_FRAME, writable),
        }
        let mut client = connect(&served);
        client.set_xen_memory(&guest.all_on_demand()).unwrap();
        let layout =
            vhost_user_core::frontend::RingLayout::at(guest.memory.regions()[0].guest(), 128);
        let ring = vhost_user_core::frontend::SplitRing::new(&guest.memory, layout, true).unwrap();
        let refused = client.start_ring(0, &ring);
        assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
        assert_eq!(guest.xen.in_use(DOMID), []);
    }
}

#[test]
fn a_region_with_one_bad_grant_is_refused_by_its_reference() {
    let guest = Guest::granting();
    guest.xen.revoke(DOMID, FIRST_REF + 100);
    let why =
        refusal(&Served::disk(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    assert!(why.contains("domain 5 does not grant the 2048 pages from reference 16 on"), "{why}");
}

#[test]
fn a_region_granted_for_reading_is_mapped_for_reading() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
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
fn another_domain_than_the_one_served_is_refused() {
    let guest = Guest::granting();
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    let device = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
    let served = Served::with(device, &guest, |xen| xen.domain = Some(7));
    let why = refusal(&served, &guest, guest.all_on_demand());
    assert!(why.contains("xen domain id 5: only domain 7 is served"), "{why}");
}

#[test]
fn a_device_is_not_entered_for_requests_that_all_failed() {
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = Served::new(device, &guest, u64::MAX);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    guest.xen.revoke(DOMID, reference(DATA_PAGE));
    raw.push(0, &[(raw.address(DATA_PAGE), 4096, false)]);
    raw.ring.publish();
    assert_eq!((raw.used().head, hands.entered.try_recv().is_ok()), (0, false));
}
