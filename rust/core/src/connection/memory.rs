//! Guest memory as the front-end describes it.

use std::os::fd::OwnedFd;

use super::state::{Commit, Connection, Handled, Verdict, only_fd};
use super::{Action, Refusal, RegionOffer, RegionRange};
use crate::wire::payload::{MemoryTable, Region, SingleRegion};
use crate::wire::{Frame, Payload};

impl Connection {
    pub(super) fn set_mem_table(&mut self, frame: Frame) -> Handled {
        let table = MemoryTable::from_bytes(&frame.payload, self.region_layout)?;
        let (regions, fds) = (table.regions.len(), frame.fds.len());
        if regions != fds {
            return Err(Refusal(format!("{regions} regions with {fds} descriptors")));
        }
        let offers = table.regions.iter().zip(frame.fds).map(|(region, fd)| offer(region, fd));
        Ok(Verdict::Act(Action::SetMemory(offers.collect()), Commit::Regions(regions as u64)))
    }

    pub(super) fn get_max_mem_slots(&self) -> Handled {
        Ok(Verdict::Answer(self.offer.max_memory_slots.to_bytes()))
    }

    pub(super) fn add_mem_reg(&mut self, frame: Frame) -> Handled {
        let SingleRegion(region) = SingleRegion::from_bytes(&frame.payload, self.region_layout)?;
        if self.regions >= self.offer.max_memory_slots {
            let max = self.offer.max_memory_slots;
            return Err(Refusal(format!("{} regions are mapped, {max} at most", self.regions)));
        }
        let fd = only_fd(frame)?.ok_or_else(|| Refusal("no descriptor".to_owned()))?;
        let action = Action::AddRegion(offer(&region, fd));
        Ok(Verdict::Act(action, Commit::Regions(self.regions + 1)))
    }

    /// A descriptor that came with the message is closed with the frame.
    pub(super) fn rem_mem_reg(&mut self, frame: &Frame) -> Handled {
        let SingleRegion(region) = SingleRegion::from_bytes(&frame.payload, self.region_layout)?;
        let left = self
            .regions
            .checked_sub(1)
            .ok_or_else(|| Refusal("there is no region to remove".to_owned()))?;
        Ok(Verdict::Act(Action::RemoveRegion(range(&region)), Commit::Regions(left)))
    }
}

fn range(region: &Region) -> RegionRange {
    RegionRange { guest: region.guest, size: region.size, user: region.user }
}

fn offer(region: &Region, fd: OwnedFd) -> RegionOffer {
    RegionOffer { range: range(region), mmap_offset: region.mmap_offset, fd }
}
