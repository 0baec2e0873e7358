//! A queue whose buffers the device takes by itself, when it has something to put into them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::cell::QueueCell;
use super::queue::Queue;
use super::queue_log::Extent;
use super::report::Broken;
use crate::device::{QueueHandle, SendData, TooLarge};
use crate::request::{Batch, Publish, Request, ScopeId, publish_later};
use crate::ring::RingError;

/// The most chains that one call gives back because they cannot be used, or are in front of such.
/// The queue is locked as long, and the interpreter may be; the device is called again for the rest.
const MOST_GIVEN_BACK: u16 = 64;

/// A device's handle on a started queue.
pub(crate) struct ReceiveHandle(pub(crate) Arc<QueueCell>);

/// Buffers that a device wants to fill.
struct Wanted<'a> {
    data: &'a dyn SendData,
    bytes: u64,
    most: u16,
    count_at: Option<u64>,
}

/// What became of a `send`.
enum Sent {
    /// So many buffers were filled.
    Whole(u16),
    /// There are not enough now.
    TooFew,
    /// They can never be enough.
    Never(TooLarge),
    /// The ring cannot be used any more.
    Broke(RingError),
}

/// What became of a chain that was to be popped.
enum Popped {
    /// The chain is in the batch, and has room for so many bytes.
    Placed(u64),
    /// Its memory cannot be reached, or it is too long: the chain is in the batch, answered.
    Refused,
    /// The chain stays in the ring: the control plane waits for the lock.
    None,
}

impl QueueHandle for ReceiveHandle {
    fn take(&self) -> Option<Request> {
        let mut guard = self.0.lock_here()?;
        let queue = guard.as_deref_mut()?;
        match queue.take_one(&self.0) {
            Ok(request) => request,
            Err(error) => {
                self.0.break_with(guard, error);
                None
            }
        }
    }

    fn may_wait(&self) -> bool {
        self.0.resolves.load(Ordering::Relaxed) || self.0.queue.is_locked()
    }

    fn send(&self, data: &dyn SendData, most: u16, count_at: Option<u64>) -> Result<u16, TooLarge> {
        let wanted = Wanted { data, bytes: data.len(), most, count_at };
        let Some(mut guard) = self.0.lock_here() else { return Ok(0) };
        let Some(queue) = guard.as_deref_mut() else { return Ok(0) };
        match queue.send(&self.0, &wanted) {
            Sent::Whole(buffers) => {
                if publish_later(|| Arc::clone(&self.0) as Arc<dyn Publish>).is_none() {
                    queue.publish();
                }
                Ok(buffers)
            }
            Sent::TooFew => Ok(0),
            Sent::Never(error) => Err(error),
            Sent::Broke(error) => {
                self.0.break_with(guard, error);
                Ok(0)
            }
        }
    }
}

impl QueueCell {
    /// The driver has broken the ring: that is reported, without the lock, if it is news.
    #[cold]
    fn break_with(&self, mut guard: MutexGuard<'_, Option<Box<Queue>>>, error: RingError) {
        let Some(queue) = guard.as_deref_mut() else { return };
        let (report, broke) = (Arc::clone(&queue.report), queue.break_with(error));
        drop(guard);
        if let Some(error) = broke {
            report.queue_broken(self.index(), Broken::Driver(error));
        }
    }
}

impl Publish for QueueCell {
    fn publish(&self, _scope: ScopeId) {
        self.with(Queue::publish);
    }
}

impl Queue {
    /// Takes one chain, with its memory in place.
    fn take_one(&mut self, cell: &QueueCell) -> Result<Option<Request>, RingError> {
        let mut batch = std::mem::take(&mut self.own_batch);
        let taken = self.try_take(cell, &mut batch);
        self.own_batch = batch;
        taken
    }

    fn try_take(
        &mut self,
        cell: &QueueCell,
        batch: &mut Batch,
    ) -> Result<Option<Request>, RingError> {
        for _ in 0..MOST_GIVEN_BACK {
            let Some(available) = self.ready()? else { return Ok(None) };
            let popped = if available > 0 { self.pop_in_place(cell, batch)? } else { Popped::None };
            match popped {
                Popped::Placed(_) => return Ok(batch.next()),
                Popped::Refused => self.answer_all_empty(batch),
                Popped::None => break,
            }
        }
        self.want_more(cell, 0);
        Ok(None)
    }

    fn send(&mut self, cell: &QueueCell, wanted: &Wanted<'_>) -> Sent {
        let mut batch = std::mem::take(&mut self.own_batch);
        let mut given_back = 0;
        let mut sent = None;
        while sent.is_none() && given_back < MOST_GIVEN_BACK {
            sent = self.try_send(cell, wanted, &mut batch, &mut given_back);
            if sent.is_none() {
                // The ring goes on behind the buffers that could not be reached.
                self.answer_all_empty(&mut batch);
            }
        }
        self.own_batch = batch;
        sent.unwrap_or_else(|| {
            self.want_more(cell, 0);
            Sent::TooFew
        })
    }

