//! What becomes of an exception in a callback: a status for the driver, a log record, and
//! whatever `on_error` asks for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{
    PyBufferError, PyKeyboardInterrupt, PyNotImplementedError, PyOSError, PySystemExit,
};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::log::{self, Level, Logger, Record};
use crate::traits::HeldReports;

/// How often repeats of a known kind of error are summed up.
const SUMMARY_EVERY: Duration = Duration::from_secs(10);

/// Kinds told apart. A device that makes up exception classes gets no table without end.
const MAX_KINDS: usize = 256;

/// What `on_error` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    /// Log it and go on.
    Report,
    /// Also keep it, for the front-end in the same process to raise.
    Raise,
    /// Also stop the back-end, and let `run()` raise it.
    Stop,
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request failed.
    Failed,
    /// The device does not do that.
    Unsupported,
}

/// Which callback failed, on what. Its text is only made when it is needed.
pub(crate) struct Context<'a> {
    pub(crate) callback: &'static str,
    pub(crate) request: &'a dyn fmt::Display,
}

/// The errors of one device's callbacks.
pub(crate) struct Reports {
    label: String,
    device: String,
    on_error: OnError,
    state: Mutex<State>,
    /// Asks the back-end to stop.
    stop: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct State {
    kinds: HashMap<(usize, &'static str), Kind>,
    /// Mistakes that were told.
    mistakes: HashSet<&'static str>,
    refused: Refused,
    /// The error that stopped the back-end, or that a front-end may raise.
    failure: Option<PyErr>,
    stopping: bool,
}

/// Requests that failed for want of room for a private copy.
#[derive(Default)]
struct Refused {
    told: Option<Instant>,
    /// Since then.
    repeats: u64,
}

impl Refused {
    /// Says how many were not told, and starts to count anew.
    fn words(&mut self) -> String {
        match mem::take(&mut self.repeats) {
            0 => String::new(),
            repeats => format!(" (and {repeats} more requests before)"),
        }
    }
}

struct Kind {
    name: String,
    /// Keeps the class alive, so that its address names no other.
    _class: Py<PyType>,
    repeats: u64,
    last_told: Instant,
}

impl Reports {
    /// `label` stands before each line; `device` is the class whose callbacks raise.
    pub(crate) fn new(label: String, device: String, on_error: OnError) -> Self {
        Self { label, device, on_error, state: Mutex::default(), stop: OnceLock::new() }
    }

    /// Says how to stop the back-end, once it has started.
    pub(crate) fn set_stop(&self, stop: impl Fn() + Send + Sync + 'static) {
        let _ = self.stop.set(Box::new(stop));
        if self.is_stopping()
            && let Some(stop) = self.stop.get()
        {
            stop();
        }
    }

    /// Whether an error has asked for the end: no further callback is wanted.
    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Takes the error that `run()`, or a front-end in this process, is to raise.
    pub(crate) fn take_failure(&self) -> Option<PyErr> {
        self.lock().failure.take()
    }

    /// Deals with an exception that a callback has raised.
    pub(crate) fn raised(&self, py: Python<'_>, error: PyErr, context: &Context<'_>) -> Fault {
        let unsupported = error.is_instance_of::<PyNotImplementedError>(py);
        let fault = if unsupported { Fault::Unsupported } else { Fault::Failed };
        if error.is_instance_of::<PyKeyboardInterrupt>(py)
            || error.is_instance_of::<PySystemExit>(py)
        {
            // Not a failure of the device but a wish.
            self.stop_for(error.clone_ref(py));
            let text =
                format!("{}, stopping", self.sentence(context.callback, &name_of(py, &error)));
            self.say(Level::Info, text, None);
            return fault;
        }
        match self.on_error {
            OnError::Report => {}
            OnError::Raise => self.keep(error.clone_ref(py)),
            OnError::Stop => self.stop_for(error.clone_ref(py)),
        }
        let quiet = unsupported || error.is_instance_of::<PyOSError>(py);
        let level = if quiet { Level::Warning } else { Level::Error };
        self.tell(py, level, error, context);
        fault
    }

    /// Logs something about the device that is no exception.
    pub(crate) fn say(&self, level: Level, text: String, exception: Option<PyErr>) {
        let text = format!("{}: {text}", self.label);
        log::record(Record { logger: Logger::Device, level, text, exception });
    }

    /// Logs that there was no room for a private copy: the first time in full, then as a number
    /// from time to time, since the driver decides how often that is.
    pub(crate) fn refused_copy(&self, refused: &dyn fmt::Display) {
        let mut state = self.lock();
        let due = state.refused.told.is_none_or(|told| told.elapsed() >= SUMMARY_EVERY);
        if !due {
            state.refused.repeats += 1;
            return;
        }
        state.refused.told = Some(Instant::now());
        let more = state.refused.words();
        drop(state);
        self.say(Level::Error, format!("a request fails: {refused}{more}"), None);
    }

    /// Counts a mistake of the device's that is no exception; logs it the first time.
    pub(crate) fn mistake(&self, what: &'static str, text: impl FnOnce() -> String) {
        if self.lock().mistakes.insert(what) {
            self.say(Level::Warning, text(), None);
        }
    }

    /// Logs what was counted and not yet said.
    pub(crate) fn sum_up(&self) {
        let mut lines = Vec::new();
        let mut state = self.lock();
        for ((_, callback), kind) in &mut state.kinds {
            if kind.repeats > 0 {
                lines.push(self.summary(callback, kind));
            }
        }
        if state.refused.repeats > 0 {
            lines.push(format!("no room for private copies{}", state.refused.words()));
        }
        drop(state);
        for line in lines {
            self.say(Level::Error, line, None);
        }
    }

    /// The first of a kind in full, the others as a number from time to time.
    fn tell(&self, py: Python<'_>, level: Level, error: PyErr, context: &Context<'_>) {
        let class = error.get_type(py);
        let key = (class.as_ptr() as usize, context.callback);
        let mut state = self.lock();
        if let Some(kind) = state.kinds.get_mut(&key) {
            kind.repeats += 1;
            if kind.last_told.elapsed() >= SUMMARY_EVERY {
                let line = self.summary(context.callback, kind);
                drop(state);
                self.say(level, line, None);
            }
            return;
        }
        let known = state.kinds.len();
        drop(state);
        let name = name_of(py, &error);
        let text = format!("{} ({})", self.sentence(context.callback, &name), context.request);
        if known < MAX_KINDS {
            let last_told = Instant::now();
            let kind = Kind { name, _class: class.unbind(), repeats: 0, last_told };
            self.lock().kinds.insert(key, kind);
        }
        self.say(level, text, Some(error));
    }

    /// Which callback raised what: `RamDisk.read raised ValueError`.
    fn sentence(&self, callback: &str, exception: &str) -> String {
        format!("{}.{callback} raised {exception}", self.device)
    }

    /// Says how often it was repeated, and starts to count anew.
    fn summary(&self, callback: &str, kind: &mut Kind) -> String {
        let repeats = mem::take(&mut kind.repeats);
        kind.last_told = Instant::now();
        format!("{} {repeats} more times", self.sentence(callback, &kind.name))
    }

    /// Keeps the newest error for a front-end to raise.
    fn keep(&self, error: PyErr) {
        let former = self.lock().failure.replace(error);
        // Only now, without the lock: what an exception holds may run code when it goes.
        drop(former);
    }

    fn stop_for(&self, error: PyErr) {
        let mut state = self.lock();
        state.stopping = true;
        // The first is the cause; what follows may follow from it. It goes when no lock is held:
        // what an exception holds may run code then.
        let later = match &state.failure {
            Some(_) => Some(error),
            None => state.failure.replace(error),
        };
        drop(state);
        drop(later);
        if let Some(stop) = self.stop.get() {
            stop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldReports for Reports {
    fn record_held(&self, py: Python<'_>, text: &str) -> bool {
        if self.on_error != OnError::Raise {
            return false;
        }
        let error = PyBufferError::new_err(text.to_owned());
        self.say(Level::Error, text.to_owned(), Some(error.clone_ref(py)));
        self.keep(error);
        true
    }
}

fn name_of(py: Python<'_>, error: &PyErr) -> String {
    error.get_type(py).name().map_or_else(|_| "an exception".into(), |name| name.to_string())
}

/// Empties the frames that an exception came through. They hold the callback's variables, and with
/// them views of the request, for as long as a log or a debugger keeps the exception.
#[cold]
pub(crate) fn forget_locals(py: Python<'_>, error: &PyErr) {
    let cleared = error.traceback(py).map(|traceback| {
        py.import("traceback")?.call_method1("clear_frames", (traceback,)).map(drop)
    });
    if let Some(Err(error)) = cleared {
        error.write_unraisable(py, None);
    }
}
