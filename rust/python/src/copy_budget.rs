//! Private copies of request data, and how much of them there may be.
//!
//! A chain of a few descriptors may describe 4 GiB out of one small buffer, and Python sees data
//! that lies in pieces as a copy in one piece. So each queue has a budget for the copies that are
//! there at a time, and so has the process; a request over either of them fails, and so does one
//! for which the system has no memory.
//!
//! A copy goes with its request. Large ones go back to the system at once; small ones wait, within
//! limits, for the next request of their queue, so that a steady load maps nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pages::Pages;
use crate::raw_bytes::RawTarget;

/// What all queues of the process may have together by default.
pub(crate) const TOTAL_DEFAULT: u64 = 1 << 30;

/// The smallest and the largest copy that is kept for the next request, as powers of two: one page,
/// and what a driver's largest ordinary request comes to.
const KEPT: std::ops::RangeInclusive<u32> = 12..=20;
const CLASSES: usize = (*KEPT.end() - *KEPT.start() + 1) as usize;

/// Bytes that a queue keeps for later requests.
const QUEUE_KEEPS: u64 = 8 << 20;

/// Bytes that all queues together keep for later requests.
const TOTAL_KEEPS: u64 = 64 << 20;

/// The copies of all queues of the process, and the memory that they keep for later requests.
static TOTAL: Account = Account::new(TOTAL_DEFAULT);
static KEPT_IN_ALL: Account = Account::new(TOTAL_KEEPS);

/// Sets what all queues of the process may have together; returns what that was before. Copies that
/// are there stay.
pub(crate) fn set_total(bytes: u64) -> u64 {
    TOTAL.limit.swap(bytes, Ordering::Relaxed)
}

/// Bytes that were taken, and the most that may be.
#[derive(Debug)]
struct Account {
    limit: AtomicU64,
    taken: AtomicU64,
}

impl Account {
    const fn new(limit: u64) -> Self {
        Self { limit: AtomicU64::new(limit), taken: AtomicU64::new(0) }
    }

    /// Takes `bytes`, or says what was taken and what the limit is.
    fn take(&self, bytes: u64) -> Result<(), (u64, u64)> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |taken: u64| taken.checked_add(bytes).filter(|&sum| sum <= limit);
        let done = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        done.map(drop).map_err(|taken| (taken, limit))
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why there is no copy.
#[derive(Debug)]
pub(crate) enum CopyRefused {
    /// It would be over the budget of its queue.
    Queue { queue: u16, bytes: u64, taken: u64, limit: u64 },
    /// It would be over the budget of the process.
    Process { bytes: u64, taken: u64, limit: u64 },
    /// The system has no memory for it.
    System { bytes: u64, error: std::io::Error },
}

impl fmt::Display for CopyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue { queue, bytes, taken, limit } => write!(
                f,
                "a private copy of {bytes} bytes is over the budget of queue {queue}: {taken} of \
                 {limit} bytes are taken; Backend(copy_budget=...) or --copy-budget raises it"
            ),
            Self::Process { bytes, taken, limit } => write!(
                f,
                "a private copy of {bytes} bytes is over the budget of the process: {taken} of \
                 {limit} bytes are taken; set_total_copy_budget() or --total-copy-budget raises it"
            ),
            Self::System { bytes, error } => {
                write!(f, "there is no memory for a private copy of {bytes} bytes: {error}")
            }
        }
    }
}

/// The copies of one queue.
#[derive(Debug)]
pub(crate) struct CopyBudget {
    queue: u16,
    own: Account,
    /// Bytes of all copies so far.
    copied: AtomicU64,
    kept: Mutex<Kept>,
}

/// Memory that waits for the next request, by its size.
#[derive(Debug, Default)]
struct Kept {
    classes: [Vec<Pages>; CLASSES],
    bytes: u64,
}

