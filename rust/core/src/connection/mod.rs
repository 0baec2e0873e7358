//! The protocol's state machine. It does no I/O, maps nothing and waits for nothing.

mod action;

pub use action::{Action, Outcome, Refusal, RegionOffer, RegionRange, RingSetup, Step};
