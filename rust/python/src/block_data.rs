//! The data of a block request: which side it is on, and how files take it and give it.
//!
//! A file fills the private copy if Python has seen one, since that is what goes to the driver in
//! the end; else the driver's memory.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vhost_user_core::block::{BlkOp, BlockRequest as CoreRequest, Status};
use vhost_user_core::request::{Batch, Stopped};

use crate::loan::LoanedRequest;
use crate::raw_bytes::{RawSource, RawTarget};
use crate::traits::{Answerable, FlushesFirst, Lendable, Parts, Side};

/// Bytes read from a file at a time, on their way to a private copy.
const STEP: usize = 128 << 10;

impl Lendable for CoreRequest {
    type Answer = Status;

    fn len(&self, side: Side) -> u64 {
        let data = matches!(self.op(), BlkOp::Read | BlkOp::Write | BlkOp::GetId);
        if data && side == side_of(self) { self.length() } else { 0 }
    }

    fn parts(&self, side: Side) -> Parts<'_> {
        debug_assert!(side == side_of(self), "a block request has data on one side");
        CoreRequest::parts(self)
    }

    fn written(&self, status: Status) -> u64 {
        // Of a read that failed the driver gets the status, and no data.
        if status == Status::Ok { Lendable::len(self, Side::Writable) } else { 0 }
    }

    fn is_live(&self) -> bool {
        CoreRequest::is_live(self)
    }

    fn maps_grants(&self) -> bool {
        CoreRequest::maps_grants(self)
    }
}

impl Answerable for CoreRequest {
    fn finish(self, status: Status, batch: &mut Batch) {
        count(&self, status);
        CoreRequest::finish(self, status, batch);
    }

    fn complete(self, status: Status, late: Option<&Arc<dyn FlushesFirst>>) -> Result<(), Stopped> {
        count(&self, status);
        match late {
            Some(late) if late.wants(&self, status) => Arc::clone(late).add(self),
            _ => CoreRequest::complete(self, status),
        }
    }
}

/// The side of a request that its data is on.
#[inline]
pub(crate) fn side_of(request: &CoreRequest) -> Side {
    if request.is_writable() { Side::Writable } else { Side::Readable }
}

/// A read that went well has all its data, however it was written.
#[inline]
fn count(request: &CoreRequest, status: Status) {
    if status == Status::Ok && request.is_writable() {
        request.wrote(request.length());
    }
}

/// Copies to the start of a read's data; returns how many bytes there was room for.
#[inline]
pub(crate) fn fill_read(request: &CoreRequest, bytes: RawSource<'_>) -> u64 {
    let done = bytes.copy_to(request.parts());
    request.wrote(done);
    done
}

/// Reads a read's data; returns the bytes read, fewer at the end of the file.
pub(crate) fn read_file(
    loan: &LoanedRequest<CoreRequest>,
    fd: BorrowedFd<'_>,
    at: u64,
) -> io::Result<u64> {
    match loan.copied() {
        Some(copy) => read_to_copy(copy, fd, at),
        None => loan.request().map_or(Ok(0), |request| request.preadv(0, u64::MAX, fd, at)),
    }
}

/// Reads from a file to a private copy, through memory of this call alone: other threads may write
/// to views of the copy meanwhile.
fn read_to_copy(copy: RawTarget<'_>, fd: BorrowedFd<'_>, at: u64) -> io::Result<u64> {
    let mut own = vec![0; STEP.min(copy.len())];
    let mut done = 0;
    while done < copy.len() {
        let step = own.len().min(copy.len() - done);
        match rustix::io::pread(fd, &mut own[..step], at.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(read) => {
                copy.write_at(done, &own[..read]);
                done += read;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done as u64)
}

/// Moves all of a read's or a write's data from or to a file that holds it from `at` on. What lies
/// past the end of the file reads as zeroes.
pub(crate) fn move_whole(
    request: &CoreRequest,
    fd: BorrowedFd<'_>,
    at: u64,
    durable: bool,
) -> io::Result<()> {
    if request.is_writable() {
        let read = request.preadv(0, u64::MAX, fd, at)?;
        request.fill(read, u64::MAX, 0);
        return Ok(());
    }
    let written = request.pwritev(0, u64::MAX, fd, at, durable)?;
    if written == request.length() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// As [`move_whole`], for a request that Python has.
pub(crate) fn move_whole_loan(
    loan: &LoanedRequest<CoreRequest>,
    fd: BorrowedFd<'_>,
    at: u64,
    durable: bool,
) -> io::Result<()> {
    let Some(copy) = loan.copied() else {
        return loan.request().map_or(Ok(()), |request| move_whole(request, fd, at, durable));
    };
    let read = read_to_copy(copy, fd, at)?;
    copy.part(read as usize..copy.len()).fill(0);
    Ok(())
}
