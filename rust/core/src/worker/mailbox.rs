//! What a worker shares with the sessions that give it queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll;

use super::cell::QueueCell;
use crate::request::Doorbell;

/// The doorbell's place among the events; queues have their index.
pub(super) const DOORBELL: u64 = u64::MAX;

/// The queues of a worker, and how to wake it.
pub(super) struct Mailbox {
    queues: Mutex<Vec<Arc<QueueCell>>>,
    changed: AtomicBool,
    exit: AtomicBool,
    pub(super) doorbell: Arc<Doorbell>,
    epoll: OwnedFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let doorbell = Doorbell::new()?;
        let data = epoll::EventData::new_u64(DOORBELL);
        epoll::add(&epoll, doorbell.event(), data, epoll::EventFlags::IN)?;
        let queues = Mutex::default();
        let (changed, exit) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { queues, changed, exit, doorbell, epoll })
    }

    pub(super) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Has the worker serve this queue.
    pub(super) fn add(&self, queue: Arc<QueueCell>) {
        self.change(|queues| queues.push(queue));
    }

    /// Has the worker forget this queue, which has ended.
    pub(super) fn remove(&self, queue: &Arc<QueueCell>) {
        self.change(|queues| queues.retain(|known| !Arc::ptr_eq(known, queue)));
    }

    /// Has the thread end.
    pub(super) fn exit(&self) {
        self.exit.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    pub(super) fn is_to_exit(&self) -> bool {
        self.exit.load(Ordering::Acquire)
    }

    /// Whether queues have come or gone since this was asked last.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn queues(&self) -> Vec<Arc<QueueCell>> {
        self.lock().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<QueueCell>>)) {
        change(&mut self.lock());
        self.changed.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<QueueCell>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
