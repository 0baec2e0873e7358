//! `BlockRequest`: a checked block request in the hands of `on_batch`.

use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyString, PyTuple};
use pyo3::{IntoPyObjectExt, intern};
use vhost_user_core::block::{BlkOp, BlockRequest as CoreRequest, Status};
use vhost_user_core::request::Batch;

use crate::arguments;
use crate::attached_lock::lock;
use crate::block_command::Command;
use crate::block_data::{fill_read, move_whole_loan, read_file};
use crate::buffer::{LONG_COPY, SourceBuffer, TargetBuffer};
use crate::descriptor::descriptor;
use crate::error::stale;
use crate::exporter;
use crate::loan::LoanedRequest;
use crate::origin::Origin;
use crate::raw_bytes::{RawSource, RawTarget};
use crate::reason::Reason;
use crate::report::{Context, forget_frames};
use crate::shown_request::ShownRequest;
use crate::ticket::{Settled, Ticket};
use crate::traits::Side;

/// A read, write, flush, discard or write-zeroes request.
#[pyclass(frozen, module = "vhost_user")]
#[derive(Default)]
pub(crate) struct BlockRequest {
    ticket: Ticket<CoreRequest>,
    // Copies, so that they can be read at no cost, and after the answer too.
    op: AtomicU16,
    queue: AtomicU16,
    offset: AtomicU64,
    length: AtomicU64,
    /// Writes must be on stable storage before they complete.
    durable: AtomicBool,
    plan: Mutex<Option<Plan>>,
}

/// A transfer to be made when the callback has returned.
#[derive(Clone, Copy)]
struct Plan {
    fd: RawFd,
    at: u64,
}

