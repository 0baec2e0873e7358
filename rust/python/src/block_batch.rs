//! `BlockBatch`: the requests that `on_batch` gets, one by one as a sequence, or as a whole.
//!
//! A request becomes a Python object when Python code looks at it. A method that moves the data of
//! all reads or all writes at once makes no object and enters the interpreter once.

use std::mem;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PySlice};
use vhost_user_core::block::{BlkOp, BlockRequest as CoreRequest, Status};
use vhost_user_core::request::Batch;

use crate::arguments;
use crate::attached_lock::lock;
use crate::block_command::Command;
use crate::block_data::{fill_read, move_whole};
use crate::block_request::BlockRequest;
use crate::buffer::{LONG_COPY, SourceBuffer, TargetBuffer};
use crate::descriptor::descriptor;
use crate::object::is_unshared;
use crate::origin::Origin;
use crate::shown_request::ShownRequest;
use crate::ticket::Settled;
use crate::traits::Answerable;

/// The requests that `on_batch` got, in the order in which the driver made them available.
///
/// A sequence; and what moves the data of all its reads or all its writes at once, which costs
/// next to nothing for each. The driver has no order in mind for requests in flight.
#[pyclass(frozen, sequence, module = "vhost_user")]
#[derive(Default)]
pub(crate) struct BlockBatch(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// Objects to be handed out again.
    pool: Vec<Py<BlockRequest>>,
    /// Room for those that are worked on without the lock.
    objects: Vec<Py<BlockRequest>>,
    origin: Option<Arc<Origin>>,
    /// Writes must be on stable storage before they complete.
    durable: bool,
}

/// One request of the batch.
enum Entry {
    /// Not looked at; answered with this status, or as the callback ends.
    Plain(CoreRequest, Option<Status>),
    /// In the hands of Python.
    Object(Py<BlockRequest>),
}

#[pymethods]
impl BlockBatch {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.lock(py).entries.len()
    }

    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        index: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // The lock is not held while an index says its number: that may be Python code.
        if let Ok(slice) = index.cast::<PySlice>() {
            let range = slice.indices(self.__len__(py).cast_signed())?;
            let places = (0..range.slicelength.cast_signed()).map(|n| range.start + n * range.step);
            let objects = places
                .map(|place| self.object(py, place.cast_unsigned()))
                .collect::<PyResult<Vec<_>>>()?;
            return Ok(PyList::new(py, objects)?.into_any());
        }
        let (index, len) = (index.extract::<isize>()?, self.__len__(py));
        let place = if index < 0 { index.wrapping_add(len.cast_signed()) } else { index };
        Ok(self.object(py, place.cast_unsigned())?.into_bound(py).into_any())
    }

    /// Where a request stands in the batch.
    #[pyo3(signature = (request, /))]
    fn index(&self, py: Python<'_>, request: &Bound<'_, PyAny>) -> PyResult<usize> {
        let inner = self.lock(py);
        let same = |entry: &Entry| matches!(entry, Entry::Object(o) if o.is(request));
        let place = inner.entries.iter().position(same);
        place.ok_or_else(|| PyValueError::new_err("the request is not in this batch"))
    }

    /// How often a request stands in the batch: once or not at all.
    #[pyo3(signature = (request, /))]
    fn count(&self, py: Python<'_>, request: &Bound<'_, PyAny>) -> usize {
        usize::from(self.index(py, request).is_ok())
    }

    /// Copies to each read its bytes of `src`, which holds the disk from its first byte on.
    #[pyo3(signature = (src, /))]
    fn copy_from(&self, py: Python<'_>, src: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = SourceBuffer::of(src)?;
        let disk = buffer.bytes();
        self.move_plain(py, BlkOp::Read, disk.len(), |request| {
            fill_read(request, disk.part(range(request)));
        })?;
        self.each_object(py, BlkOp::Read, |object| object.copy_part_from(py, disk))
    }

    /// Copies each write to its place in `dst`, which holds the disk from its first byte on.
    #[pyo3(signature = (dst, /))]
    fn copy_to(&self, py: Python<'_>, dst: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffer = TargetBuffer::of(dst)?;
        let disk = buffer.bytes();
        self.move_plain(py, BlkOp::Write, disk.len(), |request| {
            disk.part(range(request)).copy_from(request.parts());
        })?;
        self.each_object(py, BlkOp::Write, |object| object.copy_part_to(py, disk))
    }

    /// Reads each read's data from a file that holds the disk from `start` on. A read that fails
    /// is answered so; the others go on.
    #[pyo3(signature = (fd, start=0))]
    fn preadv(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::fd)] fd: RawFd,
        #[pyo3(from_py_with = arguments::start)] start: u64,
    ) -> PyResult<()> {
        self.transfer(py, BlkOp::Read, fd, start)
    }

    /// Writes each write's data to a file that holds the disk from `start` on, as `preadv`.
    #[pyo3(signature = (fd, start=0))]
    fn pwritev(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::fd)] fd: RawFd,
        #[pyo3(from_py_with = arguments::start)] start: u64,
    ) -> PyResult<()> {
        self.transfer(py, BlkOp::Write, fd, start)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<BlockBatch of {} requests>", self.__len__(py))
    }
}

