//! A started queue and its lock.
//!
//! Three sides use a queue: its worker, which pops and publishes; the control plane, which changes
//! what the front-end asks for; and a device that takes receive buffers from any thread. Each holds
//! the lock while it looks at the ring or writes to it, and none holds it while the device works on
//! requests. So a message takes effect at once, however long a callback runs, and no command has to
//! wait in a list.
//!
//! A thread that has the lock waits for guest memory alone: for a page that does not come. So the
//! control plane waits for the lock with a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::context::WorkerContext;
use super::notifier::Notifier;
use super::queue::{Next, Phase, Queue, QueueParts};
use super::queue_log::QueueLog;
use super::report::Broken;
use super::stop::{Ended, LateRequests};
use super::translations::Waits;
use crate::address::Iova;
use crate::memory::{Memory, Miss, Window};
use crate::request::{CallbackScope, CompletionQueue, Doorbell};
use crate::ring::StartError;
use crate::ring_position::RingPosition;
use crate::sys::received_fd::ReceivedFd;

/// The longest that the control plane waits for the lock. Only guest memory that does not answer
/// takes so long.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// The queue is held up by guest memory that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldUp;

/// A started queue, shared by the three sides that use it. It is empty once the ring has stopped.
pub(crate) struct QueueCell {
    index: u16,
    pub(super) queue: Mutex<Option<Box<Queue>>>,
    /// Signalled when a request comes back while the ring stops, and when a new ring was looked at.
    came_back: Condvar,
    /// How many calls of the control plane wait for the lock. A worker that has the lock puts
    /// requests back rather than map their memory meanwhile.
    pub(super) called: AtomicU32,
    /// The memory of each chain is mapped, copied or waited for when it is popped, which may take
    /// long.
    pub(super) resolves: AtomicBool,
    /// It waits for translations of its addresses.
    waits: Waits,
    completions: Arc<CompletionQueue>,
    pub(super) doorbell: Arc<Doorbell>,
}

impl QueueCell {
    pub(crate) fn new(parts: QueueParts) -> Arc<Self> {
        let (index, doorbell) = (parts.index, Arc::clone(&parts.doorbell));
        let resolves = AtomicBool::new(may_wait(parts.ring.memory()));
        let queue = Box::new(Queue::new(parts));
        let completions = Arc::clone(&queue.completions);
        let waits = Arc::clone(&queue.waits);
        let queue = Mutex::new(Some(queue));
        let (came_back, called) = (Condvar::new(), AtomicU32::new(0));
        Arc::new(Self { index, queue, came_back, called, resolves, waits, completions, doorbell })
    }

    /// The vring's number.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Where completions of its requests wait for the worker.
    pub(crate) fn completions(&self) -> &Arc<CompletionQueue> {
        &self.completions
    }

    // --- the worker's side ---------------------------------------------------------------------

    /// Does what there is to do for the queue, at most one batch; `true` if there was something.
    #[inline]
    pub(super) fn look(&self, worker: &mut WorkerContext<'_>) -> bool {
        let mut guard = self.queue.lock();
        let Some(queue) = &mut *guard else { return false };
        let next = queue.next(worker.batch, worker.limit, &self.called);
        let awaits_pages = queue.ring.memory().awaits_pages();
        drop(guard);
        match next {
            Next::Idle => return false,
            Next::Again => {}
            Next::Batch if awaits_pages && !worker.batch.bring_in() => self.take_back(worker),
            Next::Batch => self.hand_over(worker),
            Next::Buffers => {
                let _scope = CallbackScope::enter();
                worker.device.buffers_available(self.index);
            }
            Next::Misplaced(error) => {
                worker.report.queue_broken(self.index, Broken::Memory(error));
            }
            Next::Broke(error) => worker.report.queue_broken(self.index, Broken::Driver(error)),
            Next::Pages(windows) => {
                windows.iter().for_each(Window::touch);
                self.with(Queue::has_pages);
            }
            Next::Began(began) => {
                self.came_back.notify_all();
                worker.report.queue_began(self.index, began);
            }
        }
        true
    }

    #[inline]
    fn hand_over(&self, worker: &mut WorkerContext<'_>) {
        if !worker.batch.is_empty() {
            let _scope = CallbackScope::enter();
            worker.device.handle(self.index, worker.batch);
        }
        self.take_back(worker);
    }

