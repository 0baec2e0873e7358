//! Answers back into a ring: used elements are written, and shown to the driver at once.

use std::sync::atomic::Ordering;

use super::counters::bump;
use super::queue::{Queue, Spare};
use super::queue_log::Extent;
use crate::request::{Batch, Done, Request, Slot};
use crate::ring::{Ring, RingError};

/// Slots kept for reuse: as many requests as one batch and its neighbours have in flight.
const SPARE_SLOTS: usize = 256;

/// Slots that have had a longer chain than this are not kept for reuse: for memory that a few chains
/// of a hostile guest took does not stay. No honest chain is as long.
const KEPT_PIECES: usize = 2048;

impl Queue {
    /// Gives back what the device answered and puts back what it left. Returns how the driver has
    /// broken the ring, if the chain that follows this batch is a bad one.
    #[inline]
    pub(super) fn settle(&mut self, batch: &mut Batch) -> Option<RingError> {
        self.lent = false;
        self.timing.returned(self.counters.metrics.as_deref());
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
        self.timing.published(self.counters.metrics.as_deref(), self.in_flight > 0);
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
        self.measure(batch.done_mut());
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
        self.measure(&mut done);
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
}

/// Keeps a slot for the next chain. One that still holds an older table of memory lets go of it:
/// a region that was removed is unmapped with its last request.
pub(super) fn keep(spare: &mut Spare, ring: &Ring, mut slot: Box<Slot>) {
    slot.buffers.hold_only(ring.memory());
    if spare.len() < SPARE_SLOTS && slot.buffers.capacity() <= KEPT_PIECES {
        spare.push(slot);
    }
}
