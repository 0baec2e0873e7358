//! Requests that were popped together.

use std::collections::VecDeque;

use super::Request;
use super::completion::{Done, Slot};
use crate::memory::Buffers;
use crate::token::Token;

/// Requests of one queue that were popped together, in the order of the available ring.
#[derive(Debug, Default)]
pub struct Batch {
    pending: VecDeque<Request>,
    done: Vec<Done>,
}

impl Batch {
    /// Takes the next request.
    #[inline]
    #[allow(clippy::should_implement_trait)] // An iterator would borrow the batch for its life.
    pub fn next(&mut self) -> Option<Request> {
        self.pending.pop_front()
    }

    /// Requests not yet taken.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of the request that [`next`](Self::next) takes, both directions together; 0 if there
    /// is none.
    pub fn next_bytes(&self) -> u64 {
        self.pending.front().map_or(0, Request::bytes)
    }

    /// Whether all requests were taken.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Completes a request of this batch on the worker's own thread, with no lock. It is seen by
    /// the driver when the batch ends. `written` as in [`Request::complete`].
    #[inline]
    pub fn complete(&mut self, request: Request, written: u32) {
        self.done.push(request.into_done(written));
    }

    /// As [`complete`](Self::complete), of a request that failed.
    pub fn fail(&mut self, request: Request, written: u32) {
        request.mark_failed();
        self.complete(request, written);
    }

    pub(crate) fn push(&mut self, request: Request) {
        self.pending.push_back(request);
    }

    /// The buffers of the requests that were not taken.
    pub(crate) fn buffers_mut(&mut self) -> impl Iterator<Item = &mut Buffers> {
        self.chains_mut().map(|(_, buffers)| buffers)
    }

    /// Waits until all memory of the requests that were not taken is there; `false` if it was taken
    /// away meanwhile.
    pub(crate) fn bring_in(&mut self) -> bool {
        self.buffers_mut().all(|buffers| buffers.bring_in())
    }

    /// Takes all that another batch has.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.pending.append(&mut other.pending);
        self.done.append(&mut other.done);
    }

    /// The last request that was not taken.
    pub(crate) fn last(&self) -> Option<&Request> {
        self.pending.back()
    }

    /// Whether requests were answered.
    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    pub(crate) fn done_mut(&mut self) -> &mut Vec<Done> {
        &mut self.done
    }

    /// Takes those of the requests that are not yet taken which `is_wanted` picks.
    pub(crate) fn take_if(&mut self, is_wanted: impl Fn(&Request) -> bool) -> Vec<Request> {
        let mut taken = Vec::new();
        if !self.pending.iter().any(&is_wanted) {
            return taken;
        }
        for _ in 0..self.pending.len() {
            match self.pending.pop_front() {
                Some(request) if is_wanted(&request) => taken.push(request),
                Some(request) => self.pending.push_back(request),
                None => break,
            }
        }
        taken
    }

    /// Takes back the answer to the request with this token, if it has one.
    pub(crate) fn take_answer(&mut self, token: Token) -> Option<Done> {
        let place = self.done.iter().position(|done| done.slot.token == token)?;
        Some(self.done.remove(place))
    }

    pub(crate) fn take_done(&mut self) -> std::vec::Drain<'_, Done> {
        self.done.drain(..)
    }

    /// Drops all requests.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.done.clear();
    }

    /// The ids and the buffers of the requests that were not taken.
    pub(crate) fn chains_mut(&mut self) -> impl Iterator<Item = (u16, &mut Buffers)> {
        self.slots_mut().map(|slot| (slot.token.id, &mut slot.buffers))
    }

    /// The slots of the requests that were not taken.
    pub(crate) fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.pending.iter_mut().filter_map(Request::slot_mut)
    }

    /// The slots of the requests that were not taken, from the one numbered `first` on, last
    /// first.
    pub(crate) fn take_left(&mut self, first: usize) -> impl Iterator<Item = Box<Slot>> + '_ {
        self.pending.drain(first..).rev().map(Request::into_slot)
    }
}
