//! One transfer, on a thread of its own: the control thread answers messages meanwhile.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::envelope::{self, HEAD, Unfit};
use crate::device::{Device, StateForm};
use crate::sys::eventfd::EventFd;
use crate::sys::pipe_end::PipeEnd;
pub use crate::sys::pipe_end::Way;
use crate::sys::received_fd::ReceivedFd;
use crate::sys::sigbus;

/// Bytes that are read or written at a time.
const CHUNK: usize = 64 << 10;

/// A transfer that was begun. When it is dropped, what still waits for the front-end ends.
#[derive(Debug)]
pub struct Transfer {
    way: Way,
    thread: ThreadId,
    common: Arc<Common>,
}

/// What its thread and its owner share.
#[derive(Debug)]
struct Common {
    /// Readable when there is an outcome.
    done: EventFd,
    /// Readable when nobody wants one.
    cancel: EventFd,
    outcome: Mutex<Option<Result<u64, String>>>,
}

/// What the thread works with.
struct Work {
    device: Arc<dyn Device>,
    form: StateForm,
    end: PipeEnd,
    common: Arc<Common>,
}

impl Transfer {
    /// Begins to save the device's state to the front-end's descriptor, or to load it from there.
    /// `begun` is called on the thread that does it, before the device is.
    ///
    /// # Errors
    /// In words: the device has no state, the descriptor will not do, or there are no resources.
    pub fn begin(
        device: Arc<dyn Device>,
        way: Way,
        fd: ReceivedFd,
        begun: impl FnOnce() + Send + 'static,
    ) -> Result<Self, String> {
        let form = device.state_form().ok_or("this device has no state to save or load")?;
        let end = PipeEnd::new(fd, way)
            .map_err(|what| format!("the descriptor is {what}, not the end of a pipe"))?;
        let event = || EventFd::new().map_err(|error| error.to_string());
        let common =
            Arc::new(Common { done: event()?, cancel: event()?, outcome: Mutex::new(None) });
        let work = Work { device, form, end, common: Arc::clone(&common) };
        let thread = thread::Builder::new()
            .name("vhost-user state".to_owned())
            .spawn(move || {
                begun();
                work.run(way);
            })
            .map_err(|error| format!("no thread for it: {error}"))?;
        Ok(Self { way, thread: thread.thread().id(), common })
    }

    /// Which way the state goes.
    pub fn way(&self) -> Way {
        self.way
    }

    /// The thread that does it, on which the device is called.
    pub fn thread_id(&self) -> ThreadId {
        self.thread
    }

    /// Becomes readable when there is an outcome.
    pub fn done(&self) -> BorrowedFd<'_> {
        self.common.done.as_fd()
    }

    /// The bytes of the device's state that were transferred, or why they were not. `None`: it is
    /// still under way.
    pub fn outcome(&self) -> Option<Result<u64, String>> {
        self.common.outcome().clone()
    }

    /// Ends the waiting for the front-end. `false`: the device is in its callback, which is not over
    /// within `limit`.
    pub fn end(&self, limit: Duration) -> bool {
        self.common.cancel.signal();
        let limit =
            Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(self.done(), PollFlags::IN)];
        let _ = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)));
        self.outcome().is_some()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.common.cancel.signal();
    }
}

impl Common {
    fn outcome(&self) -> MutexGuard<'_, Option<Result<u64, String>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn run(self, way: Way) {
        sigbus::unblock();
        let Self { device, form, end, common } = self;
        let transfer = || match way {
            Way::Out => save(&*device, &form, &end, &common),
            Way::In => load(&*device, &form, &end, &common),
        };
        let outcome = catch_unwind(AssertUnwindSafe(transfer))
            .unwrap_or_else(|panic| Err(format!("a panic: {}", words(&*panic))));
        // The front-end may close what it has of both before it asks, and has the end of the
        // stream before. Whoever hears of the end finds the device free.
        drop((end, device));
        *common.outcome() = Some(outcome);
        common.done.signal();
    }
}

fn save(
    device: &dyn Device,
    form: &StateForm,
    end: &PipeEnd,
    common: &Common,
) -> Result<u64, String> {
    let state = device.save().map_err(|error| error.to_string())?;
    let sealed = envelope::seal(device.virtio_id(), form, &state).map_err(|why| why.to_string())?;
    write_all(end, &sealed, common.cancel.as_fd())?;
    Ok(state.len() as u64)
}

fn load(
    device: &dyn Device,
    form: &StateForm,
    end: &PipeEnd,
    common: &Common,
) -> Result<u64, String> {
    let virtio_id = device.virtio_id();
    let sealed = read_all(end, virtio_id, common.cancel.as_fd())?;
    let (version, state) =
        envelope::open(&sealed, virtio_id, form).map_err(|why| why.to_string())?;
    device.load(version, state).map_err(|error| error.to_string())?;
    Ok(state.len() as u64)
}

fn write_all(end: &PipeEnd, bytes: &[u8], cancel: BorrowedFd<'_>) -> Result<(), String> {
    let mut rest = bytes;
    while !rest.is_empty() {
        wait(end, cancel)?;
        let chunk = &rest[..rest.len().min(CHUNK)];
        let written = end.write(chunk).map_err(|error| {
            let (sent, all) = (bytes.len() - rest.len(), bytes.len());
            format!("the front-end does not read it: {error}, after {sent} bytes of {all}")
        })?;
        rest = &rest[written.unwrap_or(0)..];
    }
    Ok(())
}

/// Reads to the end of the stream, but no more than an envelope may have.
fn read_all(end: &PipeEnd, virtio_id: u32, cancel: BorrowedFd<'_>) -> Result<Vec<u8>, String> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; CHUNK]);
    loop {
        wait(end, cancel)?;
        match end.read(&mut buffer).map_err(|error| cannot_read(&error, bytes.len()))? {
            Some(0) => return Ok(bytes),
            Some(more) => bytes.extend_from_slice(&buffer[..more]),
            None => continue,
        }
        if let Some(head) = bytes.first_chunk::<HEAD>() {
            let wanted = envelope::whole_len(head, virtio_id).map_err(|why| why.to_string())?;
            if bytes.len() as u64 > wanted {
                return Err(Unfit::Trailing { wanted }.to_string());
            }
        }
    }
}

fn cannot_read(error: &io::Error, bytes: usize) -> String {
    format!("it cannot be read: {error}, after {bytes} bytes")
}

fn wait(end: &PipeEnd, cancel: BorrowedFd<'_>) -> Result<(), String> {
    match end.wait(cancel) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err("it was given up: the front-end has left, or has begun another".to_owned())
        }
        Err(error) => Err(format!("it cannot be waited for: {error}")),
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}
