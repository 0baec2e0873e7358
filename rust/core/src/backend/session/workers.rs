//! The worker threads of a session.

use std::sync::Arc;

use super::session::Session;
use crate::connection::Refusal;
use crate::worker::{Worker, WorkerConfig};

impl Session<'_> {
    /// The worker of a queue, started now if it is the first time.
    pub(super) fn worker(&mut self, index: u16) -> Result<&Worker, Refusal> {
        let place = self.place(index);
        if self.workers[place].is_none() {
            self.workers[place] = Some(self.spawn(place, index)?);
        }
        Ok(self.workers[place].as_ref().expect("it was just started"))
    }

    /// The worker of a queue, if it was started.
    pub(super) fn known_worker(&self, index: u16) -> Option<&Worker> {
        self.workers[self.place(index)].as_ref()
    }

    fn place(&self, index: u16) -> usize {
        usize::from(index) % self.workers.len()
    }

    fn spawn(&self, place: usize, index: u16) -> Result<Worker, Refusal> {
        let options = &self.context.options;
        let cpus = &options.cpus;
        let cpu = (!cpus.is_empty()).then(|| cpus[place % cpus.len()]);
        let config = WorkerConfig { batch: options.batch, poll: options.poll, cpu };
        let worker = Worker::spawn(
            format!("vhost-user q{place}"),
            Arc::clone(&self.context.device),
            Arc::clone(&self.context.shared) as Arc<_>,
            config,
        )
        .map_err(|e| Refusal(format!("SET_VRING_KICK: queue {index}: {e}")))?;
        self.context.shared.adopt(worker.thread_id());
        Ok(worker)
    }
}
