//! Memory whose pages are on their way. QEMU "Vhost-user Protocol", "Postcopy".

use super::support::*;

/// An empty payload, and no descriptor.
fn refused() -> Said {
    Said::Refused(vec![])
}

fn listening() -> Peer {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.say(POSTCOPY_ADVISE, PLAIN, vec![], 0), Said::Reply(vec![]));
    assert_eq!(peer.ask(POSTCOPY_LISTEN, vec![]), ack());
    peer.take_deeds();
    peer
}

fn acknowledge(peer: &mut Peer, message: u32) -> Said {
    peer.say(message, PLAIN, word(0), 0)
}

const OTHER: RawRegion = [0x1_0000_0000, 0x1000_0000, 0x7f10_0000_0000, 0x1000];

/// The region, at the address at which the back-end has it.
fn there(number: usize, [guest, size, _, offset]: RawRegion) -> RawRegion {
    [guest, size, place(number), offset]
}

#[test]
fn regions_are_answered_at_our_own_addresses_and_are_memory_once_acknowledged() {
    let mut peer = listening();
    let answer = Said::Reply(table(&[there(0, REGION), there(1, OTHER)]));
    assert_eq!(peer.say(SET_MEM_TABLE, PLAIN, table(&[REGION, OTHER]), 2), answer);
    let regions = vec![REGION, OTHER];
    assert_eq!(peer.take_deeds(), [Deed::AwaitMemory { regions, replace: true }]);
    assert_eq!(acknowledge(&mut peer, SET_MEM_TABLE), Said::Nothing);
    assert_eq!(peer.take_deeds(), [Deed::UseAwaited]);
}

#[test]
fn regions_that_come_one_by_one_are_acknowledged_together() {
    let mut peer = listening();
    for region in [REGION, OTHER] {
        let answer = Said::Reply(single(there(0, region)));
        assert_eq!(peer.say(ADD_MEM_REG, PLAIN, single(region), 1), answer);
        let regions = vec![region];
        assert_eq!(peer.take_deeds(), [Deed::AwaitMemory { regions, replace: false }]);
    }
    assert_eq!(acknowledge(&mut peer, ADD_MEM_REG), Said::Nothing);
    assert_eq!(peer.take_deeds(), [Deed::UseAwaited]);
}

/// QEMU sends one after each change of memory, with the number of its last message.
#[test]
fn an_acknowledgement_of_nothing_new_changes_nothing() {
    let mut peer = listening();
    peer.say(ADD_MEM_REG, PLAIN, single(REGION), 1);
    acknowledge(&mut peer, ADD_MEM_REG);
    assert_eq!(peer.ask(REM_MEM_REG, single(REGION)), ack());
    peer.take_deeds();
    assert_eq!(acknowledge(&mut peer, REM_MEM_REG), Said::Nothing);
    assert_eq!(peer.take_deeds(), []);
    peer.say(POSTCOPY_END, PLAIN, vec![], 0);
    assert_eq!(acknowledge(&mut peer, REM_MEM_REG), Said::Closed);
}

#[test]
fn nothing_that_would_touch_or_change_the_regions_comes_before_their_acknowledgement() {
    let mut peer = listening();
    assert_eq!(peer.ask(SET_VRING_NUM, state(0, 128)), ack());
    assert_eq!(peer.ask(SET_VRING_ADDR, address(0, 0, PARTS)), ack());
    peer.say(ADD_MEM_REG, PLAIN, single(REGION), 1);
    peer.take_deeds();
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), nack());
    assert_eq!(peer.ask(REM_MEM_REG, single(REGION)), nack());
    assert_eq!(peer.say(POSTCOPY_END, PLAIN, vec![], 0), nack());
    assert_eq!(peer.take_deeds(), []);
    acknowledge(&mut peer, ADD_MEM_REG);
    assert_eq!(peer.say(SET_VRING_KICK, NEED_REPLY, word(0), 1), ack());
    assert_eq!(peer.say(POSTCOPY_END, PLAIN, vec![], 0), Said::Reply(word(0)));
}

#[test]
fn an_acknowledgement_that_says_no_is_no_acknowledgement() {
    let mut peer = listening();
    peer.say(ADD_MEM_REG, PLAIN, single(REGION), 1);
    assert_eq!(peer.ask(ADD_MEM_REG, word(1)), nack());
    assert_eq!(acknowledge(&mut peer, ADD_MEM_REG), Said::Nothing);
}

#[test]
fn who_listens_was_advised_and_has_no_memory() {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.ask(POSTCOPY_LISTEN, vec![]), nack());
    assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[REGION]), 1), ack());
    assert_eq!(peer.say(POSTCOPY_ADVISE, PLAIN, vec![], 0), Said::Reply(vec![]));
    assert!(
        peer.why(POSTCOPY_LISTEN, NEED_REPLY, vec![])
            .contains("memory is mapped already: 1 region")
    );
}

#[test]
fn who_listens_is_not_advised_again_before_the_end() {
    let mut peer = listening();
    assert_eq!(peer.say(POSTCOPY_ADVISE, PLAIN, vec![], 0), refused());
    assert_eq!(peer.say(POSTCOPY_END, PLAIN, vec![], 0), Said::Reply(word(0)));
    assert_eq!(peer.say(POSTCOPY_ADVISE, PLAIN, vec![], 0), Said::Reply(vec![]));
}

#[test]
fn memory_is_as_ever_before_and_after() {
    let mut peer = Peer::negotiated();
    assert_eq!(peer.say(POSTCOPY_ADVISE, PLAIN, vec![], 0), Said::Reply(vec![]));
    assert_eq!(peer.say(SET_MEM_TABLE, NEED_REPLY, table(&[REGION]), 1), ack());
    let mut peer = listening();
    peer.say(ADD_MEM_REG, PLAIN, single(REGION), 1);
    acknowledge(&mut peer, ADD_MEM_REG);
    assert_eq!(peer.say(POSTCOPY_END, PLAIN, vec![], 0), Said::Reply(word(0)));
    assert_eq!(peer.say(ADD_MEM_REG, NEED_REPLY, single(OTHER), 1), ack());
}

#[test]
fn a_page_fault_descriptor_that_cannot_be_had_is_told_by_an_empty_answer() {
    let mut peer = Peer::negotiated();
    peer.fails = true;
    assert_eq!(peer.say(POSTCOPY_ADVISE, PLAIN, vec![], 0), refused());
    assert_eq!(peer.ask(POSTCOPY_LISTEN, vec![]), nack());
}
