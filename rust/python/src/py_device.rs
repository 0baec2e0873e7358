//! A Python object whose methods are a device's callbacks: what all kinds of devices have in
//! common.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vhost_user_core::device::{StateForm, StateRefused};
use vhost_user_core::metrics::interpreter_entered;
use vhost_user_core::request::CallbackScope;

use crate::call::{call, call_for_value};
use crate::callback_thread::Running;
use crate::copy_budget::CopyBudget;
use crate::device_lock::DeviceLock;
use crate::log::Level;
use crate::origin::Origin;
use crate::python_thread;
use crate::report::{Context, Reports};
use crate::traits::FlushesFirst;

/// How long a callback of the control plane (`on_start`, `on_stop` ...) waits for a callback that
/// is running. Without a limit a stuck device could never be stopped.
const CONTROL_LIMIT: Duration = Duration::from_secs(1);

/// Most bytes of the name of what a device saves.
const MOST_NAME: usize = 255;

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a callback of some device.
pub(crate) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// How request data is shown to Python.
#[derive(Clone, Copy)]
pub(crate) struct Views {
    /// Mappings of granted pages are shown as they are.
    pub(crate) raw: bool,
    /// Bytes of private copies that a queue may have at a time.
    pub(crate) copy_budget: u64,
}

/// The Python object, and the order of calls to it.
pub(crate) struct PyDevice {
    object: Py<PyAny>,
    /// The class's name, for messages.
    pub(crate) name: String,
    /// Its views show mappings of granted pages as they are.
    raw_views: bool,
    lock: DeviceLock,
    pub(crate) reports: Arc<Reports>,
    /// The control plane has waited for a callback in vain.
    stuck: AtomicBool,
    /// Grows with each start, when bound methods are looked up again.
    starts: AtomicU64,
    /// What `save` writes, if there is one.
    state_form: Option<StateForm>,
}

impl PyDevice {
    pub(crate) fn new(
        object: &Bound<'_, PyAny>,
        overrides: &[String],
        raw_views: bool,
        reports: Arc<Reports>,
    ) -> PyResult<Self> {
        let state_form = Self::form(object, overrides)?;
        let thread_safe = object.getattr("thread_safe")?.is_truthy()?;
        let name = object.get_type().name()?.to_string();
        let lock = DeviceLock::new(thread_safe);
        let (stuck, starts) = (AtomicBool::new(false), AtomicU64::new(1));
        let object = object.clone().unbind();
        Ok(Self { object, name, raw_views, lock, reports, stuck, starts, state_form })
    }

    /// As [`enter`](Self::enter), from a thread that may come when the interpreter has ended:
    /// `None` then.
    pub(crate) fn try_enter<T>(&self, body: impl FnOnce(Python<'_>) -> T) -> Option<T> {
        // Dropped last: what the callback has answered is published without lock and interpreter.
        let _scope = CallbackScope::enter();
        let _guard = self.lock.take();
        let _mark = CallbackMark::set();
        Python::try_attach(|py| self.run(py, body))
    }

    /// Runs `body` attached to the interpreter, when no other callback runs.
    pub(crate) fn enter<T>(&self, body: impl FnOnce(Python<'_>) -> T) -> T {
        let _scope = CallbackScope::enter();
        let _guard = self.lock.take();
        let _mark = CallbackMark::set();
        Python::attach(|py| self.run(py, body))
    }

    /// Runs `body`, which is looked at meanwhile: if it does not return, that is told.
    fn run<T>(&self, py: Python<'_>, body: impl FnOnce(Python<'_>) -> T) -> T {
        interpreter_entered();
        python_thread::known(py, |py| {
            let _running = Running::begin(py, &self.reports);
            body(py)
        })
    }

    /// The number of the present start.
    pub(crate) fn start_number(&self) -> u64 {
        self.starts.load(Ordering::Acquire)
    }

    /// The callback `name`, bound to the object.
    pub(crate) fn method(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.object.getattr(py, name)
    }

    /// What requests of `callback` share, and where its late writes go.
    pub(crate) fn origin(
        &self,
        callback: &'static str,
        budget: &Arc<CopyBudget>,
        late: Option<Arc<dyn FlushesFirst>>,
    ) -> Arc<Origin> {
        let (reports, budget) = (Arc::clone(&self.reports), Arc::clone(budget));
        Arc::new(Origin { callback, raw_views: self.raw_views, reports, budget, late })
    }

    /// Whether its views show mappings of granted pages as they are.
    pub(crate) fn has_raw_views(&self) -> bool {
        self.raw_views
    }

    /// Calls `name` on the control plane. What comes of it is reported and no more.
    pub(crate) fn tell(&self, name: &'static str) {
        self.ask(name, |py| call(py, name, &self.method(py, name)?, []));
    }

    /// Makes a call on the control plane. `None`: it raised, or the device is stuck in another.
    pub(crate) fn ask<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
    ) -> Option<T> {
        self.ask_about(name, &"a call from the back-end", call)
    }

