//! The lock of a device that takes one call at a time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread waits in line before the thread that has the lock must hand it over. Until
/// then a third thread that comes by when the lock is free may take it first: it is awake already,
/// where the first in line has yet to wake up, and a lock that changes hands after every call costs
/// that time with every call.
const PATIENCE: Duration = Duration::from_micros(500);

/// A lock that threads get in the order in which they came, and can wait for with a limit. It is
/// taken *before* attaching to the interpreter: a callback that waits for something gives up the
/// interpreter, but not this lock.
#[derive(Debug, Default)]
pub(crate) struct DeviceLock {
    /// Calls may overlap: there is nothing to wait for.
    free_for_all: bool,
    line: Mutex<Line>,
}

/// Whether the lock is taken, and the threads that wait for it.
#[derive(Debug, Default)]
struct Line {
    /// A thread has the lock, or was handed it and has yet to wake up.
    taken: bool,
    /// The number of the waiter that it was handed to.
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
        // A guard that is made gives the lock back, whoever has it.
        taken.then(|| DeviceGuard(self))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::JoinHandle;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Starts a thread that waits for the lock and says when it has had it, and returns when it
    /// stands in line as the last of `count`.
    fn waiter(lock: &Arc<DeviceLock>, count: usize) -> (Receiver<Instant>, JoinHandle<()>) {
        let (said, heard) = channel();
        let own = Arc::clone(lock);
        let thread = thread::spawn(move || {
            let guard = own.take();
            said.send(Instant::now()).unwrap();
            drop(guard);
        });
        wait_for(|| lock.line().waiting.len() == count);
        (heard, thread)
    }

    fn wait_for(holds: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < deadline, "it does not come");
            thread::yield_now();
        }
    }

    /// Lets the patience of those in line come to its end.
    fn be_slow() {
        let begun = Instant::now();
        wait_for(|| begun.elapsed() > PATIENCE);
    }

    #[test]
    fn who_has_waited_for_long_is_not_overtaken() {
        let lock = Arc::new(DeviceLock::new(false));
        let guard = lock.take();
        let (heard, thread) = waiter(&lock, 1);
        be_slow();
        drop(guard);
        // This thread is awake and the other is not: without a hand-over it would come first.
        let guard = lock.take_within(SOON).unwrap();
        assert!(heard.try_recv().is_ok());
        drop(guard);
        thread.join().unwrap();
    }

    #[test]
    fn the_lock_goes_to_the_waiters_in_the_order_in_which_they_came() {
        let lock = Arc::new(DeviceLock::new(false));
        let guard = lock.take();
        let waiters: Vec<_> = (1..=5).map(|count| waiter(&lock, count)).collect();
        be_slow();
        drop(guard);
        let times: Vec<_> =
            waiters.iter().map(|(heard, _)| heard.recv_timeout(SOON).unwrap()).collect();
        assert!(times.is_sorted());
        waiters.into_iter().for_each(|(_, thread)| thread.join().unwrap());
    }

    #[test]
    fn who_gives_up_leaves_the_line() {
        let lock = Arc::new(DeviceLock::new(false));
        let guard = lock.take();
        assert!(lock.take_within(Duration::from_millis(1)).is_none());
        assert!(lock.line().waiting.is_empty());
        assert!(lock.line().taken, "who has not got it gives nothing back");
        drop(guard);
        assert!(lock.take_within(Duration::ZERO).is_some());
        assert!(!lock.line().taken);
    }

    #[test]
    fn one_that_was_handed_to_a_waiter_is_not_lost_when_its_time_is_over() {
        let lock = Arc::new(DeviceLock::new(false));
        let guard = lock.take();
        let number = lock.line().join(Instant::now() - PATIENCE);
        drop(guard);
        assert_eq!(lock.line().handed_to, Some(number));
        assert!(lock.line().is_mine(number));
        assert!(lock.take_within(Duration::ZERO).is_none());
    }

    #[test]
    fn calls_of_a_thread_safe_device_do_not_wait_for_each_other() {
        let lock = DeviceLock::new(true);
        let guard = lock.take();
        assert!(lock.take_within(Duration::ZERO).is_some());
        drop(guard);
    }
}
