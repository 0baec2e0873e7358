//! The guest memory that a front-end shares.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::error::{FrontendError, Result};
use super::window::Window;
use crate::address::{GuestAddr, UserAddr};
use crate::error::HostError;
use crate::sys::shared::SharedMemory;
use crate::wire::payload;

/// Where a region is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest-physical address.
    pub guest: GuestAddr,
    /// Bytes.
    pub size: u64,
}

/// Regions of memory, each in a memfd of its own. As with QEMU, a region's user address is
/// where it is mapped in this process.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

/// One region.
#[derive(Debug)]
pub struct Region {
    guest: GuestAddr,
    shared: Arc<SharedMemory>,
    /// The user address is the guest address.
    same: bool,
}

impl GuestMemory {
    /// Memory with these regions, filled with zeroes. No two may overlap; none may be empty.
    pub fn new(specs: &[RegionSpec]) -> Result<Self> {
        let regions = specs.iter().map(Region::new).collect::<Result<Vec<_>>>()?;
        let mut ranges: Vec<_> =
            regions.iter().map(|r| (r.guest.0, r.guest.0 + r.size())).collect();
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(FrontendError::range(format!(
                "regions at {:#x} and {:#x} overlap",
                pair[0].0, pair[1].0
            )));
        }
        Ok(Self { regions })
    }

    /// The same memory, with guest addresses given out for user addresses: what a front-end does
    /// that has the guest's memory not mapped.
    #[must_use]
    pub fn with_guest_addresses(mut self) -> Self {
        self.regions.iter_mut().for_each(|region| region.same = true);
        self
    }

    /// Memory with one region of `size` bytes at guest address 0.
    pub fn with_size(size: u64) -> Result<Self> {
        Self::new(&[RegionSpec { guest: GuestAddr(0), size }])
    }

    /// The regions, in the order in which they were given.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Copies bytes out. The range may cross from a region into the next.
    pub fn read(&self, at: GuestAddr, out: &mut [u8]) -> Result<()> {
        self.each_part(at, out.len(), |window, range| {
            window.read(0, &mut out[range]);
        })
    }

    /// Copies bytes in. The range may cross from a region into the next.
    pub fn write(&self, at: GuestAddr, data: &[u8]) -> Result<()> {
        self.each_part(at, data.len(), |window, range| {
            window.write(0, &data[range]);
        })
    }

    /// Sets `len` bytes to `byte`. The range may cross from a region into the next.
    pub fn fill(&self, at: GuestAddr, len: usize, byte: u8) -> Result<()> {
        let page = [byte; 4096];
        self.each_part(at, len, |window, range| {
            for start in (0..range.len()).step_by(page.len()) {
                let len = page.len().min(range.len() - start);
                window.write(start, &page[..len]);
            }
        })
    }

    /// Where an address is mapped in this process; `None` outside every region.
    pub fn user_address(&self, at: GuestAddr) -> Option<UserAddr> {
        let region = self.find(at)?;
        Some(UserAddr(region.user().0 + (at.0 - region.guest.0)))
    }

    /// A range that lies in one region.
    pub(super) fn window(&self, at: GuestAddr, len: usize) -> Result<Window> {
        let found = self.find(at).filter(|region| len as u64 <= region.end() - at.0);
        let region = found.ok_or_else(|| outside(at, len))?;
        let start = (at.0 - region.guest.0) as usize;
        Ok(Window::new(region.shared.clone(), start))
    }

    fn find(&self, at: GuestAddr) -> Option<&Region> {
        self.regions.iter().find(|region| (region.guest.0..region.end()).contains(&at.0))
    }

    /// Calls `part` for each piece of the range that lies in one region, in order, with the
    /// piece's place in the range. Nothing is called if any byte lies outside.
    fn each_part(
        &self,
        at: GuestAddr,
        len: usize,
        mut part: impl FnMut(Window, std::ops::Range<usize>),
    ) -> Result<()> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < len {
            let here = at.checked_add(done as u64).ok_or_else(|| outside(at, len))?;
            let region = self.find(here).ok_or_else(|| outside(at, len))?;
            let size = (len - done).min((region.end() - here.0) as usize);
            parts.push((self.window(here, size)?, done..done + size));
            done += size;
        }
        parts.into_iter().for_each(|(window, range)| part(window, range));
        Ok(())
    }
}

