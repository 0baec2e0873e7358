//! Requests in the hands of a device: one descriptor chain each, answered exactly once.
//!
//! A [`Request`] is taken from a ring by a worker and consumed by its completion. The common case
//! is complete within the batch, on the worker's own thread, with no lock; a request that is kept
//! for later may be completed from any thread. A request that is dropped unanswered is given back
//! to the driver with no byte written, so that its ring never runs dry.

mod batch;
mod completion;
mod doorbell;
mod kernel_hold;
#[expect(clippy::module_inception, reason = "the noun of the folder")]
mod request;
mod scope;

pub use batch::Batch;
pub use completion::Stopped;
pub(crate) use completion::{CompletionQueue, Done, Slot};
pub(crate) use doorbell::Doorbell;
pub use kernel_hold::KernelHold;
pub use request::{Request, RequestClaim};
pub use scope::CallbackScope;
pub(crate) use scope::{Publish, ScopeId, publish_later};
