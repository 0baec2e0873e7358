//! Writes that are answered after their callback, with the write cache off.
//!
//! The flush that follows the callback comes too early for them: what a kept view shows, or a
//! deferred request, may be stored at any time before the answer. So there is a flush between the
//! answer and the driver's hearing of it.
//!
//! The thread that gives the answer, or lets go of the last view, may hold any lock: the device's,
//! or one that `flush` wants. So it only puts the write into a list here. A thread of its own,
//! which is there as long as writes are, flushes once for all that it finds, and answers them.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use vhost_user_core::block::{BlkOp, BlockCore, BlockRequest as CoreRequest, Status};
use vhost_user_core::request::Stopped;

use crate::call::call;
use crate::log::Level;
use crate::py_device::PyDevice;
use crate::report::{Context, Fault};
use crate::traits::FlushesFirst;

/// The late writes of one device that has a `flush`.
pub(crate) struct LateWrites {
    /// Weak, as requests that Python keeps hold this value: they must not hold their device.
    device: Weak<PyDevice>,
    core: Arc<BlockCore>,
    waiting: Mutex<Waiting>,
}

/// What is to be flushed.
#[derive(Default)]
struct Waiting {
    writes: Vec<CoreRequest>,
    /// There is a thread that looks after them.
    served: bool,
}

impl LateWrites {
    pub(crate) fn new(device: &Arc<PyDevice>, core: &Arc<BlockCore>) -> Arc<Self> {
        let (device, core) = (Arc::downgrade(device), Arc::clone(core));
        Arc::new(Self { device, core, waiting: Mutex::default() })
    }

    /// Answers what waits by what `flush` comes to, until nothing does. If that panics, the writes
    /// that it was for fail, and the next are flushed anew.
    fn serve(&self, flush: impl Fn(&Self) -> Status) {
        while let Some(mut writes) = self.take() {
            // Those whose rings have stopped went back then: the device may have been closed since.
            writes.retain(CoreRequest::is_live);
            if writes.is_empty() {
                continue;
            }
            let flushed = catch_unwind(AssertUnwindSafe(|| flush(self)));
            let status = flushed.unwrap_or_else(|_| self.panicked());
            for write in writes {
                // Its ring may have stopped meanwhile: then it went back when it did.
                let _ = write.complete(status);
            }
        }
    }

    fn take(&self) -> Option<Vec<CoreRequest>> {
        let mut waiting = self.lock();
        waiting.served = !waiting.writes.is_empty();
        waiting.served.then(|| mem::take(&mut waiting.writes))
    }

    fn flush(&self) -> Status {
        // Without a device that goes on there is no `flush` to call.
        let device = self.device.upgrade().filter(|device| !device.reports.is_stopping());
        let Some(device) = device else { return Status::IoErr };
        let flushed = device.try_enter(|py| {
            let flushed =
                device.method(py, "flush").and_then(|flush| call(py, "flush", &flush, []));
            let what = "after writes that were answered late, with the write cache off";
            let context = Context { callback: "flush", request: &what };
            flushed.map_err(|error| device.reports.raised(py, error, &context))
        });
        match flushed {
            Some(Ok(())) => Status::Ok,
            Some(Err(Fault::Unsupported)) => Status::Unsupported,
            Some(Err(Fault::Failed)) | None => Status::IoErr,
        }
    }

    #[cold]
    fn panicked(&self) -> Status {
        if let Some(device) = self.device.upgrade() {
            let text = "a panic in the flush of late writes: they fail";
            device.reports.say_limited("panic", Level::Error, text.to_owned());
        }
        Status::IoErr
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlushesFirst for LateWrites {
    fn wants(&self, request: &CoreRequest, status: Status) -> bool {
        // Asked after the last store: either this sees that the cache is off, or the flush at the
        // switch comes after the store.
        status == Status::Ok && leaves_data(request) && self.core.write_through()
    }

    fn add(self: Arc<Self>, write: CoreRequest) -> Result<(), Stopped> {
        if !write.is_live() {
            return Err(Stopped);
        }
        let mut waiting = self.lock();
        waiting.writes.push(write);
        if mem::replace(&mut waiting.served, true) {
            return Ok(());
        }
        drop(waiting);
        let own = Arc::clone(&self);
        let thread = thread::Builder::new().name("vhost-user-late".to_owned());
        if thread.spawn(move || own.serve(Self::flush)).is_err() {
            self.serve(|_| Status::IoErr);
        }
        Ok(())
    }
}

/// Whether what a request leaves on the disk has to last.
pub(crate) fn leaves_data(request: &CoreRequest) -> bool {
    matches!(request.op(), BlkOp::Write | BlkOp::WriteZeroes)
}
