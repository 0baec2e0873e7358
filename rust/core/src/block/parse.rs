//! From a descriptor chain to a request that can be trusted, or to the answer for one that
//! cannot.
//!
//! The header and the segments lie in memory that the driver may change at any time: each is
//! copied once, and only the copy is looked at.
//!
//! | case | answer |
//! |---|---|
//! | fewer than 16 readable bytes, no writable byte | given back empty |
//! | unknown type, type of a feature not accepted, VIRTIO_BLK_T_FLUSH_OUT with VERSION_1 | UNSUPP |
//! | change to a read-only disk | IOERR |
//! | data of 0 bytes, or no multiple of 512; range past the end | IOERR |
//! | parts of blocks, to a disk that takes whole ones alone | IOERR |
//! | segments: none, a broken one, too many, one too long | IOERR |
//! | segments: unknown flag, or unmap in a discard | UNSUPP |

use super::numbers::{BlkOp, ByteRange, ID_LEN, SECTOR, Status, feature};
use super::refusal::Refusal;
use super::request::{BlockRequest, HEADER, Task, write_status};
use crate::request::{Batch, Request, Stopped};

/// What the segments of one kind of request may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    feature: u64,
    /// The most segments of a request. It bounds the work that one request can ask for.
    pub(super) max_segments: u32,
    pub(super) max_sectors: u32,
    /// The flags that are allowed.
    flags: u32,
}

/// A discard is one call to the system for each segment of up to 2 GiB.
pub(super) const DISCARD: Rule =
    Rule { feature: feature::DISCARD, max_segments: MAX_SEGMENTS, max_sectors: 1 << 22, flags: 0 };

/// 8 segments of up to 128 MiB: where a file system can only write the zeroes out, that holds a
/// queue for less time than a stop waits.
pub(super) const ZERO: Rule = Rule {
    feature: feature::WRITE_ZEROES,
    max_segments: 8,
    max_sectors: 1 << 18,
    flags: FLAG_UNMAP,
};

/// No rule allows more segments: what they are copied to has room for these.
const MAX_SEGMENTS: u32 = 32;
const _: () = assert!(DISCARD.max_segments <= MAX_SEGMENTS && ZERO.max_segments <= MAX_SEGMENTS);

/// The number of bytes of a segment: u64 sector, u32 num_sectors, u32 flags.
const SEGMENT: usize = 16;

/// A segment's space may be given up.
const FLAG_UNMAP: u32 = 1;

/// What became of a descriptor chain.
#[derive(Debug)]
pub enum Parsed {
    /// The request is to be served.
    Serve(BlockRequest),
    /// The request is not served: it goes back with a status.
    Fail(Refused),
    /// The chain is not even a request: it goes back with nothing written.
    Empty(Refused),
}

/// A chain that goes straight back to the driver.
#[derive(Debug)]
pub struct Refused {
    request: Request,
    why: Refusal,
}

impl Refused {
    /// Gives it back on the worker's own thread. `batch` is the one that it came from.
    pub fn finish(self, batch: &mut Batch) {
        let used = self.status().map_or(0, |s| write_status(self.request.writable(), s, 0));
        batch.fail(self.request, used);
    }

    /// Gives it back from any thread.
    ///
    /// # Errors
    /// [`Stopped`] if its ring has stopped meanwhile.
    pub fn complete(self) -> Result<(), Stopped> {
        let status = self.status();
        self.request.mark_failed();
        self.request.complete_with(|w| status.map_or(0, |s| write_status(w, s, 0)))
    }

    /// Returns the status that the driver gets; `None` if it gets none.
    pub fn status(&self) -> Option<Status> {
        self.why.status()
    }

    /// Returns the rule that it breaks.
    pub fn why(&self) -> Refusal {
        self.why
    }

    /// Returns the vring that it came from.
    pub fn queue(&self) -> u16 {
        self.request.queue()
    }
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) capacity_sectors: u64,
    pub(super) read_only: bool,
    /// Bits that the first sector of a range and the number of its sectors may not have.
    pub(super) within_block: u64,
    pub(super) features: u64,
}

/// Copies and checks one request.
#[inline]
pub(super) fn parse(request: Request, limits: Limits) -> Parsed {
    let mut header = [0; HEADER as usize];
    let whole = request.readable().read_at(0, &mut header) == header.len();
    if !whole || request.writable().is_empty() {
        let (readable, writable) = (request.readable().len(), request.writable().len());
        return Parsed::Empty(Refused { request, why: Refusal::NoRequest { readable, writable } });
    }
    // Little endian: u32 type, u32 reserved, u64 sector.
    let header = u128::from_le_bytes(header);
    match check(&request, header as u32, (header >> 64) as u64, limits) {
        Ok(task) => Parsed::Serve(BlockRequest::new(request, task)),
        Err(why) => Parsed::Fail(Refused { request, why }),
    }
}

