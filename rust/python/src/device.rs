//! A device whose callbacks are Python: what all kinds of it have in common.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;
use vhost_user_core::device::{ConfigRefused, Device};
use vhost_user_core::request::Batch;

use crate::call::call;
use crate::late::LateWrites;
use crate::log::Level;
use crate::report::{Context, Reports, forget_locals};
use crate::request::Queue;
use crate::ticket::Origin;
use crate::turn::Turn;

/// How long a callback of the control leg (`on_start`, `on_stop` ...) waits for a callback that is
/// running. Without a limit a stuck device could never be stopped.
const CONTROL_LIMIT: Duration = Duration::from_secs(1);

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a callback of some device.
pub(crate) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// The Python object, and the order of calls to it.
pub(crate) struct Callee {
    object: Py<PyAny>,
    /// The class's name, for messages.
    pub(crate) name: String,
    /// Its views show mappings of granted pages as they are.
    raw_views: bool,
    turn: Turn,
    pub(crate) reports: Arc<Reports>,
    /// The control leg has waited in vain.
    stuck: AtomicBool,
    /// Grows with each start, when bound methods are looked up again.
    starts: AtomicU64,
}

impl Callee {
    pub(crate) fn new(
        object: &Bound<'_, PyAny>,
        raw_views: bool,
        reports: Arc<Reports>,
    ) -> PyResult<Self> {
        let thread_safe = object.getattr("thread_safe")?.is_truthy()?;
        let name = object.get_type().name()?.to_string();
        let turn = Turn::new(thread_safe);
        let (stuck, starts) = (AtomicBool::new(false), AtomicU64::new(1));
        let object = object.clone().unbind();
        Ok(Self { object, name, raw_views, turn, reports, stuck, starts })
    }

    /// As [`enter`](Self::enter), from a thread that may come when the interpreter has ended:
    /// `None` then.
    pub(crate) fn try_enter<T>(&self, body: impl FnOnce(Python<'_>) -> T) -> Option<T> {
        let _turn = self.turn.take();
        let _mark = Mark::set();
        Python::try_attach(body)
    }

    /// Runs `body` attached to the interpreter, when no other callback runs.
    pub(crate) fn enter<T>(&self, body: impl FnOnce(Python<'_>) -> T) -> T {
        let _turn = self.turn.take();
        let _mark = Mark::set();
        Python::attach(body)
    }

    /// Which start this is.
    pub(crate) fn start_number(&self) -> u64 {
        self.starts.load(Ordering::Acquire)
    }

    /// The callback `name`, bound to the object.
    pub(crate) fn method(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.object.getattr(py, name)
    }

    /// What to call the callback `name` in messages, and where its late writes go.
    pub(crate) fn origin(&self, name: &str, late: Option<Arc<LateWrites>>) -> Arc<Origin> {
        let callback = format!("{}.{name}", self.name);
        let reports = Arc::clone(&self.reports);
        Arc::new(Origin { callback, raw_views: self.raw_views, reports, late })
    }

    /// Whether its views show mappings of granted pages as they are.
    pub(crate) fn has_raw_views(&self) -> bool {
        self.raw_views
    }

    /// Calls `name` on the control leg, where nobody waits for an answer.
    pub(crate) fn tell(&self, name: &'static str) {
        self.ask(name, |py| call(py, name, &self.method(py, name)?, []));
    }

    /// Makes a call on the control leg. `None`: it raised, or the device is stuck in another.
    pub(crate) fn ask<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
    ) -> Option<T> {
        // Once is enough to wait for a callback that does not return.
        let limit = if self.stuck.load(Ordering::Relaxed) { Duration::ZERO } else { CONTROL_LIMIT };
        let turn = self.turn.take_within(limit);
        self.stuck.store(turn.is_none(), Ordering::Relaxed);
        if turn.is_none() {
            let text = format!("{name} was not called: another callback does not return");
            self.reports.say(Level::Error, text, None);
            return None;
        }
        let _mark = Mark::set();
        let attached = Python::try_attach(|py| {
            let context = Context { callback: name, request: &"a call from the back-end" };
            call(py).map_err(|error| self.reports.raised(py, error, &context)).ok()
        });
        attached.flatten()
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
        self.reports.sum_up();
    }

    pub(crate) fn disconnected(&self) {
        self.tell("on_disconnect");
    }
}

/// Attaches a worker to the interpreter for its whole life, and gives the interpreter up for all
/// of it but the callbacks: attaching again is cheap then, since the thread has its state.
pub(crate) fn run_worker(body: &mut (dyn FnMut() + Send)) {
    // `None`: the interpreter is on its way out and there is nobody to serve.
    let _ = Python::try_attach(|py| py.detach(body));
}

/// Says that a callback runs on this thread.
struct Mark(bool);

impl Mark {
    fn set() -> Self {
        Self(IN_CALLBACK.replace(true))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        IN_CALLBACK.set(self.0);
    }
}

/// A device of any type: `on_queue` gets the requests as they are.
pub(crate) struct QueueDevice {
    callee: Callee,
    virtio_id: u32,
    features: u64,
    queue_size: u16,
    /// There is a `write_config` to call.
    takes_config: bool,
    config: Mutex<Vec<u8>>,
    queues: Vec<Mutex<QueueState>>,
}

/// What one queue's worker keeps from batch to batch.
#[derive(Default)]
struct QueueState {
    start: u64,
    on_queue: Option<Py<PyAny>>,
    queue: Option<Py<Queue>>,
}

impl QueueDevice {
    /// Reads what it is from the Python object. `overrides`: the callbacks that its class has.
    pub(crate) fn new(
        object: &Bound<'_, PyAny>,
        overrides: &[String],
        raw_views: bool,
        reports: Arc<Reports>,
    ) -> PyResult<Self> {
        let num_queues: u16 = object.getattr("num_queues")?.extract()?;
        Ok(Self {
            callee: Callee::new(object, raw_views, reports)?,
            virtio_id: object.getattr("device_id")?.extract()?,
            features: object.getattr("features")?.extract()?,
            queue_size: object.getattr("queue_size")?.extract()?,
            takes_config: overrides.iter().any(|name| name == "write_config"),
            config: Mutex::new(object.getattr("config")?.extract()?),
            queues: (0..num_queues).map(|_| Mutex::default()).collect(),
        })
    }

