//! The configuration space, the status, reset and the back-end's channel: one rule, one test.

use super::support::*;

#[test]
fn configuration_is_read_at_any_offset_and_zero_past_its_end() {
    let mut peer = Peer::negotiated();
    for (offset, size) in [(0, 60), (8, 4), (0, 256), (56, 8), (4000, 96)] {
        for flags in [0, 1, 2] {
            let request = config(offset, flags, &vec![0xee; size as usize]);
            let reply = config(offset, flags, &config_bytes(offset, size));
            assert_eq!(peer.say(GET_CONFIG, PLAIN, request, 0), Said::Reply(reply));
        }
    }
}

#[test]
fn a_read_of_configuration_out_of_range_gets_an_empty_reply() {
    let mut lying = config(0, 0, &[0; 8]);
    lying[4..8].fill(0xff);
    for flags in [PLAIN, NEED_REPLY] {
        for request in [
            config(0, 0, &[]),
            config(0x1000, 0, &[0]),
            config(u32::MAX, 0, &[0; 2]),
            config(13, 0, &[0; 4084]),
            config(0, 4, &[0; 4]),
            lying.clone(),
            vec![0; 11],
        ] {
            let mut peer = Peer::negotiated();
            peer.deeds.clear();
            assert_eq!(peer.say(GET_CONFIG, flags, request, 0), Said::Refused(vec![]));
            assert_eq!(peer.deeds, []);
        }
    }
}

#[test]
fn a_write_of_configuration_must_lie_inside_it() {
    let mut peer = Peer::negotiated();
    peer.deeds.clear();
    assert_eq!(peer.ask(SET_CONFIG, config(32, 0, &[1])), ack());
    assert_eq!(peer.ask(SET_CONFIG, config(0, 1, &[7; 60])), ack());
    for (offset, size) in [(60, 1), (59, 2), (0, 61), (u32::MAX, 1), (0, 0)] {
        assert_eq!(peer.ask(SET_CONFIG, config(offset, 0, &vec![0; size])), nack());
    }
    assert_eq!(peer.ask(SET_CONFIG, config(0, u32::MAX, &[0])), nack());
    let writes = [(32, vec![1]), (0, vec![7; 60])];
    assert_eq!(peer.deeds, writes.map(|(offset, data)| Deed::WriteConfig { offset, data }));
}

#[test]
fn a_write_of_configuration_that_the_device_refuses_is_refused() {
    let mut peer = Peer::negotiated();
    peer.fails = true;
    assert_eq!(peer.ask(SET_CONFIG, config(0, 0, &[1])), nack());
    peer.fails = true;
    assert_eq!(peer.say(SET_CONFIG, PLAIN, config(0, 0, &[1]), 0), Said::Closed);
}

#[test]
fn the_status_is_what_was_written() {
    let mut peer = Peer::negotiated();
    for byte in [0x1, 0x3, 0xb, 0xf] {
        assert_eq!(peer.ask(SET_STATUS, word(byte)), ack());
        assert_eq!(peer.ask(GET_STATUS, vec![]), Said::Reply(word(byte)));
    }
    for value in [0x100, 0x1_0000_0001, u64::MAX] {
        assert_eq!(peer.ask(SET_STATUS, word(value)), nack());
    }
    assert_eq!(peer.connection.status(), 0xf);
}

#[test]
fn features_ok_does_not_stick_without_the_required_features() {
    let mut peer = Peer::new(offer(1));
    peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL));
    assert_eq!(peer.ask(SET_STATUS, word(0xb)), ack());
    assert_eq!(peer.ask(GET_STATUS, vec![]), Said::Reply(word(0x3)));
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED)), ack());
    assert_eq!(peer.ask(SET_STATUS, word(0xb)), ack());
    assert_eq!(peer.ask(GET_STATUS, vec![]), Said::Reply(word(0xb)));
}

#[test]
fn a_status_of_which_nothing_sticks_is_not_a_reset() {
    let mut peer = Peer::new(offer(1));
    peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL));
    peer.ask(SET_VRING_ENABLE, state(0, 1));
    peer.deeds.clear();
    assert_eq!(peer.ask(SET_STATUS, word(0x8)), ack());
    assert_eq!(peer.connection.status(), 0);
    assert!(peer.connection.ring(0).unwrap().is_enabled());
    assert_eq!(peer.deeds, [Deed::Status(0)]);
}

#[test]
fn a_reset_stops_and_forgets_the_rings_and_keeps_memory_and_features() {
    for (number, payload, deed, base) in [
        (RESET_DEVICE, vec![], Deed::StopRings { reset: true }, 0),
        // Front-ends ask for the base after it.
        (SET_STATUS, word(0), Deed::StopRings { reset: false }, 601),
    ] {
        let mut peer = Peer::started();
        peer.base = 601;
        peer.ask(SET_VRING_ENABLE, state(0, 1));
        peer.ask(SET_STATUS, word(0xf));
        peer.connection.reset_needed();
        assert_eq!(peer.connection.status(), 0x4f);
        peer.deeds.clear();
        assert_eq!(peer.ask(number, payload), ack());
        assert_eq!(peer.deeds, [deed]);
        let ring = peer.connection.ring(0).unwrap();
        assert_eq!(
            (ring.is_started(), ring.is_enabled(), ring.base(false).to_word()),
            (false, false, base)
        );
        assert_eq!((peer.connection.status(), peer.connection.features()), (0, ACCEPTED));
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
        assert_eq!(peer.ask(SET_VRING_NUM, state(0, 16)), ack());
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    }
}

#[test]
fn a_reset_that_failed_changes_nothing() {
    let mut peer = Peer::started();
    peer.fails = true;
    assert_eq!(peer.ask(RESET_DEVICE, vec![]), nack());
    assert!(peer.connection.ring(0).unwrap().is_started());
}

#[test]
fn the_back_ends_channel_comes_with_or_without_a_payload_and_any_number_of_times() {
    let mut peer = Peer::negotiated();
    assert!(!peer.connection.has_backend_channel() && !peer.connection.can_notify_config());
    for payload in [vec![], word(0), vec![]] {
        assert_eq!(peer.say(SET_BACKEND_REQ_FD, NEED_REPLY, payload, 1), ack());
        assert!(peer.connection.can_notify_config());
    }
    assert_eq!(peer.ask(SET_BACKEND_REQ_FD, vec![]), nack());
    peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL & !(1 << 9)));
    assert!(peer.connection.has_backend_channel() && !peer.connection.can_notify_config());
}
