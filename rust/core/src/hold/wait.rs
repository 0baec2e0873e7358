//! Waiting for the first of several descriptors.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::error::HostError;

/// Waits until one of `fds` has something to read, an end or an error; returns the place of the
/// first that has.
pub(super) fn first_ready(fds: &[BorrowedFd<'_>]) -> Result<usize, HostError> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(HostError::new("wait for a message", error)),
            Ok(_) => {
                if let Some(at) = polled.iter().position(|fd| !fd.revents().is_empty()) {
                    return Ok(at);
                }
            }
        }
    }
}
