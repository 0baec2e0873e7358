//! One queue under load, on one thread: a closed loop in which each answer makes the next request.

use std::hint::spin_loop;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::block::{BlockQueue, BlockRequest, Completion, Op, SECTOR};
use super::super::error::{FrontendError, Result};
use super::histogram::Histogram;
use super::{Access, Limit, LoadOptions, Pattern, Verify};
use crate::error::HostError;

/// Looks at an unchanged ring between two looks at the clock, for a driver that polls.
const SPINS: u32 = 1 << 12;

/// How long a driver sees nothing happen before it asks whether the back-end lives, if it polls,
/// and whether to give up.
const QUIET: Duration = Duration::from_millis(100);

/// What one queue did.
pub(super) struct Tally {
    pub(super) ops: u64,
    pub(super) errors: u64,
    pub(super) verified: u64,
    pub(super) mismatches: u64,
    pub(super) first_mismatch: Option<u64>,
    pub(super) kicks: u64,
    pub(super) calls: u64,
    pub(super) elapsed: Duration,
    pub(super) latency: Histogram,
}

/// Where the requests of one queue go.
pub(super) struct Places {
    access: Access,
    /// Sectors of a block.
    step: u64,
    /// Blocks of the disk.
    blocks: u64,
    next: u64,
    random: u64,
}

/// How far one queue has come with its load, whatever back-ends come and go.
pub(super) struct Progress {
    phase: Phase,
    places: Places,
    began: Instant,
    measured_from: Instant,
    /// When each slot's request was made available.
    made: Box<[Instant]>,
    tally: Tally,
    reads: u64,
}

pub(super) struct Lane<'a> {
    queue: &'a mut BlockQueue,
    alive: BorrowedFd<'a>,
    timeout: Duration,
    options: &'a LoadOptions,
    given_up: &'a AtomicBool,
    pattern: Pattern,
    progress: &'a mut Progress,
}

/// What to do next, and with the answers that come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    WarmUp,
    Measure,
    Drain,
    Over,
}

impl Progress {
    pub(super) fn new(queue: &BlockQueue, places: Places) -> Self {
        let now = Instant::now();
        let made = vec![now; queue.slots().into()].into_boxed_slice();
        let (phase, tally) = (Phase::Begin, Tally::new());
        Self { phase, places, began: now, measured_from: now, made, tally, reads: 0 }
    }

    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }
}

impl<'a> Lane<'a> {
    pub(super) fn new(
        queue: &'a mut BlockQueue,
        alive: BorrowedFd<'a>,
        timeout: Duration,
        options: &'a LoadOptions,
        progress: &'a mut Progress,
        given_up: &'a AtomicBool,
    ) -> Self {
        let pattern = Pattern { seed: options.seed };
        Self { queue, alive, timeout, options, given_up, pattern, progress }
    }

    /// Runs to the limit and collects everything in flight, unless the load is given up. `share`:
    /// operations to do if the limit is a number of them.
    pub(super) fn run(mut self, share: u64) -> Result<()> {
        if self.options.polling {
            self.queue.ring_mut().suppress_calls(true);
        }
        if self.progress.phase == Phase::Begin {
            self.begin();
        }
        while self.progress.phase != Phase::Over {
            self.check_given_up()?;
            let phase = self.progress.phase;
            if phase == Phase::WarmUp && self.progress.began.elapsed() >= self.options.warm_up {
                self.measure();
            }
            let now = self.collect()?;
            let measured = now - self.progress.measured_from;
            let over = match self.options.limit {
                Limit::Time(time) => measured >= time,
                Limit::Ops(_) => self.progress.tally.ops >= share,
            };
            if self.progress.phase == Phase::Measure && over {
                self.progress.phase = Phase::Drain;
                self.progress.tally.finish(self.queue, measured);
            }
            if self.progress.phase == Phase::Drain && self.queue.in_flight() == 0 {
                self.progress.phase = Phase::Over;
            }
        }
        Ok(())
    }