/// What a request asks for, if it is known.
pub(super) fn kind_of(request: &Request) -> Option<BlkOp> {
    let mut kind = [0; 4];
    let whole = request.readable().read_at(0, &mut kind) == kind.len();
    whole.then(|| BlkOp::from_type(u32::from_le_bytes(kind))).flatten()
}

#[inline]
fn check(request: &Request, kind: u32, sector: u64, limits: Limits) -> Result<Task, Refusal> {
    let legacy = || {
        let is_legacy = limits.features & feature::VERSION_1 == 0;
        is_legacy.then(|| BlkOp::from_legacy_type(kind)).flatten()
    };
    let op = BlkOp::from_type(kind).or_else(legacy).ok_or(Refusal::UnknownType(kind))?;
    // The first operation is that of all others.
    request.mark_operation(op as u8 + 1);
    if limits.read_only && op.modifies() {
        return Err(Refusal::ReadOnly(op));
    }
    // The status byte is the last writable one; the caller has seen that there is one.
    let room = request.writable().len() - 1;
    let range = match op {
        BlkOp::Read => limits.data(op, sector, room)?,
        BlkOp::Write => limits.data(op, sector, request.readable().len() - HEADER)?,
        BlkOp::Flush => ByteRange::default(),
        BlkOp::GetId => ByteRange { offset: 0, length: room.min(ID_LEN as u64) },
        BlkOp::Discard => return limits.segments(op, request, DISCARD),
        BlkOp::WriteZeroes => return limits.segments(op, request, ZERO),
    };
    Ok(Task { op, unmap: false, range, several: None })
}

impl Limits {
    /// Returns the range of a read or write of `length` bytes of data.
    #[inline]
    fn data(&self, op: BlkOp, sector: u64, length: u64) -> Result<ByteRange, Refusal> {
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(Refusal::NotSectors { op, bytes: length });
        }
        self.range(op, sector, length / SECTOR)
    }

    /// `sectors` from `sector` on, if the disk has them all and takes them. The capacity in bytes
    /// fits 64 bits, so products of numbers within it do.
    #[inline]
    fn range(&self, op: BlkOp, sector: u64, sectors: u64) -> Result<ByteRange, Refusal> {
        if (sector | sectors) & self.within_block != 0 {
            let block = self.within_block + 1;
            return Err(Refusal::PartOfBlock { op, sector, sectors, block });
        }
        match sector.checked_add(sectors) {
            Some(end) if end <= self.capacity_sectors => {
                Ok(ByteRange { offset: sector * SECTOR, length: sectors * SECTOR })
            }
            _ => {
                let capacity = self.capacity_sectors;
                Err(Refusal::PastEnd { op, sector, sectors, capacity })
            }
        }
    }

    /// Returns the ranges of a discard or write zeroes request.
    fn segments(&self, op: BlkOp, request: &Request, rule: Rule) -> Result<Task, Refusal> {
        if self.features & rule.feature == 0 {
            return Err(Refusal::NotAccepted(op));
        }
        let bytes = request.readable().len() - HEADER;
        let most = SEGMENT as u64 * u64::from(rule.max_segments);
        if bytes == 0 || !bytes.is_multiple_of(SEGMENT as u64) || bytes > most {
            return Err(Refusal::BadList { op, bytes, most });
        }
        let mut copy = [0; SEGMENT * MAX_SEGMENTS as usize];
        let copy = &mut copy[..bytes as usize];
        request.readable().read_at(HEADER, copy);
        let (segments, _) = copy.as_chunks();
        if let &[one] = segments {
            let (range, unmap) = self.segment(op, one, rule)?;
            return Ok(Task { op, unmap, range, several: None });
        }
        self.list(op, segments, rule)
    }

    /// Checks several ranges of one request: the one case that allocates.
    fn list(&self, op: BlkOp, segments: &[[u8; SEGMENT]], rule: Rule) -> Result<Task, Refusal> {
        let (mut ranges, mut all_unmap) = (Vec::with_capacity(segments.len()), true);
        for &segment in segments {
            let (range, unmap) = self.segment(op, segment, rule)?;
            all_unmap &= unmap;
            if range.length > 0 {
                ranges.push(range);
            }
        }
        let range = ranges.first().copied().unwrap_or_default();
        Ok(Task { op, unmap: all_unmap, range, several: Some(ranges.into()) })
    }

    /// Returns the range of one segment, and whether its unmap flag is set.
    fn segment(
        &self,
        op: BlkOp,
        bytes: [u8; SEGMENT],
        rule: Rule,
    ) -> Result<(ByteRange, bool), Refusal> {
        let whole = u128::from_le_bytes(bytes);
        let (sector, sectors, flags) = (whole as u64, (whole >> 64) as u32, (whole >> 96) as u32);
        if flags & !rule.flags != 0 {
            return Err(Refusal::BadFlags { op, flags });
        }
        if sectors > rule.max_sectors {
            return Err(Refusal::LongRange { op, sectors, most: rule.max_sectors });
        }
        Ok((self.range(op, sector, u64::from(sectors))?, flags & FLAG_UNMAP != 0))
    }
}
