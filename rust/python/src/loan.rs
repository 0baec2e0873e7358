//! What of a request was lent to Python, and how it is taken back.
//!
//! Laws:
//! - A [`BufferExporter`] exports one contiguous piece of memory: the request's own if its data lies
//!   in one piece, else a private copy. Of the copy the driver gets what the answer says was
//!   written, and nothing else. Mappings of granted pages are exported only where that was asked
//!   for; else there is a copy too.
//! - All exporters of a request share one [`ExportCount`], which counts the views. A slice of a view
//!   counts as the view does, since it keeps the same export alive.
//! - [`LoanedRequest`] owns the request and the copies. It gives the request out again only when the
//!   exporters are shut and the count is zero; else both wait with the count for the last view.
//! - So what an exporter shows outlives every view, whatever Python does.
//! - A thread that has the lock of a loan makes no copy that takes long and carries none over: it
//!   gives the interpreter up for that, and must not wait for the interpreter with a lock.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::buffer::LONG_COPY;
use crate::copy_budget::{CopyBudget, CopyRefused, PrivateCopy};
use crate::exporter::{BufferExporter, ExportCount, Finish};
use crate::object::is_unshared;
use crate::raw_bytes::RawTarget;
use crate::traits::{Lendable, Parts, Side};

/// A request, and what of it was lent to Python. Reused from request to request.
pub(crate) struct LoanedRequest<R: Lendable> {
    request: Option<R>,
    exports: Arc<ExportCount>,
    sides: [SideLoan; 2],
    /// Exporters of single pieces, for callers that want the data as it lies.
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
    /// The data in one piece, which all views show then.
    copy: Option<PrivateCopy>,
}

/// Why nothing is lent.
pub(crate) enum NotLent {
    /// There is no request.
    NoRequest,
    /// The data was handed out in pieces; as one piece it would be a copy, and when that is carried
    /// over it would undo what was written through the pieces.
    Scattered,
    /// There is to be a copy that takes long, which [`LoanedRequest::copy`] makes.
    NeedsCopy,
    /// So many more exporters are to be there, which [`Spare::make`] makes for this count.
    NeedsExporters(usize, Arc<ExportCount>),
    /// There is no room for the copy.
    Refused(Box<CopyRefused>),
    /// The interpreter has no room for an object.
    Python(Box<PyErr>),
}

/// Exporters that are not in use. They are made when no lock is held: to make an object may run
/// Python code.
#[derive(Default)]
pub(crate) struct Spare(Vec<Py<BufferExporter>>);

/// What became of a request that was to be taken back.
pub(crate) enum Reclaimed<R> {
    /// The request, with no view of it left.
    Free(R),
    /// The same, with private copies: to be [settled](Self::settled) when no lock is held.
    Copied(Box<Returned<R>>),
    /// A view is left: the request is answered when that is gone. To be told with
    /// [`ExportCount::settle`] when no lock is held.
    Held(Arc<ExportCount>),
    /// There was no request.
    Nothing,
}

/// A request that was taken back, with its private copies.
pub(crate) struct Returned<R> {
    request: R,
    copies: [Option<PrivateCopy>; 2],
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

    /// The exporter through which one side is seen, as one piece. A copy comes out of `budget`.
    ///
    /// # Errors
    /// See [`NotLent`].
    #[inline]
    pub(crate) fn exporter(
        &mut self,
        py: Python<'_>,
        side: Side,
        budget: &Arc<CopyBudget>,
        spare: &mut Spare,
    ) -> Result<Py<BufferExporter>, NotLent> {
        let Some(request) = &self.request else { return Err(NotLent::NoRequest) };
        if self.scattered && side == Side::Writable && joined(request.parts(side)).is_none() {
            return Err(NotLent::Scattered);
        }
        let loan = &mut self.sides[side as usize];
        let exporter = match &loan.exporter {
            Some(exporter) if loan.open || is_unshared(py, exporter) => exporter.clone_ref(py),
            _ => {
                spare.need(1, &self.exports)?;
                loan.exporter = spare.0.pop();
                loan.exporter.as_ref().ok_or(NotLent::NoRequest)?.clone_ref(py)
            }
        };
        if !loan.open {
            let (base, len) = loan.place(request, side, self.raw, budget)?;
            exporter.get().open(base, len, side);
            loan.open = true;
        }
        Ok(exporter)
    }

    /// As [`exporter`](Self::exporter), for a thread that holds no lock: a copy that takes long is
    /// made with the interpreter given up.
    #[inline]
    pub(crate) fn exporter_unlocked(
        &mut self,
        py: Python<'_>,
        side: Side,
        budget: &Arc<CopyBudget>,
    ) -> Result<Py<BufferExporter>, NotLent> {
        let mut spare = Spare::default();
        match self.exporter(py, side, budget, &mut spare) {
            Ok(exporter) => Ok(exporter),
            Err(why) => self.exporter_after(py, side, budget, why),
        }
    }

