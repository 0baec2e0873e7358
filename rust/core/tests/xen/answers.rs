//! When the driver sees a request used, what is mapped of it then, and where its data is.

use std::sync::mpsc;

use vhost_user_core::request::{Batch, Request};
use vhost_user_core::wire::RegionLayout;

use super::device::{Scripted, copy};
use super::guest::*;
use super::raw::*;

/// Above this a request that may be kept is not copied.
const LARGE: u64 = 600 << 10;

/// Where the second of two requests has its data.
const OTHER_PAGE: u64 = DATA_PAGE + 512;

fn on_demand(served: &Served, guest: &Guest) -> Raw {
    Raw::start(served, guest.whole(RegionLayout::XenMerged, ON_DEMAND))
}

/// The driver ends the grants of `len` bytes from a page on, as it does when it sees them used.
fn end_grants(guest: &Guest, page: u64, len: u64) {
    for page in page..page + len.div_ceil(PAGE) {
        assert!(guest.xen.revoke(DOMID, FIRST_REF + page as u32), "page {page} is in use");
    }
}

/// Takes all requests of a batch.
fn all(batch: &mut Batch) -> Vec<Request> {
    std::iter::from_fn(|| batch.next()).collect()
}

#[test]
fn no_answer_of_a_batch_is_seen_while_a_page_is_mapped_that_was_mapped_with_it() {
    let guest = Guest::granting();
    let (to, kept) = mpsc::channel();
    // It keeps the first request, against its word, and answers the second.
    let device = Scripted::new(false, move |batch| {
        to.send(batch.next().unwrap()).unwrap();
        let second = batch.next().unwrap();
        let written = second.writable().fill(0, 4096, 2) as u32;
        batch.complete(second, written);
    });
    let served = Served::new(device, &guest, 0);
    let mut raw = on_demand(&served, &guest);
    raw.publish_at_once(|raw| {
        raw.push(0, &[(raw.address(DATA_PAGE), 4096, true)]);
        raw.push(1, &[(raw.address(OTHER_PAGE), 4096, true)]);
    });
    let first = kept.recv_timeout(LIMIT).unwrap();
    raw.settle();
    assert_eq!(guest.xen.in_use(DOMID).len(), 3, "the ring's page and one of each request");
    assert_eq!(raw.ring.pop().unwrap(), None);
    first.writable().fill(0, 4096, 1);
    first.complete(4096).unwrap();
    let mut used = [raw.used(), raw.used()].map(|used| (used.head, used.len));
    used.sort_unstable();
    assert_eq!(used, [(0, 4096), (1, 4096)]);
    end_grants(&guest, DATA_PAGE, 4096);
    end_grants(&guest, OTHER_PAGE, 4096);
    assert_eq!((raw.read(DATA_PAGE, 1), raw.read(OTHER_PAGE, 1)), (vec![1], vec![2]));
}

#[test]
fn the_pages_of_an_answered_request_are_free_while_another_of_its_batch_is_kept() {
    let guest = Guest::granting();
    let (to, kept) = mpsc::channel();
    let device = Scripted::new(true, move |batch| to.send(all(batch)).unwrap());
    let served = Served::new(device, &guest, 0);
    let mut raw = on_demand(&served, &guest);
    raw.publish_at_once(|raw| {
        raw.push(0, &[(raw.address(DATA_PAGE), LARGE as u32, true)]);
        raw.push(1, &[(raw.address(OTHER_PAGE), LARGE as u32, true)]);
    });
    let [first, second] = kept.recv_timeout(LIMIT).unwrap().try_into().unwrap();
    assert_eq!(guest.xen.in_use(DOMID).len(), 1 + 2 * 150);
    second.complete(0).unwrap();
    assert_eq!(raw.used().head, 1);
    end_grants(&guest, OTHER_PAGE, LARGE);
    assert_eq!(guest.xen.in_use(DOMID).len(), 1 + 150);
    first.complete(0).unwrap();
    assert_eq!(raw.used().head, 0);
    end_grants(&guest, DATA_PAGE, LARGE);
}

#[test]
fn an_answer_is_seen_though_the_next_request_is_left_in_the_ring() {
    let guest = Guest::granting();
    let (to, seen) = mpsc::channel();
    let mut leave = true;
    let device = Scripted::new(false, move |batch| {
        to.send(batch.len()).unwrap();
        while let Some(request) = batch.next() {
            batch.complete(request, 0);
            if std::mem::take(&mut leave) {
                return;
            }
        }
    });
    let served = Served::new(device, &guest, 0);
    let mut raw = on_demand(&served, &guest);
    raw.publish_at_once(|raw| {
        raw.push(0, &[(raw.address(DATA_PAGE), 4096, true)]);
        raw.push(1, &[(raw.address(OTHER_PAGE), 4096, true)]);
    });
    assert_eq!(seen.recv_timeout(LIMIT), Ok(2));
    assert_eq!(raw.used().head, 0);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page alone");
    raw.push(2, &[(raw.address(DATA_PAGE), 4096, true)]);
    raw.ring.publish();
    assert_eq!([raw.used().head, raw.used().head], [1, 2]);
}

