//! What load to make.

use std::time::Duration;

/// Which requests to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads in order.
    Read,
    /// Writes in order.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
}

impl Access {
    /// Whether it reads.
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::RandRead)
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After this time, the warm-up not counted.
    Time(Duration),
    /// After this many requests on all queues together, the warm-up's not counted.
    Ops(u64),
}

/// Which reads to check. Writes always carry the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// None.
    None,
    /// One in 64.
    Sampled,
    /// Every one.
    All,
}

/// What load to make.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Which requests.
    pub access: Access,
    /// Bytes of a request: whole sectors.
    pub block_bytes: u32,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// When to stop.
    pub limit: Limit,
    /// Time at the beginning that does not count.
    pub warm_up: Duration,
    /// Poll for answers and ask for no calls; else sleep until called.
    pub polling: bool,
    /// Processors for the threads, one each, in turns; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Which reads to check against the pattern.
    pub verify: Verify,
    /// The pattern's seed, and that of the random places.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            access: Access::RandRead,
            block_bytes: 4096,
            depth: 32,
            limit: Limit::Time(Duration::from_secs(1)),
            warm_up: Duration::ZERO,
            polling: false,
            cpus: Vec::new(),
            verify: Verify::Sampled,
            seed: 1,
        }
    }
}
