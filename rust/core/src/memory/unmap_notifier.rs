//! Tells when memory has been unmapped.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells when a region has been unmapped.
#[derive(Clone, Debug, Default)]
pub struct UnmapNotifier(Arc<(Mutex<bool>, Condvar)>);

/// Tells the [notifier](UnmapNotifier) when this value is dropped.
#[derive(Debug, Default)]
pub(super) struct NotifyOnDrop(UnmapNotifier);

impl UnmapNotifier {
    /// Waits until the region is unmapped; `false` if it still is mapped after `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let (lock, changed) = &*self.0;
        let deadline = Instant::now() + limit;
        let mut gone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !*gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            gone = changed.wait_timeout(gone, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl NotifyOnDrop {
    pub(super) fn notifier(&self) -> UnmapNotifier {
        self.0.clone()
    }
}

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        let (lock, changed) = &*self.0.0;
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}
