//! What a queue has of memory that is not mapped in advance.

use std::sync::Arc;

use crate::memory::{BounceBudget, Shared};
use crate::request::Done;

/// A queue's state for that; made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Provided {
    /// What bounce buffers have taken.
    pub(super) budget: Arc<BounceBudget>,
    /// Map calls that requests share.
    pub(super) shared: Vec<Shared>,
    /// Answered requests whose pages hang on others that are not answered yet.
    pub(super) withheld: Vec<Done>,
}

impl Provided {
    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.withheld.is_empty()
    }
}