impl BlockBatch {
    /// Takes the requests of a batch.
    pub(crate) fn begin(
        &self,
        py: Python<'_>,
        durable: bool,
        origin: &Arc<Origin>,
        next: impl FnMut() -> Option<CoreRequest>,
    ) {
        let mut entries = mem::take(&mut self.lock(py).entries);
        // Without the lock: what is refused on the way is reported.
        entries.extend(std::iter::from_fn(next).map(|request| Entry::Plain(request, None)));
        let mut inner = self.lock(py);
        inner.entries = entries;
        inner.durable = durable;
        if !inner.origin.as_ref().is_some_and(|known| Arc::ptr_eq(known, origin)) {
            inner.origin = Some(Arc::clone(origin));
        }
    }

    /// Whether views of a request's data are left.
    pub(crate) fn is_viewed(&self, py: Python<'_>) -> bool {
        let viewed = |entry: &Entry| matches!(entry, Entry::Object(o) if o.get().is_viewed(py));
        self.lock(py).entries.iter().any(viewed)
    }

    /// Carries out what `submit` asked for, detached from the interpreter.
    pub(crate) fn carry_out(&self, py: Python<'_>) {
        self.with_objects(
            py,
            |object| object.has_plan(py),
            |planned| {
                py.detach(|| planned.iter().for_each(|object| object.get().carry_out()));
            },
        );
    }

    /// What `on_batch` has left unanswered that has no data, and where it stands.
    pub(crate) fn left_commands(&self, py: Python<'_>) -> Vec<(usize, Command)> {
        let inner = self.lock(py);
        let left = |entry: &Entry| match entry {
            Entry::Plain(request, None) => Command::of(request),
            Entry::Plain(_, Some(_)) => None,
            Entry::Object(object) => object.get().left_command(py),
        };
        let entries = inner.entries.iter().enumerate();
        entries.filter_map(|(place, entry)| Some((place, left(entry)?))).collect()
    }

    /// Notes an answer to the request at `place`.
    pub(crate) fn note(&self, py: Python<'_>, place: usize, status: Status) {
        match self.lock(py).entries.get_mut(place) {
            Some(Entry::Plain(_, answer)) => *answer = Some(status),
            Some(Entry::Object(object)) => object.get().note(py, status),
            None => {}
        }
    }

    /// As [`Ticket::begin_flush`](crate::ticket::Ticket::begin_flush), for all.
    pub(crate) fn begin_flush(&self, py: Python<'_>) {
        for entry in &self.lock(py).entries {
            if let Entry::Object(object) = entry {
                object.get().begin_flush(py);
            }
        }
    }

    /// Answers all that was not deferred. `decide` gets the answer that was given, if any.
    pub(crate) fn settle(
        &self,
        py: Python<'_>,
        batch: &mut Batch,
        decide: impl Fn(Option<Status>, &CoreRequest) -> Status,
    ) {
        let mut inner = self.lock(py);
        let (mut entries, mut pool) = (mem::take(&mut inner.entries), mem::take(&mut inner.pool));
        drop(inner);
        for entry in entries.drain(..) {
            match entry {
                Entry::Plain(request, answer) => {
                    let status = decide(answer, &request);
                    Answerable::finish(request, status, batch);
                }
                Entry::Object(object) => {
                    let settled = object.get().settle(py, batch, &decide);
                    // An object that Python code still has keeps its identity: it is not used
                    // again. A deferred one that Python code has dropped goes here, and so fails.
                    if settled != Settled::Deferred && is_unshared(py, &object) {
                        pool.push(object);
                    }
                }
            }
        }
        let mut inner = self.lock(py);
        (inner.entries, inner.pool) = (entries, pool);
    }

    fn transfer(&self, py: Python<'_>, op: BlkOp, fd: RawFd, start: u64) -> PyResult<()> {
        let file = descriptor(fd)?;
        self.detached(py, |inner| {
            let (durable, origin) = (inner.durable, inner.origin.clone());
            for (request, answer) in inner.plain(op) {
                let at = start.saturating_add(request.offset());
                let moved = move_whole(request, file, at, durable);
                if let (Err(error), Some(origin)) = (&moved, &origin) {
                    origin.failed(error, &ShownRequest::new(request));
                }
                *answer = moved.err().map(|error| Status::from(&error)).or(*answer);
            }
        });
        self.each_object(py, op, |object| object.transfer(py, file, start))
    }

