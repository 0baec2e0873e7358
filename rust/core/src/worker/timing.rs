//! When the clock is looked at on a batch's way, where anything is measured.
//!
//! The clock is read four times a batch: before and after it is popped, when the device has
//! returned, and when it was published. Where batches take less than [`SHORT`] each, a few of those
//! that follow a timed one are not timed but counted alone, so that the clock costs about a hundredth at
//! most; the first after a sleep always is.

use crate::metrics::{QueueMetrics, Stage, expect_interpreter, now, take_entered};
use crate::request::Batch;

/// Nanoseconds that a batch has to take so that the next one is timed too.
const SHORT: u64 = 10_000;

/// Most batches in a row that are not timed.
const MOST_SKIPPED: u64 = 15;

/// Where the measuring of a queue stands.
#[derive(Debug, Default)]
pub(super) struct Timing {
    /// When the present batch was begun to be popped, and when that was done; 0: it is not timed.
    begun: u64,
    popped: u64,
    /// When the device has returned.
    returned: u64,
    /// The last look at the clock.
    last: u64,
    /// The device keeps requests past their batches: each is noted with its time.
    keeps: bool,
    /// Batches that are not timed before the next is.
    skip: u64,
}

impl Timing {
    /// A batch is begun to be popped.
    #[inline]
    pub(super) fn begin(&mut self, metrics: Option<&QueueMetrics>) {
        if metrics.is_none() {
            return;
        }
        (self.begun, self.popped) = (0, 0);
        if self.skip > 0 {
            self.skip -= 1;
        } else {
            self.begun = now();
            self.last = self.begun;
        }
    }

    /// It was popped, of so many requests that were available.
    #[inline]
    pub(super) fn popped(
        &mut self,
        metrics: Option<&QueueMetrics>,
        batch: &mut Batch,
        available: u16,
    ) {
        let Some(metrics) = metrics else { return };
        metrics.popped(batch.len(), available);
        if self.begun != 0 {
            self.popped = now();
            self.last = self.popped;
            metrics.spent(Stage::Ring, self.popped.saturating_sub(self.begun));
            expect_interpreter();
        }
        metrics.set_lent(self.last);
        if self.popped == 0 && !self.keeps {
            return;
        }
        for slot in batch.slots_mut() {
            slot.popped = self.popped;
            if self.keeps {
                metrics.set_since(slot.token.id, self.last);
            }
        }
    }

    /// The device has returned.
    #[inline]
    pub(super) fn returned(&mut self, metrics: Option<&QueueMetrics>) {
        let Some(metrics) = metrics.filter(|_| self.popped != 0) else { return };
        self.returned = now();
        self.last = self.returned;
        match take_entered() {
            Some(entered) => {
                metrics.spent(Stage::GilWait, entered.saturating_sub(self.popped));
                metrics.spent(Stage::Callback, self.returned.saturating_sub(entered));
            }
            None => metrics.spent(Stage::Backend, self.returned.saturating_sub(self.popped)),
        }
    }

    /// What was answered was published; `kept`: the device has requests still.
    #[inline]
    pub(super) fn published(&mut self, metrics: Option<&QueueMetrics>, kept: bool) {
        let Some(metrics) = metrics else { return };
        metrics.set_lent(0);
        if kept && !self.keeps {
            self.keeps = true;
            metrics.set_kept(self.last);
        }
        if self.popped == 0 {
            return;
        }
        let published = now();
        metrics.spent(Stage::Publish, published.saturating_sub(self.returned));
        let whole = published.saturating_sub(self.begun).max(1);
        self.skip = (SHORT / whole).min(MOST_SKIPPED);
        (self.begun, self.popped, self.last) = (0, 0, published);
    }

    /// The worker goes to sleep: the next batch is timed.
    pub(super) fn rest(&mut self) {
        self.skip = 0;
    }

    /// Whether each request is noted with its time.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// The time at which what comes back now is given back.
    pub(super) fn giving_back(&mut self) -> u64 {
        if self.popped == 0 {
            // Outside a batch, or behind one that is not timed.
            return now();
        }
        self.last
    }
}
