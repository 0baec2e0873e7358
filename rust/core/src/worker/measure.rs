//! What is counted of the requests that are given back, where anything is.

use super::queue::Queue;
use crate::metrics::Given;
use crate::request::Done;

impl Queue {
    /// Counts what is about to be given back, by operation.
    #[inline]
    pub(super) fn measure(&mut self, done: &mut [Done]) {
        let Some(metrics) = &self.counters.metrics else { return };
        if done.is_empty() {
            return;
        }
        let keeps = self.timing.keeps();
        if keeps && done.len() >= self.in_flight as usize {
            metrics.set_kept(0);
        }
        let mut time = 0;
        let (mut last, mut count, mut bytes) = (Given::default(), 0, 0);
        for done in done {
            if keeps {
                metrics.set_since(done.slot.token.id, 0);
            }
            let buffers = &done.slot.buffers;
            // Such a request fails when it is pushed.
            let is_lost = !buffers.is_in(self.ring.memory()) && buffers.is_detached();
            let moved = buffers.readable().len() + u64::from(done.written);
            let failed = is_lost || done.slot.is_failed();
            let popped = std::mem::take(&mut done.slot.popped);
            let given = Given { operation: done.slot.take_operation(), failed, popped };
            if given != last && count > 0 {
                metrics.give_back(last, count, bytes, time);
                (count, bytes) = (0, 0);
            }
            if popped != 0 && time == 0 {
                time = self.timing.giving_back();
            }
            (last, count) = (given, count + 1);
            bytes += moved.saturating_sub(self.framing);
        }
        metrics.give_back(last, count, bytes, time);
    }

    /// The request with this id went back in another way.
    pub(super) fn forget_since(&self, id: u16) {
        if let Some(metrics) = &self.counters.metrics {
            metrics.set_since(id, 0);
        }
    }
}
