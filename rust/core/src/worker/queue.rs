//! One running vring: what it is made of, its life, and what the front-end changes. Each method is
//! called with the queue's [lock](super::cell) held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counters::{QueueCounters, bump};
use super::notifier::Notifier;
use super::provided::Provided;
use super::queue_log::QueueLog;
use super::report::{Began, Report};
use super::timing::Timing;
use super::translations::{Translations, Waits};
use crate::device::Device;
use crate::memory::{Memory, Window};
use crate::request::{Batch, CompletionQueue, Done, Doorbell, Slot};
use crate::ring::{Ring, RingError, StartError};
use crate::sys::guard::Loss;
use crate::sys::received_fd::ReceivedFd;

/// The pieces of memory that the chains in flight may have together: more are left in the ring until
/// some have gone back. A guest can describe a thousand pieces and more for each entry of its ring, all
/// by the same few bytes, and each takes 16 bytes here. 2048 of the longest requests that a disk asks
/// for have as many.
pub(super) const MOST_PIECES: u32 = 1 << 18;

/// Slots that wait for a chain. A request moves as the pointer to its slot.
#[allow(clippy::vec_box)]
pub(super) type Spare = Vec<Box<Slot>>;

/// Where a queue is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The ring was found in memory, or is to be, and its worker has not looked at it yet.
    New,
    /// Waiting for translations of its addresses: nothing is popped.
    Waiting,
    /// Popping and publishing.
    Running,
    /// The driver broke the ring: nothing more is popped.
    Broken,
    /// Waiting for the requests in flight.
    Stopping,
}

/// What there is to do for a queue.
pub(super) enum Next {
    /// There is nothing to do.
    Idle,
    /// Nothing was popped after all, though there may be something: look again.
    Again,
    /// A batch was popped, to be handed to the device.
    Batch,
    /// The device is to be told that there are buffers.
    Buffers,
    /// The driver broke the ring just now.
    Broke(RingError),
    /// The ring has no place in memory.
    Misplaced(StartError),
    /// The ring was taken up just now.
    Began(Began),
    /// The worker is to wait for the pages of the ring, without the lock: then nobody else waits for
    /// one who looks at it.
    Pages(Vec<Window>),
}

/// What a queue is made of.
pub(crate) struct QueueParts {
    pub(crate) index: u16,
    pub(crate) ring: Ring,
    /// The ring has no place in memory yet, and gets it when its addresses are translated.
    pub(crate) apart: bool,
    pub(crate) enabled: bool,
    pub(crate) kick: Option<ReceivedFd>,
    pub(crate) call: Option<Notifier>,
    pub(crate) error: Option<Notifier>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) report: Arc<dyn Report>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) loss: Arc<Loss>,
    pub(crate) counters: Arc<QueueCounters>,
    pub(crate) log: Option<QueueLog>,
}

