//! What becomes of requests when the memory is taken back that they lie in: nothing is written to
//! the guest any more, and nothing that it did not write counts as its data.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost_user_core::address::GuestAddr;
use vhost_user_core::frontend::XenRegion;
use vhost_user_core::wire::RegionLayout;

use super::gate::{Call, Gate};
use super::guest::*;
use super::raw::*;
use super::slow::Slow;

/// Long enough for what comes back by itself, and what does not is given up soon.
const DRAIN: Duration = Duration::from_millis(300);

/// Above this a request that may be kept is not copied.
const LARGE: u32 = 600 << 10;

/// Serves a guest that grants on demand.
fn served(device: Arc<Slow>, guest: &Guest, copy_below: u64) -> Served {
    Served::draining(device, guest, DRAIN, |xen| xen.access.copy_below = copy_below)
}

fn on_demand(served: &Served, guest: &Guest) -> Raw {
    Raw::start(served, guest.whole(RegionLayout::XenMerged, ON_DEMAND))
}

/// The ring's page in advance, and two regions on demand of which the second has the data.
fn three(guest: &Guest) -> Vec<XenRegion> {
    let user = guest.memory.regions()[0].user().0;
    vec![
        guest.region(0, PAGE, user, IN_ADVANCE),
        guest.region(PAGE, 3 * PAGE, 0, ON_DEMAND),
        guest.region(4 * PAGE, SIZE - 4 * PAGE, 0, ON_DEMAND),
    ]
}

fn in_three(served: &Served, guest: &Guest) -> Raw {
    Raw::start(served, guest.told(RegionLayout::XenMerged, three(guest)))
}

fn remove(raw: &mut Raw, region: &XenRegion) {
    raw.client.remove_xen_region(region, RegionLayout::XenMerged).unwrap();
}

fn memory_file() -> File {
    File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap())
}

fn bytes(guest: &Guest, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![1; len];
    guest.memory.read(GuestAddr(at), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_ring_that_was_given_up_writes_nothing_more_to_the_guest() {
    for flags in [ON_DEMAND, IN_ADVANCE, FOREIGN] {
        let guest = Guest::for_flags(flags);
        let (device, hands) = Slow::new(true, true);
        let served = served(device, &guest, u64::MAX);
        let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, flags));
        let to = raw.address(DATA_PAGE);
        raw.push(0, &[(to, 4096, true)]);
        raw.ring.publish();
        hands.entered.recv_timeout(LIMIT).unwrap();
        raw.client.set_status(0).unwrap();
        assert_eq!(raw.ring.pop().unwrap().map(|used| used.len), Some(0), "it has failed");
        // The connection stays, and the guest's next driver may have plans for these pages.
        let before = raw.read(0, 4096);
        hands.go.send(()).unwrap();
        drop(raw.client);
        hands.ended.recv_timeout(LIMIT).unwrap();
        assert!(raw.ring.pop().unwrap().is_none());
        assert!(bytes(&guest, guest.base(), 4096) == before, "the ring has changed");
        if flags == ON_DEMAND {
            assert_eq!(bytes(&guest, to, 4096), [0; 4096]);
        }
    }
}

#[test]
fn nothing_is_written_to_the_guest_after_the_front_end_has_left() {
    for (keeps, copy_below) in [(false, 0), (true, u64::MAX), (false, u64::MAX)] {
        let guest = Guest::granting();
        let (device, hands) = Slow::new(true, keeps);
        let served = served(device, &guest, copy_below);
        let mut raw = on_demand(&served, &guest);
        let to = raw.address(DATA_PAGE);
        // One of them as large as a status byte, which is copied whatever else is not.
        raw.push(0, &[(to, 4096, true), (to + 4096, 1, true)]);
        raw.ring.publish();
        hands.entered.recv_timeout(LIMIT).unwrap();
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
        // The guest's next driver may have granted other pages under the same references.
        hands.finish();
        assert!(bytes(&guest, to, 4097).iter().all(|&byte| byte == 0), "{keeps} {copy_below}");
    }
}

