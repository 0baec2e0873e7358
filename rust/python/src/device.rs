//! A device of any type whose callbacks are Python.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyTuple};
use vhost_user_core::device::{ConfigRefused, Device, QueueHandle, StateForm, StateRefused};
use vhost_user_core::request::Batch;

use crate::call::{call, call_for_value};
use crate::copy_budget::CopyBudget;
use crate::py_device::{PyDevice, Views, run_worker};
use crate::queue::Queue;
use crate::report::{Context, Reports, forget_locals};
use crate::worker_state::WorkerState;

/// A device of any type: `on_queue` gets the requests as they are.
pub(crate) struct QueueDevice {
    device: PyDevice,
    virtio_id: u32,
    features: u64,
    transitional: bool,
    queue_size: u16,
    max_request_bytes: u64,
    /// There is a `write_config` to call.
    takes_config: bool,
    /// There is an `on_buffers` to call, for these queues.
    receive_queues: Vec<u16>,
    /// There is an `on_queue_stop` to call.
    hears_stops: bool,
    /// There is a `read_config` to call.
    answers_config: bool,
    /// The configuration space; its length never changes.
    config: Mutex<Vec<u8>>,
    queues: Vec<QueueSeat>,
}

/// What a device has for one queue.
struct QueueSeat {
    queue: Py<Queue>,
    state: WorkerState<QueueState>,
    budget: Arc<CopyBudget>,
}

/// What one queue's worker keeps from batch to batch.
#[derive(Default)]
struct QueueState {
    start: u64,
    on_queue: Option<Py<PyAny>>,
}

impl QueueDevice {
    /// What the copies of its queues come out of.
    pub(crate) fn budgets(&self) -> Vec<Arc<CopyBudget>> {
        self.queues.iter().map(|seat| Arc::clone(&seat.budget)).collect()
    }

    /// Reads what it is from the Python object. `overrides`: the callbacks that its class has.
    pub(crate) fn new(
        object: &Bound<'_, PyAny>,
        overrides: &[String],
        views: Views,
        reports: Arc<Reports>,
    ) -> PyResult<Self> {
        let py = object.py();
        let num_queues: u16 = object.getattr("num_queues")?.extract()?;
        let queue_size = object.getattr("queue_size")?.extract()?;
        let has = |name: &str| overrides.iter().any(|known| known == name);
        let device = PyDevice::new(object, overrides, views.raw, reports)?;
        let seat = |index| {
            let budget = CopyBudget::new(index, views.copy_budget);
            let origin = device.origin("on_queue", &budget, None);
            let queue = Py::new(py, Queue::new(index, queue_size, origin))?;
            Ok(QueueSeat { queue, state: WorkerState::default(), budget })
        };
        let queues = (0..num_queues).map(seat).collect::<PyResult<Vec<_>>>()?;
        let handles = queues.iter().map(|seat| seat.queue.clone_ref(py));
        object.setattr("_queues", PyTuple::new(py, handles)?)?;
        Ok(Self {
            virtio_id: object.getattr("device_id")?.extract()?,
            features: object.getattr("features")?.extract()?,
            transitional: object.getattr("transitional")?.is_truthy()?,
            queue_size,
            max_request_bytes: object.getattr("max_request_bytes")?.extract()?,
            takes_config: has("write_config"),
            answers_config: has("read_config"),
            receive_queues: object.getattr("receive_queues")?.extract()?,
            hears_stops: has("on_queue_stop"),
            config: Mutex::new(object.getattr("config")?.extract()?),
            device,
            queues,
        })
    }

    /// Replaces the configuration space. The front-end has been told its length already.
    pub(crate) fn set_config(&self, config: Vec<u8>) -> PyResult<()> {
        let mut held = self.config();
        if config.len() != held.len() {
            return Err(PyValueError::new_err(format!(
                "config has {} bytes for as long as the device is served, not {}",
                held.len(),
                config.len()
            )));
        }
        *held = config;
        Ok(())
    }