    /// Replaces the configuration space.
    pub(crate) fn set_config(&self, config: Vec<u8>) {
        *self.config() = config;
    }

    fn config(&self) -> MutexGuard<'_, Vec<u8>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, py: Python<'_>, index: u16, state: &mut QueueState, batch: &mut Batch) {
        if let Err(error) = self.try_serve(py, index, state, batch) {
            let what = format!("queue {index}");
            let context = Context { callback: "on_queue", request: &what };
            self.callee.reports.raised(py, error, &context);
            self.fail_rest(batch);
        }
    }

    /// Gives back what was not taken from the queue: the driver, which waits for an answer, may
    /// have no reason for another kick. When the back-end is to stop, the ring keeps them.
    fn fail_rest(&self, batch: &mut Batch) {
        while !self.callee.reports.is_stopping()
            && let Some(request) = batch.next()
        {
            batch.complete(request, 0);
        }
    }

    fn try_serve(
        &self,
        py: Python<'_>,
        index: u16,
        state: &mut QueueState,
        batch: &mut Batch,
    ) -> PyResult<()> {
        self.prepare(py, index, state)?;
        let (Some(on_queue), Some(queue)) = (&state.on_queue, &state.queue) else { return Ok(()) };
        queue.get().lend(py, batch);
        let result = call(py, "on_queue", on_queue, [queue.bind(py).as_any()]);
        if let Err(error) = &result
            && queue.get().is_viewed(py)
        {
            forget_locals(py, error);
        }
        let unanswered = queue.get().take_back(py, batch);
        if unanswered > 0 && result.is_ok() {
            self.callee.reports.mistake("on_queue", || {
                format!(
                    "on_queue returned with {unanswered} requests neither completed nor deferred: \
                     they went back to the driver with no byte written"
                )
            });
        }
        result
    }

    fn prepare(&self, py: Python<'_>, index: u16, state: &mut QueueState) -> PyResult<()> {
        let start = self.callee.start_number();
        if state.start != start {
            state.on_queue = Some(self.callee.method(py, "on_queue")?);
            let origin = self.callee.origin("on_queue", None);
            state.queue = Some(Py::new(py, Queue::new(index, self.queue_size, origin))?);
            state.start = start;
        }
        Ok(())
    }
}

impl Device for QueueDevice {
    fn virtio_id(&self) -> u32 {
        self.virtio_id
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn num_queues(&self) -> u16 {
        // As many as were counted by a u16 when they were made.
        self.queues.len() as u16
    }

    fn max_queue_size(&self) -> u16 {
        self.queue_size
    }

    fn config_len(&self) -> usize {
        self.config().len()
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        let config = self.config();
        let bytes = config.get(offset..).unwrap_or_default();
        let len = bytes.len().min(out.len());
        out[..len].copy_from_slice(&bytes[..len]);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), ConfigRefused> {
        if !self.takes_config {
            return Err(ConfigRefused(format!("offset {offset}: it is read-only")));
        }
        let call = |py: Python<'_>| {
            let offset = offset.into_pyobject(py)?.into_any();
            let bytes = PyBytes::new(py, data).into_any();
            let method = self.callee.method(py, "write_config")?;
            call(py, "write_config", &method, [&offset, &bytes])
        };
        let refused = || ConfigRefused(format!("offset {offset}: write_config raised"));
        self.callee.ask("write_config", call).ok_or_else(refused)
    }

    fn negotiated(&self, features: u64) {
        self.callee.negotiated(features);
    }

    fn started(&self) {
        self.callee.started();
    }

    fn stopped(&self) {
        self.callee.stopped();
    }

    fn disconnected(&self) {
        self.callee.disconnected();
    }

    fn run_worker(&self, body: &mut (dyn FnMut() + Send)) {
        run_worker(body);
    }

    fn wants_mappings(&self) -> bool {
        self.callee.has_raw_views()
    }

    fn handle(&self, queue: u16, batch: &mut Batch) {
        let Some(state) = self.queues.get(usize::from(queue)) else { return };
        if self.callee.reports.is_stopping() {
            return;
        }
        self.callee.enter(|py| {
            // Another worker holds it only if it was given up on while it was in a callback: it
            // needs the interpreter to come back, so it must not be waited for with that held.
            let mut state = state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
            self.serve(py, queue, &mut state, batch);
        });
    }
}

impl fmt::Debug for QueueDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueDevice({})", self.callee.name)
    }
}
