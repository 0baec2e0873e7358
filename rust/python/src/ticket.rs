//! A request in the hands of Python code, from its arrival to its one answer.
//!
//! ```text
//! Idle --begin--> Batch --settle--> Idle            answered by the worker, with its batch
//!                   |                 ^
//!                   +--settle, if deferred--> Deferred --answer--> (from any thread)
//! ```
//! An answer that is given during the batch is only noted, and carried out by `settle` on the
//! worker's own thread, where it needs no lock. After that it goes to the ring directly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use vhost_user_core::request::Batch;

use crate::attached_lock::lock;
use crate::copy_budget::CopyBudget;
use crate::error::stale;
use crate::exporter::{BufferExporter, ExportCount};
use crate::loan::{LoanedRequest, NotLent, Reclaimed, Spare};
use crate::origin::Origin;
use crate::traits::{Answerable, FlushesFirst, Side};

/// One request and its state. Reused.
pub(crate) struct Ticket<R: Answerable>(Mutex<State<R>>);

/// What a [`Ticket`] guards.
pub(crate) struct State<R: Answerable> {
    pub(crate) loan: LoanedRequest<R>,
    phase: Phase,
    answer: Option<R::Answer>,
    deferred: bool,
    /// Data could still be stored when the flush that follows the callback began.
    outlasts: bool,
    /// For messages: the callback, and where to complain.
    origin: Option<Arc<Origin>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Batch,
    Deferred,
}

/// What `settle` found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is answered, or was before.
    Done,
    /// The callback has neither answered nor deferred it: the default was given.
    ByDefault,
    /// It stays with Python.
    Deferred,
}

impl<R: Answerable> Default for Ticket<R> {
    fn default() -> Self {
        Self(Mutex::new(State {
            loan: LoanedRequest::default(),
            phase: Phase::Idle,
            answer: None,
            deferred: false,
            outlasts: false,
            origin: None,
        }))
    }
}

impl<R: Answerable> Ticket<R> {
    /// Takes a request from the batch that is being handled; `deferred`: it is kept past that.
    pub(crate) fn begin(&self, py: Python<'_>, request: R, origin: &Arc<Origin>, deferred: bool) {
        let mut state = self.lock(py);
        state.loan.begin(request, origin.raw_views);
        (state.phase, state.answer, state.deferred) = (Phase::Batch, None, deferred);
        state.outlasts = false;
        if !state.origin.as_ref().is_some_and(|known| Arc::ptr_eq(known, origin)) {
            state.origin = Some(Arc::clone(origin));
        }
    }

    /// Takes a request that no batch has, and which is kept until it is answered.
    pub(crate) fn keep(&self, py: Python<'_>, request: R, origin: &Arc<Origin>) {
        self.begin(py, request, origin, true);
        let mut state = self.lock(py);
        state.phase = Phase::Deferred;
        state.park();
    }

