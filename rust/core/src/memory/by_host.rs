//! From where guest memory is mapped here to the guest's addresses.

use std::sync::Arc;

use super::index::Index;
use super::region::Region;
use super::segment::GuestSlice;
use crate::address::GuestAddr;

/// The regions of files, by where they are mapped here.
#[derive(Debug)]
pub(super) struct ByHost {
    regions: Box<[(GuestSlice, GuestAddr)]>,
    index: Index,
}

impl ByHost {
    pub(super) fn new(regions: &[Arc<Region>]) -> Self {
        let place = |region: &Arc<Region>| Some((region.host()?, region.guest()));
        let mut regions: Vec<_> = regions.iter().filter_map(place).collect();
        regions.sort_unstable_by_key(|(host, _)| host.base().addr());
        let span = |(host, _): &(GuestSlice, _)| (host.base().addr() as u64, host.len() as u64);
        let index = Index::new(regions.iter().map(span));
        Self { regions: regions.into(), index }
    }

    /// Returns the guest's address of a piece of one region.
    #[inline]
    pub(super) fn guest_of(&self, place: GuestSlice) -> Option<GuestAddr> {
        let at = place.base().addr();
        let (host, guest) = self.regions.get(self.index.find(at as u64))?;
        let offset = at.checked_sub(host.base().addr()).filter(|&offset| offset < host.len())?;
        guest.checked_add(offset as u64)
    }
}
