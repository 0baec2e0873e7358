//! Views of request data for Python: an exporter that counts, so that a request goes back to the
//! driver only when nobody here can touch its memory any more.
//!
//! Laws:
//! - A [`Pane`] exports one contiguous piece of memory: the request's own if its data lies in one
//!   piece, else a private copy (the *bounce*) that is copied back when the request ends. Mappings
//!   of granted pages are exported only where that was asked for; else there is a copy too.
//! - All panes of a request share one [`Hold`], which counts the views. A slice of a view counts
//!   as the view does, since it keeps the same export alive.
//! - [`Lent`] owns the request and the bounce. It gives the request out again only when the panes
//!   are shut and the count is zero; else both wait with the `Hold` for the last view.
//! - So what a pane exports outlives every view, whatever Python does.
#![allow(unsafe_code)] // Raw memory behind `Py_buffer`, bytes of foreign buffers, bare descriptors.

use std::ffi::c_int;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};
use vhost_user_core::memory::view::{Parts, Segment};

use crate::log::Watched;

/// Who may write a part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The driver wrote it: views are read-only.
    Readable = 0,
    /// The device fills it.
    Writable = 1,
}

/// What is said to who wants in one piece what he has in pieces already.
const SCATTERED: &str = "the data lies in several pieces, which segments has handed out: use those, \
                         or ask for data first";

/// A request whose memory can be lent to Python.
pub(crate) trait Lendable: Send + 'static {
    /// How it is answered.
    type Answer: Copy + Send + 'static;

    /// Bytes of one side.
    fn len(&self, side: Side) -> u64;

    /// The contiguous pieces of one side. They stay mapped while the request lives.
    fn parts(&self, side: Side) -> Parts<'_>;

    /// Copies the readable side out.
    fn copy_out(&self, out: &mut [u8]);

    /// Copies `data` to the start of the writable side.
    fn copy_in(&self, data: &[u8]);

    /// Whether its ring still runs. If not, its memory is the driver's again.
    fn is_live(&self) -> bool;

    /// Whether its parts lie in mappings of pages that the guest has granted.
    fn maps_grants(&self) -> bool;
}

/// Counts the views of one request.
#[derive(Default)]
pub(crate) struct Hold {
    exports: AtomicUsize,
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    over: AtomicBool,
}

impl Hold {
    fn is_free(&self) -> bool {
        // Sequentially consistent with `Pane::shut` and `Pane::__getbuffer__`: an export that was
        // not refused is counted here.
        self.exports.load(Ordering::SeqCst) == 0
    }

    /// Runs `then` when the last view is gone, which may be at once.
    fn when_free(&self, then: Box<dyn FnOnce() + Send>) {
        *self.then.lock().unwrap_or_else(PoisonError::into_inner) = Some(then);
        // The last view may have gone just before `then` was there to be seen.
        if self.is_free() {
            self.end();
        }
    }

    fn release(&self) {
        if self.exports.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.end();
        }
    }

    fn end(&self) {
        let then = self.then.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(then) = then {
            then();
            self.over.store(true, Ordering::Release);
        }
    }
}

impl Watched for Hold {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// The object behind the memoryviews.
#[pyclass(frozen, module = "vhost_user._core")]
pub(crate) struct Pane {
    hold: Arc<Hold>,
    /// Null while the pane is shut.
    base: AtomicPtr<u8>,
    len: AtomicUsize,
    read_only: AtomicBool,
}

impl Pane {
    fn new(hold: &Arc<Hold>) -> Self {
        Self {
            hold: Arc::clone(hold),
            base: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
            read_only: AtomicBool::new(true),
        }
    }

    /// From now on the pane exports `len` bytes at `base`. Only for [`Lent`], which keeps them
    /// valid until the pane was shut and the hold is free.
    fn open(&self, base: *mut u8, len: usize, side: Side) {
        self.len.store(len, Ordering::Relaxed);
        self.read_only.store(side == Side::Readable, Ordering::Relaxed);
        // An empty buffer may have any address but null, which says that the pane is shut.
        let base = if len == 0 { ptr::dangling_mut() } else { base };
        self.base.store(base, Ordering::SeqCst);
    }

