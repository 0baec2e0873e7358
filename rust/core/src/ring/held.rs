//! Copies of the descriptors of a packed ring's chains in flight.
//!
//! The driver's descriptors do not stay: the device writes used ones over them, in the order in which
//! chains come back. So each chain has its copies here, in a list of entries that are linked. What
//! is free is a list too. The record of requests in flight has the same lists.

use super::record::RecordError;

/// The end of a list, and the mark of an id that is not in flight.
const NONE: u16 = u16::MAX;

/// A copy of one descriptor, and its place in a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// The descriptor's address.
    pub(super) low: u64,
    /// Its length, buffer id and flags.
    pub(super) high: u64,
    /// The next entry of the chain, or of those that are free.
    pub(super) next: u16,
    /// Of a chain's first entry: its last.
    pub(super) last: u16,
    /// Of a chain's first entry: how many there are.
    pub(super) count: u16,
}

/// The copies of all chains in flight.
#[derive(Debug)]
pub(super) struct Held {
    entries: Box<[Entry]>,
    /// The first entry of each chain in flight, by its id.
    of_id: Box<[u16]>,
    /// The first free entry. There is always one when it is asked for: the chains in flight have no
    /// more descriptors than the ring.
    free: u16,
}

impl Held {
    pub(super) fn new(size: u16) -> Self {
        // The last link names no entry: all known back-ends mark the end so.
        let entries = (1..=size).map(|next| Entry { next, ..Entry::default() }).collect();
        Self { entries, of_id: vec![NONE; size.into()].into(), free: 0 }
    }

    pub(super) fn size(&self) -> u16 {
        self.entries.len() as u16
    }

    pub(super) fn free(&self) -> u16 {
        self.free
    }

    #[inline]
    pub(super) fn entry(&self, index: u16) -> &Entry {
        &self.entries[usize::from(index)]
    }

    /// Holds one more chain: `copies` are its descriptors, of which there are `count`. Returns its
    /// first entry. The id is checked: less than the size, and not in flight.
    #[inline]
    pub(super) fn take(
        &mut self,
        id: u16,
        count: u16,
        copies: impl Iterator<Item = (u64, u64)>,
    ) -> u16 {
        let first = self.free;
        let mut last = first;
        for (low, high) in copies {
            last = self.free;
            let entry = &mut self.entries[usize::from(last)];
            (entry.low, entry.high) = (low, high);
            self.free = entry.next;
        }
        let entry = &mut self.entries[usize::from(first)];
        (entry.last, entry.count) = (last, count);
        self.of_id[usize::from(id)] = first;
        first
    }

    /// The chain with this id is given back; returns its first entry. Its entries are
    /// [freed](Self::free_chain) later.
    #[inline]
    pub(super) fn forget(&mut self, id: u16) -> u16 {
        std::mem::replace(&mut self.of_id[usize::from(id)], NONE)
    }

    /// The entries of this chain are free.
    #[inline]
    pub(super) fn free_chain(&mut self, first: u16) {
        let last = self.entry(first).last;
        self.entries[usize::from(last)].next = self.free;
        self.free = first;
    }

    #[inline]
    pub(super) fn is_in_flight(&self, id: u16) -> bool {
        self.of_id[usize::from(id)] != NONE
    }

    /// The first entry of a chain in flight.
    #[inline]
    pub(super) fn first(&self, id: u16) -> Option<u16> {
        self.of_id.get(usize::from(id)).copied().filter(|&first| first != NONE)
    }

    /// All chains in flight: id and number of descriptors.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let first = |id| Some((id, self.entry(self.first(id)?).count));
        (0..self.size()).filter_map(first)
    }

    /// The lists of a process that died: its entries, the first free one, and chains that may be in
    /// flight, by id and first entry. Returns which of the chains are: the others are free.
    ///
    /// # Errors
    /// They are no such lists.
    pub(super) fn of_lists(
        entries: Vec<Entry>,
        free: u16,
        chains: &[(u16, u16)],
    ) -> Result<(Self, Vec<bool>), RecordError> {
        let size = entries.len() as u16;
        let mut lists = Lists { seen: vec![false; size.into()], entries };
        lists.all_free(free)?;
        let live: Vec<_> =
            chains.iter().map(|&(_, first)| !lists.seen[usize::from(first)]).collect();
        let mut of_id = vec![NONE; size.into()];
        for (&(id, first), _) in chains.iter().zip(&live).filter(|(_, live)| **live) {
            lists.chain(first)?;
            let known = of_id.get_mut(usize::from(id)).filter(|known| **known == NONE);
            *known.ok_or(RecordError::Id { id, size })? = first;
        }
        if let Some(next) = (0..size).find(|&index| !lists.seen[usize::from(index)]) {
            return Err(RecordError::Link { next, size });
        }
        Ok((Self { entries: lists.entries.into(), of_id: of_id.into(), free }, live))
    }
}

/// Lists while they are followed: no entry is in two of them, or twice in one.
struct Lists {
    entries: Vec<Entry>,
    seen: Vec<bool>,
}

