//! One running vring: pop a batch, give back what was answered, publish. Each method is called with
//! the queue's [lock](super::cell) held.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::counters::{QueueCounters, bump};
use super::notifier::Notifier;
use super::provided::Provided;
use super::queue_log::{Extent, QueueLog};
use super::report::{Began, Report};
use super::translations::{Translations, Waits};
use crate::device::Device;
use crate::memory::{Memory, Window};
use crate::request::{Batch, CompletionQueue, Done, Doorbell, Request, Slot};
use crate::ring::{Origin, Ring, RingError, StartError};
use crate::sys::guard::Loss;
use crate::sys::received_fd::ReceivedFd;

/// Slots kept for reuse: as many requests as one batch and its neighbours have in flight.
const SPARE_SLOTS: usize = 256;

/// The pieces of memory that the chains in flight may have together: more are left in the ring until
/// some have gone back. A guest can describe a thousand pieces and more for each entry of its ring, all
/// by the same few bytes, and each takes 16 bytes here. 2048 of the longest requests that a disk asks
/// for have as many.
pub(super) const MOST_PIECES: u32 = 1 << 18;

/// Slots that have had a longer chain than this are not kept for reuse: for memory that a few chains
/// of a hostile guest took does not stay. No honest chain is as long.
const KEPT_PIECES: usize = 2048;

