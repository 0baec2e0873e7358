//! The buffers of one descriptor chain, and the table of memory that keeps them mapped.

use std::sync::Arc;

use super::access::Access;
use super::fault::{Fault, Unreachable};
use super::region::Backing;
use super::segment::GuestSlice;
use super::span::{Readable, Writable};
use super::table::{Memory, OutOfMemory};
use super::translator::{MOST_PIECES, Miss};
use super::xen::demand::Demand;
use crate::address::GuestAddr;

/// The buffers of one descriptor chain, with the memory that they lie in. Reused from chain to
/// chain, so that a chain costs no allocation.
#[derive(Debug, Default)]
pub struct Buffers {
    memory: Option<Arc<Memory>>,
    readable: Vec<GuestSlice>,
    writable: Vec<GuestSlice>,
    readable_len: u64,
    writable_len: u64,
    /// The part of the chain that is not mapped in advance, and what is mapped for it. It is made
    /// when a chain first has such a part.
    demand: Option<Box<Demand>>,
}

impl Buffers {
    /// Forgets the former chain and starts one in `memory`.
    #[inline]
    pub fn begin(&mut self, memory: &Arc<Memory>) {
        self.forget();
        // The same table as last time is the rule: no reference is counted then.
        if !self.is_in(memory) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    /// Adds a descriptor's buffer, in as many segments as it crosses regions. If it lies outside
    /// of memory the chain has a [fault](Self::fault).
    #[inline]
    pub fn add(&mut self, at: GuestAddr, len: u32, access: Access) {
        let len = u64::from(len);
        let Some(memory) = &self.memory else {
            return self.add_outside(at, len, access, Unreachable::Outside);
        };
        let (list, total) = match access {
            Access::DeviceReadable => (&mut self.readable, &mut self.readable_len),
            Access::DeviceWritable => (&mut self.writable, &mut self.writable_len),
        };
        match memory.mapped(at, len, access) {
            Some(segment) => list.push(segment),
            None => match add_pieces(memory, list, &mut self.demand, (at, len), access) {
                Ok(()) => {}
                Err(error) => return self.add_outside(at, len, access, error.reason),
            },
        }
        *total += len;
    }

    /// Notes a buffer that is nowhere. What the chain had of its side is forgotten: what is left
    /// is what lies behind the last such buffer, and with it the byte that says that the request
    /// failed, which is the last of all.
    #[cold]
    fn add_outside(&mut self, at: GuestAddr, len: u64, access: Access, reason: Unreachable) {
        let (list, total) = match access {
            Access::DeviceReadable => (&mut self.readable, &mut self.readable_len),
            Access::DeviceWritable => (&mut self.writable, &mut self.writable_len),
        };
        list.clear();
        *total = 0;
        let demand = self.demand.get_or_insert_default();
        demand.forget_side(access);
        demand.fail(Fault { at, len, access, reason });
        if let Some(memory) = &self.memory
            && reason == Unreachable::Untranslated
        {
            memory.add_misses(at.0, len, access, &mut demand.misses);
        }
    }

    /// Returns the translations that it lacks.
    pub fn misses(&self) -> &[Miss] {
        self.demand().map_or(&[], |demand| &demand.misses)
    }

    /// Unmaps what was mapped for this chain alone. Its segments are gone then.
    pub fn unpin(&mut self) {
        if self.demand.as_ref().is_some_and(|demand| !demand.is_empty()) {
            let lengths = (self.readable_len, self.writable_len);
            self.forget();
            // They are counted when the chain is given back.
            (self.readable_len, self.writable_len) = lengths;
        }
    }

    /// Returns whether some of it lies in mappings of granted pages, made for it or in advance.
    #[inline]
    pub fn maps_grants(&self) -> bool {
        let granted = self.memory.as_ref().map_or(&[][..], |memory| memory.granted());
        let inside = |area: &GuestSlice, place: &GuestSlice| {
            (place.base() as usize).wrapping_sub(area.base() as usize) < area.len()
        };
        self.demand.as_ref().is_some_and(|demand| demand.maps_grants())
            || granted.iter().any(|area| {
                self.readable.iter().chain(&self.writable).any(|place| inside(area, place))
            })
    }

    /// Returns whether some of it was lost: what has been copied out of it may be zeroes that the
    /// driver did not write, and what was copied into it is nowhere.
    pub fn is_lost(&self) -> bool {
        self.readable().is_lost() || self.writable().is_lost()
    }

    /// Returns whether some of it has no place yet.
    pub fn is_undone(&self) -> bool {
        self.demand().is_some_and(Demand::waits)
    }

    /// Returns whether some of it has to be given a place, or cannot be.
    pub fn waits(&self) -> bool {
        self.demand().is_some_and(|demand| !demand.is_empty())
    }

    /// Returns the buffer that cannot be reached, if there is one. Nothing of such a chain is to be
    /// read, and what can be written may lack its beginning.
    #[inline]
    pub fn fault(&self) -> Option<Fault> {
        self.demand()?.fault()
    }

    /// Returns whether some of it may be a foreign mapping.
    pub fn is_foreign(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_foreign())
    }

