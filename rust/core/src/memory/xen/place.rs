//! The places that pieces get, and the zeroes in place of those that cannot be reached.

use super::demand::{Demand, PIECE_PAGES, Piece, Pin, State};
use crate::memory::access::Access;
use crate::memory::buffers::Buffers;
use crate::memory::fault::{Fault, Unreachable};
use crate::memory::segment::GuestSlice;
use crate::sys::mmap::Mapping;
use crate::xen::XEN_PAGE;

impl Buffers {
    pub(super) fn place_copied(&mut self) {
        self.place_each(|demand, number| match demand.pieces[number].state {
            State::Copied(start) => {
                Some(GuestSlice::new(demand.bounce.at(start), demand.pieces[number].len))
            }
            _ => None,
        });
    }

    /// Puts a piece where it was mapped. `page` is the number of the area's page that it begins in.
    pub(super) fn place_mapped(&mut self, number: usize, area: &Pin, page: usize) {
        self.place_one(number, |demand| {
            let piece = demand.pieces.get_mut(number)?;
            let end = (page + piece.pages()) * XEN_PAGE as usize;
            assert!(end <= area.len(), "a piece ends inside the area that was mapped for it");
            piece.state = State::Mapped;
            if !demand.pins.last().is_some_and(|last| last.is(area)) {
                demand.pins.push(area.clone());
            }
            Some(demand.pieces[number].inside(area.base().wrapping_add(page * XEN_PAGE as usize)))
        });
    }

    /// Loses what waits, but for the last piece that the device writes: its number is returned.
    pub(super) fn lose_all_but_last(&mut self) -> Option<usize> {
        let pieces = self.demand().map_or(&[][..], |demand| &demand.pieces);
        let waiting = pieces.iter().enumerate().filter(|(_, piece)| piece.waits());
        let mut waiting: Vec<_> = waiting.map(|(number, _)| number).collect();
        let is_written = |&&last: &&usize| pieces[last].access == Access::DeviceWritable;
        let last = waiting.last().filter(is_written).copied();
        waiting.truncate(waiting.len() - usize::from(last.is_some()));
        waiting.into_iter().for_each(|number| self.lose(number));
        last
    }

    /// Puts private zeroes where a piece should be.
    pub(super) fn lose(&mut self, number: usize) {
        self.place_one(number, |demand| {
            let piece = demand.pieces.get_mut(number)?;
            piece.state = State::Lost;
            let Piece { at, len, access, .. } = *piece;
            let reason = Unreachable::NotGranted;
            demand.fault.get_or_insert(Fault { at, len: len as u64, access, reason });
            if demand.zeroes.is_none() {
                demand.zeroes = Mapping::private(PIECE_PAGES * XEN_PAGE as usize).ok();
            }
            // Without any memory it stays empty; the device is not shown the request anyway.
            Some(GuestSlice::new(demand.zeroes.as_ref()?.base(), len))
        });
    }

    fn place_each(&mut self, mut place: impl FnMut(&mut Demand, usize) -> Option<GuestSlice>) {
        for number in 0..self.demand().map_or(0, |demand| demand.pieces.len()) {
            self.place_one(number, |demand| place(demand, number));
        }
    }

    fn place_one(&mut self, number: usize, place: impl FnOnce(&mut Demand) -> Option<GuestSlice>) {
        let Some(demand) = self.demand_mut() else { return };
        let Some(placed) = place(demand) else { return };
        let Piece { access, segment, .. } = demand.pieces[number];
        self.put(access, segment, placed);
    }
}