    /// Makes the first requests: as many as the depth says.
    fn begin(&mut self) {
        let now = Instant::now();
        self.progress.began = now;
        self.progress.phase = Phase::WarmUp;
        for _ in 0..self.options.depth {
            if let Some(slot) = self.queue.take_slot() {
                self.submit(slot, now);
            }
        }
        self.queue.publish();
    }

    /// The warm-up is over.
    fn measure(&mut self) {
        self.progress.phase = Phase::Measure;
        self.progress.measured_from = Instant::now();
        self.progress.tally.restart(self.queue);
    }

    /// Waits for answers and handles all there are with one look at the clock; returns its time.
    fn collect(&mut self) -> Result<Instant> {
        let first = self.wait()?;
        let now = Instant::now();
        let mut next = Some(first);
        while let Some(done) = next {
            self.take(&done, now);
            next = self.queue.completed()?;
        }
        self.queue.publish();
        Ok(now)
    }

    fn take(&mut self, done: &Completion, now: Instant) {
        let is_drained = self.progress.phase == Phase::Drain;
        if !is_drained {
            let made = self.progress.made.get(usize::from(done.slot));
            self.progress.tally.latency.record(made.map_or(Duration::ZERO, |&at| now - at));
            self.progress.tally.ops += 1;
        }
        if done.status != 0 {
            self.progress.tally.errors += 1;
        } else if done.request.op == Op::Read {
            self.verify(done);
        }
        if !is_drained && let Some(slot) = self.queue.take_slot() {
            self.submit(slot, now);
        }
    }

    fn verify(&mut self, done: &Completion) {
        self.progress.reads += 1;
        if !self.options.verify.includes(self.progress.reads) {
            return;
        }
        self.progress.tally.verified += 1;
        let BlockRequest { sector, len, .. } = done.request;
        if let Err(bad) = self.pattern.check_slot(self.queue, done.slot, sector, len) {
            self.progress.tally.mismatches += 1;
            self.progress.tally.first_mismatch.get_or_insert(bad);
        }
    }

    fn submit(&mut self, slot: u16, now: Instant) {
        let (op, sector) = self.progress.places.next();
        let len = self.options.block_bytes;
        if op == Op::Write {
            self.pattern.fill(self.queue, slot, sector, len);
        }
        if let Some(made) = self.progress.made.get_mut(usize::from(slot)) {
            *made = now;
        }
        self.queue.submit(slot, BlockRequest { op, sector, len });
    }

    /// The next answer.
    fn wait(&mut self) -> Result<Completion> {
        if self.options.polling { self.wait_spinning() } else { self.wait_asleep() }
    }

    fn wait_asleep(&mut self) -> Result<Completion> {
        let mut quiet = Duration::ZERO;
        loop {
            if let Some(done) = self.queue.completed()? {
                return Ok(done);
            }
            let wait = QUIET.min(self.timeout - quiet);
            if self.queue.ring_mut().wait(wait, self.alive)? {
                continue;
            }
            quiet += wait;
            if quiet >= self.timeout {
                return Err(self.stuck());
            }
            self.check_given_up()?;
        }
    }

    fn wait_spinning(&mut self) -> Result<Completion> {
        let mut quiet_since = None;
        loop {
            for _ in 0..SPINS {
                if let Some(done) = self.queue.completed()? {
                    return Ok(done);
                }
                spin_loop();
            }
            self.check_given_up()?;
            let quiet = quiet_since.get_or_insert_with(Instant::now).elapsed();
            if quiet >= QUIET
                && let Err(error) = self.check_alive()
            {
                // What it did before it went counts.
                return self.queue.completed()?.ok_or(error);
            }
            if quiet >= self.timeout {
                return Err(self.stuck());
            }
        }
    }

    fn check_given_up(&self) -> Result<()> {
        if !self.given_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(HostError::new("run a load to its end", io::ErrorKind::Interrupted).into())
    }

