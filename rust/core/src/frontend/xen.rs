//! Guest memory of a Xen domain, and the ways of telling a back-end of it.
//!
//! | design | what is sent | layout of regions |
//! |---|---|---|
//! | merged | flags and domain id with each region, 32 bits each | [`RegionLayout::XenMerged`] |
//! | review | the same with 64 bits each | [`RegionLayout::XenReview`] |
//! | message | SET_XEN_MMAP in front of the regions | [`RegionLayout::Plain`] |
//!
//! Source: QEMU "Vhost-user Protocol", "Memory region description"; the drafts of XEN_MMAP.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::client::{Client, copy};
use super::error::{FrontendError, Result};
use super::memory::GuestMemory;
use crate::wire::FrontendMessage as M;
use crate::wire::payload::{MemoryTable, Region, SingleRegion, XenFields};
use crate::wire::{MAX_FDS, Payload, ProtocolFeatures, RegionLayout};

/// A region as a message describes it, and its descriptor.
#[derive(Debug)]
pub struct XenRegion {
    /// The numbers, Xen's among them.
    pub region: Region,
    /// The hypervisor's device, or a file where the flags are 0.
    pub fd: OwnedFd,
}

/// Guest memory of a Xen domain.
#[derive(Debug)]
pub struct XenMemory {
    /// The memory as this process has it mapped, at the addresses that descriptors hold.
    pub memory: Arc<GuestMemory>,
    /// What the back-end is told of it.
    pub regions: Vec<XenRegion>,
    /// In which design.
    pub layout: RegionLayout,
}

impl XenRegion {
    fn fields(&self) -> XenFields {
        self.region.xen.unwrap_or_default()
    }
}

impl Client {
    /// Says whether XEN_MMAP was accepted: without it regions of Xen domains cannot be told.
    pub fn need_xen(&self) -> Result<()> {
        let met = self.protocol.contains(ProtocolFeatures::XEN_MMAP);
        if met { Ok(()) } else { Err(FrontendError::NotOffered { what: "XEN_MMAP" }) }
    }

    /// Gives the back-end all of a domain's memory: region by region if CONFIGURE_MEM_SLOTS was
    /// accepted, else in one table. XEN_MMAP must have been accepted.
    pub fn set_xen_memory(&mut self, memory: &XenMemory) -> Result<()> {
        let XenMemory { regions, layout, .. } = memory;
        if !self.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            return self.set_xen_table(regions, *layout);
        }
        regions.iter().try_for_each(|region| self.add_xen_region(region, *layout))
    }

    /// SET_MEM_TABLE with regions of Xen domains. In the design with a message all of them have
    /// the same flags and domain.
    pub fn set_xen_table(&mut self, regions: &[XenRegion], layout: RegionLayout) -> Result<()> {
        if regions.len() > MAX_FDS {
            let why = format!("{} regions, a message takes {MAX_FDS}", regions.len());
            return Err(FrontendError::range(why));
        }
        self.say_first(regions, layout)?;
        let fds = regions.iter().map(|region| copy(region.fd.as_fd())).collect::<Result<_>>()?;
        let table = MemoryTable { regions: regions.iter().map(|r| r.region).collect() };
        self.tell(M::SetMemTable, table.to_bytes(layout), fds)
    }

    /// ADD_MEM_REG with a region of a Xen domain.
    pub fn add_xen_region(&mut self, region: &XenRegion, layout: RegionLayout) -> Result<()> {
        self.say_first(std::slice::from_ref(region), layout)?;
        let payload = SingleRegion(region.region).to_bytes(layout);
        self.tell(M::AddMemReg, payload, vec![copy(region.fd.as_fd())?])
    }

    /// REM_MEM_REG with a region of a Xen domain.
    pub fn remove_xen_region(&mut self, region: &XenRegion, layout: RegionLayout) -> Result<()> {
        check_fit(std::slice::from_ref(region), layout)?;
        let payload = SingleRegion(region.region).to_bytes(layout);
        self.tell(M::RemMemReg, payload, Vec::new())
    }

    /// SET_XEN_MMAP: how later regions in the plain layout are mapped.
    pub fn set_xen_mmap(&mut self, fields: XenFields) -> Result<()> {
        self.tell(M::SetXenMmap, fields.to_bytes(), Vec::new())?;
        self.xen_said = fields;
        Ok(())
    }

    /// In the design with a message, says how these regions are to be mapped, unless that was
    /// said last.
    fn say_first(&mut self, regions: &[XenRegion], layout: RegionLayout) -> Result<()> {
        check_fit(regions, layout)?;
        let mut fields = regions.iter().map(XenRegion::fields);
        let Some(first) = fields.next().filter(|_| layout == RegionLayout::Plain) else {
            return Ok(());
        };
        if let Some(other) = fields.find(|other| *other != first) {
            let [one, two] =
                [first, other].map(|f| format!("{:#x} of domain {}", f.flags, f.domid));
            return Err(FrontendError::range(format!(
                "one SET_XEN_MMAP goes before a table, whose regions have flags {one} and {two}"
            )));
        }
        if first == self.xen_said { Ok(()) } else { self.set_xen_mmap(first) }
    }
}

fn check_fit(regions: &[XenRegion], layout: RegionLayout) -> Result<()> {
    match regions.iter().map(XenRegion::fields).find(|fields| !fields.fits(layout)) {
        None => Ok(()),
        Some(XenFields { flags, domid }) => Err(FrontendError::range(format!(
            "flags {flags:#x}, domain {domid}: they have 32 bits each in this design"
        ))),
    }
}
