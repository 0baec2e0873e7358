//! One rule, one test.

use std::io::Read;
use std::os::unix::net::UnixStream;

use vhost_user_core::connection::{Connection, Outcome, Step};
use vhost_user_core::wire::{Flags, Frame, Header};

use super::support::*;

fn frame(number: u32, flags: u32, payload: Vec<u8>) -> Frame {
    Frame::new(number, Flags::from_bits_retain(flags), payload, Vec::new())
}

// Frames.

#[test]
fn flags_other_than_version_and_need_reply_close_the_connection() {
    for flags in [0x0, 0x2, 0x3, 0x5, 0xd, 0x8, 0x11, 0x19, 0x8000_0001, u32::MAX] {
        assert_eq!(Peer::negotiated().say(GET_FEATURES, flags, vec![], 0), Said::Closed);
    }
}

#[test]
fn a_payload_above_the_limit_closes_the_connection() {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.ask(GET_CONFIG, config(0, 0, &[0; 4085])), Said::Closed);
}

#[test]
fn a_header_that_lies_about_its_payload_closes_the_connection() {
    let mut lying = frame(GET_FEATURES, PLAIN, vec![]);
    lying.header = Header { size: 8, ..lying.header };
    assert_eq!(Peer::negotiated().say_frame(lying), Said::Closed);
}

#[test]
fn an_unknown_message_is_refused() {
    for number in [0, 45, 46, 100, 1006, 0x7fff_ffff, u32::MAX] {
        let mut peer = Peer::negotiated();
        assert_eq!(peer.say(number, NEED_REPLY, word(7), 1), nack());
        assert_eq!(peer.ask(GET_FEATURES, vec![]), Said::Reply(word(OFFERED)));
        assert_eq!(peer.say(number, PLAIN, vec![], 0), Said::Closed);
    }
}

#[test]
fn descriptors_of_a_refused_message_are_closed() {
    for (number, payload, fds) in [
        (46, vec![], 1),
        (GET_FEATURES, vec![], 8),
        (SET_VRING_NUM, state(0, 16), 1),
        (31, vec![0; 24], 1),
        (SET_MEM_TABLE, table(&[REGION]), 2),
        (SET_MEM_TABLE, table(&[REGION; 8]), 9),
        (SET_VRING_KICK, word(0x100), 1),
        (SET_VRING_CALL, word(0), 2),
        (ADD_MEM_REG, single(REGION), 2),
        (SET_BACKEND_REQ_FD, vec![], 32),
    ] {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let mut peer = Peer::with_fd(offer(2), writer.into());
        assert!(matches!(
            peer.say(number, NEED_REPLY, payload, fds),
            Said::Refused(_) | Said::Closed
        ));
        // With the peer's own writer gone too the stream is at its end, unless the connection
        // has kept one: then the read would block.
        let connection = peer.into_connection();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        drop(connection);
    }
}

#[test]
fn a_descriptor_on_a_message_that_takes_none_is_refused() {
    for (number, payload) in [
        (SET_FEATURES, word(OFFERED)),
        (SET_OWNER, vec![]),
        (SET_VRING_NUM, state(0, 16)),
        (SET_VRING_ADDR, address(0, 0, PARTS)),
        (SET_VRING_BASE, state(0, 0)),
        (SET_VRING_ENABLE, state(0, 1)),
        (SET_CONFIG, config(0, 0, &[0])),
        (RESET_DEVICE, vec![]),
        (SET_STATUS, word(1)),
    ] {
        let mut peer = Peer::negotiated();
        peer.deeds.clear();
        assert_eq!(peer.say(number, NEED_REPLY, payload, 1), nack(), "{number}");
        assert_eq!(peer.deeds, []);
    }
}

#[test]
fn a_payload_of_a_wrong_size_is_refused() {
    for (number, right) in [
        (SET_FEATURES, 8),
        (SET_OWNER, 0),
        (SET_VRING_NUM, 8),
        (SET_VRING_ADDR, 40),
        (SET_VRING_BASE, 8),
        (SET_VRING_KICK, 8),
        (SET_PROTOCOL_FEATURES, 8),
        (SET_VRING_ENABLE, 8),
        (SET_STATUS, 8),
        (RESET_DEVICE, 0),
        (REM_MEM_REG, 40),
    ] {
        for size in (0..64).filter(|size| *size != right) {
            let mut peer = Peer::negotiated();
            assert_eq!(peer.ask(number, vec![0; size]), nack(), "{number} {size}");
        }
    }
}

