//! File I/O past the host's page cache.
//!
//! The kernel moves data so only in whole blocks, and only where the memory is aligned and made
//! of ordinary pages. A request goes
//!
//! | what it is | how it goes |
//! |---|---|
//! | whole blocks, aligned memory | straight between the disk and guest memory |
//! | whole blocks, other memory, or foreign mappings of Xen | through aligned memory of our own |
//! | parts of blocks | through the page cache, which the kernel keeps coherent |
//!
//! Source: open(2), "O_DIRECT"; statx(2), `stx_dio_mem_align`, `stx_dio_offset_align`.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::ReadWriteFlags;

use crate::memory::{Parts, Readable, Writable};
use crate::sys::private_fd::PrivateFd;

/// The alignment in bytes of this process's own memory, and what is assumed of a file that does not
/// tell its own.
const PAGE: usize = 4096;

/// The most bytes that go through this process's own memory at once.
const BOUNCE: usize = 256 << 10;

/// A file or block device, open for direct I/O.
#[derive(Debug)]
pub(super) struct DirectFile {
    fd: PrivateFd,
    alignment: Alignment,
}

/// What the kernel asks of a direct transfer, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    /// The alignment of addresses.
    memory: usize,
    /// The alignment of file offsets and of lengths.
    block: usize,
}

thread_local! {
    /// The thread's own memory, made at the first transfer that needs it.
    static OWN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl DirectFile {
    /// Opens the file behind `fd` once more.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) if its file system has no direct I/O; the
    /// system's.
    pub(super) fn reopen(fd: BorrowedFd<'_>, read_only: bool) -> io::Result<Self> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = access | OFlags::CLOEXEC | OFlags::DIRECT;
        let fd = PrivateFd::make(|| rustix::fs::open(path, flags, Mode::empty()));
        let fd = fd.map_err(|error| match error {
            rustix::io::Errno::INVAL => unsupported(),
            error => error.into(),
        })?;
        let alignment = Alignment::of(fd.as_fd())?;
        Ok(Self { fd, alignment })
    }

    /// Returns the file, open for direct I/O.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns whether a transfer of `length` bytes at `offset` of the file is one of whole blocks.
    pub(super) fn takes_range(&self, offset: u64, length: u64) -> bool {
        let block = self.alignment.block as u64;
        offset.is_multiple_of(block) && length.is_multiple_of(block)
    }

    /// Returns whether the kernel moves data straight to and from such memory, if it is made of
    /// ordinary pages.
    pub(super) fn takes_memory(&self, mut parts: Parts<'_>) -> bool {
        let Alignment { memory, block } = self.alignment;
        parts.all(|part| {
            part.base().addr().is_multiple_of(memory) && part.len().is_multiple_of(block)
        })
    }
}

impl Alignment {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
            return Ok(Self { memory: PAGE, block: PAGE });
        }
        let (memory, block) = (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize);
        // 0: the file system takes the flag and then goes through its cache all the same.
        let usual = |n: usize, most| n.is_power_of_two() && n <= most;
        if usual(memory, PAGE) && usual(block, BOUNCE) {
            Ok(Self { memory, block })
        } else {
            Err(unsupported())
        }
    }
}

/// Reads `length` bytes of `fd` from `from` on to byte `at` of `data`, through memory of this
/// process; returns the bytes read.
pub(super) fn read_through_own(
    data: Writable<'_>,
    (at, length): (u64, u64),
    fd: BorrowedFd<'_>,
    from: u64,
) -> io::Result<u64> {
    through_own(length, |own, done| {
        let read = || rustix::io::pread(fd, &mut *own, from + done);
        let read = rustix::io::retry_on_intr(read)?;
        data.write_at(at + done, &own[..read]);
        still_there(data.is_lost())?;
        Ok(read)
    })
}

/// Writes `length` bytes from byte `at` of `data` to `fd` from `to` on, through memory of this
/// process; returns the bytes written.
pub(super) fn write_through_own(
    data: Readable<'_>,
    (at, length): (u64, u64),
    fd: BorrowedFd<'_>,
    to: u64,
    durable: bool,
) -> io::Result<u64> {
    let flags = if durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    through_own(length, |own, done| {
        data.read_at(at + done, own);
        still_there(data.is_lost())?;
        let write = || rustix::io::pwritev2(fd, &[IoSlice::new(own)], to + done, flags);
        Ok(rustix::io::retry_on_intr(write)?)
    })
}

/// Moves `length` bytes in pieces. `step` gets aligned memory and the place in the whole, and
/// returns the bytes that it moved: fewer than there is memory for only at the end of the file.
fn through_own(
    length: u64,
    mut step: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<u64> {
    OWN.with_borrow_mut(|own| {
        own.resize(BOUNCE + PAGE, 0);
        let lead = own.as_ptr().align_offset(PAGE);
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(BOUNCE as u64) as usize;
            let moved = step(&mut own[lead..lead + piece], done)?;
            done += moved as u64;
            if moved < piece {
                break;
            }
        }
        Ok(done)
    })
}

/// What was copied counts only if the front-end has not taken the memory away. A system call on it
/// would have failed in the same way.
fn still_there(is_lost: bool) -> io::Result<()> {
    if is_lost { Err(io::Error::from_raw_os_error(libc::EFAULT)) } else { Ok(()) }
}

fn unsupported() -> io::Error {
    let why = "its file system has no direct I/O: open it without `direct`";
    io::Error::new(io::ErrorKind::Unsupported, why)
}