    /// As [`ask`](Self::ask); `request` says in a report what was asked.
    pub(crate) fn ask_about<T>(
        &self,
        name: &'static str,
        request: &dyn fmt::Display,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
    ) -> Option<T> {
        let _scope = CallbackScope::enter();
        // Once is enough to wait for a callback that does not return.
        let limit = if self.stuck.load(Ordering::Relaxed) { Duration::ZERO } else { CONTROL_LIMIT };
        let guard = self.lock.take_within(limit);
        self.stuck.store(guard.is_none(), Ordering::Relaxed);
        if guard.is_none() {
            let text = format!("{name} was not called: another callback does not return");
            self.reports.say_limited(name, Level::Error, text);
            return None;
        }
        let _mark = CallbackMark::set();
        let attached = || {
            Python::try_attach(|py| {
                let context = Context { callback: name, request };
                let called = self.run(py, call);
                called.map_err(|error| self.reports.raised(py, error, &context)).ok()
            })
        };
        // The control plane has one thread, which must outlive a bug here.
        catch_unwind(AssertUnwindSafe(attached)).unwrap_or_else(|_| self.panicked(name)).flatten()
    }

    #[cold]
    fn panicked<T>(&self, name: &str) -> Option<T> {
        self.reports.say_limited("panic", Level::Error, format!("a panic in {name}"));
        None
    }

    pub(crate) fn negotiated(&self, features: u64) {
        self.ask("negotiated_features", |py| {
            self.object.setattr(py, "negotiated_features", features)
        });
    }

    pub(crate) fn started(&self) {
        self.starts.fetch_add(1, Ordering::AcqRel);
        self.tell("on_start");
    }

    pub(crate) fn stopped(&self) {
        self.tell("on_stop");
    }

    pub(crate) fn reset(&self) {
        self.tell("on_reset");
    }

    pub(crate) fn disconnected(&self) {
        self.tell("on_disconnect");
    }

    /// The form of what it saves, if its class has both `save` and `load`.
    fn form(object: &Bound<'_, PyAny>, overrides: &[String]) -> PyResult<Option<StateForm>> {
        let has = |name: &str| overrides.iter().any(|known| known == name);
        if !has("save") || !has("load") {
            return Ok(None);
        }
        let given: String = object.getattr("state_name")?.extract()?;
        let class = || object.get_type().name().map(|name| name.to_string());
        let name = if given.is_empty() { class()? } else { given };
        if name.len() > MOST_NAME {
            let (bytes, most) = (name.len(), MOST_NAME);
            let text = format!("state_name has at most {most} bytes, not {bytes}: {name:?}");
            return Err(PyValueError::new_err(text));
        }
        Ok(Some(StateForm { name, version: object.getattr("state_version")?.extract()? }))
    }

    /// What it saves, if it does.
    pub(crate) fn state_form(&self) -> Option<&StateForm> {
        self.state_form.as_ref()
    }

    /// Has it save its state.
    pub(crate) fn save(&self) -> Result<Vec<u8>, StateRefused> {
        let state = self.ask("save", |py| {
            let save = self.method(py, "_save_state")?;
            Ok(call_for_value(py, &save, [])?.cast::<PyBytes>()?.as_bytes().to_vec())
        });
        state.ok_or_else(|| StateRefused("save has failed, as the log says".to_owned()))
    }

    /// Has it load a state.
    pub(crate) fn load(&self, version: u32, state: &[u8]) -> Result<(), StateRefused> {
        let loaded = self.ask("load", |py| {
            let version = version.into_pyobject(py)?.into_any();
            let state = PyBytes::new(py, state).into_any();
            call(py, "load", &self.method(py, "_load_state")?, [&version, &state])
        });
        loaded.ok_or_else(|| StateRefused("load has failed, as the log says".to_owned()))
    }
}

/// Attaches a worker to the interpreter for its whole life, and gives the interpreter up for all
/// of it but the callbacks: attaching again is cheap then, since the thread has its state.
pub(crate) fn run_worker(body: &mut (dyn FnMut() + Send)) {
    // `None`: the interpreter is on its way out, and no queue is served any more.
    let _ = Python::try_attach(|py| python_thread::stay(py, body));
}

/// Says that a callback runs on this thread.
struct CallbackMark(bool);

impl CallbackMark {
    fn set() -> Self {
        Self(IN_CALLBACK.replace(true))
    }
}

impl Drop for CallbackMark {
    fn drop(&mut self) {
        IN_CALLBACK.set(self.0);
    }
}
