//! What the queues of a worker share while they are served.

use super::report::Report;
use crate::device::Device;
use crate::request::Batch;

/// What the queues of a worker share while they are served.
pub(super) struct WorkerContext<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) report: &'a dyn Report,
    pub(super) batch: &'a mut Batch,
    pub(super) limit: u16,
}
