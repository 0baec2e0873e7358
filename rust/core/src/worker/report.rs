//! What a worker tells of itself and of its queues.

use crate::memory::Fault;
use crate::ring::{RingError, StartError};

/// What a worker reports. Called on any thread that serves a queue, possibly with that queue's lock
/// held: it must neither block nor wait for the back-end.
pub(crate) trait Report: Send + Sync {
    /// A ring was looked at for the first time.
    fn queue_began(&self, queue: u16, began: Began);
    /// The driver broke a ring.
    fn queue_broken(&self, queue: u16, error: Broken);
    /// A request's buffers could not be reached: it failed. Told once for each start of a ring.
    fn request_failed(&self, queue: u16, fault: Fault);
    /// The thread ended by a panic, with this message.
    fn worker_panicked(&self, message: String);
}

/// How a ring got broken.
#[derive(Debug)]
pub(crate) enum Broken {
    /// By the driver.
    Driver(RingError),
    /// Its memory was taken away.
    Memory(StartError),
}

/// How a ring was taken up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    pub(crate) size: u16,
    pub(crate) base: u16,
    /// What the front-end named.
    pub(crate) named: u16,
}