/// Slots that wait for a chain. A request moves as the pointer to its slot.
#[allow(clippy::vec_box)]
type Spare = Vec<Box<Slot>>;

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
    call: Option<Notifier>,
    error: Option<Notifier>,
    enabled: bool,
    pub(super) phase: Phase,
    /// The pages of the ring were waited for.
    has_pages: bool,
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
    wanted: Option<u16>,
    /// Requests that the device left in the ring: not offered again before the next kick.
    left: u16,
    /// Bytes of each request that are no data.
    framing: u64,
    /// Requests that failed and are not counted yet.
    errors: u32,
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
    collected: Vec<Done>,
    /// The chains of a `take` or `send` while it runs; empty between two calls.
    pub(super) own_batch: Batch,
    /// One of these chains, while its memory is mapped or copied.
    pub(super) single: Batch,
    spare: Spare,
    pub(super) provided: Option<Box<Provided>>,
    /// What it waits for where its addresses are translated; `None` where they are not.
    pub(super) translations: Option<Box<Translations>>,
    pub(super) waits: Waits,
    /// The present table of memory has no place for the ring. The ring stays in the former one
    /// until the last request in flight was given back there.
    detached: bool,
    /// Once it has happened nothing is popped and nothing is published.
    loss: Arc<Loss>,
    pub(super) counters: Arc<QueueCounters>,
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
            log: None,
        };
        queue.set_log(log);
        queue
    }

    // --- taking --------------------------------------------------------------------------------

    /// Finds out what there is to do, and pops a batch if that is it.
    #[inline]
    pub(super) fn next(&mut self, batch: &mut Batch, limit: u16, called: &AtomicU32) -> Next {
        if !self.is_served() {
            return self.begin_or_finish(batch, limit, called);
        }
        let available = match self.ring.available() {
            Ok(available) => available,
            Err(error) => return self.fail(error),
        };
        if self.is_full() {
            return Next::Idle;
        }
        if self.receives {
            return self.offer_buffers(available);
        }
        if available <= self.left {
            return Next::Idle;
        }
        if self.loss.has_happened() {
            return self.lose();
        }
        self.pop_for_device((available, limit), batch, called)
    }

    /// Pops a batch for the device to handle, of what is available, and of `limit` requests at most.
    #[inline]
    fn pop_for_device(
        &mut self,
        (available, limit): (u16, u16),
        batch: &mut Batch,
        called: &AtomicU32,
    ) -> Next {
        let wanted = self.device.batch_limit(self.index, available).max(1);
        self.bad = self.pop_batch(available.min(wanted).min(limit), batch);
        if !batch.is_empty() {
            self.counters.in_flight.store(self.in_flight, Ordering::Relaxed);
            if self.ring.memory().needs_resolving() {
                self.resolve(batch, called);
            } else if self.faulty {
                self.put_back_untranslated(batch);
                self.refuse_faulty(batch);
            }
            self.refuse_too_long(batch);
            self.lent = true;
            return Next::Batch;
        }
        self.bad.take().map_or(Next::Again, |error| self.fail(error))
    }

    #[cold]
    fn begin_or_finish(&mut self, batch: &mut Batch, limit: u16, called: &AtomicU32) -> Next {
        if !self.is_finishing() {
            return self.begin();
        }
        if self.lent || self.is_full() {
            return Next::Idle;
        }
        let next = self.pop_for_device((self.ring.unfinished(), limit), batch, called);
        // What is wrong with a chain is not cured by another look.
        self.finishes = self.bad.is_none() && matches!(next, Next::Batch | Next::Again);
        next
    }

    /// Whether requests that come again are handed out although the ring is stopping.
    fn is_finishing(&self) -> bool {
        self.finishes && self.ring.unfinished() > 0 && !self.loss.has_happened()
    }

    /// Looks at a new ring for the first time, which tells where the ring stands.
    #[cold]
    fn begin(&mut self) -> Next {
        if self.phase != Phase::New {
            return Next::Idle;
        }
        if self.translations.is_some()
            && let Some(next) = self.take_place()
        {
            return next;
        }
        if self.ring.memory().awaits_pages() && !self.has_pages {
            return Next::Pages(self.ring.windows());
        }
        let named = self.ring.position();
        self.phase = Phase::Running;
        match self.ring.begin() {
            Ok(base) => {
                let unfinished = self.ring.unfinished();
                Next::Began(Began { size: self.ring.size(), base, named, unfinished })
            }
            Err(error) => self.fail(error),
        }
    }

    /// The pages of the ring are there.
    pub(super) fn has_pages(&mut self) {
        self.has_pages = true;
    }

    fn offer_buffers(&mut self, available: u16) -> Next {
        if self.wanted.is_none_or(|wanted| available <= wanted) {
            return Next::Idle;
        }
        if self.loss.has_happened() {
            return self.lose();
        }
        self.wanted = None;
        Next::Buffers
    }

    /// Has a device told that takes buffers by itself, if there are any.
    pub(super) fn want_any(&mut self) {
        self.wanted.get_or_insert(0);
    }

    /// Has the device told when there are more than `available` chains; `true`: there are.
    pub(super) fn want_more_than(&mut self, available: u16) -> bool {
        self.wanted = Some(available);
        self.ring.enable_kicks(available).unwrap_or(true)
    }

    /// How many chains there are for a device that takes them by itself; `None` if nothing may be
    /// taken now.
    pub(super) fn ready(&mut self) -> Result<Option<u16>, RingError> {
        if !self.is_served() || self.lent || self.loss.has_happened() {
            if self.receives {
                // A device that finds the queue disabled hears of it when there is something again.
                self.want_any();
            }
            return Ok(None);
        }
        self.ring.available().map(Some)
    }

    /// Pops up to `limit` chains. On a bad chain those before it are good.
    pub(super) fn pop_batch(&mut self, limit: u16, batch: &mut Batch) -> Option<RingError> {
        for _ in 0..limit {
            if self.is_full() {
                return None;
            }
            let mut slot = self.spare_slot();
            match self.ring.pop(&mut slot.buffers) {
                Ok(Some(token)) => {
                    self.faulty |= slot.buffers.fault().is_some();
                    slot.token = token;
                    Origin { sequence: slot.sequence, resubmitted: slot.resubmitted } =
                        self.ring.origin();
                    slot.pieces = slot.buffers.pieces() as u32;
                    self.pieces += slot.pieces;
                    self.in_flight += 1;
                    self.too_long |= slot.buffers.bytes() > self.max_bytes;
                    batch.push(Request::new(slot));
                }
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
        None
    }

    /// Buffers that went back unused are not counted one by one.
    pub(super) fn forget_pieces_if_idle(&mut self) {
        if self.in_flight == 0 {
            self.pieces = 0;
        }
    }

    /// Whether the chains in flight have all the pieces that they may have together: nothing is
    /// popped before some of them have gone back.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.pieces >= MOST_PIECES
    }

    fn spare_slot(&mut self) -> Box<Slot> {
        let spare = self.spare.pop();
        spare.unwrap_or_else(|| Slot::new(self.index, Arc::clone(&self.completions)))
    }

    /// Maps or copies the buffers of a batch, where guest memory is not mapped in advance.
    #[cold]
    fn resolve(&mut self, batch: &mut Batch, called: &AtomicU32) {
        self.bad = self.finish_walks(batch).or(self.bad.take());
        if !self.provide(batch, called) {
            // The bad chain is behind what was put back, and is found again.
            self.bad = None;
        }
    }

    /// Ends the walks of the chains of a batch. From a bad chain on they are put back; those before
    /// it are good.
    #[cold]
    pub(super) fn finish_walks(&mut self, batch: &mut Batch) -> Option<RingError> {
        let walked = self.ring.finish_walks(batch.chains_mut());
        for slot in batch.slots_mut() {
            let pieces = slot.buffers.pieces() as u32;
            self.pieces -= std::mem::replace(&mut slot.pieces, pieces);
            self.pieces += pieces;
        }
        let (good, error) = walked.err()?;
        for slot in batch.take_left(good) {
            self.put_back(slot);
        }
        Some(error)
    }

    /// Leaves a request in the ring.
    pub(super) fn put_back(&mut self, mut slot: Box<Slot>) {
        slot.forget_failure();
        if slot.resubmitted {
            self.ring.unpop_unfinished(slot.token, slot.sequence);
        } else {
            self.ring.unpop(slot.token);
        }
        self.in_flight -= 1;
        self.pieces -= slot.pieces;
        keep(&mut self.spare, &self.ring, slot);
    }

    // --- giving back ---------------------------------------------------------------------------

    /// Gives back what the device answered and puts back what it left. Returns how the driver has
    /// broken the ring, if the chain that follows this batch is a bad one.
    #[inline]
    pub(super) fn settle(&mut self, batch: &mut Batch) -> Option<RingError> {
        self.lent = false;
        if self.provided.is_some() {
            self.take_back(batch);
        }
        self.left = 0;
        if !batch.is_empty() {
            self.leave_in_ring(batch);
        }
        if self.doorbell.is_rung() {
            // What the callback completed of earlier batches belongs together with this one.
            self.push_collected();
        }
        self.push_done(batch);
        self.publish();
        let error = self.bad.take()?;
        self.break_with(error)
    }

    /// Puts back what the device left: nothing of what is there now is offered before the next kick.
    /// The ring steps back over requests behind it that were refused too: their turn comes again.
    #[cold]
    fn leave_in_ring(&mut self, batch: &mut Batch) {
        let left: Vec<_> = batch.take_left(0).collect();
        // What the device leaves while the ring stops delays no stop: it comes again later.
        self.finishes = false;
        for slot in left {
            while let Some(last) = self.ring.last_popped().filter(|&last| last != slot.token)
                && let Some(refused) = batch.take_answer(last)
            {
                self.put_back(refused.slot);
            }
            if slot.resubmitted || self.ring.last_popped() == Some(slot.token) {
                self.put_back(slot);
            } else {
                // The answer behind it waits for other pages to be given back.
                let request = Request::new(slot);
                let written = self.device.refuse(self.index, &request);
                batch.fail(request, written);
            }
        }
        self.left = self.ring.seen();
    }

    /// Writes the used elements of what was answered. The driver sees none before
    /// [`publish`](Self::publish).
    #[inline]
    pub(super) fn push_done(&mut self, batch: &mut Batch) {
        self.push_written(batch, Extent::Whole);
    }

    /// As [`push_done`](Self::push_done): for each request so much was written.
    #[inline]
    pub(super) fn push_written(&mut self, batch: &mut Batch, extent: Extent) {
        self.mark(batch.done_mut(), extent);
        if self.is_apart() {
            // They go back when the ring has its place again.
            return self.collected.extend(batch.take_done());
        }
        let (before, mut bytes) = (self.in_flight, 0);
        for done in batch.take_done() {
            bytes += self.push(done);
        }
        self.count(before - self.in_flight, bytes);
        bump(&self.counters.batches, 1);
    }

    /// Counts what was pushed together: so many requests, with the bytes that `push` has returned.
    fn count(&mut self, requests: u32, bytes: u64) {
        let errors = std::mem::take(&mut self.errors);
        let framing = self.framing * u64::from(requests - errors);
        bump(&self.counters.requests, requests.into());
        bump(&self.counters.errors, errors.into());
        bump(&self.counters.bytes, bytes.saturating_sub(framing));
        self.counters.in_flight.store(self.in_flight, Ordering::Relaxed);
    }

    /// Writes the used element of one answer; returns how many bytes were moved.
    #[inline(always)] // The loops over what was answered are nothing but this.
    fn push(&mut self, mut done: Done) -> u64 {
        let Slot { token, ref buffers, pieces, .. } = *done.slot;
        if !buffers.is_in(self.ring.memory()) && buffers.is_detached() {
            self.answer_anew(&mut done);
        }
        let mut bytes = done.slot.buffers.readable().len() + u64::from(done.written);
        if done.slot.is_failed() {
            done.slot.forget_failure();
            (self.errors, bytes) = (self.errors + 1, 0);
        }
        self.in_flight -= 1;
        self.pieces -= pieces;
        self.ring.push(token, done.written);
        keep(&mut self.spare, &self.ring, done.slot);
        bytes
    }

    /// Fails a request whose memory was taken away since it was popped, as the device of another
    /// queue was late with a request there: what was written to it has reached nobody.
    #[cold]
    fn answer_anew(&mut self, done: &mut Done) {
        let Slot { token, ref mut buffers, .. } = *done.slot;
        if self.ring.walk_again(token, buffers).is_err() {
            buffers.release();
        }
        done.revise(|request| self.device.refuse(self.index, request));
        self.mark(std::slice::from_ref(done), Extent::Whole);
    }

    /// Gives requests back that were completed outside a batch.
    pub(super) fn collect(&mut self) {
        self.push_collected();
        self.publish();
        self.leave();
    }

    /// Writes the used elements of what was completed outside a batch.
    fn push_collected(&mut self) {
        let mut done = std::mem::take(&mut self.collected);
        self.completions.collect(&mut done);
        if self.is_apart() {
            self.collected = done;
            return;
        }
        if self.provided.is_some() {
            self.return_memory(&mut done);
        }
        self.mark(&done, Extent::Whole);
        let (before, mut bytes) = (self.in_flight, 0);
        for done in done.drain(..) {
            bytes += self.push(done);
        }
        self.count(before - self.in_flight, bytes);
        self.collected = done;
    }

    /// Shows the driver what was pushed, and notifies it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self) {
        // What was read of lost memory may have been zeroes: nothing counts as done.
        if !self.loss.has_happened()
            && self.ring.publish()
            && let Some(call) = &self.call
        {
            call.send();
            bump(&self.counters.calls, 1);
        }
        if self.log.is_some() {
            self.tell_logged();
        }
    }

    // --- kicks ---------------------------------------------------------------------------------

    /// Asks the driver for kicks; `true` if there is work already.
    pub(super) fn enable_kicks(&mut self) -> bool {
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
    fn is_served(&self) -> bool {
        self.enabled && self.phase == Phase::Running
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
    fn fail(&mut self, error: RingError) -> Next {
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
    fn lose(&mut self) -> Next {
        self.phase = Phase::Broken;
        Next::Idle
    }
}

/// Keeps a slot for the next chain. One that still holds an older table of memory lets go of it:
/// a region that was removed is unmapped with its last request.
fn keep(spare: &mut Spare, ring: &Ring, mut slot: Box<Slot>) {
    slot.buffers.hold_only(ring.memory());
    if spare.len() < SPARE_SLOTS && slot.buffers.capacity() <= KEPT_PIECES {
        spare.push(slot);
    }
}
