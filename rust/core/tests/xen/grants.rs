//! Map calls that fail: what is tried again, for how long, and what is left of them.

use vhost_user_core::wire::RegionLayout;

use super::device::Scripted;
use super::guest::*;
use super::raw::*;

/// Pages that are paged out are tried once, and so many times more.
const TRIES: u64 = 100;
/// Parts of a request that are tried one by one once its map call has failed.
const PARTS_TRIED: u64 = 16;

#[test]
fn pages_that_stay_paged_out_fail_their_request_in_the_end() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    let data = [(raw.address(DATA_PAGE), 4096)];
    let before = guest.xen.calls().map_grants;
    guest.xen.set_busy(u32::MAX);
    assert_eq!(raw.block(WRITE_OUT, &data), (IOERR, 1));
    assert_eq!(guest.xen.calls().map_grants - before, 1 + TRIES);
    guest.xen.set_busy(0);
    assert_eq!(raw.block(WRITE_OUT, &data), (0, 1));
}

#[test]
fn no_list_of_a_map_call_is_left_in_the_open_file_whether_it_failed_or_not() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    let (good, bad) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 1));
    guest.xen.revoke(DOMID, FIRST_REF + DATA_PAGE as u32 + 1);
    for _ in 0..10 {
        assert_eq!(raw.block(READ, &[(bad, 4096)]).0, IOERR);
        assert_eq!(raw.block(READ, &[(good, 4096)]).0, 0);
    }
    guest.xen.set_busy(3);
    assert_eq!(raw.block(READ, &[(good, 4096)]).0, 0);
    assert_eq!(guest.xen.lists(), 0);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "what is mapped does not need its list");
}

#[test]
fn the_last_part_of_a_request_is_reached_whatever_is_wrong_before_it() {
    // Its last byte says that it failed, as in every request of a disk; here that byte ends a page.
    let guest = Guest::granting();
    let refused = |request: &vhost_user_core::request::Request| {
        let last = request.writable().len() - 1;
        request.writable().write_at(last, &[IOERR]);
        last as u32 + 1
    };
    let device = Scripted::refusing(refused, false, |batch| assert!(batch.is_empty()));
    let served = Served::new(device, &guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    let parts = PARTS_TRIED + 4;
    for page in DATA_PAGE..DATA_PAGE + parts {
        guest.xen.revoke(DOMID, FIRST_REF + page as u32);
    }
    let pages = DATA_PAGE..=DATA_PAGE + parts;
    let buffers: Vec<_> = pages.map(|page| (raw.address(page), 4096, true)).collect();
    raw.push(0, &buffers);
    raw.ring.publish();
    assert_eq!(raw.used().len as u64, (parts + 1) * PAGE);
    assert_eq!(raw.read(DATA_PAGE + parts, 4096)[4095], IOERR);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
}

#[test]
fn grants_of_pages_that_are_paged_out_are_waited_for() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    let mut raw = Raw::start(&served, guest.all_on_demand());
    guest.xen.set_busy(3);
    assert_eq!(raw.block(WRITE_OUT, &[(raw.address(DATA_PAGE), 4096)]), (OK, 1));
}

#[test]
fn a_region_of_grants_that_stay_paged_out_is_refused_as_such() {
    let guest = Guest::granting();
    guest.xen.set_busy(u32::MAX);
    let why =
        refusal(&Served::disk(&guest, 0), &guest, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    let what = "the 2048 pages from reference 16 on of domain 5 stay paged out";
    assert!(why.ends_with(what), "{why}");
}

#[test]
fn a_region_whose_pages_are_paged_out_is_refused_and_not_mapped_for_reading_only() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    // As often as a map call is tried.
    guest.xen.set_busy(101);
    let why = refusal(&served, &guest, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    assert!(why.contains("stay paged out"), "{why}");
    let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 4096)]).0, OK);
}