    /// Looks at the request.
    ///
    /// # Errors
    /// `StaleRequestError` if it was answered or its ring has stopped.
    pub(crate) fn with<T>(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&mut State<R>) -> T,
    ) -> PyResult<T> {
        let mut state = self.lock(py);
        let found = state.usable().map(|()| look(&mut state));
        state.park();
        // No exception is made with the lock: that may run Python code.
        drop(state);
        found.map_err(|why| stale(py, why))
    }

    /// Checks that its callback still runs.
    ///
    /// # Errors
    /// `StaleRequestError` if not.
    pub(crate) fn check_batch(&self, py: Python<'_>) -> PyResult<()> {
        match self.with(py, |state| state.phase)? {
            Phase::Batch => Ok(()),
            _ => Err(stale(py, "the callback has returned")),
        }
    }

    /// The exporter through which one side is seen, as one piece.
    ///
    /// # Errors
    /// `StaleRequestError` as [`with`](Self::with); `BufferError` if it was handed out in pieces;
    /// `OSError` if there is no room for a copy.
    pub(crate) fn exporter(&self, py: Python<'_>, side: Side) -> PyResult<Py<BufferExporter>> {
        self.lend(py, side, |loan, budget, spare| loan.exporter(py, side, budget, spare))
    }

    /// The exporters of the pieces of one side as they lie.
    ///
    /// # Errors
    /// As [`exporter`](Self::exporter).
    pub(crate) fn piece_exporters(
        &self,
        py: Python<'_>,
        side: Side,
    ) -> PyResult<Vec<Py<BufferExporter>>> {
        self.lend(py, side, |loan, budget, spare| loan.piece_exporters(py, side, budget, spare))
    }

    /// Lends something of one side. What that needs is made without the lock: a copy that takes
    /// long with the interpreter given up, objects with it.
    fn lend<T>(
        &self,
        py: Python<'_>,
        side: Side,
        lend: impl Fn(&mut LoanedRequest<R>, &Arc<CopyBudget>, &mut Spare) -> Result<T, NotLent>,
    ) -> PyResult<T> {
        let mut spare = Spare::default();
        loop {
            let lent = self.with(py, |state| {
                let State { loan, origin, .. } = state;
                let origin = origin.as_ref().expect("begin has said where it is handed out");
                lend(loan, &origin.budget, &mut spare).map_err(|why| (why, Arc::clone(origin)))
            })?;
            match lent {
                Err((NotLent::NeedsCopy, origin)) => {
                    let copied = self.detached(py, |loan| loan.copy(side, &origin.budget))?;
                    copied.map_err(|refused| origin.not_lent(py, refused.into()))?;
                }
                Err((NotLent::NeedsExporters(more, exports), _)) => {
                    spare.make(py, more, &exports)?;
                }
                lent => return lent.map_err(|(why, origin)| origin.not_lent(py, why)),
            }
        }
    }

    /// Moves data of the request with the interpreter given up, for work that takes long.
    ///
    /// # Errors
    /// `StaleRequestError` if it was answered or its ring has stopped; what `work` says.
    pub(crate) fn detached<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut LoanedRequest<R>) -> T + Send,
    ) -> PyResult<T> {
        // The lock is taken and given back inside, so that it is not held while this thread waits
        // for the interpreter.
        let done = py.detach(|| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let done = state.usable().map(|()| work(&mut state.loan));
            state.park();
            done
        });
        done.map_err(|why| stale(py, why))
    }

    /// Where it was handed out, if it is still to be answered.
    ///
    /// # Errors
    /// `StaleRequestError` as [`with`](Self::with).
    pub(crate) fn origin(&self, py: Python<'_>) -> PyResult<Arc<Origin>> {
        let origin = self.with(py, |state| state.origin.clone())?;
        Ok(origin.expect("begin has said where it is handed out"))
    }

    /// Whether it is still to be answered.
    pub(crate) fn is_open(&self, py: Python<'_>) -> bool {
        self.with(py, |_| ()).is_ok()
    }

    /// Looks at the request if the callback has left it unanswered and has not deferred it.
    pub(crate) fn if_left<T>(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&R) -> Option<T>,
    ) -> Option<T> {
        let state = self.lock(py);
        let is_left = state.usable().is_ok() && !state.deferred;
        state.loan.request().filter(|_| is_left).and_then(look)
    }

    /// Notes an answer for when the callback has returned, unless there is one.
    pub(crate) fn note(&self, py: Python<'_>, answer: R::Answer) {
        let mut state = self.lock(py);
        if state.phase == Phase::Batch {
            state.answer.get_or_insert(answer);
        }
    }

    /// Answers.
    ///
    /// # Errors
    /// `StaleRequestError` if it was answered before or its ring has stopped.
    pub(crate) fn answer(&self, py: Python<'_>, answer: R::Answer) -> PyResult<()> {
        let ended = self.with(py, |state| {
            state.answer = Some(answer);
            let ended = (state.phase != Phase::Batch).then(|| state.end(answer));
            ended.map(|back| (back, state.origin.clone()))
        })?;
        let Some((back, origin)) = ended else { return Ok(()) };
        match back.settled(py, answer) {
            Reclaimed::Free(request) => request
                .complete(answer, late_of(&origin))
                .map_err(|stopped| stale(py, &stopped.to_string())),
            Reclaimed::Held(exports) => {
                hold(py, &origin, exports);
                Ok(())
            }
            Reclaimed::Copied(_) | Reclaimed::Nothing => Ok(()),
        }
    }

    /// Notes the answer that `work` comes to, for a worker that is detached from the interpreter
    /// and about to settle.
    pub(crate) fn answer_with(
        &self,
        work: impl FnOnce(&mut LoanedRequest<R>, Option<&Origin>) -> Option<R::Answer>,
    ) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.phase == Phase::Batch && state.answer.is_none() {
            let State { loan, origin, .. } = &mut *state;
            state.answer = work(loan, origin.as_deref());
        }
    }

    /// Keeps the request past the callback.
    pub(crate) fn defer(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |state| state.deferred = true)
    }

    /// A flush is about to begin. What is stored while it runs needs another before the answer.
    pub(crate) fn begin_flush(&self, py: Python<'_>) {
        let mut state = self.lock(py);
        let unanswered = state.deferred && state.answer.is_none();
        state.outlasts = unanswered || state.loan.is_viewed();
    }

    /// The callback is over: answers what is to be answered now. `decide` gets the answer that
    /// was given, if any, and says which it is to be.
    pub(crate) fn settle(
        &self,
        py: Python<'_>,
        batch: &mut Batch,
        decide: impl FnOnce(Option<R::Answer>, &R) -> R::Answer,
    ) -> Settled {
        let mut state = self.lock(py);
        if state.phase != Phase::Batch {
            return Settled::Done;
        }
        let settled = match state.answer {
            Some(_) => Settled::Done,
            None if state.deferred => {
                state.phase = Phase::Deferred;
                state.park();
                return Settled::Deferred;
            }
            None => Settled::ByDefault,
        };
        let Some(request) = state.loan.request() else { return Settled::Done };
        let answer = decide(state.answer, request);
        let (back, outlasts) = (state.end(answer), state.outlasts);
        let is_held = outlasts || matches!(back, Reclaimed::Held(_));
        let origin = if is_held { state.origin.clone() } else { None };
        drop(state);
        match back.settled(py, answer) {
            // Its ring may have stopped meanwhile: then it went back when it did.
            Reclaimed::Free(request) if outlasts => {
                let _ = request.complete(answer, late_of(&origin));
            }
            Reclaimed::Free(request) => request.finish(answer, batch),
            Reclaimed::Held(exports) => hold(py, &origin, exports),
            Reclaimed::Copied(_) | Reclaimed::Nothing => {}
        }
        settled
    }

    /// Whether views of its data are left.
    pub(crate) fn is_viewed(&self, py: Python<'_>) -> bool {
        self.lock(py).loan.is_viewed()
    }

    /// Where a deferred request was handed out, if its driver still waits for an answer.
    pub(crate) fn is_forgotten(&mut self) -> Option<Arc<Origin>> {
        let state = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let live = state.loan.request().is_some_and(R::is_live);
        if live && state.phase == Phase::Deferred { state.origin.take() } else { None }
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, State<R>> {
        lock(py, &self.0)
    }
}