#[pymethods]
impl BlockRequest {
    /// What is asked for.
    #[getter]
    fn op<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        match self.operation() {
            BlkOp::Read => intern!(py, "read"),
            BlkOp::Write => intern!(py, "write"),
            BlkOp::Flush => intern!(py, "flush"),
            BlkOp::Discard => intern!(py, "discard"),
            BlkOp::WriteZeroes => intern!(py, "write_zeroes"),
            BlkOp::GetId => intern!(py, "get_id"),
        }
    }

    /// First byte on the disk.
    #[getter]
    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Bytes.
    #[getter]
    fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    /// The vring's number.
    #[getter]
    fn queue(&self) -> u16 {
        self.queue.load(Ordering::Relaxed)
    }

    /// Its number among those that were taken from its ring since a driver started the device.
    #[getter]
    fn sequence(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, CoreRequest::sequence)
    }

    /// Whether a process that had it died before it gave it back.
    #[getter]
    fn resubmitted(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, CoreRequest::is_resubmitted)
    }

    /// Whether a write must be on stable storage before it is completed.
    #[getter]
    fn durable(&self) -> bool {
        self.is_durable()
    }

    /// Write zeroes: whether the space may be given up.
    #[getter]
    fn unmap(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, CoreRequest::unmap)
    }

    /// Discard, write zeroes: all ranges, as (offset, length) in bytes.
    #[getter]
    fn ranges(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let pairs = |r: &CoreRequest| {
            r.ranges().iter().map(|range| (range.offset, range.length)).collect::<Vec<_>>()
        };
        PyTuple::new(py, self.look(py, pairs)?)?.into_py_any(py)
    }

    /// The data as one view.
    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        exporter::view(py, &self.ticket.exporter(py, self.side())?)
    }

    /// The data's pieces as they lie in the driver's memory.
    #[getter]
    fn segments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        exporter::views(py, &self.ticket.piece_exporters(py, self.side())?)
    }

    /// Copies `src` to the data of a read: all of it, or as much as the read asks for from
    /// `start` on.
    #[pyo3(signature = (src, start=None, /))]
    fn copy_from(
        &self,
        py: Python<'_>,
        src: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = arguments::start_at)] start: Option<u64>,
    ) -> PyResult<u64> {
        self.expect(BlkOp::Read, "copy_from")?;
        let buffer = SourceBuffer::of(src)?;
        let bytes = buffer.bytes();
        let bytes = match start {
            Some(start) => bytes.part(self.part(start, bytes.len())?),
            None => bytes,
        };
        self.expect_room(bytes.len())?;
        self.take_bytes(py, bytes)
    }

    /// Copies the data of a write to `dst`: to its beginning, or all of the data to `start`.
    #[pyo3(signature = (dst, start=None, /))]
    fn copy_to(
        &self,
        py: Python<'_>,
        dst: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = arguments::start_at)] start: Option<u64>,
    ) -> PyResult<u64> {
        self.expect(BlkOp::Write, "copy_to")?;
        let buffer = TargetBuffer::of(dst)?;
        let bytes = buffer.bytes();
        let bytes = match start {
            Some(start) => bytes.part(self.part(start, bytes.len())?),
            None => bytes,
        };
        self.give_bytes(py, bytes)
    }

    /// Sets each byte of a read's data.
    #[pyo3(signature = (byte=0, /))]
    fn fill(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::byte)] byte: u8,
    ) -> PyResult<()> {
        self.expect(BlkOp::Read, "fill")?;
        self.move_data(py, self.length(), |loan| {
            if let Some(copy) = loan.copied() {
                copy.fill(byte);
            } else if let Some(request) = loan.request() {
                request.fill(0, u64::MAX, byte);
            }
        })
    }

    /// Reads from a file to the data of a read; returns the bytes read.
    #[pyo3(signature = (fd, offset=None))]
    fn preadv(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::fd)] fd: RawFd,
        #[pyo3(from_py_with = arguments::place)] offset: Option<u64>,
    ) -> PyResult<u64> {
        self.expect(BlkOp::Read, "preadv")?;
        let (fd, at) = (descriptor(fd)?, offset.unwrap_or(self.offset()));
        Ok(self.ticket.detached(py, |loan| read_file(loan, fd, at))??)
    }

    /// Writes the data of a write to a file; returns the bytes written.
    #[pyo3(signature = (fd, offset=None))]
    fn pwritev(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::fd)] fd: RawFd,
        #[pyo3(from_py_with = arguments::place)] offset: Option<u64>,
    ) -> PyResult<u64> {
        self.expect(BlkOp::Write, "pwritev")?;
        let (fd, at) = (descriptor(fd)?, offset.unwrap_or(self.offset()));
        let durable = self.is_durable();
        Ok(self.ticket.detached(py, |loan| {
            let write = |request: &CoreRequest| request.pwritev(0, u64::MAX, fd, at, durable);
            loan.request().map_or(Ok(0), write)
        })??)
    }

    /// Has the data read from, or written to, a file when the callback has returned, and the
    /// request answered by how that went.
    #[pyo3(signature = (fd, offset=None))]
    fn submit(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::fd)] fd: RawFd,
        #[pyo3(from_py_with = arguments::place)] offset: Option<u64>,
    ) -> PyResult<()> {
        if !matches!(self.operation(), BlkOp::Read | BlkOp::Write) {
            return Err(PyTypeError::new_err(format!("a {} has no data", self.operation())));
        }
        descriptor(fd)?;
        self.ticket.check_batch(py)?;
        let plan = Plan { fd, at: offset.unwrap_or(self.offset()) };
        *lock(py, &self.plan) = Some(plan);
        Ok(())
    }

    /// Answers the request: done.
    fn complete(&self, py: Python<'_>) -> PyResult<()> {
        self.ticket.answer(py, Status::Ok)
    }

    /// Answers the request: failed.
    #[pyo3(signature = (error=None), text_signature = "($self, error=5)")]
    fn fail(&self, py: Python<'_>, error: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let reason = error.map_or_else(|| Ok(Reason::default()), Reason::of)?;
        self.fail_with(py, &reason)
    }

    /// Keeps the request past the callback; answer it later, from any thread.
    fn defer(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().ticket.defer(slf.py())?;
        Ok(slf)
    }

    fn __repr__(&self) -> String {
        let ShownRequest { op, offset, length, queue } = self.shown();
        format!("<BlockRequest {op} offset={offset} length={length} queue={queue}>")
    }
}

