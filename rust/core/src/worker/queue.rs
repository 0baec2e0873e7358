//! One running vring in the hands of its worker: pop a batch, hand it over, publish, signal.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use super::Report;
use super::demand::Provided;
use crate::device::Device;
use crate::memory::Memory;
use crate::request::{Batch, CompletionQueue, Done, Doorbell, Request, Slot};
use crate::ring::{RingError, SplitRing};
use crate::sys::guard::Loss;
use crate::sys::{eventfd, quiet};

/// Slots kept for reuse: as many requests as one batch and its neighbours have in flight.
const SPARE_SLOTS: usize = 256;

/// Slots that wait for a chain. A request moves as the pointer to its slot.
#[allow(clippy::vec_box)]
type Spare = Vec<Box<Slot>>;

/// What a queue has done since the back-end started. Written by its worker once a batch.
#[derive(Debug, Default)]
pub(crate) struct QueueCounters {
    pub(crate) requests: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) kicks: AtomicU64,
    pub(crate) in_flight: AtomicU32,
}

/// A descriptor to signal through, whether writing to it may block, and whether that may raise a
/// signal: the protocol says that it is an eventfd, and a front-end passes what it likes.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    fd: Arc<OwnedFd>,
    blocking: bool,
    raises: bool,
}

impl Signal {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let blocking = rustix::fs::fcntl_getfl(&fd)
            .is_ok_and(|flags| !flags.contains(rustix::fs::OFlags::NONBLOCK));
        let raises = quiet::may_raise(fd.as_fd());
        Self { fd: Arc::new(fd), blocking, raises }
    }

    /// Signals; a descriptor that would block is full, which is a signal already.
    fn send(&self) {
        if self.blocking && !eventfd::is_writable(self.fd.as_fd()) {
            return;
        }
        if self.raises {
            // What takes no write is its owner's loss, as with an eventfd.
            let _ = quiet::write(self.fd.as_fd(), &1_u64.to_ne_bytes());
        } else {
            eventfd::signal(self.fd.as_fd());
        }
    }
}

/// Where a queue is in its life.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Popping and publishing.
    Running,
    /// The driver broke the ring: nothing more is popped.
    Broken,
    /// Waiting for the requests in flight, then telling the next available index.
    Stopping(Sender<u16>),
}

/// How a look at a queue went.
pub(super) enum Look {
    /// Nothing was there to do.
    Idle,
    /// Something was done, or is to be done before anything else.
    Busy,
    /// The driver broke the ring just now.
    Broke(RingError),
}

/// A started vring.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(super) index: u16,
    pub(super) ring: SplitRing,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<Signal>,
    pub(super) error: Option<Signal>,
    pub(super) enabled: bool,
    pub(super) phase: Phase,
    /// Requests that the device left in the ring: not offered again before the next kick.
    left: u16,
    in_flight: u32,
    pub(super) completions: Arc<CompletionQueue>,
    spare: Spare,
    pub(super) provided: Option<Box<Provided>>,
    /// The ring is not in guest memory any more. It keeps what it was in until the last request
    /// in flight is given back there.
    detached: bool,
    /// Once it has happened nothing is popped and nothing is published.
    loss: Arc<Loss>,
    counters: Arc<QueueCounters>,
}

/// What every queue of a worker shares while it is served.
pub(super) struct WorkerContext<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) report: &'a dyn Report,
    pub(super) doorbell: &'a Doorbell,
    /// Commands wait.
    pub(super) called: &'a AtomicBool,
    pub(super) batch: &'a mut Batch,
    pub(super) limit: u16,
}

impl Queue {
    pub(crate) fn new(
        index: u16,
        ring: SplitRing,
        enabled: bool,
        doorbell: &Arc<Doorbell>,
        loss: Arc<Loss>,
        counters: Arc<QueueCounters>,
    ) -> Self {
        Self {
            index,
            ring,
            kick: None,
            call: None,
            error: None,
            enabled,
            phase: Phase::Running,
            left: 0,
            in_flight: 0,
            completions: CompletionQueue::new(Arc::clone(doorbell)),
            spare: Vec::new(),
            provided: None,
            detached: false,
            loss,
            counters,
        }
    }

