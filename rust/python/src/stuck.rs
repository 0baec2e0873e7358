//! Threads that are in callbacks, looked at from time to time: one that does not come back is told.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::traits::CallsBack;

/// How often the threads are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a callback may be seen running before that is told.
const LIMIT: Duration = Duration::from_secs(5);

/// The threads that go into callbacks.
#[derive(Default)]
pub(crate) struct CallingThreads {
    threads: Vec<Seen>,
    next_look: Option<Instant>,
}

/// A thread, and what was seen of it.
struct Seen {
    thread: Weak<dyn CallsBack>,
    /// The callback that it was in, and since when it was seen in that.
    callback: Option<u64>,
    since: Instant,
    told: bool,
}

impl CallingThreads {
    /// Adds a thread; `true`: there was none, so that nobody is about to look.
    pub(crate) fn add(&mut self, thread: Weak<dyn CallsBack>) -> bool {
        let is_first = self.threads.is_empty();
        self.threads.push(Seen { thread, callback: None, since: Instant::now(), told: false });
        is_first
    }

    /// A thread that has been in one callback for too long, if it is time to look. Each callback is
    /// told once.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Arc<dyn CallsBack>> {
        if self.next_look.is_some_and(|next| now < next) {
            return None;
        }
        self.threads.retain(|seen| seen.thread.strong_count() > 0);
        let stuck = self.threads.iter_mut().find_map(|seen| seen.look(now));
        if stuck.is_none() {
            self.next_look = Some(now + LOOK_EVERY);
        }
        stuck
    }

    /// When the next look is due; `None` while there is no thread to look at.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next_look.filter(|_| !self.threads.is_empty())
    }
}

impl Seen {
    fn look(&mut self, now: Instant) -> Option<Arc<dyn CallsBack>> {
        let thread = self.thread.upgrade()?;
        let callback = thread.callback();
        if callback != self.callback {
            (self.callback, self.since, self.told) = (callback, now, false);
        }
        let is_due = callback.is_some() && !self.told && now.duration_since(self.since) >= LIMIT;
        self.told |= is_due;
        is_due.then_some(thread)
    }
}
