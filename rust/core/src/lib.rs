//! The core of `vhost-user`: the socket, the messages, the mapping of guest memory and the
//! virtqueues of a vhost-user back-end. No interpreter, no printing, no exit.
//!
//! Data flows one way. The control plane (`socket` → `wire` → `connection`) turns bytes into
//! [`connection::Action`]s and knows nothing of memory or rings; the data plane (`memory`, `ring`,
//! `request`, `worker`) moves buffers and never sees a message; both meet in [`backend`] only.

pub mod address;
pub mod backend;
pub mod batch_size;
pub mod block;
pub mod connection;
pub mod device;
pub mod error;
pub mod frontend;
pub mod hold;
pub mod memory;
pub mod metrics;
pub mod request;
pub mod ring;
pub mod ring_position;
pub mod socket;
pub mod state;
pub mod sys;
pub mod token;
pub mod wire;
mod worker;
pub mod xen;
pub mod xen_guest;
