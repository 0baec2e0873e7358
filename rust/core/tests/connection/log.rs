//! The dirty log. Orders and payloads are QEMU 11.1.3's, recorded where it migrated a guest.

use super::support::*;

/// Bytes of the log for a guest of 256 MiB.
const LOG_BYTES: u64 = 0x2000;
/// Where the used ring of vring 0 is in the guest: QEMU names it in every SET_VRING_ADDR.
const USED: u64 = 0x3000;
const ON: u64 = ACCEPTED | LOG_ALL;
const OFF: u64 = ACCEPTED;

fn log(bytes: u64, offset: u64) -> Vec<u8> {
    [word(bytes), word(offset)].concat()
}

fn address_with(flags: u32) -> Vec<u8> {
    logged_address(0, flags, PARTS, USED)
}

fn set_features(features: u64) -> Deed {
    Deed::Features { features, enable_all: false, ignored: 0 }
}

fn log_used_ring(at: Option<u64>) -> Deed {
    Deed::LogUsedRing { index: 0, at }
}

fn takes_log(peer: &mut Peer) -> bool {
    let payload = log(LOG_BYTES, 0);
    peer.say(SET_LOG_BASE, PLAIN, payload.clone(), 1) == Said::Reply(payload)
}

/// Vring 0 runs, and nothing is logged.
fn running() -> Peer {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(SET_FEATURES, word(OFF)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address_with(0)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 1)), ack());
    peer.deeds.clear();
    peer
}

#[test]
fn logging_is_switched_on_while_a_ring_runs() {
    let mut peer = running();
    assert!(takes_log(&mut peer));
    assert_eq!(peer.ask(SET_FEATURES, word(ON)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address_with(1)), ack());
    let set_log = Deed::SetLog { bytes: LOG_BYTES, offset: 0 };
    assert_eq!(peer.deeds, [set_log, set_features(ON), log_used_ring(Some(USED))]);
    assert!(peer.connection.ring(0).unwrap().is_started());
}

#[test]
fn a_cancelled_migration_switches_logging_off_while_a_ring_runs() {
    let mut peer = running();
    assert!(takes_log(&mut peer));
    assert_eq!(peer.ask(SET_FEATURES, word(ON)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address_with(1)), ack());
    peer.deeds.clear();
    assert_eq!(peer.say(SET_FEATURES, PLAIN, word(OFF), 0), Said::Nothing);
    assert_eq!(peer.say(SET_VRING_ADDR, PLAIN, address_with(0), 0), Said::Nothing);
    assert_eq!(peer.take_deeds(), [set_features(OFF), log_used_ring(None)]);
    // The next try brings another log.
    assert!(takes_log(&mut peer));
    assert_eq!(peer.connection.features(), OFF);
    assert!(peer.connection.ring(0).unwrap().is_started());
}

/// After a failure behind the stop, and at `cont` while a migration is under way.
#[test]
fn a_ring_starts_with_logging_on_and_its_log_comes_last() {
    let mut peer = running();
    peer.base = 9;
    assert!(takes_log(&mut peer));
    assert_eq!(peer.ask(SET_FEATURES, word(ON)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address_with(1)), ack());
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 0)), ack());
    assert_eq!(peer.say(GET_VRING_BASE, PLAIN, state(0, 0), 0), Said::Reply(state(0, 9)));
    assert_eq!(peer.say(SET_STATUS, PLAIN, word(0), 0), Said::Nothing);
    peer.deeds.clear();

    assert_eq!(peer.ask(SET_FEATURES, word(ON)), ack());
    assert_eq!(peer.say(SET_STATUS, PLAIN, word(8), 0), Said::Nothing);
    assert_eq!(peer.ask(SET_VRING_NUM, state(0, 128)), ack());
    assert_eq!(peer.ask(SET_VRING_BASE, state(0, 9)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address_with(1)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert!(takes_log(&mut peer));
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 1)), ack());
    let (features, used_log) = (DEVICE_FEATURES, Some(USED));
    let (index, size, parts, base, enabled) = (0, 128, PARTS, 9, false);
    // The same driver goes on, though its used ring was not logged when it began.
    let start = Deed::Start { index, size, parts, base, enabled, features, used_log, reset: false };
    assert_eq!(
        peer.deeds,
        [
            set_features(ON),
            Deed::Status(8),
            start,
            Deed::SetLog { bytes: LOG_BYTES, offset: 0 },
            Deed::Enable { index: 0, enabled: true },
        ]
    );
}

#[test]
fn no_feature_but_log_all_changes_while_a_ring_runs() {
    for (features, taken) in
        [(ON, true), (OFF, true), (ON & !(1 << 29), false), (OFF & !(1 << 9), false)]
    {
        let mut peer = running();
        let said = peer.ask(SET_FEATURES, word(features));
        assert_eq!(said, if taken { ack() } else { nack() }, "{features:#x}");
    }
}

#[test]
fn a_running_ring_does_not_move_when_its_log_is_switched() {
    let mut peer = running();
    let moved = PARTS.map(|part| part + 0x1000);
    assert_eq!(peer.ask(SET_VRING_ADDR, logged_address(0, 1, moved, USED)), nack());
    assert_eq!(peer.ask(SET_VRING_ADDR, logged_address(0, 2, PARTS, USED)), nack());
    assert_eq!(peer.deeds, []);
}

#[test]
fn a_back_end_that_cannot_switch_logging_leaves_it_as_it_was() {
    let mut peer = running();
    peer.fails = true;
    assert_eq!(peer.ask(SET_VRING_ADDR, address_with(1)), nack());
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 0)), ack());
    assert_eq!(peer.say(GET_VRING_BASE, PLAIN, state(0, 0), 0), Said::Reply(state(0, 0)));
    peer.deeds.clear();
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert!(matches!(peer.deeds[..], [Deed::Start { used_log: None, .. }]), "{:?}", peer.deeds);
}

/// A front-end that does not hear of a refusal takes writes for logged, and loses them.
#[test]
fn a_log_that_cannot_be_used_closes_the_connection() {
    for payload in [log(0, 0), log(u64::MAX, 1)] {
        assert_eq!(running().say(SET_LOG_BASE, NEED_REPLY, payload, 1), Said::Closed);
    }
    for fds in [0, 2] {
        assert_eq!(running().say(SET_LOG_BASE, PLAIN, log(LOG_BYTES, 0), fds), Said::Closed);
    }
    let mut peer = running();
    peer.fails = true;
    assert_eq!(peer.say(SET_LOG_BASE, NEED_REPLY, log(LOG_BYTES, 0), 1), Said::Closed);
}

#[test]
fn a_log_is_answered_once_even_if_an_acknowledgement_was_asked_for() {
    let payload = log(0x4000, 0x1000);
    let said = running().say(SET_LOG_BASE, NEED_REPLY, payload.clone(), 1);
    assert_eq!(said, Said::Reply(payload));
}

#[test]
fn the_log_s_event_descriptor_is_acknowledged_as_most_messages_are() {
    let mut peer = running();
    assert_eq!(peer.say(SET_LOG_FD, NEED_REPLY, vec![], 1), ack());
    assert_eq!(peer.take_deeds(), [Deed::LogEvent]);
    assert_eq!(peer.say(SET_LOG_FD, NEED_REPLY, vec![], 0), nack());
}
