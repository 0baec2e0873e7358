//! A block request whose every number has been checked, until it is answered.
//!
//! ```text
//!   readable:  | header, 16 bytes | data of a write, or segments |
//!   writable:                                | data of a read, or id | status |
//!                                                                       ^ last byte of all
//! ```
//! The driver may cut each row into descriptors as it likes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::direct;
use super::numbers::{BlkOp, ByteRange, Status};
use crate::memory::{Parts, Writable};
use crate::request::{Batch, Request, Stopped};

/// The number of bytes of the header in front of each request.
pub(super) const HEADER: u64 = 16;

/// A valid request. It is consumed by its completion; dropped unanswered it fails with an I/O
/// error.
#[derive(Debug)]
pub struct BlockRequest {
    /// `None` only while the request is being consumed.
    request: Option<Request>,
    task: Task,
    /// The number of data bytes written to guest memory.
    written: AtomicU64,
}

/// What a request asks for, after its numbers were found good.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) op: BlkOp,
    pub(super) unmap: bool,
    /// The one range of most requests; the first where the driver sent several.
    pub(super) range: ByteRange,
    /// All ranges, where the driver sent several. None is empty.
    pub(super) several: Option<Box<[ByteRange]>>,
}

impl BlockRequest {
    /// Makes a request of a chain that holds a header and room for data and status, as `task` says.
    #[inline]
    pub(super) fn new(request: Request, task: Task) -> Self {
        Self { request: Some(request), task, written: AtomicU64::new(0) }
    }

    /// Completes it as done, on the worker's own thread. See [`finish`](Self::finish).
    #[inline]
    pub fn finish_ok(self, batch: &mut Batch) {
        self.finish(Status::Ok, batch);
    }

    /// Completes it on the worker's own thread, with no lock. `batch` is the one that it came
    /// from.
    #[inline]
    pub fn finish(mut self, status: Status, batch: &mut Batch) {
        if let Some(request) = self.request.take() {
            let used = write_status(request.writable(), status, self.written_len());
            mark(&request, status);
            batch.complete(request, used);
        }
    }

    /// Completes it from any thread.
    ///
    /// # Errors
    /// [`Stopped`] if its ring has stopped meanwhile: guest memory was not touched then.
    pub fn complete(mut self, status: Status) -> Result<(), Stopped> {
        let written = self.written_len();
        match self.request.take() {
            Some(request) => {
                mark(&request, status);
                request.complete_with(|w| write_status(w, status, written))
            }
            None => Err(Stopped),
        }
    }

    /// Returns what is asked for.
    #[inline]
    pub fn op(&self) -> BlkOp {
        self.task.op
    }

