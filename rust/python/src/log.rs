//! What the core and the callbacks have to say, on its way into Python's `logging`.
//!
//! A thread that has something to say puts it into one bounded queue and goes on: no thread of the
//! core ever waits for the interpreter. One thread, attached to the interpreter for its life and
//! detached while it waits, hands the records to `logging` in the order in which they came. What
//! does not fit is counted, and the count is logged.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::call::{call_for_value, call_with};
use crate::interrupt::{SIGNAL_CHECK, has_raised};
use crate::stuck::CallingThreads;
use crate::summaries::Summaries;
use crate::traits::{CallsBack, HeldReports, SumsUp, Watched};

const THREAD_NAME: &str = "vhost-user-log";

/// Records that may wait. A storm of events is worth its first thousand lines.
const CAPACITY: usize = 1024;

/// How long a view may keep its request from the driver before that is told.
const HELD_LIMIT: Duration = Duration::from_secs(1);

/// How long a view may keep it before the garbage collector is asked: variables of the callback may
/// refer to each other in a circle.
const COLLECT_AFTER: Duration = Duration::from_millis(30);

/// The least time between two collections.
const COLLECT_EVERY: Duration = Duration::from_secs(1);

/// The least time between two collections of all that the program has: they stop it.
const COLLECT_ALL_EVERY: Duration = Duration::from_secs(10);

/// The generations of the garbage collector: those of what was made lately, and all.
const YOUNG: i32 = 1;
const ALL: i32 = 2;

/// How long the thread waits if there is nothing that it waits for.
const IDLE: Duration = Duration::from_secs(3600);

/// How long [`end`] waits for the records before it.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The levels of Python's `logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Level {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
}

/// The child of the logger `vhost_user` that a record goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Logger {
    /// The socket, the protocol, the rings.
    Backend,
    /// The device's own callbacks.
    Device,
}

/// One line for a logger, with the exception that it is about.
pub(crate) struct Record {
    pub(crate) logger: Logger,
    pub(crate) level: Level,
    pub(crate) text: String,
    pub(crate) exception: Option<PyErr>,
}

struct Watch {
    since: Instant,
    what: Arc<dyn Watched>,
    callback: &'static str,
    reports: Arc<dyn HeldReports>,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    watches: VecDeque<Watch>,
    /// When the garbage was collected last.
    collected: Option<Instant>,
    threads: CallingThreads,
    summaries: Summaries,
    dropped: u64,
    /// Records put in and handed over since the process started.
    put: u64,
    handed: u64,
    running: bool,
    ending: bool,
    /// What had been handed over when somebody gave up waiting for the rest. Until that changes
    /// nobody waits again: whoever reads the log has stalled.
    stalled_at: Option<u64>,
}

static QUEUE: Mutex<Option<Queue>> = Mutex::new(None);
/// Something was put in, or the thread is asked to end.
static FILLED: Condvar = Condvar::new();
/// Something was handed over, or the thread has ended.
static DRAINED: Condvar = Condvar::new();

/// Records that were dropped since the process started.
static DROPPED_IN_ALL: AtomicU64 = AtomicU64::new(0);

/// The process that has the thread. A fork has not, and may have got the lock as it was held.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Starts the thread unless it runs.
pub(crate) fn start() -> std::io::Result<()> {
    let fork = is_fork();
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    let mut guard = lock();
    if fork {
        *guard = None;
    }
    let queue = guard.get_or_insert_default();
    queue.ending = false;
    if !queue.running {
        thread::Builder::new().name(THREAD_NAME.into()).spawn(run)?;
        queue.running = true;
    }
    Ok(())
}

/// Records that were dropped since the process started.
pub(crate) fn dropped_in_all() -> u64 {
    DROPPED_IN_ALL.load(Ordering::Relaxed)
}

/// Queues a record.
pub(crate) fn record(record: Record) {
    if is_fork() {
        return;
    }
    let mut guard = lock();
    let queue = guard.get_or_insert_default();
    if queue.records.len() >= CAPACITY {
        queue.dropped += 1;
        DROPPED_IN_ALL.fetch_add(1, Ordering::Relaxed);
        // Dropped after the lock: an exception may be in it.
        drop(guard);
        drop(record);
        return;
    }
    queue.records.push_back(record);
    queue.put += 1;
    drop(guard);
    FILLED.notify_one();
}