impl BlockRequest {
    /// Takes a request of the batch that is being handled.
    pub(crate) fn begin(
        &self,
        py: Python<'_>,
        request: CoreRequest,
        durable: bool,
        origin: &Arc<Origin>,
    ) {
        self.op.store(request.op() as u16, Ordering::Relaxed);
        self.queue.store(request.queue(), Ordering::Relaxed);
        self.offset.store(request.offset(), Ordering::Relaxed);
        self.length.store(request.length(), Ordering::Relaxed);
        self.durable.store(durable, Ordering::Relaxed);
        // One of an earlier request that was answered before it came to that.
        self.take_plan(py);
        self.ticket.begin(py, request, origin, false);
    }

    /// Answers what was not deferred.
    pub(crate) fn settle(
        &self,
        py: Python<'_>,
        batch: &mut Batch,
        decide: impl FnOnce(Option<Status>, &CoreRequest) -> Status,
    ) -> Settled {
        self.ticket.settle(py, batch, decide)
    }

    /// The operation without data that the callback has left, if it is one.
    pub(crate) fn left_command(&self, py: Python<'_>) -> Option<Command> {
        self.ticket.if_left(py, Command::of)
    }

    /// Notes an answer for when the callback has returned.
    pub(crate) fn note(&self, py: Python<'_>, status: Status) {
        self.ticket.note(py, status);
    }

    /// Copies this read's bytes of a whole disk, unless it was answered.
    pub(crate) fn copy_part_from(&self, py: Python<'_>, disk: RawSource<'_>) -> PyResult<()> {
        if !self.ticket.is_open(py) {
            return Ok(());
        }
        self.take_bytes(py, disk.part(self.part(self.offset(), disk.len())?)).map(drop)
    }

    /// Copies this write's data to its place in a whole disk, unless it was answered.
    pub(crate) fn copy_part_to(&self, py: Python<'_>, disk: RawTarget<'_>) -> PyResult<()> {
        if !self.ticket.is_open(py) {
            return Ok(());
        }
        let part = self.part(self.offset(), disk.len())?;
        self.give_bytes(py, disk.part(part)).map(drop)
    }

    /// Moves data from or to a file that holds the disk from `start` on; answers if that fails.
    pub(crate) fn transfer(
        &self,
        py: Python<'_>,
        file: BorrowedFd<'_>,
        start: u64,
    ) -> PyResult<()> {
        if !self.ticket.is_open(py) {
            return Ok(());
        }
        let at = start.saturating_add(self.offset());
        let durable = self.is_durable();
        let moved = self.ticket.detached(py, |loan| move_whole_loan(loan, file, at, durable))?;
        moved.or_else(|error| self.fail_with(py, &Reason::Number(error)))
    }

    /// Answers: failed, for this reason. It is told before the driver hears of it.
    fn fail_with(&self, py: Python<'_>, reason: &Reason) -> PyResult<()> {
        let (origin, request) = (self.ticket.origin(py)?, self.shown());
        match reason {
            Reason::Number(error) => origin.failed(error, &request),
            Reason::Exception(error) => {
                let error = error.bind(py);
                if self.is_viewed(py) {
                    // Its frames may hold views, and with them the request.
                    forget_frames(error)?;
                }
                let context = Context { callback: origin.callback, request: &request };
                let error = PyErr::from_value(error.clone().into_any());
                origin.reports.failed_with(py, error, &context);
            }
        }
        self.ticket.answer(py, reason.status(py))
    }

    /// As a message shows it.
    fn shown(&self) -> ShownRequest {
        let (op, offset, length, queue) =
            (self.operation(), self.offset(), self.length(), self.queue());
        ShownRequest { op, offset, length, queue }
    }

    /// As [`Ticket::begin_flush`](crate::ticket::Ticket::begin_flush).
    pub(crate) fn begin_flush(&self, py: Python<'_>) {
        self.ticket.begin_flush(py);
    }

    /// Whether views of its data are left.
    pub(crate) fn is_viewed(&self, py: Python<'_>) -> bool {
        self.ticket.is_viewed(py)
    }

