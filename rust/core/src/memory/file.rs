//! Guest memory in a file that the front-end shares.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

use super::policy::{MappedBytes, MemoryPolicy};
use super::region::{Extent, Hold, Region};
use super::region_error::RegionError;
use super::segment::GuestSlice;
use crate::sys::fd_kind::fd_kind;
use crate::sys::file_system::remote_file_system;
use crate::sys::mmap::Mapping;
use crate::sys::received_fd::ReceivedFd;

impl Region {
    /// Maps as many bytes of `fd` from `offset` on as `extent` says. The descriptor goes with the
    /// region.
    pub fn map(
        policy: &MemoryPolicy,
        extent: Extent,
        offset: u64,
        fd: impl Into<ReceivedFd>,
    ) -> Result<Arc<Self>, RegionError> {
        let fd = fd.into();
        let FilePart { mapping, place, bytes } = map_part(policy, &fd, offset, extent.size)?;
        let lead = place.base().addr() - mapping.base().addr();
        let mapping = mapping.keep(fd, offset - lead as u64);
        Ok(Arc::new(Self::held([place; 2], extent, Hold::File(mapping), Some(bytes))))
    }
}

impl Region {
    /// Maps the same region at other addresses. `None`: its memory is a domain's.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn again(&self, policy: &MemoryPolicy) -> Result<Option<Arc<Self>>, RegionError> {
        let (extent, hold, readable) = self.parts();
        let Hold::File(mapping) = hold else { return Ok(None) };
        let mapped = policy.count(mapping.len() as u64)?;
        let again = mapping.again().map_err(|e| RegionError::System("map it again", e))?;
        let Some(again) = again else { return Ok(None) };
        let lead = readable.base().addr() - mapping.base().addr();
        let whole = GuestSlice::new(again.base().wrapping_add(lead), readable.len());
        Ok(Some(Arc::new(Self::held([whole; 2], extent, Hold::File(again), Some(mapped)))))
    }

    /// Where all of it is mapped, if its memory is a file that the front-end shares.
    pub(super) fn host(&self) -> Option<GuestSlice> {
        let (_, hold, whole) = self.parts();
        matches!(hold, Hold::File(_)).then_some(whole)
    }

    /// Whether its memory is a file that the front-end shares.
    pub fn is_file(&self) -> bool {
        matches!(self.parts().1, Hold::File(_))
    }

    /// Where in the file that is mapped for this region a place lies, if it does.
    pub(super) fn offset_of(&self, place: GuestSlice) -> Option<usize> {
        let Hold::File(mapping) = self.parts().1 else { return None };
        let offset = place.base().addr().checked_sub(mapping.base().addr())?;
        (offset < mapping.len()).then_some(offset)
    }

    /// Makes these places in private memory of its own, where the memory was
    /// [detached](Self::detach): what the guest writes there later does not show.
    pub fn keep_private(&self, places: &[GuestSlice]) {
        if let Hold::File(mapping) = self.parts().1 {
            mapping.keep_private(places.iter().map(|place| (place.base(), place.len())));
        }
    }
}

/// A part of a file that is mapped, in whole pages.
pub(super) struct FilePart {
    pub(super) mapping: Mapping,
    /// Where in the mapping it is.
    pub(super) place: GuestSlice,
    /// What counts as mapped for it.
    pub(super) bytes: MappedBytes,
}

/// Maps `size` bytes of a file that a front-end has passed, from `offset` on.
pub(super) fn map_part(
    policy: &MemoryPolicy,
    fd: &ReceivedFd,
    offset: u64,
    size: u64,
) -> Result<FilePart, RegionError> {
    check_kind(fd)?;
    if !policy.takes_any_file() {
        check_file_system(fd)?;
    }
    let page = check_file(fd, offset, size)?;
    let lead = offset % page;
    // A file has no more bytes than 63 bits say.
    let len = (size + lead).next_multiple_of(page);
    let bytes = policy.count(len)?;
    let too_large = |_| RegionError::System("map it", io::ErrorKind::OutOfMemory.into());
    let len = usize::try_from(len).map_err(too_large)?;
    let mapping = Mapping::shared(fd.as_fd(), offset - lead, len)
        .map_err(|e| RegionError::System("map it", e))?;
    // Both are at most `len`.
    let place = GuestSlice::new(mapping.base().wrapping_add(lead as usize), size as usize);
    Ok(FilePart { mapping, place, bytes })
}

/// Checks that the file can be memory, without asking its file system.
fn check_kind(fd: &ReceivedFd) -> Result<(), RegionError> {
    let known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(fd, c"", known, StatxFlags::TYPE);
    let stat = stat.map_err(|e| RegionError::System("stat it", e.into()))?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
        return Err(RegionError::NotAFile(fd_kind(fd.as_fd())));
    }
    Ok(())
}

/// Checks that whoever touches the memory need not wait for another process or host. A file system
/// that does not say what it is may be any.
fn check_file_system(fd: &ReceivedFd) -> Result<(), RegionError> {
    match remote_file_system(fd) {
        Ok(None) => Ok(()),
        Ok(Some(name)) => Err(RegionError::FileSystem(name)),
        Err(error) => {
            let unknown = format!("a file system that does not say what it is ({error})");
            Err(RegionError::FileSystem(unknown))
        }
    }
}

/// Checks that the file is long enough; returns the size of its pages.
fn check_file(fd: &ReceivedFd, offset: u64, size: u64) -> Result<u64, RegionError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| RegionError::System("stat it", e.into()))?;
    // Sums at 128 bits cannot wrap.
    let (file, needed) = (stat.st_size as u64, u128::from(offset) + u128::from(size));
    if needed > u128::from(file) {
        return Err(RegionError::FileTooShort { file, needed });
    }
    // hugetlbfs reports its page size as the block size and maps nothing smaller. Elsewhere the
    // block size may be larger than a page, which only rounds more than needed.
    let page = rustix::param::page_size() as u64;
    let block = u64::try_from(stat.st_blksize).unwrap_or(page);
    let huge = block > page && block.is_power_of_two() && file % block == 0;
    Ok(if huge { block } else { page })
}
