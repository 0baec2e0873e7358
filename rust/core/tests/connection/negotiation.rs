//! Features, protocol features and ownership: one rule, one test.

use vhost_user_core::connection::Offer;

use super::support::*;

#[test]
fn protocol_features_are_readable_before_anything_else() {
    let mut peer = Peer::new(offer(2));
    let reply = peer.say(GET_PROTOCOL_FEATURES, PLAIN, vec![], 0);
    assert_eq!(reply, Said::Reply(word(PROTOCOL)));
}

#[test]
fn features_that_were_not_offered_are_refused_and_the_earlier_ones_stay() {
    let ours = OFFERED | NOT_OFFERED_AND_HARMLESS;
    for bit in (0..64).filter(|bit| ours & (1 << bit) == 0) {
        let mut peer = Peer::negotiated();
        peer.deeds.clear();
        assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED | 1 << bit)), nack(), "bit {bit}");
        assert_eq!((peer.connection.features(), peer.deeds.len()), (ACCEPTED, 0));
    }
    assert_eq!(Peer::negotiated().ask(SET_FEATURES, word(u64::MAX)), nack());
}

/// QEMU's SCSI controller accepts VIRTIO_SCSI_F_CHANGE from its driver by itself, and passes it on.
#[test]
fn a_bit_of_the_device_type_that_does_no_harm_is_ignored_without_an_offer() {
    for bit in (0..64).filter(|bit| NOT_OFFERED_AND_HARMLESS & (1 << bit) != 0) {
        let mut peer = Peer::started();
        peer.deeds.clear();
        // That ring runs: features may not change now, and they do not.
        assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED | 1 << bit)), ack(), "bit {bit}");
        let (features, ignored) = (ACCEPTED, 1 << bit);
        assert_eq!(peer.take_deeds(), [Deed::Features { features, enable_all: false, ignored }]);
        assert_eq!(peer.connection.features(), ACCEPTED);
    }
}

#[test]
fn a_bit_that_changes_queues_or_what_lies_in_them_is_refused_without_an_offer() {
    // (device type, bits that are ignored, bits that are refused)
    let cases: [(u32, u64, u64); 4] = [
        // A network device: the control queue is its front-end's, a checksum is not.
        (1, 0xfe_0000, 1 << 0 | 1 << 15 | 1 << 57),
        // A SCSI controller: HOTPLUG and CHANGE; INOUT and T10_PI.
        (8, 1 << 1 | 1 << 2, 1 << 0 | 1 << 3),
        // A file system: a queue of notifications.
        (26, 0, 1 << 0),
        // A type that no table knows.
        (0xffff, 0, 1 << 0 | 1 << 12),
    ];
    for (device_type, ignored, refused) in cases {
        let mut peer = Peer::new(Offer { device_type, features: 1 << 32, ..offer(2) });
        let base = 1 << 32 | 1 << 30;
        assert_eq!(peer.ask(SET_FEATURES, word(base | ignored)), ack(), "{device_type}");
        assert_eq!(peer.connection.features(), base);
        for bit in (0..64).filter(|bit| refused >> bit & 1 != 0) {
            assert_eq!(
                peer.ask(SET_FEATURES, word(base | 1 << bit)),
                nack(),
                "{device_type} {bit}"
            );
        }
    }
}

#[test]
fn features_without_version_1_are_refused() {
    let mut peer = Peer::new(offer(2));
    assert_eq!(peer.ask(SET_FEATURES, word(0x7000_1200)), nack());
    assert_eq!(peer.ask(SET_FEATURES, word(0)), nack());
    assert_eq!(peer.connection.features(), 0);
    assert_eq!(Peer::negotiated().say(SET_FEATURES, PLAIN, word(0x4000_0000), 0), Said::Closed);
}

#[test]
fn a_refusal_for_want_of_version_1_says_what_to_change() {
    let mut peer = Peer::ready();
    assert_eq!(peer.why(SET_FEATURES, NEED_REPLY, word(0x4000_0000)), LEGACY);
    // Its lower half alone is taken for the first of two; the ring is refused then.
    let mut peer = Peer::new(offer(1));
    peer.say(SET_FEATURES, PLAIN, word(0x4000_0000), 0);
    peer.say(SET_MEM_TABLE, PLAIN, table(&[REGION]), 1);
    peer.say(SET_VRING_NUM, PLAIN, state(0, 16), 0);
    peer.say(SET_VRING_ADDR, PLAIN, address(0, 0, PARTS), 0);
    let why = peer.why(SET_VRING_KICK, NEED_REPLY, word(0x100));
    assert_eq!(
        why,
        LEGACY.replace("SET_FEATURES: required:", "SET_VRING_KICK: vring 0 cannot start without")
    );
}

