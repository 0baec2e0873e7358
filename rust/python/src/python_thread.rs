//! What Python is told of the core's threads: their names, and that they are there to be traced.

use std::cell::Cell;
use std::thread;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use crate::call::call_with;

/// What the names of all of the core's threads begin with.
const OURS: &str = "vhost-user";

/// The functions of `vhost_user.threads`.
struct Functions {
    introduce: Py<PyAny>,
    forget: Py<PyAny>,
}

static FUNCTIONS: PyOnceLock<Functions> = PyOnceLock::new();

thread_local! {
    /// The thread stays attached between its calls.
    static STAYS: Cell<bool> = const { Cell::new(false) };
    static IS_KNOWN: Cell<bool> = const { Cell::new(false) };
}

/// Looks up what is needed, in a thread that may import modules.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let load = || {
        let module = py.import("vhost_user.threads")?;
        let function = |name| module.getattr(name).map(Bound::unbind);
        PyResult::Ok(Functions { introduce: function("introduce")?, forget: function("forget")? })
    };
    FUNCTIONS.get_or_try_init(py, load).map(drop)
}

/// Runs the whole life of a thread that stays attached.
pub(crate) fn stay(py: Python<'_>, life: &mut (dyn FnMut() + Send)) {
    STAYS.set(true);
    py.detach(life);
    if IS_KNOWN.get() {
        forget(py);
    }
}

/// Runs code of Python on the thread, which is introduced before, unless it is known already or none
/// of the core's. One that does not stay attached is another to Python each time.
pub(crate) fn known<T>(py: Python<'_>, body: impl FnOnce(Python<'_>) -> T) -> T {
    let is_new = !IS_KNOWN.get() && introduce(py);
    let result = body(py);
    if is_new && !STAYS.get() {
        forget(py);
    }
    result
}

/// `false`: it is not one of the core's threads.
#[cold]
fn introduce(py: Python<'_>) -> bool {
    let thread = thread::current();
    let Some(name) = thread.name().filter(|name| name.starts_with(OURS)) else { return false };
    IS_KNOWN.set(true);
    tell(py, |functions| &functions.introduce, PyTuple::new(py, [name]));
    true
}

#[cold]
fn forget(py: Python<'_>) {
    IS_KNOWN.set(false);
    tell(py, |functions| &functions.forget, Ok(PyTuple::empty(py)));
}

fn tell<'py>(
    py: Python<'py>,
    which: fn(&Functions) -> &Py<PyAny>,
    arguments: PyResult<Bound<'py, PyTuple>>,
) {
    let Some(functions) = FUNCTIONS.get(py) else { return };
    let told = arguments.and_then(|arguments| {
        call_with(which(functions).bind(py), &arguments, &PyDict::new(py)).map(drop)
    });
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
}
