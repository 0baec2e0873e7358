//! Where the parts of a ring are, and with which rights each is mapped.

use vhost_user_core::address::GuestAddr;
use vhost_user_core::frontend::{GuestMemory, RingLayout};
use vhost_user_core::wire::RegionLayout;

use super::guest::*;
use super::raw::*;

/// A ring of 128 entries: 2048, 262 and 1030 bytes from these places of memory on.
fn layout(guest: &Guest, places: [u64; 3]) -> RingLayout {
    let [descriptors, available, used] = places.map(|at| GuestAddr(guest.base() + at));
    RingLayout { size: 128, descriptors, available, used }
}

/// More requests than the ring has entries: each of its bytes is used.
fn go_round(raw: &mut Raw) {
    for turn in 0..150 {
        assert_eq!(raw.block(READ, &[(raw.address(DATA_PAGE), 512)]), (0, 513), "turn {turn}");
    }
}

#[test]
fn parts_of_a_ring_that_cross_a_page_have_both_pages() {
    // The descriptors in pages 32 and 33, the available ring in 34 and 35, the used one in 36, 37.
    let places = [0x2_0f00, 0x2_2f80, 0x2_4e00];
    for (flags, grants) in [(ON_DEMAND, 6), (IN_ADVANCE, SIZE / PAGE)] {
        let guest = Guest::granting();
        let served = Served::disk(&guest, 0);
        let memory = guest.whole(RegionLayout::XenMerged, flags);
        let mut raw = Raw::with_layout(&served, memory, layout(&guest, places));
        assert_eq!(guest.xen.calls().grants, grants);
        if flags == ON_DEMAND {
            let pages: Vec<_> = (32..38).map(|page| FIRST_REF + page).collect();
            assert_eq!(guest.xen.in_use(DOMID), pages);
        }
        go_round(&mut raw);
    }
}

#[test]
fn the_parts_that_the_device_reads_need_no_more_than_a_grant_for_reading() {
    let guest = Guest::granting();
    let served = Served::disk(&guest, 0);
    // The descriptors in page 32, the available ring in 33, the used one in 34.
    for page in [32, 33] {
        guest.xen.grant(DOMID, FIRST_REF + page, FIRST_FRAME + u64::from(page), false);
    }
    let memory = guest.whole(RegionLayout::XenMerged, ON_DEMAND);
    let layout = layout(&guest, [0x2_0000, 0x2_1000, 0x2_2000]);
    let mut raw = Raw::with_layout(&served, memory, layout);
    go_round(&mut raw);
}

#[test]
fn rings_are_found_by_guest_addresses_where_the_front_end_has_told_none_of_its_own() {
    let guest = Guest::unmapped();
    let served = Served::disk(&guest, 0);
    let all = guest.region(0, SIZE, 0, ON_DEMAND);
    let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, vec![all]));
    go_round(&mut raw);
}

#[test]
fn rings_may_lie_outside_every_region_where_more_may_be_mapped() {
    let places = [0x2_0f00, 0x2_2f80, 0x2_4e00];
    let foreign = Guest::at(FIRST_FRAME * PAGE, GuestMemory::with_guest_addresses);
    for (guest, flags) in [(Guest::unmapped(), 0x6), (foreign, 0x5)] {
        let served = Served::disk(&guest, 0);
        let first = guest.region(0, PAGE, guest.base(), flags);
        let memory = guest.told(RegionLayout::Plain, vec![first]);
        let mut raw = Raw::with_layout(&served, memory, layout(&guest, places));
        go_round(&mut raw);
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}
