//! Descriptors of this process alone.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process;

use super::{fd_table, fork};

/// An owned descriptor that forked children do not have: they find `/dev/null` in its place.
#[derive(Debug)]
pub struct PrivateFd {
    /// `None` only while it is being dropped.
    fd: Option<OwnedFd>,
    /// The process that has it.
    process: u32,
}

impl PrivateFd {
    /// Makes a descriptor. No fork comes before it is noted.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn make<E>(make: impl FnOnce() -> Result<OwnedFd, E>) -> Result<Self, E> {
        making(|| make().map(Self::from))
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::make(|| self.as_fd().try_clone_to_owned())
    }
}

/// Runs `make`, which makes descriptors that are turned into private ones before it returns. A fork
/// comes before or after it.
pub fn making<T>(make: impl FnOnce() -> T) -> T {
    fd_table::whole(make)
}

impl From<OwnedFd> for PrivateFd {
    fn from(fd: OwnedFd) -> Self {
        // Without a handler a forked child has what it always had.
        let _ = fork::install();
        fd_table::note(fd.as_raw_fd());
        Self { fd: Some(fd), process: process::id() }
    }
}

impl From<File> for PrivateFd {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl AsFd for PrivateFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is there until it is dropped").as_fd()
    }
}

impl Drop for PrivateFd {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if self.process == process::id() {
            fd_table::close(fd);
        } else {
            // A forked child: the number may be another file's by now.
            mem::forget(fd);
        }
    }
}
