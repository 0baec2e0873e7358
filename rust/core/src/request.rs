//! Requests in the hands of a device: one descriptor chain each, answered exactly once.
//!
//! A [`Request`] is taken from a ring by a worker and consumed by its completion. The common case
//! is complete within the batch, on the worker's own thread, with no lock; a request that is kept
//! for later may be completed from any thread. A request that is dropped unanswered is given back
//! to the driver with no byte written, so that its ring never runs dry.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::Fault;
use crate::memory::view::{Buffers, Readable, Segment, Writable};
use crate::sys::eventfd::EventFd;
use crate::sys::fork;

/// One descriptor chain in the hands of the device.
#[derive(Debug)]
pub struct Request {
    /// `None` only while the request is being consumed.
    slot: Option<Box<Slot>>,
}

/// What a request is made of, reused from request to request.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) buffers: Buffers,
    pub(crate) head: u16,
    queue: u16,
    completions: Arc<CompletionQueue>,
}

/// An answered request on its way back to the ring.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) slot: Box<Slot>,
    pub(crate) written: u32,
}

/// The ring that the request came from has stopped: nothing was given back to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Request {
    pub(crate) fn new(slot: Box<Slot>) -> Self {
        Self { slot: Some(slot) }
    }

    /// Completes the request from any thread. `written`: bytes written from the start of the
    /// writable part, cut to its length.
    ///
    /// # Errors
    /// [`Stopped`] if the ring has stopped meanwhile.
    pub fn complete(self, written: u32) -> Result<(), Stopped> {
        self.complete_with(|_| written)
    }

    /// Completes the request from any thread, with one last thing to write: `last` gets the
    /// writable part and returns the bytes written. It is not called if the ring has stopped, and
    /// the ring does not stop while it runs: so it must be short, and must not touch other
    /// requests.
    ///
    /// # Errors
    /// [`Stopped`] if the ring has stopped meanwhile.
    pub fn complete_with(mut self, last: impl FnOnce(Writable<'_>) -> u32) -> Result<(), Stopped> {
        match self.slot.take() {
            Some(slot) => CompletionQueue::finish(slot, last),
            None => Err(Stopped),
        }
    }

    /// The vring that it came from.
    pub fn queue(&self) -> u16 {
        self.slot().queue
    }

    /// The index of its first descriptor: its name among those in flight.
    pub fn head(&self) -> u16 {
        self.slot().head
    }

    /// Whether its ring still runs.
    pub fn is_live(&self) -> bool {
        let completions = &self.slot().completions;
        completions.is_ours() && !completions.closed.load(Ordering::Acquire)
    }

    /// What of its buffers cannot be reached; such a request goes to
    /// [`Device::refuse`](crate::device::Device::refuse).
    pub fn fault(&self) -> Option<Fault> {
        self.slot().buffers.fault()
    }

    /// Whether some of its buffers lie in mappings of pages that the guest has granted, and not in
    /// ordinary shared memory or in a copy.
    #[inline]
    pub fn maps_grants(&self) -> bool {
        self.slot().buffers.maps_grants()
    }

    /// Whether its buffers may be foreign mappings of Xen, on which the kernel does no direct I/O.
    pub fn is_foreign(&self) -> bool {
        self.slot().buffers.is_foreign()
    }

    /// Whether some of its memory was lost: what has been copied out of it or into it does not
    /// count.
    pub fn is_lost(&self) -> bool {
        self.slot().buffers.is_lost()
    }

    /// What the driver wrote.
    #[inline]
    pub fn readable(&self) -> Readable<'_> {
        self.slot().buffers.readable()
    }

    /// What the device may write.
    #[inline]
    pub fn writable(&self) -> Writable<'_> {
        self.slot().buffers.writable()
    }

    #[inline]
    fn slot(&self) -> &Slot {
        self.slot.as_deref().expect("a request has its slot until it is consumed")
    }

    fn into_done(mut self, written: u32) -> Done {
        let slot = self.slot.take().expect("a request has its slot until it is consumed");
        Done { written: limit(&slot, written), slot }
    }

    fn into_slot(mut self) -> Box<Slot> {
        self.slot.take().expect("a request has its slot until it is consumed")
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let _ = CompletionQueue::finish(slot, |_| 0);
        }
    }
}

impl Slot {
    pub(crate) fn new(queue: u16, completions: Arc<CompletionQueue>) -> Box<Self> {
        Box::new(Self { buffers: Buffers::default(), head: 0, queue, completions })
    }
}

