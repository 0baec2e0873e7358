//! Map calls that fail: what is tried again, for how long, and what is left of them.

use std::sync::Arc;

use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::wire::RegionLayout;

use super::device::Scripted;
use super::guest::*;
use super::raw::*;

const IOERR: u8 = 1;
/// Pages that are paged out are tried once, and so many times more.
const TRIES: u64 = 100;
/// Parts of a request that are tried one by one once its map call has failed.
const PARTS_TRIED: u64 = 16;

fn served(guest: &Guest) -> Served {
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    Served::new(Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap()), guest, 0)
}

fn whole(guest: &Guest, flags: u32) -> vhost_user_core::frontend::XenMemory {
    guest.whole(RegionLayout::XenMerged, flags)
}

#[test]
fn pages_that_stay_paged_out_fail_their_request_in_the_end() {
    let guest = Guest::granting();
    let served = served(&guest);
    let mut raw = Raw::start(&served, whole(&guest, ON_DEMAND));
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
    let served = served(&guest);
    let mut raw = Raw::start(&served, whole(&guest, ON_DEMAND));
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
    let mut raw = Raw::start(&served, whole(&guest, ON_DEMAND));
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
