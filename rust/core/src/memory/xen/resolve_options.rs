//! How the buffers of a batch get their places.

use std::sync::Arc;

use super::bounce_budget::BounceBudget;

/// How the buffers of a batch get their places.
pub struct ResolveOptions<'a> {
    /// The device may keep requests when it is done with the batch.
    pub kept: bool,
    /// What could be copied is mapped, unless it is small.
    pub mapped: bool,
    /// For bounce buffers.
    pub budget: &'a Arc<BounceBudget>,
    /// Whether somebody waits for the caller. Asked before each map call; if so, requests are left
    /// [undone](crate::memory::Buffers::is_undone).
    pub is_called: &'a dyn Fn() -> bool,
}
