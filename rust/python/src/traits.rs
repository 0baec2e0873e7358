//! What the binding's files ask of each other's types. This file names none of them, so that none
//! of them stands in a circle with another.

use std::sync::Arc;

use pyo3::prelude::*;
use vhost_user_core::block::{BlockRequest, Status};
pub(crate) use vhost_user_core::memory::Parts;
use vhost_user_core::request::{Batch, RequestClaim, Stopped};

/// A part of a request, by which end may write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The driver wrote it: views are read-only.
    Readable = 0,
    /// The device fills it.
    Writable = 1,
}

/// A request whose memory can be lent to Python.
pub(crate) trait Lendable: Send + 'static {
    /// How it is answered.
    type Answer: Copy + Send + 'static;

    /// Bytes of one side.
    fn len(&self, side: Side) -> u64;

    /// The contiguous pieces of one side. They stay mapped while the request lives.
    fn parts(&self, side: Side) -> Parts<'_>;

    /// How many bytes of the writable side, from its start on, the driver gets with this answer.
    fn written(&self, answer: Self::Answer) -> u64;

    /// Whether its ring still runs. If not, its memory is the driver's again.
    fn is_live(&self) -> bool;

    /// The claim on its memory, if it may go back unused while no view shows it.
    fn claims(&self) -> Option<RequestClaim> {
        None
    }

    /// Whether its memory may be touched, from now on until it is parked again.
    fn claim(&self) -> bool {
        self.is_live()
    }

    /// Whether its parts lie in mappings of pages that the guest has granted.
    fn maps_grants(&self) -> bool;
}

/// A request that can be answered in a batch or later.
pub(crate) trait Answerable: Lendable {
    /// Answers on the worker's own thread.
    fn finish(self, answer: Self::Answer, batch: &mut Batch);

    /// Answers from any thread, through `late` if it must be flushed before.
    fn complete(
        self,
        answer: Self::Answer,
        late: Option<&Arc<dyn FlushesFirst>>,
    ) -> Result<(), Stopped>;
}

/// Where writes go that must be flushed before the driver hears of them.
pub(crate) trait FlushesFirst: Send + Sync {
    /// Whether a request that ends with `status` must be flushed before its driver hears of it.
    fn wants(&self, request: &BlockRequest, status: Status) -> bool;

    /// Has a write flushed and answered.
    ///
    /// # Errors
    /// [`Stopped`] if its ring has stopped meanwhile.
    fn add(self: Arc<Self>, write: BlockRequest) -> Result<(), Stopped>;
}

/// Something that should end soon.
pub(crate) trait Watched: Send + Sync {
    /// Whether it has ended.
    fn is_over(&self) -> bool;
}

/// Where complaints about views that are held for long go.
pub(crate) trait HeldReports: Send + Sync {
    /// Reports that a view of what `callback` got is held for over a second.
    fn tell_held(&self, callback: &'static str);
}

/// Something that counts what happens again and again.
pub(crate) trait SumsUp: Send + Sync {
    /// Whether there is something counted that was not told.
    fn has_counted(&self) -> bool;

    /// Tells the numbers of what was told long ago. No lock may be held.
    fn sum_up_old(&self);
}

/// A thread that goes into callbacks.
pub(crate) trait CallsBack: Send + Sync {
    /// A number of the callback that it is in; `None`: it is in none.
    fn callback(&self) -> Option<u64>;

    /// Reports that it has been in one for over 5 s, and where it is.
    ///
    /// # Errors
    /// What the interpreter says that cannot tell.
    fn tell_stuck(&self, py: Python<'_>) -> PyResult<()>;
}
