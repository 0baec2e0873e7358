//! Signals that come while the main thread waits in the core.
//!
//! The interpreter notes a signal and has its handler run by the main thread, at the next
//! opportunity. A thread that waits detached gives it one several times a second; if the handler
//! raises, as that of SIGINT does, the wait ends with that exception.

use std::cell::RefCell;
use std::time::Duration;

use pyo3::prelude::*;
use vhost_user_core::frontend::asking;

/// How long a wait goes on before it looks for signals, as every wait of Python does.
pub(crate) const SIGNAL_CHECK: Duration = Duration::from_millis(50);

thread_local! {
    /// What a handler has raised, until the call that it interrupts returns.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs `work` detached. Its waits let handlers of signals run, which may be Python code of any
/// kind: no lock may be held meanwhile.
///
/// # Errors
/// What a handler has raised; the result of `work` is lost then.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send,
) -> PyResult<T> {
    let result = py.detach(|| asking(has_raised, work));
    match RAISED.take() {
        Some(error) => Err(error),
        None => Ok(result),
    }
}

/// Lets the handlers of signals run that have come; `true` if one has raised. For a thread inside
/// [`interruptible`]; in others than the main thread nothing runs.
pub(crate) fn has_raised() -> bool {
    if RAISED.with_borrow(Option::is_some) {
        return true;
    }
    let checked = Python::try_attach(|py| py.check_signals());
    match checked {
        Some(Err(error)) => {
            RAISED.set(Some(error));
            true
        }
        Some(Ok(())) | None => false,
    }
}
