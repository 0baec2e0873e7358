//! `Queue`: a virtqueue as any device type sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use vhost_user_core::device::QueueHandle;
use vhost_user_core::request::Batch;

use crate::arguments;
use crate::attached_lock::lock;
use crate::buffer::{LONG_COPY, SourceBuffer};
use crate::error::{guest, refused};
use crate::object::is_unshared;
use crate::origin::Origin;
use crate::request::QueueRequest;
use crate::send_data::GatheredBytes;
use crate::ticket::Settled;

/// One virtqueue, as long as its back-end runs.
#[pyclass(frozen, module = "vhost_user")]
pub(crate) struct Queue {
    index: u16,
    size: u16,
    origin: Arc<Origin>,
    lent: AtomicBool,
    state: Mutex<QueueState>,
    /// While its ring runs.
    handle: Mutex<Option<Arc<dyn QueueHandle>>>,
}

#[derive(Default)]
struct QueueState {
    batch: Batch,
    /// Handed out in this batch.
    out: Vec<Py<QueueRequest>>,
    /// To be handed out again.
    pool: Vec<Py<QueueRequest>>,
}

/// How long a request of a batch is to be had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Until its callback returns, unless it is deferred.
    InCallback,
    /// Until it is answered.
    PastCallback,
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
        self.next_of_batch(py, Kept::InCallback)
    }

    /// Up to `max` requests of this batch.
    #[pyo3(signature = (max=64))]
    fn batch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::max)] max: usize,
    ) -> PyResult<Vec<Py<QueueRequest>>> {
        self.check(py)?;
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(request) = self.next_of_batch(py, Kept::InCallback)?
        {
            taken.push(request);
        }
        Ok(taken)
    }

    /// The next request, in any callback and from any thread; it is kept until it is answered.
    fn take(&self, py: Python<'_>) -> PyResult<Option<Py<QueueRequest>>> {
        if let Some(request) = self.next_of_batch(py, Kept::PastCallback)? {
            return Ok(Some(request));
        }
        let Some(handle) = self.handle() else { return Ok(None) };
        let taken = if handle.may_wait() { py.detach(|| handle.take()) } else { handle.take() };
        let Some(request) = taken else { return Ok(None) };
        let object = Py::new(py, QueueRequest::default())?;
        object.get().ticket.keep(py, request, &self.origin);
        Ok(Some(object))
    }

    /// Puts data into the driver's next buffers, wholly or not at all; the number of buffers.
    #[pyo3(signature = (*parts, max_buffers=1, count_at=None))]
    fn send(
        &self,
        py: Python<'_>,
        parts: &Bound<'_, PyTuple>,
        #[pyo3(from_py_with = arguments::max_buffers)] max_buffers: u16,
        #[pyo3(from_py_with = arguments::count_at)] count_at: Option<u64>,
    ) -> PyResult<u16> {
        let buffers = source_buffers(parts)?;
        let data = GatheredBytes::new(buffers.iter().map(SourceBuffer::bytes).collect());
        check_send(max_buffers, count_at, data.bytes())?;
        let Some(handle) = self.handle() else { return Ok(0) };
        let send = || handle.send(&data, max_buffers, count_at);
        let is_long = data.bytes() >= LONG_COPY || handle.may_wait();
        let sent = if is_long { py.detach(send) } else { send() };
        sent.map_err(|error| guest(py, error))
    }

    fn __repr__(&self) -> String {
        format!("<Queue {} of {} entries>", self.index, self.size)
    }
}

impl Queue {
    pub(crate) fn new(index: u16, size: u16, origin: Arc<Origin>) -> Self {
        let (lent, state, handle) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
        Self { index, size, origin, lent, state, handle }
    }

    /// Notes that the ring runs from now on, with this handle, or does not run any more.
    pub(crate) fn set_handle(&self, handle: Option<Arc<dyn QueueHandle>>) {
        let former = std::mem::replace(&mut *self.lock_handle(), handle);
        drop(former);
    }

    /// Another object for the same queue.
    pub(crate) fn again(&self) -> Self {
        let again = Self::new(self.index, self.size, Arc::clone(&self.origin));
        again.set_handle(self.handle());
        again
    }

