//! The contract with the back-end, which carries out one action at a time: one rule, one test.

use vhost_user_core::connection::{Connection, Outcome, Step};
use vhost_user_core::ring_position::RingPosition;

use super::support::*;

#[test]
fn a_message_before_the_last_action_is_done_closes_the_connection() {
    let mut connection = Connection::new(offer(1));
    let call = bare_frame(SET_VRING_CALL, PLAIN, word(0x100));
    assert!(matches!(connection.handle(call), Step::Act(_)));
    assert!(matches!(connection.handle(bare_frame(GET_FEATURES, PLAIN, vec![])), Step::Close(_)));
}

#[test]
fn an_outcome_that_does_not_fit_the_action_closes_the_connection() {
    let mut connection = Connection::new(offer(1));
    assert!(matches!(connection.done(Outcome::Done), Step::Close(_)));
    connection.handle(bare_frame(SET_VRING_CALL, PLAIN, word(0x100)));
    assert!(matches!(connection.done(Outcome::Base(RingPosition::Split(0))), Step::Close(_)));
}
