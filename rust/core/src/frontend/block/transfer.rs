//! Requests of a disk, one call each: a long one is cut, and its pieces run side by side.

use std::os::fd::AsFd;

use super::super::error::{BlockStatus, FrontendError, Result};
use super::{BlockDriver, BlockQueue, BlockRequest, Completion, Op, SECTOR, feature};
use crate::error::HostError;
use crate::sys::interrupt;

/// Bytes of a device's name.
const ID_LEN: u32 = 20;
/// Sectors that a segment of a discard or of a write of zeroes can have: its length is 32 bits.
const MAX_SEGMENT_SECTORS: u32 = u32::MAX;

/// A piece of a longer request, or a whole one.
struct Piece {
    request: BlockRequest,
    /// Where its data are in the caller's.
    at: usize,
}

impl BlockDriver {
    /// Reads from the disk. Offset and length are multiples of 512.
    pub fn pread(&mut self, out: &mut [u8], offset: u64) -> Result<()> {
        let pieces = self.pieces(Op::Read, offset, out.len())?;
        self.run(
            pieces,
            |_, _, _| (),
            |queue, slot, piece| {
                queue.read_data(slot, &mut out[piece.at..][..piece.request.len as usize]);
            },
        )
    }

    /// Writes to the disk. Offset and length are multiples of 512.
    pub fn pwrite(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let pieces = self.pieces(Op::Write, offset, data.len())?;
        self.pattern = None;
        self.run(
            pieces,
            |queue, slot, piece| {
                queue.write_data(slot, &data[piece.at..][..piece.request.len as usize]);
            },
            |_, _, _| (),
        )
    }

    /// As [`pwrite`](Self::pwrite), of `len` bytes that others may change meanwhile: `copy` fills
    /// memory of our own with what is at a place in them.
    pub fn pwrite_with(
        &mut self,
        len: usize,
        offset: u64,
        mut copy: impl FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        let pieces = self.pieces(Op::Write, offset, len)?;
        self.pattern = None;
        let mut own = Vec::new();
        self.run(
            pieces,
            |queue, slot, piece| {
                own.resize(piece.request.len as usize, 0);
                copy(piece.at, &mut own);
                queue.write_data(slot, &own);
            },
            |_, _, _| (),
        )
    }

    /// Makes all completed writes durable.
    pub fn flush(&mut self) -> Result<()> {
        self.need(feature::FLUSH, "FLUSH")?;
        self.one(Op::Flush, 0, &[], &mut [])
    }

