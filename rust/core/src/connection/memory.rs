//! Guest memory as the front-end describes it.

use super::state::{Commit, Connection, Handled, Verdict, only_fd, read};
use super::{Action, Refusal, RegionOffer, RegionRange};
use crate::wire::message::Size;
use crate::wire::payload::{MemoryTable, Region, SingleRegion, XenFields, XenMapping, XenMeans};
use crate::wire::{
    Frame, FrontendMessage, Payload, ProtocolFeatures, ReceivedFd, RegionLayout, XenDesigns,
};

/// Set in guest addresses that stand for grants.
const GRANT_ADDRESS: u64 = 1 << 63;

/// Grant references are 32 bits and pages 12: no address is higher.
const GRANT_ADDRESS_END: u64 = GRANT_ADDRESS + (1 << 44);

impl Connection {
    pub(super) fn set_mem_table(&mut self, frame: Frame) -> Handled {
        if self.is_acknowledgement(FrontendMessage::SetMemTable, &frame) {
            return self.postcopy_acknowledge(&frame);
        }
        let layout = self.layout_of(Size::Table, &frame.payload)?;
        let table = MemoryTable::from_bytes(&frame.payload, layout)?;
        let (regions, fds) = (table.regions.len(), frame.fds.len());
        if regions != fds {
            return Err(Refusal(format!("{regions} regions with {fds} descriptors")));
        }
        let offers = (1..).zip(&table.regions).zip(frame.fds).map(|((number, region), fd)| {
            let of_many = |Refusal(why)| match regions {
                1 => Refusal(why),
                _ => Refusal(format!("region {number} of {regions}: {why}")),
            };
            self.offer(region, layout, fd).map_err(of_many)
        });
        let offers = offers.collect::<Result<_, _>>()?;
        if self.postcopy.listens() {
            return Ok(self.await_table(offers, table));
        }
        Ok(Verdict::Act(Action::SetMemory(offers), Commit::Regions(regions as u64)))
    }

    pub(super) fn get_max_mem_slots(&self) -> Handled {
        Ok(Verdict::Answer(self.offer.max_memory_slots.to_bytes()))
    }

    pub(super) fn add_mem_reg(&mut self, frame: Frame) -> Handled {
        if self.is_acknowledgement(FrontendMessage::AddMemReg, &frame) {
            return self.postcopy_acknowledge(&frame);
        }
        let layout = self.layout_of(Size::OneRegion, &frame.payload)?;
        let SingleRegion(region) = SingleRegion::from_bytes(&frame.payload, layout)?;
        let (known, max) =
            (self.postcopy.awaited.unwrap_or(self.regions), self.offer.max_memory_slots);
        if known >= max {
            return Err(Refusal(format!("{known} regions are mapped, {max} at most")));
        }
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        let offer = self.offer(&region, layout, fd)?;
        if self.postcopy.listens() {
            return Ok(self.await_region(offer, region, known + 1));
        }
        let action = Action::AddRegion(offer);
        Ok(Verdict::Act(action, Commit::Regions(self.regions + 1)))
    }

    /// A descriptor that came with the message is closed with the frame.
    pub(super) fn rem_mem_reg(&mut self, frame: &Frame) -> Handled {
        if self.is_acknowledgement(FrontendMessage::RemMemReg, frame) {
            return self.postcopy_acknowledge(frame);
        }
        self.not_while_unacknowledged()?;
        let layout = self.layout_of(Size::OneRegion, &frame.payload)?;
        let SingleRegion(region) = SingleRegion::from_bytes(&frame.payload, layout)?;
        let left = self.regions.checked_sub(1).ok_or_else(|| {
            let Region { guest, user, size, .. } = region;
            Refusal(format!("guest {guest}, user {user}, {size:#x} bytes: no region is mapped"))
        })?;
        Ok(Verdict::Act(Action::RemoveRegion(range(&region)), Commit::Regions(left)))
    }

