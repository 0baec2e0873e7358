//! A queue whose buffers the device takes by itself, when it has something to put into them.

use std::sync::Arc;

use super::cell::QueueCell;
use super::queue::Queue;
use super::report::Broken;
use crate::device::{QueueHandle, SendData, TooLarge};
use crate::request::{Batch, Publish, Request, ScopeId, publish_later};
use crate::ring::RingError;

/// A device's handle on a started queue.
pub(crate) struct ReceiveHandle(pub(crate) Arc<QueueCell>);

/// Buffers that a device wants to fill.
struct Wanted<'a> {
    data: &'a dyn SendData,
    bytes: u64,
    most: u16,
    count_at: Option<u64>,
}

/// What became of them.
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

impl QueueHandle for ReceiveHandle {
    fn take(&self) -> Option<Request> {
        if self.0.completions().is_closed() {
            return None;
        }
        let mut guard = self.0.queue.lock();
        let queue = guard.as_deref_mut()?;
        match queue.take_one(&self.0) {
            Ok(request) => request,
            Err(error) => {
                let (report, broke) = (Arc::clone(&queue.report), queue.break_with(error));
                drop(guard);
                if let Some(error) = broke {
                    report.queue_broken(self.0.index(), Broken::Driver(error));
                }
                None
            }
        }
    }

    fn is_in_use(&self) -> bool {
        self.0.queue.is_locked()
    }

    fn send(&self, data: &dyn SendData, most: u16, count_at: Option<u64>) -> Result<u16, TooLarge> {
        // In a fork of this process the lock may be a thread's that is not there.
        if self.0.completions().is_closed() {
            return Ok(0);
        }
        let wanted = Wanted { data, bytes: data.len(), most, count_at };
        let mut guard = self.0.queue.lock();
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
                let (report, broke) = (Arc::clone(&queue.report), queue.break_with(error));
                drop(guard);
                if let Some(error) = broke {
                    report.queue_broken(self.0.index(), Broken::Driver(error));
                }
                Ok(0)
            }
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
        // A driver that makes such chains available without end does not keep the device.
        for _ in 0..=self.ring.size() {
            let Some(available) = self.ready()? else { return Ok(None) };
            if available == 0 {
                break;
            }
            self.pop_in_place(cell, batch)?;
            self.refuse_too_long(batch);
            let request = batch.next();
            if request.is_some() {
                return Ok(request);
            }
            // Its memory could not be reached, or it was too long: it was answered so.
            self.push_done(batch);
            self.publish();
        }
        self.want_more(cell, 0);
        Ok(None)
    }

    fn send(&mut self, cell: &QueueCell, wanted: &Wanted<'_>) -> Sent {
        let mut batch = std::mem::take(&mut self.own_batch);
        let sent = (0..=self.ring.size()).find_map(|_| {
            let sent = self.try_send(cell, wanted, &mut batch);
            if sent.is_none() {
                // Buffers that could not be reached were answered so, and the ring goes on behind
                // them.
                self.push_done(&mut batch);
                self.publish();
            }
            sent
        });
        self.own_batch = batch;
        sent.unwrap_or_else(|| {
            // A driver that makes such buffers available without end does not keep the device.
            self.want_more(cell, 0);
            Sent::TooFew
        })
    }

    /// `None`: some of the buffers could not be reached.
    fn try_send(
        &mut self,
        cell: &QueueCell,
        wanted: &Wanted<'_>,
        batch: &mut Batch,
    ) -> Option<Sent> {
        let available = match self.ready() {
            Ok(Some(available)) => available,
            Ok(None) => return Some(Sent::TooFew),
            Err(error) => return Some(Sent::Broke(error)),
        };
        let (mut count, mut room) = (0, 0);
        while count < available.min(wanted.most) && (room < wanted.bytes || count == 0) {
            if let Err(error) = self.pop_in_place(cell, batch) {
                self.put_all_back(batch);
                return Some(Sent::Broke(error));
            }
            let Some(request) = batch.last() else { break };
            (count, room) = (count + 1, room + request.writable().len());
        }
        if batch.has_done() {
            self.put_all_back(batch);
            return None;
        }
        if room >= wanted.bytes && count > 0 {
            self.fill(batch, wanted, count);
            return Some(Sent::Whole(count));
        }
        self.put_all_back(batch);
        if count > 0 && (count == wanted.most || count == self.ring.size()) {
            let bytes = wanted.bytes;
            return Some(Sent::Never(TooLarge { bytes, room, buffers: count }));
        }
        self.want_more(cell, available);
        Some(Sent::TooFew)
    }

    /// Pops one chain and gives its buffers their places.
    fn pop_in_place(&mut self, cell: &QueueCell, batch: &mut Batch) -> Result<(), RingError> {
        let mut error = self.pop_batch(1, batch);
        if self.ring.memory().needs_resolving() {
            error = self.finish_walks(batch).or(error);
            // What was put back, as somebody waits for the lock, is not there this time.
            self.provide(batch, &cell.called);
        } else if self.faulty {
            self.refuse_faulty(batch);
        }
        error.map_or(Ok(()), Err)
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
        self.push_done(batch);
    }

    /// Has the device told when there are more than `available` chains.
    fn want_more(&mut self, cell: &QueueCell, available: u16) {
        if self.want_more_than(available) {
            cell.doorbell.ring();
        }
    }

    fn break_with(&mut self, error: RingError) -> Option<RingError> {
        match self.fail(error) {
            super::queue::Next::Broke(error) => Some(error),
            _ => None,
        }
    }
}