    fn check_alive(&self) -> Result<()> {
        if self.queue.ring().error_signalled() {
            return Err(FrontendError::ring("it signalled the error descriptor"));
        }
        let mut fds = [PollFd::from_borrowed_fd(self.alive, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(1) => Err(FrontendError::Closed { message: "requests" }),
            _ => Ok(()),
        }
    }

    fn stuck(&self) -> FrontendError {
        FrontendError::TimedOut { message: "requests", timeout: self.timeout }
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            ops: 0,
            errors: 0,
            verified: 0,
            mismatches: 0,
            first_mismatch: None,
            kicks: 0,
            calls: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new(),
        }
    }

    /// Forgets how fast the warm-up was. What was wrong in it stays.
    fn restart(&mut self, queue: &BlockQueue) {
        self.ops = 0;
        self.latency.clear();
        (self.kicks, self.calls) = (queue.ring().kicks(), queue.ring().calls());
    }

    fn finish(&mut self, queue: &BlockQueue, elapsed: Duration) {
        self.kicks = queue.ring().kicks() - self.kicks;
        self.calls = queue.ring().calls() - self.calls;
        self.elapsed = elapsed;
    }
}

impl Places {
    /// For queue `index` of `count`: sequential access begins at its share of the disk.
    pub(super) fn new(options: &LoadOptions, disk_bytes: u64, index: u64, count: u64) -> Self {
        let blocks = disk_bytes / u64::from(options.block_bytes);
        Self {
            access: options.access,
            step: u64::from(options.block_bytes) / SECTOR,
            blocks,
            next: blocks / count * index,
            random: options.seed.wrapping_add(index + 1).wrapping_mul(0x5851_f42d_4c95_7f2d).max(1),
        }
    }

    fn next(&mut self) -> (Op, u64) {
        let op = match self.access {
            Access::Read | Access::RandRead => Op::Read,
            Access::Write | Access::RandWrite => Op::Write,
        };
        let block = match self.access {
            Access::Read | Access::Write => {
                let block = self.next;
                self.next = if block + 1 < self.blocks { block + 1 } else { 0 };
                block
            }
            Access::RandRead | Access::RandWrite => self.random_block(),
        };
        (op, block * self.step)
    }

    /// xorshift, then scaled by a multiplication instead of a division.
    fn random_block(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((u128::from(self.random) * u128::from(self.blocks)) >> 64) as u64
    }
}

impl Verify {
    /// Whether the `n`-th read is checked.
    fn includes(self, n: u64) -> bool {
        match self {
            Self::None => false,
            Self::Sampled => n.is_multiple_of(64),
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(access: Access, index: u64) -> Places {
        let options = LoadOptions { access, ..LoadOptions::default() };
        Places::new(&options, 10 * 4096 + 511, index, 2)
    }

    #[test]
    fn sequential_access_goes_round_the_whole_blocks_of_the_disk() {
        let mut places = places(Access::Write, 1);
        let sectors: Vec<_> = (0..7).map(|_| places.next()).collect();
        assert_eq!(sectors[0], (Op::Write, 40));
        assert_eq!(sectors[4..], [(Op::Write, 72), (Op::Write, 0), (Op::Write, 8)]);
    }

    #[test]
    fn random_access_reaches_every_block_and_none_past_the_end() {
        let mut places = places(Access::RandRead, 0);
        let mut seen = [false; 10];
        for _ in 0..1000 {
            let (op, sector) = places.next();
            assert_eq!((op, sector % 8), (Op::Read, 0));
            seen[(sector / 8) as usize] = true;
        }
        assert_eq!(seen, [true; 10]);
    }

    #[test]
    fn queues_do_not_walk_in_step() {
        let (mut a, mut b) = (places(Access::RandRead, 0), places(Access::RandRead, 1));
        assert!((0..100).any(|_| a.next() != b.next()));
    }
}