    pub(crate) fn with_fds(
        self,
        kick: Option<OwnedFd>,
        call: Option<Signal>,
        error: Option<Signal>,
    ) -> Self {
        Self { kick, call, error, ..self }
    }

    /// Where its requests come back: who closes it ends their lives.
    pub(crate) fn completions(&self) -> Arc<CompletionQueue> {
        Arc::clone(&self.completions)
    }

    /// Serves one batch if there is one.
    pub(super) fn look(&mut self, context: &mut WorkerContext<'_>) -> Look {
        if !self.is_served() {
            return Look::Idle;
        }
        let available = match self.ring.available() {
            Ok(available) => available,
            Err(error) => return self.fail(error),
        };
        if available <= self.left {
            return Look::Idle;
        }
        // The index was read first. So whatever the front-end was told before the driver made
        // these chains available (new memory above all) has rung the doorbell by now.
        if context.doorbell.is_rung() {
            return Look::Busy;
        }
        if self.loss.has_happened() {
            return self.lose();
        }
        let wanted = context.device.batch_limit(self.index, available).max(1);
        let mut broken = self.pop_batch(available.min(wanted).min(context.limit), context.batch);
        if !context.batch.is_empty() {
            self.counters.in_flight.store(self.in_flight, Ordering::Relaxed);
            if self.ring.memory().is_xen() {
                broken = self.finish_walks(context.batch).or(broken);
                if !self.provide(context) {
                    // It is behind what was put back, and comes again.
                    broken = None;
                }
            }
            if !context.batch.is_empty() {
                context.device.handle(self.index, context.batch);
            }
            self.settle(context);
        }
        broken.map_or(Look::Busy, |error| self.fail(error))
    }

    /// Gives back what was completed outside a batch.
    pub(super) fn collect(
        &mut self,
        done: &mut Vec<Done>,
        device: &dyn Device,
        report: &dyn Report,
    ) {
        self.completions.collect(done);
        if self.provided.is_some() {
            self.return_memory(done, device, report);
        }
        let completions = Arc::clone(&self.completions);
        let Some(open) = completions.hold_open() else { return done.clear() };
        for done in done.drain(..) {
            self.give_back(done);
        }
        let published = self.publish();
        drop(open);
        self.signal(published);
        self.leave();
    }

    /// Asks for kicks; `true` if there is work already.
    pub(super) fn enable_kicks(&mut self) -> bool {
        if !self.is_served() {
            return false;
        }
        // An index that jumps here is found, and reported, by the look that follows.
        self.ring.enable_kicks(self.left).unwrap_or(true)
    }

    pub(super) fn disable_kicks(&mut self) {
        if self.is_served() {
            self.ring.disable_kicks();
        }
    }

    /// Whether the ring may be touched other than to give requests back.
    fn is_served(&self) -> bool {
        self.enabled && matches!(self.phase, Phase::Running)
    }

    /// There may be something new: requests that were left are offered again.
    pub(super) fn kicked(&mut self) {
        self.left = 0;
        bump(&self.counters.kicks, 1);
    }

    /// A ring that must be looked at by time, for want of a kick descriptor.
    pub(super) fn is_unkicked(&self) -> bool {
        self.kick.is_none() && self.is_served()
    }

    /// Goes on in another table of memory.
    pub(super) fn move_to(&mut self, memory: &Arc<Memory>) -> Result<(), crate::ring::StartError> {
        self.spare.clear();
        let moved = self.ring.move_to(memory);
        self.detached = moved.is_err();
        moved
    }

    /// Lets go of memory that the ring has no place in any more: whoever takes it away may be
    /// waiting for that.
    pub(super) fn leave(&mut self) {
        if self.detached && self.in_flight == 0 {
            self.spare.clear();
            // Without memory for it the ring stays, and the wait is as long as it may be.
            self.detached = self.ring.leave().is_err();
        }
    }

