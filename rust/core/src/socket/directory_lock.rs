//! Back-ends that give and take names in one directory do so one after the other.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use crate::sys::private_fd::PrivateFd;

/// How often the lock is tried, and the pause between two attempts: a second in all. Who has it as
/// one of ours does lets go of it long before.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// A directory's advisory lock (`flock`), until it is dropped.
///
/// It keeps apart those who ask for it. Without it things go on, with what the file system promises
/// of each single step: where a directory may not be read, or cannot be locked, or somebody holds
/// the lock for reasons of his own.
#[derive(Debug)]
pub(super) struct DirectoryLock(#[allow(dead_code)] Option<PrivateFd>);

impl DirectoryLock {
    /// Waits for the lock, a second at most.
    pub(super) fn take(directory: BorrowedFd<'_>) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = PrivateFd::make(|| openat(directory, ".", flags, Mode::empty()));
        Self(opened.ok().filter(|fd| is_locked(fd.as_fd())))
    }
}

fn is_locked(fd: BorrowedFd<'_>) -> bool {
    for _ in 0..ATTEMPTS {
        match flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => thread::sleep(PAUSE),
            Err(Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
    false
}