const LEGACY: &str = "SET_FEATURES: required: VERSION_1: the driver uses the legacy interface, which \
                      this device does not have (give QEMU's device disable-legacy=on)";

/// A transitional device serves a driver of the legacy interface; one that passes the features on in
/// halves has both in the end.
#[test]
fn a_transitional_device_needs_no_version_1() {
    for flags in [PLAIN, NEED_REPLY] {
        let mut peer = Peer::new(Offer { required_features: 0, ..offer(1) });
        peer.say(SET_FEATURES, flags, word(0x7000_1200), 0);
        assert_eq!(peer.connection.features(), 0x7000_1200);
        peer.say(SET_MEM_TABLE, PLAIN, table(&[REGION]), 1);
        peer.say(SET_VRING_NUM, PLAIN, state(0, 16), 0);
        peer.say(SET_VRING_ADDR, PLAIN, address(0, 0, PARTS), 0);
        peer.deeds.clear();
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
        assert!(
            matches!(peer.deeds[..], [Deed::Start { features: 0x3000_1200, .. }]),
            "{:?}",
            peer.deeds
        );
    }
    let mut peer = Peer::new(Offer { required_features: 0, ..offer(1) });
    peer.say(SET_FEATURES, PLAIN, word(0x7000_1200), 0);
    peer.say(SET_FEATURES, PLAIN, word(ACCEPTED), 0);
    assert_eq!(peer.connection.features(), ACCEPTED);
}

#[test]
fn a_lower_half_of_the_features_has_no_effect_and_no_ring_starts_on_it() {
    let mut peer = Peer::new(offer(1));
    assert_eq!(peer.say(SET_FEATURES, PLAIN, word(0x7000_1200), 0), Said::Nothing);
    assert_eq!(peer.connection.features(), 0);
    peer.say(SET_MEM_TABLE, PLAIN, table(&[REGION]), 1);
    peer.say(SET_VRING_NUM, PLAIN, state(0, 16), 0);
    peer.say(SET_VRING_ADDR, PLAIN, address(0, 0, PARTS), 0);
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
    assert_eq!(peer.say(SET_FEATURES, PLAIN, word(ACCEPTED), 0), Said::Nothing);
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
}

#[test]
fn without_bit_30_all_rings_are_enabled_now_and_at_each_start() {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(SET_FEATURES, word(DEVICE_FEATURES)), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
    assert!(peer.connection.ring(1).unwrap().is_enabled());
    let enable = Deed::Features { features: DEVICE_FEATURES, enable_all: true, ignored: 0 };
    assert_eq!(peer.take_deeds(), [enable]);

    assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    assert!(!peer.connection.ring(0).unwrap().is_enabled());
    assert_eq!(peer.ask(SET_VRING_NUM, state(0, 128)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
}

#[test]
fn with_bit_30_features_neither_enable_nor_disable_a_ring() {
    let mut peer = Peer::started();
    assert!(!peer.connection.ring(0).unwrap().is_enabled());
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 1)), ack());
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED)), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
    assert!(!peer.connection.ring(1).unwrap().is_enabled());
}

#[test]
fn features_may_be_repeated_but_not_changed_while_a_ring_is_started() {
    let mut peer = Peer::started();
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED)), ack());
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED & !(1 << 29))), nack());
    assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, 0)));
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED & !(1 << 29))), ack());
}

#[test]
fn features_that_the_back_end_could_not_take_are_not_kept() {
    let mut peer = Peer::new(offer(2));
    peer.fails = true;
    assert_eq!(peer.ask(SET_FEATURES, word(DEVICE_FEATURES)), nack());
    assert_eq!(peer.connection.features(), 0);
    assert!(!peer.connection.ring(0).unwrap().is_enabled());
}

#[test]
fn protocol_features_may_be_set_without_being_read_and_again() {
    let mut peer = Peer::new(offer(2));
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(0x8)), ack());
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL)), ack());
    assert_eq!(peer.connection.protocol_features().bits(), PROTOCOL);
}

#[test]
fn protocol_features_that_were_not_offered_are_refused() {
    for bit in (0..64).filter(|bit| PROTOCOL & (1 << bit) == 0) {
        let mut peer = Peer::negotiated();
        assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL | 1 << bit)), nack());
        assert_eq!(peer.connection.protocol_features().bits(), PROTOCOL);
    }
}