    #[cold]
    fn exporter_after(
        &mut self,
        py: Python<'_>,
        side: Side,
        budget: &Arc<CopyBudget>,
        mut why: NotLent,
    ) -> Result<Py<BufferExporter>, NotLent> {
        let mut spare = Spare::default();
        loop {
            match why {
                NotLent::NeedsCopy => py.detach(|| self.copy(side, budget))?,
                NotLent::NeedsExporters(more, exports) => spare.make(py, more, &exports)?,
                why => return Err(why),
            }
            match self.exporter(py, side, budget, &mut spare) {
                Ok(exporter) => return Ok(exporter),
                Err(next) => why = next,
            }
        }
    }

    /// One exporter per contiguous piece of a side: over the request's own memory, or over the copy
    /// if there is one, so that all views show the same. A copy comes out of `budget`.
    ///
    /// # Errors
    /// See [`NotLent`].
    pub(crate) fn piece_exporters(
        &mut self,
        py: Python<'_>,
        side: Side,
        budget: &Arc<CopyBudget>,
        spare: &mut Spare,
    ) -> Result<Vec<Py<BufferExporter>>, NotLent> {
        let Some(request) = &self.request else { return Err(NotLent::NoRequest) };
        let loan = &mut self.sides[side as usize];
        if !self.raw && request.maps_grants() {
            loan.short_copy(request, side, budget)?;
        }
        spare.need(request.parts(side).count(), &self.exports)?;
        self.scattered |= side == Side::Writable && loan.copy.is_none();
        let exporters = std::mem::take(&mut spare.0);
        let mut done = 0;
        for (part, exporter) in request.parts(side).zip(&exporters) {
            let (base, len) = loan.show((part.base(), part.len()), done);
            exporter.get().open(base, len, side);
            self.pieces.push(exporter.clone_ref(py));
            done += len;
        }
        Ok(exporters)
    }

    /// Makes the private copy of a side, however long that takes.
    ///
    /// # Errors
    /// There is no room for it.
    pub(crate) fn copy(&mut self, side: Side, budget: &Arc<CopyBudget>) -> Result<(), CopyRefused> {
        match &self.request {
            Some(request) => self.sides[side as usize].copy(request, side, budget),
            None => Ok(()),
        }
    }

    /// The bytes that views of the writable side show, if they are a private copy.
    pub(crate) fn copied(&self) -> Option<RawTarget<'_>> {
        self.sides[Side::Writable as usize].copy.as_ref()?.bytes()
    }

    /// From now on the request may go back unused while no view of it is left.
    pub(crate) fn park(&self) {
        if let Some(request) = &self.request {
            self.exports.park_with(|| request.claims());
        }
    }

    /// Whether views of it are left.
    pub(crate) fn is_viewed(&self) -> bool {
        !self.exports.is_free()
    }

    /// Takes the request back. If views of it are left, it stays, and what `finish` makes gets it
    /// from the thread that lets go of the last one, with what `answer` says of it carried over.
    #[inline]
    pub(crate) fn end<F>(&mut self, answer: R::Answer, finish: impl FnOnce() -> F) -> Reclaimed<R>
    where
        F: FnOnce(R) + Send + 'static,
    {
        let Some(request) = self.request.take() else { return Reclaimed::Nothing };
        self.exports.forget_claim();
        // A view that went just before may have let it go back meanwhile.
        let _ = request.claim();
        for loan in &mut self.sides {
            loan.shut();
        }
        for piece in self.pieces.drain(..) {
            piece.get().shut();
        }
        self.scattered = false;
        match (self.exports.is_free(), self.sides.iter().any(|loan| loan.copy.is_some())) {
            (true, false) => Reclaimed::Free(request),
            (true, true) => Reclaimed::Copied(Box::new(self.returned(request))),
            (false, _) => self.leave(request, answer, finish()),
        }
    }

    #[cold]
    fn leave(
        &mut self,
        request: R,
        answer: R::Answer,
        finish: impl FnOnce(R) + Send + 'static,
    ) -> Reclaimed<R> {
        let returned = self.returned(request);
        let exports = std::mem::take(&mut self.exports);
        self.sides = Default::default();
        let is_long = returned.is_long();
        // The copies live until here: views pointed into them.
        let work = Box::new(move || finish(returned.carry_over(answer)));
        exports.wait_with(Finish { work, is_long });
        Reclaimed::Held(exports)
    }

    #[cold]
    fn returned(&mut self, request: R) -> Returned<R> {
        Returned { request, copies: self.sides.each_mut().map(|loan| loan.copy.take()) }
    }
}

impl Spare {
    /// Makes more exporters of a request. No lock may be held.
    #[cold]
    pub(crate) fn make(
        &mut self,
        py: Python<'_>,
        more: usize,
        exports: &Arc<ExportCount>,
    ) -> PyResult<()> {
        for _ in 0..more {
            self.0.push(Py::new(py, BufferExporter::new(exports))?);
        }
        Ok(())
    }