    /// `None`: some of the buffers could not be reached, and there are too few without them. All
    /// that were popped are added to `given_back`.
    fn try_send(
        &mut self,
        cell: &QueueCell,
        wanted: &Wanted<'_>,
        batch: &mut Batch,
        given_back: &mut u16,
    ) -> Option<Sent> {
        let available = match self.ready() {
            Ok(Some(available)) => available,
            Ok(None) => return Some(Sent::TooFew),
            Err(error) => return Some(Sent::Broke(error)),
        };
        let (mut count, mut room, mut left) = (0, 0, available);
        let mut refused = *given_back;
        let is_short = |count, room| count < wanted.most && (room < wanted.bytes || count == 0);
        while left > 0 && refused < MOST_GIVEN_BACK && is_short(count, room) {
            match self.pop_in_place(cell, batch) {
                Ok(Popped::Placed(more)) => (count, room) = (count + 1, room + more),
                Ok(Popped::Refused) => refused += 1,
                Ok(Popped::None) if self.is_full() => break,
                Ok(Popped::None) => return Some(self.send_later(cell, batch)),
                Err(error) => {
                    self.let_go(batch);
                    return Some(Sent::Broke(error));
                }
            }
            left -= 1;
        }
        if room >= wanted.bytes && count > 0 {
            self.fill(batch, wanted, count);
            return Some(Sent::Whole(count));
        }
        if batch.has_done() {
            *given_back = refused.saturating_add(count);
            return None;
        }
        // With nothing else in flight more buffers would not help: these have too many pieces.
        let full = self.is_full() && self.in_flight == u32::from(count);
        self.put_all_back(batch);
        if count > 0 && (count == wanted.most || count == self.ring.size() || full) {
            let bytes = wanted.bytes;
            return Some(Sent::Never(TooLarge { bytes, room, buffers: count }));
        }
        // Where pieces that others have are missing, there are buffers enough once they are back.
        self.want_more(cell, if self.is_full() { 0 } else { available });
        Some(Sent::TooFew)
    }

    /// Puts a `send` off: the control plane waits for the lock, and goes first. The device tries
    /// again when it is told.
    fn send_later(&mut self, cell: &QueueCell, batch: &mut Batch) -> Sent {
        self.let_go(batch);
        self.want_more(cell, 0);
        Sent::TooFew
    }

    /// Pops one chain and gives its buffers their places.
    fn pop_in_place(&mut self, cell: &QueueCell, batch: &mut Batch) -> Result<Popped, RingError> {
        let mut one = std::mem::take(&mut self.single);
        let mut error = self.pop_batch(1, &mut one);
        if self.ring.memory().needs_resolving() {
            error = self.finish_walks(&mut one).or(error);
            self.provide(&mut one, &cell.called);
        } else if self.faulty {
            self.put_back_untranslated(&mut one);
            self.refuse_faulty(&mut one);
        }
        self.refuse_too_long(&mut one);
        if self.ring.memory().awaits_pages() && !one.bring_in() {
            self.put_all_back(&mut one);
        }
        let popped = match one.last() {
            Some(request) => Popped::Placed(request.writable().len()),
            None if one.has_done() => Popped::Refused,
            None => Popped::None,
        };
        batch.append(&mut one);
        self.single = one;
        error.map_or(Ok(popped), Err)
    }

    /// Puts what was popped back into the ring, or answers it where that cannot be done.
    fn let_go(&mut self, batch: &mut Batch) {
        if batch.has_done() {
            self.answer_all_empty(batch);
        } else {
            self.put_all_back(batch);
        }
    }

    /// Answers what was popped with no byte written. The ring cannot step back over buffers that
    /// could not be reached, so those before them go back like that as well.
    fn answer_all_empty(&mut self, batch: &mut Batch) {
        while let Some(request) = batch.next() {
            batch.complete(request, 0);
        }
        self.push_done(batch);
        self.publish();
    }

    fn put_all_back(&mut self, batch: &mut Batch) {
        let slots: Vec<_> = batch.take_left(0).collect();
        slots.into_iter().for_each(|slot| self.put_back(slot));
    }

    /// Fills the buffers and answers them.
    fn fill(&mut self, batch: &mut Batch, wanted: &Wanted<'_>, count: u16) {
        let number = count.to_le_bytes();
        let mut done = 0;
        while let Some(request) = batch.next() {
            let buffer = request.writable();
            let len = buffer.len().min(wanted.bytes - done);
            wanted.data.copy_to(done, buffer.parts(0, len));
            for (at, byte) in wanted.count_at.into_iter().flat_map(|at| (at..).zip(&number)) {
                if (done..done + len).contains(&at) {
                    buffer.write_at(at - done, &[*byte]);
                }
            }
            done += len;
            // A chain describes less than 4 GiB.
            batch.complete(request, len as u32);
        }
        if self.provided.is_some() {
            self.take_back(batch);
        }
        self.push_written(batch, Extent::Written);
    }

    /// Has the device told when there are more than `available` chains.
    fn want_more(&mut self, cell: &QueueCell, available: u16) {
        if self.want_more_than(available) {
            cell.doorbell.ring();
        }
    }
}