    /// From now on nothing is exported.
    fn shut(&self) {
        self.base.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

#[pymethods]
impl Pane {
    /// # Safety
    /// Called by the interpreter with a `view` to be filled.
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let pane = slf.get();
        // Counted before the look at `base`: of an export and a concurrent `shut` with its look
        // at the count, at least one sees the other.
        pane.hold.exports.fetch_add(1, Ordering::SeqCst);
        let base = pane.base.load(Ordering::SeqCst);
        let filled = if base.is_null() {
            // SAFETY: `view` is to be filled; the protocol wants no object in it on an error.
            unsafe { (*view).obj = ptr::null_mut() };
            Err(PyBufferError::new_err("the request was answered: its data is the driver's again"))
        } else {
            let len = pane.len.load(Ordering::Relaxed).cast_signed();
            let read_only = c_int::from(pane.read_only.load(Ordering::Relaxed));
            let object = slf.as_ptr();
            // SAFETY: `view` is to be filled, as the buffer protocol says; `object` is alive and
            // gets a new reference; `base` has `len` bytes by the contract of `open`, which hold
            // until this export, already counted, is released.
            let code =
                unsafe { ffi::PyBuffer_FillInfo(view, object, base.cast(), len, read_only, flags) };
            if code == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
        };
        filled.inspect_err(|_| pane.hold.release())
    }

    /// # Safety
    /// Called by the interpreter for a view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.hold.release();
    }
}

/// A request, and what of it was lent to Python. Reused from request to request.
pub(crate) struct Lent<R: Lendable> {
    request: Option<R>,
    hold: Arc<Hold>,
    sides: [Lending; 2],
    /// Panes over single pieces, for those who want the data as it lies.
    pieces: Vec<Py<Pane>>,
    /// The pieces of the writable side were handed out as they lie.
    scattered: bool,
    /// Mappings of granted pages are shown as they are.
    raw: bool,
}

/// What was lent of one side.
#[derive(Default)]
struct Lending {
    pane: Option<Py<Pane>>,
    open: bool,
    /// Holds a copy of the data if it is not in one piece. Never shrinks, so that a steady load
    /// allocates nothing.
    bounce: Vec<u8>,
    /// All views show that copy.
    bounced: bool,
}

/// What became of a request that was to be taken back.
pub(crate) enum Back<R> {
    /// Here it is.
    Free(R),
    /// A view is left: it is answered when that is gone.
    Held(Arc<Hold>),
    /// There was none.
    Nothing,
}

impl<R: Lendable> Default for Lent<R> {
    fn default() -> Self {
        let (hold, sides) = (Arc::default(), Default::default());
        Self { request: None, hold, sides, pieces: Vec::new(), scattered: false, raw: false }
    }
}

impl<R: Lendable> Lent<R> {
    /// Takes a request. The former one was taken back before. `raw`: mappings of granted pages
    /// are shown as they are.
    #[inline]
    pub(crate) fn begin(&mut self, request: R, raw: bool) {
        debug_assert!(self.request.is_none(), "a request is taken back before the next begins");
        self.request = Some(request);
        self.raw = raw;
    }

    /// The request, if there is one.
    pub(crate) fn request(&self) -> Option<&R> {
        self.request.as_ref()
    }

    /// The pane through which one side is seen, as one piece. `None` if there is no request.
    ///
    /// # Errors
    /// `BufferError` if that would be a copy of what was handed out in pieces: when it is carried
    /// over it would undo what was written through them.
    pub(crate) fn pane(&mut self, py: Python<'_>, side: Side) -> PyResult<Option<Py<Pane>>> {
        let Some(request) = &self.request else { return Ok(None) };
        if self.scattered && side == Side::Writable && joined(request.parts(side)).is_none() {
            return Err(PyBufferError::new_err(SCATTERED));
        }
        let lending = &mut self.sides[side as usize];
        let pane = match &lending.pane {
            Some(pane) if lending.open || is_unshared(py, pane) => pane.clone_ref(py),
            _ => {
                let new = Py::new(py, Pane::new(&self.hold))?;
                lending.pane.insert(new).clone_ref(py)
            }
        };
        if !lending.open {
            let (base, len) = lending.place(request, side, self.raw)?;
            pane.get().open(base, len, side);
            lending.open = true;
        }
        Ok(Some(pane))
    }

