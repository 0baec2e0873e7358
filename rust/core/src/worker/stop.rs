//! The end of a queue: what the device holds of it goes back to the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::queue::{MOST_PIECES, Queue};
use super::timing::Timing;
use crate::memory::{Buffers, GuestSlice};
use crate::request::{Batch, CompletionQueue, Request, Slot};
use crate::ring_position::RingPosition;
use crate::sys::received_fd::ReceivedFd;

/// What is left of a queue that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Where it stood.
    pub(crate) base: RingPosition,
    /// Still registered with the worker.
    pub(crate) kick: Option<ReceivedFd>,
}

/// Requests that a device did not give back in time.
#[derive(Debug, Default)]
pub(crate) struct LateRequests {
    /// How many.
    pub(crate) requests: u32,
    /// They are recorded: if their ring is started again they come again.
    pub(crate) recorded: bool,
    /// Where what they read is mapped, if the driver has left their chains as they were.
    pub(crate) reads: Vec<GuestSlice>,
}

impl Queue {
    /// Gives back the buffers that the device holds and does not touch now. The ring steps back
    /// over those that were popped last; behind one that stays they are completed empty.
    pub(super) fn return_unused(&mut self) {
        self.collect();
        while let Some(token) = self.ring.last_popped()
            && self.completions.revoke(token.id)
        {
            self.mark_chain(token);
            self.ring.unpop(token);
            self.forget_since(token.id);
            self.in_flight -= 1;
        }
        if self.is_apart() {
            // No element can be written: what is left stays in flight.
            return self.forget_pieces_if_idle();
        }
        for token in self.ring.tokens_in_flight() {
            if self.completions.revoke(token.id) {
                self.mark_chain(token);
                self.ring.push(token, 0);
                self.forget_since(token.id);
                self.in_flight -= 1;
            }
        }
        if self.receives {
            while let Some(token) = self.ring.take_unfinished() {
                self.mark_chain(token);
                self.ring.push(token, 0);
            }
        }
        self.forget_pieces_if_idle();
        self.counters.in_flight.store(self.in_flight, Ordering::Relaxed);
        self.publish();
    }

    /// Refuses what the device completes from now on. Returns what it has not given back, and what
    /// it may still read.
    pub(super) fn close(&mut self) -> LateRequests {
        self.collect();
        self.timing = Timing::default();
        self.completions.close();
        let (requests, recorded) = (self.in_flight, self.is_recorded());
        let mut late = LateRequests { requests, recorded, ..LateRequests::default() };
        let mut buffers = Buffers::default();
        if self.ring.memory().awaits_pages() {
            // The chains may be elsewhere by now, and nobody waits for their pages here.
            return late;
        }
        for token in self.ring.tokens_in_flight() {
            // A driver that has changed its chains meanwhile may have made them longer.
            if late.reads.len() >= MOST_PIECES as usize {
                break;
            }
            if self.ring.walk_again(token, &mut buffers).is_ok() {
                late.reads.extend(buffers.readable().parts(0, u64::MAX));
            }
        }
        late
    }

    /// Whether all that is in flight may be left unfinished: it is recorded, the device says so of
    /// each request, and it has none in a callback, nor the kernel in a call.
    pub(super) fn may_be_left(&mut self) -> bool {
        let is_busy = self.lent || self.completions.kernel_holds().any();
        !is_busy && self.is_recorded() && self.all_can_be_left()
    }

    fn all_can_be_left(&mut self) -> bool {
        // What is made here of the chains answers nobody.
        let nobody = CompletionQueue::new(0, Arc::clone(&self.doorbell));
        nobody.close();
        let tokens = self.ring.tokens_in_flight();
        tokens.into_iter().all(|token| {
            let mut slot = Slot::new(self.index, Arc::clone(&nobody));
            self.ring.walk_again(token, &mut slot.buffers).is_ok()
                && self.device.can_be_left(self.index, &Request::new(slot))
        })
    }

    /// Fails what the device has not given back, once it is [closed](Self::close): an error is
    /// written for each, and it goes back to the driver.
    pub(super) fn fail_rest(&mut self) {
        // What the requests read stays noted where the device's own completions are.
        self.completions = CompletionQueue::new(0, Arc::clone(&self.doorbell));
        let (mut batch, mut pieces) = (Batch::default(), 0);
        // One by one: together they may describe more than anybody has memory for.
        for token in self.ring.tokens_in_flight() {
            let mut slot = Slot::new(self.index, Arc::clone(&self.completions));
            // A chain that the driver has changed since is not written to.
            if pieces > MOST_PIECES || self.ring.walk_again(token, &mut slot.buffers).is_err() {
                slot.buffers.release();
            }
            pieces += slot.buffers.pieces() as u32;
            slot.token = token;
            self.fail_one(slot, &mut batch);
        }
        self.pieces = 0;
        self.settle(&mut batch);
    }

    fn fail_one(&mut self, slot: Box<Slot>, batch: &mut Batch) {
        batch.push(Request::new(slot));
        if self.ring.memory().needs_resolving() {
            self.provide(batch, &AtomicU32::new(0));
        }
        while let Some(request) = batch.next() {
            let written = self.device.refuse(self.index, &request);
            batch.fail(request, written);
        }
        if self.provided.is_some() {
            self.take_back(batch);
        }
        self.push_done(batch);
    }

    /// Ends the queue.
    pub(super) fn end(self: Box<Self>) -> Ended {
        let base = self.ring.position();
        self.counters.in_flight.store(0, Ordering::Relaxed);
        if let Some(metrics) = &self.counters.metrics {
            metrics.end();
        }
        // The ring is unmapped with the rest.
        let Self { kick, .. } = *self;
        Ended { base, kick }
    }
}
