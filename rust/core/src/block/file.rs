//! A disk in a file or on a block device of the host.
//!
//! Data goes between guest memory and the host's page cache by `preadv` and `pwritev`, never
//! through a mapping of the image: an image that is cut while in use is an I/O error, not a
//! signal. With direct I/O it goes past that cache. What the promises about durability come to:
//!
//! | the driver has | a completed write is | a completed flush is |
//! |---|---|---|
//! | FLUSH, cache on | in the page cache | `fdatasync`: all completed writes are on stable storage |
//! | FLUSH, cache off | on stable storage (`RWF_DSYNC`) | the same |
//! | no FLUSH | on stable storage (`RWF_DSYNC`) | not asked for |
//!
//! When the kernel fails to write a page out it says so once, drops the page and calls the file
//! clean again. A later `fdatasync` that succeeds would be a lie about that page. So the first
//! failure is final: no flush and no durable write succeeds until the image is opened anew. Nor is
//! the image given up to another back-end, which would know nothing of it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags};

use super::config::Geometry;
use super::disk::{Disk, Taken};
use super::image::{HostImage, Image};
use super::image_lock::{ImageLock, LockError, Meanwhile, Sharing};
use super::numbers::{ByteRange, SECTOR};
use super::request::BlockRequest;
use crate::device::{NotGivenUp, Unavailable};
use crate::error::HostError;
use crate::sys::block_device::DeviceBlocks;
use crate::sys::private_fd::PrivateFd;

/// Zeroes that are written in one call where the image can only be zeroed by writing.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A disk in a file or on a block device of the host.
#[derive(Debug)]
pub struct FileDisk<I = HostImage> {
    image: I,
    /// The lock on it, and its path; none on what no other process can open.
    lock: Option<(ImageLock, String)>,
    /// Bytes of the image when it was last asked.
    size: AtomicU64,
    /// The blocks of what it is kept on.
    host: DeviceBlocks,
    /// Bytes of a logical block, as the driver is told.
    block_size: u32,
    read_only: bool,
    /// Whether data may have been lost: nothing is durable any more then.
    failed: AtomicBool,
    /// The lock that lets one sync run at a time. The kernel reports a failure to one caller of
    /// several at once; the others would take their data for safe.
    syncing: Mutex<()>,
}

impl FileDisk {
    /// Opens the image at `path`, to read only with [`Sharing::Readers`], and locks it: shared, or
    /// alone for writing. The lock goes with the disk. One for writing is given up when the last
    /// ring of the device stops, and taken again when the first starts. With [`Sharing::Incoming`]
    /// it is taken then only: another back-end of this package may have the image open.
    ///
    /// # Errors
    /// It cannot be opened, is neither regular file nor block device, has a size that is no
    /// multiple of 512, or is in use by somebody else.
    pub fn open(path: &Path, sharing: Sharing) -> Result<Self, HostError> {
        Self::open_as(path, sharing, |fd| Ok(HostImage::new(fd)))
    }

    /// As [`open`](Self::open); data goes past the host's page cache, as far as requests are in
    /// whole blocks.
    ///
    /// # Errors
    /// As [`open`](Self::open), and the file system has no direct I/O.
    pub fn open_direct(path: &Path, sharing: Sharing) -> Result<Self, HostError> {
        let read_only = sharing == Sharing::Readers;
        Self::open_as(path, sharing, |fd| HostImage::direct(fd, read_only))
    }

    /// Returns a disk of `size` zero bytes in memory that is gone with the disk.
    ///
    /// # Errors
    /// No multiple of 512, or more than the system gives.
    pub fn in_memory(size: u64) -> Result<Self, HostError> {
        let making = |e| HostError::new(format!("make a disk of {size} bytes in memory"), e);
        let fd = rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC);
        let fd = fd.map_err(|e| making(e.into()))?;
        rustix::fs::ftruncate(&fd, size).map_err(|e| making(e.into()))?;
        Self::new(HostImage::new(fd.into()), false).map_err(making)
    }
}

