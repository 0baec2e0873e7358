//! What a front-end does that migrates its guest: it has writes to the guest's memory logged, and
//! stops the queues.

use super::super::error::{FrontendError, Result};
use super::super::log::DirtyLog;
use super::driver::BlockDriver;

impl BlockDriver {
    /// Has the back-end note in a new log what it writes to guest memory, from now on.
    ///
    /// # Errors
    /// The back-end does not offer LOG_SHMFD, or refuses.
    pub fn start_log(&mut self) -> Result<()> {
        let former = self.log.replace(DirtyLog::of(self.memory())?);
        self.start_logging().inspect_err(|_| self.log = former)
    }

    /// The numbers of the pages, of 4096 bytes, that were noted since the last call, in order.
    ///
    /// # Errors
    /// No log was started.
    pub fn dirty_pages(&self) -> Result<Vec<u64>> {
        self.log
            .as_ref()
            .map(DirtyLog::take)
            .ok_or_else(|| FrontendError::range("no log was started"))
    }

    /// Has nothing noted any more.
    pub fn stop_log(&mut self) -> Result<()> {
        self.client.set_features(self.negotiated.features)?;
        self.log = None;
        self.log_rings()
    }

    /// Stops all queues, as a machine does that is about to leave, and takes no requests. Returns
    /// where each of them stood.
    pub fn stop_queues(&mut self) -> Result<Vec<u32>> {
        self.settle()?;
        let bases = self.stop_rings()?;
        self.is_stopped = true;
        Ok(bases)
    }

    /// Starts the queues again where they stood, as after a migration that has failed.
    pub fn start_queues(&mut self) -> Result<()> {
        self.start_rings()?;
        self.kick_all();
        self.is_stopped = false;
        Ok(())
    }
}
