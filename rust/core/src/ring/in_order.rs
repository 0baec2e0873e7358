//! The order of availability, for a driver that wants its buffers back in it.
//!
//! Devices answer in any order. An answer that comes before its turn is held here until all chains in
//! front of it are answered. Then each goes back with a used element of its own: VIRTIO lets one
//! element stand for many buffers, but the driver would not learn how much was written to the others.
//!
//! VIRTIO 1.3, "In-order use of descriptors" and "VIRTIO_F_IN_ORDER".

use std::collections::VecDeque;

use crate::token::Token;

/// The chains that the driver waits for, in its order.
#[derive(Debug)]
pub(super) struct InOrder {
    /// Oldest first; each with the bytes written, once it is answered.
    chains: VecDeque<(Token, Option<u32>)>,
    /// The number of the oldest among all that were ever here.
    first: u16,
    /// The number of each chain that is here, by its id.
    numbers: Box<[u16]>,
}

impl InOrder {
    pub(super) fn new(size: u16) -> Self {
        Self {
            chains: VecDeque::with_capacity(size.into()),
            first: 0,
            numbers: vec![0; size.into()].into(),
        }
    }

    /// This chain is the newest.
    #[inline]
    pub(super) fn popped(&mut self, token: Token) {
        // A chain that is here is in flight, and there are at most as many as the ring is long.
        let number = self.first.wrapping_add(self.chains.len() as u16);
        self.numbers[usize::from(token.id)] = number;
        self.chains.push_back((token, None));
    }

    /// The newest chain was put back.
    pub(super) fn unpopped(&mut self) {
        self.chains.pop_back();
    }

    /// This chain is answered. It goes back when it is [due](Self::next_due).
    #[inline]
    pub(super) fn answered(&mut self, token: Token, written: u32) {
        let place = self.place(token);
        if let Some((_, answer)) = self.chains.get_mut(place) {
            *answer = Some(written);
        }
    }

    /// Takes the oldest chain, if it is answered.
    #[inline]
    pub(super) fn next_due(&mut self) -> Option<(Token, u32)> {
        let &(token, answer) = self.chains.front()?;
        let written = answer?;
        self.chains.pop_front();
        self.first = self.first.wrapping_add(1);
        Some((token, written))
    }

    /// Whether this chain, which is here, is answered.
    pub(super) fn is_answered(&self, token: Token) -> bool {
        self.chains.get(self.place(token)).is_some_and(|(_, answer)| answer.is_some())
    }

    #[inline]
    fn place(&self, token: Token) -> usize {
        self.numbers[usize::from(token.id)].wrapping_sub(self.first).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u16) -> Token {
        Token { id, descriptors: 1 }
    }

    fn due(order: &mut InOrder) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| order.next_due())
            .map(|(token, written)| (token.id, written))
            .collect()
    }

    #[test]
    fn an_answer_waits_for_all_in_front_of_it() {
        let mut order = InOrder::new(4);
        order.first = 65534;
        [3, 0, 2].into_iter().for_each(|id| order.popped(token(id)));
        order.answered(token(2), 20);
        assert_eq!((due(&mut order), order.is_answered(token(2))), (vec![], true));
        order.answered(token(3), 30);
        assert_eq!(due(&mut order), [(3, 30)]);
        order.popped(token(3));
        assert!(!order.is_answered(token(3)));
        order.answered(token(0), 0);
        assert_eq!(due(&mut order), [(0, 0), (2, 20)]);
        order.answered(token(3), 31);
        assert_eq!(due(&mut order), [(3, 31)]);
    }

    #[test]
    fn a_chain_that_was_put_back_is_not_waited_for() {
        let mut order = InOrder::new(4);
        [0, 1].into_iter().for_each(|id| order.popped(token(id)));
        order.unpopped();
        order.answered(token(0), 1);
        assert_eq!(due(&mut order), [(0, 1)]);
        order.popped(token(1));
        order.answered(token(1), 2);
        assert_eq!(due(&mut order), [(1, 2)]);
    }
}