    /// Says how regions that follow in the plain layout are to be mapped. Regions that are there
    /// stay as they are.
    pub(super) fn set_xen_mmap(&mut self, frame: &Frame) -> Handled {
        if !self.xen().is_some_and(|designs| designs.message) {
            let why = "not of the design that is served: use --xen=message or auto";
            return Err(Refusal(why.to_owned()));
        }
        let fields: XenFields = read(frame)?;
        self.xen_mmap = fields.mapping(RegionLayout::Plain)?;
        Ok(Verdict::Done)
    }

    /// The message with this number. 41 belongs to two: it is GET_SHARED_OBJECT if SHARED_OBJECT
    /// was accepted, or if XEN_MMAP was not even offered. The other has no answer of its own, so
    /// that a front-end of any design of XEN_MMAP never gets one that it does not wait for.
    pub(super) fn message(&self, number: u32) -> Option<FrontendMessage> {
        let message = FrontendMessage::from_number(number)?;
        let objects = self.protocol_features.contains(ProtocolFeatures::SHARED_OBJECT);
        let second =
            message == FrontendMessage::GetSharedObject && self.offer.xen.is_some() && !objects;
        Some(if second { FrontendMessage::SetXenMmap } else { message })
    }

    /// Refuses what would need addresses in a mapping that come and go.
    pub(super) fn possible_with_xen(&self, message: FrontendMessage) -> Result<(), Refusal> {
        use FrontendMessage as M;
        let what = match message {
            M::SetLogBase | M::SetLogFd => "dirty logging",
            M::PostcopyAdvise | M::PostcopyListen | M::PostcopyEnd => "postcopy",
            _ => return Ok(()),
        };
        match self.xen() {
            None => Ok(()),
            Some(_) => Err(Refusal(format!("{what} is not possible with XEN_MMAP"))),
        }
    }

    /// The designs in use; `None` without XEN_MMAP.
    pub(super) fn xen(&self) -> Option<XenDesigns> {
        let accepted = self.protocol_features.contains(ProtocolFeatures::XEN_MMAP);
        self.offer.xen.filter(|_| accepted)
    }

    fn offer(
        &self,
        region: &Region,
        layout: RegionLayout,
        fd: ReceivedFd,
    ) -> Result<RegionOffer, Refusal> {
        let xen = match region.xen {
            Some(fields) => fields.mapping(layout)?,
            None => self.xen().and(self.xen_mmap),
        };
        if let Some(mapping) = xen {
            check(region, mapping)?;
        }
        Ok(RegionOffer { range: range(region), mmap_offset: region.mmap_offset, xen, fd })
    }
}

fn range(region: &Region) -> RegionRange {
    RegionRange { guest: region.guest, size: region.size, user: region.user }
}

/// What must hold of a region that the hypervisor maps.
fn check(region: &Region, mapping: XenMapping) -> Result<(), Refusal> {
    let Region { guest, size, mmap_offset, .. } = *region;
    if mmap_offset != 0 {
        return Err(Refusal(format!(
            "mmap offset {mmap_offset:#x}: memory of a Xen domain has none but 0"
        )));
    }
    let grants = GRANT_ADDRESS..GRANT_ADDRESS_END;
    let inside = grants.contains(&guest.0) && size <= GRANT_ADDRESS_END - guest.0;
    match mapping.means {
        XenMeans::Foreign if guest.0 & GRANT_ADDRESS != 0 => Err(Refusal(format!(
            "guest address {guest}: bit 63 stands for grants, and the region is foreign"
        ))),
        XenMeans::Grant | XenMeans::GrantOnDemand if !inside => Err(Refusal(format!(
            "guest address {guest}, {size:#x} bytes: grants lie from bit 63 on, with references of \
             32 bits: {GRANT_ADDRESS:#x} to {GRANT_ADDRESS_END:#x}"
        ))),
        _ => Ok(()),
    }
}