impl Lists {
    fn all_free(&mut self, mut at: u16) -> Result<(), RecordError> {
        let size = self.entries.len() as u16;
        while at < size {
            at = self.follow(at)?;
        }
        if at == size { Ok(()) } else { Err(RecordError::Link { next: at, size }) }
    }

    fn chain(&mut self, first: u16) -> Result<(), RecordError> {
        let size = self.entries.len() as u16;
        let Entry { last, count, .. } = self.entries[usize::from(first)];
        let (mut at, mut end) = (first, first);
        for _ in 0..count {
            end = at;
            at = self.follow(at)?;
        }
        if count == 0 || end != last {
            return Err(RecordError::Link { next: last, size });
        }
        Ok(())
    }

    fn follow(&mut self, at: u16) -> Result<u16, RecordError> {
        let wrong = RecordError::Link { next: at, size: self.entries.len() as u16 };
        let seen = self.seen.get_mut(usize::from(at)).ok_or(wrong)?;
        if std::mem::replace(seen, true) {
            return Err(wrong);
        }
        Ok(self.entries[usize::from(at)].next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(count: u16) -> impl Iterator<Item = (u64, u64)> {
        (0..count.into()).map(|n| (n, 100 + n))
    }

    fn chain(held: &Held, id: u16) -> Vec<u64> {
        let first = held.first(id).unwrap();
        let entry = |at: &u16| held.entry(*at);
        let places = std::iter::successors(Some(first), |at| Some(entry(at).next));
        places.take(entry(&first).count.into()).map(|at| held.entry(at).low).collect()
    }

    #[test]
    fn a_chain_keeps_its_descriptors_whatever_comes_and_goes() {
        let mut held = Held::new(6);
        held.take(5, 3, descriptors(3));
        held.take(2, 1, descriptors(1));
        held.take(0, 2, descriptors(2));
        assert_eq!(held.in_flight().collect::<Vec<_>>(), [(0, 2), (2, 1), (5, 3)]);
        for id in [2, 5] {
            let first = held.forget(id);
            held.free_chain(first);
        }
        assert!(!held.is_in_flight(5));
        held.take(5, 4, descriptors(4));
        assert_eq!((chain(&held, 0), chain(&held, 5)), (vec![0, 1], vec![0, 1, 2, 3]));
        assert_eq!(held.free(), 6, "none is left");
    }

    #[test]
    fn lists_that_cross_or_run_in_circles_are_none() {
        let entry = |next, last, count| Entry { next, last, count, ..Entry::default() };
        // 0 -> 1 is a chain, 2 -> 3 is free.
        let good = [entry(1, 1, 2), entry(9, 0, 0), entry(3, 0, 0), entry(4, 0, 0)];
        let error = |free, chains: &[(u16, u16)], changed: &[(usize, Entry)]| {
            let mut entries = good.to_vec();
            changed.iter().for_each(|&(at, entry)| entries[at] = entry);
            Held::of_lists(entries, free, chains).err()
        };
        let link = |next| Some(RecordError::Link { next, size: 4 });
        assert_eq!(error(2, &[(3, 0)], &[]), None);
        assert_eq!(error(2, &[(7, 0)], &[]), Some(RecordError::Id { id: 7, size: 4 }));
        assert_eq!(error(2, &[(3, 0), (3, 0)], &[]), link(0), "twice the same");
        assert_eq!(error(2, &[], &[]), link(0), "in no list");
        assert_eq!(error(0, &[(3, 0)], &[]), link(9), "not free");
        assert_eq!(error(7, &[(3, 0)], &[]), link(7), "no entry");
        assert_eq!(error(2, &[(3, 0)], &[(3, entry(2, 0, 0))]), link(2), "a circle");
        assert_eq!(error(2, &[(3, 0)], &[(3, entry(5, 0, 0))]), link(5), "no end");
        assert_eq!(error(2, &[(3, 0)], &[(0, entry(2, 1, 2))]), link(2), "into what is free");
        assert_eq!(error(2, &[(3, 0)], &[(0, entry(1, 1, 0))]), link(1), "no descriptor");
        assert_eq!(error(2, &[(3, 0)], &[(0, entry(1, 3, 2))]), link(3), "another end");
        assert_eq!(error(2, &[(3, 0)], &[(0, entry(1, 1, 9))]), link(9), "too long");
        let one = entry(0, 1, 1);
        assert_eq!(
            error(2, &[(3, 0), (3, 1)], &[(0, entry(1, 0, 1)), (1, one)]),
            Some(RecordError::Id { id: 3, size: 4 }),
            "two with one id"
        );
    }

    #[test]
    fn a_chain_whose_first_entry_is_free_is_not_in_flight() {
        let entries = Held::new(4).entries.to_vec();
        let (held, live) = Held::of_lists(entries, 0, &[(3, 2)]).unwrap();
        assert_eq!((live, held.in_flight().count()), (vec![false], 0));
    }
}
