//! Replies, and what a refusal looks like for each message.

use std::os::fd::OwnedFd;

use super::{Refusal, Step};
use crate::wire::message::{Answer, ErrorForm};
use crate::wire::{Flags, Frame, FrontendMessage, Payload};

/// What a reply needs to know of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) number: u32,
    pub(super) need_reply: bool,
    /// `None` for a number that no message has.
    pub(super) message: Option<FrontendMessage>,
    /// How it is answered with what was negotiated.
    pub(super) answer: Answer,
}

impl Request {
    /// The request's answer: a payload of its own.
    pub(super) fn answer(self, payload: Vec<u8>) -> Step {
        Step::Reply(Some(self.reply(payload)))
    }

    /// The request's answer, with a descriptor.
    pub(super) fn answer_with(self, payload: Vec<u8>, fd: OwnedFd) -> Step {
        let flags = Flags::VERSION | Flags::REPLY;
        Step::Reply(Some(Frame::new(self.number, flags, payload, vec![fd])))
    }

    /// The request was carried out: acknowledged if that was asked for.
    pub(super) fn acknowledge(self) -> Step {
        Step::Reply(self.need_reply.then(|| self.reply(0_u64.to_bytes())))
    }

    /// The request had no effect: said in the message's own error form, or with a non-zero
    /// acknowledgement if one was asked for, or by closing the connection.
    pub(super) fn refuse(self, why: Refusal) -> Step {
        match self.error_payload() {
            Some(payload) => Step::Refuse { reply: self.reply(payload), why },
            None => Step::Close(why),
        }
    }

    /// The reason with the message's name in front.
    pub(super) fn named(self, why: Refusal) -> Refusal {
        match self.message {
            Some(message) => Refusal(format!("{}: {why}", message.name())),
            None => Refusal(format!("message {}: {why}", self.number)),
        }
    }

    fn error_payload(self) -> Option<Vec<u8>> {
        match self.answer {
            Answer::IfAsked => self.need_reply.then(|| 1_u64.to_bytes()),
            Answer::Always { error: ErrorForm::None, .. } => None,
            Answer::Always { error: ErrorForm::Empty, .. } => Some(Vec::new()),
            Answer::Always { error: ErrorForm::Value(value), .. } => Some(value.to_bytes()),
            Answer::Always { error: ErrorForm::Zeroes(count), .. } => Some(vec![0; count]),
        }
    }

    fn reply(self, payload: Vec<u8>) -> Frame {
        Frame::new(self.number, Flags::VERSION | Flags::REPLY, payload, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u32, need_reply: bool) -> Request {
        let message = FrontendMessage::from_number(number);
        let answer = message.map_or(Answer::IfAsked, |message| message.row().answer);
        Request { number, need_reply, message, answer }
    }

    /// Flags and payload of a refusal's reply; `None` when the connection is closed.
    fn refusal(number: u32, need_reply: bool) -> Option<(u32, Vec<u8>)> {
        match request(number, need_reply).refuse(Refusal("why".to_owned())) {
            Step::Refuse { reply, why } => {
                assert_eq!(why.0, "why");
                assert_eq!(reply.header.request, number);
                Some((reply.header.flags.bits(), reply.payload))
            }
            Step::Close(_) => None,
            step => panic!("{step:?}"),
        }
    }

    const ONE: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_refused_message_is_acknowledged_with_one_if_asked_and_else_closes() {
        for number in [2, 5, 8, 12, 25, 39, 0, 45, u32::MAX] {
            assert_eq!(refusal(number, true), Some((0x5, ONE.to_vec())), "{number}");
            assert_eq!(refusal(number, false), None, "{number}");
        }
    }

    #[test]
    fn a_refused_read_of_a_value_closes_because_any_number_would_be_taken_for_the_value() {
        for number in [1, 11, 15, 17, 36, 40] {
            assert_eq!(refusal(number, true), None, "{number}");
            assert_eq!(refusal(number, false), None, "{number}");
        }
    }

    #[test]
    fn a_message_with_an_error_form_uses_it() {
        for need_reply in [false, true] {
            assert_eq!(refusal(24, need_reply), Some((0x5, Vec::new())));
            assert_eq!(refusal(22, need_reply), Some((0x5, ONE.to_vec())));
            let error_and_no_fd = vec![1, 1, 0, 0, 0, 0, 0, 0];
            assert_eq!(refusal(42, need_reply), Some((0x5, error_and_no_fd)));
        }
    }

    #[test]
    fn a_reason_names_its_message() {
        let why = Refusal("size 3".to_owned());
        assert_eq!(request(8, false).named(why.clone()).0, "SET_VRING_NUM: size 3");
        assert_eq!(request(45, false).named(why).0, "message 45: size 3");
    }

    #[test]
    fn success_is_acknowledged_with_zero_only_if_asked() {
        let Step::Reply(Some(ack)) = request(3, true).acknowledge() else { panic!() };
        assert_eq!((ack.header.flags.bits(), ack.header.size), (0x5, 8));
        assert_eq!(ack.payload, [0; 8]);
        assert!(matches!(request(3, false).acknowledge(), Step::Reply(None)));
    }
}
