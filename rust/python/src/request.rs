//! `Request`: a descriptor chain as any device type sees it.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use vhost_user_core::request::{Batch, Request, RequestClaim, Stopped};

use crate::arguments;
use crate::error::stale;
use crate::exporter;
use crate::ticket::Ticket;
use crate::traits::{Answerable, FlushesFirst, Lendable, Parts, Side};

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

    fn written(&self, written: u32) -> u64 {
        written.into()
    }

    fn is_live(&self) -> bool {
        Request::is_live(self)
    }

    fn claims(&self) -> Option<RequestClaim> {
        Request::claims(self)
    }

    fn claim(&self) -> bool {
        Request::claim(self)
    }

    fn maps_grants(&self) -> bool {
        Request::maps_grants(self)
    }
}

impl Answerable for Request {
    fn finish(self, written: u32, batch: &mut Batch) {
        batch.complete(self, written);
    }

    fn complete(self, written: u32, _late: Option<&Arc<dyn FlushesFirst>>) -> Result<(), Stopped> {
        Request::complete(self, written)
    }
}

/// One descriptor chain.
#[pyclass(frozen, name = "Request", module = "vhost_user")]
#[derive(Default)]
pub(crate) struct QueueRequest {
    pub(crate) ticket: Ticket<Request>,
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

    /// Its number among those that were taken from its ring since a driver started the device.
    #[getter]
    fn sequence(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, Request::sequence)
    }

    /// Whether a process that had it died before it gave it back.
    #[getter]
    fn resubmitted(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, Request::is_resubmitted)
    }

    /// Gives the request back. `written`: bytes written to the start of `writable`; all by
    /// default.
    #[pyo3(signature = (written=None))]
    fn complete(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::written)] written: Option<u64>,
    ) -> PyResult<()> {
        let room = self
            .ticket
            .with(py, |state| state.loan.request().map_or(0, |request| request.writable().len()))?;
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
            state.loan.request().map_or_else(String::new, |request| {
                let (readable, writable) = (request.readable().len(), request.writable().len());
                let queue = request.queue();
                format!("<Request queue={queue} readable={readable} writable={writable}>")
            })
        });
        text.unwrap_or_else(|_| "<Request answered>".to_owned())
    }
}

impl QueueRequest {
    fn look<T>(&self, py: Python<'_>, look: impl FnOnce(&Request) -> T) -> PyResult<T> {
        let found = self.ticket.with(py, |state| state.loan.request().map(look))?;
        found.ok_or_else(|| stale(py, "the request was answered before"))
    }

    fn side<'py>(&self, py: Python<'py>, side: Side) -> PyResult<Bound<'py, PyMemoryView>> {
        exporter::view(py, &self.ticket.exporter(py, side)?)
    }
}

impl Drop for QueueRequest {
    fn drop(&mut self) {
        if let Some(origin) = self.ticket.is_forgotten() {
            let fate = "it goes back to the driver with no byte written";
            origin.reports.dropped(origin.callback, &fate);
        }
    }
}