impl Done {
    /// Answers anew.
    pub(crate) fn revise(&mut self, answer: impl FnOnce(&Request) -> u32) {
        let Slot { queue, head, ref completions, .. } = *self.slot;
        let mut empty = Slot::new(queue, Arc::clone(completions));
        empty.head = head;
        let request = Request::new(std::mem::replace(&mut self.slot, empty));
        let written = answer(&request);
        *self = request.into_done(written);
    }
}

/// The device never reports more than it could have written.
fn limit(slot: &Slot, written: u32) -> u32 {
    let room = slot.buffers.writable().len();
    u32::try_from(room).map_or(written, |room| written.min(room))
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue has stopped: the request went back when it did")
    }
}

impl std::error::Error for Stopped {}

/// Requests of one queue that were popped together, in the order of the available ring.
#[derive(Debug, Default)]
pub struct Batch {
    pending: VecDeque<Request>,
    done: Vec<Done>,
}

impl Batch {
    /// Takes the next request.
    #[inline]
    #[allow(clippy::should_implement_trait)] // An iterator would borrow the batch for its life.
    pub fn next(&mut self) -> Option<Request> {
        self.pending.pop_front()
    }

    /// Requests not yet taken.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether all requests were taken.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Completes a request of this batch on the worker's own thread, with no lock. It is seen by
    /// the driver when the batch ends. `written` as in [`Request::complete`].
    #[inline]
    pub fn complete(&mut self, request: Request, written: u32) {
        self.done.push(request.into_done(written));
    }

    pub(crate) fn push(&mut self, request: Request) {
        self.pending.push_back(request);
    }

    /// The buffers of the requests that were not taken.
    pub(crate) fn buffers_mut(&mut self) -> impl Iterator<Item = &mut Buffers> {
        self.chains_mut().map(|(_, buffers)| buffers)
    }

    pub(crate) fn done_mut(&mut self) -> &mut Vec<Done> {
        &mut self.done
    }

    /// Takes the requests with a fault.
    pub(crate) fn take_faulty(&mut self) -> Vec<Request> {
        if self.pending.iter().all(|request| request.fault().is_none()) {
            return Vec::new();
        }
        let mut faulty = Vec::new();
        for _ in 0..self.pending.len() {
            match self.pending.pop_front() {
                Some(request) if request.fault().is_some() => faulty.push(request),
                Some(request) => self.pending.push_back(request),
                None => break,
            }
        }
        faulty
    }

    pub(crate) fn take_done(&mut self) -> std::vec::Drain<'_, Done> {
        self.done.drain(..)
    }

    /// Lets go of all requests.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.done.clear();
    }

    /// The heads and the buffers of the requests that were not taken.
    pub(crate) fn chains_mut(&mut self) -> impl Iterator<Item = (u16, &mut Buffers)> {
        let slots = self.pending.iter_mut().filter_map(|r| r.slot.as_deref_mut());
        slots.map(|slot| (slot.head, &mut slot.buffers))
    }

    /// The slots of the requests that were not taken, from the one numbered `first` on, last
    /// first.
    pub(crate) fn take_left(&mut self, first: usize) -> impl Iterator<Item = Box<Slot>> + '_ {
        self.pending.drain(first..).rev().map(Request::into_slot)
    }
}

/// Where requests that are completed outside a batch wait for their worker.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    done: Mutex<Vec<Done>>,
    closed: AtomicBool,
    /// Held while something of the requests reaches the guest, and while the completions is closed.
    /// Apart from `done`, so that who completes a request never waits for that.
    open: Mutex<()>,
    /// What the requests in flight read of a Xen guest's memory, by their heads: it is kept for
    /// them if the memory is taken away.
    reading: Mutex<Vec<Vec<Segment>>>,
    doorbell: Arc<Doorbell>,
    /// The process of the worker: a fork of it has no part in its requests.
    generation: u32,
}

impl CompletionQueue {
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> Arc<Self> {
        let (done, closed, open) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        let reading = Mutex::default();
        Arc::new(Self { done, closed, open, reading, doorbell, generation: fork::generation() })
    }

