//! The end of a session.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::logging::Logging;
use super::rings::Rest;
use super::session::{RECHECK_INTERVAL, Session};
use crate::backend::channel::Channel;
use crate::backend::shared::State;
use crate::request::CompletionQueue;
use crate::socket::Stream;

/// Longest wait for requests in flight when the front-end has gone: nobody waits for their
/// answers, but a device may be in the middle of reading their data.
const DISCONNECT_DRAIN: Duration = Duration::from_secs(1);

/// What an idle worker may take to end when the others have used up the time to drain.
const LAST_GRACE: Duration = Duration::from_millis(100);

impl Session<'_> {
    /// Stops everything, unmaps everything, and closes the connection last: the front-end must
    /// not come back while its memory is still in use. If the kernel uses it even then, the
    /// connection stays open until it does not.
    pub(super) fn end(mut self) {
        let stopping = self.shared().is_stopping();
        let mut drain = self.shared().drain();
        if stopping {
            self.shared().set_state(State::Draining);
        } else {
            drain = drain.min(DISCONNECT_DRAIN);
        }
        if !stopping {
            self.give_up_pages();
        }
        let begun = Instant::now();
        self.stop_rings(&self.all_started(), Rest::IsLeft, drain);
        self.give_up_pages();
        let deadline = (begun + drain.min(self.shared().drain())).max(Instant::now() + LAST_GRACE);
        for worker in std::mem::take(&mut self.workers).into_iter().flatten() {
            let thread = worker.thread_id();
            if worker.end(deadline) {
                self.shared().disown(thread);
            }
        }
        self.end_transfer(deadline);
        self.channel = Channel::default();
        self.vrings.clear();
        self.memory = Arc::default();
        (self.records, self.logging) = (None, Logging::default());
        let mapped = std::mem::take(&mut self.mapped);
        self.take_away(&mapped.iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
        self.shared().set_device_status(0);
        if self.kept.is_some() {
            self.release_device();
        }
        self.device().disconnected();
        let completions = self.completions.iter().filter_map(Weak::upgrade);
        let held: Vec<_> = completions.filter(|queue| queue.kernel_holds().any()).collect();
        if !held.is_empty() {
            close_after(self.stream, held);
        }
    }
}

/// Closes a connection when the kernel has let go of its requests' memory. Nobody waits for that.
fn close_after(stream: Stream, held: Vec<Arc<CompletionQueue>>) {
    let waiting = move || {
        while held.iter().any(|queue| queue.kernel_holds().any()) {
            thread::sleep(RECHECK_INTERVAL);
        }
        drop(stream);
    };
    // Without a thread for it the connection is closed at once.
    let _ = thread::Builder::new().name("vhost-user end".to_owned()).spawn(waiting);
}
