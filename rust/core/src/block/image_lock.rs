//! The lock on an image, which follows its guest from one back-end to another.
//!
//! Two back-ends have the image of a guest that migrates open, and its rings run in one of them at
//! a time. So there are two locks, on ranges of the file that no data is in and that no other
//! program takes:
//!
//! | range | held | by |
//! |---|---|---|
//! | all data | alone, while rings run, and from its start to the first rings | a back-end that writes |
//! | all data | shared, as long as the image is open | back-ends that only read |
//! | the writer's mark | shared, as long as the image is open | back-ends that write, once the guest was there |
//! | the mark of who waits | shared, as long as the image is open | back-ends that a guest is to come to |
//! | the readers' mark | shared, as long as the image is open | back-ends that only read |
//!
//! The marks keep a back-end from an image that another one has open, unless it is told that a guest
//! is to come from there: then it takes the lock when its rings start, and not before. Who only waits
//! for a guest does not keep the guest's back-end from the image, which may have died and start again.
//! The lock on all data keeps out programs that lock parts of it too, as QEMU does with its bytes 100
//! to 263.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{Advice, FileType, fadvise, fstat};

use crate::sys::lock::{Hold, LockRange, is_locked_by_others, lock_range, unlock_range};
use crate::sys::lock_holder::lock_holder;
use crate::sys::private_fd::PrivateFd;

/// Where the marks are: past the end of any file.
const MARKS: i64 = 1 << 62;
const DATA: LockRange = LockRange { start: 0, length: MARKS };
const WRITER: LockRange = LockRange { start: MARKS, length: 1 };
const READERS: LockRange = LockRange { start: MARKS + 1, length: 1 };
const WAITING: LockRange = LockRange { start: MARKS + 2, length: 1 };

/// A back-end that starts holds the writer's mark alone for as long as it takes to look for
/// others. One that starts at the same moment tries again.
const TRIES: u32 = 20;
const TRY_INTERVAL: Duration = Duration::from_millis(5);

/// Which other back-ends may have an image open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This one only reads, and so may others.
    Readers,
    /// None may.
    None,
    /// One that the guest comes from may.
    Incoming,
}

/// Why an image cannot be used.
#[derive(Debug)]
pub(super) enum LockError {
    /// Somebody has it: who, as far as that is known.
    InUse(String),
    /// The system's.
    Host(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// What happened to an image while others might use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// Nothing that can be told.
    Nothing,
    /// Another process has written to it, and the front-end is the one that used it before.
    Changed,
}

/// The lock on one open image.
#[derive(Debug)]
pub(super) struct ImageLock {
    fd: PrivateFd,
    sharing: Sharing,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// All data is locked: rings may run here.
    taken: bool,
    /// When it was written to last, as its rings stopped; of the front-end that is connected.
    left: Option<Written>,
}

/// Seconds and nanoseconds at which a file was written to.
type Written = (i64, u64);

impl ImageLock {
    /// Marks the image that `fd` is open on as this process's. The marks go with the description
    /// that `fd` belongs to.
    pub(super) fn mark(fd: &PrivateFd, sharing: Sharing) -> Result<Self, LockError> {
        let fd = fd.try_clone()?;
        match sharing {
            Sharing::Readers => {
                take(&fd, Hold::Shared, READERS)?;
                keep_out(&fd, WRITER)?;
                keep_out(&fd, WAITING)?;
                take(&fd, Hold::Shared, DATA)?;
            }
            Sharing::None => {
                take(&fd, Hold::Alone, WRITER)?;
                keep_out(&fd, READERS)?;
                take(&fd, Hold::Alone, DATA)?;
                take(&fd, Hold::Shared, WRITER)?;
            }
            Sharing::Incoming => {
                take(&fd, Hold::Shared, WAITING)?;
                keep_out(&fd, READERS)?;
            }
        }
        let state = State { taken: sharing == Sharing::None, left: None };
        Ok(Self { fd, sharing, state: Mutex::new(state) })
    }

    /// Locks the image for rings that are to run.
    pub(super) fn take(&self) -> Result<Meanwhile, LockError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sharing == Sharing::Readers || state.taken {
            return Ok(Meanwhile::Nothing);
        }
        take(&self.fd, Hold::Alone, DATA)?;
        if let Err(error) = take_soon(&self.fd, Hold::Shared, WRITER) {
            unlock_range(self.fd.as_fd(), DATA)?;
            return Err(error);
        }
        state.taken = true;
        self.drop_cache();
        match state.left.take() {
            Some(left) if left != self.written()? => Ok(Meanwhile::Changed),
            _ => Ok(Meanwhile::Nothing),
        }
    }

    /// Whether it is locked for rings that run.
    pub(super) fn is_taken(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).taken
    }

    /// Gives the lock up: no rings run, and what they wrote is on stable storage.
    pub(super) fn give_up(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left = Some(self.written()?);
        unlock_range(self.fd.as_fd(), DATA)?;
        state.taken = false;
        Ok(())
    }

    /// The front-end is gone: the next one knows nothing of what the image was.
    pub(super) fn forget_front_end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).left = None;
    }

    /// Drops what the host has cached of an image that another host may have changed, where the
    /// file system does not see to that: on a block device there is none. It is advice, and what
    /// cannot be dropped stays.
    fn drop_cache(&self) {
        if self.sharing == Sharing::Incoming || self.is_block_device() {
            let _ = fadvise(&self.fd, 0, None, Advice::DontNeed);
        }
    }

    fn is_block_device(&self) -> bool {
        let kind = fstat(&self.fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        kind == Ok(FileType::BlockDevice)
    }

    fn written(&self) -> io::Result<Written> {
        let stat = fstat(&self.fd)?;
        Ok((stat.st_mtime, stat.st_mtime_nsec))
    }
}

fn take(fd: &PrivateFd, hold: Hold, range: LockRange) -> Result<(), LockError> {
    match lock_range(fd.as_fd(), hold, range) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(in_use(fd, range)),
        done => Ok(done?),
    }
}

fn take_soon(fd: &PrivateFd, hold: Hold, range: LockRange) -> Result<(), LockError> {
    for _ in 1..TRIES {
        match lock_range(fd.as_fd(), hold, range) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(TRY_INTERVAL),
            done => return Ok(done?),
        }
    }
    take(fd, hold, range)
}

/// Fails if others hold the range, which is not locked.
fn keep_out(fd: &PrivateFd, range: LockRange) -> Result<(), LockError> {
    match is_locked_by_others(fd.as_fd(), range)? {
        true => Err(in_use(fd, range)),
        false => Ok(()),
    }
}

fn in_use(fd: &PrivateFd, range: LockRange) -> LockError {
    let somebody = || "another back-end or program".to_owned();
    LockError::InUse(lock_holder(fd.as_fd(), range).map_or_else(somebody, |who| who.to_string()))
}
