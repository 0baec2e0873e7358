//! What one thread uses at a time, for as long as it likes.
//!
//! No lock is held while it is used: the thread may run handlers of signals then, and with them
//! code that wants to use the very same thing.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::interrupt::{SIGNAL_CHECK, has_raised};

/// A value that is taken by the thread that uses it, and put back.
pub(crate) struct Seat<T> {
    state: Mutex<State<T>>,
    free: Condvar,
}

enum State<T> {
    Free(T),
    Taken(ThreadId),
}

/// The value in the hands of one thread. It goes back when this is dropped.
pub(crate) struct Taken<'a, T> {
    seat: &'a Seat<T>,
    /// `None` only while it is being dropped.
    value: Option<T>,
}

/// Why a value was not to be had.
pub(crate) enum NotTaken {
    /// This thread has it already: a handler of a signal runs inside a call.
    Reentered,
    /// A handler has raised while another thread was waited for.
    Interrupted,
}

impl<T> Seat<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { state: Mutex::new(State::Free(value)), free: Condvar::new() }
    }

    /// Takes the value, and waits until no other thread has it. To be called detached.
    pub(crate) fn take(&self) -> Result<Taken<'_, T>, NotTaken> {
        let own = thread::current().id();
        let mut state = self.lock();
        loop {
            match mem::replace(&mut *state, State::Taken(own)) {
                State::Free(value) => return Ok(Taken { seat: self, value: Some(value) }),
                State::Taken(user) if user == own => return Err(NotTaken::Reentered),
                State::Taken(user) => *state = State::Taken(user),
            }
            let waited = self.free.wait_timeout(state, SIGNAL_CHECK);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() {
                drop(state);
                if has_raised() {
                    return Err(NotTaken::Interrupted);
                }
                state = self.lock();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is there until it is dropped")
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is there until it is dropped")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            *self.seat.lock() = State::Free(value);
            self.seat.free.notify_one();
        }
    }
}
