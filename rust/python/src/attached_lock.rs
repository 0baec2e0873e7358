//! Locks that a thread takes while it is attached to the interpreter.
//!
//! A thread that holds one runs no Python code: no call, no conversion of an argument, and no
//! object made, since that may run the garbage collector, and with it callbacks and finalizers,
//! which may use the very object that is locked. Nor does it wait for the interpreter.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::prelude::*;

/// Takes a lock that is held for moments, or for as long as data is moved. The calling thread waits
/// for it with the interpreter given up, and lets go of it again before it takes the interpreter
/// back: Python code may run at that moment.
pub(crate) fn lock<'a, T: Send>(py: Python<'_>, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                py.detach(|| drop(mutex.lock().unwrap_or_else(PoisonError::into_inner)));
            }
        }
    }
}
