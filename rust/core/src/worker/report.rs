//! What a worker tells of itself and of its queues.

use std::fmt;

use crate::memory::{Beyond, Fault, Miss};
use crate::ring::{RingError, StartError};
use crate::ring_position::RingPosition;

/// What a worker reports. Called on any thread that serves a queue, possibly with that queue's lock
/// held: it must neither block nor wait for the back-end.
pub(crate) trait Report: Send + Sync {
    /// A ring was looked at for the first time.
    fn queue_began(&self, queue: u16, began: Began);
    /// The driver broke a ring.
    fn queue_broken(&self, queue: u16, error: Broken);
    /// A request failed before the device saw it. Each reason is told once for each start of a ring.
    fn request_failed(&self, queue: u16, why: Failed);
    /// The dirty log has no bit for something that was written. Told once for each log.
    fn log_too_short(&self, queue: u16, beyond: Beyond);
    /// A queue waits for translations, which the front-end is to be asked for. Returns the number by
    /// which it hears of those that there are not.
    fn translations_missing(&self, queue: u16, misses: &[Miss]) -> u64;
    /// The thread ended by a panic, with this message.
    fn worker_panicked(&self, message: String);
}

/// Why a request failed before the device saw it.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Some of its buffers cannot be reached.
    Memory(Fault),
    /// It is longer than the device takes.
    TooLong {
        /// Bytes of its buffers.
        bytes: u64,
        /// The most that the device takes.
        most: u64,
    },
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(fault) => fault.fmt(f),
            Self::TooLong { bytes, most } => write!(
                f,
                "its buffers have {bytes} bytes, and the device takes {most} at most \
                 (max_request_bytes)"
            ),
        }
    }
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
    pub(crate) base: RingPosition,
    /// What the front-end named.
    pub(crate) named: RingPosition,
    /// Requests that come again, as the process that had them died.
    pub(crate) unfinished: u16,
}