#[test]
fn a_map_call_that_ends_after_the_front_end_has_left_maps_nothing() {
    let guest = Guest::granting();
    let (device, hands) = Slow::new(true, false);
    let (gate, keeper) = Gate::new(&guest);
    let ops = Arc::clone(&gate) as Arc<_>;
    let served = Served::draining(device, &guest, DRAIN, |xen| xen.access.ops = ops);
    let mut raw = on_demand(&served, &guest);
    gate.shut(Call::Map);
    let to = raw.address(DATA_PAGE);
    raw.push(0, &[(to, 4096, true)]);
    raw.ring.publish();
    keeper.arrived.recv_timeout(LIMIT).unwrap();
    drop(raw);
    served.events.wait_disconnected();
    keeper.open.send(()).unwrap();
    hands.ended.recv_timeout(LIMIT).unwrap();
    assert!(hands.entered.try_recv().is_err(), "the device got a request without its memory");
    guest.assert_left_alone();
    assert_eq!(bytes(&guest, to, 4096), [0; 4096]);
}

#[test]
fn removing_a_region_leaves_requests_in_other_regions_alone() {
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = served(device, &guest, 0);
    let mut raw = in_three(&served, &guest);
    let content = pattern(LARGE as usize, 1);
    raw.write(DATA_PAGE, &content);
    let (from, to) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 512));
    raw.push(0, &[(from, LARGE, false), (to, LARGE, true)]);
    raw.ring.publish();
    let request = hands.request();
    remove(&mut raw, &three(&guest)[1]);
    let mut seen = vec![1; LARGE as usize];
    request.readable().read_at(0, &mut seen);
    assert!(seen == content);
    request.writable().write_at(0, &content);
    request.complete(LARGE).unwrap();
    assert_eq!(raw.used().len, LARGE);
    assert!(raw.read(DATA_PAGE + 512, LARGE as usize) == content);
}

#[test]
fn a_removed_region_is_given_back_although_a_request_has_its_pages() {
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = served(device, &guest, 0);
    let mut raw = in_three(&served, &guest);
    let to = raw.address(DATA_PAGE);
    raw.push(0, &[(to, LARGE, true)]);
    raw.ring.publish();
    let request = hands.request();
    remove(&mut raw, &three(&guest)[2]);
    assert_eq!(guest.xen.in_use(DOMID), [FIRST_REF], "the ring's page is in another region");
    request.writable().fill(0, LARGE.into(), 0x55);
    assert_eq!(bytes(&guest, to, 4096), [0; 4096]);
    // What the device has read for the guest is nowhere: that must not count as done.
    request.complete(LARGE).unwrap();
    assert_eq!(raw.used().len, 0);
}

#[test]
fn an_answer_arrives_although_its_batch_ends_while_its_region_is_taken_away() {
    let guest = Guest::granting();
    let (device, hands) = Slow::new(true, false);
    let (gate, keeper) = Gate::new(&guest);
    let ops = Arc::clone(&gate) as Arc<_>;
    let served = Served::draining(device, &guest, DRAIN, |xen| xen.access.ops = ops);
    let mut raw = in_three(&served, &guest);
    let to = raw.address(DATA_PAGE);
    raw.push(0, &[(to, LARGE, true)]);
    raw.ring.publish();
    hands.entered.recv_timeout(LIMIT).unwrap();
    gate.shut(Call::Unmap);
    std::thread::scope(|scope| {
        let remover = scope.spawn(|| remove(&mut raw, &three(&guest)[2]));
        keeper.arrived.recv_timeout(LIMIT).unwrap();
        hands.go.send(()).unwrap();
        hands.wait_for_an_idle_worker();
        keeper.open.send(()).unwrap();
        remover.join().unwrap();
    });
    assert_eq!(raw.used().len, 0, "what was filled is nowhere");
}

#[test]
fn what_was_copied_is_not_written_to_a_region_that_was_removed() {
    let guest = Guest::granting();
    let (device, hands) = Slow::keeping();
    let served = served(device, &guest, 0);
    let mut raw = in_three(&served, &guest);
    let to = raw.address(DATA_PAGE);
    raw.push(0, &[(to, 4096, true)]);
    raw.ring.publish();
    let request = hands.request();
    remove(&mut raw, &three(&guest)[2]);
    request.writable().fill(0, 4096, 0x55);
    request.complete(4096).unwrap();
    assert_eq!(raw.used().len, 0);
    assert_eq!(bytes(&guest, to, 4096), [0; 4096]);
}

