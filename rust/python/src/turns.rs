//! How far a thread has come with its callbacks: a number that other threads look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static THIS: Turns = Turns::default();
}

/// Grows by one as the thread goes into callbacks, and as it leaves them: odd while it is in them.
/// Grows by two as the next of them is called. Only the thread itself writes it.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<AtomicU64>);

impl Turns {
    /// Those of the thread that calls this.
    pub(crate) fn of_this_thread() -> Self {
        THIS.with(Self::clone)
    }

    /// A number of the callback that the thread is in; `None`: it is in none.
    pub(crate) fn callback(&self) -> Option<u64> {
        let turns = self.0.load(Ordering::Relaxed);
        (turns % 2 == 1).then_some(turns)
    }

    /// Says that the thread, which is this one, goes into callbacks or leaves them.
    pub(crate) fn turn(&self) {
        self.grow(1);
    }

    fn grow(&self, by: u64) {
        let turns = self.0.load(Ordering::Relaxed);
        self.0.store(turns.wrapping_add(by), Ordering::Relaxed);
    }
}

/// Says that the next callback is called on this thread: the one before has returned.
pub(crate) fn next() {
    // A thread that is on its way out is in no callback any more.
    let _ = THIS.try_with(|turns| {
        if turns.callback().is_some() {
            turns.grow(2);
        }
    });
}
