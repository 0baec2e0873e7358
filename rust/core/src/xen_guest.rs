//! A guest of a hypervisor that is not there, for tests of devices.
//!
//! ```text
//!  driver ── rings, buffers ──> memory of the guest <── maps, copies ── back-end
//!     │                                 │ frames, grants                   │
//!     └── what is told of it            └──────────── FakeXen <──── ops ───┘
//! ```
//!
//! Its memory is a file, and all of it is granted. A back-end that is given its hypervisor
//! reaches the memory by the code that reaches a guest's on Xen, down to the system calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::fstat;

use crate::address::GuestAddr;
use crate::error::HostError;
use crate::frontend::{
    FrontendError, GuestMemory, RegionDescription, RegionLayout, RegionSpec, XenFields, XenMemory,
    XenRegion,
};
use crate::wire::payload::xen::{FIRST_RESERVED_DOMID, FOREIGN};
use crate::xen::{FakeXen, XEN_PAGE, XenDevice, XenOps};

/// Set in addresses that stand for grants.
const GRANT_ADDRESS: u64 = 1 << 63;

/// The reference of the first page: lower ones are never granted, as on a real guest.
const FIRST_REFERENCE: u32 = 16;

/// The frame of the first page, at 5 GiB, where 32 bits do not reach.
const FIRST_FRAME: u64 = 0x14_0000;

/// A guest, its memory, and the hypervisor under it.
#[derive(Debug)]
pub struct XenGuest {
    xen: Arc<FakeXen>,
    domid: u16,
    memory: Arc<GuestMemory>,
    /// The hypervisor's device by which the memory is mapped.
    device: OwnedFd,
    fields: XenFields,
}

impl XenGuest {
    /// A domain with `size` bytes of memory, to be mapped as `fields` say: by frames if they
    /// have the flag for foreign mapping, else by grants.
    ///
    /// # Errors
    /// The domain's number is the hypervisor's own, or the memory is not whole pages.
    pub fn new(fields: XenFields, size: u64) -> Result<Self, FrontendError> {
        let (domid, pages) = (domid(fields.domid)?, pages(size)?);
        let foreign = fields.flags & FOREIGN != 0;
        let (base, kind) = if foreign {
            (FIRST_FRAME * XEN_PAGE, XenDevice::Privcmd)
        } else {
            (GRANT_ADDRESS | (u64::from(FIRST_REFERENCE) * XEN_PAGE), XenDevice::Gntdev)
        };
        let memory = GuestMemory::new(&[RegionSpec { guest: GuestAddr(base), size }])?;
        let file = copy(memory.regions()[0].as_fd())?;
        let xen = FakeXen::new();
        xen.add_memory(domid, FIRST_FRAME, pages.into(), file);
        for page in 0..pages {
            xen.grant(domid, FIRST_REFERENCE + page, FIRST_FRAME + u64::from(page), true);
        }
        let device = xen.device(kind).map_err(|e| HostError::new("make a device of Xen", e))?;
        Ok(Self { xen, domid, memory: Arc::new(memory), device, fields })
    }

    /// The hypervisor, for a back-end.
    pub fn ops(&self) -> Arc<dyn XenOps> {
        Arc::clone(&self.xen) as Arc<dyn XenOps>
    }

    /// All memory as one region, for a front-end to tell of.
    pub fn region(&self) -> Result<XenRegion, FrontendError> {
        Ok(XenRegion { region: self.description(), fd: copy(self.device.as_fd())? })
    }

    /// Its memory, for a driver, and that one region, told in a design.
    pub fn told(&self, layout: RegionLayout) -> Result<XenMemory, FrontendError> {
        Ok(XenMemory { memory: Arc::clone(&self.memory), regions: vec![self.region()?], layout })
    }

    /// The numbers of the region.
    pub fn description(&self) -> RegionDescription {
        RegionDescription { xen: Some(self.fields), ..self.memory.regions()[0].description() }
    }

    /// Pages that somebody has mapped beside the guest itself, lowest first: the references that
    /// its grant table shows in use, or with foreign mapping the frames mapped in this process.
    pub fn in_use(&self) -> Result<Vec<u64>, FrontendError> {
        if self.fields.flags & FOREIGN == 0 {
            return Ok(self.xen.in_use(self.domid).into_iter().map(u64::from).collect());
        }
        let failed = |e| HostError::new("look what is mapped", e);
        let maps = std::fs::read_to_string("/proc/self/maps").map_err(failed)?;
        let file = fstat(self.memory.regions()[0].as_fd()).map_err(|e| failed(e.into()))?.st_ino;
        let own = self.memory.regions()[0].user().0;
        let others = maps.lines().filter_map(Line::read).filter(|l| l.file == file);
        let mut frames: Vec<_> =
            others.filter(|line| line.start != own).flat_map(|line| line.frames()).collect();
        frames.sort_unstable();
        frames.dedup();
        Ok(frames)
    }
}

impl AsFd for XenGuest {
    /// The hypervisor's device, as a front-end passes it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// A line of `/proc/self/maps`: `START-END PERMISSIONS OFFSET DEVICE FILE`, most in hexadecimal.
struct Line {
    start: u64,
    len: u64,
    offset: u64,
    file: u64,
}

impl Line {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hexadecimal = |word| u64::from_str_radix(word, 16).ok();
        let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
        let offset = hexadecimal(words.nth(1)?)?;
        let file = words.nth(1)?.parse().ok()?;
        Some(Self { start, len: end - start, offset, file })
    }

    fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        let first = FIRST_FRAME + self.offset / XEN_PAGE;
        first..first + self.len.div_ceil(XEN_PAGE)
    }
}

fn domid(number: u64) -> Result<u16, FrontendError> {
    let known = u16::try_from(number).ok().filter(|_| number < FIRST_RESERVED_DOMID);
    known.ok_or_else(|| {
        let most = FIRST_RESERVED_DOMID - 1;
        FrontendError::OutOfRange { why: format!("a guest is domain 0 to {most}, not {number}") }
    })
}

fn pages(size: u64) -> Result<u32, FrontendError> {
    let pages = u32::try_from(size / XEN_PAGE).ok().filter(|pages| {
        size.is_multiple_of(XEN_PAGE) && (1..=u32::MAX - FIRST_REFERENCE).contains(pages)
    });
    pages.ok_or_else(|| {
        let why = format!("a guest's memory is whole pages of {XEN_PAGE} bytes, not {size} bytes");
        FrontendError::OutOfRange { why }
    })
}

fn copy(fd: BorrowedFd<'_>) -> Result<OwnedFd, FrontendError> {
    Ok(fd.try_clone_to_owned().map_err(|e| HostError::new("copy a descriptor", e))?)
}

#[cfg(test)]
#[path = "xen_guest_tests.rs"]
mod tests;