    /// Takes back what the device has answered or left.
    #[inline]
    fn take_back(&self, worker: &mut WorkerContext<'_>) {
        let mut guard = self.queue.lock();
        // Else the session has given the batch up meanwhile: its requests have failed, or their
        // ring has ended.
        let Some(queue) = guard.as_deref_mut().filter(|queue| queue.is_lent()) else {
            drop(guard);
            return worker.batch.clear();
        };
        let broke = queue.settle(worker.batch);
        self.tell_waiting(queue);
        drop(guard);
        if let Some(error) = broke {
            worker.report.queue_broken(self.index, Broken::Driver(error));
        }
    }

    /// Gives requests back that were completed outside a batch.
    pub(super) fn collect(&self) {
        self.with(|queue| {
            queue.collect();
            self.tell_waiting(queue);
        });
    }

    /// Takes the lock, for a device. `None` in a fork of the process: the ring is not served there,
    /// and a thread of the parent that had the lock at the fork never gives it back.
    pub(super) fn lock_here(&self) -> Option<MutexGuard<'_, Option<Box<Queue>>>> {
        self.completions.is_ours().then(|| self.queue.lock())
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.queue.lock().as_deref_mut().map(change)
    }

    fn tell_waiting(&self, queue: &Queue) {
        if queue.is_stopping() {
            self.came_back.notify_all();
        }
    }

    // --- the control plane's side --------------------------------------------------------------

    /// Has the queue served from now on, or left alone. A batch that the device has goes on.
    pub(crate) fn set_enabled(&self, enabled: bool) -> Result<(), HeldUp> {
        self.change(|queue| queue.set_enabled(enabled)).map(drop)
    }

    /// The queue was paused, or is not any more: when this returns nothing is popped that was not
    /// before, or the worker looks again.
    pub(crate) fn pause_changed(&self) -> Result<(), HeldUp> {
        self.change(Queue::offer_left).map(drop)
    }

    /// Replaces the call descriptor, and signals the new one.
    pub(crate) fn set_call(&self, call: Option<Notifier>) -> Result<(), HeldUp> {
        self.change(|queue| queue.set_call(call)).map(drop)
    }

    /// Replaces the error descriptor.
    pub(crate) fn set_error(&self, error: Option<Notifier>) -> Result<(), HeldUp> {
        self.change(|queue| queue.set_error(error)).map(drop)
    }

    /// Has what is written noted in this log from now on, and in no other; `None`: nowhere.
    pub(crate) fn set_log(&self, log: Option<QueueLog>) -> Result<(), HeldUp> {
        self.change(|queue| queue.set_log(log)).map(drop)
    }

    /// Replaces the kick descriptor; returns the former one, which the caller has to unwatch.
    pub(crate) fn set_kick(&self, kick: Option<ReceivedFd>) -> Result<Option<ReceivedFd>, HeldUp> {
        let former = self.change(|queue| queue.set_kick(kick))?;
        Ok(former.flatten())
    }

    /// Moves the ring to another table of memory; an error breaks the ring.
    pub(crate) fn move_to(&self, memory: &Arc<Memory>) -> Result<Result<(), StartError>, HeldUp> {
        let moved = self.change(|queue| queue.move_to(memory))?;
        self.resolves.store(may_wait(memory), Ordering::Relaxed);
        Ok(moved.unwrap_or(Ok(())))
    }

    /// Translations have come, which the queue may wait for.
    pub(crate) fn translations_came(&self) -> Result<(), HeldUp> {
        if !self.waits.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.wake_if(Queue::translations_came)
    }

    /// The front-end does not translate what the queue has asked for in the question of this number.
    pub(crate) fn translation_failed(&self, question: u64, miss: Miss) -> Result<(), HeldUp> {
        self.wake_if(|queue| queue.translation_failed(question, miss))
    }

    /// Translations were taken away: when this returns, nothing that the queue does uses them.
    /// `Ok(false)`: the ring had its place by them, and is broken.
    pub(crate) fn lose_translations(&self, first: Iova, last: Iova) -> Result<bool, HeldUp> {
        let changed = self.change(|queue| queue.lose_translations(first, last))?;
        Ok(changed.unwrap_or(true))
    }

    /// Lets go of memory in which the ring has no place any more.
    pub(crate) fn leave(&self) -> Result<(), HeldUp> {
        self.change(Queue::leave).map(drop)
    }

    /// Has nothing more taken from the ring. The worker may not have looked at a new ring yet,
    /// which tells where the ring stands: it has time for that until `until`. With `finishes` the
    /// device still gets what a process that died had in flight.
    pub(crate) fn stop(&self, until: Instant, finishes: bool) -> Result<(), HeldUp> {
        self.wait_until(until, |queue| queue.phase != Phase::New);
        self.change(|queue| queue.stop(finishes)).map(drop)
    }

    /// Gives back the buffers that the device holds and does not touch now.
    pub(crate) fn return_unused(&self) -> Result<(), HeldUp> {
        self.change(Queue::return_unused).map(drop)
    }

    /// Waits until all requests are back, or will never be as their worker has ended; `false`:
    /// neither by then. What was completed is given back here: the worker may be in a callback of
    /// another queue.
    pub(crate) fn wait_drained(&self, until: Instant) -> bool {
        let _ = self.change(Queue::collect);
        self.wait_until(until, |queue| queue.is_drained() || queue.is_orphaned())
    }

    /// Whether what is not back may be left unfinished; `false` if all is back.
    pub(crate) fn may_be_left(&self) -> bool {
        self.change(|queue| !queue.is_drained() && queue.may_be_left()) == Ok(Some(true))
    }

    /// Whether requests are not back.
    pub(crate) fn has_rest(&self) -> bool {
        self.change(|queue| !queue.is_drained()) == Ok(Some(true))
    }

    /// Refuses what the device completes from now on; returns what it has not given back.
    pub(crate) fn close(&self) -> Result<LateRequests, HeldUp> {
        Ok(self.change(Queue::close)?.unwrap_or_default())
    }

    /// Fails what the device has not given back, once the queue is closed.
    pub(crate) fn fail_rest(&self) -> Result<(), HeldUp> {
        self.change(Queue::fail_rest).map(drop)
    }

    /// Notes what may have been written for requests that the device does not give back.
    pub(crate) fn mark_rest(&self) -> Result<(), HeldUp> {
        self.change(Queue::mark_rest).map(drop)
    }

    /// Requests that were popped and not given back.
    pub(crate) fn in_flight(&self) -> Result<u32, HeldUp> {
        Ok(self.change(|queue| queue.in_flight)?.unwrap_or(0))
    }

    /// Ends the queue: nothing of the ring is mapped any more, and late completions are refused.
    pub(crate) fn end(&self) -> Result<Ended, HeldUp> {
        self.completions.close();
        self.called.fetch_add(1, Ordering::SeqCst);
        let guard = self.queue.try_lock_for(LOCK_LIMIT);
        self.called.fetch_sub(1, Ordering::SeqCst);
        let queue = guard.ok_or(HeldUp)?.take();
        Ok(queue
            .map_or(Ended { base: RingPosition::initial(false), kick: None }, |queue| queue.end()))
    }

    /// Notes that the worker has ended: what the device had then never comes back, and is not given
    /// to the driver as if it had been answered.
    pub(super) fn orphan(&self) {
        self.completions.close();
        self.with(Queue::orphan);
        self.came_back.notify_all();
    }

    fn wait_until(&self, until: Instant, is_so: impl Fn(&Queue) -> bool) -> bool {
        let Some(mut guard) = self.queue.try_lock_until(until) else { return false };
        loop {
            if guard.as_deref().is_none_or(&is_so) {
                return true;
            }
            if self.came_back.wait_until(&mut guard, until).timed_out() {
                return guard.as_deref().is_none_or(&is_so);
            }
        }
    }

    /// Changes the queue between two steps of its worker. `None`: the queue has ended.
    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Result<Option<T>, HeldUp> {
        let changed = self.change_quietly(change)?;
        self.doorbell.ring();
        Ok(changed)
    }

    /// The same, of which the worker need not know.
    fn change_quietly<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> Result<Option<T>, HeldUp> {
        self.called.fetch_add(1, Ordering::SeqCst);
        let guard = self.queue.try_lock_for(LOCK_LIMIT);
        self.called.fetch_sub(1, Ordering::SeqCst);
        Ok(guard.ok_or(HeldUp)?.as_deref_mut().map(change))
    }

    /// The same, and wakes the worker if there is something for it to do.
    fn wake_if(&self, change: impl FnOnce(&mut Queue) -> bool) -> Result<(), HeldUp> {
        if self.change_quietly(change)? == Some(true) {
            self.doorbell.ring();
        }
        Ok(())
    }
}

/// Whether who takes a chain may wait for its memory.
fn may_wait(memory: &Memory) -> bool {
    memory.needs_resolving() || memory.awaits_pages()
}

impl std::fmt::Debug for QueueCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueCell").field("index", &self.index).finish_non_exhaustive()
    }
}
