//! What the back-end's owner, its control thread and its workers share.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::channel::Wanted;
use super::event::{Event, Observer, Stuck};
use super::options::Options;
use crate::device::Device;
use crate::error::HostError;
use crate::memory::{Beyond, Miss};
use crate::metrics::{QueueMetrics, QueueSnapshot, Snapshot, now};
use crate::sys::eventfd::{self, EventFd, EventSignaller};
use crate::worker::{Began, Broken, Failed, QueueCounters, Report};

/// Where a back-end stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for a front-end.
    Listening,
    /// A front-end is there and nothing is served yet.
    Negotiating,
    /// At least one queue is served.
    Running,
    /// Queues are started but all of them are disabled.
    Paused,
    /// Ending, and waiting for requests in flight.
    Draining,
    /// Ended.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listening => "listening",
            Self::Negotiating => "negotiating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

/// Sums over all queues since the back-end started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests given back to the driver.
    pub requests: u64,
    /// Times that the device was entered.
    pub batches: u64,
    /// Kicks heard.
    pub kicks: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Front-ends that connected.
    pub sessions: u64,
    /// Requests in the device's hands.
    pub in_flight: u64,
}

/// What one queue has done since the back-end started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Requests given back to the driver.
    pub requests: u64,
    /// Bytes of data of those that did not fail, both directions together, without the
    /// [framing](crate::device::Device::framing_bytes).
    pub bytes: u64,
    /// Requests among them that failed.
    pub errors: u64,
    /// Kicks heard. A driver that knows its requests are looked for sends none.
    pub kicks: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Requests in the device's hands now.
    pub in_flight: u32,
}

#[derive(Debug)]
struct Status {
    state: State,
    drain: Duration,
    stuck: Vec<Stuck>,
    own_threads: Vec<ThreadId>,
    broken: bool,
    panicked: bool,
    config_changed: bool,
    /// How often the queues were paused or resumed, and what of that they know.
    pauses: u64,
    known_pauses: u64,
    /// Translations that queues wait for: what each has asked for last.
    wanted: Vec<Wanted>,
    /// The number of the last question.
    question: u64,
}

/// What these threads share: the state, the counters, and what the control thread is woken for.
pub(super) struct Shared {
    status: Mutex<Status>,
    changed: Condvar,
    stop: AtomicBool,
    sessions: AtomicU64,
    /// What drivers did that no device can work with.
    guest_errors: AtomicU64,
    /// The device status byte that the front-end passed on last.
    device_status: AtomicU8,
    queues: Vec<Arc<QueueCounters>>,
    observer: Arc<dyn Observer>,
    /// What each queue's call and error descriptors are signalled with, made with the first.
    signallers: Vec<OnceLock<Arc<EventSignaller>>>,
    /// Wakes the control thread.
    pub(super) wake: Arc<EventFd>,
    pub(super) stopped_event: EventFd,
}

/// What a woken control thread has to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PendingEvents {
    pub(super) stop: bool,
    pub(super) broken: bool,
    pub(super) panicked: bool,
    pub(super) config_changed: bool,
    /// The queues were paused, or are not any more, and do not know it: the number of that.
    pub(super) pause: Option<u64>,
    /// Translations that queues wait for.
    pub(super) wanted: Vec<Wanted>,
}

impl Shared {
    pub(super) fn new(
        device: &dyn Device,
        options: &Options,
        observer: Arc<dyn Observer>,
    ) -> Result<Arc<Self>, HostError> {
        let queues = device.num_queues();
        // Without it signals are written.
        let _ = eventfd::nothing();
        let event = || EventFd::new().map_err(|e| HostError::new("make an event descriptor", e));
        let status = Status {
            state: State::Listening,
            drain: options.drain,
            stuck: Vec::new(),
            own_threads: Vec::new(),
            broken: false,
            panicked: false,
            config_changed: false,
            pauses: 0,
            known_pauses: 0,
            wanted: Vec::new(),
            question: 0,
        };
        Ok(Arc::new(Self {
            status: Mutex::new(status),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            guest_errors: AtomicU64::new(0),
            device_status: AtomicU8::new(0),
            queues: (0..queues).map(|_| counters(device, options)).collect(),
            observer,
            signallers: (0..queues).map(|_| OnceLock::new()).collect(),
            wake: Arc::new(event()?),
            stopped_event: event()?,
        }))
    }

    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    pub(super) fn set_state(&self, state: State) {
        let mut status = self.lock();
        // The end is final, and only the end follows draining.
        let stays = match status.state {
            State::Stopped => true,
            State::Draining => state != State::Stopped,
            _ => false,
        };
        if !stays {
            status.state = state;
        }
        drop(status);
        self.changed.notify_all();
    }

