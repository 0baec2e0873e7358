//! What is measured of one queue.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::histogram::Histogram;
use super::snapshot::{Measured, OperationSnapshot};
use super::stage::Stage;

/// What is measured of one queue as long as its back-end runs. The thread that has the queue's lock
/// writes, with plain adds; any other reads.
#[derive(Debug)]
pub(crate) struct QueueMetrics {
    operations: Box<[Operation]>,
    stages: [Histogram; Stage::ALL.len()],
    batch_size: Histogram,
    available: AtomicU32,
    /// Since when the device has a batch, on the [clock](super::now); 0: it has none.
    lent: AtomicU64,
    /// Since when it keeps requests whose own times are not known; 0: it does not.
    kept: AtomicU64,
    /// When the request of each id was popped, of a device that keeps some; 0: none of it is in
    /// flight.
    since: Box<[AtomicU64]>,
}

/// What was measured of one operation of the device.
#[derive(Debug)]
struct Operation {
    name: &'static str,
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: Histogram,
}

/// Requests of one operation that went the same way and are given back together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) operation: u8,
    pub(crate) failed: bool,
    /// When they were popped; 0: not known.
    pub(crate) popped: u64,
}

impl QueueMetrics {
    /// For a device that has these operations, and rings of at most `size` entries.
    pub(crate) fn new(operations: &'static [&'static str], size: u16) -> Self {
        let operation = |&name| Operation {
            name,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            nanoseconds: Histogram::default(),
        };
        Self {
            operations: operations.iter().map(operation).collect(),
            stages: Default::default(),
            batch_size: Histogram::default(),
            available: AtomicU32::new(0),
            lent: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            since: (0..size).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts the time that a batch has spent in a stage.
    #[inline]
    pub(crate) fn spent(&self, stage: Stage, nanoseconds: u64) {
        self.stages[stage as usize].add(nanoseconds, 1);
    }

    /// A batch was popped of `size` requests; so many were available.
    #[inline]
    pub(crate) fn popped(&self, size: usize, available: u16) {
        self.batch_size.add(size as u64, 1);
        self.found(available);
    }

    /// So many requests are available.
    #[inline]
    pub(crate) fn found(&self, available: u16) {
        self.available.store(available.into(), Ordering::Relaxed);
    }

    /// The device has a batch since then; 0: none.
    #[inline]
    pub(crate) fn set_lent(&self, since: u64) {
        self.lent.store(since, Ordering::Relaxed);
    }

    /// The device keeps requests since then; 0: it does not, or their own times are known.
    pub(crate) fn set_kept(&self, since: u64) {
        self.kept.store(since, Ordering::Relaxed);
    }

    /// The request with this id is in flight since `popped`; 0: no more.
    #[inline]
    pub(crate) fn set_since(&self, id: u16, popped: u64) {
        if let Some(since) = self.since.get(usize::from(id)) {
            since.store(popped, Ordering::Relaxed);
        }
    }

    /// Nothing is in flight any more, and nothing available.
    pub(crate) fn end(&self) {
        self.found(0);
        self.set_lent(0);
        self.set_kept(0);
        self.since.iter().for_each(|since| since.store(0, Ordering::Relaxed));
    }

    /// `count` requests are given back, with so many bytes of data together.
    #[inline]
    pub(crate) fn give_back(&self, given: Given, count: u64, bytes: u64, now: u64) {
        let bump = |counter: &AtomicU64, by: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        let Some(operation) = self.operations.get(usize::from(given.operation)) else { return };
        if given.failed {
            bump(&operation.failed, count);
        } else {
            bump(&operation.done, count);
            bump(&operation.bytes, bytes);
        }
        if given.popped != 0 {
            operation.nanoseconds.add(now.saturating_sub(given.popped), count);
        }
    }

    /// What was measured so far, with `now` on the clock.
    pub(crate) fn read(&self, now: u64) -> Measured {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let operation = |of: &Operation| OperationSnapshot {
            name: of.name,
            done: read(&of.done),
            failed: read(&of.failed),
            bytes: read(&of.bytes),
            nanoseconds: of.nanoseconds.read(),
        };
        let oldest = self
            .since
            .iter()
            .chain([&self.lent, &self.kept])
            .map(read)
            .filter(|&since| since != 0)
            .min();
        Measured {
            operations: self.operations.iter().map(operation).collect(),
            stages: Stage::ALL.map(|stage| self.stages[stage as usize].read()),
            batch_size: self.batch_size.read(),
            available: self.available.load(Ordering::Relaxed),
            oldest_nanoseconds: oldest.map_or(0, |oldest| now.saturating_sub(oldest)),
        }
    }
}
