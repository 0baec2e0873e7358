//! What becomes of requests when the memory is taken back that they lie in: nothing is written to
//! the guest any more, and nothing that it did not write counts as its data.

use std::sync::Arc;
use std::time::Duration;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::frontend::XenRegion;
use vhost_user_core::wire::RegionLayout;

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
        raw.client.set_status(0).unwrap_err();
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
