//! A process that dies at a store to shared memory: for tests of what outlives it.

use std::cell::Cell;
use std::panic::resume_unwind;

/// What such a death unwinds with.
pub(crate) struct Crash;

thread_local! {
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// This thread dies at the store behind so many more; `None`: it lives on.
pub(crate) fn after(stores: Option<u64>) {
    LEFT.set(stores);
}

/// A store is about to be made.
pub(crate) fn store() {
    match LEFT.get() {
        Some(0) => resume_unwind(Box::new(Crash)),
        left => LEFT.set(left.map(|left| left - 1)),
    }
}
