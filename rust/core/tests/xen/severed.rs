//! What becomes of requests when the memory is taken back that they lie in: nothing is written to
//! the guest any more, and nothing that it did not write counts as its data.

use std::sync::Arc;
use std::time::Duration;

use vhost_user_core::address::GuestAddr;
use vhost_user_core::wire::RegionLayout;

use super::guest::*;
use super::raw::*;
use super::slow::Slow;

/// Long enough for what comes back by itself, and what does not is given up soon.
const DRAIN: Duration = Duration::from_millis(300);

/// Serves a guest that grants on demand.
fn served(device: Arc<Slow>, guest: &Guest, copy_below: u64) -> Served {
    Served::draining(device, guest, DRAIN, |xen| xen.access.copy_below = copy_below)
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
        let (device, hands) = Slow::new(true);
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