    /// The bytes that views of the writable side show, if they are a private copy.
    pub(crate) fn bounce(&mut self) -> Option<&mut [u8]> {
        let lending = &mut self.sides[Side::Writable as usize];
        let len = self.request.as_ref()?.len(Side::Writable) as usize;
        lending.bounced.then(|| &mut lending.bounce[..len])
    }

    /// One pane per contiguous piece of a side: over the request's own memory, or over the copy
    /// if there is one, so that all views show the same.
    pub(crate) fn pieces(&mut self, py: Python<'_>, side: Side) -> PyResult<Option<Vec<Py<Pane>>>> {
        let Some(request) = &self.request else { return Ok(None) };
        let lending = &mut self.sides[side as usize];
        if !self.raw && request.maps_grants() {
            lending.copy(request, side)?;
        }
        self.scattered |= side == Side::Writable && !lending.bounced;
        let (mut panes, mut done) = (Vec::new(), 0);
        for part in request.parts(side) {
            let pane = Py::new(py, Pane::new(&self.hold))?;
            self.pieces.push(pane.clone_ref(py));
            pane.get().open(lending.show(part, done), part.len(), side);
            panes.push(pane);
            done += part.len();
        }
        Ok(Some(panes))
    }

    /// Whether views of it are left.
    pub(crate) fn is_viewed(&self) -> bool {
        !self.hold.is_free()
    }

    /// Takes the request back. If views of it are left, it stays and what `finish` makes gets it
    /// from whoever lets go of the last one.
    #[inline]
    pub(crate) fn end<F>(&mut self, finish: impl FnOnce() -> F) -> Back<R>
    where
        F: FnOnce(R) + Send + 'static,
    {
        let Some(request) = self.request.take() else { return Back::Nothing };
        for lending in &mut self.sides {
            lending.shut();
        }
        for piece in self.pieces.drain(..) {
            piece.get().shut();
        }
        self.scattered = false;
        if !self.hold.is_free() {
            return self.leave(request, finish());
        }
        self.sides[Side::Writable as usize].copy_back(&request);
        for lending in &mut self.sides {
            lending.bounced = false;
        }
        Back::Free(request)
    }

    #[cold]
    fn leave(&mut self, request: R, finish: impl FnOnce(R) + Send + 'static) -> Back<R> {
        let hold = std::mem::take(&mut self.hold);
        let [readable, writable] = std::mem::take(&mut self.sides);
        let then = move || {
            writable.copy_back(&request);
            finish(request);
            // The bounces live until here: views pointed into them.
            drop((readable.bounce, writable.bounce));
        };
        hold.when_free(Box::new(then));
        Back::Held(hold)
    }
}

impl<R: Lendable> Drop for Lent<R> {
    fn drop(&mut self) {
        // Views may still point into the request's memory, so it cannot just go.
        let _ = self.end(|| drop);
    }
}

impl Lending {
    /// Where the data is, or its copy.
    fn place<R: Lendable>(
        &mut self,
        request: &R,
        side: Side,
        raw: bool,
    ) -> PyResult<(*mut u8, usize)> {
        match joined(request.parts(side)) {
            Some(place) if raw || !request.maps_grants() => Ok(place),
            _ => self.copy(request, side),
        }
    }

    /// The data's copy, made if there is none yet.
    fn copy<R: Lendable>(&mut self, request: &R, side: Side) -> PyResult<(*mut u8, usize)> {
        let len = usize::try_from(request.len(side))?;
        if !self.bounced {
            // Zeroes, not what another request left: that may be another guest's.
            self.bounce.clear();
            self.bounce.resize(len, 0);
            self.bounced = true;
            if side == Side::Readable {
                request.copy_out(&mut self.bounce);
            }
        }
        Ok((self.bounce.as_mut_ptr(), len))
    }

    /// Where to show a piece of the data that starts with byte `start`.
    fn show(&mut self, part: Segment, start: usize) -> *mut u8 {
        if self.bounced { self.bounce[start..start + part.len()].as_mut_ptr() } else { part.base() }
    }

    /// Carries the private copy over to the request's own memory, if there is one.
    #[inline]
    fn copy_back<R: Lendable>(&self, request: &R) {
        if self.bounced && request.is_live() {
            request.copy_in(&self.bounce[..request.len(Side::Writable) as usize]);
        }
    }

