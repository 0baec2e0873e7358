//! Waiting for pages that are paged out.

use std::thread;
use std::time::Duration;

/// The most pauses that are made for all of a region, or all of a batch, however many of its pages
/// are paged out. A page that comes back does so in some milliseconds; all come back together, or
/// somebody keeps us waiting.
const PAUSES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// The number of pauses that may still be made.
#[derive(Debug)]
pub(in crate::memory) struct RetryBudget(u32);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(PAUSES)
    }
}

impl RetryBudget {
    /// Waits a little; `false` if it has been long enough.
    pub(in crate::memory) fn wait(&mut self) -> bool {
        let left = self.0.checked_sub(1);
        if let Some(left) = left {
            self.0 = left;
            thread::sleep(PAUSE);
        }
        left.is_some()
    }
}
