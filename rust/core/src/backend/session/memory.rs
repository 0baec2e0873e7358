//! Guest memory of a session: its table, and what is taken out of it.

use std::fmt::Display;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::session::{RECHECK_INTERVAL, Session};
use crate::backend::event::Event;
use crate::connection::{Refusal, RegionOffer, RegionRange};
use crate::memory::{Addressing, Extent, GuestSlice, Memory, Region, UnmapNotifier, XenKind};
use crate::wire::ProtocolFeatures;
use crate::wire::payload::XenMeans;
use crate::worker::{Broken, HeldUp, Report};

/// How long requests of other queues that began in the former mappings have to end, before pages of
/// these mappings are taken away.
const BATCH_LIMIT: Duration = Duration::from_millis(100);

impl Session<'_> {
    pub(super) fn set_memory(&mut self, offers: Vec<RegionOffer>) -> Result<(), Refusal> {
        let map = |offer| self.map("SET_MEM_TABLE", offer);
        let regions = offers.into_iter().map(map).collect::<Result<Vec<_>, _>>()?;
        let memory = Memory::addressed(regions, self.addressing());
        let memory = memory.map_err(|e| Refusal(format!("SET_MEM_TABLE: {e}")))?;
        // A guest's kernel ends its grants as soon as it hears that they are not used any more.
        let removed = self.memory.domains_regions_outside(&memory);
        self.swap_memory(memory);
        self.wait_for_end(removed);
        Ok(())
    }

    pub(super) fn add_region(&mut self, offer: RegionOffer) -> Result<(), Refusal> {
        self.settle_addressing("ADD_MEM_REG")?;
        let region = self.map("ADD_MEM_REG", offer)?;
        let memory = self.memory.with(region).map_err(|e| Refusal(format!("ADD_MEM_REG: {e}")))?;
        self.swap_memory(memory);
        Ok(())
    }

    /// How the front-end's addresses are to be understood, as far as it was negotiated.
    pub(super) fn addressing(&self) -> Addressing {
        let guest = self.connection.protocol_features().contains(ProtocolFeatures::GPA_ADDRESSES);
        let iotlb = self.connection.translates().then(|| Arc::clone(&self.iotlb));
        Addressing { guest, iotlb }
    }

    /// Has addresses understood as was negotiated by now. No ring is started yet if that changes
    /// anything.
    pub(super) fn settle_addressing(&mut self, message: &str) -> Result<(), Refusal> {
        let addressing = self.addressing();
        if !self.memory.addressing().is_like(&addressing) {
            let regions = self.memory.regions().to_vec();
            let memory = Memory::addressed(regions, addressing);
            self.swap_memory(memory.map_err(|e| Refusal(format!("{message}: {e}")))?);
        }
        Ok(())
    }

    /// A region, with one for all other addresses if the front-end allows to map more.
    pub(super) fn map(&self, message: &str, offer: RegionOffer) -> Result<Arc<Region>, Refusal> {
        let RegionOffer { range: RegionRange { guest, size, user }, mmap_offset, xen, fd } = offer;
        let refused = |why: &dyn Display| {
            let what = xen.map_or_else(
                || format!("file offset {mmap_offset:#x}"),
                |xen| format!("domain {}", xen.domid),
            );
            let place = format!("guest address {guest}, {size:#x} bytes, {what}");
            Refusal(format!("{message}: the region at {place}: {why}"))
        };
        let extent = Extent { guest, user, size };
        let Some(mapping) = xen else {
            let region = Region::map(&self.memory_policy, extent, mmap_offset, fd);
            return region.map_err(|e| refused(&e));
        };
        let Some(options) = &self.context.options.xen else {
            return Err(refused(&"XEN_MMAP was not offered"));
        };
        let domid = mapping.domid;
        if let Some(only) = options.domain.filter(|&only| only != domid) {
            return Err(refused(&format!("xen domain id {domid}: only domain {only} is served")));
        }
        let access = &options.access;
        let kind = kind(mapping.means);
        let more = mapping.more.then(|| fd.try_clone()).transpose().map_err(|e| refused(&e))?;
        let region = Region::xen(&self.memory_policy, access, kind, domid, extent, fd);
        let mut region = region.map_err(|e| refused(&e))?;
        if let Some(fd) = more {
            let fallback = Region::xen_fallback(access, kind, domid, fd);
            region.allow_more(fallback.map_err(|e| refused(&e))?);
        }
        Ok(region)
    }

    /// Returns when nothing uses the region any more: only then is the message answered.
    pub(super) fn remove_region(&mut self, range: RegionRange) -> Result<(), Refusal> {
        let RegionRange { guest, size, user } = range;
        let (memory, region) = self.memory.without(guest, user, size).map_err(|e| {
            Refusal(format!("REM_MEM_REG: guest {guest}, user {user}, {size:#x} bytes: {e}"))
        })?;
        self.swap_memory(memory);
        self.wait_for_end(vec![region]);
        Ok(())
    }

    /// Waits until nothing uses these regions, which the table has no more. A region that is still
    /// in use when the time for that is over is taken away from the requests that use it.
    fn wait_for_end(&self, regions: Vec<Arc<Region>>) {
        let (begun, limit) = (Instant::now(), self.shared().drain());
        let waits: Vec<_> =
            regions.iter().map(|r| (r.unmap_notifier(), Arc::downgrade(r))).collect();
        drop(regions);
        let is_late = |unmapped: &UnmapNotifier| loop {
            let left = self.left(begun, limit);
            if unmapped.wait(left.min(RECHECK_INTERVAL)) {
                break false;
            }
            if left.is_zero() {
                break true;
            }
        };
        let late = waits.iter().filter(|(unmapped, _)| is_late(unmapped));
        self.take_away(&late.filter_map(|(_, region)| region.upgrade()).collect::<Vec<_>>());
    }

    /// Takes guest memory away from a device that does not give its requests back, while all else
    /// goes on: the regions are mapped once more, all queues use the new mappings from then on, and
    /// private memory comes into the former ones, which shows what the guest has there, and goes on
    /// to show what the requests `read`. What other queues have begun in the former mappings has a
    /// moment to end, and fails if it ends later.
    ///
    /// Memory of a domain is not taken: the device has it until it lets go of its request.
    pub(super) fn take_from_device(&mut self, reads: &[GuestSlice]) {
        if self.awaits_pages() {
            // The front-end answers for pages at the addresses that it was told, and at no others.
            let why = "pages of the guest's memory are still on their way by postcopy";
            return self.event(Event::NotTaken(why.to_owned()));
        }
        if let Err(error) = self.map_again() {
            return self.event(Event::NotTaken(error));
        }
        if self.queues().next().is_some() {
            thread::sleep(BATCH_LIMIT);
        }
        let in_use =
            |region: &Arc<Region>| self.memory.regions().iter().any(|r| Arc::ptr_eq(r, region));
        let former = self.mapped.iter().filter_map(Weak::upgrade).filter(|r| !in_use(r));
        for region in former.filter(|region| region.is_file()) {
            // In this order: a request that ends later finds that its memory has gone.
            region.end();
            region.detach(&[]);
            region.keep_private(reads);
        }
    }

    /// Maps all regions of files once more; all queues use the new mappings from now on.
    fn map_again(&mut self) -> Result<(), String> {
        let mut regions = self.memory.regions().to_vec();
        for region in &mut regions {
            if let Some(again) = region.again(&self.memory_policy).map_err(|e| e.to_string())? {
                *region = again;
            }
        }
        let addressing = self.memory.addressing().clone();
        let memory = Memory::addressed(regions, addressing).map_err(|error| error.to_string())?;
        self.swap_memory(memory);
        Ok(())
    }

    /// Takes memory away from the requests that still have it.
    pub(super) fn take_away(&self, regions: &[Arc<Region>]) {
        if regions.is_empty() {
            return;
        }
        // In this order: a request that is not among those that need something finds the end.
        regions.iter().for_each(|region| region.end());
        let completion_queues = self.completions.iter().filter_map(Weak::upgrade);
        let needed: Vec<_> =
            completion_queues.flat_map(|completions| completions.needed()).collect();
        regions.iter().for_each(|region| region.detach(&needed));
        // A batch that ended meanwhile has found its pages still mapped, and its worker waits with
        // the answers.
        self.workers.iter().flatten().for_each(|worker| worker.doorbell().ring());
    }

    pub(super) fn swap_memory(&mut self, memory: Memory) {
        self.mapped.retain(|region| region.strong_count() > 0);
        let known = |r: &Arc<Region>| self.mapped.iter().any(|m| m.as_ptr() == Arc::as_ptr(r));
        let all = memory.regions().iter().chain(memory.fallback());
        let new = all.filter(|r| !known(r)).inspect(|r| r.watch(&self.loss));
        let new: Vec<_> = new.map(Arc::downgrade).collect();
        self.mapped.extend(new);
        self.memory = Arc::new(memory);
        for queue in self.queues() {
            match queue.move_to(&self.memory.for_queue()) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    self.shared().queue_broken(queue.index(), Broken::Memory(error));
                    // Reported first: the front-end is answered when the memory is free.
                    let _ = queue.leave();
                }
                Err(HeldUp) => self.event(Event::HeldUp { queue: queue.index() }),
            }
        }
    }
}

fn kind(means: XenMeans) -> XenKind {
    match means {
        XenMeans::Foreign => XenKind::Foreign,
        XenMeans::Grant => XenKind::Grant,
        XenMeans::GrantOnDemand => XenKind::GrantOnDemand,
    }
}
