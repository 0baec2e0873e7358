//! A load generator: so many requests always in flight on each queue, a thread for each, data
//! checked against their place on the disk.
//!
//! The loop is closed: a request waits for an answer, so a back-end that stalls is also asked
//! less. Its latencies are honest for the median and the 99th percentile of a steady run; rarer
//! ones it cannot see.

mod histogram;
mod lane;
mod options;
mod pattern;

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::block::{BlockDriver, BlockQueue, SECTOR};
use super::error::{FrontendError, Result};
use crate::error::HostError;
use crate::sys::interrupt;
use histogram::Histogram;
use lane::{Lane, Places, Progress, Tally};
pub use options::{Access, Limit, LoadOptions, Verify};
pub use pattern::Pattern;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests answered in the measured time.
    pub ops: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// The measured time.
    pub elapsed: Duration,
    /// Requests answered with an error, the warm-up's included.
    pub errors: u64,
    /// Reads that were checked, the warm-up's included.
    pub verified: u64,
    /// Reads that brought wrong data, the warm-up's included.
    pub mismatches: u64,
    /// The sector of the first wrong data.
    pub first_mismatch: Option<u64>,
    /// Kicks sent in the measured time.
    pub kicks: u64,
    /// Calls taken in the measured time.
    pub calls: u64,
    /// Time from making a request available to seeing its answer, median.
    pub p50: Duration,
    /// The same, 99th percentile.
    pub p99: Duration,
}

impl LoadReport {
    /// Requests a second.
    pub fn iops(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.ops as f64 / seconds } else { 0.0 }
    }

    fn new(tallies: &[Tally], block_bytes: u32) -> Self {
        let sum = |field: fn(&Tally) -> u64| tallies.iter().map(field).sum::<u64>();
        let mut latency = Histogram::new();
        tallies.iter().for_each(|tally| latency.add(&tally.latency));
        Self {
            ops: sum(|tally| tally.ops),
            bytes: sum(|tally| tally.ops) * u64::from(block_bytes),
            elapsed: tallies.iter().map(|tally| tally.elapsed).max().unwrap_or_default(),
            errors: sum(|tally| tally.errors),
            verified: sum(|tally| tally.verified),
            mismatches: sum(|tally| tally.mismatches),
            first_mismatch: tallies.iter().find_map(|tally| tally.first_mismatch),
            kicks: sum(|tally| tally.kicks),
            calls: sum(|tally| tally.calls),
            p50: latency.quantile(0.50),
            p99: latency.quantile(0.99),
        }
    }
}

/// Loads every queue of the driver until the limit. The disk must hold the pattern
/// ([`Pattern::prepare`]) if reads are checked.
///
/// Answers with an error status and wrong data are counted, not returned as errors; a back-end
/// that hangs up, breaks a ring or does not answer for the driver's timeout is an error. A driver
/// with a record of the requests in flight goes on with the next back-end when one hangs up.
pub fn run(driver: &mut BlockDriver, options: &LoadOptions) -> Result<LoadReport> {
    driver.settle()?;
    let disk = driver.size();
    if !options.access.reads() && driver.pattern() != Some(options.seed) {
        driver.set_pattern(None);
    }
    let (queues, _) = driver.queues();
    queues.iter().try_for_each(|queue| check(queue, disk, options))?;
    driver.open_all(true)?;
    let done = run_to_the_end(driver, options, disk);
    let closed = driver.open_all(false);
    done.and_then(|report| closed.map(|()| report))
}

/// The load itself, on queues whose memory the device can reach.
fn run_to_the_end(
    driver: &mut BlockDriver,
    options: &LoadOptions,
    disk: u64,
) -> Result<LoadReport> {
    let (queues, _) = driver.queues();
    let count = queues.len() as u64;
    let share = match options.limit {
        Limit::Ops(ops) => ops.div_ceil(count),
        Limit::Time(_) => 0,
    };
    let places = (0..count).map(|index| Places::new(options, disk, index, count));
    let mut lanes: Vec<_> =
        queues.iter().zip(places).map(|(queue, places)| Progress::new(queue, places)).collect();
    loop {
        match run_lanes(driver, options, share, &mut lanes) {
            Ok(()) => break,
            // Each thread has seen that the back-end is gone, and has nothing half done.
            Err(error) if driver.can_resume(&error) => driver.resume()?,
            Err(error) => return Err(error),
        }
    }
    let tallies: Vec<_> = lanes.into_iter().map(Progress::into_tally).collect();
    Ok(LoadReport::new(&tallies, options.block_bytes))
}

/// Runs each queue on a thread until its share is done.
fn run_lanes(
    driver: &mut BlockDriver,
    options: &LoadOptions,
    share: u64,
    lanes: &mut [Progress],
) -> Result<()> {
    let timeout = driver.options().timeout;
    let (queues, client) = driver.queues();
    let given_up = AtomicBool::new(false);
    let lanes = queues.iter_mut().zip(lanes).map(|(queue, progress)| {
        Lane::new(queue, client.as_fd(), timeout, options, progress, &given_up)
    });
    thread::scope(|scope| {
        let (end, ended) = mpsc::channel();
        let threads: Vec<_> = lanes
            .enumerate()
            .map(|(index, lane)| {
                let end: Sender<()> = end.clone();
                scope.spawn(move || {
                    let _end = end;
                    pin(&options.cpus, index).and_then(|()| lane.run(share))
                })
            })
            .collect();
        drop(end);
        let asked = wait_for_all(&ended);
        given_up.store(asked.is_err(), Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let results: Vec<Result<()>> = threads.into_iter().map(join).collect();
        asked.map_err(|e| HostError::new("wait for the end of a load", e))?;
        // That the back-end is gone is said only if nothing worse is the matter.
        let (gone, other): (Vec<_>, Vec<_>) = results.into_iter().partition(is_gone);
        other.into_iter().chain(gone).collect()
    })
}

fn is_gone(result: &Result<()>) -> bool {
    result.as_ref().is_err_and(FrontendError::is_gone)
}

/// Waits until no thread has its sending end any more, or this one is to give up.
fn wait_for_all(ended: &Receiver<()>) -> io::Result<()> {
    loop {
        let Some(slice) = interrupt::slice(None) else {
            let _ = ended.recv();
            return Ok(());
        };
        match ended.recv_timeout(slice) {
            Err(RecvTimeoutError::Timeout) => interrupt::ask()?,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn check(queue: &BlockQueue, disk: u64, options: &LoadOptions) -> Result<()> {
    let (block, most) = (options.block_bytes, queue.slot_bytes());
    if block == 0 || !u64::from(block).is_multiple_of(SECTOR) || block > most {
        let why = format!("a block of {block} bytes: not whole sectors up to {most}");
        return Err(FrontendError::range(why));
    }
    if u64::from(block) > disk {
        let why = format!("a block of {block} bytes on a disk of {disk}");
        return Err(FrontendError::range(why));
    }
    let (depth, slots) = (options.depth, queue.slots());
    if depth == 0 || depth > slots || queue.in_flight() != 0 {
        let free = usize::from(slots) - queue.in_flight();
        let why = format!("{depth} requests in flight on a queue with room for {free}");
        return Err(FrontendError::range(why));
    }
    Ok(())
}

/// Binds the calling thread to one processor, if there are any to choose from.
fn pin(cpus: &[usize], index: usize) -> Result<()> {
    let Some(&cpu) = cpus.get(index % cpus.len().max(1)) else {
        return Ok(());
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(FrontendError::range(format!("there is no processor {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .map_err(|e| HostError::new(format!("run on processor {cpu}"), e).into())
}
