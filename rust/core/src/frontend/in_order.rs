//! What is in flight on a ring whose device uses chains in the order in which they came: it may
//! give back a batch of them with one used element, that of the last.
//!
//! Source: VIRTIO 1.3, "In-order use of descriptors".

use std::collections::VecDeque;

use super::error::{FrontendError, Result};
use super::segment::UsedChain;

/// A chain in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// What the device knows the chain by: the head in a split ring, the id in a packed one.
    pub(super) name: u16,
    /// What the driver knows it by.
    pub(super) token: u16,
    /// Descriptors that it takes of the ring.
    pub(super) descriptors: u16,
}

/// The chains in flight, oldest first.
#[derive(Debug)]
pub(super) struct InOrder {
    sent: VecDeque<Sent>,
    /// The oldest chains that are used already, by one element.
    batch: u16,
    /// Bytes that the device wrote to the last of them.
    last_len: u32,
}

impl InOrder {
    /// Room for so many chains.
    pub(super) fn with_room(chains: u16) -> Self {
        Self { sent: VecDeque::with_capacity(chains.into()), batch: 0, last_len: 0 }
    }

    pub(super) fn push(&mut self, sent: Sent) {
        self.sent.push_back(sent);
    }

    /// Takes up the batch whose last chain the device has named. `ready`: chains that it can have
    /// at most. Returns how many they are, and how many descriptors they take of the ring.
    pub(super) fn used(&mut self, name: u16, len: u32, ready: u16) -> Result<(u16, u32)> {
        let mut descriptors = 0;
        for (sent, chains) in self.sent.iter().zip(1..=ready) {
            descriptors += u32::from(sent.descriptors);
            if sent.name == name {
                (self.batch, self.last_len) = (chains, len);
                return Ok((chains, descriptors));
            }
        }
        let oldest = self.sent.front().map_or(0, |sent| sent.name);
        Err(FrontendError::ring(format!(
            "{name} was used and is none of the {ready} oldest in flight, in order from {oldest}"
        )))
    }

    /// The next chain of the batch. Only of the last is it known how much was written.
    pub(super) fn pop(&mut self) -> Option<UsedChain> {
        if self.batch == 0 {
            return None;
        }
        let sent = self.sent.pop_front()?;
        self.batch -= 1;
        let len = (self.batch == 0).then_some(self.last_len);
        Some(UsedChain { token: sent.token, len })
    }

    /// Whether there is a chain to [`pop`](Self::pop).
    pub(super) fn is_begun(&self) -> bool {
        self.batch != 0
    }

    /// Chains of which the driver does not know yet that they are used.
    pub(super) fn in_flight(&self) -> u16 {
        self.sent.len() as u16 - self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(names: &[u16]) -> InOrder {
        let mut chains = InOrder::with_room(8);
        names.iter().for_each(|&name| {
            chains.push(Sent { name, token: 100 + name, descriptors: 3 });
        });
        chains
    }

    #[test]
    fn one_element_gives_back_the_batch_up_to_the_chain_that_it_names() {
        let mut chains = in_flight(&[4, 7, 1]);
        assert_eq!(chains.pop(), None);
        assert_eq!(chains.used(7, 512, 3).unwrap(), (2, 6));
        assert_eq!(chains.in_flight(), 1);
        assert_eq!(chains.pop(), Some(UsedChain { token: 104, len: None }));
        assert_eq!(chains.pop(), Some(UsedChain { token: 107, len: Some(512) }));
        assert_eq!(chains.pop(), None);
        assert_eq!(chains.used(1, 1, 1).unwrap(), (1, 3));
    }

    #[test]
    fn a_chain_that_is_not_in_flight_or_past_what_is_used_is_the_back_ends_fault() {
        let mut chains = in_flight(&[4, 7, 1]);
        for (name, ready) in [(5, 3), (1, 2), (7, 1)] {
            let error = chains.used(name, 0, ready).unwrap_err().to_string();
            let told = format!("{name} was used and is none of the {ready} oldest");
            assert!(error.contains(&told), "{error}");
        }
    }
}