    /// Returns the first byte on the disk; of the first range where there are several; 0 for a
    /// flush and for the serial number.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.task.range.offset
    }

    /// Returns the number of bytes of data (read, write), of the first range (discard, write
    /// zeroes), of room for the serial number (at most 20); 0 for a flush.
    #[inline]
    pub fn length(&self) -> u64 {
        self.task.range.length
    }

    /// Write zeroes: whether the space may be given up. With several ranges, whether it may in
    /// all of them.
    pub fn unmap(&self) -> bool {
        self.task.unmap
    }

    /// Returns all ranges of a discard or write zeroes request, in the driver's order. None is
    /// empty; no range at all is legal and asks for nothing.
    pub fn ranges(&self) -> &[ByteRange] {
        match (&self.task.several, self.task.op) {
            (Some(several), _) => several,
            (None, BlkOp::Discard | BlkOp::WriteZeroes) if self.task.range.length > 0 => {
                std::slice::from_ref(&self.task.range)
            }
            _ => &[],
        }
    }

    /// Returns the vring that it came from.
    pub fn queue(&self) -> u16 {
        self.inner().queue()
    }

    /// Returns the index of its first descriptor: its name among those in flight.
    pub fn head(&self) -> u16 {
        self.inner().head()
    }

    /// Returns its number among all that were ever popped from its ring.
    pub fn sequence(&self) -> u64 {
        self.inner().sequence()
    }

    /// Returns whether a process that had it died before it gave it back.
    pub fn is_resubmitted(&self) -> bool {
        self.inner().is_resubmitted()
    }

    /// Returns whether its ring still runs.
    pub fn is_live(&self) -> bool {
        self.inner().is_live()
    }

    /// As [`Request::maps_grants`].
    #[inline]
    pub fn maps_grants(&self) -> bool {
        self.inner().maps_grants()
    }

    /// Returns whether the data is the device's to write: a read, or the serial number.
    #[inline]
    pub fn is_writable(&self) -> bool {
        matches!(self.task.op, BlkOp::Read | BlkOp::GetId)
    }

    /// Copies from byte `at` of a write's data into `out`; returns how many bytes there were.
    #[inline]
    pub fn copy_to(&self, at: u64, out: &mut [u8]) -> usize {
        let len = if self.task.op == BlkOp::Write { self.clip(at, out.len() as u64) } else { 0 };
        // No more than `out` has, by the clipping.
        self.inner().readable().read_at(HEADER.saturating_add(at), &mut out[..len as usize])
    }

    /// Copies `data` to byte `at` of a read's data; returns how many bytes there was room for.
    #[inline]
    pub fn copy_from(&self, at: u64, data: &[u8]) -> usize {
        let len = if self.is_writable() { self.clip(at, data.len() as u64) } else { 0 };
        let done = self.inner().writable().write_at(at, &data[..len as usize]);
        self.wrote(done as u64);
        done
    }

    /// Sets `len` bytes of a read's data from byte `at` on; returns how many there were.
    pub fn fill(&self, at: u64, len: u64, byte: u8) -> u64 {
        let len = if self.is_writable() { self.clip(at, len) } else { 0 };
        let done = self.inner().writable().fill(at, len, byte);
        self.wrote(done);
        done
    }

    /// Reads `len` bytes of `fd` at `file_offset` to byte `at` of a read's data; returns the
    /// bytes read, fewer only where the file or the data ends.
    ///
    /// # Errors
    /// The system's. What had been read before the error is not counted as written.
    #[inline]
    pub fn preadv(
        &self,
        at: u64,
        len: u64,
        fd: BorrowedFd<'_>,
        file_offset: u64,
    ) -> io::Result<u64> {
        self.read(at, len, fd, file_offset, is_direct(fd))
    }

    /// Does what [`preadv`](Self::preadv) does; the caller knows whether `fd` is open for direct
    /// I/O.
    #[inline]
    pub(super) fn read(
        &self,
        at: u64,
        len: u64,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        direct: bool,
    ) -> io::Result<u64> {
        let len = if self.is_writable() { self.clip(at, len) } else { 0 };
        let data = self.inner().writable();
        let hold = direct.then(|| self.inner().hold_for_kernel());
        let mut done = data.read_from(at, len, fd, file_offset);
        drop(hold);
        if let Err(error) = &done
            && self.is_refused(error, direct)
        {
            done = direct::read_through_own(data, (at, len), fd, file_offset);
        }
        done.inspect(|&done| self.wrote(done))
    }

    /// Does what [`preadv`](Self::preadv) does for all of the data, through memory of this
    /// process.
    pub(super) fn read_through_own(&self, fd: BorrowedFd<'_>) -> io::Result<u64> {
        let len = if self.is_writable() { self.length() } else { 0 };
        let data = self.inner().writable();
        let done = direct::read_through_own(data, (0, len), fd, self.offset());
        done.inspect(|&done| self.wrote(done))
    }

    /// Writes `len` bytes from byte `at` of a write's data to `fd` at `file_offset`; returns the
    /// bytes written, fewer only where the file takes no more or the data ends. `durable`: on
    /// stable storage when this returns.
    ///
    /// # Errors
    /// The system's. Part of the data may have been written.
    #[inline]
    pub fn pwritev(
        &self,
        at: u64,
        len: u64,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        durable: bool,
    ) -> io::Result<u64> {
        self.write((at, len), fd, file_offset, durable, is_direct(fd))
    }

    /// Does what [`pwritev`](Self::pwritev) does; the caller knows whether `fd` is open for direct
    /// I/O.
    #[inline]
    pub(super) fn write(
        &self,
        (at, len): (u64, u64),
        fd: BorrowedFd<'_>,
        file_offset: u64,
        durable: bool,
        direct: bool,
    ) -> io::Result<u64> {
        let len = if self.task.op == BlkOp::Write { self.clip(at, len) } else { 0 };
        let (data, at) = (self.inner().readable(), HEADER.saturating_add(at));
        let hold = direct.then(|| self.inner().hold_for_kernel());
        let done = data.write_to(at, len, fd, file_offset, durable);
        drop(hold);
        match done {
            Err(error) if self.is_refused(&error, direct) => {
                direct::write_through_own(data, (at, len), fd, file_offset, durable)
            }
            done => done,
        }
    }

    /// Does what [`pwritev`](Self::pwritev) does for all of the data, through memory of this
    /// process.
    pub(super) fn write_through_own(&self, fd: BorrowedFd<'_>, durable: bool) -> io::Result<u64> {
        let len = if self.task.op == BlkOp::Write { self.length() } else { 0 };
        let data = self.inner().readable();
        direct::write_through_own(data, (HEADER, len), fd, self.offset(), durable)
    }

    /// Returns the contiguous pieces of the data, neither header nor status among them: the
    /// device's to write if [`is_writable`](Self::is_writable), to read if not. Who writes through
    /// them says so with [`wrote`](Self::wrote).
    pub fn parts(&self) -> Parts<'_> {
        match self.task.op {
            BlkOp::Read | BlkOp::GetId => self.inner().writable().parts(0, self.task.range.length),
            BlkOp::Write => self.inner().readable().parts(HEADER, self.task.range.length),
            BlkOp::Flush | BlkOp::Discard | BlkOp::WriteZeroes => {
                self.inner().readable().parts(HEADER, 0)
            }
        }
    }

    /// Returns whether the kernel may have done no direct I/O because of where the data is, which
    /// goes through aligned memory of our own then.
    #[cold]
    fn is_refused(&self, error: &io::Error, direct: bool) -> bool {
        direct
            && match error.raw_os_error() {
                Some(libc::EFAULT) => self.is_foreign(),
                number => number == Some(libc::EINVAL),
            }
    }

    /// Returns whether its data may be in foreign mappings of Xen, on which the kernel does no
    /// direct I/O.
    pub(super) fn is_foreign(&self) -> bool {
        self.inner().is_foreign()
    }

    /// Counts `bytes` that were written to the data through [`parts`](Self::parts). The driver is
    /// told how many bytes of data were written, at most [`length`](Self::length) of them.
    #[inline]
    pub fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Cuts `len` bytes from `at` on to the end of the data.
    #[inline]
    fn clip(&self, at: u64, len: u64) -> u64 {
        len.min(self.task.range.length.saturating_sub(at))
    }

    #[inline]
    fn written_len(&self) -> u64 {
        if !self.is_writable() {
            return 0;
        }
        self.written.load(Ordering::Relaxed).min(self.task.range.length)
    }

    #[inline]
    fn inner(&self) -> &Request {
        self.request.as_ref().expect("a request has its chain until it is consumed")
    }
}

impl Drop for BlockRequest {
    fn drop(&mut self) {
        let written = self.written_len();
        if let Some(request) = self.request.take() {
            request.mark_failed();
            let _ = request.complete_with(|w| write_status(w, Status::IoErr, written));
        }
    }
}

/// Notes a failure for those who count.
#[inline]
fn mark(request: &Request, status: Status) {
    if status != Status::Ok {
        request.mark_failed();
    }
}

/// Returns whether a file is open for direct I/O, so that the kernel moves data straight.
fn is_direct(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::DIRECT))
}

/// Writes the status byte; returns the bytes written in all, `data` of them before it.
#[inline]
pub(super) fn write_status(writable: Writable<'_>, status: Status, data: u64) -> u32 {
    let Some(last) = writable.len().checked_sub(1) else { return 0 };
    writable.write_at(last, &[status as u8]);
    // A chain describes less than 4 GiB: the sum is inside the chain.
    u32::try_from(data.min(last) + 1).unwrap_or(u32::MAX)
}