    /// Copies for all requests of an operation that no object stands for, once it is known that a
    /// buffer of `len` bytes has the place of each.
    fn move_plain(
        &self,
        py: Python<'_>,
        op: BlkOp,
        len: usize,
        work: impl Fn(&CoreRequest) + Send,
    ) -> PyResult<()> {
        let mut inner = self.lock(py);
        inner.check_ranges(op, len)?;
        let bytes: u64 = inner.plain(op).map(|(request, _)| request.length()).sum();
        if bytes < LONG_COPY {
            inner.plain(op).for_each(|(request, _)| work(request));
            return Ok(());
        }
        drop(inner);
        // What was checked still holds: requests only become objects meanwhile.
        self.detached(py, move |inner| inner.plain(op).for_each(|(request, _)| work(request)));
        Ok(())
    }

    /// Does what takes long, with the interpreter given up. The lock is taken and given back
    /// inside, so that it is not held while the thread waits for the interpreter.
    fn detached(&self, py: Python<'_>, work: impl FnOnce(&mut Inner) + Send) {
        py.detach(|| work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    /// The request at `place` as an object.
    fn object(&self, py: Python<'_>, place: usize) -> PyResult<Py<BlockRequest>> {
        loop {
            if let Some(object) = self.lock(py).object(py, place)? {
                return Ok(object);
            }
            // Made without the lock: that may run Python code.
            let object = Py::new(py, BlockRequest::default())?;
            self.lock(py).pool.push(object);
        }
    }

    /// Works on the objects that stand for requests of an operation.
    fn each_object(
        &self,
        py: Python<'_>,
        op: BlkOp,
        mut work: impl FnMut(&BlockRequest) -> PyResult<()>,
    ) -> PyResult<()> {
        self.with_objects(
            py,
            |object| object.operation() == op,
            |objects| objects.iter().try_for_each(|object| work(object.get())),
        )
    }

    /// Works on some of the objects, without the lock.
    fn with_objects<T>(
        &self,
        py: Python<'_>,
        wanted: impl Fn(&BlockRequest) -> bool,
        work: impl FnOnce(&[Py<BlockRequest>]) -> T,
    ) -> T {
        let mut inner = self.lock(py);
        let mut objects = mem::take(&mut inner.objects);
        objects.extend(inner.entries.iter().filter_map(|entry| match entry {
            Entry::Object(object) if wanted(object.get()) => Some(object.clone_ref(py)),
            _ => None,
        }));
        drop(inner);
        let done = work(&objects);
        objects.clear();
        self.lock(py).objects = objects;
        done
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Inner> {
        lock(py, &self.0)
    }
}

impl Inner {
    /// The request at `place` as an object, out of the pool if it is the first time; `None` if that
    /// is empty.
    fn object(&mut self, py: Python<'_>, place: usize) -> PyResult<Option<Py<BlockRequest>>> {
        let outside = || PyIndexError::new_err("a batch has no such request");
        let entry = self.entries.get_mut(place).ok_or_else(outside)?;
        if let Entry::Object(object) = entry {
            return Ok(Some(object.clone_ref(py)));
        }
        let origin = self.origin.as_ref().ok_or_else(outside)?;
        let Some(object) = self.pool.pop() else { return Ok(None) };
        let handed_out = Entry::Object(object.clone_ref(py));
        if let Entry::Plain(request, answer) = std::mem::replace(entry, handed_out) {
            object.get().begin(py, request, self.durable, origin);
            if let Some(status) = answer {
                object.get().note(py, status);
            }
        }
        Ok(Some(object))
    }

    fn check_ranges(&self, op: BlkOp, len: usize) -> PyResult<()> {
        for entry in &self.entries {
            let Entry::Plain(request, _) = entry else { continue };
            if request.op() == op && range(request).end > len {
                let (length, offset) = (request.length(), request.offset());
                return Err(PyValueError::new_err(format!(
                    "a {op} of {length} bytes at {offset} ends past the {len} bytes of the buffer"
                )));
            }
        }
        Ok(())
    }

    /// The requests that no object stands for. Those that went back as their ring stopped are left
    /// out: their memory is not the driver's any more.
    fn plain(&mut self, op: BlkOp) -> impl Iterator<Item = (&CoreRequest, &mut Option<Status>)> {
        self.entries.iter_mut().filter_map(move |entry| match entry {
            Entry::Plain(request, answer) if request.op() == op && request.is_live() => {
                Some((&*request, answer))
            }
            _ => None,
        })
    }
}

/// The bytes of the disk that a request is about: within the disk's size, which fits memory.
fn range(request: &CoreRequest) -> std::ops::Range<usize> {
    let start = usize::try_from(request.offset()).unwrap_or(usize::MAX);
    start..start.saturating_add(usize::try_from(request.length()).unwrap_or(usize::MAX))
}