#[test]
fn a_read_with_a_wrong_payload_closes_the_connection() {
    for number in [GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_STATUS] {
        assert_eq!(Peer::negotiated().ask(number, word(0)), Said::Closed);
    }
}

#[test]
fn need_reply_on_a_read_gets_one_reply() {
    for flags in [PLAIN, NEED_REPLY] {
        let mut peer = Peer::negotiated();
        assert_eq!(peer.say(GET_FEATURES, flags, vec![], 0), Said::Reply(word(OFFERED)));
        assert_eq!(peer.say(GET_QUEUE_NUM, flags, vec![], 0), Said::Reply(word(2)));
    }
}

#[test]
fn an_acknowledgement_is_given_also_before_reply_ack_was_accepted() {
    let mut peer = Peer::new(offer(2));
    assert_eq!(peer.ask(SET_OWNER, vec![]), ack());
    assert_eq!(peer.ask(SET_VRING_NUM, state(0, 3)), nack());
}

#[test]
fn without_need_reply_success_is_silent_and_failure_closes() {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.say(SET_VRING_NUM, PLAIN, state(0, 16), 0), Said::Nothing);
    assert_eq!(peer.say(SET_VRING_NUM, PLAIN, state(0, 3), 0), Said::Closed);
}

// Negotiation.

#[test]
fn protocol_features_are_readable_before_anything_else() {
    let mut peer = Peer::new(offer(2));
    let reply = peer.say(GET_PROTOCOL_FEATURES, PLAIN, vec![], 0);
    assert_eq!(reply, Said::Reply(word(PROTOCOL)));
}

#[test]
fn features_that_were_not_offered_are_refused_and_the_earlier_ones_stay() {
    for bit in (0..64).filter(|bit| OFFERED & (1 << bit) == 0) {
        let mut peer = Peer::negotiated();
        peer.deeds.clear();
        assert_eq!(peer.ask(SET_FEATURES, word(OFFERED | 1 << bit)), nack(), "bit {bit}");
        assert_eq!((peer.connection.features(), peer.deeds.len()), (OFFERED, 0));
    }
    assert_eq!(Peer::negotiated().ask(SET_FEATURES, word(u64::MAX)), nack());
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
fn a_lower_half_of_the_features_has_no_effect_and_no_ring_starts_on_it() {
    let mut peer = Peer::new(offer(1));
    assert_eq!(peer.say(SET_FEATURES, PLAIN, word(0x7000_1200), 0), Said::Nothing);
    assert_eq!(peer.connection.features(), 0);
    peer.say(SET_MEM_TABLE, PLAIN, table(&[REGION]), 1);
    peer.say(SET_VRING_NUM, PLAIN, state(0, 16), 0);
    peer.say(SET_VRING_ADDR, PLAIN, address(0, 0, PARTS), 0);
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
    assert_eq!(peer.say(SET_FEATURES, PLAIN, word(OFFERED), 0), Said::Nothing);
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
}

#[test]
fn without_bit_30_all_rings_are_enabled_now_and_at_each_start() {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(SET_FEATURES, word(DEVICE_FEATURES)), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
    assert!(peer.connection.ring(1).unwrap().is_enabled());
    let enable = Deed::Features { features: DEVICE_FEATURES, enable_all: true };
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
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED)), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
    assert!(!peer.connection.ring(1).unwrap().is_enabled());
}

#[test]
fn features_may_be_repeated_but_not_changed_while_a_ring_is_started() {
    let mut peer = Peer::started();
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED)), ack());
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED & !(1 << 29))), nack());
    assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, 0)));
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED & !(1 << 29))), ack());
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

#[test]
fn messages_of_features_that_are_never_offered_are_refused_after_full_negotiation() {
    let never = [6, 7, 19, 20, 22, 23, 26, 27, 28, 29, 30, 31, 32, 33, 35, 41, 42, 43, 44];
    for (number, bytes, fds) in WELL_FORMED.into_iter().filter(|row| never.contains(&row.0)) {
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

// Memory.

#[test]
fn a_table_may_hold_up_to_32_regions_also_while_a_ring_is_started() {
    for count in [1, 8, 9, 32] {
        let regions: Vec<RawRegion> =
            (0..count).map(|n| [n << 32, 0x1000, 0x7f00_0000_0000 + (n << 32), n]).collect();
        let mut peer = Peer::started();
        assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&regions), count as usize), ack());
        assert_eq!(peer.deeds, [Deed::SetMemory(regions)]);
    }
}

