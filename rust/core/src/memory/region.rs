//! One region of guest memory: where the driver and the front-end see it, and where it is mapped
//! here.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use super::view::Segment;
use crate::address::{GuestAddr, UserAddr};
use crate::sys::mmap::Mapping;

/// Largest region: 32 TiB, a quarter of what a process can address on x86-64 with four levels of
/// page tables. So a table and the one that replaces it fit side by side, and a sparse file cannot
/// take the address space that everything else in this process needs.
const MAX_SIZE: u64 = 1 << 45;

/// A mapped region. The mapping goes with the last reference.
#[derive(Debug)]
pub struct Region {
    guest: GuestAddr,
    user: UserAddr,
    size: u64,
    /// Bytes of `mapping` in front of the region, below one page.
    lead: usize,
    // Dropped in this order: the memory is unmapped before anybody is told.
    mapping: Mapping,
    gone: GoneOnDrop,
}

/// Tells when a region has been unmapped.
#[derive(Clone, Debug)]
pub struct Gone(Arc<(Mutex<bool>, Condvar)>);

#[derive(Debug)]
struct GoneOnDrop(Gone);

/// Why a region cannot be mapped.
#[derive(Debug)]
pub enum RegionError {
    /// Not a regular file: nothing that could be memory.
    NotAFile(String),
    /// The file ends before the region does.
    FileTooShort {
        /// Bytes of the file.
        file: u64,
        /// Bytes that offset and size ask for.
        needed: u128,
    },
    /// The region is larger than any that is taken.
    TooLarge(u64),
    /// The system refused.
    System(&'static str, std::io::Error),
}

impl Region {
    /// Maps `size` bytes of `fd` from `offset` on. The descriptor is closed.
    pub fn map(
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
        offset: u64,
        fd: OwnedFd,
    ) -> Result<Arc<Self>, RegionError> {
        if size > MAX_SIZE {
            return Err(RegionError::TooLarge(size));
        }
        let page = check_file(&fd, offset, size)?;
        let lead = offset % page;
        let bytes = size.checked_add(lead).and_then(|n| n.checked_next_multiple_of(page));
        let len = bytes.and_then(|n| usize::try_from(n).ok()).ok_or(RegionError::TooLarge(size))?;
        let mapping = Mapping::shared(fd.as_fd(), offset - lead, len)
            .map_err(|e| RegionError::System("map it", e))?;
        let gone = GoneOnDrop(Gone(Arc::default()));
        Ok(Arc::new(Self { guest, user, size, lead: lead as usize, mapping, gone }))
    }

    /// First guest-physical address.
    pub fn guest(&self) -> GuestAddr {
        self.guest
    }

    /// First address in the front-end.
    pub fn user(&self) -> UserAddr {
        self.user
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes from `offset` on, as many of `len` as the region has; `None` past its end.
    pub fn segment(&self, offset: u64, len: u64) -> Option<Segment> {
        let left = self.size.checked_sub(offset).filter(|&left| left > 0)?;
        // Both fit: the region is mapped, so its size is below the address space's.
        let (start, len) = (self.lead + offset as usize, len.min(left) as usize);
        Some(Segment::new(self.mapping.base().wrapping_add(start), len))
    }

    /// Replaces the memory by private zeroes, for those who still hold the region.
    pub fn sever(&self) {
        // If the kernel has no memory for that, the front-end's stays mapped: late accesses then
        // still reach it, which is what they did a moment ago.
        let _ = self.mapping.sever();
    }

    /// A token that outlives the region.
    pub fn gone(&self) -> Gone {
        self.gone.0.clone()
    }
}

impl Gone {
    /// Waits until the region is unmapped; `false` if it still is mapped after `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let (lock, changed) = &*self.0;
        let deadline = Instant::now() + limit;
        let mut gone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !*gone {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            gone = changed.wait_timeout(gone, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for GoneOnDrop {
    fn drop(&mut self) {
        let (lock, changed) = &*self.0.0;
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAFile(kind) => write!(f, "its descriptor is a {kind}, not a regular file"),
            Self::FileTooShort { file, needed } => {
                write!(f, "its file has {file:#x} bytes, offset and size ask for {needed:#x}")
            }
            Self::TooLarge(size) => {
                write!(f, "{size:#x} bytes are more than the {MAX_SIZE:#x} that a region may have")
            }
            Self::System(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for RegionError {}

/// Checks that the file can be memory and is long enough; returns the size of its pages.
fn check_file(fd: &OwnedFd, offset: u64, size: u64) -> Result<u64, RegionError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| RegionError::System("stat it", e.into()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        return Err(RegionError::NotAFile(format!("{kind:?}").to_lowercase()));
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
