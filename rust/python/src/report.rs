//! What becomes of an exception in a callback: a status for the driver, a log record, and
//! whatever `on_error` asks for. And of requests that fail without one, or are held up.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::{
    PyBaseException, PyBufferError, PyKeyboardInterrupt, PyNotImplementedError, PyOSError,
    PyRuntimeError, PySystemExit,
};
use pyo3::prelude::*;
use vhost_user_core::block::{Attempt, FailureObserver, Refusal};

use crate::call::call_for_value;
use crate::device_numbers::DeviceNumbers;
use crate::error;
use crate::line_limit::LimitedLines;
use crate::log::{self, Level, Logger, Record};
use crate::reason::ERRNOS;
use crate::repeats::{Due, Kind, Repeats, SUMMARY_EVERY};
use crate::traits::{HeldReports, SumsUp};

/// Exceptions in one chain whose frames are looked at. A chain may have a circle.
const MAX_CHAIN: usize = 64;

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
    this: Weak<Self>,
    label: String,
    device: String,
    on_error: OnError,
    numbers: Arc<DeviceNumbers>,
    state: Mutex<State>,
    /// Asks the back-end to stop.
    stop: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What a front-end in this process is to raise.
enum Failure {
    /// An exception that is there.
    Python(PyErr),
    /// A `GuestError` with this text: it is made with the interpreter.
    Guest(String),
}

#[derive(Default)]
struct State {
    repeats: Repeats,
    /// Mistakes that were told.
    mistakes: HashSet<&'static str>,
    refused: Refused,
    /// What is told each time, within a limit.
    each: HashMap<&'static str, (Level, LimitedLines<String>)>,
    /// The log has been asked to have the numbers told.
    counting: bool,
    /// The error that stopped the back-end, or that a front-end may raise.
    failure: Option<Failure>,
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

impl Reports {
    /// `label` stands before each line; `device` is the class whose callbacks raise.
    pub(crate) fn new(label: String, device: String, on_error: OnError) -> Arc<Self> {
        Arc::new_cyclic(|this| {
            let (this, state, stop) = (Weak::clone(this), Mutex::default(), OnceLock::new());
            let numbers = Arc::default();
            Self { this, label, device, on_error, numbers, state, stop }
        })
    }