#[test]
fn a_table_whose_counts_disagree_is_refused() {
    let mut lying = table(&[REGION]);
    lying[..4].fill(0xff);
    let mut short = table(&[REGION; 2]);
    short[0] = 1;
    for (payload, fds) in [
        (table(&[]), 0),
        (table(&[]), 1),
        (table(&[REGION]), 0),
        (table(&[REGION; 8]), 7),
        (table(&[REGION; 8]), 9),
        (table(&[REGION; 33]), 32),
        (table(&[REGION; 33]), 33),
        (lying, 1),
        (short, 2),
    ] {
        let mut peer = Peer::negotiated();
        peer.deeds.clear();
        assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, payload, fds), nack());
        assert_eq!(peer.deeds, []);
    }
}

#[test]
fn a_region_that_is_empty_huge_or_wraps_is_refused() {
    let page = 0xffff_ffff_ffff_f000;
    for bad in [
        [0, 0, 0, 0],
        [page, 0x2000, 0, 0],
        [0, 0x2000, page, 0],
        [0, 0x2000, 0, page],
        [0, (1 << 46) + 1, 0, 0],
        [0, 1 << 63, 0, 0],
    ] {
        let mut peer = Peer::negotiated();
        peer.deeds.clear();
        assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[bad]), 1), nack(), "{bad:x?}");
        assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[REGION, bad]), 2), nack());
        assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single(bad), 1), nack());
        assert_eq!(peer.deeds, []);
    }
}

#[test]
fn regions_up_to_the_promised_number_are_taken_and_one_more_is_not() {
    let mut offer = offer(1);
    offer.max_memory_slots = 3;
    let mut peer = Peer::new(offer);
    peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL));
    assert_eq!(peer.ask(GET_MAX_MEM_SLOTS, vec![]), Said::Reply(word(3)));
    for n in 0..3 {
        let region = [n << 32, 0x1000, n << 32, 0];
        assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single(region), 1), ack());
    }
    assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single([3 << 32, 0x1000, 0, 0]), 1), nack());
    assert_eq!(peer.ask(REM_MEM_REG, single([0, 0x1000, 0, 0])), ack());
    assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single([3 << 32, 0x1000, 0, 0]), 1), ack());
}

#[test]
fn a_region_that_the_back_end_could_not_add_is_not_counted() {
    let mut offer = offer(1);
    offer.max_memory_slots = 1;
    let mut peer = Peer::new(offer);
    peer.ask(SET_PROTOCOL_FEATURES, word(PROTOCOL));
    peer.fails = true;
    assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single(REGION), 1), nack());
    assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single(REGION), 1), ack());
}

#[test]
fn a_region_is_removed_with_or_without_one_descriptor() {
    for (fds, said) in [(0, ack()), (1, ack()), (2, nack())] {
        let mut peer = Peer::ready();
        assert_eq!(peer.say(REM_MEM_REG, NEED_REPLY, single(REGION), fds), said);
    }
    assert_eq!(Peer::negotiated().ask(REM_MEM_REG, single(REGION)), nack());
}

#[test]
fn a_ring_does_not_start_once_the_last_region_is_gone() {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(REM_MEM_REG, single(REGION)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
}

// Vrings.

#[test]
fn a_vring_that_does_not_exist_is_refused() {
    for index in [2, 0x1_0000, u32::MAX] {
        for (number, payload) in [
            (SET_VRING_NUM, state(index, 16)),
            (SET_VRING_ADDR, address(index, 0, PARTS)),
            (SET_VRING_BASE, state(index, 0)),
            (SET_VRING_ENABLE, state(index, 1)),
        ] {
            assert_eq!(Peer::negotiated().ask(number, payload), nack(), "{number} {index}");
        }
        // A read of a base has no way to say no.
        assert_eq!(Peer::negotiated().ask(GET_VRING_BASE, state(index, 0)), Said::Closed);
    }
    for number in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        for index in [2, 0xff, 0x1_0000, 1 << 63] {
            assert_eq!(Peer::negotiated().say(number, NEED_REPLY, word(index), 1), nack());
        }
    }
}

