//! The end of a session.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::rings::Rest;
use super::session::Session;
use crate::backend::channel::Channel;
use crate::backend::shared::State;

/// Longest wait for requests in flight when the front-end has gone: nobody waits for their
/// answers, but a device may be in the middle of reading their data.
const DISCONNECT_DRAIN: Duration = Duration::from_secs(1);

/// What an idle worker may take to end when the others have used up the time to drain.
const LAST_GRACE: Duration = Duration::from_millis(100);

impl Session<'_> {
    /// Stops everything, unmaps everything, and closes the connection last: the front-end must
    /// not come back while its memory is still in use.
    pub(super) fn end(mut self) {
        let stopping = self.shared().is_stopping();
        let mut drain = self.shared().drain();
        if stopping {
            self.shared().set_state(State::Draining);
        } else {
            drain = drain.min(DISCONNECT_DRAIN);
        }
        let begun = Instant::now();
        self.stop_rings(&self.all_started(), Rest::IsLeft, drain);
        let deadline = (begun + drain.min(self.shared().drain())).max(Instant::now() + LAST_GRACE);
        for worker in std::mem::take(&mut self.workers).into_iter().flatten() {
            let thread = worker.thread_id();
            if worker.end(deadline) {
                self.shared().disown(thread);
            }
        }
        self.channel = Channel::default();
        self.vrings.clear();
        self.memory = Arc::default();
        let mapped = std::mem::take(&mut self.mapped);
        self.take_away(&mapped.iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
        self.shared().set_device_status(0);
        self.device().disconnected();
    }
}
