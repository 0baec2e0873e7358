//! Lines that a front-end, a driver or a device can cause again and again: as many as anybody reads
//! are told in full, the others are counted.

use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use crate::repeats::SUMMARY_EVERY;

/// Lines of one kind that may come at once. A device with many queues has one to say of each, and a
/// machine that reboots a few.
const AT_ONCE: u32 = 100;

/// The lines of one kind: a hundred at once, and then one for each period of a summary. The others
/// are told together, by the newest of them and their number.
pub(crate) struct LimitedLines<T> {
    /// How many more may be told in full.
    left: u32,
    /// When that number grew last.
    grew: Instant,
    /// The newest of those that were not told.
    newest: Option<T>,
    /// How many came before it.
    older: u64,
    summed_up: Instant,
}

impl<T: fmt::Display> LimitedLines<T> {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, grew: now, newest: None, older: 0, summed_up: now }
    }

    /// The line, if it is to be told in full; else it is counted.
    pub(crate) fn pass(&mut self, line: T, now: Instant) -> Option<T> {
        self.grow(now);
        if self.left > 0 {
            self.left -= 1;
            return Some(line);
        }
        if self.newest.replace(line).is_some() {
            self.older += 1;
        }
        None
    }

    /// Whether something was counted and not told.
    pub(crate) fn has_counted(&self) -> bool {
        self.newest.is_some()
    }

    /// What was counted, as one line, if the last such line is as old as `age`.
    pub(crate) fn sum_up(&mut self, age: Duration, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.summed_up) < age {
            return None;
        }
        let newest = self.newest.take()?;
        self.summed_up = now;
        Some(match mem::take(&mut self.older) {
            0 => newest.to_string(),
            older => format!("{newest} (and {older} more like it before)"),
        })
    }

    fn grow(&mut self, now: Instant) {
        let periods = now.saturating_duration_since(self.grew).as_secs() / SUMMARY_EVERY.as_secs();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(AT_ONCE);
            self.left = self.left.saturating_add(more).min(AT_ONCE);
            self.grew = now;
        }
    }
}
