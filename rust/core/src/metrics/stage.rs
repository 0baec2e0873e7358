//! The stages of a batch on its way through a back-end.

use std::cell::Cell;

use super::clock::now;

/// A stage of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// It is taken out of the ring, and its chains are checked.
    Ring,
    /// It waits for the interpreter, and for other callbacks of the same device.
    GilWait,
    /// The device's Python code has it.
    Callback,
    /// A device without Python has it.
    Backend,
    /// It is given back to the driver.
    Publish,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 5] =
        [Self::Ring, Self::GilWait, Self::Callback, Self::Backend, Self::Publish];

    /// What monitoring calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::GilWait => "gil_wait",
            Self::Callback => "callback",
            Self::Backend => "backend",
            Self::Publish => "publish",
        }
    }
}

/// The batch is not timed, or no interpreter was entered for it.
const NONE: u64 = 0;
/// The batch is timed, and no interpreter was entered for it yet.
const EXPECTED: u64 = u64::MAX;

thread_local! {
    static ENTERED: Cell<u64> = const { Cell::new(NONE) };
}

/// The thread hands a batch over that is timed.
pub(crate) fn expect_interpreter() {
    let _ = ENTERED.try_with(|entered| entered.set(EXPECTED));
}

/// A device has got the interpreter for the batch that was handed to it. To be called on the
/// thread of `handle`.
#[inline]
pub fn interpreter_entered() {
    let _ = ENTERED.try_with(|entered| {
        if entered.get() == EXPECTED {
            entered.set(now());
        }
    });
}

/// When the interpreter was entered for the batch that came back; `None` if it was not.
pub(crate) fn take_entered() -> Option<u64> {
    let entered = ENTERED.try_with(|entered| entered.replace(NONE));
    entered.ok().filter(|&entered| entered != NONE && entered != EXPECTED)
}
