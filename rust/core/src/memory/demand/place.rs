//! The places that pieces get, and the zeroes in place of those that cannot be reached.

use std::sync::Arc;

use super::{Demand, Fault, Piece, Pin, State};
use crate::memory::grant::GrantMap;
use crate::memory::region::OnDemand;
use crate::memory::view::{Access, Buffers, Segment};
use crate::sys::mmap::Mapping;
use crate::xen::XEN_PAGE;

impl Buffers {
    pub(super) fn place_copied(&mut self) {
        self.place_each(|demand, number| match demand.pieces[number].state {
            State::Copied(start) => {
                Some(Segment::new(demand.bounce.at(start), demand.pieces[number].len))
            }
            _ => None,
        });
    }

    /// `page`: of the area, the one that the piece begins in.
    pub(super) fn place_mapped(&mut self, number: usize, map: &Arc<GrantMap>, page: usize) {
        self.place_one(number, |demand| {
            let piece = demand.pieces.get_mut(number)?;
            let end = (page + piece.pages()) * XEN_PAGE as usize;
            assert!(end <= map.len(), "a piece ends inside the area that was mapped for it");
            piece.state = State::Mapped;
            demand.pins.push(Pin::Grants(Arc::clone(map)));
            Some(demand.pieces[number].inside(map.base().wrapping_add(page * XEN_PAGE as usize)))
        });
    }

    pub(super) fn place_frames(&mut self, access: Access) {
        self.place_each(|demand, number| {
            let piece = &mut demand.pieces[number];
            let waits = piece.state == State::Waiting && piece.access == access;
            let Some(OnDemand::Frames(foreign)) = piece.source.as_ref().filter(|_| waits) else {
                return None;
            };
            let area = foreign.map(piece.at, piece.len as u64).ok()?;
            piece.state = State::Mapped;
            let segment = piece.inside(area.base());
            demand.pins.push(Pin::Frames(area));
            Some(segment)
        });
    }

    pub(super) fn lose_waiting(&mut self) {
        let Some(demand) = self.demand() else { return };
        let pieces = demand.pieces.iter().enumerate();
        let waiting: Vec<_> =
            pieces.filter(|(_, p)| p.state == State::Waiting).map(|(number, _)| number).collect();
        waiting.into_iter().for_each(|number| self.lose(number));
    }

    /// Puts private zeroes where a piece should be.
    pub(super) fn lose(&mut self, number: usize) {
        self.place_one(number, |demand| {
            let piece = demand.pieces.get_mut(number)?;
            piece.state = State::Lost;
            let Piece { at, len, access, .. } = *piece;
            demand.fault.get_or_insert(Fault { at, len, access });
            // Without any memory it stays empty; the device is not shown the request anyway.
            let zeroes = Mapping::private(len).ok()?;
            let segment = Segment::new(zeroes.base(), len);
            demand.pins.push(Pin::Private(zeroes));
            Some(segment)
        });
    }

    fn place_each(&mut self, mut place: impl FnMut(&mut Demand, usize) -> Option<Segment>) {
        for number in 0..self.demand().map_or(0, |demand| demand.pieces.len()) {
            self.place_one(number, |demand| place(demand, number));
        }
    }

    fn place_one(&mut self, number: usize, place: impl FnOnce(&mut Demand) -> Option<Segment>) {
        let Some(demand) = self.demand_mut() else { return };
        let Some(placed) = place(demand) else { return };
        let Piece { access, segment, .. } = demand.pieces[number];
        self.put(access, segment, placed);
    }
}
