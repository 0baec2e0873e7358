//! ACCESS_PLATFORM and IOTLB_MSG.

use vhost_user_core::address::{Iova, UserAddr};
use vhost_user_core::connection::{IotlbChange, Offer};
use vhost_user_core::wire::XenDesigns;

use super::support::*;

const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

fn negotiated() -> Peer {
    let mut peer = Peer::new(offer(2));
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL)), ack());
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED)), ack());
    peer.deeds.clear();
    peer
}

#[test]
fn a_translation_is_passed_on_with_what_it_allows() {
    for (access, read, write) in [(1, true, false), (2, false, true), (3, true, true)] {
        let mut peer = negotiated();
        let payload = iotlb(0x1000, 0x2000, 0x7f00_0000_3000, access, UPDATE);
        assert_eq!(peer.ask(IOTLB_MSG, payload), ack());
        let (iova, to) = (Iova(0x1000), UserAddr(0x7f00_0000_3000));
        let change = IotlbChange::Update { iova, size: 0x2000, to, read, write };
        assert_eq!(peer.deeds, [Deed::Iotlb(change)]);
    }
}

#[test]
fn an_invalidation_is_passed_on_with_its_last_address() {
    for (iova, size, last) in [
        (0x1000, 0x1000, 0x1fff),
        (5, 1, 5),
        (u64::MAX, 1, u64::MAX),
        (1 << 63, 1 << 63, u64::MAX),
        // All there are, in the two ways in which QEMU says it.
        (0, u64::MAX, u64::MAX),
        (0, 0, u64::MAX),
    ] {
        let mut peer = negotiated();
        assert_eq!(peer.ask(IOTLB_MSG, iotlb(iova, size, 0, 0, INVALIDATE)), ack());
        let change = IotlbChange::Invalidate { first: Iova(iova), last: Iova(last) };
        assert_eq!(peer.deeds, [Deed::Iotlb(change)]);
    }
}

#[test]
fn it_is_answered_whether_that_was_asked_for_or_not() {
    let mut peer = negotiated();
    let payload = iotlb(0x1000, 0x1000, 0x7f00_0000_0000, 3, UPDATE);
    for flags in [PLAIN, NEED_REPLY] {
        assert_eq!(peer.say(IOTLB_MSG, flags, payload.clone(), 0), ack());
        peer.fails = true;
        assert_eq!(peer.say(IOTLB_MSG, flags, payload.clone(), 0), nack());
        peer.fails = false;
    }
}

#[test]
fn what_is_no_change_is_refused_and_the_connection_goes_on() {
    let mut peer = negotiated();
    for payload in [
        iotlb(0x1000, 0x1000, 0, 1, 1),
        iotlb(0x1000, 0x1000, 0, 1, 4),
        iotlb(0x1000, 0x1000, 0, 1, 0),
        iotlb(0x1000, 0x1000, 0, 1, 5),
        iotlb(0x1000, 0x1000, 0, 4, UPDATE),
        iotlb(0x1000, 0, 0, 0, INVALIDATE),
        iotlb(0x1000, u64::MAX, 0, 0, INVALIDATE),
        iotlb(u64::MAX, 2, 0, 0, INVALIDATE),
        vec![0; 31],
        vec![0; 33],
    ] {
        assert_eq!(peer.ask(IOTLB_MSG, payload), nack());
    }
    assert_eq!(peer.say(IOTLB_MSG, NEED_REPLY, iotlb(0, 1, 0, 1, UPDATE), 1), nack());
    assert_eq!(peer.deeds, []);
}

#[test]
fn it_needs_the_feature_accepted() {
    let mut peer = Peer::new(offer(2));
    let payload = iotlb(0x1000, 0x1000, 0x7f00_0000_0000, 3, UPDATE);
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL)), ack());
    assert_eq!(peer.ask(IOTLB_MSG, payload.clone()), nack());
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED)), ack());
    assert_eq!(peer.ask(IOTLB_MSG, payload.clone()), nack());
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED)), ack());
    assert_eq!(peer.ask(IOTLB_MSG, payload), ack());
}

#[test]
fn rings_start_only_where_translations_can_be_asked_for() {
    let backend_req = 1 << 5;
    for (protocol, starts) in [(PROTOCOL & !backend_req, false), (PROTOCOL, true)] {
        let mut peer = negotiated();
        assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(protocol)), ack());
        assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[REGION]), 1), ack());
        assert_eq!(peer.ask(SET_VRING_NUM, state(0, 128)), ack());
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
        let kicked = peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1);
        assert_eq!(kicked == ack(), starts, "{kicked:?}");
    }
}

#[test]
fn it_is_refused_with_the_reason_where_xen_mmap_is_offered() {
    let mut peer = Peer::new(Offer { xen: Some(XenDesigns::ALL), ..offer(2) });
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL_ON_XEN)), ack());
    let accepted = word(DEVICE_FEATURES | ACCESS_PLATFORM);
    let frame = bare_frame(SET_FEATURES, NEED_REPLY, accepted);
    let step = format!("{:?}", peer.connection.handle(frame));
    let why = "SET_FEATURES: not offered: ACCESS_PLATFORM (not possible with XEN_MMAP)";
    assert!(step.contains(why), "{step}");
}
