//! How long a worker looks for work before it sleeps.
//!
//! Waking a sleeping thread costs both ends far more than a look at an index. So a worker whose
//! waits are short looks on for a while; one whose waits are long sleeps at once. The window
//! doubles when a sleep turned out shorter than the longest window, and halves when it did not:
//! below some ten thousand requests a second nothing is polled.

use std::time::{Duration, Instant};

/// The first window after none, and the last before none.
const SMALLEST: Duration = Duration::from_micros(4);

/// The window of one worker.
#[derive(Debug)]
pub(super) struct PollWindow {
    longest: Duration,
    current: Duration,
    idle_since: Option<Instant>,
}

impl PollWindow {
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, current: longest, idle_since: None }
    }

    /// There was work.
    #[inline]
    pub(super) fn found_work(&mut self) {
        self.idle_since = None;
    }

    /// There was none: whether to look again rather than sleep.
    #[inline]
    pub(super) fn look_again(&mut self) -> bool {
        if self.current.is_zero() {
            return false;
        }
        let now = Instant::now();
        now - *self.idle_since.get_or_insert(now) < self.current
    }

    /// A sleep is over.
    pub(super) fn slept(&mut self, time: Duration) {
        self.idle_since = None;
        self.current = if time < self.longest {
            (self.current * 2).clamp(SMALLEST.min(self.longest), self.longest)
        } else if self.current > SMALLEST {
            self.current / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(32);

    #[test]
    fn long_sleeps_turn_polling_off() {
        let mut window = PollWindow::new(LONGEST);
        for _ in 0..8 {
            window.slept(Duration::from_millis(1));
        }
        assert!(!window.look_again());
    }

    #[test]
    fn short_sleeps_turn_polling_on_again() {
        let mut window = PollWindow::new(LONGEST);
        for _ in 0..8 {
            window.slept(Duration::from_millis(1));
        }
        for _ in 0..8 {
            window.slept(Duration::from_micros(10));
        }
        assert_eq!(window.current, LONGEST);
        assert!(window.look_again());
    }

    #[test]
    fn no_window_never_polls() {
        let mut window = PollWindow::new(Duration::ZERO);
        window.slept(Duration::ZERO);
        assert!(!window.look_again());
    }
}
