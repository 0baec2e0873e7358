//! The lock of a device that takes one call at a time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread waits in line before whoever has the lock must hand it over. A shorter wait may
/// be prolonged by a thread that comes by when the lock is free: it is awake already, where the
/// first in line has yet to wake up, and a lock that changes hands after every call costs each of
/// them that time.
const PATIENCE: Duration = Duration::from_micros(500);

/// A lock that goes to those who wait for it in the order in which they came, and can be waited for
/// with a limit. It is taken *before* attaching to the interpreter: a callback that waits for
/// something gives up the interpreter, but not this lock.
#[derive(Debug, Default)]
pub(crate) struct DeviceLock {
    /// Calls may overlap: there is nothing to wait for.
    free_for_all: bool,
    line: Mutex<Line>,
}

/// Who has the lock, and who waits for it.
#[derive(Debug, Default)]
struct Line {
    /// Somebody has it, or was handed it and has yet to wake up.
    taken: bool,
    /// To whom it was handed.
    handed_to: Option<u64>,
    waiting: VecDeque<Waiter>,
    /// The number of the next in line.
    next: u64,
}

/// A thread in line.
#[derive(Debug)]
struct Waiter {
    number: u64,
    thread: Thread,
    since: Instant,
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
        if !self.free_for_all && !self.line().try_take() {
            self.wait(None);
        }
        DeviceGuard(self)
    }

    /// Waits for the lock, but no longer than `limit`.
    pub(crate) fn take_within(&self, limit: Duration) -> Option<DeviceGuard<'_>> {
        let taken = self.free_for_all || self.line().try_take() || self.wait(Some(limit));
        taken.then_some(DeviceGuard(self))
    }

    /// Waits in line; `false` if the lock is not had within `limit`.
    #[cold]
    fn wait(&self, limit: Option<Duration>) -> bool {
        let since = Instant::now();
        let number = self.line().join(since);
        loop {
            let left = limit.map(|limit| limit.saturating_sub(since.elapsed()));
            let mut line = self.line();
            if line.is_mine(number) {
                return true;
            }
            if left.is_some_and(|left| left.is_zero()) {
                line.waiting.retain(|waiter| waiter.number != number);
                return false;
            }
            drop(line);
            match left {
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn try_take(&mut self) -> bool {
        !std::mem::replace(&mut self.taken, true)
    }

    /// The calling thread waits from now on; returns its number.
    fn join(&mut self, since: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.push_back(Waiter { number, thread: thread::current(), since });
        number
    }

    /// Whether the lock is this waiter's now: it was handed to it, or is free and it is the first.
    fn is_mine(&mut self, number: u64) -> bool {
        if self.handed_to == Some(number) {
            self.handed_to = None;
            return true;
        }
        let is_first = self.waiting.front().is_some_and(|first| first.number == number);
        if is_first && self.try_take() {
            self.waiting.pop_front();
            return true;
        }
        false
    }

    /// The lock is given back: to the first in line if that has waited for long.
    fn give_back(&mut self) {
        let Some(first) = self.waiting.front() else {
            self.taken = false;
            return;
        };
        first.thread.unpark();
        if first.since.elapsed() < PATIENCE {
            self.taken = false;
            return;
        }
        self.handed_to = Some(first.number);
        self.waiting.pop_front();
    }
}

impl Drop for DeviceGuard<'_> {
    fn drop(&mut self) {
        if !self.0.free_for_all {
            self.0.line().give_back();
        }
    }
}
