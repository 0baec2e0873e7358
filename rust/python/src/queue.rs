//! `Queue`: a virtqueue as any device type sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use vhost_user_core::request::Batch;

use crate::error::refused;
use crate::object::is_unshared;
use crate::origin::Origin;
use crate::request::QueueRequest;
use crate::ticket::Settled;

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
