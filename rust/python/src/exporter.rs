//! Views of request data for Python: an exporter that counts, so that a request goes back to the
//! driver only when no view can touch its memory any more.
#![allow(unsafe_code)] // Raw memory behind `Py_buffer`.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};
use vhost_user_core::request::RequestClaim;

use crate::traits::{Side, Watched};

/// Counts the views of one request.
#[derive(Default)]
pub(crate) struct ExportCount {
    views: AtomicUsize,
    /// What is to be done when the last view is gone.
    then: Mutex<Option<Finish>>,
    /// That has been done.
    over: AtomicBool,
    /// There is a claim.
    may_go_back: AtomicBool,
    /// The claim on memory that may go back to the driver while no view is left.
    claim: Mutex<Option<RequestClaim>>,
}

/// The end of a request whose last view is gone.
pub(crate) struct Finish {
    pub(crate) work: Box<dyn FnOnce() + Send>,
    /// It takes so long that the interpreter is to be given up for it.
    pub(crate) is_long: bool,
}

impl ExportCount {
    /// Whether no view is left.
    pub(crate) fn is_free(&self) -> bool {
        // Sequentially consistent with `shut` and `__getbuffer__` of the exporters: an export that
        // was not refused is counted here.
        self.views.load(Ordering::SeqCst) == 0
    }

    /// Has `finish` done when the last view is gone. That may be so already: to be followed by
    /// [`settle`](Self::settle) when no lock is held.
    pub(crate) fn wait_with(&self, finish: Finish) {
        *self.then.lock().unwrap_or_else(PoisonError::into_inner) = Some(finish);
    }

    /// Does what there is to be done if no view is left: the last may have gone just before
    /// [`wait_with`](Self::wait_with) has said what that is.
    pub(crate) fn settle(&self, py: Python<'_>) {
        if self.is_free() {
            self.end(py);
        }
    }

    /// As [`settle`](Self::settle), for a thread that may not be attached to the interpreter.
    pub(crate) fn settle_here(&self) {
        if self.is_free() {
            self.take().into_iter().for_each(|finish| self.run(finish));
        }
    }

    /// Lets the memory go back to the driver while no view is left, if it has such a claim.
    pub(crate) fn park_with(&self, claim: impl FnOnce() -> Option<RequestClaim>) {
        let mut known = self.lock_claim();
        if known.is_none() {
            *known = claim();
        }
        let Some(claim) = &*known else { return };
        // Before the look at the views: of this and a new view at least one sees the other.
        self.may_go_back.store(true, Ordering::SeqCst);
        if self.is_free() {
            claim.park();
        }
    }

    /// Drops the claim: the request is answered, and the device has no part in its memory any more.
    pub(crate) fn forget_claim(&self) {
        if self.may_go_back.swap(false, Ordering::SeqCst) {
            *self.lock_claim() = None;
        }
    }

    /// Counts a view; `false`: the memory went back, and nothing was counted.
    fn add(&self) -> bool {
        self.views.fetch_add(1, Ordering::SeqCst);
        if !self.may_go_back.load(Ordering::SeqCst) {
            return true;
        }
        let claim = self.lock_claim();
        let claimed = claim.as_ref().is_none_or(|claim| claim.claim());
        if !claimed {
            self.views.fetch_sub(1, Ordering::SeqCst);
        }
        claimed
    }

    fn release(&self, py: Python<'_>) {
        let claim = self.may_go_back.load(Ordering::SeqCst).then(|| self.lock_claim());
        let last = self.views.fetch_sub(1, Ordering::SeqCst) == 1;
        if let Some(claim) = claim.as_ref().and_then(|claim| claim.as_ref()).filter(|_| last) {
            claim.park();
        }
        drop(claim);
        if last {
            self.end(py);
        }
    }