#[test]
fn an_answer_goes_through_the_grants_of_the_table_that_its_request_came_in() {
    // Requests of two tables, copied in the first and in place in the second, are answered
    // together, the younger one first.
    let guest = Guest::granting();
    let mut kept = Vec::new();
    let (to, seen) = mpsc::channel();
    let device = Scripted::new(true, move |batch| {
        kept.append(&mut all(batch));
        if kept.len() == 3 {
            for request in kept.drain(..).rev() {
                let written = copy(&request);
                request.complete(written).unwrap();
            }
        }
        to.send(()).unwrap();
    });
    let served = Served::new(device, &guest, u64::MAX);
    let mut raw = on_demand(&served, &guest);
    let content = pattern(4096, 1);
    raw.write(DATA_PAGE, &content);
    let push = |raw: &mut Raw, number: u64| {
        let from = (raw.address(DATA_PAGE), 4096, false);
        let to = (raw.address(OTHER_PAGE + number), 4096, true);
        raw.push(2 * number as u16, &[from, to]);
        raw.ring.publish();
        seen.recv_timeout(LIMIT).unwrap();
    };
    push(&mut raw, 0);
    let in_advance = guest.whole(RegionLayout::XenMerged, IN_ADVANCE);
    raw.client.set_xen_table(&in_advance.regions, RegionLayout::XenMerged).unwrap();
    push(&mut raw, 1);
    push(&mut raw, 2);
    assert_eq!([raw.used().head, raw.used().head, raw.used().head], [4, 2, 0]);
    for number in 0..3 {
        assert!(raw.read(OTHER_PAGE + number, 4096) == content, "request {number}");
    }
}

#[test]
fn requests_that_are_under_way_when_their_guest_is_destroyed_come_back_and_leave_nothing() {
    let guest = Guest::granting();
    let (to, kept) = mpsc::channel();
    let device = Scripted::new(true, move |batch| to.send(all(batch)).unwrap());
    let served = Served::new(device, &guest, 0);
    let mut raw = on_demand(&served, &guest);
    raw.publish_at_once(|raw| {
        raw.push(0, &[(raw.address(DATA_PAGE), LARGE as u32, true)]);
        raw.push(1, &[(raw.address(OTHER_PAGE), 4096, true)]);
    });
    let [mapped, copied] = kept.recv_timeout(LIMIT).unwrap().try_into().unwrap();
    guest.xen.destroy(DOMID);
    // Pages that are mapped linger until they are not; copies have nowhere to go.
    assert_eq!(mapped.writable().fill(0, LARGE, 1), LARGE);
    copied.writable().fill(0, 4096, 1);
    mapped.complete(LARGE as u32).unwrap();
    let used = raw.used();
    assert_eq!((used.head, used.len), (0, LARGE as u32));
    copied.complete(4096).unwrap();
    let used = raw.used();
    assert_eq!((used.head, used.len), (1, 0));
    drop(raw);
    served.events.wait_disconnected();
    assert_eq!(guest.mappings(), 1, "the driver's own");
}

#[test]
fn an_answer_to_a_region_that_was_removed_does_not_spoil_those_to_others() {
    let guest = Guest::granting();
    let mut kept = Vec::new();
    let (to, seen) = mpsc::channel();
    let device = Scripted::new(true, move |batch| {
        kept.append(&mut all(batch));
        if kept.len() == 3 {
            for request in kept.drain(..) {
                request.complete_with(|to| to.fill(0, 4096, 7) as u32).unwrap();
            }
        }
        to.send(()).unwrap();
    });
    let drain = std::time::Duration::from_millis(100);
    let served = Served::draining(device, &guest, drain, |xen| xen.access.copy_below = u64::MAX);
    let half = SIZE / 2;
    let user = guest.memory.regions()[0].user().0;
    let part = |at| guest.region(at, half, user + at, ON_DEMAND);
    let told = guest.told(RegionLayout::XenMerged, vec![part(0), part(half)]);
    let mut raw = Raw::start(&served, told);
    for (head, page) in [(0, half / PAGE), (1, DATA_PAGE)] {
        raw.push(head, &[(raw.address(page), 4096, true)]);
        raw.ring.publish();
        seen.recv_timeout(LIMIT).unwrap();
    }
    raw.client.remove_xen_region(&part(half), RegionLayout::XenMerged).unwrap();
    raw.push(2, &[(raw.address(OTHER_PAGE), 4096, true)]);
    raw.ring.publish();
    let used = [(); 3].map(|()| raw.used()).map(|used| (used.head, used.len));
    assert_eq!(used, [(0, 0), (1, 4096), (2, 4096)]);
    assert_eq!((raw.read(DATA_PAGE, 1), raw.read(half / PAGE, 1)), (vec![7], vec![0]));
}