    /// Whether it was asked to stop and nothing is in flight any more.
    pub(super) fn is_drained(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_)) && self.in_flight == 0
    }

    /// Ends the queue: its index, and whoever waits for that. Late completions are refused.
    pub(super) fn end(self) {
        let Self { ring, completions, spare, provided, phase, counters, .. } = self;
        completions.close();
        counters.in_flight.store(0, Ordering::Relaxed);
        let next = ring.next_available();
        // Nothing of the ring is mapped any more when its end is told.
        drop((ring, spare, provided));
        if let Phase::Stopping(reply) = phase {
            // Nobody waits any more if the limit has passed.
            let _ = reply.send(next);
        }
    }

    /// Nothing more is popped until the front-end stops the ring; it is told once.
    pub(super) fn break_off(&mut self) {
        self.phase = Phase::Broken;
        if let Some(signal) = &self.error {
            signal.send();
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self.phase, Phase::Broken)
    }

    fn fail(&mut self, error: RingError) -> Look {
        if self.loss.has_happened() {
            return self.lose();
        }
        self.break_off();
        Look::Broke(error)
    }

    /// The ring may be zeroes in place of what the driver wrote, and so may the data. Nothing is
    /// popped any more; the session has been woken by the loss itself and ends.
    fn lose(&mut self) -> Look {
        self.phase = Phase::Broken;
        Look::Idle
    }

    /// Pops up to `limit` chains. On a bad chain those before it are good.
    fn pop_batch(&mut self, limit: u16, batch: &mut Batch) -> Option<RingError> {
        for _ in 0..limit {
            let mut slot = match self.spare.pop() {
                Some(slot) => slot,
                None => Slot::new(self.index, Arc::clone(&self.completions)),
            };
            match self.ring.pop(&mut slot.buffers) {
                Ok(Some(head)) => {
                    slot.head = head;
                    self.in_flight += 1;
                    batch.push(Request::new(slot));
                }
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
        None
    }

    /// Ends the walks of the chains of a batch. From a bad chain on they are put back; those before
    /// it are good.
    #[cold]
    fn finish_walks(&mut self, batch: &mut Batch) -> Option<RingError> {
        let (good, error) = self.ring.finish_walks(batch.chains_mut()).err()?;
        for slot in batch.take_left(good) {
            self.put_back(slot);
        }
        Some(error)
    }

    /// Leaves a request in the ring.
    pub(super) fn put_back(&mut self, slot: Box<Slot>) {
        self.ring.unpop(slot.head);
        self.in_flight -= 1;
        keep(&mut self.spare, &self.ring, slot);
    }

    /// Gives back what the device answered and puts back what it left.
    fn settle(&mut self, context: &mut WorkerContext<'_>) {
        if self.provided.is_some() {
            self.take_back(context);
        }
        let completions = Arc::clone(&self.completions);
        let Some(open) = completions.hold_open() else { return context.batch.clear() };
        self.left = 0;
        for slot in context.batch.take_left(0) {
            self.put_back(slot);
            // Nothing of what is there now is offered before the next kick.
            self.left = self.ring.seen();
        }
        let mut answered = 0;
        for done in context.batch.take_done() {
            answered += 1;
            self.in_flight -= 1;
            self.ring.push(done.slot.head, done.written);
            keep(&mut self.spare, &self.ring, done.slot);
        }
        bump(&self.counters.requests, answered);
        bump(&self.counters.batches, 1);
        self.counters.in_flight.store(self.in_flight, Ordering::Relaxed);
        let published = self.publish();
        drop(open);
        self.signal(published);
    }

    fn give_back(&mut self, done: Done) {
        bump(&self.counters.requests, 1);
        self.in_flight -= 1;
        self.counters.in_flight.store(self.in_flight, Ordering::Relaxed);
        self.ring.push(done.slot.head, done.written);
        keep(&mut self.spare, &self.ring, done.slot);
    }

    /// `true` if the driver wants to be told.
    fn publish(&mut self) -> bool {
        // What was read of lost memory may have been zeroes: nothing counts as done.
        !self.loss.has_happened() && self.ring.publish()
    }

    fn signal(&self, published: bool) {
        if let Some(call) = self.call.as_ref().filter(|_| published) {
            call.send();
            bump(&self.counters.calls, 1);
        }
    }
}

/// Keeps a slot for the next chain. One that still holds an older table of memory lets go of it:
/// a region that was removed is unmapped with its last request.
fn keep(spare: &mut Spare, ring: &SplitRing, mut slot: Box<Slot>) {
    slot.buffers.hold_only(ring.memory());
    if spare.len() < SPARE_SLOTS {
        spare.push(slot);
    }
}

/// Adds without a locked instruction: only the worker writes.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}
