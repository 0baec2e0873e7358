//! How many requests to hand to a device at once.
//!
//! All answers of a batch reach the driver together, and that is what makes quick devices quick.
//! But a driver that waits for the last of them does nothing meanwhile: [`half`] of what is there
//! keeps both ends busy. And when one answer takes milliseconds, the first should not wait for the
//! last: the batch of a [`BatchSize`] shrinks until it takes about [`GOAL`], and grows again when it
//! takes less.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// How long a batch may take: longer than a wake-up costs by far, shorter than a slow disk.
pub const GOAL: Duration = Duration::from_micros(500);

/// Requests that are handed over together in any case: a batch costs more than they do.
const WHOLE: u16 = 16;

/// Half of what is available, so that the driver deals with one half of the answers while the
/// device works on the other. With 32 requests in flight, on two processors, it was measured to
/// save a quarter of the time of a null device.
#[inline]
pub fn half(available: u16) -> u16 {
    (available / 2).max(WHOLE)
}

/// The size of one queue's batches. Used by one thread at a time; shared only to be read.
#[derive(Debug)]
pub struct BatchSize(AtomicU16);

impl Default for BatchSize {
    fn default() -> Self {
        Self(AtomicU16::new(u16::MAX))
    }
}

impl BatchSize {
    /// Most requests to take now; at least 1.
    pub fn limit(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether batches of any size meet the goal.
    pub fn is_quick(&self) -> bool {
        self.limit() == u16::MAX
    }

    /// A batch of `requests` took `time`.
    pub fn took(&self, requests: usize, time: Duration) {
        let limit = self.limit();
        let next = if time > GOAL {
            let fitting = requests as u128 * GOAL.as_nanos() / time.as_nanos().max(1);
            u16::try_from(fitting).unwrap_or(u16::MAX).clamp(1, limit)
        } else if time < GOAL / 2 {
            limit.saturating_mul(2)
        } else {
            limit
        };
        // Steady sizes are only read, so that queues whose sizes share a cache line do not disturb
        // each other.
        if next != limit {
            self.0.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_are_given_one_by_one() {
        let batch_size = BatchSize::default();
        batch_size.took(64, Duration::from_millis(640));
        assert_eq!(batch_size.limit(), 1);
    }

    #[test]
    fn a_batch_shrinks_to_the_goal() {
        let batch_size = BatchSize::default();
        batch_size.took(64, Duration::from_micros(64 * 50));
        assert_eq!(batch_size.limit(), 10);
    }

    #[test]
    fn quick_answers_bring_large_batches_back() {
        let batch_size = BatchSize::default();
        batch_size.took(64, Duration::from_secs(1));
        for _ in 0..16 {
            batch_size.took(usize::from(batch_size.limit()), Duration::from_micros(10));
        }
        assert_eq!(batch_size.limit(), u16::MAX);
    }

    #[test]
    fn a_batch_that_meets_the_goal_keeps_its_size() {
        let batch_size = BatchSize::default();
        batch_size.took(64, Duration::from_micros(6400));
        let limit = batch_size.limit();
        batch_size.took(usize::from(limit), GOAL * 3 / 4);
        assert_eq!(batch_size.limit(), limit);
    }
}
