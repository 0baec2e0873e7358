//! The lock of a device that takes one call at a time.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A lock that can be waited for with a limit. It is taken *before* attaching to the interpreter:
/// a callback that waits for something gives up the interpreter, but not this lock.
#[derive(Debug, Default)]
pub(crate) struct DeviceLock {
    /// Calls may overlap: there is nothing to wait for.
    free_for_all: bool,
    taken: Mutex<bool>,
    given_back: Condvar,
}

/// Gives the lock back when it is dropped.
#[derive(Debug)]
pub(crate) struct DeviceGuard<'a>(&'a DeviceLock);

impl DeviceLock {
    /// `thread_safe`: the device takes any number of calls at once.
    pub(crate) fn new(thread_safe: bool) -> Self {
        Self { free_for_all: thread_safe, ..Self::default() }
    }

    /// Waits for the lock.
    pub(crate) fn take(&self) -> DeviceGuard<'_> {
        if !self.free_for_all {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            while *taken {
                taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
            }
            *taken = true;
        }
        DeviceGuard(self)
    }

    /// Waits for the lock, but no longer than `limit`.
    pub(crate) fn take_within(&self, limit: Duration) -> Option<DeviceGuard<'_>> {
        if !self.free_for_all {
            let deadline = Instant::now() + limit;
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            while *taken {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                let waited = self.given_back.wait_timeout(taken, left);
                taken = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            *taken = true;
        }
        Some(DeviceGuard(self))
    }
}

impl Drop for DeviceGuard<'_> {
    fn drop(&mut self) {
        if !self.0.free_for_all {
            *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
            self.0.given_back.notify_one();
        }
    }
}