impl<I: Image> FileDisk<I> {
    /// Opens and locks the image at `path`, and uses it by what `image` makes of it.
    pub(super) fn open_as(
        path: &Path,
        sharing: Sharing,
        image: impl FnOnce(PrivateFd) -> io::Result<I>,
    ) -> Result<Self, HostError> {
        let shown = path.display();
        let opening = |e| HostError::new(format!("open disk image {shown}"), e);
        let read_only = sharing == Sharing::Readers;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // Non-blocking: a FIFO must become an error and not a wait. Files do not mind.
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = PrivateFd::make(|| rustix::fs::open(path, flags, Mode::empty()));
        let fd = fd.map_err(|e| opening(e.into()))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| opening(e.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => {}
            _ => return Err(opening(other("it is neither a regular file nor a block device"))),
        }
        let lock = ImageLock::mark(&fd, sharing).map_err(|error| match error {
            LockError::InUse(who) => opening(other(&format!("it is in use: {who} has locked it"))),
            LockError::Host(error) => HostError::new(format!("lock disk image {shown}"), error),
        })?;
        let disk = image(fd).and_then(|image| Self::new(image, read_only)).map_err(opening)?;
        Ok(Self { lock: Some((lock, shown.to_string())), ..disk })
    }

    /// Returns a disk of all of `image`, in the logical blocks of what that is kept on: those of a
    /// block device, and 512 bytes for a file.
    ///
    /// # Errors
    /// Its size or its blocks cannot be found, or its size is no multiple of 512.
    pub fn new(image: I, read_only: bool) -> io::Result<Self> {
        let (size, host) = (image.size()?, image.blocks()?);
        if !size.is_multiple_of(SECTOR) {
            return Err(other(&format!("its size is no multiple of 512 bytes: {size}")));
        }
        Ok(Self {
            image,
            lock: None,
            size: AtomicU64::new(size),
            host,
            block_size: host.logical,
            read_only,
            failed: AtomicBool::new(false),
            syncing: Mutex::new(()),
        })
    }

    /// Tells the driver of other logical blocks. Parts of the host's blocks can be read and
    /// written all the same: they go through the page cache, which changes whole ones.
    #[must_use]
    pub fn with_block_size(self, block_size: u32) -> Self {
        Self { block_size, ..self }
    }

    /// Returns the number of bytes of the image now: what a resize that follows the host's is
    /// called with.
    ///
    /// # Errors
    /// The system's.
    pub fn measure(&self) -> Result<u64, HostError> {
        self.image.size().map_err(|e| HostError::new("measure the disk image", e))
    }

    #[inline]
    fn write_cached(&self, request: &BlockRequest) -> io::Result<()> {
        all_written(request, self.image.write(request, false)?)
    }

    fn write_durably(&self, request: &BlockRequest) -> io::Result<()> {
        self.still_sound()?;
        match self.image.write(request, true) {
            Ok(written) => all_written(request, written),
            // A file system that cannot do both in one call.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.write_cached(request)?;
                self.flush()
            }
            Err(error) => {
                self.failed.fetch_or(may_lose_data(&error), Ordering::SeqCst);
                Err(error)
            }
        }
    }

    fn still_sound(&self) -> io::Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(other("an earlier write to stable storage failed: open the image anew"));
        }
        Ok(())
    }

    fn make_zero(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        if unmap && supported(self.image.punch_hole(range))? {
            return Ok(());
        }
        if supported(self.image.zero_range(range))? {
            return Ok(());
        }
        self.write_out_zeroes(range)
    }

    fn write_out_zeroes(&self, range: ByteRange) -> io::Result<()> {
        let ByteRange { mut offset, mut length } = range;
        while length > 0 {
            let piece = length.min(ZEROES.len() as u64) as usize;
            let done = self.image.write_bytes(&ZEROES[..piece], offset)? as u64;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            (offset, length) = (offset + done, length - done);
        }
        Ok(())
    }
}

