//! What of a request was lent to Python, and how it is taken back.
//!
//! Laws:
//! - A [`BufferExporter`] exports one contiguous piece of memory: the request's own if its data lies
//!   in one piece, else a private copy (the *bounce*) that is copied back when the request ends.
//!   Mappings of granted pages are exported only where that was asked for; else there is a copy too.
//! - All exporters of a request share one [`ExportCount`], which counts the views. A slice of a view
//!   counts as the view does, since it keeps the same export alive.
//! - [`LoanedRequest`] owns the request and the bounce. It gives the request out again only when the
//!   exporters are shut and the count is zero; else both wait with the count for the last view.
//! - So what an exporter shows outlives every view, whatever Python does.

use std::ptr;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use vhost_user_core::memory::view::{Parts, Segment};

use crate::exporter::{BufferExporter, ExportCount};
use crate::object::is_unshared;
use crate::traits::{Lendable, Side};

/// What is said to who wants in one piece what he has in pieces already.
const SCATTERED: &str = "the data lies in several pieces, which segments has handed out: use those, \
                         or ask for data first";

/// A request, and what of it was lent to Python. Reused from request to request.
pub(crate) struct LoanedRequest<R: Lendable> {
    request: Option<R>,
    exports: Arc<ExportCount>,
    sides: [SideLoan; 2],
    /// Exporters of single pieces, for those who want the data as it lies.
    pieces: Vec<Py<BufferExporter>>,
    /// The pieces of the writable side were handed out as they lie.
    scattered: bool,
    /// Mappings of granted pages are shown as they are.
    raw: bool,
}

/// What was lent of one side.
#[derive(Default)]
struct SideLoan {
    exporter: Option<Py<BufferExporter>>,
    open: bool,
    /// Holds a copy of the data if it is not in one piece. Never shrinks, so that a steady load
    /// allocates nothing.
    bounce: Vec<u8>,
    /// All views show the copy.
    bounced: bool,
}

/// What became of a request that was to be taken back.
pub(crate) enum Reclaimed<R> {
    /// The request, with no view of it left.
    Free(R),
    /// A view is left: the request is answered when that is gone.
    Held(Arc<ExportCount>),
    /// There was no request.
    Nothing,
}

impl<R: Lendable> Default for LoanedRequest<R> {
    fn default() -> Self {
        let (exports, sides) = (Arc::default(), Default::default());
        Self { request: None, exports, sides, pieces: Vec::new(), scattered: false, raw: false }
    }
}

impl<R: Lendable> LoanedRequest<R> {
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

    /// The exporter through which one side is seen, as one piece. `None` if there is no request.
    ///
    /// # Errors
    /// `BufferError` if that would be a copy of what was handed out in pieces: when it is carried
    /// over it would undo what was written through them.
    pub(crate) fn exporter(
        &mut self,
        py: Python<'_>,
        side: Side,
    ) -> PyResult<Option<Py<BufferExporter>>> {
        let Some(request) = &self.request else { return Ok(None) };
        if self.scattered && side == Side::Writable && joined(request.parts(side)).is_none() {
            return Err(PyBufferError::new_err(SCATTERED));
        }
        let loan = &mut self.sides[side as usize];
        let exporter = match &loan.exporter {
            Some(exporter) if loan.open || is_unshared(py, exporter) => exporter.clone_ref(py),
            _ => {
                let new = Py::new(py, BufferExporter::new(&self.exports))?;
                loan.exporter.insert(new).clone_ref(py)
            }
        };
        if !loan.open {
            let (base, len) = loan.place(request, side, self.raw)?;
            exporter.get().open(base, len, side);
            loan.open = true;
        }
        Ok(Some(exporter))
    }

    /// The bytes that views of the writable side show, if they are a private copy.
    pub(crate) fn bounce(&mut self) -> Option<&mut [u8]> {
        let loan = &mut self.sides[Side::Writable as usize];
        let len = self.request.as_ref()?.len(Side::Writable) as usize;
        loan.bounced.then(|| &mut loan.bounce[..len])
    }

    /// One exporter per contiguous piece of a side: over the request's own memory, or over the copy
    /// if there is one, so that all views show the same.
    pub(crate) fn piece_exporters(
        &mut self,
        py: Python<'_>,
        side: Side,
    ) -> PyResult<Option<Vec<Py<BufferExporter>>>> {
        let Some(request) = &self.request else { return Ok(None) };
        let loan = &mut self.sides[side as usize];
        if !self.raw && request.maps_grants() {
            loan.copy(request, side)?;
        }
        self.scattered |= side == Side::Writable && !loan.bounced;
        let (mut exporters, mut done) = (Vec::new(), 0);
        for part in request.parts(side) {
            let exporter = Py::new(py, BufferExporter::new(&self.exports))?;
            self.pieces.push(exporter.clone_ref(py));
            exporter.get().open(loan.show(part, done), part.len(), side);
            exporters.push(exporter);
            done += part.len();
        }
        Ok(Some(exporters))
    }

    /// Whether views of it are left.
    pub(crate) fn is_viewed(&self) -> bool {
        !self.exports.is_free()
    }

    /// Takes the request back. If views of it are left, it stays and what `finish` makes gets it
    /// from whoever lets go of the last one.
    #[inline]
    pub(crate) fn end<F>(&mut self, finish: impl FnOnce() -> F) -> Reclaimed<R>
    where
        F: FnOnce(R) + Send + 'static,
    {
        let Some(request) = self.request.take() else { return Reclaimed::Nothing };
        for loan in &mut self.sides {
            loan.shut();
        }
        for piece in self.pieces.drain(..) {
            piece.get().shut();
        }
        self.scattered = false;
        if !self.exports.is_free() {
            return self.leave(request, finish());
        }
        self.sides[Side::Writable as usize].copy_back(&request);
        for loan in &mut self.sides {
            loan.bounced = false;
        }
        Reclaimed::Free(request)
    }

    #[cold]
    fn leave(&mut self, request: R, finish: impl FnOnce(R) + Send + 'static) -> Reclaimed<R> {
        let exports = std::mem::take(&mut self.exports);
        let [readable, writable] = std::mem::take(&mut self.sides);
        let then = move || {
            writable.copy_back(&request);
            finish(request);
            // The bounces live until here: views pointed into them.
            drop((readable.bounce, writable.bounce));
        };
        exports.when_free(Box::new(then));
        Reclaimed::Held(exports)
    }
}

impl<R: Lendable> Drop for LoanedRequest<R> {
    fn drop(&mut self) {
        // Views may still point into the request's memory, so it cannot just go.
        let _ = self.end(|| drop);
    }
}

impl SideLoan {
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
            && let Some(exporter) = &self.exporter
        {
            exporter.get().shut();
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
