//! The clock that batches are timed with.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine was started, never 0.
#[inline]
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanoseconds) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds).max(1)
}