    /// Numbers about the device's Python side.
    pub(crate) fn numbers(&self) -> &Arc<DeviceNumbers> {
        &self.numbers
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
    pub(crate) fn take_failure(&self, py: Python<'_>) -> Option<PyErr> {
        let failure = self.lock().failure.take();
        failure.map(|failure| match failure {
            Failure::Python(error) => error,
            Failure::Guest(text) => error::guest(py, text),
        })
    }

    /// What messages call a callback: `RamDisk.read`.
    pub(crate) fn callback(&self, name: &str) -> String {
        format!("{}.{name}", self.device)
    }

    /// Deals with an exception that a callback has raised.
    pub(crate) fn raised(&self, py: Python<'_>, error: PyErr, context: &Context<'_>) -> Fault {
        self.numbers.raised(&name_of(py, &error));
        let unsupported = error.is_instance_of::<PyNotImplementedError>(py);
        let fault = if unsupported { Fault::Unsupported } else { Fault::Failed };
        if error.is_instance_of::<PyKeyboardInterrupt>(py)
            || error.is_instance_of::<PySystemExit>(py)
        {
            // Not a failure of the device but a wish.
            self.stop_for(error.clone_ref(py));
            let text = format!(
                "{} raised {}, stopping",
                self.callback(context.callback),
                name_of(py, &error)
            );
            self.say(Level::Info, text, None);
            return fault;
        }
        match self.on_error {
            OnError::Report => {}
            OnError::Raise => self.keep(Failure::Python(error.clone_ref(py))),
            OnError::Stop => self.stop_for(error.clone_ref(py)),
        }
        let quiet = unsupported || error.is_instance_of::<PyOSError>(py);
        let level = if quiet { Level::Warning } else { Level::Error };
        self.tell(py, level, "raised", error, context);
        fault
    }

    /// Deals with a request that the device has failed with an exception.
    pub(crate) fn failed_with(&self, py: Python<'_>, error: PyErr, context: &Context<'_>) {
        self.keep_for_raise(|| error.clone_ref(py));
        self.tell(py, Level::Warning, "failed a request with", error, context);
    }

    /// Deals with a request that was failed with an error number, or by the host.
    pub(crate) fn failed(&self, error: &io::Error, context: &Context<'_>) {
        let number = error.raw_os_error();
        let kind = Kind { what: "failed", callback: context.callback, number: told_apart(number) };
        let said = format_args!("{}.{} failed a request: {error}", self.device, context.callback);
        self.complain(kind, &said, &format_args!(" ({})", context.request), |text| {
            Failure::Python(os_error(number, text))
        });
    }

    /// Deals with a request of `callback` that the device has dropped without an answer. `fate`:
    /// what becomes of it.
    pub(crate) fn dropped(&self, callback: &'static str, fate: &dyn fmt::Display) {
        let kind = Kind { what: "dropped", callback, number: 0 };
        let said = format_args!("{}.{callback}: a deferred request was dropped", self.device);
        self.complain(kind, &said, &format_args!(" without an answer: {fate}"), |text| {
            Failure::Python(PyRuntimeError::new_err(text))
        });
    }

    /// Keeps an error for a front-end to raise, if that is wanted.
    pub(crate) fn keep_for_raise(&self, error: impl FnOnce() -> PyErr) {
        if self.on_error == OnError::Raise {
            self.keep(Failure::Python(error()));
        }
    }

    /// The same of what the driver has done, in words.
    pub(crate) fn keep_guest_error(&self, text: impl fmt::Display) {
        if self.on_error == OnError::Raise {
            self.keep(Failure::Guest(text.to_string()));
        }
    }

    /// Logs something about the device that is no exception.
    pub(crate) fn say(&self, level: Level, text: String, exception: Option<PyErr>) {
        let text = format!("{}: {text}", self.label);
        log::record(Record { logger: Logger::Device, level, text, exception });
    }

    /// As [`say`](Self::say) what may happen any number of times, each time on something else:
    /// `what` names its kind.
    pub(crate) fn say_limited(&self, what: &'static str, level: Level, text: String) {
        let now = Instant::now();
        let mut state = self.lock();
        let (_, lines) = state.each.entry(what).or_insert_with(|| (level, LimitedLines::new(now)));
        let due = lines.pass(text, now);
        drop(state);
        match due {
            Some(text) => self.say(level, text, None),
            None => self.counted(),
        }
    }

    /// Logs that there was no room for a private copy: the first time in full, then as a number
    /// from time to time, since the driver decides how often that is.
    pub(crate) fn refused_copy(&self, refused: &dyn fmt::Display) {
        let mut state = self.lock();
        let due = state.refused.told.is_none_or(|told| told.elapsed() >= SUMMARY_EVERY);
        if !due {
            state.refused.repeats += 1;
            drop(state);
            self.counted();
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
        self.sum_up_older(Duration::ZERO);
    }

    fn sum_up_older(&self, age: Duration) {
        let mut state = self.lock();
        let mut lines = state.repeats.sum_up(age);
        let refused = &mut state.refused;
        if refused.repeats > 0 && refused.told.is_none_or(|told| told.elapsed() >= age) {
            refused.told = Some(Instant::now());
            let line = format!("no room for private copies{}", refused.words());
            lines.push((Level::Error, line));
        }
        let now = Instant::now();
        let each = state.each.values_mut();
        lines.extend(each.filter_map(|(level, each)| Some((*level, each.sum_up(age, now)?))));
        drop(state);
        for (level, line) in lines {
            self.say(level, line, None);
        }
    }

    /// Has the log look after what was counted.
    fn counted(&self) {
        if !mem::replace(&mut self.lock().counting, true) {
            log::sum_up_later(Weak::clone(&self.this) as Weak<dyn SumsUp>);
        }
    }

    /// The first of a kind in full, the others as a number from time to time.
    fn tell(
        &self,
        py: Python<'_>,
        level: Level,
        did: &'static str,
        error: PyErr,
        context: &Context<'_>,
    ) {
        let (class, callback) = (error.get_type(py), context.callback);
        let kind = Kind { what: did, callback, number: class.as_ptr() as usize };
        let (kind, due) = {
            let repeats = &mut self.lock().repeats;
            let kind = repeats.kind_of(kind);
            (kind, repeats.count(kind))
        };
        match due {
            Due::Full => {
                let (said, name) =
                    (format!("{}.{callback} {did}", self.device), name_of(py, &error));
                let text = format!("{said} {name} ({})", context.request);
                let what = if kind.is_others() { "exceptions of other classes" } else { &name };
                let said = format!("{said} {what}");
                self.lock().repeats.told(kind, level, said, Some(class.unbind()));
                self.say(level, text, Some(error));
            }
            Due::Number(line) => self.say(level, line, None),
            Due::Nothing => self.counted(),
        }
    }

    /// The same of a fault that no exception tells. `said`: what repeats are summed up by; `about`:
    /// the rest of the first line. `failure`: what a front-end raises, for the whole line.
    fn complain(
        &self,
        kind: Kind,
        said: &dyn fmt::Display,
        about: &dyn fmt::Display,
        failure: impl FnOnce(String) -> Failure,
    ) {
        let due = self.lock().repeats.count(kind);
        match due {
            Due::Full => {
                self.lock().repeats.told(kind, Level::Warning, said.to_string(), None);
                self.say(Level::Warning, format!("{said}{about}"), None);
            }
            Due::Number(line) => self.say(Level::Warning, line, None),
            Due::Nothing => self.counted(),
        }
        if self.on_error == OnError::Raise {
            self.keep(failure(format!("{said}{about}")));
        }
    }

    /// Keeps the newest error for a front-end to raise.
    fn keep(&self, failure: Failure) {
        let former = self.lock().failure.replace(failure);
        // Only now, without the lock: what an exception holds may run code when it goes.
        drop(former);
    }

    fn stop_for(&self, error: PyErr) {
        let mut state = self.lock();
        state.stopping = true;
        // The first is the cause; what follows may follow from it. It goes when no lock is held:
        // what an exception holds may run code then.
        let later = match &state.failure {
            Some(_) => Some(Failure::Python(error)),
            None => state.failure.replace(Failure::Python(error)),
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
    fn tell_held(&self, callback: &'static str) {
        let kind = Kind { what: "held", callback, number: 0 };
        let said =
            format_args!("{}.{callback}: a view of the request's data is still held", self.device);
        let about =
            " 1 s after it was answered; the driver gets it back when the last view is gone";
        self.complain(kind, &said, &about, |text| Failure::Python(PyBufferError::new_err(text)));
    }
}

impl SumsUp for Reports {
    fn has_counted(&self) -> bool {
        let mut state = self.lock();
        let has_each = state.each.values().any(|(_, lines)| lines.has_counted());
        state.counting = has_each || state.repeats.has_counted() || state.refused.repeats > 0;
        state.counting
    }

    fn sum_up_old(&self) {
        self.sum_up_older(SUMMARY_EVERY);
    }
}

impl FailureObserver for Reports {
    fn refused(&self, queue: u16, why: &Refusal) {
        let kind = Kind { what: why.rule(), callback: "", number: 0 };
        let (said, about) =
            (format_args!("refused: {}", why.rule()), format_args!(": queue {queue}: {why}"));
        self.complain(kind, &said, &about, Failure::Guest);
    }

    fn failed(&self, queue: u16, what: &Attempt, error: &io::Error) {
        let number = error.raw_os_error();
        let kind = Kind { what: "host", callback: what.op.name(), number: told_apart(number) };
        let (said, about) = (
            format_args!("a {} failed: {error}", what.op),
            format_args!(" ({what}, queue {queue})"),
        );
        self.complain(kind, &said, &about, |text| Failure::Python(os_error(number, text)));
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reports({})", self.label)
    }
}

/// The number by which errors are told apart; 0 for those without one that Linux has.
fn told_apart(number: Option<i32>) -> usize {
    number.filter(|number| ERRNOS.contains(number)).map_or(0, |number| number as usize)
}

/// An `OSError`, with its number if it has one.
fn os_error(number: Option<i32>, text: String) -> PyErr {
    match number {
        Some(number) => PyOSError::new_err((number, text)),
        None => PyOSError::new_err(text),
    }
}

fn name_of(py: Python<'_>, error: &PyErr) -> String {
    error.get_type(py).name().map_or_else(|_| "an exception".into(), |name| name.to_string())
}

/// Empties the frames that an exception came through, and those that it was raised from. They hold
/// the callback's variables, and with them views of the request, for as long as a log or a debugger
/// keeps the exception.
#[cold]
pub(crate) fn forget_locals(py: Python<'_>, error: &PyErr) {
    if let Err(error) = clear_frames(py, error) {
        error.write_unraisable(py, None);
    }
}

fn clear_frames(py: Python<'_>, error: &PyErr) -> PyResult<()> {
    let clear = py.import("traceback")?.getattr("clear_frames")?.unbind();
    // What the frames hold may run code when it goes.
    let empty = |traceback: &Bound<'_, PyAny>| call_for_value(py, &clear, [traceback]).map(drop);
    // Its own need not stand in the exception yet.
    if let Some(traceback) = error.traceback(py) {
        empty(&traceback)?;
    }
    for exception in chain(error.value(py))?.iter().skip(1) {
        let traceback = exception.getattr("__traceback__")?;
        if !traceback.is_none() {
            empty(&traceback)?;
        }
    }
    Ok(())
}

/// Takes their frames from an exception and from those that it was raised from: of functions that
/// still run too, which nobody can empty.
#[cold]
pub(crate) fn forget_frames(error: &Bound<'_, PyBaseException>) -> PyResult<()> {
    let none = error.py().None();
    chain(error)?.iter().try_for_each(|exception| exception.setattr("__traceback__", &none))
}

/// An exception, and those that it was raised from.
fn chain<'py>(error: &Bound<'py, PyBaseException>) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let mut chain = vec![error.clone().into_any()];
    let mut at = 0;
    while let Some(exception) = chain.get(at).cloned() {
        for name in ["__context__", "__cause__"] {
            let from = exception.getattr(name)?;
            if !from.is_none() && chain.len() < MAX_CHAIN && !chain.iter().any(|e| e.is(&from)) {
                chain.push(from);
            }
        }
        at += 1;
    }
    Ok(chain)
}
