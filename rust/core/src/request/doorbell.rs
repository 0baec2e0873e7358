//! What wakes a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::eventfd::EventFd;

/// Wakes one worker, at the cost of a system call only when it sleeps.
#[derive(Debug)]
pub(crate) struct Doorbell {
    rung: AtomicBool,
    asleep: AtomicBool,
    event: EventFd,
}

impl Doorbell {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let event = EventFd::new()?;
        Ok(Arc::new(Self { rung: AtomicBool::new(false), asleep: AtomicBool::new(false), event }))
    }

    /// Asks the worker to look at its queues and their completions.
    pub(crate) fn ring(&self) {
        // Sequentially consistent, as in `fall_asleep`: of the two threads at least one sees the
        // other's store, so the worker never sleeps on a doorbell that was rung.
        self.rung.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.event.signal();
        }
    }

    /// Whether it was rung since `answer`.
    #[inline]
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// The worker is about to look; `true` if the doorbell was rung.
    pub(crate) fn answer(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }

    /// The worker is about to sleep; `false` if it was rung and must not.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        !self.rung.load(Ordering::SeqCst)
    }

    /// The worker is awake again.
    pub(crate) fn wake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// The worker has waited for the event and seen it. An event may come long after the thread
    /// that rang has found the worker asleep: so it is cleared when it is seen and not when it is
    /// expected, or a late one would keep the worker from ever sleeping again.
    pub(crate) fn silence(&self) {
        self.event.clear();
    }

    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_signalled(doorbell: &Doorbell) -> bool {
        let mut fds = [PollFd::new(doorbell.event(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).unwrap() == 1
    }

    #[test]
    fn a_bell_that_was_rung_keeps_its_worker_awake() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.ring();
        assert!(!doorbell.fall_asleep());
        assert!(doorbell.answer());
        assert!(doorbell.fall_asleep());
    }

    #[test]
    fn only_a_worker_that_sleeps_costs_a_system_call() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.ring();
        assert!(!is_signalled(&doorbell));
        doorbell.answer();
        assert!(doorbell.fall_asleep());
        doorbell.ring();
        assert!(is_signalled(&doorbell));
    }

    #[test]
    fn a_signal_that_comes_late_wakes_a_worker_once() {
        let doorbell = Doorbell::new().unwrap();
        assert!(doorbell.fall_asleep());
        doorbell.wake();
        doorbell.event().signal();
        assert!(doorbell.fall_asleep());
        assert!(is_signalled(&doorbell));
        doorbell.silence();
        doorbell.wake();
        assert!(doorbell.fall_asleep());
        assert!(!is_signalled(&doorbell));
    }
}