    pub(super) fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }

    pub(super) fn demand(&self) -> Option<&Demand> {
        self.demand.as_deref()
    }

    pub(super) fn demand_mut(&mut self) -> Option<&mut Demand> {
        self.demand.as_deref_mut()
    }

    /// Puts a segment in the place of one that was empty. What it points to is held by `demand`.
    pub(super) fn put(&mut self, access: Access, number: usize, segment: GuestSlice) {
        let list = match access {
            Access::DeviceReadable => &mut self.readable,
            Access::DeviceWritable => &mut self.writable,
        };
        if let Some(place) = list.get_mut(number) {
            *place = segment;
        }
    }

    /// Nothing is known of the chain's buffers: its descriptors, so many bytes of them, cannot be
    /// read.
    #[cold]
    pub fn fail(&mut self, at: GuestAddr, len: u64, reason: Unreachable) {
        self.forget();
        self.add_outside(at, len, Access::DeviceReadable, reason);
    }

    /// Notes that some of the chain cannot be reached. The segments that it has stay.
    pub(super) fn fail_with(&mut self, fault: Fault) {
        self.demand.get_or_insert_default().fail(fault);
    }

    /// Forgets what the driver wrote.
    pub(crate) fn forget_readable(&mut self) {
        self.readable.clear();
        self.readable_len = 0;
    }

    #[inline]
    fn forget(&mut self) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
        if let Some(demand) = &mut self.demand {
            demand.clear();
        }
    }

    /// Lets go of the table of memory unless it is `memory`.
    #[inline]
    pub fn hold_only(&mut self, memory: &Arc<Memory>) {
        if self.demand.is_some() {
            self.forget();
            if !memory.needs_resolving() {
                // It was made for a fault: chains of mapped memory cost nothing for it again.
                self.demand = None;
            }
        }
        if !self.is_in(memory) {
            self.release();
        }
    }

    /// Lets go of the memory: an idle value must not keep a region mapped.
    pub fn release(&mut self) {
        self.forget();
        self.memory = None;
    }

    /// Returns the number of bytes, both directions together.
    #[inline]
    pub fn bytes(&self) -> u64 {
        // Each is less than 2^32 times the length of a chain.
        self.readable_len + self.writable_len
    }

    /// Returns the number of pieces of memory that it lies in.
    #[inline]
    pub(crate) fn pieces(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Returns how many pieces a chain may have without an allocation.
    pub(crate) fn capacity(&self) -> usize {
        self.readable.capacity() + self.writable.capacity()
    }

    /// Returns what the driver wrote.
    #[inline]
    pub fn readable(&self) -> Readable<'_> {
        Readable::new(&self.readable, self.readable_len)
    }

    /// Returns what the device may write.
    #[inline]
    pub fn writable(&self) -> Writable<'_> {
        Writable::new(&self.writable, self.writable_len)
    }
}

/// Adds a buffer that is not one mapped piece.
#[inline(never)]
fn add_pieces(
    memory: &Memory,
    list: &mut Vec<GuestSlice>,
    demand: &mut Option<Box<Demand>>,
    (at, len): (GuestAddr, u64),
    access: Access,
) -> Result<(), OutOfMemory> {
    if list.len() > MOST_PIECES {
        return Err(OutOfMemory { at, len, reason: Unreachable::TooManyPieces });
    }
    memory.backing(at, len, access, |place| {
        let how = match place.backing {
            Backing::Mapped(segment) => return list.push(segment),
            Backing::OnDemand(how) => Some(how),
            Backing::Denied => None,
        };
        demand.get_or_insert_default().add(list, (place.at, place.len), how, access);
    })
}
