//! What bounce buffers may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most bytes of the bounce buffers of all requests that a queue has in flight. A guest that
/// has granted one page may name it in all of them. What does not fit is mapped instead.
pub(super) const MOST: usize = 8 << 20;

/// The bytes that a queue's bounce buffers have taken.
#[derive(Debug, Default)]
pub struct BounceBudget(AtomicUsize);

/// Some bytes of a budget, until this value is dropped.
#[derive(Debug)]
pub(in crate::memory) struct Share {
    budget: Arc<BounceBudget>,
    bytes: usize,
}

impl BounceBudget {
    /// Takes `bytes` if all that are taken are no more than `most` then.
    pub(super) fn take(self: &Arc<Self>, bytes: usize, most: usize) -> Option<Share> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|&taken| taken <= most);
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, fits).ok()?;
        Some(Share { budget: Arc::clone(self), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Arc::new(BounceBudget::default());
        let first = budget.take(60, 100).unwrap();
        assert!(budget.take(41, 100).is_none());
        assert!(budget.take(usize::MAX, usize::MAX).is_none());
        let second = budget.take(40, 100).unwrap();
        drop(first);
        assert!(budget.take(60, 100).is_some());
        drop(second);
        assert!(budget.take(100, 100).is_some());
    }
}
