//! A disk behind an IOMMU: the device sees the driver's memory by I/O virtual addresses.
//!
//! Rings, headers and status bytes have the same addresses for as long as the driver lives. The data
//! of a request have some while it is in flight, and no longer, as with Linux and `iommu.strict=1`:
//! where they were another request's are next, from other memory. Every other mapping of that kind is
//! told before the request, and the back-end has to ask for the rest.
//!
//! ```text
//! 1 << 40   all of guest memory, but for the data of requests
//! 1 << 44   the data of requests in flight: a place for each slot of each queue, and one more
//! ```
//!
//! Source: QEMU "Vhost-user Protocol", "IOMMU support".

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::client::Client;
use super::super::error::{FrontendError, Result};
use super::super::iommu::{Iommu, IommuPage};
use super::super::memory::GuestMemory;
use super::{BlockQueue, BlockRequest};
use crate::address::{GuestAddr, Iova};

/// What the device sees of the guest's address 0.
pub(super) const STANDING: u64 = 1 << 40;
/// The first address of what is there for one request.
const PASSING: u64 = 1 << 44;
const PAGE: u64 = 4096;

/// How often something has happened to the translations of a driver's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IommuCounts {
    /// The back-end has asked for one.
    pub asked: u64,
    /// It was told one before it asked.
    pub told: u64,
    /// One was taken away.
    pub taken: u64,
}

/// The mappings of a driver's memory.
#[derive(Debug)]
pub(super) struct Mappings {
    pub(super) table: Iommu,
    /// Places for data of each queue; the one in front was free for the longest time.
    places: Vec<VecDeque<u64>>,
    pub(super) counts: IommuCounts,
    /// All of memory is mapped, data too: a load has no time to map them one by one.
    pub(super) is_open: bool,
}

impl Mappings {
    pub(super) fn new(memory: &GuestMemory, queues: &[BlockQueue]) -> Self {
        let mut table = Iommu::default();
        let data: Vec<_> = queues.iter().map(BlockQueue::data_range).collect();
        for guest in pages_of(memory) {
            if !data.iter().any(|range| range.contains(&guest)) {
                table.map(Iova(STANDING + guest), any_access(guest));
            }
        }
        let mut next = PASSING;
        let mut places_of = |queue: &BlockQueue| {
            let (first, size) = (next, u64::from(queue.slot_bytes()));
            let count = u64::from(queue.slots()) + 1;
            next += count * size;
            (0..count).map(|place| first + place * size).collect()
        };
        let places = queues.iter().map(&mut places_of).collect();
        Self { table, places, counts: IommuCounts::default(), is_open: false }
    }

    /// Gives the data of a request a place where the device sees them.
    pub(super) fn lend(
        &mut self,
        (client, memory): (&mut Client, &GuestMemory),
        (queue, index): (&mut BlockQueue, usize),
        slot: u16,
        request: &BlockRequest,
    ) -> Result<()> {
        let Some(place) = self.places[index].pop_front() else { return Ok(()) };
        let guest = queue.data_range().start + u64::from(slot) * u64::from(queue.slot_bytes());
        let write = request.op.device_writes();
        let len = u64::from(request.len).next_multiple_of(PAGE);
        for offset in (0..len).step_by(PAGE as usize) {
            let page = IommuPage { guest: GuestAddr(guest + offset), read: !write, write };
            self.table.map(Iova(place + offset), page);
        }
        queue.show_data(slot, place);
        let is_told = place / u64::from(queue.slot_bytes()) % 2 == 1;
        if let Some(to) = memory.user_address(GuestAddr(guest)).filter(|_| is_told && len > 0) {
            client.update_iotlb(Iova(place), len, to, (!write, write))?;
            self.counts.told += 1;
        }
        Ok(())
    }

    /// Takes the place of a request's data away.
    pub(super) fn take_back(
        &mut self,
        client: &mut Client,
        (queue, index): (&BlockQueue, usize),
        slot: u16,
        request: &BlockRequest,
    ) -> Result<()> {
        let place = queue.shown_data(slot);
        self.places[index].push_back(place);
        let len = u64::from(request.len).next_multiple_of(PAGE);
        if len == 0 {
            return Ok(());
        }
        for offset in (0..len).step_by(PAGE as usize) {
            self.table.unmap(Iova(place + offset));
        }
        self.counts.taken += 1;
        client.invalidate_iotlb(Iova(place), len)
    }

    /// Answers what the back-end has asked by now.
    pub(super) fn answer(&mut self, client: &mut Client, memory: &GuestMemory) -> Result<()> {
        while let Some(miss) = client.next_miss()? {
            self.counts.asked += 1;
            client.answer_miss(miss, &self.table, memory)?;
        }
        Ok(())
    }

    /// Maps the data of all requests where all of memory is, and tells the back-end.
    pub(super) fn open(&mut self, client: &mut Client, memory: &GuestMemory) -> Result<()> {
        self.is_open = true;
        for guest in pages_of(memory) {
            self.table.map(Iova(STANDING + guest), any_access(guest));
        }
        for region in memory.regions() {
            let (at, to) = (Iova(STANDING + region.guest().0), region.user());
            client.update_iotlb(at, region.size(), to, (true, true))?;
        }
        Ok(())
    }

    /// Takes that back. With it go the back-end's translations of all else, for which it asks again.
    pub(super) fn close(&mut self, client: &mut Client, queues: &[BlockQueue]) -> Result<()> {
        self.is_open = false;
        for range in queues.iter().map(BlockQueue::data_range) {
            for guest in range.clone().step_by(PAGE as usize) {
                self.table.unmap(Iova(STANDING + guest));
            }
            client.invalidate_iotlb(Iova(STANDING + range.start), range.end - range.start)?;
        }
        Ok(())
    }
}

/// The guest addresses of the pages of memory.
fn pages_of(memory: &GuestMemory) -> impl Iterator<Item = u64> {
    memory.regions().iter().flat_map(|region| {
        let first = region.guest().0;
        (first..first + region.size()).step_by(PAGE as usize)
    })
}

fn any_access(guest: u64) -> IommuPage {
    IommuPage { guest: GuestAddr(guest), read: true, write: true }
}

/// An IOMMU does not go together with memory of a Xen domain, whose addresses are grants.
pub(super) fn check(is_behind: bool, on_xen: bool) -> Result<()> {
    if is_behind && on_xen {
        return Err(FrontendError::range("a guest of Xen has no IOMMU: leave out one of them"));
    }
    Ok(())
}

/// The mappings of a driver that has an IOMMU.
pub(super) fn mappings(
    is_behind: bool,
    memory: &Arc<GuestMemory>,
    queues: &[BlockQueue],
) -> Option<Mappings> {
    is_behind.then(|| Mappings::new(memory, queues))
}