    /// Sees to it that there are exactly so many, all of this count.
    fn need(&mut self, count: usize, exports: &Arc<ExportCount>) -> Result<(), NotLent> {
        self.0.retain(|exporter| exporter.get().is_of(exports));
        self.0.truncate(count);
        match count - self.0.len() {
            0 => Ok(()),
            more => Err(NotLent::NeedsExporters(more, Arc::clone(exports))),
        }
    }
}

impl<R: Lendable> Drop for LoanedRequest<R> {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        self.exports.forget_claim();
        // Views may still point into its memory, so it cannot just go. It has no answer, and of a
        // copy nothing is carried over.
        for loan in &mut self.sides {
            loan.shut();
        }
        self.pieces.iter().for_each(|piece| piece.get().shut());
        let returned = self.returned(request);
        let is_long = returned.is_long();
        self.exports.wait_with(Finish { work: Box::new(move || drop(returned)), is_long });
        self.exports.settle_here();
    }
}

impl<R: Lendable> Reclaimed<R> {
    /// The same, with what `answer` says of a private copy carried over. No lock may be held: the
    /// interpreter is given up if that takes long.
    #[inline]
    pub(crate) fn settled(self, py: Python<'_>, answer: R::Answer) -> Self {
        match self {
            Self::Copied(returned) => Self::Free(returned.settle(py, answer)),
            settled => settled,
        }
    }
}

impl<R: Lendable> Returned<R> {
    #[cold]
    fn settle(self, py: Python<'_>, answer: R::Answer) -> R {
        if self.is_long() {
            py.detach(move || self.carry_over(answer))
        } else {
            self.carry_over(answer)
        }
    }

    /// Whether there is a private copy that takes long to carry over, or to let go of.
    fn is_long(&self) -> bool {
        self.copies.iter().flatten().any(|copy| copy.len() >= LONG_COPY)
    }

    fn carry_over(self, answer: R::Answer) -> R {
        let Self { request, copies } = self;
        if let Some(bytes) = copies[Side::Writable as usize].as_ref().and_then(PrivateCopy::bytes) {
            let written = usize::try_from(request.written(answer)).unwrap_or(usize::MAX);
            // When its ring has stopped its memory is the driver's again.
            let go_on = || request.is_live();
            bytes.part(0..written).source().copy_while(request.parts(Side::Writable), go_on);
        }
        request
    }
}

impl SideLoan {
    /// Where the data is, or its copy.
    #[inline]
    fn place<R: Lendable>(
        &mut self,
        request: &R,
        side: Side,
        raw: bool,
        budget: &Arc<CopyBudget>,
    ) -> Result<(*mut u8, usize), NotLent> {
        match joined(request.parts(side)) {
            Some(place) if raw || !request.maps_grants() => Ok(place),
            _ => self.short_copy(request, side, budget),
        }
    }

    /// The data's copy, made if there is none yet and that takes no time.
    fn short_copy<R: Lendable>(
        &mut self,
        request: &R,
        side: Side,
        budget: &Arc<CopyBudget>,
    ) -> Result<(*mut u8, usize), NotLent> {
        if self.copy.is_none() {
            if request.len(side) >= LONG_COPY {
                return Err(NotLent::NeedsCopy);
            }
            self.copy(request, side, budget)?;
        }
        let bytes = self.copy.as_ref().and_then(PrivateCopy::bytes);
        Ok(bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.base(), bytes.len())))
    }

    fn copy<R: Lendable>(
        &mut self,
        request: &R,
        side: Side,
        budget: &Arc<CopyBudget>,
    ) -> Result<(), CopyRefused> {
        if self.copy.is_some() {
            return Ok(());
        }
        let copy = budget.take(request.len(side))?;
        match (side, copy.bytes()) {
            (Side::Readable, Some(bytes)) => _ = bytes.copy_from(request.parts(side)),
            _ => copy.clear(),
        }
        self.copy = Some(copy);
        Ok(())
    }

    /// Where to show a piece of the data that starts with byte `start`.
    fn show(&self, piece: (*mut u8, usize), start: usize) -> (*mut u8, usize) {
        let Some(bytes) = self.copy.as_ref().and_then(PrivateCopy::bytes) else { return piece };
        let bytes = bytes.part(start..start + piece.1);
        (bytes.base(), bytes.len())
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

impl From<PyErr> for NotLent {
    fn from(error: PyErr) -> Self {
        Self::Python(Box::new(error))
    }
}

impl From<CopyRefused> for NotLent {
    fn from(refused: CopyRefused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

impl fmt::Display for NotLent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRequest => f.write_str("the request was answered before"),
            Self::Scattered => f.write_str(
                "the data lies in several pieces, which segments has handed out: use those, or ask \
                 for data first",
            ),
            Self::NeedsCopy => f.write_str("the data is to be copied first"),
            Self::NeedsExporters(more, _) => write!(f, "{more} exporters are to be made first"),
            Self::Refused(refused) => refused.fmt(f),
            Self::Python(error) => error.fmt(f),
        }
    }
}
