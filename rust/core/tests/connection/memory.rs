//! The table of memory regions: one rule, one test.

use super::support::*;

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
