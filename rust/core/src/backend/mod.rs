//! A running back-end: the only place where control plane and data plane meet.
//!
//! One control thread takes front-ends, one after the other, and carries out what their messages
//! ask for. Worker threads serve the vrings; they are started with a session's first vring and
//! end with the session, so that an idle back-end is one sleeping thread.

mod channel;
mod context;
mod control;
mod event;
mod offer;
mod options;
mod session;
mod shared;
mod start_failed;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::device::Device;
use crate::error::HostError;
pub use crate::memory::MemoryOptions;
use crate::metrics::Snapshot;
pub use crate::wire::XenDesigns;
use control::Control;
pub use event::{Event, Level, Observer, Stuck};
pub use options::{Options, Threads, XenOptions};
use shared::Shared;
pub use shared::{Counters, QueueStats, State};
pub use start_failed::StartFailed;

/// Longest wait for requests in flight when a back-end is dropped, or asked to stop.
const STOP_DRAIN: Duration = Duration::from_secs(5);

/// How much longer than its drain a stop may take: callbacks that do not return, and guest memory
/// that does not answer, are waited for with limits of their own.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// The longest wait for a control thread that is busy with a message.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// How long a wait for the end goes on before it is asked whether to give it up.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A back-end that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Backend {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    drain: Duration,
    /// Somebody has waited for the end and given that up.
    left_alone: AtomicBool,
}

/// What came of a wait for the end.
enum Wait {
    Stopped,
    Late,
    GivenUp,
}

impl Backend {
    /// Opens the endpoint and starts to take front-ends.
    ///
    /// # Errors
    /// The socket cannot be made, a processor does not exist, or there are no resources.
    pub fn start(
        device: Arc<dyn Device>,
        options: Options,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartFailed> {
        check_cpus(&options.cpus)?;
        offer::offer(&*device, options.xen.as_ref()).check().map_err(StartFailed::Options)?;
        let drain = options.drain.min(STOP_DRAIN);
        let shared = Shared::new(&*device, &options, observer)?;
        let control = Control::open(device, options, Arc::clone(&shared))?;
        let thread = thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(move || control.run())
            .map_err(|e| HostError::new("start the control thread", e))?;
        shared.adopt(thread.thread().id());
        let left_alone = AtomicBool::new(false);
        Ok(Self { shared, thread: Mutex::new(Some(thread)), drain, left_alone })
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Waits until a queue is served; `false` if that has not come within `limit`, or never will.
    pub fn wait_running(&self, limit: Option<Duration>) -> bool {
        let until = limit.map(|limit| Instant::now() + limit);
        let over = |s| matches!(s, State::Running | State::Stopped);
        self.shared.wait(until, over) == Some(State::Running)
    }

    /// Waits until the back-end has ended.
    pub fn wait_stopped(&self, limit: Option<Duration>) -> bool {
        let until = limit.map(|limit| Instant::now() + limit);
        self.shared.wait(until, |s| s == State::Stopped).is_some()
    }

    /// Becomes readable when the back-end has ended.
    pub fn stopped_fd(&self) -> BorrowedFd<'_> {
        self.shared.stopped_event.as_fd()
    }

    /// Asks the back-end to end; does not wait.
    pub fn request_stop(&self) {
        self.shared.request_stop(self.drain);
    }

    /// As [`request_stop`](Self::request_stop): requests in flight have `drain`.
    pub fn request_stop_within(&self, drain: Duration) {
        self.shared.request_stop(drain);
    }

    /// Ends the back-end: no more requests are taken, those in flight finish within `drain`, the
    /// front-end's memory is unmapped and the socket is removed. Returns what did not finish.
    /// From one of the back-end's own threads (a device's callback) it only asks. A control thread
    /// that something outside this process holds up is left behind.
    pub fn stop(&self, drain: Duration) -> Vec<Stuck> {
        self.stop_unless(drain, || false).unwrap_or_default()
    }

    /// As [`stop`](Self::stop), for a caller that may not be able to wait for the end: asked
    /// several times a second, `gives_up` says so. `None`: it did; the back-end ends by itself.
    pub fn stop_unless(
        &self,
        drain: Duration,
        gives_up: impl FnMut() -> bool,
    ) -> Option<Vec<Stuck>> {
        self.shared.request_stop(drain);
        if self.shared.is_own_thread() {
            return Some(Vec::new());
        }
        match self.wait_stopped_unless(drain.saturating_add(STOP_GRACE), gives_up) {
            Wait::Stopped => {}
            Wait::GivenUp => {
                self.left_alone.store(true, Ordering::Relaxed);
                return None;
            }
            Wait::Late => {
                self.shared.event(Event::NotStopped);
                return Some(self.shared.take_stuck());
            }
        }
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // The control thread reports its own failure as an event; there is none to add.
            let _ = thread.join();
        }
        Some(self.shared.take_stuck())
    }