/// What a method of an answered request says.
const ANSWERED: &str = "the request was answered before";

/// What a method says when the request went back as its ring stopped, or was given up then because
/// the front-end had left.
const STOPPED: &str = "the request ended when its queue stopped";

impl<R: Answerable> State<R> {
    /// Whether it can be answered, and its data touched; or why not.
    fn usable(&self) -> Result<(), &'static str> {
        match self.loan.request() {
            _ if self.phase == Phase::Idle || self.answer.is_some() => Err(ANSWERED),
            Some(request) if request.claim() => Ok(()),
            _ => Err(STOPPED),
        }
    }

    /// Lets a deferred request go back unused if its queue stops while no view shows its data.
    fn park(&self) {
        if self.phase == Phase::Deferred {
            self.loan.park();
        }
    }

    /// Takes the request back, which is answered when its last view is gone if there is one.
    fn end(&mut self, answer: R::Answer) -> Reclaimed<R> {
        self.phase = Phase::Idle;
        let Self { loan, origin, .. } = self;
        loan.end(answer, || {
            let origin = origin.clone();
            let held = origin.as_ref().map(|origin| origin.reports.numbers().hold());
            move |request: R| {
                drop(held);
                // The ring may have stopped meanwhile: then it went back when it did.
                let _ = request.complete(answer, late_of(&origin));
            }
        })
    }
}

fn late_of(origin: &Option<Arc<Origin>>) -> Option<&Arc<dyn FlushesFirst>> {
    origin.as_ref()?.late.as_ref()
}

fn hold(py: Python<'_>, origin: &Option<Arc<Origin>>, exports: Arc<ExportCount>) {
    match origin {
        Some(origin) => origin.hold(py, exports),
        None => exports.settle(py),
    }
}
