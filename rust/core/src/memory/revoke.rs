//! Memory that is taken away from requests in flight: who notices, and what is kept for them.

use std::sync::Arc;

use super::access::Access;
use super::buffers::Buffers;
use super::fault::{Fault, Unreachable};
use super::region::Region;
use super::segment::GuestSlice;
use super::table::Memory;
use crate::address::GuestAddr;

impl Memory {
    /// Returns whether some of it was, or is about to be, taken away.
    pub fn has_ended(&self) -> bool {
        self.regions().iter().any(|region| region.has_ended())
    }

    /// Returns the regions of domains whose memory is not in a region of `other`.
    pub fn domains_regions_outside(&self, other: &Self) -> Vec<Arc<Region>> {
        let inside = |region: &Arc<Region>| other.regions().iter().any(|r| region.is_within(r));
        let regions = self.regions().iter().filter(|region| region.is_xen());
        regions.filter(|region| !inside(region)).map(Arc::clone).collect()
    }

    /// Returns the guest's address of a place in memory that has ended.
    fn ended_at(&self, place: GuestSlice) -> Option<GuestAddr> {
        let mut ended = self.regions().iter().filter(|region| region.has_ended());
        ended.find_map(|region| region.address_of(place))
    }
}

impl Buffers {
    /// Returns whether it lies in this table of memory.
    #[inline]
    pub fn is_in(&self, memory: &Arc<Memory>) -> bool {
        self.memory().is_some_and(|held| Arc::ptr_eq(held, memory))
    }

    /// Whether a file's memory that it may be written to was taken away since. What is a domain's is
    /// found out where its pages are given back.
    pub fn is_detached(&self) -> bool {
        let Some(memory) = self.memory().filter(|memory| memory.has_ended()) else { return false };
        let mut ended = memory.regions().iter().filter(|region| region.has_ended());
        ended.any(|region| {
            self.writable().parts(0, u64::MAX).any(|place| region.offset_of(place).is_some())
        })
    }

    /// Fails the chain if a buffer for `access` lies in memory that has been taken away since it
    /// was mapped. What is copied is not looked at: the copy is there, or fails by itself.
    pub fn fail_if_taken(&mut self, access: Access) {
        let Some(memory) = self.memory().filter(|memory| memory.has_ended()) else { return };
        let span = match access {
            Access::DeviceReadable => self.readable().parts(0, u64::MAX),
            Access::DeviceWritable => self.writable().parts(0, u64::MAX),
        };
        let mapped = span
            .filter_map(|place| {
                let (at, len) = (memory.ended_at(place)?, place.len() as u64);
                Some(Fault { at, len, access, reason: Unreachable::NotGranted })
            })
            .next();
        let fault = mapped.or_else(|| self.demand()?.taken(access));
        if let Some(fault) = fault {
            self.fail_with(fault);
        }
    }
}
