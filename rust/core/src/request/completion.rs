//! The way of an answered request back to its ring.

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::doorbell::Doorbell;
use super::kernel_hold::KernelHolds;
use super::scope::{self, Publish, ScopeId};
use crate::memory::{Buffers, GuestSlice, Writable};
use crate::sys::fork;
use crate::token::Token;

/// What a request is made of, reused from request to request.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) buffers: Buffers,
    /// Its chain.
    pub(crate) token: Token,
    /// Its number among all that were popped from the ring.
    pub(crate) sequence: u64,
    /// A process that had it died.
    pub(crate) resubmitted: bool,
    /// Pieces of its chain, as they count for what its queue may have in flight.
    pub(crate) pieces: u32,
    /// When it was popped, on the clock of metrics; 0: that was not noted.
    pub(crate) popped: u64,
    pub(super) queue: u16,
    /// The request failed, as far as that is known here.
    failed: AtomicBool,
    /// Which of the device's operations it is, as far as that is known here.
    operation: AtomicU8,
    pub(super) completions: Arc<CompletionQueue>,
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

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue has stopped: the request went back when it did")
    }
}

impl std::error::Error for Stopped {}

impl Slot {
    pub(crate) fn new(queue: u16, completions: Arc<CompletionQueue>) -> Box<Self> {
        Box::new(Self {
            buffers: Buffers::default(),
            token: Token::default(),
            sequence: 0,
            resubmitted: false,
            pieces: 0,
            popped: 0,
            queue,
            failed: AtomicBool::new(false),
            operation: AtomicU8::new(0),
            completions,
        })
    }

    /// As [`Request::mark_failed`](super::Request::mark_failed).
    pub(super) fn mark_failed(&self) {
        // Nothing else is told by it: the request is handed on by other means.
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether the request failed.
    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Forgets a failure, before the slot is used again.
    pub(crate) fn forget_failure(&mut self) {
        *self.failed.get_mut() = false;
    }

    /// As [`Request::mark_operation`](super::Request::mark_operation).
    #[inline]
    pub(super) fn mark_operation(&self, operation: u8) {
        self.operation.store(operation, Ordering::Relaxed);
    }

    /// Which of the device's operations it is. The slot does not know it any more afterwards.
    #[inline]
    pub(crate) fn take_operation(&mut self) -> u8 {
        std::mem::take(self.operation.get_mut())
    }

    /// The device never reports more than it could have written.
    pub(super) fn limit(&self, written: u32) -> u32 {
        let room = self.buffers.writable().len();
        u32::try_from(room).map_or(written, |room| written.min(room))
    }
}

/// Who may touch the memory of a request that outlives its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Holder {
    /// The device may.
    Device,
    /// Neither may: the device asks before it touches the memory again.
    Nobody,
    /// The driver may: the request went back unused.
    Driver,
}

/// Longest waits for a thread that completes a request at this moment, and may be held up by guest
/// memory.
const COLLECT_LIMIT: Duration = Duration::from_millis(100);
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Where requests that are completed outside a batch wait for their worker.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    waiting: parking_lot::Mutex<Waiting>,
    closed: AtomicBool,
    /// The [holder](Holder) of each request that outlives its batch, by its id.
    holders: Box<[AtomicU8]>,
    /// Which places of a domain's memory the requests in flight read, by their ids: the session
    /// keeps a copy of these for them if it takes the memory away.
    reading: Mutex<Vec<Vec<GuestSlice>>>,
    kernel_holds: KernelHolds,
    doorbell: Arc<Doorbell>,
    /// Tells the worker's process from its forks, which have no part in its requests.
    generation: u32,
}

#[derive(Debug, Default)]
struct Waiting {
    done: Vec<Done>,
    /// Completed inside callbacks that have not returned.
    gathered: Vec<(ScopeId, Done)>,
}

