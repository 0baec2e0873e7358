//! Buffers and rings by addresses that are not the guest's own: I/O virtual ones, which the
//! front-end translates.
//!
//! What a chain was given is held by the regions, as without translations: a translation that is
//! taken away later moves no memory.

use std::sync::Arc;

use super::access::Access;
use super::fault::Unreachable;
use super::region::{Backing, Region};
use super::table::{Memory, OutOfMemory, Place};
use super::translator::{MOST_PIECES, Miss, Translator};
use crate::address::{GuestAddr, Iova};

/// The most translations that are asked for at once for one queue: those of two of the longest
/// requests that Linux makes.
const MOST_MISSES: usize = 512;

/// The smallest page of an IOMMU. Where more than one translation is missing it is not known how
/// far each reaches: so each page is asked for.
const PAGE: u64 = 0x1000;

impl Memory {
    /// Returns whether addresses of rings and buffers are translated.
    #[inline]
    pub fn translates(&self) -> bool {
        self.translator().is_some()
    }

    /// Returns this table for one queue: the same, or one with a cache of its own if addresses are
    /// translated.
    pub fn for_queue(self: &Arc<Self>) -> Arc<Self> {
        if !self.translates() {
            return Arc::clone(self);
        }
        let again = Self::addressed(self.regions().to_vec(), self.addressing().clone());
        Arc::new(again.expect("the same regions made a table before"))
    }

    /// Returns whether all of `size` bytes lie in regions, at an address as translations give it.
    pub fn has_target(&self, to: u64, size: u64) -> bool {
        let (mut next, mut left) = (to, size);
        while left > 0 {
            let Some((region, offset)) = self.target(next) else { return false };
            let here = left.min(region.size() - offset);
            left -= here;
            if left > 0 {
                // Less than the end of `size` bytes, which does not wrap.
                next += here;
            }
        }
        true
    }

    /// Returns the region at an address as translations give it, and the offset in the region.
    fn target(&self, to: u64) -> Option<(&Arc<Region>, u64)> {
        if self.addressing().guest { self.at_guest(to) } else { self.at_user(to) }
    }

    /// Calls `found` for each piece of `[at, at + len)`, an I/O virtual range. On an error what was
    /// found is to be thrown away.
    #[inline(never)]
    pub(super) fn translated<'a>(
        &'a self,
        translator: &'a Translator,
        (at, len): (GuestAddr, u64),
        access: Access,
        mut found: impl FnMut(Place<'a>),
    ) -> Result<(), OutOfMemory> {
        let error = |reason| OutOfMemory { at, len, reason };
        at.checked_add(len).ok_or(error(Unreachable::Outside))?;
        let (mut next, mut left, mut pieces) = (at.0, len, 0);
        while left > 0 {
            let place = translator.cache.place(&translator.iotlb, next, left, access);
            let (mut to, here) = place.ok_or(error(Unreachable::Untranslated))?;
            let mut run = here.min(left);
            (next, left) = (next.wrapping_add(run), left - run);
            while run > 0 {
                pieces += 1;
                let (region, offset) = self.target(to).ok_or(error(Unreachable::Outside))?;
                let part = run.min(region.size() - offset);
                let backing = region.backing(offset, part, access);
                let Backing::Mapped(_) = backing else { return Err(error(Unreachable::Outside)) };
                found(Place { at, len: part, backing });
                (to, run) = (to.wrapping_add(part), run - part);
                if pieces > MOST_PIECES {
                    return Err(error(Unreachable::TooManyPieces));
                }
            }
        }
        Ok(())
    }

    /// Adds the translations that `[at, at + len)` lacks for this access, as long as there are not
    /// too many already.
    #[cold]
    pub fn add_misses(&self, at: u64, len: u64, access: Access, misses: &mut Vec<Miss>) {
        let Some(translator) = self.translator() else { return };
        let (mut next, mut left) = (at, len);
        while left > 0 && misses.len() < MOST_MISSES {
            let place = translator.cache.place(&translator.iotlb, next, left, access);
            let step = match place {
                Some((_, here)) => here,
                None => {
                    add_miss(Miss { iova: Iova(next), access }, misses);
                    PAGE - next % PAGE
                }
            };
            left = left.saturating_sub(step);
            // Past the last address nothing is left: the range was checked when it was looked up.
            next = next.wrapping_add(step);
        }
    }

    /// Returns whether the translation that is missed has come.
    pub fn knows(&self, miss: Miss) -> bool {
        self.translator().is_none_or(|translator| translator.knows(miss))
    }
}

/// One question is enough for each page: one that may be written can nearly always be read.
fn add_miss(miss: Miss, misses: &mut Vec<Miss>) {
    match misses.iter_mut().find(|known| known.iova.0 / PAGE == miss.iova.0 / PAGE) {
        Some(known) if miss.access == Access::DeviceWritable => known.access = miss.access,
        Some(_) => {}
        None => misses.push(miss),
    }
}