    /// Takes what has been completed.
    pub(crate) fn collect(&self, into: &mut Vec<Done>) {
        into.append(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Keeps the completions from being closed while the guard is there. `None`: it is closed, and nothing
    /// of its requests may reach the guest any more.
    pub(crate) fn hold_open(&self) -> Option<MutexGuard<'_, ()>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.closed.load(Ordering::Relaxed)).then_some(open)
    }

    /// From now on completions are refused, and nothing that was completed reaches the guest.
    pub(crate) fn close(&self) {
        let _open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Release);
        done.clear();
    }

    /// Notes what these requests read, by their heads, as long as they are in flight.
    pub(crate) fn note<'a>(&self, chains: impl Iterator<Item = (u16, &'a mut Buffers)>) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for (head, buffers) in chains {
            let place = usize::from(head);
            if place >= reading.len() {
                reading.resize(place + 1, Vec::new());
            }
            reading[place].clear();
            reading[place].extend(buffers.readable().parts(0, u64::MAX));
        }
    }

    /// These requests read no more.
    pub(crate) fn forget(&self, heads: impl Iterator<Item = u16>) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for head in heads {
            if let Some(places) = reading.get_mut(usize::from(head)) {
                places.clear();
            }
        }
    }

    /// What the requests in flight read.
    pub(crate) fn needed(&self) -> Vec<Segment> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).concat()
    }

    fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    fn finish(mut slot: Box<Slot>, last: impl FnOnce(Writable<'_>) -> u32) -> Result<(), Stopped> {
        let completions = Arc::clone(&slot.completions);
        if !completions.is_ours() {
            // The lock may be a thread's that this process does not have.
            return Err(Stopped);
        }
        let mut done = completions.done.lock().unwrap_or_else(PoisonError::into_inner);
        if completions.closed.load(Ordering::Relaxed) {
            slot.buffers.release();
            return Err(Stopped);
        }
        let written = limit(&slot, last(slot.buffers.writable()));
        done.push(Done { slot, written });
        drop(done);
        completions.doorbell.ring();
        Ok(())
    }
}

/// Wakes one worker, at the cost of a system call only when it sleeps.
#[derive(Debug)]
pub(crate) struct Doorbell {
    rung: AtomicBool,
    asleep: AtomicBool,
    event: EventFd,
}

impl Doorbell {
    pub(crate) fn new() -> std::io::Result<Arc<Self>> {
        let event = EventFd::new()?;
        Ok(Arc::new(Self { rung: AtomicBool::new(false), asleep: AtomicBool::new(false), event }))
    }

    /// Asks the worker to look at its commands and completions.
    pub(crate) fn ring(&self) {
        // Sequentially consistent, as in `fall_asleep`: of the two threads at least one sees the
        // other's store, so the worker never sleeps on a doorbell that was rung.
        self.rung.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.event.signal();
        }
    }

    /// Whether it was rung since `answer`.
    #[inline]
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// The worker is about to look.
    pub(crate) fn answer(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }

    /// The worker is about to sleep; `false` if it was rung and must not.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        !self.rung.load(Ordering::SeqCst)
    }

    /// The worker is awake again.
    pub(crate) fn wake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Its event was waited for and came. It may come late, long after whoever rang took the
    /// worker for asleep: so it is cleared when it is seen and not when it is expected, or a late
    /// one would keep the worker from ever sleeping again.
    pub(crate) fn silence(&self) {
        self.event.clear();
    }

    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_signalled(doorbell: &Doorbell) -> bool {
        let mut fds = [PollFd::new(doorbell.event(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).unwrap() == 1
    }

    #[test]
    fn a_bell_that_was_rung_keeps_its_worker_awake() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.ring();
        assert!(!doorbell.fall_asleep());
        assert!(doorbell.answer());
        assert!(doorbell.fall_asleep());
    }

    #[test]
    fn only_a_worker_that_sleeps_costs_a_system_call() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.ring();
        assert!(!is_signalled(&doorbell));
        doorbell.answer();
        assert!(doorbell.fall_asleep());
        doorbell.ring();
        assert!(is_signalled(&doorbell));
    }

    #[test]
    fn a_signal_that_comes_late_wakes_a_worker_once() {
        let doorbell = Doorbell::new().unwrap();
        assert!(doorbell.fall_asleep());
        doorbell.wake();
        doorbell.event().signal();
        assert!(doorbell.fall_asleep());
        assert!(is_signalled(&doorbell));
        doorbell.silence();
        doorbell.wake();
        assert!(doorbell.fall_asleep());
        assert!(!is_signalled(&doorbell));
    }
}