    fn wait_stopped_unless(&self, limit: Duration, mut gives_up: impl FnMut() -> bool) -> Wait {
        // A limit past the end of the clock is none.
        let until = Instant::now().checked_add(limit);
        loop {
            let left = until.map_or(ASK_AGAIN, |t| t.saturating_duration_since(Instant::now()));
            if self.wait_stopped(Some(left.min(ASK_AGAIN))) {
                return Wait::Stopped;
            }
            if left.is_zero() {
                return Wait::Late;
            }
            if gives_up() {
                return Wait::GivenUp;
            }
        }
    }

    /// Takes no more requests from the rings, whichever front-end is there, until
    /// [`resume`](Self::resume); those in flight go on. When this returns nothing more is taken;
    /// `false`: a message is being carried out that takes long, and that comes after it; or
    /// without `waits`, which is for callbacks.
    pub fn pause(&self, waits: bool) -> bool {
        self.set_paused(true, waits)
    }

    /// Takes requests again. Returns as [`pause`](Self::pause) does.
    pub fn resume(&self, waits: bool) -> bool {
        self.set_paused(false, waits)
    }

    fn set_paused(&self, paused: bool, waits: bool) -> bool {
        let waits = waits && !self.shared.is_own_thread();
        let limit = if waits { PAUSE_LIMIT } else { Duration::ZERO };
        self.shared.set_paused(paused, limit)
    }

    /// Whether it was [paused](Self::pause).
    pub fn is_paused(&self) -> bool {
        self.shared.is_paused()
    }

    /// The device's configuration space changed: tells the front-end, if there is one that can be
    /// told.
    pub fn notify_config(&self) {
        self.shared.notify_config();
    }

    /// The device status byte that the front-end passed on last; 0 if it passes none, and when
    /// there is no front-end. VIRTIO 1.3, "Device Status Field".
    pub fn device_status(&self) -> u8 {
        self.shared.device_status()
    }

    /// What each queue has done so far. Costs the queues nothing: the numbers are read one by one
    /// while they change, so those of a queue may be of moments that are a batch apart.
    pub fn stats(&self) -> Vec<QueueStats> {
        self.shared.stats()
    }

    /// What was measured so far; `None` without [`Options::measured`]. Costs the queues nothing.
    pub fn metrics(&self) -> Option<Snapshot> {
        self.shared.metrics()
    }

    /// What has been done so far.
    pub fn counters(&self) -> Counters {
        self.shared.counters()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Who could not wait for the end before cannot now.
        if !*self.left_alone.get_mut() {
            self.stop(self.drain);
        }
    }
}

fn check_cpus(cpus: &[usize]) -> Result<(), StartFailed> {
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_err(|e| HostError::new("ask for the allowed processors", e))?;
    let known = |cpu: usize| cpu < rustix::thread::CpuSet::MAX_CPU && allowed.is_set(cpu);
    match cpus.iter().find(|&&cpu| !known(cpu)) {
        Some(&cpu) => Err(StartFailed::NoSuchCpu(cpu)),
        None => Ok(()),
    }
}
