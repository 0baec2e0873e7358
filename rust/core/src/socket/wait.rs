//! Waiting for a descriptor, a wake and a point in time at once.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::HostError;
use crate::sys::interrupt;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// The descriptor has something (data, room, an end or an error).
    Fd,
    /// The wake descriptor is readable, or broken. Wins over the others, so that a busy peer
    /// cannot hide a stop.
    Wake,
    /// The time is over.
    Time,
}

/// Waits until `fd` shows one of `events`, `wake` is readable or `until` is past. Both
/// descriptors are optional; `None` for `until` waits for ever. Interruptions by signals are
/// not seen outside, unless the thread is [asked](interrupt) to give up.
pub(super) fn wait(
    fd: Option<(BorrowedFd<'_>, PollFlags)>,
    wake: Option<BorrowedFd<'_>>,
    until: Option<Instant>,
) -> Result<Ready, HostError> {
    let mut fds = Vec::with_capacity(2);
    fds.extend(wake.map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
    fds.extend(fd.map(|(fd, events)| PollFd::from_borrowed_fd(fd, events)));
    loop {
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        match poll(&mut fds, interrupt::slice(left).map(timespec).as_ref()) {
            Ok(0) if until.is_some_and(|at| at <= Instant::now()) => return Ok(Ready::Time),
            Ok(0) | Err(Errno::INTR) => {
                interrupt::ask().map_err(|e| HostError::new("wait for a socket", e))?;
            }
            Ok(_) => break,
            Err(error) => return Err(HostError::new("poll a socket", error)),
        }
    }
    let woken = wake.is_some() && fds.first().is_some_and(|wake| !wake.revents().is_empty());
    Ok(if woken { Ready::Wake } else { Ready::Fd })
}

fn timespec(duration: std::time::Duration) -> Timespec {
    // Longer than any deadline here; a longer wait would only be cut into two.
    const MAX_SECONDS: u64 = 1 << 31;
    Timespec {
        tv_sec: duration.as_secs().min(MAX_SECONDS) as i64,
        tv_nsec: i64::from(duration.subsec_nanos()) as _,
    }
}