/// Payload bytes and descriptors with which each message would be well formed.
const WELL_FORMED: [(u32, usize, usize); 29] = [
    (6, 16, 1),
    (7, 0, 1),
    (17, 0, 0),
    (19, 8, 0),
    (20, 8, 0),
    (21, 0, 1),
    (22, 32, 0),
    (23, 8, 0),
    (24, 13, 0),
    (25, 13, 0),
    (26, 1072, 0),
    (27, 8, 0),
    (28, 0, 0),
    (29, 0, 0),
    (30, 0, 0),
    (31, 24, 0),
    (32, 24, 1),
    (33, 0, 1),
    (34, 0, 0),
    (35, 8, 0),
    (36, 0, 0),
    (37, 40, 1),
    (38, 40, 0),
    (39, 8, 0),
    (40, 0, 0),
    (41, 16, 0),
    (42, 8, 1),
    (43, 0, 0),
    (44, 0, 0),
];

#[test]
fn messages_of_features_that_were_not_negotiated_are_refused() {
    for (number, bytes, fds) in WELL_FORMED {
        let mut peer = Peer::new(offer(2));
        let said = peer.say(number, NEED_REPLY, vec![0; bytes], fds);
        assert!(matches!(said, Said::Refused(_) | Said::Closed), "{number}: {said:?}");
        assert_eq!(peer.deeds, [], "{number}");
    }
}

/// The numbers of the messages that no device's back-end carries out.
pub(crate) const REFUSED: [u32; 9] = [19, 20, 23, 26, 27, 33, 35, 41, 44];

#[test]
fn messages_of_features_that_are_never_offered_are_refused_after_full_negotiation() {
    for number in REFUSED {
        let (_, bytes, fds) = WELL_FORMED.into_iter().find(|row| row.0 == number).unwrap();
        let mut peer = Peer::negotiated();
        peer.deeds.clear();
        let said = peer.say(number, NEED_REPLY, vec![0; bytes], fds);
        assert!(matches!(said, Said::Refused(_) | Said::Closed), "{number}: {said:?}");
        assert_eq!(peer.deeds, [], "{number}");
    }
}

/// QEMU "Vhost-user Protocol", "VHOST_USER_SET_LOG_BASE": the message is answered by a payload of
/// its own when LOG_SHMFD was negotiated, so that else REPLY_ACK holds for it as for most.
#[test]
fn a_log_without_log_shmfd_is_refused_by_an_acknowledgement_if_one_was_asked_for() {
    // An address in the front-end, or a size and an offset in a file.
    for (payload, fds) in [(word(0x7f00_0000_0000), 0), ([word(0x1000), word(0)].concat(), 1)] {
        let mut peer = Peer::started();
        assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL & !2)), ack());
        assert_eq!(peer.say(SET_LOG_BASE, NEED_REPLY, payload.clone(), fds), nack());
        assert!(peer.connection.ring(0).unwrap().is_started());
        assert_eq!(peer.deeds, []);
        // A front-end that hears nothing would take writes for logged.
        assert_eq!(peer.say(SET_LOG_BASE, PLAIN, payload, fds), Said::Closed);
    }
}

#[test]
fn ownership_may_be_taken_and_given_back_any_number_of_times() {
    let mut peer = Peer::started();
    for number in [SET_OWNER, SET_OWNER, RESET_OWNER, RESET_OWNER, SET_OWNER] {
        assert_eq!(peer.ask(number, vec![]), ack());
    }
    assert!(peer.connection.ring(0).unwrap().is_started());
    assert_eq!(peer.deeds, []);
}

#[test]
fn a_network_device_answers_how_many_pairs_of_queues_it_has() {
    for (queues, pairs) in [(2, 1), (3, 1), (4, 2), (5, 2), (256, 128)] {
        let mut peer = Peer::new(Offer { device_type: 1, ..offer(queues) });
        assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL)), ack());
        assert_eq!(peer.ask(GET_QUEUE_NUM, vec![]), Said::Reply(word(pairs)));
        assert!(peer.connection.ring(queues - 1).is_some());
    }
}

/// A packed ring has no legacy interface: VIRTIO 1.3, "Reserved Feature Bits".
#[test]
fn packed_rings_without_version_1_are_refused() {
    let mut transitional = offer(1);
    transitional.required_features = 0;
    let mut peer = Peer::new(transitional);
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL)), ack());
    let packed = 1 << 34 | 1 << 30;
    assert_eq!(peer.ask(SET_FEATURES, word(packed)), nack());
    assert_eq!(peer.ask(SET_FEATURES, word(packed | 1 << 32)), ack());
}