/// A started vring.
pub(super) struct Queue {
    pub(super) index: u16,
    pub(super) ring: Ring,
    pub(super) device: Arc<dyn Device>,
    pub(super) report: Arc<dyn Report>,
    pub(super) doorbell: Arc<Doorbell>,
    pub(super) kick: Option<ReceivedFd>,
    pub(super) call: Option<Notifier>,
    error: Option<Notifier>,
    pub(super) enabled: bool,
    pub(super) phase: Phase,
    /// The pages of the ring were waited for.
    pub(super) has_pages: bool,
    /// The ring is stopping, and what a process that died had in flight comes again first.
    pub(super) finishes: bool,
    /// A batch is in the device's hands.
    pub(super) lent: bool,
    /// A chain with a fault was popped, and was not refused yet.
    pub(super) faulty: bool,
    /// A fault was reported since the ring started: one says what is wrong, a thousand say no
    /// more.
    pub(super) fault_told: bool,
    /// The worker thread has ended.
    orphaned: bool,
    /// What is wrong with the chain that follows that batch in the ring.
    pub(super) bad: Option<RingError>,
    /// The device takes the buffers of this queue by itself.
    pub(super) receives: bool,
    /// The device is to be told once more buffers than this are available; `None`: it was told, and
    /// has not found too few since.
    pub(super) wanted: Option<u16>,
    /// Requests that the device left in the ring: not offered again before the next kick.
    pub(super) left: u16,
    /// Bytes of each request that are no data.
    pub(super) framing: u64,
    /// Requests that failed and are not counted yet.
    pub(super) errors: u32,
    /// The most bytes of a request that the device takes.
    pub(super) max_bytes: u64,
    /// A request was popped that has more.
    pub(super) too_long: bool,
    /// Such a request was reported since the ring started.
    pub(super) told_too_long: bool,
    pub(super) in_flight: u32,
    /// The pieces of memory that the chains in flight have.
    pub(super) pieces: u32,
    pub(super) completions: Arc<CompletionQueue>,
    pub(super) collected: Vec<Done>,
    /// The chains of a `take` or `send` while it runs; empty between two calls.
    pub(super) own_batch: Batch,
    /// One of these chains, while its memory is mapped or copied.
    pub(super) single: Batch,
    pub(super) spare: Spare,
    pub(super) provided: Option<Box<Provided>>,
    /// What it waits for where its addresses are translated; `None` where they are not.
    pub(super) translations: Option<Box<Translations>>,
    pub(super) waits: Waits,
    /// The present table of memory has no place for the ring. The ring stays in the former one
    /// until the last request in flight was given back there.
    detached: bool,
    /// Once it has happened nothing is popped and nothing is published.
    pub(super) loss: Arc<Loss>,
    pub(super) counters: Arc<QueueCounters>,
    pub(super) timing: Timing,
    /// Where writes to guest memory are noted.
    pub(super) log: Option<QueueLog>,
}

impl Queue {
    pub(super) fn new(parts: QueueParts) -> Self {
        let apart = parts.apart;
        let mut queue = Self::of(parts);
        queue.translate_from_now_on(apart);
        queue
    }

    fn of(parts: QueueParts) -> Self {
        let QueueParts { index, ring, enabled, kick, call, error, .. } = parts;
        let QueueParts { device, report, doorbell, loss, counters, log, .. } = parts;
        let (receives, max_bytes) = (device.receives(index), device.max_request_bytes());
        let framing = device.framing_bytes();
        let mut queue = Self {
            index,
            completions: CompletionQueue::new(ring.size(), Arc::clone(&doorbell)),
            doorbell,
            ring,
            device,
            report,
            kick,
            call,
            error,
            enabled,
            phase: Phase::New,
            has_pages: false,
            finishes: false,
            lent: false,
            faulty: false,
            fault_told: false,
            orphaned: false,
            bad: None,
            receives,
            wanted: receives.then_some(0),
            left: 0,
            framing,
            errors: 0,
            max_bytes,
            too_long: false,
            told_too_long: false,
            in_flight: 0,
            pieces: 0,
            collected: Vec::new(),
            own_batch: Batch::default(),
            single: Batch::default(),
            spare: Vec::new(),
            provided: None,
            translations: None,
            waits: Waits::default(),
            detached: false,
            loss,
            counters,
            timing: Timing::default(),
            log: None,
        };
        queue.set_log(log);
        queue
    }

    // --- kicks ---------------------------------------------------------------------------------

    /// Asks the driver for kicks; `true` if there is work already.
    pub(super) fn enable_kicks(&mut self) -> bool {
        self.timing.rest();
        if !self.is_served() || self.is_full() {
            return self.phase == Phase::New || self.is_finishing() && !self.is_full();
        }
        let left = if self.receives { self.wanted } else { Some(self.left) };
        // An index that jumps here is found, and reported, by the look that follows.
        left.is_some_and(|left| self.ring.enable_kicks(left).unwrap_or(true))
    }

    pub(super) fn disable_kicks(&mut self) {
        if self.is_served() {
            self.ring.disable_kicks();
        }
    }

    /// The driver says that there is something new.
    pub(super) fn kicked(&mut self) {
        self.offer_left();
        bump(&self.counters.kicks, 1);
    }

    /// There may be something new: requests that were left are offered again.
    pub(super) fn offer_left(&mut self) {
        self.left = 0;
    }