impl CompletionQueue {
    /// The completions of a ring with `size` entries.
    pub(crate) fn new(size: u16, doorbell: Arc<Doorbell>) -> Arc<Self> {
        let holders = (0..size).map(|_| AtomicU8::new(Holder::Device as u8)).collect();
        let waiting = parking_lot::Mutex::default();
        let (closed, reading) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self {
            waiting,
            closed,
            holders,
            reading,
            kernel_holds: KernelHolds::default(),
            doorbell,
            generation: fork::generation(),
        })
    }

    /// Takes what has been completed. Whoever completes a request at this moment may wait for guest
    /// memory that does not answer: what is there is then left for another time.
    pub(crate) fn collect(&self, into: &mut Vec<Done>) {
        if let Some(mut waiting) = self.waiting.try_lock_for(COLLECT_LIMIT) {
            into.append(&mut waiting.done);
        }
    }

    /// From now on completions are refused, and what was completed and not collected is gone.
    pub(crate) fn close(&self) {
        let waiting = self.waiting.try_lock_for(CLOSE_LIMIT);
        self.closed.store(true, Ordering::Release);
        let gone = waiting.map(|mut waiting| mem::take(&mut *waiting));
        drop(gone);
    }

    /// Whether completions are refused.
    pub(crate) fn is_closed(&self) -> bool {
        !self.is_ours() || self.closed.load(Ordering::Acquire)
    }

    /// The device does not touch the memory of the request with this id before it has
    /// [claimed](Self::claim) it: until then it may be [revoked](Self::revoke).
    pub(super) fn park(&self, id: u16) {
        self.change_holder(id, Holder::Device, Holder::Nobody);
    }

    /// The device wants to touch the memory of the request with this id; `false`: it went back.
    pub(super) fn claim(&self, id: u16) -> bool {
        self.change_holder(id, Holder::Nobody, Holder::Device) || !self.is_revoked(id)
    }

    /// Takes the request with this id from a device that does not touch it now; `false` if the device
    /// may.
    pub(crate) fn revoke(&self, id: u16) -> bool {
        self.change_holder(id, Holder::Nobody, Holder::Driver)
    }

    pub(super) fn is_revoked(&self, id: u16) -> bool {
        let holder = self.holders.get(usize::from(id));
        holder.is_some_and(|holder| holder.load(Ordering::Acquire) == Holder::Driver as u8)
    }

    fn change_holder(&self, id: u16, from: Holder, to: Holder) -> bool {
        let (done, seen) = (Ordering::AcqRel, Ordering::Acquire);
        self.holders
            .get(usize::from(id))
            .is_some_and(|holder| holder.compare_exchange(from as u8, to as u8, done, seen).is_ok())
    }

    /// Notes what these requests read, by their ids, as long as they are in flight.
    pub(crate) fn note<'a>(&self, chains: impl Iterator<Item = (u16, &'a mut Buffers)>) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, buffers) in chains {
            let place = usize::from(id);
            if place >= reading.len() {
                reading.resize(place + 1, Vec::new());
            }
            reading[place].clear();
            reading[place].extend(buffers.readable().parts(0, u64::MAX));
        }
    }

    /// These requests read no more.
    pub(crate) fn forget(&self, ids: impl Iterator<Item = u16>) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            if let Some(places) = reading.get_mut(usize::from(id)) {
                places.clear();
            }
        }
    }

    /// What the requests in flight read.
    pub(crate) fn needed(&self) -> Vec<GuestSlice> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).concat()
    }

    /// The system calls that its requests cannot be taken from.
    pub(crate) fn kernel_holds(&self) -> &KernelHolds {
        &self.kernel_holds
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Completes a request; `last` writes to it once more and returns the bytes written. The driver
    /// sees the answer when the callback that runs on this thread returns, or at once if none runs.
    pub(super) fn finish(
        mut slot: Box<Slot>,
        last: impl FnOnce(Writable<'_>) -> u32,
    ) -> Result<(), Stopped> {
        let queue = Arc::clone(&slot.completions);
        if !queue.is_ours() {
            // The lock may be held by a thread that only the parent process has.
            return Err(Stopped);
        }
        let scope = scope::publish_later(|| Arc::clone(&queue) as Arc<dyn Publish>);
        let mut waiting = queue.waiting.lock();
        if queue.closed.load(Ordering::Relaxed) || !queue.claim(slot.token.id) {
            drop(waiting);
            slot.buffers.release();
            return Err(Stopped);
        }
        let written = slot.limit(last(slot.buffers.writable()));
        let done = Done { slot, written };
        match scope {
            Some(scope) => waiting.gathered.push((scope, done)),
            None => waiting.done.push(done),
        }
        drop(waiting);
        if scope.is_none() {
            queue.doorbell.ring();
        }
        Ok(())
    }
}

impl Publish for CompletionQueue {
    fn publish(&self, scope: ScopeId) {
        let mut waiting = self.waiting.lock();
        let Waiting { done, gathered } = &mut *waiting;
        done.extend(gathered.extract_if(.., |(of, _)| *of == scope).map(|(_, done)| done));
        drop(waiting);
        self.doorbell.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::request::{CallbackScope, Request};

    const SIZE: u16 = 8;

    fn queue() -> (Arc<CompletionQueue>, Arc<Doorbell>) {
        let doorbell = Doorbell::new().unwrap();
        (CompletionQueue::new(SIZE, Arc::clone(&doorbell)), doorbell)
    }

    /// A request with no buffers, which is as good as any here.
    fn request(queue: &Arc<CompletionQueue>, head: u16) -> Request {
        let mut slot = Slot::new(0, Arc::clone(queue));
        slot.token.id = head;
        Request::new(slot)
    }

    fn collected(queue: &CompletionQueue) -> Vec<u16> {
        let mut done = Vec::new();
        queue.collect(&mut done);
        done.iter().map(|done| done.slot.token.id).collect()
    }

    #[test]
    fn what_the_device_may_touch_is_not_taken_from_it() {
        let (queue, _) = queue();
        assert!(!queue.revoke(3), "it has not said that it does not touch it");
        queue.park(3);
        assert!(queue.claim(3));
        assert!(queue.claim(3), "again, from within");
        assert!(!queue.revoke(3));
        queue.park(3);
        assert!(queue.revoke(3));
        assert!(!queue.revoke(3), "it went back already");
    }

    #[test]
    fn what_a_thread_drops_as_it_panics_is_not_answered() {
        let (queue, _) = queue();
        let (one, other) = (request(&queue, 3), request(&queue, 4));
        let panicking = thread::spawn(move || {
            let _one = one;
            panic!("as the test wants");
        });
        assert!(panicking.join().is_err());
        assert_eq!(collected(&queue), []);
        drop(other);
        assert_eq!(collected(&queue), [4]);
    }

    #[test]
    fn what_went_back_is_neither_claimed_nor_parked_nor_completed() {
        let (queue, _) = queue();
        let kept = request(&queue, 3);
        queue.park(3);
        assert!(kept.is_live());
        assert!(queue.revoke(3));
        assert!(!kept.is_live() && !kept.claim());
        queue.park(3);
        assert!(!queue.revoke(3));
        assert_eq!(kept.complete(0), Err(Stopped));
        assert_eq!(collected(&queue), []);
        // The others are.
        request(&queue, 4).complete(0).unwrap();
        assert_eq!(collected(&queue), [4]);
    }

    #[test]
    fn what_is_completed_while_it_is_parked_is_not_taken_any_more() {
        let (queue, _) = queue();
        let kept = request(&queue, 3);
        queue.park(3);
        kept.complete(0).unwrap();
        assert!(!queue.revoke(3));
        assert_eq!(collected(&queue), [3]);
    }

    #[test]
    fn what_is_dropped_goes_back_once() {
        let (queue, doorbell) = queue();
        doorbell.answer();
        drop(request(&queue, 5));
        assert!(doorbell.is_rung());
        assert_eq!(collected(&queue), [5]);
        let kept = request(&queue, 6);
        queue.park(6);
        assert!(queue.revoke(6));
        drop(kept);
        assert_eq!(collected(&queue), []);
    }

    #[test]
    fn heads_that_no_ring_of_this_size_has_are_nobodys() {
        let (queue, _) = queue();
        queue.park(SIZE);
        assert!(!queue.revoke(SIZE));
        assert!(queue.claim(SIZE), "nobody has taken it");
    }

    #[test]
    fn a_closed_queue_takes_nothing_and_keeps_nothing() {
        let (queue, _) = queue();
        request(&queue, 1).complete(0).unwrap();
        let scope = CallbackScope::enter();
        request(&queue, 2).complete(0).unwrap();
        let kept = request(&queue, 3);
        queue.park(3);
        queue.close();
        assert!(!kept.claim());
        assert_eq!(kept.complete(0), Err(Stopped));
        drop(scope);
        assert_eq!(collected(&queue), []);
    }

    #[test]
    fn what_a_callback_completes_is_there_all_at_once_when_it_returns() {
        let (queue, doorbell) = queue();
        let scope = CallbackScope::enter();
        for head in [4, 2, 3] {
            request(&queue, head).complete(0).unwrap();
        }
        assert!(!doorbell.is_rung());
        assert_eq!(collected(&queue), []);
        // What others complete meanwhile does not wait for that.
        let other = Arc::clone(&queue);
        thread::spawn(move || request(&other, 7).complete(0).unwrap()).join().unwrap();
        assert_eq!(collected(&queue), [7]);
        drop(scope);
        assert!(doorbell.is_rung());
        assert_eq!(collected(&queue), [4, 2, 3]);
    }

    #[test]
    fn of_a_claim_and_a_revocation_at_the_same_time_one_wins() {
        let (queue, _) = queue();
        let start = Barrier::new(2);
        for _ in 0..500 {
            queue.park(0);
            let (claimed, revoked) = thread::scope(|scope| {
                let claim = scope.spawn(|| {
                    start.wait();
                    queue.claim(0)
                });
                start.wait();
                let revoked = queue.revoke(0);
                (claim.join().unwrap(), revoked)
            });
            assert_ne!(claimed, revoked);
            queue.holders[0].store(Holder::Device as u8, Ordering::Release);
        }
    }
}
