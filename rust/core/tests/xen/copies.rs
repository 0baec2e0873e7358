//! Which granted data is copied and which is mapped, and copies that fail.

use std::sync::Arc;
use std::sync::mpsc;

use vhost_user_core::backend::Event;
use vhost_user_core::block::{BlockDevice, BlockOptions, FileDisk};
use vhost_user_core::wire::RegionLayout;
use vhost_user_core::xen::XenAccess;

use super::device::Scripted;
use super::guest::*;
use super::raw::*;

fn start(served: &Served, guest: &Guest) -> Raw {
    Raw::start(served, guest.whole(RegionLayout::XenMerged, ON_DEMAND))
}

/// The pages that are mapped for one batch of requests of so many bytes each, which the device
/// writes.
fn mapped(copy_below: u64, requests: &[u32]) -> u64 {
    let guest = Guest::granting();
    let served = Served::new(Scripted::copying(), &guest, copy_below);
    let mut raw = start(&served, &guest);
    let before = guest.xen.calls();
    raw.publish_at_once(|raw| {
        for (number, &len) in (0..).zip(requests) {
            let at = raw.address(DATA_PAGE + u64::from(number) * 128);
            raw.push(number, &[(at, len, true)]);
        }
    });
    for _ in requests {
        raw.used();
    }
    let calls = guest.xen.calls();
    assert_eq!(calls.unmap_grants - before.unmap_grants, calls.map_grants - before.map_grants);
    calls.grants - before.grants
}

#[test]
fn a_batch_is_copied_up_to_the_limit_and_mapped_above() {
    const LIMIT_BYTES: u64 = 8192;
    assert_eq!(mapped(LIMIT_BYTES, &[8192]), 0);
    assert_eq!(mapped(LIMIT_BYTES, &[8193]), 3);
    assert_eq!(mapped(LIMIT_BYTES, &[4096, 4096]), 0);
    assert_eq!(mapped(LIMIT_BYTES, &[4096, 4097]), 3, "the batch counts, not each request");
    assert_eq!(mapped(LIMIT_BYTES, &[4096, 4096, 4096]), 3);
    assert_eq!(mapped(LIMIT_BYTES, &[8192, 512, 512]), 0, "what is small is always copied");
}

#[test]
fn by_default_half_a_mebibyte_of_a_batch_is_copied() {
    let copy_below = XenAccess::linux().copy_below;
    assert_eq!(mapped(copy_below, &[256 << 10, 256 << 10]), 0);
    assert_eq!(mapped(copy_below, &[256 << 10, (256 << 10) + 1]), 64 + 65);
}

#[test]
fn data_that_was_not_copied_here_reaches_no_device() {
    let guest = Guest::granting();
    let disk = FileDisk::in_memory(1 << 20).unwrap();
    let disk = Arc::new(BlockDevice::new(disk, &BlockOptions::default()).unwrap());
    let served = Served::new(disk, &guest, u64::MAX);
    let mut raw = start(&served, &guest);
    let data = [(raw.address(DATA_PAGE), 4096)];
    raw.write(DATA_PAGE, &pattern(4096, 1));
    assert_eq!(raw.block(WRITE_OUT, &data), (0, 1));
    raw.write(DATA_PAGE, &pattern(4096, 2));
    guest.xen.set_can_copy(false);
    assert_eq!(raw.block(WRITE_OUT, &data).0, 0xff, "its status cannot be copied either");
    guest.xen.set_can_copy(true);
    let told = |event: &Event| matches!(event, Event::RequestFailed { .. });
    assert_eq!(served.events.count(told), 1);
    assert_eq!(raw.block(READ, &data), (0, 4097));
    assert!(raw.read(DATA_PAGE, 4096) == pattern(4096, 1), "the disk is as it was");
}

#[test]
fn an_answer_that_was_not_copied_to_the_guest_is_no_answer() {
    let guest = Guest::granting();
    let (to, kept) = mpsc::channel();
    let device = Scripted::new(true, move |batch| {
        while let Some(request) = batch.next() {
            to.send(request).unwrap();
        }
    });
    let served = Served::new(device, &guest, u64::MAX);
    let mut raw = start(&served, &guest);
    raw.push(0, &[(raw.address(DATA_PAGE), 4096, true)]);
    raw.ring.publish();
    let request = kept.recv_timeout(LIMIT).unwrap();
    request.writable().fill(0, 4096, 1);
    guest.xen.set_can_copy(false);
    request.complete(4096).unwrap();
    assert_eq!(raw.used().len, 0, "no byte was written");
    let told = |event: &Event| matches!(event, Event::RequestFailed { .. });
    assert_eq!(served.events.count(told), 1);
}