impl CopyBudget {
    /// A queue may have `limit` bytes of copies at a time.
    pub(crate) fn new(queue: u16, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            queue,
            own: Account::new(limit),
            copied: AtomicU64::new(0),
            kept: Mutex::default(),
        })
    }

    /// Memory for `len` bytes.
    ///
    /// # Errors
    /// It is over a budget, or the system has none.
    pub(crate) fn take(self: &Arc<Self>, len: u64) -> Result<PrivateCopy, CopyRefused> {
        self.own.take(len).map_err(|(taken, limit)| CopyRefused::Queue {
            queue: self.queue,
            bytes: len,
            taken,
            limit,
        })?;
        // From here on what was taken goes back when this is dropped.
        let mut copy = PrivateCopy { pages: None, len: 0, budget: Arc::clone(self), used: false };
        if let Err((taken, limit)) = TOTAL.take(len) {
            self.own.give_back(len);
            return Err(CopyRefused::Process { bytes: len, taken, limit });
        }
        copy.len = len;
        self.copied.fetch_add(len, Ordering::Relaxed);
        if len > 0 {
            let pages =
                self.find(len).map_err(|error| CopyRefused::System { bytes: len, error })?;
            (copy.pages, copy.used) = (Some(pages.0), pages.1);
        }
        Ok(copy)
    }

    /// Bytes of all copies so far.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Gives what waits for later requests back to the system.
    pub(crate) fn forget(&self) {
        let kept = std::mem::take(&mut *self.lock());
        KEPT_IN_ALL.give_back(kept.bytes);
    }

    /// Pages for `len` bytes, and whether they were in use before.
    fn find(&self, len: u64) -> std::io::Result<(Pages, bool)> {
        let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let Some(class) = class_of(len) else { return Ok((Pages::new(len)?, false)) };
        let mut kept = self.lock();
        if let Some(pages) = kept.classes[class].pop() {
            kept.bytes -= pages.len() as u64;
            drop(kept);
            KEPT_IN_ALL.give_back(pages.len() as u64);
            return Ok((pages, true));
        }
        drop(kept);
        Ok((Pages::new(1 << (class as u32 + KEPT.start()))?, false))
    }

    /// Keeps pages for later requests if they are small and few; else the system gets them.
    fn keep(&self, pages: Pages) {
        let bytes = pages.len() as u64;
        let Some(class) = class_of(pages.len()) else { return };
        let mut kept = self.lock();
        if kept.bytes + bytes <= QUEUE_KEEPS && KEPT_IN_ALL.take(bytes).is_ok() {
            kept.bytes += bytes;
            kept.classes[class].push(pages);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CopyBudget {
    fn drop(&mut self) {
        self.forget();
    }
}

/// The class of a copy of `len` bytes that may be kept.
fn class_of(len: usize) -> Option<usize> {
    let power = len.max(1 << KEPT.start()).checked_next_power_of_two()?.trailing_zeros();
    KEPT.contains(&power).then_some((power - KEPT.start()) as usize)
}

/// Memory that holds a copy of a request's data. It is the queue's until this is dropped.
#[derive(Debug)]
pub(crate) struct PrivateCopy {
    pages: Option<Pages>,
    len: u64,
    budget: Arc<CopyBudget>,
    /// Former requests have left their data in it.
    used: bool,
}

impl PrivateCopy {
    /// Its bytes. There may be none.
    pub(crate) fn bytes(&self) -> Option<RawTarget<'_>> {
        // A copy that is there fits the address space.
        self.pages.as_ref().map(|pages| pages.bytes().part(0..self.len as usize))
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Makes its bytes zeroes: what former requests have left is not this one's.
    pub(crate) fn clear(&self) {
        if self.used
            && let Some(bytes) = self.bytes()
        {
            bytes.fill(0);
        }
    }
}

impl Drop for PrivateCopy {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.budget.keep(pages);
        }
        if self.len > 0 {
            self.budget.own.give_back(self.len);
            TOTAL.give_back(self.len);
        }
    }
}