impl Region {
    fn new(spec: &RegionSpec) -> Result<Self> {
        let wrong = || {
            FrontendError::range(format!(
                "no region can have {:#x} bytes at {}",
                spec.size, spec.guest
            ))
        };
        let len = usize::try_from(spec.size).ok().filter(|&len| len != 0).ok_or_else(wrong)?;
        spec.guest.checked_add(spec.size).ok_or_else(wrong)?;
        let shared = SharedMemory::new("vhost-user guest memory", len)
            .map_err(|e| HostError::new(format!("make {len} bytes of guest memory"), e))?;
        Ok(Self { guest: spec.guest, shared: Arc::new(shared), same: false })
    }

    /// First guest-physical address.
    pub fn guest(&self) -> GuestAddr {
        self.guest
    }

    /// First address in this process, or what is told for it.
    pub fn user(&self) -> UserAddr {
        UserAddr(if self.same { self.guest.0 } else { self.shared.address() })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.shared.len() as u64
    }

    /// The region as messages describe it.
    pub fn description(&self) -> payload::Region {
        payload::Region {
            guest: self.guest,
            size: self.size(),
            user: self.user(),
            mmap_offset: 0,
            xen: None,
        }
    }

    fn end(&self) -> u64 {
        self.guest.0 + self.size()
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }
}

fn outside(at: GuestAddr, len: usize) -> FrontendError {
    FrontendError::range(format!("{len} bytes at {at} are not in guest memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(guest: u64, size: u64) -> RegionSpec {
        RegionSpec { guest: GuestAddr(guest), size }
    }

    #[test]
    fn a_range_may_cross_into_an_adjacent_region() {
        let memory = GuestMemory::new(&[spec(0x2000, 0x1000), spec(0x1000, 0x1000)]).unwrap();
        memory.write(GuestAddr(0x1ffe), b"abcd").unwrap();
        let mut out = [0; 4];
        memory.read(GuestAddr(0x1ffe), &mut out).unwrap();
        assert_eq!(&out, b"abcd");
        memory.fill(GuestAddr(0x1fff), 2, b'x').unwrap();
        memory.read(GuestAddr(0x1ffe), &mut out).unwrap();
        assert_eq!(&out, b"axxd");
    }

    #[test]
    fn a_range_that_leaves_memory_is_refused_and_nothing_is_written() {
        let memory = GuestMemory::new(&[spec(0x1000, 0x1000)]).unwrap();
        for (at, len) in [(0xfff, 2), (0x1fff, 2), (u64::MAX, 2), (0x3000, 1)] {
            let error = memory.write(GuestAddr(at), &vec![1; len]).unwrap_err();
            assert!(matches!(error, FrontendError::OutOfRange { .. }));
        }
        let mut last = [0];
        memory.read(GuestAddr(0x1fff), &mut last).unwrap();
        assert_eq!(last, [0]);
    }

    #[test]
    fn regions_that_overlap_are_empty_or_wrap_are_refused() {
        for specs in [
            vec![spec(0, 0x2000), spec(0x1000, 0x1000)],
            vec![spec(0, 0)],
            vec![spec(u64::MAX - 0xfff, 0x2000)],
        ] {
            assert!(matches!(GuestMemory::new(&specs), Err(FrontendError::OutOfRange { .. })));
        }
    }

    #[test]
    fn user_addresses_follow_the_mapping() {
        let memory = GuestMemory::new(&[spec(0x10_0000, 0x2000)]).unwrap();
        let start = memory.regions()[0].user();
        assert_eq!(memory.user_address(GuestAddr(0x10_0123)), start.checked_add(0x123));
        assert_eq!(memory.user_address(GuestAddr(0x10_2000)), None);
    }
}