/// Has it told if `what`, which `callback` got, is not over in a second.
pub(crate) fn watch(what: Arc<dyn Watched>, callback: &'static str, reports: Arc<dyn HeldReports>) {
    let since = Instant::now();
    if is_fork() {
        return;
    }
    let mut guard = lock();
    let watches = &mut guard.get_or_insert_default().watches;
    if watches.len() < CAPACITY {
        watches.push_back(Watch { since, what, callback, reports });
        drop(guard);
        FILLED.notify_one();
    }
}

/// Has it told if `thread` does not come back from a callback, for as long as there is the thread.
pub(crate) fn look_after(thread: Weak<dyn CallsBack>) {
    if is_fork() {
        return;
    }
    let mut guard = lock();
    let is_first = guard.get_or_insert_default().threads.add(thread);
    drop(guard);
    if is_first {
        FILLED.notify_one();
    }
}

/// Has what was counted summed up from time to time, for as long as there is something to sum up.
pub(crate) fn sum_up_later(counts: Weak<dyn SumsUp>) {
    if is_fork() {
        return;
    }
    lock().get_or_insert_default().summaries.add(counts);
    FILLED.notify_one();
}

/// Waits until everything queued so far was handed over: as long as `limit`, unless the handler of
/// a signal raises or the reader of the log has stalled before. To be called detached.
pub(crate) fn flush(limit: Duration) {
    if is_fork() {
        return;
    }
    let guard = lock();
    let until = guard.as_ref().map_or(0, |queue| queue.put);
    wait_while(guard, limit, |queue| queue.running && queue.handed < until);
}

/// Hands over what waits and ends the thread, within a limit and otherwise as [`flush`]. To be
/// called detached.
pub(crate) fn end() {
    if is_fork() {
        return;
    }
    let mut guard = lock();
    if let Some(queue) = guard.as_mut() {
        queue.ending = true;
    }
    FILLED.notify_all();
    wait_while(guard, END_LIMIT, |queue| queue.running);
}

fn wait_while(
    mut guard: MutexGuard<'_, Option<Queue>>,
    limit: Duration,
    lasts: impl Fn(&Queue) -> bool,
) {
    let begun = Instant::now();
    loop {
        let Some(queue) = guard.as_mut().filter(|queue| lasts(queue)) else { return };
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() || queue.stalled_at == Some(queue.handed) {
            queue.stalled_at = Some(queue.handed);
            return;
        }
        let waited = DRAINED.wait_timeout(guard, left.min(SIGNAL_CHECK));
        let (held, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        guard = held;
        if timeout.timed_out() {
            drop(guard);
            let gives_up = has_raised();
            guard = lock();
            if let Some(queue) = guard.as_mut().filter(|_| gives_up) {
                queue.stalled_at = Some(queue.handed);
            }
        }
    }
}

fn lock() -> MutexGuard<'static, Option<Queue>> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_fork() -> bool {
    PROCESS.load(Ordering::Relaxed) != std::process::id()
}

/// What the thread has to do next.
enum Work {
    Hand(Record, u64),
    Collect,
    Tell(Watch),
    SumUp(Vec<Arc<dyn SumsUp>>),
    Stuck(Arc<dyn CallsBack>),
    End,
}

fn run() {
    // `None`: the interpreter is on its way out, and no log is read any more.
    let _ = Python::try_attach(|py| {
        report(py, take_name(py));
        let mut collected = None;
        loop {
            match py.detach(next_with_python) {
                Work::Hand(record, dropped) => {
                    // A bug in the one record must not cost the others their thread. There is
                    // nobody to tell but who reads standard error, where it stands already.
                    let _ = catch_unwind(AssertUnwindSafe(|| hand_over(py, record, dropped)));
                    if let Some(queue) = lock().as_mut() {
                        queue.handed += 1;
                    }
                    DRAINED.notify_all();
                }
                Work::Collect => report(py, collect(py, YOUNG)),
                Work::Tell(watch) => report(py, tell(py, &watch, &mut collected)),
                Work::Stuck(thread) => report(py, thread.tell_stuck(py)),
                Work::End | Work::SumUp(_) => return,
            }
        }
    });
    if let Some(queue) = lock().as_mut() {
        queue.running = false;
    }
    DRAINED.notify_all();
}

