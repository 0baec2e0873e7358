//! The calls that a file-backed disk makes, as one type: the host's file in use, a recorder with
//! faults in tests.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FallocateFlags;

use super::direct::DirectFile;
use super::numbers::{ByteRange, SECTOR};
use super::request::BlockRequest;
use crate::sys::block_device::{DeviceBlocks, device_blocks};
use crate::sys::private_fd::PrivateFd;

/// An open disk image. Offsets and lengths are bytes; lengths are not 0.
pub trait Image: Send + Sync + fmt::Debug + 'static {
    /// Reads into the request's data from `request.offset()`; returns the bytes read.
    fn read(&self, request: &BlockRequest) -> io::Result<u64>;

    /// Writes the request's data at `request.offset()`; returns the bytes written. `durable`: on
    /// stable storage when this returns.
    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<u64>;

    /// Writes bytes of this process at `offset`; returns how many.
    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Puts all that was written on stable storage.
    fn sync(&self) -> io::Result<()>;

    /// Gives up the space of a range, which reads as zeroes then.
    fn punch_hole(&self, range: ByteRange) -> io::Result<()>;

    /// Makes a range read as zeroes and keeps its space.
    fn zero_range(&self, range: ByteRange) -> io::Result<()>;

    /// Returns the number of bytes of the image now.
    fn size(&self) -> io::Result<u64>;

    /// Returns the blocks of what the image is kept on.
    fn blocks(&self) -> io::Result<DeviceBlocks> {
        Ok(FILE_BLOCKS)
    }
}

/// The blocks of an image in a file: any sector can be addressed, and most file systems and disks
/// change a page at once. Smaller writes are read, changed and written back by the host.
pub(super) const FILE_BLOCKS: DeviceBlocks =
    DeviceBlocks { logical: SECTOR as u32, physical: 4096, aligned_at: 0, min_io: 0, opt_io: 0 };

/// A regular file or a block device of the host, through its page cache or past it.
#[derive(Debug)]
pub struct HostImage {
    fd: PrivateFd,
    direct: Option<DirectFile>,
}

impl HostImage {
    /// Returns an image that is used through the page cache. `fd` is open for what will be asked of
    /// it.
    pub fn new(fd: PrivateFd) -> Self {
        Self { fd, direct: None }
    }

    /// Returns an image that is used past the page cache, as far as requests are in whole blocks.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) if the file system has no direct I/O; the
    /// system's.
    pub fn direct(fd: PrivateFd, read_only: bool) -> io::Result<Self> {
        let direct = Some(DirectFile::reopen(fd.as_fd(), read_only)?);
        Ok(Self { fd, direct })
    }
}

impl Image for HostImage {
    #[inline]
    fn read(&self, request: &BlockRequest) -> io::Result<u64> {
        match self.route(request) {
            Route::Straight(fd, direct) => {
                request.read(0, request.length(), fd, request.offset(), direct)
            }
            Route::ThroughOwn(fd) => request.read_through_own(fd),
        }
    }

    #[inline]
    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<u64> {
        match self.route(request) {
            Route::Straight(fd, direct) => {
                let whole = (0, request.length());
                request.write(whole, fd, request.offset(), durable, direct)
            }
            Route::ThroughOwn(fd) => request.write_through_own(fd, durable),
        }
    }

    fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.fd, bytes, offset))?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.fd))?)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<()> {
        self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
    }

    fn zero_range(&self, range: ByteRange) -> io::Result<()> {
        self.allocate(FallocateFlags::ZERO_RANGE, range)
    }

    fn size(&self) -> io::Result<u64> {
        // Works for files and for block devices; the position is used by nobody.
        Ok(rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::End(0))?)
    }

    fn blocks(&self) -> io::Result<DeviceBlocks> {
        match device_blocks(self.fd.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(FILE_BLOCKS),
            asked => asked,
        }
    }
}

/// How the data of a request goes, and through which open file.
enum Route<'a> {
    /// The data go between the file and guest memory, by direct I/O if that is said.
    Straight(BorrowedFd<'a>, bool),
    /// The data go through aligned memory of this process.
    ThroughOwn(BorrowedFd<'a>),
}

impl HostImage {
    #[inline]
    fn route(&self, request: &BlockRequest) -> Route<'_> {
        let takes = |direct: &&DirectFile| direct.takes_range(request.offset(), request.length());
        match self.direct.as_ref().filter(takes) {
            None => Route::Straight(self.fd.as_fd(), false),
            Some(direct) if direct.takes_memory(request.parts()) && !request.is_foreign() => {
                Route::Straight(direct.fd(), true)
            }
            Some(direct) => Route::ThroughOwn(direct.fd()),
        }
    }

    fn allocate(&self, how: FallocateFlags, range: ByteRange) -> io::Result<()> {
        let ByteRange { offset, length } = range;
        let call = || rustix::fs::fallocate(&self.fd, how, offset, length);
        Ok(rustix::io::retry_on_intr(call)?)
    }
}
