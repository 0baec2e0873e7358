//! Whether memory was lost, for those who may have read zeroes in its place.

use super::atomics::{AtomicBool, Ordering, fence};

/// A flag that is set before the memory is replaced, and looked at after the memory was read.
#[derive(Debug)]
pub(super) struct LossFlag(pub(super) AtomicBool);

impl LossFlag {
    /// Says that the memory is about to be replaced.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Returns whether it was, or is about to be. Whoever has read zeroes that were put there gets
    /// `true`.
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        // What was read before must have been read before the flag is: else a processor that
        // reorders loads (Arm's do) finds it not set, and then the zeroes. The kernel orders the
        // new pages after all that the replacing thread had stored.
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed)
    }
}