/// Tells Python the thread's name: it stands in every record that a handler shows it of.
fn take_name(py: Python<'_>) -> PyResult<()> {
    let this = py.import("threading")?.call_method0("current_thread")?;
    this.setattr("name", THREAD_NAME)
}

/// Frees what is in circles, as far as it is of these generations.
fn collect(py: Python<'_>, oldest: i32) -> PyResult<()> {
    let collect = py.import("gc")?.getattr("collect")?;
    let oldest = oldest.into_pyobject(py)?.into_any();
    call_for_value(py, &collect.unbind(), [&oldest]).map(drop)
}

/// Tells of a view that is held, unless a collection of all garbage frees it.
fn tell(py: Python<'_>, watch: &Watch, collected: &mut Option<Instant>) -> PyResult<()> {
    if collected.is_none_or(|last| last.elapsed() >= COLLECT_ALL_EVERY) {
        collect(py, ALL)?;
        *collected = Some(Instant::now());
    }
    if !watch.what.is_over() {
        watch.reports.tell_held(watch.callback);
    }
    Ok(())
}

/// What to do next for which the interpreter is wanted; what is not is done.
fn next_with_python() -> Work {
    loop {
        match next() {
            Work::SumUp(counts) => counts.iter().for_each(|counts| counts.sum_up_old()),
            work => return work,
        }
    }
}

fn next() -> Work {
    let mut guard = lock();
    loop {
        let queue = guard.get_or_insert_default();
        if let Some(record) = queue.records.pop_front() {
            return Work::Hand(record, std::mem::take(&mut queue.dropped));
        }
        if queue.ending {
            return Work::End;
        }
        let now = Instant::now();
        if let Some(work) = queue.look_at_watches(now) {
            return work;
        }
        let counts = queue.summaries.look(now);
        if !counts.is_empty() {
            return Work::SumUp(counts);
        }
        if let Some(thread) = queue.threads.look(now) {
            return Work::Stuck(thread);
        }
        let dues = [queue.watch_due(), queue.summaries.due(), queue.threads.due()];
        let due = dues.into_iter().flatten().min();
        let wait = due.map_or(IDLE, |due| due.saturating_duration_since(now));
        guard = FILLED.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Queue {
    /// What is to be done of views that are held.
    fn look_at_watches(&mut self, now: Instant) -> Option<Work> {
        // In their order, since all have the same limits.
        while self.watches.front().is_some_and(|watch| watch.what.is_over()) {
            self.watches.pop_front();
        }
        if self.watch_due()? > now {
            return None;
        }
        if self.watches.front().is_some_and(|watch| self.collects_for(watch)) {
            self.collected = Some(now);
            return Some(Work::Collect);
        }
        self.watches.pop_front().map(Work::Tell)
    }

    /// When the first of them is to be looked at.
    fn watch_due(&self) -> Option<Instant> {
        let watch = self.watches.front()?;
        if !self.collects_for(watch) {
            return Some(watch.since + HELD_LIMIT);
        }
        let first = watch.since + COLLECT_AFTER;
        Some(self.collected.map_or(first, |last| first.max(last + COLLECT_EVERY)))
    }

    /// Whether a collection may still end it.
    fn collects_for(&self, watch: &Watch) -> bool {
        self.collected.is_none_or(|last| last < watch.since)
    }
}

fn hand_over(py: Python<'_>, record: Record, dropped: u64) {
    report(py, log(py, record));
    if dropped > 0 {
        let text = format!("{dropped} log records were dropped: they came too fast");
        let record =
            Record { logger: Logger::Backend, level: Level::Warning, text, exception: None };
        report(py, log(py, record));
    }
}

fn log(py: Python<'_>, record: Record) -> PyResult<()> {
    let name = match record.logger {
        Logger::Backend => "vhost_user.backend",
        Logger::Device => "vhost_user.device",
    };
    let logger = py.import("logging")?.call_method1("getLogger", (name,))?;
    let arguments = (record.level as u8, "%s", record.text).into_pyobject(py)?;
    let options = PyDict::new(py);
    if let Some(exception) = record.exception {
        options.set_item("exc_info", exception.into_value(py))?;
    }
    call_with(&logger.getattr("log")?, &arguments, &options).map(drop)
}

/// A logging handler, or what was to be told, has failed: the interpreter prints that.
fn report(py: Python<'_>, result: PyResult<()>) {
    if let Err(error) = result {
        error.write_unraisable(py, None);
    }
}
