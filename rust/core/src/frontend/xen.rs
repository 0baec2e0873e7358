//! Guest memory of a Xen domain, and the ways of telling a back-end of it.
//!
//! | design | what is sent | layout of regions |
//! |---|---|---|
//! | merged | flags and domain id with each region, 32 bits each | [`RegionLayout::XenMerged`] |
//! | review | the same with 64 bits each | [`RegionLayout::XenReview`] |
//! | message | SET_XEN_MMAP in front of the regions | [`RegionLayout::Plain`] |
//!
//! Source: QEMU "Vhost-user Protocol", "Memory region description"; the drafts of XEN_MMAP.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::client::Client;
use super::error::Result;
use super::memory::GuestMemory;
use crate::wire::payload::{Region, XenFields};
use crate::wire::{ProtocolFeatures, RegionLayout};

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

impl Client {
    /// Gives the back-end all of a domain's memory: region by region if CONFIGURE_MEM_SLOTS was
    /// accepted, else in one table. XEN_MMAP must have been accepted.
    pub fn set_xen_memory(&mut self, memory: &XenMemory) -> Result<()> {
        let XenMemory { regions, layout, .. } = memory;
        let mut said = XenFields::default();
        if !self.protocol.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.say_first(&mut said, regions.first(), *layout)?;
            return self.set_xen_table(regions, *layout);
        }
        regions.iter().try_for_each(|region| {
            self.say_first(&mut said, Some(region), *layout)?;
            self.add_xen_region(region, *layout)
        })
    }

    /// In the design with a message, says how the next region is to be mapped, unless that was
    /// `said` last.
    fn say_first(
        &mut self,
        said: &mut XenFields,
        region: Option<&XenRegion>,
        layout: RegionLayout,
    ) -> Result<()> {
        let fields = region.and_then(|r| r.region.xen).unwrap_or_default();
        if layout != RegionLayout::Plain || fields == *said {
            return Ok(());
        }
        *said = fields;
        self.set_xen_mmap(fields)
    }
}
