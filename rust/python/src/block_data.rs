//! The data of a block request: which side it is on, and how files take it and give it.
//!
//! A file fills the private copy if Python has seen one, since that is what goes to the driver in
//! the end; else the driver's memory.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vhost_user_core::block::{BlkOp, BlockRequest as CoreRequest, Status};
use vhost_user_core::memory::view::Parts;
use vhost_user_core::request::{Batch, Stopped};

use crate::loan::LoanedRequest;
use crate::traits::{Answerable, FlushesFirst, Lendable, Side};

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

    fn copy_out(&self, out: &mut [u8]) {
        self.copy_to(0, out);
    }

    fn copy_in(&self, data: &[u8]) {
        self.copy_from(0, data);
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

/// Reads a read's data; returns the bytes read, fewer at the end of the file.
pub(crate) fn read_file(
    loan: &mut LoanedRequest<CoreRequest>,
    fd: BorrowedFd<'_>,
    at: u64,
) -> io::Result<u64> {
    let Some(bounce) = loan.bounce() else {
        return loan.request().map_or(Ok(0), |request| request.preadv(0, u64::MAX, fd, at));
    };
    let mut done = 0;
    while done < bounce.len() {
        match rustix::io::pread(fd, &mut bounce[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done as u64)
}

/// Writes a write's data; returns the bytes written.
pub(crate) fn write_file(
    loan: &mut LoanedRequest<CoreRequest>,
    fd: BorrowedFd<'_>,
    at: u64,
    durable: bool,
) -> io::Result<u64> {
    loan.request().map_or(Ok(0), |request| request.pwritev(0, u64::MAX, fd, at, durable))
}

/// Reads all of a read's data. What lies past the end of the file reads as zeroes.
pub(crate) fn read_whole(
    loan: &mut LoanedRequest<CoreRequest>,
    fd: BorrowedFd<'_>,
    at: u64,
) -> io::Result<()> {
    read_file(loan, fd, at).map(|read| zero_rest(loan, read))
}

/// Writes all of a write's data.
pub(crate) fn write_whole(
    loan: &mut LoanedRequest<CoreRequest>,
    fd: BorrowedFd<'_>,
    at: u64,
    durable: bool,
) -> io::Result<()> {
    let length = loan.request().map_or(0, CoreRequest::length);
    let written = write_file(loan, fd, at, durable)?;
    if written == length { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn zero_rest(loan: &mut LoanedRequest<CoreRequest>, from: u64) {
    if let Some(bounce) = loan.bounce() {
        bounce[from as usize..].fill(0);
    } else if let Some(request) = loan.request() {
        request.fill(from, u64::MAX, 0);
    }
}