    /// Waits for a state that `wanted` accepts; `None` if `until` comes first.
    pub(super) fn wait(
        &self,
        until: Option<Instant>,
        wanted: impl Fn(State) -> bool,
    ) -> Option<State> {
        let mut status = self.lock();
        while !wanted(status.state) {
            status = match until {
                None => self.changed.wait(status).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.checked_duration_since(Instant::now())?;
                    self.changed
                        .wait_timeout(status, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        Some(status.state)
    }

    pub(super) fn request_stop(&self, drain: Duration) {
        self.lock().drain = drain;
        self.stop.store(true, Ordering::Release);
        self.wake.signal();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn drain(&self) -> Duration {
        self.lock().drain
    }

    /// The device status byte that the front-end passed on last; 0 between sessions.
    pub(super) fn device_status(&self) -> u8 {
        self.device_status.load(Ordering::Acquire)
    }

    pub(super) fn set_device_status(&self, status: u8) {
        self.device_status.store(status, Ordering::Release);
    }

    pub(super) fn notify_config(&self) {
        self.lock().config_changed = true;
        self.wake.signal();
    }

    /// Has nothing more taken from the rings, those of later sessions too, or has it taken again.
    /// Returns when no queue pops any more; `false`: that takes longer than `limit`.
    pub(super) fn set_paused(&self, paused: bool, limit: Duration) -> bool {
        for queue in &self.queues {
            queue.paused.store(paused, Ordering::Relaxed);
        }
        let mut status = self.lock();
        status.pauses += 1;
        let number = status.pauses;
        self.wake.signal();
        let until = Instant::now() + limit;
        while status.known_pauses < number && status.state != State::Stopped {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            let waited = self.changed.wait_timeout(status, left);
            status = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Whether nothing is taken from the rings.
    pub(super) fn is_paused(&self) -> bool {
        self.queues.iter().any(|queue| queue.paused.load(Ordering::Relaxed))
    }

    /// All queues know of the pause, or its end, with this number.
    pub(super) fn pause_is_known(&self, number: u64) {
        self.lock().known_pauses = number;
        self.changed.notify_all();
    }

    /// Takes what there is to do. For the control thread, when it was woken.
    pub(super) fn pending_events(&self) -> PendingEvents {
        self.wake.clear();
        let mut status = self.lock();
        PendingEvents {
            stop: self.is_stopping(),
            broken: std::mem::take(&mut status.broken),
            panicked: std::mem::take(&mut status.panicked),
            config_changed: std::mem::take(&mut status.config_changed),
            pause: (status.pauses != status.known_pauses).then_some(status.pauses),
            wanted: std::mem::take(&mut status.wanted),
        }
    }

    /// Counts a session, and forgets what a former one has left to do.
    pub(super) fn begin_session(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut status = self.lock();
        (status.broken, status.panicked, status.config_changed) = (false, false, false);
        status.wanted.clear();
    }

    pub(super) fn adopt(&self, thread: ThreadId) {
        self.lock().own_threads.push(thread);
    }

    pub(super) fn disown(&self, thread: ThreadId) {
        self.lock().own_threads.retain(|&own| own != thread);
    }

    pub(super) fn is_own_thread(&self) -> bool {
        self.lock().own_threads.contains(&thread::current().id())
    }

    pub(super) fn event(&self, event: Event) {
        if let Event::Stuck(stuck) = event {
            self.lock().stuck.push(stuck);
        }
        self.observer.event(event);
    }

    pub(super) fn take_stuck(&self) -> Vec<Stuck> {
        std::mem::take(&mut self.lock().stuck)
    }

    /// What the descriptors of a queue are signalled with.
    pub(super) fn signaller(&self, index: u16) -> Arc<EventSignaller> {
        let made = self.signallers.get(usize::from(index));
        made.map_or_else(Arc::default, |made| Arc::clone(made.get_or_init(Arc::default)))
    }

    /// The counters of a queue that exists.
    pub(super) fn queue(&self, index: u16) -> Arc<QueueCounters> {
        self.queues.get(usize::from(index)).map_or_else(Arc::default, Arc::clone)
    }

    /// What each queue has done.
    pub(super) fn stats(&self) -> Vec<QueueStats> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = |queue: &Arc<QueueCounters>| QueueStats {
            requests: read(&queue.requests),
            bytes: read(&queue.bytes),
            errors: read(&queue.errors),
            kicks: read(&queue.kicks),
            calls: read(&queue.calls),
            in_flight: queue.in_flight.load(Ordering::Relaxed),
        };
        self.queues.iter().map(of).collect()
    }

    /// What was measured so far; `None`: nothing is.
    pub(super) fn metrics(&self) -> Option<Snapshot> {
        let now = now();
        let of = |(queue, stats): (&Arc<QueueCounters>, QueueStats)| {
            let measured = queue.metrics.as_ref()?.read(now);
            let QueueStats { kicks, calls, in_flight, .. } = stats;
            Some(QueueSnapshot { kicks, calls, in_flight, measured })
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(Snapshot {
            queues: self.queues.iter().zip(self.stats()).map(of).collect::<Option<_>>()?,
            sessions: read(&self.sessions),
            guest_errors: read(&self.guest_errors),
        })
    }

    fn count_guest_error(&self) {
        self.guest_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> Counters {
        let start =
            Counters { sessions: self.sessions.load(Ordering::Relaxed), ..Counters::default() };
        self.queues.iter().fold(start, |sum, queue| Counters {
            requests: sum.requests + queue.requests.load(Ordering::Relaxed),
            batches: sum.batches + queue.batches.load(Ordering::Relaxed),
            kicks: sum.kicks + queue.kicks.load(Ordering::Relaxed),
            calls: sum.calls + queue.calls.load(Ordering::Relaxed),
            in_flight: sum.in_flight + u64::from(queue.in_flight.load(Ordering::Relaxed)),
            ..sum
        })
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counters of one queue.
fn counters(device: &dyn Device, options: &Options) -> Arc<QueueCounters> {
    let metrics = || QueueMetrics::new(device.operations(), device.max_queue_size());
    let metrics = options.measured.then(|| Box::new(metrics()));
    Arc::new(QueueCounters { metrics, ..QueueCounters::default() })
}

impl Report for Shared {
    fn queue_began(&self, queue: u16, began: Began) {
        let Began { size, base, named, unfinished } = began;
        let instead_of = (base != named && unfinished == 0).then_some(named);
        self.event(Event::QueueStarted { queue, size, base, instead_of });
        if unfinished > 0 {
            self.event(Event::Resubmitted { queue, requests: unfinished.into() });
        }
    }

    fn queue_broken(&self, queue: u16, error: Broken) {
        self.count_guest_error();
        let error = match error {
            Broken::Driver(error) => error.to_string(),
            Broken::Memory(error) => error.to_string(),
        };
        self.event(Event::QueueBroken { queue, error });
        self.lock().broken = true;
        self.wake.signal();
    }

    fn request_failed(&self, queue: u16, why: Failed) {
        self.count_guest_error();
        self.event(Event::RequestFailed { queue, error: why.to_string() });
    }

    fn log_too_short(&self, queue: u16, beyond: Beyond) {
        self.event(Event::LogTooShort { queue, beyond });
    }

    fn translations_missing(&self, queue: u16, misses: &[Miss]) -> u64 {
        let mut status = self.lock();
        status.question += 1;
        let question = status.question;
        // A queue that asks anew does not wait for what it has asked before.
        status.wanted.retain(|wanted| wanted.queue != queue);
        status.wanted.extend(misses.iter().map(|&miss| Wanted { queue, question, miss }));
        drop(status);
        self.wake.signal();
        question
    }

    fn worker_panicked(&self, message: String) {
        self.event(Event::WorkerPanicked(message));
        self.lock().panicked = true;
        self.wake.signal();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state()).finish_non_exhaustive()
    }
}