    /// Tells the device that a range is not needed any more. Offset and length are multiples
    /// of 512.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.need(feature::DISCARD, "DISCARD")?;
        self.pattern = None;
        self.segments(Op::Discard, offset, len, self.config.max_discard_sectors, 0)
    }

    /// Sets a range to zero; with `unmap` the device may forget it. Offset and length are
    /// multiples of 512.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.need(feature::WRITE_ZEROES, "WRITE_ZEROES")?;
        self.pattern = None;
        let most = self.config.max_write_zeroes_sectors;
        self.segments(Op::WriteZeroes, offset, len, most, unmap.into())
    }

    /// The device's name, without the padding.
    pub fn id(&mut self) -> Result<String> {
        let mut id = [0; ID_LEN as usize];
        self.one(Op::GetId, 0, &[], &mut id)?;
        let name = id.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Runs one request as it is, with `data` for the device to read and `out` for what it
    /// writes. At most one of them is used, as the kind of request says.
    pub fn one(&mut self, op: Op, sector: u64, data: &[u8], out: &mut [u8]) -> Result<()> {
        let len = data.len().max(out.len());
        let request = BlockRequest { op, sector, len: self.check_len(len)? };
        self.run(
            std::iter::once(Piece { request, at: 0 }),
            |queue, slot, _| queue.write_data(slot, data),
            |queue, slot, _| queue.read_data(slot, out),
        )
    }

    /// Runs requests on one queue, as many at once as fit; `fill` before each is submitted,
    /// `drain` after each has succeeded. Each call takes the next queue.
    ///
    /// After a request that failed no more are submitted; those in flight are waited for, so that
    /// the driver stays usable. The first failure is returned. A call that is given up leaves them
    /// in flight.
    fn run(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        mut fill: impl FnMut(&BlockQueue, u16, &Piece),
        mut drain: impl FnMut(&BlockQueue, u16, &Piece),
    ) -> Result<()> {
        self.settle()?;
        let index = self.next_queue;
        self.next_queue = (index + 1) % self.queues.len();
        let mut pieces = pieces.into_iter().peekable();
        let slots = self.queues[index].slots();
        let mut placed: Vec<Option<Piece>> = (0..slots).map(|_| None).collect();
        let mut failure = None;
        loop {
            while failure.is_none() && pieces.peek().is_some() {
                let Some(slot) = self.queues[index].take_slot() else { break };
                let Some(piece) = pieces.next() else { break };
                fill(&self.queues[index], slot, &piece);
                self.submit(index, slot, piece.request)?;
                placed[usize::from(slot)] = Some(piece);
            }
            let queue = &mut self.queues[index];
            queue.publish();
            if queue.in_flight() == 0 {
                return failure.map_or(Ok(()), Err);
            }
            self.wait(index)?;
            interrupt::ask_at_times().map_err(|e| HostError::new("wait for a call", e))?;
            while let Some(done) = self.completed(index)? {
                let piece = placed[usize::from(done.slot)].take();
                match (judge(&done), piece) {
                    (Ok(()), Some(piece)) => drain(&self.queues[index], done.slot, &piece),
                    (Ok(()), None) => {}
                    (Err(error), _) => failure = failure.or(Some(error)),
                }
            }
        }
    }

    /// Waits for an answer on a queue, or until the next back-end has taken over.
    pub(super) fn wait(&mut self, index: usize) -> Result<()> {
        let timeout = self.options.timeout;
        let waited = match self.behind {
            Some(_) => self.wait_and_translate(index),
            None => self.queues[index].ring_mut().wait(timeout, self.client.as_fd()),
        };
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => Err(FrontendError::TimedOut { message: "requests", timeout }),
            Err(error) if self.can_resume(&error) => self.resume(),
            Err(error) => Err(error),
        }
    }

    /// Cuts a read or a write into requests.
    fn pieces(
        &self,
        op: Op,
        offset: u64,
        len: usize,
    ) -> Result<impl Iterator<Item = Piece> + use<>> {
        check_sectors(op, offset, len as u64)?;
        let longest = self.longest_request() as usize;
        Ok((0..len).step_by(longest).map(move |at| {
            let len = longest.min(len - at) as u32;
            Piece { request: BlockRequest { op, sector: (offset + at as u64) / SECTOR, len }, at }
        }))
    }

    /// A discard or a write of zeroes: requests of one segment each.
    fn segments(
        &mut self,
        op: Op,
        offset: u64,
        len: u64,
        most: Option<u32>,
        flags: u32,
    ) -> Result<()> {
        check_sectors(op, offset, len)?;
        // 0 is what a device says that sets no limit (and one that cannot: it will refuse).
        let most = most.filter(|&most| most != 0).unwrap_or(MAX_SEGMENT_SECTORS);
        let (mut sector, end) = (offset / SECTOR, (offset + len) / SECTOR);
        while sector < end {
            let count = u64::from(most).min(end - sector) as u32;
            let mut segment = [0; 16];
            segment[..8].copy_from_slice(&sector.to_le_bytes());
            segment[8..12].copy_from_slice(&count.to_le_bytes());
            segment[12..].copy_from_slice(&flags.to_le_bytes());
            self.one(op, 0, &segment, &mut [])?;
            sector += u64::from(count);
        }
        Ok(())
    }

    fn longest_request(&self) -> u32 {
        let slot = self.queues.iter().map(BlockQueue::slot_bytes).min().unwrap_or(0);
        let longest = self.config.size_max.filter(|&max| max != 0).unwrap_or(u32::MAX).min(slot);
        (longest / SECTOR as u32 * SECTOR as u32).max(SECTOR as u32)
    }

    fn check_len(&self, len: usize) -> Result<u32> {
        let most = self.queues.first().map_or(0, BlockQueue::slot_bytes);
        u32::try_from(len).ok().filter(|&len| len <= most).ok_or_else(|| {
            FrontendError::range(format!("a request of {len} bytes, {most} is the limit"))
        })
    }
}

fn judge(done: &Completion) -> Result<()> {
    BlockStatus::check(done.status).map_err(|status| FrontendError::Request {
        op: done.request.op.name(),
        offset: done.request.sector.saturating_mul(SECTOR),
        status,
    })
}

/// Offsets and lengths are whole sectors. Whether they lie on the disk is for the device to say.
fn check_sectors(op: Op, offset: u64, len: u64) -> Result<()> {
    if !offset.is_multiple_of(SECTOR)
        || !len.is_multiple_of(SECTOR)
        || offset.checked_add(len).is_none()
    {
        let why = format!("{} of {len} bytes at {offset}: not whole sectors", op.name());
        return Err(FrontendError::range(why));
    }
    Ok(())
}
