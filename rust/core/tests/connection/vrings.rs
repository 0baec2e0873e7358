//! Vrings, set up, started, enabled and stopped: one rule, one test.

use vhost_user_core::wire::features::RING_PACKED;

use super::support::*;

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
        (2, PARTS),
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
        used_log: None,
        reset: false,
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
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED)), ack());
    assert!(peer.connection.ring(0).unwrap().is_enabled());
}

/// A peer whose driver has accepted RING_PACKED, with memory.
fn packed() -> Peer {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.ask(SET_FEATURES, word(ACCEPTED | RING_PACKED)), ack());
    assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[REGION]), 1), ack());
    peer.deeds.clear();
    peer
}

/// The numbers are those of QEMU 11.1 (both halves) and of DPDK 25.11's virtio-user (255 entries, the
/// lower half, event areas at multiples of 16).
#[test]
fn a_packed_ring_has_a_base_of_two_halves_any_size_and_parts_of_its_own() {
    for (base, begun) in [
        (0x8000_8000, 0x8000_8000),
        (0x0000_8000, 0x8000_8000),
        (0x8078_8078, 0x8078_8078),
        (0x0041_8078, 0x0041_8078),
    ] {
        let mut peer = packed();
        assert_eq!(peer.ask(SET_VRING_NUM, state(0, 255)), ack());
        assert_eq!(peer.ask(SET_VRING_BASE, state(0, base)), ack());
        let areas = [0x1000, 0x1ff0, 0x2000];
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, areas)), ack());
        assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, begun)));
        assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
        let [Deed::Start { size: 255, parts, base: started, features, .. }] = peer.deeds[..] else {
            panic!("{:?}", peer.deeds)
        };
        assert_eq!((parts, started), (areas, begun));
        assert_eq!(features, DEVICE_FEATURES | RING_PACKED);
        peer.base = 0x8003_0004;
        assert_eq!(peer.ask(GET_VRING_BASE, state(0, 0)), Said::Reply(state(0, 0x8003_0004)));
    }
}

#[test]
fn a_packed_ring_that_never_ran_stands_at_its_beginning() {
    let mut peer = packed();
    assert_eq!(peer.ask(GET_VRING_BASE, state(1, 0)), Said::Reply(state(1, 0x8000_8000)));
}

#[test]
fn a_packed_ring_is_not_started_outside_of_itself() {
    for (size, base, starts) in [
        (8, 0x8007_8007, true),
        (8, 0x8007_8008, false),
        (8, 0x8008_8007, false),
        (0x100, 0xff, true),
    ] {
        let mut peer = packed();
        assert_eq!(peer.ask(SET_VRING_NUM, state(0, size)), ack());
        assert_eq!(peer.ask(SET_VRING_BASE, state(0, base)), ack());
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
        let said = peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1);
        assert_eq!(said, if starts { ack() } else { nack() }, "{base:#x}");
    }
}

#[test]
fn misaligned_event_areas_of_a_packed_ring_are_refused() {
    let mut peer = packed();
    for parts in [[0x1008, 0x2000, 0x3000], [0x1000, 0x2002, 0x3000], [0x1000, 0x2000, 0x3002]] {
        assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, parts)), nack());
    }
}

#[test]
fn sizes_beyond_the_devices_are_refused_of_packed_rings_too() {
    let mut peer = packed();
    for num in [0, 257, 32769, 65536, 65537, u32::MAX] {
        assert_eq!(peer.ask(SET_VRING_NUM, state(0, num)), nack(), "{num}");
    }
}
