//! The device's own state on its way. QEMU "Vhost-user Protocol", "Migrating back-end state".

use super::support::*;

const SAVE: u32 = 0;
const LOAD: u32 = 1;

/// An error, and no descriptor.
fn refused() -> Said {
    Said::Refused(word(0x101))
}

fn begin(peer: &mut Peer, direction: u32) -> Said {
    peer.say(SET_DEVICE_STATE_FD, PLAIN, state(direction, 0), 1)
}

#[test]
fn a_transfer_is_answered_at_once_by_use_your_descriptor() {
    let mut peer = Peer::ready();
    for (direction, load) in [(SAVE, false), (LOAD, true)] {
        assert_eq!(begin(&mut peer, direction), Said::Reply(word(0x100)));
        assert_eq!(peer.say(CHECK_DEVICE_STATE, PLAIN, vec![], 0), Said::Reply(word(0)));
        assert_eq!(peer.take_deeds(), [Deed::Transfer { load }, Deed::Await]);
    }
}

#[test]
fn neither_memory_nor_features_are_needed_to_load() {
    let mut peer = Peer::new(offer(2));
    assert_eq!(peer.say(SET_PROTOCOL_FEATURES, PLAIN, word(PROTOCOL), 0), Said::Nothing);
    assert_eq!(begin(&mut peer, LOAD), Said::Reply(word(0x100)));
}

#[test]
fn no_state_is_transferred_while_a_ring_is_started() {
    let mut peer = Peer::started();
    for direction in [SAVE, LOAD] {
        assert_eq!(begin(&mut peer, direction), refused());
    }
    assert_eq!(peer.take_deeds(), []);
    assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, 0)));
    assert_eq!(begin(&mut peer, SAVE), Said::Reply(word(0x100)));
}

#[test]
fn an_unknown_direction_or_phase_and_a_missing_descriptor_are_refused() {
    let mut peer = Peer::ready();
    assert_eq!(begin(&mut peer, 2), refused());
    assert_eq!(peer.say(SET_DEVICE_STATE_FD, PLAIN, state(SAVE, 1), 1), refused());
    assert_eq!(peer.say(SET_DEVICE_STATE_FD, PLAIN, state(SAVE, 0), 0), refused());
    assert_eq!(peer.say(SET_DEVICE_STATE_FD, PLAIN, state(SAVE, 0), 2), refused());
    assert_eq!(peer.take_deeds(), []);
}

#[test]
fn a_failed_transfer_is_told_by_the_error_forms() {
    let mut peer = Peer::ready();
    peer.fails = true;
    assert_eq!(begin(&mut peer, SAVE), refused());
    peer.fails = true;
    assert_eq!(peer.say(CHECK_DEVICE_STATE, PLAIN, vec![], 0), Said::Refused(word(1)));
}

#[test]
fn no_ring_starts_on_a_device_whose_state_is_still_coming() {
    for fails in [false, true] {
        let mut peer = Peer::ready();
        begin(&mut peer, LOAD);
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
        peer.fails = fails;
        peer.ask(CHECK_DEVICE_STATE, vec![]);
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    }
}

#[test]
fn a_front_end_that_does_not_ask_how_saving_went_may_go_on() {
    let mut peer = Peer::ready();
    begin(&mut peer, SAVE);
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
}

/// Crosvm restores a snapshot into the process that has made it.
#[test]
fn a_ring_that_starts_elsewhere_after_a_load_does_not_reset_what_was_loaded() {
    for load in [false, true] {
        let mut peer = Peer::started();
        peer.base = 300;
        assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, 300)));
        if load {
            begin(&mut peer, LOAD);
            assert_eq!(peer.ask(CHECK_DEVICE_STATE, vec![]), Said::Reply(word(0)));
        }
        assert_eq!(peer.ask(SET_VRING_BASE, state(0, 57)), ack());
        peer.take_deeds();
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
        let [Deed::Start { reset, .. }] = peer.take_deeds()[..] else { panic!("no start") };
        assert_eq!(reset, !load);
    }
}

#[test]
fn a_reset_after_a_load_is_one() {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    begin(&mut peer, LOAD);
    assert_eq!(peer.ask(CHECK_DEVICE_STATE, vec![]), Said::Reply(word(0)));
    peer.take_deeds();
    assert_eq!(peer.ask(RESET_DEVICE, vec![]), ack());
    assert_eq!(peer.take_deeds(), [Deed::StopRings { reset: true }]);
}
