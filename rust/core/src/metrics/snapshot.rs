//! What was measured of a back-end, at some moment.

use super::histogram::Distribution;
use super::stage::Stage;

/// What was measured of a back-end since it started. The numbers are read one by one while they
/// change, so those of a queue may be of moments that are a batch apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Front-ends that have connected.
    pub sessions: u64,
    /// Requests and rings that no device could work with.
    pub guest_errors: u64,
    /// By the vring's number.
    pub queues: Vec<QueueSnapshot>,
}

/// What was measured of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// Notifications heard from the driver.
    pub kicks: u64,
    /// Notifications sent to it.
    pub calls: u64,
    /// Requests in the device's hands.
    pub in_flight: u32,
    /// The rest.
    pub measured: Measured,
}

/// What is measured of a queue only if that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// By the device's operations.
    pub operations: Vec<OperationSnapshot>,
    /// Nanoseconds that timed batches have spent in each stage, in the order of [`Stage::ALL`].
    pub stages: [Distribution; Stage::ALL.len()],
    /// Requests that were popped together.
    pub batch_size: Distribution,
    /// Requests that the ring had when its worker looked last.
    pub available: u32,
    /// How long the oldest of the requests in flight has been that; 0 without one.
    pub oldest_nanoseconds: u64,
}

/// What was measured of one operation on a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationSnapshot {
    /// Its name.
    pub name: &'static str,
    /// Requests that were done.
    pub done: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes of data of those that were done.
    pub bytes: u64,
    /// From when requests of timed batches were popped until they were given back.
    pub nanoseconds: Distribution,
}

impl Snapshot {
    /// The operations of all queues.
    pub fn operations(&self) -> impl Iterator<Item = &OperationSnapshot> {
        self.queues.iter().flat_map(|queue| &queue.measured.operations)
    }

    /// All values of a name, of all queues together: an operation or a stage, in nanoseconds;
    /// "request", of all operations; "batch_size". `None`: there is no such name.
    pub fn distribution(&self, name: &str) -> Option<Distribution> {
        let stage = Stage::ALL.iter().position(|stage| stage.name() == name);
        let is_named = |of: &&OperationSnapshot| name == "request" || of.name == name;
        let mut sum = Distribution::default();
        if let Some(stage) = stage {
            self.queues.iter().for_each(|queue| sum.merge(&queue.measured.stages[stage]));
        } else if name == "batch_size" {
            self.queues.iter().for_each(|queue| sum.merge(&queue.measured.batch_size));
        } else if self.operations().any(|of| is_named(&of)) {
            self.operations().filter(is_named).for_each(|of| sum.merge(&of.nanoseconds));
        } else {
            return None;
        }
        Some(sum)
    }

    /// All names that [`distribution`](Self::distribution) takes.
    pub fn names(&self) -> Vec<&'static str> {
        let first = self.queues.first().map(|queue| &queue.measured.operations);
        let operations = first.into_iter().flatten().map(|of| of.name);
        let stages = Stage::ALL.iter().map(|stage| stage.name());
        let mut names: Vec<_> = ["request", "batch_size"].into_iter().collect();
        names.extend(operations.filter(|&name| name != "request"));
        names.extend(stages);
        names
    }
}