#[test]
fn a_region_that_is_not_in_a_new_table_is_given_back_before_that_is_acknowledged() {
    for flags in [IN_ADVANCE, FOREIGN] {
        let guest = Guest::for_flags(flags);
        let (device, hands) = Slow::new(true, true);
        let served = served(device, &guest, 0);
        let user = guest.memory.regions()[0].user().0;
        let region = |at, pages| guest.region(at * PAGE, pages * PAGE, user + at * PAGE, flags);
        let first = vec![region(0, 1), region(1, 8), region(9, 32)];
        let mut raw = Raw::start(&served, guest.told(RegionLayout::XenMerged, first));
        let to = raw.address(2);
        raw.push(0, &[(to, 4096, true)]);
        raw.ring.publish();
        hands.entered.recv_timeout(LIMIT).unwrap();
        let second = [region(0, 1), region(9, 32)];
        raw.client.set_xen_table(&second, RegionLayout::XenMerged).unwrap();
        // The worker has not yet let go of the former table.
        let kept: Vec<_> = guest.xen.in_use(DOMID);
        assert!(kept.iter().all(|&page| !(1..9).contains(&(page - FIRST_REF))), "{kept:?}");
        hands.go.send(()).unwrap();
        assert_eq!(raw.used().len, 0, "nothing of it has reached the guest");
        assert_eq!(bytes(&guest, to, 4096), [0; 4096]);
    }
}

#[test]
fn foreign_pages_that_no_region_has_are_given_back_when_the_front_end_leaves() {
    let guest = Guest::foreign();
    let (device, hands) = Slow::keeping();
    let served = served(device, &guest, 0);
    let user = guest.memory.regions()[0].user().0;
    let told = guest.told(RegionLayout::Plain, vec![guest.region(0, PAGE, user, 0x5)]);
    let mut raw = Raw::start(&served, told);
    let (from, to) = (raw.address(DATA_PAGE), raw.address(DATA_PAGE + 1));
    raw.write(DATA_PAGE, b"data");
    raw.push(0, &[(from, 4, false), (to, 4096, true)]);
    raw.ring.publish();
    let request = hands.request();
    drop(raw);
    served.events.wait_disconnected();
    guest.assert_left_alone();
    request.writable().fill(0, 4096, 0x55);
    assert_eq!(bytes(&guest, to, 4096), [0; 4096]);
    let mut seen = [0; 4];
    request.readable().read_at(0, &mut seen);
    assert_eq!(&seen, b"data");
}

#[test]
fn what_a_request_reads_is_kept_for_it_when_the_front_end_leaves() {
    for flags in [FOREIGN, IN_ADVANCE, ON_DEMAND] {
        let guest = Guest::for_flags(flags);
        let (device, hands) = Slow::keeping();
        let served = served(device, &guest, 0);
        let mut raw = Raw::start(&served, guest.whole(RegionLayout::XenMerged, flags));
        let content = pattern(LARGE as usize + 300, 1);
        raw.write(DATA_PAGE, &content);
        let from = raw.address(DATA_PAGE);
        // In pieces, which begin and end within pages.
        raw.push(0, &[(from, LARGE, false), (from + u64::from(LARGE), 300, false)]);
        raw.push(8, &[(raw.address(DATA_PAGE + 256), 4096, false)]);
        raw.ring.publish();
        let [request, answered] = [(); 2].map(|()| hands.request());
        answered.complete(0).unwrap();
        assert_eq!(raw.used().head, 8);
        drop(raw);
        served.events.wait_disconnected();
        guest.assert_left_alone();
        // The guest may do with it what it likes.
        guest.memory.write(GuestAddr(from), &[0; 8192]).unwrap();
        let mut seen = vec![0; content.len()];
        request.readable().read_at(0, &mut seen);
        assert!(seen == content, "{flags:#x}");
        let disk = memory_file();
        let len = content.len() as u64;
        let moved = request.readable().write_to(0, len, disk.as_fd(), 0, false);
        assert_eq!(moved.unwrap(), len);
        disk.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == content, "{flags:#x}");
    }
}
