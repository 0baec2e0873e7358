//! Which messages reset the device and which only stop its rings: one rule, one test.

use super::support::*;

/// PROTOCOL without RESET_DEVICE.
const NO_RESET_DEVICE: u64 = PROTOCOL & !(1 << 13);
const DRIVER_OK: u64 = 0xf;

/// What the back-end was asked to do that concerns the device's own state: the resets.
fn resets(peer: &mut Peer) -> Vec<bool> {
    let reset = |deed| match deed {
        Deed::StopRings { reset } | Deed::Start { reset, .. } => Some(reset),
        _ => None,
    };
    peer.take_deeds().into_iter().filter_map(reset).collect()
}

fn accepts(peer: &mut Peer, protocol: u64) {
    assert_eq!(peer.ask(SET_PROTOCOL_FEATURES, word(protocol)), ack());
}

fn start(peer: &mut Peer, index: u32, base: u32, parts: [u64; 3]) -> bool {
    assert_eq!(peer.ask(SET_VRING_NUM, state(index, 128)), ack());
    assert_eq!(peer.ask(SET_VRING_BASE, state(index, base)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address(index, 0, parts)), ack());
    peer.take_deeds();
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(index.into()), 1), ack());
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(index, 1)), ack());
    resets(peer) == [true]
}

fn stop(peer: &mut Peer, index: u32, base: u16) {
    peer.base = base.into();
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(index, 0)), ack());
    assert_eq!(peer.ask(GET_VRING_BASE, state(index, 0)), Said::Reply(state(index, base.into())));
}

fn parts(n: u64) -> [u64; 3] {
    PARTS.map(|part| part + n * 0x10_0000)
}

/// Two rings run as QEMU starts them.
fn running() -> Peer {
    let mut peer = Peer::ready();
    for index in 0..2 {
        start(&mut peer, index, 0, parts(index.into()));
    }
    assert_eq!(peer.ask(SET_STATUS, word(DRIVER_OK)), ack());
    peer.take_deeds();
    peer
}

#[test]
fn reset_device_resets_once_until_something_is_said_again() {
    let mut peer = running();
    for (touch, payload) in [(SET_STATUS, word(0x1)), (SET_CONFIG, config(0, 0, &[1]))] {
        for reset in [true, false, false] {
            assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
            assert_eq!(resets(&mut peer), [reset]);
        }
        assert_eq!(peer.ask(touch, payload), ack());
    }
    assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    assert_eq!(resets(&mut peer), [true]);
    assert!(!start(&mut peer, 0, 0, PARTS));
    assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    assert_eq!(resets(&mut peer), [true]);
}

#[test]
fn the_device_of_a_new_connection_may_be_reset_from_what_a_former_one_left() {
    let mut peer = Peer::negotiated();
    peer.take_deeds();
    assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    assert_eq!(resets(&mut peer), [true]);
}

#[test]
fn qemus_pair_of_status_0_and_reset_device_is_one_reset() {
    let mut peer = running();
    (0..2).for_each(|index| stop(&mut peer, index, 7));
    assert_eq!(peer.ask(SET_STATUS, word(0)), ack());
    for _ in 0..3 {
        assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    }
    assert_eq!(resets(&mut peer), [false, true, false, false]);
    assert!(!start(&mut peer, 0, 0, parts(5)), "it was reset already");
}

#[test]
fn status_0_resets_from_a_front_end_without_reset_device() {
    let mut peer = running();
    accepts(&mut peer, NO_RESET_DEVICE);
    for _ in 0..2 {
        assert_eq!(peer.ask(SET_STATUS, word(0)), ack());
    }
    assert_eq!(resets(&mut peer), [true, false]);
    assert!(!start(&mut peer, 0, 0, parts(5)), "it was reset already");
}

/// QEMU 11.1 at `stop` and `cont`, and QEMU 7.2, which writes the status before it asks for the
/// bases.
#[test]
fn a_machine_that_pauses_resets_nothing() {
    for status_first in [false, true] {
        let mut peer = running();
        if status_first {
            peer.base = 7;
            assert_eq!(peer.ask(SET_STATUS, word(0)), ack());
        }
        for index in 0..2 {
            stop(&mut peer, index, 7);
        }
        if !status_first {
            assert_eq!(peer.ask(SET_STATUS, word(0)), ack());
        }
        assert_eq!(resets(&mut peer), [false]);
        assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED)), ack());
        assert_eq!(peer.ask(SET_STATUS, word(0x8)), ack());
        for index in 0..2 {
            assert!(!start(&mut peer, index, 7, parts(index.into())));
        }
    }
}

/// QEMU before 8.2 accepts RESET_DEVICE and does not send it; crosvm and Cloud Hypervisor have
/// neither it nor the status.
#[test]
fn a_ring_that_starts_elsewhere_than_it_stopped_shows_a_reset() {
    for (writes_status, protocol) in [(true, PROTOCOL), (false, PROTOCOL & !(1 << 13 | 1 << 16))] {
        for (base, place) in [(0, 0), (7, 5), (8, 0)] {
            let mut peer = running();
            accepts(&mut peer, protocol);
            (0..2).for_each(|index| stop(&mut peer, index, 7));
            if writes_status {
                assert_eq!(peer.ask(SET_STATUS, word(0)), ack());
            }
            assert!(start(&mut peer, 0, base, parts(place)), "base {base}, place {place}");
            assert!(!start(&mut peer, 1, 0, parts(6)), "it was reset already");
        }
    }
}

#[test]
fn a_ring_that_stopped_at_its_beginning_leaves_it_to_the_next_to_tell() {
    for (base, reset) in [(0, true), (9, false)] {
        let mut peer = running();
        stop(&mut peer, 0, 0);
        stop(&mut peer, 1, 9);
        assert!(!start(&mut peer, 0, 0, parts(0)));
        assert_eq!(start(&mut peer, 1, base, parts(1)), reset);
    }
}

#[test]
fn a_ring_that_stops_alone_and_starts_elsewhere_resets_nothing() {
    let mut peer = running();
    stop(&mut peer, 1, 9);
    assert!(!start(&mut peer, 1, 0, parts(5)));
    // Nor does one after a pause, once the driver is ready or another ring has told.
    for driver_ok in [true, false] {
        let first = if driver_ok { 0 } else { 9 };
        let mut peer = running();
        stop(&mut peer, 0, first);
        stop(&mut peer, 1, 9);
        assert!(!start(&mut peer, 0, first.into(), parts(0)));
        if driver_ok {
            assert_eq!(peer.ask(SET_STATUS, word(DRIVER_OK)), ack());
        }
        assert!(!start(&mut peer, 1, 0, parts(5)));
    }
}

#[test]
fn a_start_that_failed_still_shows_a_reset_at_the_next() {
    let mut peer = running();
    (0..2).for_each(|index| stop(&mut peer, index, 7));
    assert_eq!(peer.ask(SET_VRING_BASE, state(0, 0)), ack());
    peer.take_deeds();
    peer.fails = true;
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert_eq!(resets(&mut peer), [true, true]);
}
