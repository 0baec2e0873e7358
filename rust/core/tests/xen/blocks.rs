//! Block I/O with checks of every byte, over each mapping, in each design.

use std::sync::Arc;

use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::frontend::BlockDriver;
use vhost_user_core::wire::RegionLayout;

use super::guest::*;

const DISK: u64 = 2 << 20;
const LAYOUTS: [RegionLayout; 3] =
    [RegionLayout::XenMerged, RegionLayout::XenReview, RegionLayout::Plain];
const FLAGS: [u32; 4] = [FOREIGN, IN_ADVANCE, ON_DEMAND, ON_DEMAND_RUST_VMM];

/// All is copied, all is mapped, and what is in use.
const COPY_BELOW: [u64; 3] = [u64::MAX, 0, 64 << 10];

/// All that three switches can say together.
fn each_choice() -> impl Iterator<Item = [bool; 3]> {
    (0..8).map(|bits: u8| [0, 1, 2].map(|bit| bits >> bit & 1 != 0))
}

fn disk() -> Arc<BlockDevice<FileDisk>> {
    let disk = FileDisk::in_memory(DISK).unwrap();
    Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap())
}

/// Writes the whole disk in requests of many sizes, reads it back in others, and compares.
fn exercise(driver: &mut BlockDriver, seed: u64) {
    let content = pattern(DISK as usize, seed);
    let mut at = 0;
    for (turn, sectors) in [1, 8, 3, 64, 300, 17, 1024].into_iter().cycle().enumerate() {
        let len = (sectors * 512).min(DISK as usize - at);
        driver.pwrite(&content[at..at + len], at as u64).unwrap();
        at += len;
        if turn % 5 == 0 {
            driver.flush().unwrap();
        }
        if at == DISK as usize {
            break;
        }
    }
    let mut read = vec![0; DISK as usize];
    driver.pread(&mut read, 0).unwrap();
    assert!(read == content, "the disk as one piece");
    for (at, len) in [(512, 512), (4096, 4096), (8192 + 512, 12 << 10), (1 << 20, 512 << 10)] {
        let mut read = vec![0; len];
        driver.pread(&mut read, at as u64).unwrap();
        assert!(read == content[at..at + len], "{len} bytes at {at}");
    }
    assert_eq!(driver.id().unwrap(), "");
}

#[test]
fn every_mapping_in_every_design_moves_the_right_bytes_and_leaves_nothing_mapped() {
    for (case, (flags, layout)) in
        FLAGS.into_iter().flat_map(|flags| LAYOUTS.map(|layout| (flags, layout))).enumerate()
    {
        let guest = Guest::for_flags(flags);
        let served = Served::new(disk(), &guest, 64 << 10);
        for packed in [false, true] {
            let memory = guest.whole(layout, flags);
            let mut driver = served.driver_with(memory, |options| options.packed = packed);
            exercise(&mut driver, case as u64);
            driver.stop().unwrap();
            drop(driver);
            served.events.wait_disconnected();
            served.events.forget();
            guest.assert_left_alone();
        }
    }
}

#[test]
fn direct_and_indirect_descriptors_are_read_wherever_data_is_copied_or_mapped() {
    for [packed, in_order, indirect] in each_choice() {
        let on_demand = COPY_BELOW.map(|copy_below| (ON_DEMAND, copy_below));
        for (flags, copy_below) in on_demand.into_iter().chain([(FOREIGN, 0), (IN_ADVANCE, 0)]) {
            let guest = Guest::for_flags(flags);
            let served = Served::new(disk(), &guest, copy_below);
            let memory = guest.whole(RegionLayout::XenMerged, flags);
            let mut driver = served.driver_with(memory, |options| {
                (options.packed, options.in_order) = (packed, in_order);
                options.indirect = indirect;
            });
            exercise(&mut driver, copy_below);
            drop(driver);
            served.events.wait_disconnected();
            guest.assert_left_alone();
        }
    }
}

#[test]
fn nothing_but_rings_stays_mapped_between_requests() {
    for copy_below in COPY_BELOW {
        let guest = Guest::granting();
        let served = Served::new(disk(), &guest, copy_below);
        let mut driver = served.driver(guest.whole(RegionLayout::XenMerged, ON_DEMAND));
        exercise(&mut driver, 7);
        // Rings of 128 entries, one behind the other: 2048 + 262 + 1030 bytes in one page.
        assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF]);
        driver.stop().unwrap();
        assert_eq!(guest.xen.in_use(DOMID), []);
    }
}

