//! What a queue keeps of memory that is not mapped in advance.

use std::sync::Arc;

use crate::memory::{BounceBudget, Shared};
use crate::request::Done;

/// What a queue keeps of such memory; made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Provided {
    /// What bounce buffers have taken.
    pub(super) budget: Arc<BounceBudget>,
    /// Map calls that requests share.
    pub(super) shared: Vec<Shared>,
    /// Answered requests whose pages were mapped together with those of others, not yet answered.
    pub(super) withheld: Vec<Done>,
}

impl Provided {
    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.withheld.is_empty()
    }
}
