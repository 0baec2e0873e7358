//! `Queue` and `Request`: a virtqueue's requests as any device type sees them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyMemoryView;
use vhost_user_core::memory::view::Parts;
use vhost_user_core::request::{Batch, Request, Stopped};

use crate::buffer::{self, Lendable, Side, is_unshared};
use crate::error::{refused, stale};
use crate::log;
use crate::ticket::{Answerable, Origin, Settled, Ticket};

impl Lendable for Request {
    /// Bytes written.
    type Answer = u32;

    fn len(&self, side: Side) -> u64 {
        match side {
            Side::Readable => self.readable().len(),
            Side::Writable => self.writable().len(),
        }
    }

    fn parts(&self, side: Side) -> Parts<'_> {
        match side {
            Side::Readable => self.readable().parts(0, u64::MAX),
            Side::Writable => self.writable().parts(0, u64::MAX),
        }
    }

    fn copy_out(&self, out: &mut [u8]) {
        self.readable().read_at(0, out);
    }

    fn copy_in(&self, data: &[u8]) {
        self.writable().write_at(0, data);
    }

    fn is_live(&self) -> bool {
        Request::is_live(self)
    }

    fn maps_grants(&self) -> bool {
        Request::maps_grants(self)
    }
}

impl Answerable for Request {
    fn finish(self, written: u32, batch: &mut Batch) {
        batch.complete(self, written);
    }

    fn complete(self, written: u32, _origin: Option<&Origin>) -> Result<(), Stopped> {
        Request::complete(self, written)
    }
}

/// One descriptor chain.
#[pyclass(frozen, name = "Request", module = "vhost_user")]
#[derive(Default)]
pub(crate) struct QueueRequest {
    ticket: Ticket<Request>,
}

#[pymethods]
impl QueueRequest {
    /// What the driver wrote: a read-only view, of the driver's memory if it is in one piece.
    #[getter]
    fn readable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        self.side(py, Side::Readable)
    }

    /// What the device may fill.
    #[getter]
    fn writable<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        self.side(py, Side::Writable)
    }

    /// Gives the request back. `written`: bytes written to the start of `writable`; all by
    /// default.
    #[pyo3(signature = (written=None))]
    fn complete(&self, py: Python<'_>, written: Option<u64>) -> PyResult<()> {
        let room = self.ticket.with(py, |state| {
            Ok(state.lent.request().map_or(0, |request| request.writable().len()))
        })?;
        let written = written.unwrap_or(room);
        if written > room {
            let text = format!("{written} bytes written, but the driver gave room for {room}");
            return Err(PyValueError::new_err(text));
        }
        self.ticket.answer(py, u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Keeps the request past the callback; complete it later, from any thread.
    fn defer(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().ticket.defer(slf.py())?;
        Ok(slf)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let text = self.ticket.with(py, |state| {
            Ok(state.lent.request().map_or_else(String::new, |request| {
                let (readable, writable) = (request.readable().len(), request.writable().len());
                let queue = request.queue();
                format!("<Request queue={queue} readable={readable} writable={writable}>")
            }))
        });
        text.unwrap_or_else(|_| "<Request answered>".to_owned())
    }
}

impl QueueRequest {
    fn side<'py>(&self, py: Python<'py>, side: Side) -> PyResult<Bound<'py, PyMemoryView>> {
        let pane = self.ticket.with(py, |state| state.lent.pane(py, side))?;
        let pane = pane.ok_or_else(|| stale(py, "the request was answered"))?;
        buffer::view(py, &pane)
    }
}

impl Drop for QueueRequest {
    fn drop(&mut self) {
        if let Some(origin) = self.ticket.is_forgotten() {
            let callback = &origin.callback;
            log::resource_warning(format!(
                "{callback}: a deferred request was dropped without an answer; it goes back to the \
                 driver with no byte written"
            ));
        }
    }
}

/// One virtqueue, as `on_queue` sees it.
#[pyclass(frozen, module = "vhost_user")]
pub(crate) struct Queue {
    index: u16,
    size: u16,
    origin: Arc<Origin>,
    lent: AtomicBool,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    batch: Batch,
    /// Handed out in this batch.
    out: Vec<Py<QueueRequest>>,
    /// To be handed out again.
    pool: Vec<Py<QueueRequest>>,
}

#[pymethods]
impl Queue {
    /// The vring's number.
    #[getter]
    fn index(&self) -> u16 {
        self.index
    }

    /// The largest number of entries that its ring may have.
    #[getter]
    fn size(&self) -> u16 {
        self.size
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// The next request of this batch.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<QueueRequest>>> {
        self.check(py)?;
        self.take(py)
    }

    /// Up to `max` requests of this batch.
    #[pyo3(signature = (max=64))]
    fn batch(&self, py: Python<'_>, max: usize) -> PyResult<Vec<Py<QueueRequest>>> {
        self.check(py)?;
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(request) = self.take(py)?
        {
            taken.push(request);
        }
        Ok(taken)
    }

    fn __repr__(&self) -> String {
        format!("<Queue {} of {} entries>", self.index, self.size)
    }
}

impl Queue {
    pub(crate) fn new(index: u16, size: u16, origin: Arc<Origin>) -> Self {
        Self { index, size, origin, lent: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Takes the batch for the time of a callback.
    pub(crate) fn lend(&self, py: Python<'_>, batch: &mut Batch) {
        self.lock(py).batch = std::mem::take(batch);
        self.lent.store(true, Ordering::Release);
    }

    /// Whether views of a request's data are left.
    pub(crate) fn is_viewed(&self, py: Python<'_>) -> bool {
        self.lock(py).out.iter().any(|request| request.get().ticket.is_viewed(py))
    }

    /// Gives it back, with the requests that were taken answered unless they are deferred.
    /// Returns how many of them nobody had answered.
    pub(crate) fn take_back(&self, py: Python<'_>, batch: &mut Batch) -> usize {
        self.lent.store(false, Ordering::Release);
        let mut state = self.lock(py);
        *batch = std::mem::take(&mut state.batch);
        let mut out = std::mem::take(&mut state.out);
        drop(state);
        let mut unanswered = 0;
        out.retain(|request| {
            let settled = request.get().ticket.settle(py, batch, |answer, _| answer.unwrap_or(0));
            unanswered += usize::from(settled == Settled::ByDefault);
            // What Python code still knows keeps its identity: it is not used again. And what was
            // deferred and is known to nobody any more goes here, and so back to the driver.
            settled != Settled::Deferred && is_unshared(py, request)
        });
        let mut state = self.lock(py);
        state.pool.append(&mut out);
        state.out = out;
        unanswered
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.lent.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(refused(py, "a queue has requests only while on_queue runs"))
    }

    fn take(&self, py: Python<'_>) -> PyResult<Option<Py<QueueRequest>>> {
        let mut state = self.lock(py);
        let Some(request) = state.batch.next() else { return Ok(None) };
        let object = match state.pool.pop() {
            Some(object) => object,
            None => Py::new(py, QueueRequest::default())?,
        };
        object.get().ticket.begin(py, request, &self.origin);
        state.out.push(object.clone_ref(py));
        Ok(Some(object))
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, QueueState> {
        self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}
