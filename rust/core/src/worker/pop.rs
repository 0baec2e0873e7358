//! Requests out of a ring: what there is to do for a queue is found out, and a batch popped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::push::keep;
use super::queue::{MOST_PIECES, Next, Phase, Queue};
use super::report::Began;
use crate::request::{Batch, Request, Slot};
use crate::ring::{Origin, RingError};

impl Queue {
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
        self.timing.begin(self.counters.metrics.as_deref());
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
            self.timing.popped(self.counters.metrics.as_deref(), batch, available);
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
    pub(super) fn is_finishing(&self) -> bool {
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
        if self.waits_for_pages() {
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

    /// Whether pages of the ring may be missing.
    pub(super) fn waits_for_pages(&self) -> bool {
        self.ring.memory().awaits_pages() && !self.has_pages
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
        (slot.popped, _) = (0, slot.take_operation());
        self.forget_since(slot.token.id);
        if slot.resubmitted {
            self.ring.unpop_unfinished(slot.token, slot.sequence);
        } else {
            self.ring.unpop(slot.token);
        }
        self.in_flight -= 1;
        self.pieces -= slot.pieces;
        keep(&mut self.spare, &self.ring, slot);
    }
}
