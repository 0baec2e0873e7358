//! Numbers about a running back-end, and how monitoring systems get them.
//!
//! Workers write counters and tables that nobody waits for ([`QueueMetrics`]): plain adds to relaxed
//! atomics with the queue's lock held, and a look at the clock a few times a batch. Everything else
//! is done by whoever asks: a [`Snapshot`] is taken, [`Text`] is made of it, and an
//! [`Exposition`] gives that away on a thread of its own.

mod address;
mod client;
mod clock;
mod exposition;
mod families;
mod histogram;
mod queue;
mod snapshot;
mod stage;
mod text;

pub use address::Address;
pub(crate) use clock::now;
pub use exposition::{Exposition, NotExposed, Patience};
pub use families::write;
pub use histogram::Distribution;
pub(crate) use queue::{Given, QueueMetrics};
pub use snapshot::{Measured, OperationSnapshot, QueueSnapshot, Snapshot};
pub use stage::{Stage, interpreter_entered};
pub(crate) use stage::{expect_interpreter, take_entered};
pub use text::{Kind, Text};
