//! Locks that a thread takes with the interpreter.
//!
//! Whoever holds one runs no Python code: no call, no conversion of an argument, and no object made,
//! since that may run the garbage collector, and with it callbacks and finalizers, which may use the
//! very object that is locked. Nor does anybody wait for the interpreter with it.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::prelude::*;

/// Takes a lock that is held for moments, or for as long as data is moved. It is waited for with the
/// interpreter given up, and let go of again before the interpreter is taken back: what runs then
/// may be Python code.
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