#[test]
fn a_size_that_is_no_power_of_two_within_the_limit_is_refused() {
    for num in [0, 3, 100, 512, 1000, 32769, 65536, 65537, u32::MAX] {
        assert_eq!(Peer::negotiated().ask(SET_VRING_NUM, state(0, num)), nack(), "{num}");
    }
    for num in [1, 2, 128, 256] {
        assert_eq!(Peer::negotiated().ask(SET_VRING_NUM, state(0, num)), ack(), "{num}");
    }
}

#[test]
fn a_base_of_more_than_16_bits_is_refused() {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.ask(SET_VRING_BASE, state(0, 0x1_2345)), nack());
    assert_eq!(peer.ask(SET_VRING_BASE, state(0, 0xffff)), ack());
}

#[test]
fn misaligned_addresses_and_flags_are_refused() {
    let [descriptors, available, used] = PARTS;
    for (flags, parts) in [
        (0, [descriptors + 8, available, used]),
        (0, [descriptors, available + 1, used]),
        (0, [descriptors, available, used + 2]),
        (0xffff_fffe, PARTS),
        (1, PARTS),
    ] {
        let mut peer = Peer::negotiated();
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, flags, parts)), nack());
    }
}

#[test]
fn a_descriptor_must_come_exactly_when_the_payload_says_so() {
    for number in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        for (payload, fds) in [(0, 0), (0x100, 1), (0, 2), (0x100, 2), (0x200, 0), (0x300, 0)] {
            let mut peer = Peer::ready();
            assert_eq!(peer.say(number, NEED_REPLY, word(payload), fds), nack());
            assert_eq!(peer.deeds, []);
        }
        for (payload, fds) in [(0, 1), (0x100, 0)] {
            assert_eq!(Peer::ready().say(number, NEED_REPLY, word(payload), fds), ack());
        }
    }
}

#[test]
fn call_and_error_descriptors_may_come_before_anything_else_and_at_any_time() {
    for mut peer in [Peer::new(offer(2)), Peer::started()] {
        assert_eq!(peer.say(SET_VRING_CALL, PLAIN, word(1), 1), Said::Nothing);
        assert_eq!(peer.say(SET_VRING_CALL, PLAIN, word(0x101), 0), Said::Nothing);
        assert_eq!(peer.say(SET_VRING_ERR, PLAIN, word(0), 1), Said::Nothing);
        let deeds = [
            Deed::Call { index: 1, fd: true },
            Deed::Call { index: 1, fd: false },
            Deed::Error { index: 0, fd: true },
        ];
        assert_eq!(peer.deeds, deeds);
    }
}

#[test]
fn a_kick_without_memory_addresses_or_size_starts_nothing() {
    for left_out in [SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR] {
        let mut peer = Peer::negotiated();
        for (number, payload, fds) in [
            (SET_MEM_TABLE, table(&[REGION]), 1),
            (SET_VRING_NUM, state(0, 128), 0),
            (SET_VRING_ADDR, address(0, 0, PARTS), 0),
        ] {
            if number != left_out {
                assert_eq!(peer.say(number, NEED_REPLY, payload, fds), ack());
            }
        }
        peer.deeds.clear();
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
        assert_eq!(peer.deeds, []);
        assert!(!peer.connection.ring(0).unwrap().is_started());
    }
}

#[test]
fn a_kick_starts_a_complete_ring_with_all_that_was_said() {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(SET_VRING_BASE, state(0, 0xfffe)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    let start = Deed::Start {
        index: 0,
        size: 128,
        parts: PARTS,
        base: 0xfffe,
        enabled: false,
        features: DEVICE_FEATURES,
    };
    assert_eq!(peer.deeds, [start]);
    assert!(peer.connection.ring(0).unwrap().is_started());
    assert!(!peer.connection.ring(1).unwrap().is_started());
}

#[test]
fn a_second_kick_replaces_the_descriptor() {
    let mut peer = Peer::started();
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0x100), 0), ack());
    let replaced = [true, false].map(|fd| Deed::ReplaceKick { index: 0, fd });
    assert_eq!(peer.deeds, replaced);
}

