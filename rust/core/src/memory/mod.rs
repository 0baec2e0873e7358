//! Guest memory: an immutable table of regions and the look-up of addresses in it.
//!
//! A table never changes. A memory message makes a new one, and work in flight goes on in the
//! table that it started with: so no message ever pulls memory from under a request.

mod index;
mod region;
pub mod view;

use std::fmt;
use std::sync::Arc;

use crate::address::{GuestAddr, UserAddr};
use index::Index;
pub use region::{Gone, Region, RegionError};
use view::{Segment, Window};

/// All of a guest's memory at one moment.
#[derive(Debug, Default)]
pub struct Memory {
    /// Sorted by guest address, without overlap.
    regions: Box<[Arc<Region>]>,
    index: Index,
}

/// A range that no region, or no run of adjacent regions, covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// First address of the range.
    pub at: GuestAddr,
    /// Bytes.
    pub len: u64,
}

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Two regions share guest addresses.
    GuestOverlap(GuestAddr, GuestAddr),
    /// Two regions share front-end addresses.
    UserOverlap(UserAddr, UserAddr),
    /// No region is exactly this one.
    NoSuchRegion,
}

impl Memory {
    /// A table of these regions.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, TableError> {
        regions.sort_unstable_by_key(|r| r.guest());
        if let Some((a, b)) = overlap(&regions, |r| r.guest().0) {
            return Err(TableError::GuestOverlap(a.guest(), b.guest()));
        }
        let mut by_user: Vec<_> = regions.iter().map(Arc::clone).collect();
        by_user.sort_unstable_by_key(|r| r.user());
        if let Some((a, b)) = overlap(&by_user, |r| r.user().0) {
            return Err(TableError::UserOverlap(a.user(), b.user()));
        }
        let index = Index::new(regions.iter().map(|r| (r.guest().0, r.size())));
        Ok(Self { regions: regions.into(), index })
    }

    /// This table and one region more.
    pub fn with(&self, region: Arc<Region>) -> Result<Self, TableError> {
        let mut regions = self.regions.to_vec();
        regions.push(region);
        Self::new(regions)
    }

    /// This table without the one region that has exactly these addresses and this size.
    pub fn without(
        &self,
        guest: GuestAddr,
        user: UserAddr,
        size: u64,
    ) -> Result<(Self, Arc<Region>), TableError> {
        let mut regions = self.regions.to_vec();
        let same = |r: &Arc<Region>| r.guest() == guest && r.user() == user && r.size() == size;
        let at = regions.iter().position(same).ok_or(TableError::NoSuchRegion)?;
        let removed = regions.remove(at);
        Ok((Self::new(regions)?, removed))
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Calls `found` for each contiguous piece of `[at, at + len)`, in order. Nothing of a range
    /// that is not wholly covered counts: on an error what was found is to be thrown away.
    #[inline]
    pub fn segments(
        &self,
        at: GuestAddr,
        len: u64,
        mut found: impl FnMut(Segment),
    ) -> Result<(), OutOfMemory> {
        let outside = || OutOfMemory { at, len };
        at.checked_add(len).ok_or_else(outside)?;
        let (mut next, mut left) = (at.0, len);
        let mut place = self.index.find(next);
        while left > 0 {
            let region = self.regions.get(place).ok_or_else(outside)?;
            let offset = next.checked_sub(region.guest().0).ok_or_else(outside)?;
            let segment = region.segment(offset, left).ok_or_else(outside)?;
            next += segment.len() as u64;
            left -= segment.len() as u64;
            found(segment);
            place += 1;
        }
        Ok(())
    }

    /// Pins `len` bytes at a front-end address, for a ring part: all in one region and aligned.
    pub fn window(&self, at: UserAddr, len: usize, align: usize) -> Option<Window> {
        let inside = |r: &&Arc<Region>| at.0.checked_sub(r.user().0).is_some_and(|o| o < r.size());
        let region = self.regions.iter().find(inside)?;
        Window::new(region, at.0 - region.user().0, len, align)
    }
}

/// Two neighbours of a sorted list that share an address, if any do.
fn overlap(sorted: &[Arc<Region>], start: impl Fn(&Region) -> u64) -> Option<(&Region, &Region)> {
    let pairs = sorted.windows(2).map(|pair| (&*pair[0], &*pair[1]));
    // The distance cannot wrap (sorted), and sizes were checked not to wrap past the end.
    pairs.into_iter().find(|(a, b)| start(b) - start(a) < a.size())
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at {} are not all in guest memory", self.len, self.at)
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestOverlap(a, b) => {
                write!(f, "the regions at guest addresses {a} and {b} overlap")
            }
            Self::UserOverlap(a, b) => {
                write!(f, "the regions at user addresses {a} and {b} overlap")
            }
            Self::NoSuchRegion => f.write_str("no region has these addresses and this size"),
        }
    }
}