impl<I: Image> Disk for FileDisk<I> {
    fn geometry(&self) -> Geometry {
        let disk = Geometry {
            read_only: self.read_only,
            discard: true,
            write_zeroes: true,
            ..Geometry::new(self.size.load(Ordering::Relaxed))
        };
        disk.laid_out_as(self.host, self.block_size)
    }

    #[inline]
    fn read(&self, request: &BlockRequest) -> io::Result<()> {
        let read = self.image.read(request)?;
        // Fewer where the image ends before the disk does: somebody has cut it.
        if read == request.length() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    #[inline]
    fn write(&self, request: &BlockRequest, durable: bool) -> io::Result<()> {
        if durable { self.write_durably(request) } else { self.write_cached(request) }
    }

    fn flush(&self) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.still_sound().and_then(|()| self.image.sync());
        if done.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        done
    }

    fn take(&self) -> Result<Taken, Unavailable> {
        let Some((lock, path)) = &self.lock else { return Ok(Taken::default()) };
        let failed = |what: &str, error| Unavailable(format!("{path}: {what}: {error}"));
        let meanwhile = lock.take().map_err(|error| match error {
            LockError::InUse(who) => Unavailable(format!(
                "{path} is in use: {who} has locked it, and no ring runs here while it does"
            )),
            LockError::Host(error) => failed("it cannot be locked", error),
        })?;
        let size = self.image.size().map_err(|error| failed("its size cannot be found", error))?;
        let new_size = (self.size.swap(size, Ordering::Relaxed) != size).then_some(size);
        let changed = (meanwhile == Meanwhile::Changed).then(|| format!(
            "{path} was written to by somebody else since the rings stopped: what the guest has \
             of it in its caches may be wrong"
        ));
        Ok(Taken { new_size, warning: changed })
    }

    fn give_up(&self, settled: bool) -> Result<(), NotGivenUp> {
        let Some((lock, path)) = &self.lock else { return Ok(()) };
        if self.read_only || !lock.is_taken() {
            return Ok(());
        }
        let kept = |why: String| NotGivenUp(format!("{path} stays locked: {why}"));
        if !settled {
            return Err(kept("requests that did not come back may still write to it".to_owned()));
        }
        self.flush()
            .map_err(|error| kept(format!("what was written is not on stable storage: {error}")))?;
        // As large as the next back-end finds it.
        let size = self.image.size();
        size.and_then(|size| {
            self.size.store(size, Ordering::Relaxed);
            lock.give_up()
        })
        .map_err(|error| kept(error.to_string()))
    }

    fn disconnected(&self) {
        if let Some((lock, _)) = &self.lock {
            lock.forget_front_end();
        }
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        // A block device discards whole blocks alone, and nobody minds what is left of others.
        match range.whole_blocks(self.host.logical.into()) {
            ByteRange { length: 0, .. } => Ok(()),
            whole => self.image.punch_hole(whole),
        }
    }

    fn write_zeroes(&self, range: ByteRange, unmap: bool, durable: bool) -> io::Result<()> {
        self.make_zero(range, unmap)?;
        if durable { self.flush() } else { Ok(()) }
    }
}

/// Checks that all data was written: fewer bytes are, only where the file takes no more.
#[inline]
fn all_written(request: &BlockRequest, written: u64) -> io::Result<()> {
    if written == request.length() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Returns whether a call that failed says that data is gone which was taken before. Space that
/// runs out and memory that goes away fail only the call itself.
fn may_lose_data(error: &io::Error) -> bool {
    let harmless = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EFAULT];
    error.raw_os_error().is_none_or(|number| !harmless.contains(&number))
}

/// `false` for what this image cannot do, so that the caller does it in another way. A range that
/// is no whole number of a block device's blocks is invalid to it.
fn supported(done: io::Result<()>) -> io::Result<bool> {
    match done.as_ref().map_err(io::Error::kind) {
        Err(io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => Ok(false),
        _ => done.map(|()| true),
    }
}

fn other(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}
