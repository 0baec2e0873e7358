//! How a back-end is to run.

use std::time::Duration;

use crate::memory::MemoryOptions;
use crate::socket::Endpoint;
use crate::wire::XenDesigns;
use crate::xen::XenAccess;

/// How queues are shared out among worker threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One thread for each queue.
    PerQueue,
    /// This many for all queues together, in turns.
    Count(std::num::NonZeroU16),
}

/// How a back-end is to run.
#[derive(Debug)]
pub struct Options {
    /// Where front-ends come from.
    pub endpoint: Endpoint,
    /// After a front-end has left, take the next; else end.
    pub keep_listening: bool,
    /// Worker threads.
    pub threads: Threads,
    /// Most requests handed to the device at once.
    pub batch: u16,
    /// Longest busy polling before a worker sleeps; zero: none.
    pub poll: Duration,
    /// Processors to pin workers to, in turns; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Longest wait for requests in flight when the front-end stops a ring, resets the device or
    /// takes memory away. Those that are not back by then fail.
    pub drain: Duration,
    /// Longest time from the first byte of a message to its last.
    pub message_deadline: Duration,
    /// What memory of front-ends is taken.
    pub memory: MemoryOptions,
    /// Measure what [`Backend::metrics`](super::Backend::metrics) tells.
    pub measured: bool,
    /// Serve front-ends on Xen as well as ordinary ones.
    pub xen: Option<XenOptions>,
}

/// How front-ends on Xen are served.
#[derive(Clone, Debug)]
pub struct XenOptions {
    /// The designs of XEN_MMAP that are understood.
    pub designs: XenDesigns,
    /// The hypervisor's devices.
    pub access: XenAccess,
    /// The only domain whose memory is mapped; `None`: any that the front-end names.
    pub domain: Option<u16>,
}

impl Default for XenOptions {
    /// All designs, Linux's devices, any domain.
    fn default() -> Self {
        Self { designs: XenDesigns::ALL, access: XenAccess::linux(), domain: None }
    }
}

impl Options {
    /// Defaults that suit production.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            keep_listening: true,
            threads: Threads::PerQueue,
            batch: 64,
            poll: Duration::from_micros(32),
            cpus: Vec::new(),
            drain: Duration::from_secs(30),
            message_deadline: crate::socket::DEFAULT_DEADLINE,
            memory: MemoryOptions::default(),
            measured: false,
            xen: None,
        }
    }
}