    #[inline]
    fn shut(&mut self) {
        if self.open
            && let Some(pane) = &self.pane
        {
            pane.get().shut();
            self.open = false;
        }
    }
}

/// Pieces as one, if each begins where the one before it ends. Long buffers are mapped like that,
/// and drivers cut what they have in one piece.
#[inline]
fn joined(mut parts: Parts<'_>) -> Option<(*mut u8, usize)> {
    let Some(first) = parts.next() else { return Some((ptr::null_mut(), 0)) };
    let (base, mut len) = (first.base(), first.len());
    for part in parts {
        if part.base() != base.wrapping_add(len) {
            return None;
        }
        len += part.len();
    }
    Some((base, len))
}

/// A memoryview of what `pane` exports.
#[inline]
pub(crate) fn view<'py>(py: Python<'py>, pane: &Py<Pane>) -> PyResult<Bound<'py, PyMemoryView>> {
    PyMemoryView::from(pane.bind(py).as_any())
}

/// A tuple of memoryviews.
pub(crate) fn views<'py>(py: Python<'py>, panes: &[Py<Pane>]) -> PyResult<Bound<'py, PyTuple>> {
    let views = panes.iter().map(|pane| view(py, pane)).collect::<PyResult<Vec<_>>>()?;
    PyTuple::new(py, views)
}

/// Ends a view that was handed to a callback: by dropping it if nobody else has it, else by
/// `release()`, after which it shows nothing. Slices, and whatever took a buffer from it, live on.
#[inline]
pub(crate) fn release(view: Bound<'_, PyMemoryView>) {
    if !is_unshared(view.py(), view.as_unbound()) {
        // Fails if something took a buffer from it; that is counted as any view is.
        let _ = view.call_method0(pyo3::intern!(view.py(), "release"));
    }
}

/// Whether the one reference that the caller has is the only one.
#[inline]
pub(crate) fn is_unshared<T>(_attached: Python<'_>, object: &Py<T>) -> bool {
    // SAFETY: `object` is alive while it is borrowed; the caller is attached; the count is only
    // read.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) == 1 }
}

/// Gives `body` the bytes of a contiguous Python buffer.
///
/// # Errors
/// `BufferError` if it has no bytes to give or they are not contiguous.
pub(crate) fn with_bytes<T>(
    object: &Bound<'_, PyAny>,
    body: impl FnOnce(&[u8]) -> PyResult<T>,
) -> PyResult<T> {
    let buffer = contiguous(object)?;
    let len = buffer.len_bytes();
    let base = if len == 0 { ptr::dangling() } else { buffer.buf_ptr().cast::<u8>().cast_const() };
    // SAFETY: the exporter vouches for `len` bytes at `base` while `buffer` is held; they were
    // found contiguous. Other threads may write them meanwhile, as with any buffer whose owner is
    // detached from the interpreter; they are only copied, by calls of the C library or the
    // kernel, and never looked at here.
    let bytes = unsafe { std::slice::from_raw_parts(base, len) };
    body(bytes)
}

/// Gives `body` the bytes of a contiguous, writable Python buffer.
///
/// # Errors
/// As [`with_bytes`], and if it is read-only.
pub(crate) fn with_bytes_mut<T>(
    object: &Bound<'_, PyAny>,
    body: impl FnOnce(&mut [u8]) -> PyResult<T>,
) -> PyResult<T> {
    let buffer = contiguous(object)?;
    if buffer.readonly() {
        return Err(PyBufferError::new_err("the buffer is read-only"));
    }
    let len = buffer.len_bytes();
    let base = if len == 0 { ptr::dangling_mut() } else { buffer.buf_ptr().cast::<u8>() };
    // SAFETY: as in `with_bytes`; that it is writable was checked.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base, len) };
    body(bytes)
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer is not contiguous"));
    }
    Ok(buffer)
}

/// A descriptor that Python names by its number, as `os.preadv` takes it.
///
/// # Errors
/// `ValueError` if it is negative.
pub(crate) fn descriptor(fd: RawFd) -> PyResult<BorrowedFd<'static>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is not a file descriptor")));
    }
    // SAFETY: it is not -1. Whether it is open is the caller's business, as it is with the
    // functions of Python's `os`: a call on one that is not fails with EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
