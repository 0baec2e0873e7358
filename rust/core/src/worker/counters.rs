//! What a queue has done, and whether its owner has paused it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::metrics::QueueMetrics;

/// What a queue has done since the back-end started. A thread writes these with the queue's lock,
/// once a batch; all but `paused`.
#[derive(Debug, Default)]
pub(crate) struct QueueCounters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) kicks: AtomicU64,
    pub(crate) in_flight: AtomicU32,
    /// The back-end's owner wants nothing to be taken from the ring, however often it starts.
    pub(crate) paused: AtomicBool,
    /// What is measured beyond that, if it is.
    pub(crate) metrics: Option<Box<QueueMetrics>>,
}

/// Adds without a locked instruction: no other thread writes while this one has the queue's lock.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}