#[test]
fn a_front_end_that_has_not_mapped_the_memory_tells_guest_addresses_for_rings() {
    let foreign = Guest::at(FIRST_FRAME * PAGE, |memory| memory.with_guest_addresses());
    for (guest, flags) in
        [(foreign, FOREIGN), (Guest::unmapped(), IN_ADVANCE), (Guest::unmapped(), ON_DEMAND)]
    {
        let served = Served::new(disk(), &guest, 0);
        for packed in [false, true] {
            let memory = guest.whole(RegionLayout::XenMerged, flags);
            let mut driver = served.driver_with(memory, |options| options.packed = packed);
            exercise(&mut driver, 1);
        }
    }
}

#[test]
fn memory_above_4_gib_and_a_start_inside_a_page_are_mapped_by_their_frames() {
    // The region starts 0x800 bytes after its first page's start; the driver skips that part.
    let guest = Guest::at(FIRST_FRAME * PAGE, |memory| memory);
    let served = Served::new(disk(), &guest, 0);
    let user = guest.memory.regions()[0].user().0;
    let parts = |cut: u64, flags| {
        vec![guest.region(0, cut, user, flags), guest.region(cut, SIZE - cut, user + cut, flags)]
    };
    for cut in [0x1800, 0x11_0a00] {
        let memory = guest.told(RegionLayout::XenMerged, parts(cut, FOREIGN));
        let mut driver = served.driver(memory);
        exercise(&mut driver, cut);
    }
    let guest = Guest::granting();
    let served = Served::new(disk(), &guest, 0);
    let user = guest.memory.regions()[0].user().0;
    for (cut, flags) in [(0x1800, IN_ADVANCE), (0x11_0a00, IN_ADVANCE), (0x1800, ON_DEMAND)] {
        let regions = vec![
            guest.region(0, cut, user, IN_ADVANCE),
            guest.region(cut, SIZE - cut, user + cut, flags),
        ];
        let mut driver = served.driver(guest.told(RegionLayout::XenMerged, regions));
        exercise(&mut driver, cut);
    }
}

#[test]
fn a_region_of_more_grants_than_one_call_takes_is_mapped_in_several() {
    let guest = Guest::granting();
    guest.xen.set_max_grants(1000);
    let served = Served::new(disk(), &guest, 0);
    let mut driver = served.driver(guest.whole(RegionLayout::XenMerged, IN_ADVANCE));
    exercise(&mut driver, 3);
    assert_eq!(guest.xen.calls().map_grants, 3, "2048 pages, 1000 in a call");
    drop(driver);
    served.events.wait_disconnected();
    guest.assert_left_alone();
}

#[test]
fn the_design_with_a_message_may_leave_all_buffers_to_be_mapped_on_demand() {
    // Bit 2: the region is the ring's page alone, and more may be mapped.
    for (guest, flags) in [(Guest::granting(), 0x6), (Guest::foreign(), 0x5)] {
        let served = Served::new(disk(), &guest, 0);
        let ring = guest.region(0, PAGE, guest.memory.regions()[0].user().0, flags);
        let mut driver = served.driver(guest.told(RegionLayout::Plain, vec![ring]));
        exercise(&mut driver, 5);
        drop(driver);
        served.events.wait_disconnected();
        guest.assert_left_alone();
    }
}

#[test]
fn an_ordinary_front_end_is_served_by_the_same_back_end() {
    let guest = Guest::granting();
    let served = Served::new(disk(), &guest, 0);
    let mut driver = served.driver(guest.whole(RegionLayout::XenMerged, ON_DEMAND));
    exercise(&mut driver, 8);
    drop(driver);
    let mut ordinary = BlockDriver::connect(&served.socket(), Default::default()).unwrap();
    exercise(&mut ordinary, 9);
    drop(ordinary);
    let mut driver = served.driver(guest.whole(RegionLayout::XenReview, IN_ADVANCE));
    exercise(&mut driver, 10);
}

#[test]
fn an_ordinary_front_end_is_served_on_another_socket_at_the_same_time() {
    let guest = Guest::granting();
    let (on_xen, elsewhere) = (Served::new(disk(), &guest, 0), Served::new(disk(), &guest, 0));
    let mut driver = on_xen.driver(guest.whole(RegionLayout::XenMerged, ON_DEMAND));
    let mut ordinary = BlockDriver::connect(&elsewhere.socket(), Default::default()).unwrap();
    for turn in 0..4 {
        exercise(&mut driver, turn);
        exercise(&mut ordinary, turn + 100);
    }
}