    /// Has the device answer a read of its configuration space that ends within it. `None`: it
    /// did not, and that was reported.
    fn ask_for_config(&self, offset: usize, len: usize) -> Option<Vec<u8>> {
        let what = format!("offset {offset}, {len} bytes");
        self.device.ask_about("read_config", &what, |py| {
            let offset = offset.into_pyobject(py)?.into_any();
            let len_asked = len.into_pyobject(py)?.into_any();
            let method = self.device.method(py, "read_config")?;
            config_bytes(&call_for_value(py, &method, [&offset, &len_asked])?, len)
        })
    }

    fn config(&self) -> MutexGuard<'_, Vec<u8>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, py: Python<'_>, index: u16, state: &mut QueueState, batch: &mut Batch) {
        if let Err(error) = self.try_serve(py, index, state, batch) {
            let what = format!("queue {index}");
            let context = Context { callback: "on_queue", request: &what };
            self.device.reports.raised(py, error, &context);
            self.fail_rest(batch);
        }
    }

    /// Gives back what was not taken from the queue: the driver, which waits for an answer, may
    /// have no reason for another kick. When the back-end is to stop, the ring keeps them.
    fn fail_rest(&self, batch: &mut Batch) {
        while !self.device.reports.is_stopping()
            && let Some(request) = batch.next()
        {
            batch.fail(request, 0);
        }
    }

    fn try_serve(
        &self,
        py: Python<'_>,
        index: u16,
        state: &mut QueueState,
        batch: &mut Batch,
    ) -> PyResult<()> {
        let start = self.device.start_number();
        let on_queue = match &state.on_queue {
            Some(known) if state.start == start => known,
            _ => {
                state.start = start;
                state.on_queue.insert(self.device.method(py, "on_queue")?)
            }
        };
        let queue = &self.queue_for(py, index, batch)?;
        let result = call(py, "on_queue", on_queue, [queue.bind(py).as_any()]);
        if let Err(error) = &result
            && queue.get().is_viewed(py)
        {
            forget_locals(py, error);
        }
        let unanswered = queue.get().take_back(py, batch);
        if unanswered > 0 && result.is_ok() {
            self.device.reports.mistake("on_queue", || {
                format!(
                    "on_queue returned with {unanswered} requests neither completed nor deferred: \
                     they went back to the driver with no byte written"
                )
            });
        }
        result
    }

    /// The queue's object, with a batch lent to it.
    fn queue_for(&self, py: Python<'_>, index: u16, batch: &mut Batch) -> PyResult<Py<Queue>> {
        let queue = self.queues[usize::from(index)].queue.clone_ref(py);
        if queue.get().lend(py, batch) {
            return Ok(queue);
        }
        // A callback that the session has given up still has the batch of before.
        let other = Py::new(py, queue.get().again())?;
        other.get().lend(py, batch);
        Ok(other)
    }

    fn queue(&self, index: u16) -> Option<&Py<Queue>> {
        self.queues.get(usize::from(index)).map(|seat| &seat.queue)
    }

    /// Tells the device something of a queue.
    fn tell_of(&self, name: &'static str, index: u16) {
        let Some(queue) = self.queue(index) else { return };
        self.device.ask(name, |py| {
            call(py, name, &self.device.method(py, name)?, [queue.bind(py).as_any()])
        });
    }
}

