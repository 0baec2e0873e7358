//! The descriptors by which the two ends of a ring wake each other, and the wait for the device.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::error::{FrontendError, Result};
use crate::error::HostError;
use crate::sys::eventfd::EventFd;
use crate::sys::interrupt;

/// Kick, call and error descriptors of one ring, counted.
#[derive(Debug)]
pub(super) struct Signals {
    kick: EventFd,
    call: EventFd,
    error: EventFd,
    kicks: u64,
    calls: u64,
}

/// The side of a ring that the device writes to.
pub(super) trait UsedSide {
    /// The ring's descriptors.
    fn signals(&mut self) -> &mut Signals;

    /// Asks to be called at the next used chain. `true`: there is one already.
    fn ask_for_call(&mut self) -> Result<bool>;

    /// Looks whether there is a used chain.
    fn look(&mut self) -> Result<bool>;
}

/// Waits for a used chain, asleep on the call descriptor. `false`: none came in time.
///
/// `alive` is the connection's socket: when the back-end hangs up, or signals the ring's error
/// descriptor, and nothing is used, that is an error at once.
pub(super) fn wait(
    ring: &mut impl UsedSide,
    timeout: Duration,
    alive: BorrowedFd<'_>,
) -> Result<bool> {
    let until = Instant::now() + timeout;
    loop {
        if ring.ask_for_call()? {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        let slice = interrupt::slice(Some(left)).unwrap_or(left);
        let [failed, gone] = ring.signals().sleep(slice, alive)?;
        if ring.look()? {
            return Ok(true);
        }
        if failed {
            return Err(FrontendError::ring("it signalled the error descriptor"));
        }
        if gone {
            return Err(FrontendError::Closed { message: "requests" });
        }
        if left.is_zero() {
            return Ok(false);
        }
        interrupt::ask().map_err(|e| HostError::new("wait for a call", e))?;
    }
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let eventfd = || EventFd::new().map_err(|e| HostError::new("make an eventfd", e));
        Ok(Self { kick: eventfd()?, call: eventfd()?, error: eventfd()?, kicks: 0, calls: 0 })
    }

    pub(super) fn kick(&mut self) {
        self.kicks += 1;
        self.kick.signal();
    }

    /// Kicks sent.
    pub(super) fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Calls taken while waiting.
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    pub(super) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(super) fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    pub(super) fn error_fd(&self) -> BorrowedFd<'_> {
        self.error.as_fd()
    }

    /// Whether the back-end has signalled the error descriptor.
    pub(super) fn error_signalled(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.error.as_fd(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timespec(Duration::ZERO))), Ok(1))
    }

    /// Forgets what a back-end signalled that is gone.
    pub(super) fn clear_error(&self) {
        self.error.clear();
    }

    /// Sleeps until the call descriptor, the error descriptor or the end of the connection; says
    /// whether it was one of the last two.
    fn sleep(&mut self, timeout: Duration, alive: BorrowedFd<'_>) -> Result<[bool; 2]> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.error.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(alive, PollFlags::RDHUP),
        ];
        let [called, failed, gone] = match poll(&mut fds, Some(&timespec(timeout))) {
            Ok(_) => fds.map(|fd| !fd.revents().is_empty()),
            Err(Errno::INTR) => [false; 3],
            Err(error) => return Err(HostError::new("wait for a call", error).into()),
        };
        if called {
            self.call.clear();
            self.calls += 1;
        }
        Ok([failed, gone])
    }
}

/// Sleeps until one of a ring's events, something on the back-end's channel, or the end of the
/// connection, and takes none of it.
pub(super) fn sleep_beside(
    events: &[BorrowedFd<'_>; 2],
    channel: Option<BorrowedFd<'_>>,
    alive: &impl AsFd,
    timeout: Duration,
) -> Result<()> {
    let readable = events.iter().copied().chain(channel);
    let mut fds: Vec<_> = readable.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    fds.push(PollFd::from_borrowed_fd(alive.as_fd(), PollFlags::RDHUP));
    match poll(&mut fds, Some(&timespec(timeout))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(HostError::new("wait for a call", error).into()),
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A day: longer waits are for a loop outside.
    let seconds = duration.as_secs().min(86_400);
    Timespec { tv_sec: seconds as i64, tv_nsec: i64::from(duration.subsec_nanos()) as _ }
}