    /// Takes the batch for the time of a callback; `false`: it has one.
    pub(crate) fn lend(&self, py: Python<'_>, batch: &mut Batch) -> bool {
        let mut state = self.lock(py);
        if self.lent.swap(true, Ordering::AcqRel) {
            return false;
        }
        state.batch = std::mem::take(batch);
        true
    }

    /// Whether views of a request's data are left.
    pub(crate) fn is_viewed(&self, py: Python<'_>) -> bool {
        self.lock(py).out.iter().any(|request| request.get().ticket.is_viewed(py))
    }

    /// Gives the batch back, with the requests that were taken answered unless they are deferred.
    /// Returns how many of them the callback has left unanswered.
    pub(crate) fn take_back(&self, py: Python<'_>, batch: &mut Batch) -> usize {
        self.lent.store(false, Ordering::Release);
        let mut state = self.lock(py);
        *batch = std::mem::take(&mut state.batch);
        let mut out = std::mem::take(&mut state.out);
        drop(state);
        let mut unanswered = 0;
        out.retain(|request| {
            let ticket = &request.get().ticket;
            let settled = ticket.settle(py, batch, |answer, chain| {
                answer.unwrap_or_else(|| {
                    chain.mark_failed();
                    0
                })
            });
            unanswered += usize::from(settled == Settled::ByDefault);
            // An object that Python code still has keeps its identity: it is not used again. A
            // deferred one that Python code has dropped goes here, and so back to the driver.
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
        Err(refused(
            py,
            "a queue has requests to iterate over only while on_queue runs: use take()",
        ))
    }

    fn next_of_batch(&self, py: Python<'_>, kept: Kept) -> PyResult<Option<Py<QueueRequest>>> {
        while self.lent.load(Ordering::Acquire) {
            let mut state = self.lock(py);
            if state.batch.is_empty() {
                break;
            }
            if let Some(object) = state.pool.pop() {
                let Some(request) = state.batch.next() else { break };
                // With the lock: the callback, on another thread maybe, does not return in between.
                let deferred = kept == Kept::PastCallback;
                object.get().ticket.begin(py, request, &self.origin, deferred);
                state.out.push(object.clone_ref(py));
                return Ok(Some(object));
            }
            drop(state);
            // Made without the lock: that may run Python code.
            let object = Py::new(py, QueueRequest::default())?;
            self.lock(py).pool.push(object);
        }
        Ok(None)
    }

    fn handle(&self) -> Option<Arc<dyn QueueHandle>> {
        self.lock_handle().clone()
    }

    fn lock_handle(&self) -> MutexGuard<'_, Option<Arc<dyn QueueHandle>>> {
        // Held for a copy of a pointer only.
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, QueueState> {
        lock(py, &self.state)
    }
}

/// The bytes of each part of what is sent.
fn source_buffers(parts: &Bound<'_, PyTuple>) -> PyResult<Vec<SourceBuffer>> {
    if parts.is_empty() {
        return Err(PyValueError::new_err("nothing to send: b\"\" stands for data of no byte"));
    }
    let buffer = |(at, part): (usize, Bound<'_, PyAny>)| {
        SourceBuffer::of(&part).map_err(|error| no_bytes(at + 1, &part, error))
    };
    parts.iter().enumerate().map(buffer).collect()
}

/// What is said of a part that has no bytes; other errors say enough.
fn no_bytes(number: usize, part: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyTypeError>(part.py()) {
        return error;
    }
    let advice = if part.is_instance_of::<PyString>() { ": encode it" } else { "" };
    let kind = part.get_type();
    let name = kind.name().map_or_else(|_| "unknown".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("part {number} is bytes or another buffer, not {name}{advice}"))
}

fn check_send(max_buffers: u16, count_at: Option<u64>, bytes: u64) -> PyResult<()> {
    if max_buffers == 0 {
        return Err(PyValueError::new_err("max_buffers is 1 to 65535, not 0"));
    }
    match count_at {
        Some(at) if at.checked_add(2).is_none_or(|end| end > bytes) => {
            let text = format!("count_at {at} leaves no room for 2 bytes in data of {bytes} bytes");
            Err(PyValueError::new_err(text))
        }
        _ => Ok(()),
    }
}
