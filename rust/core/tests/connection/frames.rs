//! What a frame may look like, whatever its message says: one rule, one test.

use std::io::Read;
use std::os::unix::net::UnixStream;

use vhost_user_core::wire::Header;

use super::support::*;

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
    let mut lying = bare_frame(GET_FEATURES, PLAIN, vec![]);
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
        (SET_FEATURES, word(ACCEPTED)),
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
