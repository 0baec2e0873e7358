//! The protocol's state machine. It does no I/O, maps nothing and waits for nothing.
//!
//! ```text
//! Frame --handle--> Step::Reply | Refuse | Close      the message is dealt with
//!                   Step::Act(Action)                 the back-end carries it out ...
//!       --done----> Step::Reply | Refuse | Close      ... and says how it went
//! ```
//!
//! Laws:
//!
//! * A message that is refused changes nothing, and neither does an action that failed.
//! * What the table of messages rules out ([`crate::wire::message`]) reaches no handler.
//! * Each request gets at most one reply, with flags 0x5. An acknowledgement is sent whenever it
//!   was asked for, also before REPLY_ACK was accepted: QEMU asks for some without looking, and
//!   waits.
//! * A frame that cannot be one (version, reply flag, length) closes the connection. Any other
//!   fault is answered with the message's own error form or a non-zero acknowledgement; where
//!   neither is possible, closing is the only way to tell.
//! * A ring is *started* by SET_VRING_KICK and *enabled* by SET_VRING_ENABLE, in any order;
//!   neither touches the other.
//!
//! Source: QEMU "Vhost-user Protocol".

mod action;
mod config;
mod device_state;
mod features;
mod inflight;
mod iotlb;
mod layout;
mod log;
mod memory;
mod offer;
mod postcopy;
mod postcopy_state;
mod reply;
mod resets;
mod rings;
mod state;
mod status;
mod transfer;
mod vring;
mod words;

pub use action::{
    Action, IotlbChange, Outcome, Refusal, RegionOffer, RegionRange, RingSetup, Step,
};
pub use offer::Offer;
pub use state::Connection;
pub use vring::Vring;
