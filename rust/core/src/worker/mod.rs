//! Threads that serve started vrings: a worker waits or polls, takes a batch, hands it to the
//! device, publishes the answers and signals. Workers know no protocol message: the back-end
//! changes their queues, each under its lock.

mod cell;
mod context;
mod counters;
mod limit;
mod log;
mod mailbox;
mod measure;
mod notifier;
mod poll;
mod pop;
mod provided;
mod push;
mod queue;
mod queue_log;
mod receive;
mod report;
mod resolve;
mod stop;
mod thread;
mod timing;
mod translate;
mod translations;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Instant;

use rustix::event::epoll;

use crate::device::Device;
use crate::error::HostError;
use crate::request::Doorbell;
use crate::sys::received_fd::ReceivedFd;
use crate::sys::sigbus;
pub(crate) use cell::{HeldUp, QueueCell};
pub(crate) use counters::QueueCounters;
use mailbox::Mailbox;
pub(crate) use notifier::Notifier;
pub(crate) use queue::QueueParts;
pub(crate) use queue_log::QueueLog;
pub(crate) use receive::ReceiveHandle;
pub(crate) use report::{Began, Broken, Failed, Report};
pub(crate) use thread::WorkerConfig;

/// The back-end's handle on a worker thread.
pub(crate) struct Worker {
    mailbox: Arc<Mailbox>,
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

impl Worker {
    /// Starts a thread that serves nothing yet.
    pub(crate) fn spawn(
        name: String,
        device: Arc<dyn Device>,
        report: Arc<dyn Report>,
        config: WorkerConfig,
    ) -> Result<Self, HostError> {
        let mailbox = Arc::new(Mailbox::new().map_err(|e| HostError::new("make a worker", e))?);
        let (end, ended) = mpsc::channel();
        let own = Arc::clone(&mailbox);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                sigbus::unblock();
                device.run_worker(&mut || thread::run(&own, &*device, &*report, config));
                // The handle may have been dropped, and the receiving end with it.
                let _ = end.send(());
            })
            .map_err(|e| HostError::new("start a worker thread", e))?;
        Ok(Self { mailbox, thread, ended })
    }

    /// The doorbell that wakes this worker: completions of its queues ring it.
    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.mailbox.doorbell
    }

    /// Has the worker serve a queue, whose kick descriptor is [watched](Self::watch) already.
    pub(crate) fn add(&self, queue: Arc<QueueCell>) {
        self.mailbox.add(queue);
    }

    /// Has the worker forget a queue that has ended.
    pub(crate) fn remove(&self, queue: &Arc<QueueCell>) {
        self.mailbox.remove(queue);
    }

    /// Registers a kick descriptor for `queue`. Edge-triggered: every write to it is an event,
    /// and it need never be read, so that no blocking descriptor can hold the worker up.
    pub(crate) fn watch(&self, queue: u16, kick: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(u64::from(queue));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(self.mailbox.epoll(), kick, data, flags)?)
    }

    /// Takes a kick descriptor back. The front-end holds the same open file, so that closing ours
    /// alone would leave it registered.
    pub(crate) fn unwatch(&self, kick: Option<ReceivedFd>) {
        if let Some(kick) = kick {
            let _ = epoll::delete(self.mailbox.epoll(), &kick);
        }
    }

    /// The thread's identity.
    pub(crate) fn thread_id(&self) -> ThreadId {
        self.thread.thread().id()
    }

    /// Ends the thread and waits for it; `false` if the thread is still inside the device at
    /// `deadline`. It then ends by itself when the device returns.
    pub(crate) fn end(self, deadline: Instant) -> bool {
        self.mailbox.exit();
        let left = deadline.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        // A panic was reported by the thread itself.
        let _ = self.thread.join();
        true
    }
}