    fn lock_claim(&self) -> MutexGuard<'_, Option<RequestClaim>> {
        // Held for some atomic operations only.
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, py: Python<'_>) {
        match self.take() {
            Some(finish) if finish.is_long => py.detach(|| self.run(finish)),
            Some(finish) => self.run(finish),
            None => {}
        }
    }

    fn take(&self) -> Option<Finish> {
        self.then.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn run(&self, finish: Finish) {
        (finish.work)();
        self.over.store(true, Ordering::Release);
    }
}

impl Watched for ExportCount {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// The object behind the memoryviews: it exports one contiguous piece of memory.
#[pyclass(frozen, module = "vhost_user._core")]
pub(crate) struct BufferExporter {
    exports: Arc<ExportCount>,
    /// Null while the exporter is shut.
    base: AtomicPtr<u8>,
    len: AtomicUsize,
    read_only: AtomicBool,
}

impl BufferExporter {
    pub(crate) fn new(exports: &Arc<ExportCount>) -> Self {
        Self {
            exports: Arc::clone(exports),
            base: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
            read_only: AtomicBool::new(true),
        }
    }

    /// Whether its views are counted there.
    pub(crate) fn is_of(&self, exports: &Arc<ExportCount>) -> bool {
        Arc::ptr_eq(&self.exports, exports)
    }

    /// From now on the exporter exports `len` bytes at `base`. Only for the loan of a request,
    /// which keeps them valid until the exporter was shut and no view is left.
    pub(crate) fn open(&self, base: *mut u8, len: usize, side: Side) {
        self.len.store(len, Ordering::Relaxed);
        self.read_only.store(side == Side::Readable, Ordering::Relaxed);
        // An empty buffer may have any address but null, which says that the exporter is shut.
        let base = if len == 0 { ptr::dangling_mut() } else { base };
        self.base.store(base, Ordering::SeqCst);
    }

    /// From now on nothing is exported.
    pub(crate) fn shut(&self) {
        self.base.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

#[pymethods]
impl BufferExporter {
    /// # Safety
    /// Called by the interpreter with a `view` to be filled.
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: `view` is to be filled; the protocol wants no object in it on an error.
        unsafe { (*view).obj = ptr::null_mut() };
        let exporter = slf.get();
        // Counted before the look at `base`: of an export and a concurrent `shut` with its look
        // at the count, at least one sees the other.
        if !exporter.exports.add() {
            return Err(PyBufferError::new_err("the buffer went back when its queue stopped"));
        }
        let base = exporter.base.load(Ordering::SeqCst);
        let filled = if base.is_null() {
            Err(PyBufferError::new_err("the request was answered: its data is the driver's again"))
        } else {
            let len = exporter.len.load(Ordering::Relaxed).cast_signed();
            let read_only = c_int::from(exporter.read_only.load(Ordering::Relaxed));
            let object = slf.as_ptr();
            // SAFETY: `view` is to be filled, as the buffer protocol says; `object` is alive and
            // gets a new reference; `base` has `len` bytes by the contract of `open`, which
            // holds until this export, already counted, is released.
            let code =
                unsafe { ffi::PyBuffer_FillInfo(view, object, base.cast(), len, read_only, flags) };
            if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
        };
        filled.inspect_err(|_| exporter.exports.release(slf.py()))
    }

    /// # Safety
    /// Called by the interpreter for a view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, py: Python<'_>, _view: *mut ffi::Py_buffer) {
        self.exports.release(py);
    }
}

/// A memoryview of what `exporter` exports.
#[inline]
pub(crate) fn view<'py>(
    py: Python<'py>,
    exporter: &Py<BufferExporter>,
) -> PyResult<Bound<'py, PyMemoryView>> {
    PyMemoryView::from(exporter.bind(py).as_any())
}

/// A tuple of memoryviews.
pub(crate) fn views<'py>(
    py: Python<'py>,
    exporters: &[Py<BufferExporter>],
) -> PyResult<Bound<'py, PyTuple>> {
    let views =
        exporters.iter().map(|exporter| view(py, exporter)).collect::<PyResult<Vec<_>>>()?;
    PyTuple::new(py, views)
}