impl Device for QueueDevice {
    fn virtio_id(&self) -> u32 {
        self.virtio_id
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn is_transitional(&self) -> bool {
        self.transitional
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
        let len = self.config_len().saturating_sub(offset).min(out.len());
        if len == 0 {
            return;
        }
        let answered = self.answers_config.then(|| self.ask_for_config(offset, len)).flatten();
        // Front-ends give a device up whose configuration they cannot read, so that what failed
        // is answered too.
        let bytes = answered.unwrap_or_else(|| self.config()[offset..offset + len].to_vec());
        out[..len].copy_from_slice(&bytes);
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), ConfigRefused> {
        if !self.takes_config {
            return Err(ConfigRefused(format!("offset {offset}: it is read-only")));
        }
        let call = |py: Python<'_>| {
            let offset = offset.into_pyobject(py)?.into_any();
            let bytes = PyBytes::new(py, data).into_any();
            let method = self.device.method(py, "write_config")?;
            call(py, "write_config", &method, [&offset, &bytes])
        };
        let refused = || ConfigRefused(format!("offset {offset}: write_config raised"));
        self.device.ask("write_config", call).ok_or_else(refused)
    }

    fn negotiated(&self, features: u64) {
        self.device.negotiated(features);
    }

    fn started(&self) {
        self.device.started();
    }

    fn queue_started(&self, queue: u16, handle: Arc<dyn QueueHandle>) {
        if let Some(queue) = self.queue(queue) {
            queue.get().set_handle(Some(handle));
        }
    }

    fn queue_stopping(&self, queue: u16) {
        if self.hears_stops {
            self.tell_of("on_queue_stop", queue);
        }
        if let Some(queue) = self.queue(queue) {
            queue.get().set_handle(None);
        }
    }

    fn receives(&self, queue: u16) -> bool {
        self.receive_queues.contains(&queue)
    }

    fn buffers_available(&self, queue: u16) {
        let Some(object) = self.queue(queue) else { return };
        if self.device.reports.is_stopping() {
            return;
        }
        self.device.enter(|py| {
            let told = self.device.method(py, "on_buffers").and_then(|on_buffers| {
                call(py, "on_buffers", &on_buffers, [object.bind(py).as_any()])
            });
            if let Err(error) = told {
                let what = format!("queue {queue}");
                let context = Context { callback: "on_buffers", request: &what };
                self.device.reports.raised(py, error, &context);
            }
        });
    }

    fn stopped(&self) {
        self.device.stopped();
        self.queues.iter().for_each(|seat| seat.budget.forget());
    }

    fn reset(&self) {
        self.device.reset();
    }

    fn state_form(&self) -> Option<StateForm> {
        self.device.state_form().cloned()
    }

    fn save(&self) -> Result<Vec<u8>, StateRefused> {
        self.device.save()
    }

    fn load(&self, version: u32, state: &[u8]) -> Result<(), StateRefused> {
        self.device.load(version, state)
    }

    fn disconnected(&self) {
        self.device.disconnected();
    }

    fn run_worker(&self, body: &mut (dyn FnMut() + Send)) {
        run_worker(body);
    }

    fn max_request_bytes(&self) -> u64 {
        self.max_request_bytes
    }

    fn wants_mappings(&self) -> bool {
        self.device.has_raw_views()
    }

    fn handle(&self, queue: u16, batch: &mut Batch) {
        let Some(seat) = self.queues.get(usize::from(queue)) else { return };
        if self.device.reports.is_stopping() {
            return;
        }
        self.device.enter(|py| {
            seat.state.with(|state| self.serve(py, queue, state, batch));
        });
    }
}

/// What `read_config` returned, which must be `len` bytes.
fn config_bytes(returned: &Bound<'_, PyAny>, len: usize) -> PyResult<Vec<u8>> {
    let bytes = if let Ok(bytes) = returned.cast::<PyBytes>() {
        bytes.as_bytes().to_vec()
    } else if let Ok(bytes) = returned.cast::<PyByteArray>() {
        bytes.to_vec()
    } else {
        let class = returned.get_type();
        let text = format!("read_config returned {}, where it is to return bytes", class.name()?);
        return Err(PyTypeError::new_err(text));
    };
    if bytes.len() != len {
        let got = bytes.len();
        let text = format!("read_config returned {got} bytes, where {len} were asked for");
        return Err(PyValueError::new_err(text));
    }
    Ok(bytes)
}

impl fmt::Debug for QueueDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueDevice({})", self.device.name)
    }
}