    /// Whether the ring has no kick descriptor, so that it must be looked at from time to time.
    pub(super) fn is_unkicked(&self) -> bool {
        self.kick.is_none() && self.is_served()
    }

    /// Whether the ring may be touched other than to give requests back.
    #[inline]
    pub(super) fn is_served(&self) -> bool {
        self.enabled
            && self.phase == Phase::Running
            && !self.counters.paused.load(Ordering::Relaxed)
    }

    // --- what the front-end changes ------------------------------------------------------------

    /// Has the queue served from now on, or left alone.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        self.offer_left();
    }

    /// Replaces the call descriptor. The driver may have waited for what was signalled to the
    /// former one: so the new one is signalled once, and the decision to notify starts anew.
    pub(super) fn set_call(&mut self, call: Option<Notifier>) {
        self.call = call;
        self.ring.forget_notifications();
        if let Some(call) = &self.call {
            call.send();
        }
    }

    /// Replaces the kick descriptor; returns the former one.
    pub(super) fn set_kick(&mut self, kick: Option<ReceivedFd>) -> Option<ReceivedFd> {
        self.offer_left();
        std::mem::replace(&mut self.kick, kick)
    }

    pub(super) fn set_error(&mut self, error: Option<Notifier>) {
        self.error = error;
    }

    /// Moves the ring to another table of memory. An error breaks the ring, and is returned unless
    /// the ring was broken before.
    pub(super) fn move_to(&mut self, memory: &Arc<Memory>) -> Result<(), StartError> {
        self.spare.clear();
        let moved = match memory.translates() {
            true => self.move_and_translate(memory),
            false => self.ring.move_to(memory),
        };
        self.detached = moved.is_err();
        if let Err(error) = moved
            && self.phase != Phase::Broken
        {
            self.break_off();
            return Err(error);
        }
        Ok(())
    }

    /// Lets go of memory in which the ring has no place any more: a message that removes the memory
    /// may be waiting for that.
    pub(super) fn leave(&mut self) {
        if self.detached && self.in_flight == 0 {
            self.spare.clear();
            // Without memory of this process's own for the ring it stays where it is, and the
            // message waits for as long as it may.
            self.detached = self.ring.leave().is_err();
        }
    }

    // --- the end -------------------------------------------------------------------------------

    /// Has nothing more taken from the ring; with `finishes` what comes again still is.
    pub(super) fn stop(&mut self, finishes: bool) {
        self.finishes = finishes && self.phase == Phase::Running && !self.receives;
        self.phase = Phase::Stopping;
    }

    /// Whether the requests in flight are recorded for the process that comes after a crash.
    pub(super) fn is_recorded(&self) -> bool {
        self.ring.is_recorded()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stopping
    }

    /// Whether a batch is in the device's hands.
    pub(super) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Whether nothing is in flight.
    pub(super) fn is_drained(&self) -> bool {
        let withheld = if self.is_apart() { self.collected.len() as u32 } else { 0 };
        self.in_flight == withheld && !self.lent && !self.is_finishing()
    }

    pub(super) fn orphan(&mut self) {
        self.orphaned = true;
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned
    }

    /// Has nothing more popped until the front-end stops the ring, and signals the error
    /// descriptor.
    pub(super) fn break_off(&mut self) {
        self.phase = Phase::Broken;
        if let Some(error) = &self.error {
            error.send();
        }
    }

    /// As [`fail`](Self::fail); returns the error if it is to be reported.
    pub(super) fn break_with(&mut self, error: RingError) -> Option<RingError> {
        match self.fail(error) {
            Next::Broke(error) => Some(error),
            _ => None,
        }
    }

    /// Breaks the ring, unless that has happened before or its memory was lost.
    pub(super) fn fail(&mut self, error: RingError) -> Next {
        if self.loss.has_happened() {
            return self.lose();
        }
        if self.phase != Phase::Running {
            return Next::Idle;
        }
        self.break_off();
        Next::Broke(error)
    }

    /// The ring may be zeroes in place of what the driver wrote, and so may the data. Nothing is
    /// popped any more; the session has been woken by the loss itself and ends.
    pub(super) fn lose(&mut self) -> Next {
        self.phase = Phase::Broken;
        Next::Idle
    }
}