#[test]
fn a_ring_that_the_back_end_could_not_start_is_not_started() {
    let mut peer = Peer::ready();
    peer.fails = true;
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
    assert!(!peer.connection.ring(0).unwrap().is_started());
    assert_eq!(peer.ask(SET_VRING_NUM, state(0, 64)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
}

#[test]
fn a_started_ring_cannot_be_configured_but_for_its_own_addresses() {
    let [descriptors, available, used] = PARTS;
    let mut peer = Peer::started();
    assert_eq!(peer.ask(SET_VRING_NUM, state(0, 128)), nack());
    assert_eq!(peer.ask(SET_VRING_BASE, state(0, 0)), nack());
    let moved = [descriptors, available + 0x10, used];
    assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, moved)), nack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
    assert!(peer.connection.ring(0).unwrap().is_started());
    // The other ring is not started.
    assert_eq!(peer.ask(SET_VRING_NUM, state(1, 64)), ack());
}

#[test]
fn a_ring_that_never_started_says_its_base_and_nothing_is_stopped() {
    let mut peer = Peer::negotiated();
    peer.deeds.clear();
    assert_eq!(peer.ask(GET_VRING_BASE, state(1, 0)), Said::Reply(state(1, 0)));
    assert_eq!(peer.ask(SET_VRING_BASE, state(1, 300)), ack());
    assert_eq!(peer.ask(GET_VRING_BASE, state(1, 0)), Said::Reply(state(1, 300)));
    assert_eq!(peer.deeds, []);
}

#[test]
fn a_stopped_ring_goes_on_where_it_was_and_stays_enabled() {
    let mut peer = Peer::started();
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 1)), ack());
    peer.deeds.clear();
    peer.base = 41;
    for _ in 0..2 {
        assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, 41)));
    }
    assert_eq!(peer.take_deeds(), [Deed::Stop { index: 0 }]);
    let ring = peer.connection.ring(0).unwrap();
    assert!(!ring.is_started() && ring.is_enabled());

    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    let [Deed::Start { base: 41, enabled: true, .. }] = peer.deeds[..] else {
        panic!("{:?}", peer.deeds)
    };
}

#[test]
fn a_ring_is_enabled_and_disabled_before_and_after_its_start() {
    let mut peer = Peer::ready();
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 1)), ack());
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 0)), ack());
    let ring = peer.connection.ring(0).unwrap();
    assert!(ring.is_started() && !ring.is_enabled());
    assert!(matches!(
        peer.deeds[..],
        [
            Deed::Enable { index: 0, enabled: true },
            Deed::Start { enabled: true, .. },
            Deed::Enable { index: 0, enabled: false }
        ]
    ));
}

#[test]
fn an_enable_that_is_neither_0_nor_1_is_refused() {
    for num in [2, 0x101, u32::MAX] {
        assert_eq!(Peer::ready().ask(SET_VRING_ENABLE, state(0, num)), nack());
    }
}

#[test]
fn a_ring_may_be_enabled_before_the_features_are_set() {
    let mut peer = Peer::new(offer(2));
    assert_eq!(peer.ask(SET_VRING_ENABLE, state(0, 1)), ack());
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED)), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
}

// Configuration.

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

// Status, reset, the back-end's channel.

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
    assert_eq!(peer.ask(SET_FEATURES, word(OFFERED)), ack());
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
    assert_eq!(peer.deeds, [Deed::Status(0x8)]);
}

#[test]
fn a_reset_stops_and_forgets_the_rings_and_keeps_memory_and_features() {
    for (number, payload, deed, base) in [
        (RESET_DEVICE, vec![], Deed::Reset, 0),
        // Front-ends ask for the base after it.
        (SET_STATUS, word(0), Deed::Status(0), 601),
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
        assert_eq!((ring.is_started(), ring.is_enabled(), ring.base()), (false, false, base));
        assert_eq!((peer.connection.status(), peer.connection.features()), (0, OFFERED));
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

// The contract with the back-end.

#[test]
fn a_message_before_the_last_action_is_done_closes_the_connection() {
    let mut connection = Connection::new(offer(1));
    let call = frame(SET_VRING_CALL, PLAIN, word(0x100));
    assert!(matches!(connection.handle(call), Step::Act(_)));
    assert!(matches!(connection.handle(frame(GET_FEATURES, PLAIN, vec![])), Step::Close(_)));
}

#[test]
fn an_outcome_that_does_not_fit_the_action_closes_the_connection() {
    let mut connection = Connection::new(offer(1));
    assert!(matches!(connection.done(Outcome::Done), Step::Close(_)));
    connection.handle(frame(SET_VRING_CALL, PLAIN, word(0x100)));
    assert!(matches!(connection.done(Outcome::Base(0)), Step::Close(_)));
}
