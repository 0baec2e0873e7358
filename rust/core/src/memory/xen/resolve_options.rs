//! How the buffers of a batch get their places.

use std::sync::Arc;

use super::bounce_budget::BounceBudget;

/// The options by which the buffers of a batch get their places.
pub struct ResolveOptions<'a> {
    /// Whether the device may keep requests when it is done with the batch.
    pub kept: bool,
    /// Whether what could be copied is mapped, unless it is small.
    pub mapped: bool,
    /// The budget that bounce buffers are taken from.
    pub budget: &'a Arc<BounceBudget>,
    /// Says whether somebody waits for the caller. It is asked before each map call; if somebody
    /// does, the rest of the requests is left [undone](crate::memory::Buffers::is_undone).
    pub is_called: &'a dyn Fn() -> bool,
}
