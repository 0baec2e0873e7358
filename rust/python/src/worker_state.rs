//! What one queue's worker keeps from batch to batch.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The state of a queue's worker. It is taken out while the worker is in Python: another worker
/// comes only when the session has given that one up, and begins with nothing then.
#[derive(Default)]
pub(crate) struct WorkerState<T>(Mutex<Option<Box<T>>>);

impl<T: Default> WorkerState<T> {
    /// Works with the state, which is new if there was none. No lock is held meanwhile.
    pub(crate) fn with(&self, work: impl FnOnce(&mut T)) {
        let known = self.lock().take();
        let mut state = known.unwrap_or_default();
        work(&mut state);
        let former = self.lock().replace(state);
        // Only now, without the lock: objects may run code when they go.
        drop(former);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