    /// Whether `submit` has left something to do.
    pub(crate) fn has_plan(&self, py: Python<'_>) -> bool {
        lock(py, &self.plan).is_some()
    }

    /// Does what `submit` asked for. To be called detached, by the worker.
    pub(crate) fn carry_out(&self) {
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Plan { fd, at }) = plan else { return };
        let Ok(fd) = descriptor(fd) else { return };
        let durable = self.is_durable();
        self.ticket.answer_with(|loan, origin| {
            loan.request()?;
            let Err(error) = move_whole_loan(loan, fd, at, durable) else {
                return Some(Status::Ok);
            };
            if let Some(origin) = origin {
                origin.failed(&error, &self.shown());
            }
            Some(Status::from(&error))
        });
    }

    pub(crate) fn operation(&self) -> BlkOp {
        const ALL: [BlkOp; 6] = [
            BlkOp::Read,
            BlkOp::Write,
            BlkOp::Flush,
            BlkOp::Discard,
            BlkOp::WriteZeroes,
            BlkOp::GetId,
        ];
        let number = self.op.load(Ordering::Relaxed);
        ALL.into_iter().find(|op| *op as u16 == number).unwrap_or(BlkOp::Read)
    }

    fn take_plan(&self, py: Python<'_>) {
        lock(py, &self.plan).take();
    }

    fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    /// The request's length of a buffer, from `start` on.
    fn part(&self, start: u64, len: usize) -> PyResult<Range<usize>> {
        let length = self.length();
        let end = start.checked_add(length).and_then(|end| usize::try_from(end).ok());
        match end.filter(|&end| end <= len) {
            Some(end) => Ok(end - length as usize..end),
            None => Err(PyValueError::new_err(format!(
                "{length} bytes at {start} end past the {len} bytes of the buffer"
            ))),
        }
    }

    /// Copies no more than `length` bytes to a read's data.
    fn take_bytes(&self, py: Python<'_>, bytes: RawSource<'_>) -> PyResult<u64> {
        self.move_data(py, bytes.len() as u64, |loan| match loan.copied() {
            Some(copy) => copy.write(bytes),
            None => loan.request().map_or(0, |request| fill_read(request, bytes)),
        })
    }

    /// Copies a write's data, as far as there is room.
    fn give_bytes(&self, py: Python<'_>, bytes: RawTarget<'_>) -> PyResult<u64> {
        self.move_data(py, bytes.len() as u64, |loan| {
            loan.request().map_or(0, |request| bytes.copy_from(request.parts()))
        })
    }

    fn side(&self) -> Side {
        match self.operation() {
            BlkOp::Read | BlkOp::GetId => Side::Writable,
            _ => Side::Readable,
        }
    }

    fn look<T>(&self, py: Python<'_>, look: impl FnOnce(&CoreRequest) -> T) -> PyResult<T> {
        let found = self.ticket.with(py, |state| state.loan.request().map(look))?;
        found.ok_or_else(|| stale(py, "the request was answered before"))
    }

    /// Runs `work` attached if it is short, else detached.
    fn move_data<T: Send>(
        &self,
        py: Python<'_>,
        bytes: u64,
        work: impl FnOnce(&mut LoanedRequest<CoreRequest>) -> T + Send,
    ) -> PyResult<T> {
        if bytes >= LONG_COPY {
            return self.ticket.detached(py, work);
        }
        self.ticket.with(py, |state| work(&mut state.loan))
    }

    fn expect(&self, op: BlkOp, method: &str) -> PyResult<()> {
        if self.operation() == op {
            return Ok(());
        }
        Err(PyTypeError::new_err(format!("{method} is for a {op}, this is a {}", self.operation())))
    }

    fn expect_room(&self, bytes: usize) -> PyResult<()> {
        if bytes as u64 <= self.length() {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("{bytes} bytes for a request of {}", self.length())))
    }
}

impl Drop for BlockRequest {
    fn drop(&mut self) {
        if let Some(origin) = self.ticket.is_forgotten() {
            origin.reports.dropped(origin.callback, &format_args!("it fails ({})", self.shown()));
        }
    }
}
