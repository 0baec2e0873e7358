//! Guest memory in a file that the front-end shares.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::FileType;

use super::region::{Hold, Region};
use super::region_error::RegionError;
use super::segment::GuestSlice;
use crate::address::{GuestAddr, UserAddr};
use crate::sys::fd_kind::fd_kind;
use crate::sys::mmap::Mapping;

/// Largest region: 32 TiB, a quarter of what a process can address on x86-64 with four levels of
/// page tables. So a table and the one that replaces it fit side by side, and a sparse file cannot
/// take the address space that everything else in this process needs.
const MAX_SIZE: u64 = 1 << 45;

impl Region {
    /// Maps `size` bytes of `fd` from `offset` on. The descriptor goes with the region.
    pub fn map(
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
        offset: u64,
        fd: OwnedFd,
    ) -> Result<Arc<Self>, RegionError> {
        let too_large = RegionError::TooLarge { size, most: MAX_SIZE };
        if size > MAX_SIZE {
            return Err(too_large);
        }
        let page = check_file(&fd, offset, size)?;
        let lead = offset % page;
        let bytes = size.checked_add(lead).and_then(|n| n.checked_next_multiple_of(page));
        let len = bytes.and_then(|n| usize::try_from(n).ok()).ok_or(too_large)?;
        let mapping = Mapping::shared(fd.as_fd(), offset - lead, len)
            .map_err(|e| RegionError::System("map it", e))?
            .keep(fd, offset - lead);
        let whole = GuestSlice::new(mapping.base().wrapping_add(lead as usize), size as usize);
        Ok(Arc::new(Self::held([whole; 2], guest, user, size, Hold::File(mapping))))
    }
}

/// Checks that the file can be memory and is long enough; returns the size of its pages.
fn check_file(fd: &OwnedFd, offset: u64, size: u64) -> Result<u64, RegionError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| RegionError::System("stat it", e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(RegionError::NotAFile(fd_kind(fd.as_fd())));
    }
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
