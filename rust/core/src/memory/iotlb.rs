//! The translations of I/O virtual addresses that the front-end has told: what is between the
//! addresses in a ring and guest memory once ACCESS_PLATFORM was accepted.
//!
//! The control thread changes the table, and the workers look addresses up in it. A worker keeps
//! what it found in a [`Cache`] of its queue, which costs no lock: an entry counts only while the
//! table's generation is the one that it was found in, and each change that takes a translation
//! away makes a new generation. So once the table was changed and each queue's lock was held after
//! that, nobody starts to use what was taken away.
//!
//! Source: QEMU "Vhost-user Protocol", "IOMMU support".

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::access::Access;
use crate::address::Iova;

/// The most translations that are kept. A front-end may tell as many as it likes; the oldest are
/// forgotten first, and asked for when they are needed again. A page of 4 KiB each, they cover
/// 256 MiB: more than all requests of a full queue describe that honest drivers send, so that none
/// is ever popped in vain. They take some 7 MiB.
pub const MOST_TRANSLATIONS: usize = 1 << 16;

/// The number of translations that a queue remembers: a power of two.
const CACHED: usize = 64;

/// The smallest page of an IOMMU: what the remembered ones are told apart by.
const PAGE_BITS: u32 = 12;

/// The accesses that a translation allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

/// A run of I/O virtual addresses, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The first address.
    first: u64,
    /// The last address.
    last: u64,
    /// The first address of the place: the front-end's own, or the guest's with GPA_ADDRESSES.
    to: u64,
    permission: Permission,
}

/// A translation that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTranslation {
    /// It has no byte.
    Empty(Iova),
    /// It leaves the space of addresses that it starts in.
    Wraps {
        /// The first address that is translated.
        iova: Iova,
        /// The first address of its place.
        to: u64,
        /// Bytes.
        size: u64,
    },
    /// It allows neither reading nor writing.
    Useless(Iova),
}

/// The table of translations.
#[derive(Debug)]
pub struct Iotlb {
    table: RwLock<Table>,
    /// Which table of translations this is: another number for each time that some were taken away.
    /// Never 0.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// By the first address; no two overlap.
    by_first: BTreeMap<u64, (Translation, u64)>,
    /// The number and the first address of each that was told, oldest first; of those that are gone
    /// too.
    told: VecDeque<(u64, u64)>,
    /// The number of the next.
    next: u64,
}

impl Permission {
    /// Both accesses.
    pub const ALL: Self = Self { read: true, write: true };

    /// Returns whether this access is allowed.
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::DeviceReadable => self.read,
            Access::DeviceWritable => self.write,
        }
    }
}

impl Translation {
    /// Returns the translation of `size` bytes at `iova` into those at `to`.
    ///
    /// # Errors
    /// There are no such bytes, or nothing may be done with them.
    pub fn new(
        iova: Iova,
        size: u64,
        to: u64,
        permission: Permission,
    ) -> Result<Self, BadTranslation> {
        let more = size.checked_sub(1).ok_or(BadTranslation::Empty(iova))?;
        let wraps = || BadTranslation::Wraps { iova, to, size };
        let last = iova.0.checked_add(more).ok_or_else(wraps)?;
        to.checked_add(more).ok_or_else(wraps)?;
        if !permission.read && !permission.write {
            return Err(BadTranslation::Useless(iova));
        }
        Ok(Self { first: iova.0, last, to, permission })
    }

    /// Returns the addresses that are translated.
    pub fn range(&self) -> (Iova, Iova) {
        (Iova(self.first), Iova(self.last))
    }

    /// Returns where `at` lies, and how many bytes from it on are translated like it; `None` if it
    /// is another's, or may not be used so.
    #[inline]
    fn place(&self, at: u64, access: Access) -> Option<(u64, u64)> {
        let inside = (self.first..=self.last).contains(&at) && self.permission.allows(access);
        // As many bytes as there are addresses would be one too many for the number.
        inside.then(|| (self.to + (at - self.first), (self.last - at).saturating_add(1)))
    }

    /// Returns whether the other goes on where this one ends, in both spaces and as allowed.
    fn goes_on_as(&self, other: &Self) -> bool {
        other.first.checked_sub(self.last) == Some(1)
            && other.to.checked_sub(self.to) == Some(other.first - self.first)
            && self.permission == other.permission
    }
}

impl Default for Iotlb {
    fn default() -> Self {
        Self { table: RwLock::default(), generation: AtomicU64::new(1) }
    }
}

impl Iotlb {
    /// Takes a translation, in the place of all that it overlaps; returns whether it overlaps any. The
    /// same once more changes nothing.
    pub fn update(&self, translation: Translation) -> bool {
        let mut table = self.table.write();
        let known = table.by_first.get(&translation.first);
        if known.is_some_and(|(known, _)| *known == translation) {
            return false;
        }
        let removed = table.remove(translation.first, translation.last);
        let forgotten = table.by_first.len() >= MOST_TRANSLATIONS && table.forget_oldest();
        table.add(translation);
        if removed || forgotten {
            self.begin_generation();
        }
        removed
    }

    /// Takes away all translations of which an address lies from `first` to `last`.
    pub fn invalidate(&self, first: Iova, last: Iova) {
        let mut table = self.table.write();
        if table.remove(first.0, last.0) {
            self.begin_generation();
        }
    }

    /// Takes all translations away.
    pub fn clear(&self) {
        *self.table.write() = Table::default();
        self.begin_generation();
    }

    /// Returns how many translations there are.
    pub fn len(&self) -> usize {
        self.table.read().by_first.len()
    }

    /// Returns whether there is no translation.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Release pairs with the acquire of [`generation`](Self::generation): whoever sees the new
    /// number looks into the new table.
    fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    #[inline]
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the translation of `at`, joined with those behind it that go on in the same way, as
    /// far as `wanted` bytes; `None` if it has none for this access.
    fn find(&self, at: u64, wanted: u64, access: Access) -> Option<Translation> {
        let table = self.table.read();
        let mut from = table.by_first.range(..=at).next_back().into_iter();
        let mut found = from.next().map(|(_, (translation, _))| *translation)?;
        found.place(at, access)?;
        let end = at.saturating_add(wanted);
        for (next, _) in table.by_first.range(at..).map(|(_, entry)| entry) {
            if next.first == found.first {
                continue;
            }
            if found.last >= end || !found.goes_on_as(next) {
                break;
            }
            found.last = next.last;
        }
        Some(found)
    }
}

impl Table {
    /// Removes what overlaps; returns whether anything did.
    fn remove(&mut self, first: u64, last: u64) -> bool {
        let before = self.by_first.range(..first).next_back();
        let reaches_in = before.filter(|(_, (translation, _))| translation.last >= first);
        let from = reaches_in.map_or(first, |(&start, _)| start);
        let gone: Vec<u64> = self.by_first.range(from..=last).map(|(&start, _)| start).collect();
        for start in &gone {
            self.by_first.remove(start);
        }
        !gone.is_empty()
    }

    fn add(&mut self, translation: Translation) {
        let number = self.next;
        self.next += 1;
        self.told.push_back((number, translation.first));
        self.by_first.insert(translation.first, (translation, number));
        if self.told.len() > 2 * MOST_TRANSLATIONS {
            let Self { by_first, told, .. } = self;
            told.retain(|&(number, first)| {
                by_first.get(&first).is_some_and(|(_, known)| *known == number)
            });
        }
    }

    /// Forgets the oldest translation; returns whether there was one.
    fn forget_oldest(&mut self) -> bool {
        while let Some((number, first)) = self.told.pop_front() {
            if self.by_first.get(&first).is_some_and(|(_, known)| *known == number) {
                self.by_first.remove(&first);
                return true;
            }
        }
        false
    }
}

/// What a queue remembers of the table. It is used by who holds the queue's lock, one thread at a
/// time.
#[derive(Debug)]
pub(super) struct Cache(Box<[Remembered; CACHED]>);

/// One translation that was found. The fields are atomic as the cache is shared, and not because
/// anybody changes them meanwhile.
#[derive(Debug, Default)]
struct Remembered {
    /// The generation, times four, and the two permissions; 0 for none.
    stamp: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    to: AtomicU64,
}

impl Default for Cache {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| Remembered::default())))
    }
}

impl Cache {
    /// Returns where `at` lies, and how many bytes from it on are translated like it; `None` if the
    /// table has no translation of it for this access. No more than `wanted` bytes are looked for.
    #[inline]
    pub(super) fn place(
        &self,
        iotlb: &Iotlb,
        at: u64,
        wanted: u64,
        access: Access,
    ) -> Option<(u64, u64)> {
        // Before the table is looked at: what is found there is at least as new.
        let generation = iotlb.generation();
        let slot = &self.0[(at >> PAGE_BITS) as usize % CACHED];
        let known = slot.recall(generation).and_then(|known| known.place(at, access));
        if let Some((place, len)) = known
            && len >= wanted
        {
            return Some((place, len));
        }
        let found = iotlb.find(at, wanted, access)?;
        slot.remember(generation, &found);
        found.place(at, access)
    }
}

impl Remembered {
    #[inline]
    fn recall(&self, generation: u64) -> Option<Translation> {
        let stamp = self.stamp.load(Ordering::Relaxed);
        (stamp >> 2 == generation).then(|| Translation {
            first: self.first.load(Ordering::Relaxed),
            last: self.last.load(Ordering::Relaxed),
            to: self.to.load(Ordering::Relaxed),
            permission: Permission { read: stamp & 1 != 0, write: stamp & 2 != 0 },
        })
    }

    fn remember(&self, generation: u64, translation: &Translation) {
        let Translation { first, last, to, permission: Permission { read, write } } = *translation;
        self.first.store(first, Ordering::Relaxed);
        self.last.store(last, Ordering::Relaxed);
        self.to.store(to, Ordering::Relaxed);
        let stamp = generation << 2 | u64::from(write) << 1 | u64::from(read);
        self.stamp.store(stamp, Ordering::Relaxed);
    }
}

impl fmt::Display for BadTranslation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(iova) => write!(f, "a translation of 0 bytes at {iova}"),
            Self::Wraps { iova, to, size } => write!(
                f,
                "a translation of {size:#x} bytes from {iova} to {to:#x} goes past the last address"
            ),
            Self::Useless(iova) => {
                write!(f, "the translation at {iova} allows neither reading nor writing")
            }
        }
    }
}

impl std::error::Error for BadTranslation {}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{DeviceReadable, DeviceWritable};

    const PAGE: u64 = 0x1000;
    const READ: Permission = Permission { read: true, write: false };

    fn translation(iova: u64, size: u64, to: u64, permission: Permission) -> Translation {
        Translation::new(Iova(iova), size, to, permission).unwrap()
    }

    fn table(entries: &[(u64, u64, u64)]) -> Iotlb {
        let iotlb = Iotlb::default();
        for &(iova, size, to) in entries {
            iotlb.update(translation(iova, size, to, Permission::ALL));
        }
        iotlb
    }

    fn place(iotlb: &Iotlb, at: u64) -> Option<(u64, u64)> {
        Cache::default().place(iotlb, at, 1, DeviceReadable)
    }

    #[test]
    fn an_address_is_found_in_the_translation_that_covers_it() {
        let iotlb = table(&[(0x10_0000, PAGE, 0x7000), (0x20_0000, 2 * PAGE, 0x1000)]);
        assert_eq!(place(&iotlb, 0x10_0000), Some((0x7000, PAGE)));
        assert_eq!(place(&iotlb, 0x10_0fff), Some((0x7fff, 1)));
        assert_eq!(place(&iotlb, 0x20_1800), Some((0x2800, 0x800)));
        for outside in [0, 0xf_ffff, 0x10_1000, 0x1f_ffff, 0x20_2000, u64::MAX] {
            assert_eq!(place(&iotlb, outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn a_translation_may_end_with_the_last_address() {
        let iotlb = table(&[(u64::MAX - 0xfff, PAGE, 0x1000)]);
        assert_eq!(place(&iotlb, u64::MAX), Some((0x1fff, 1)));
        let whole = table(&[(0, u64::MAX, 0)]);
        assert_eq!(place(&whole, 5), Some((5, u64::MAX - 5)));
    }

    #[test]
    fn what_is_no_translation_is_refused() {
        for (iova, size, to) in [
            (0x1000, 0, 0),
            (u64::MAX, 2, 0),
            (0, u64::MAX, 2),
            (u64::MAX - 0xfff, 0x1001, 0),
            (0, 0x1001, u64::MAX - 0xfff),
        ] {
            assert!(Translation::new(Iova(iova), size, to, READ).is_err(), "{iova:#x} {size:#x}");
        }
        let nothing = Permission { read: false, write: false };
        assert!(Translation::new(Iova(0), 1, 0, nothing).is_err());
    }

    #[test]
    fn only_the_access_that_is_allowed_has_a_place() {
        let iotlb = Iotlb::default();
        iotlb.update(translation(0x1000, PAGE, 0x5000, READ));
        let cache = Cache::default();
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceWritable), None);
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceReadable), Some((0x5000, PAGE)));
        // Nor once it is remembered.
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceWritable), None);
        iotlb.update(translation(0x1000, PAGE, 0x5000, Permission::ALL));
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceWritable), Some((0x5000, PAGE)));
    }

    #[test]
    fn an_update_replaces_what_it_overlaps() {
        let iotlb =
            table(&[(0x1000, PAGE, 0x5000), (0x2000, PAGE, 0x9000), (0x3000, PAGE, 0xd000)]);
        iotlb.update(translation(0x1800, PAGE, 0x2_0000, Permission::ALL));
        assert_eq!(place(&iotlb, 0x1000), None);
        assert_eq!(place(&iotlb, 0x1800), Some((0x2_0000, PAGE)));
        assert_eq!(place(&iotlb, 0x2900), None);
        assert_eq!(place(&iotlb, 0x3000), Some((0xd000, PAGE)));
    }

    #[test]
    fn an_invalidation_takes_away_whatever_it_touches() {
        let entries = [(0x1000, PAGE, 0x5000), (0x2000, PAGE, 0x9000), (0x8000, PAGE, 0xd000)];
        let iotlb = table(&entries);
        iotlb.invalidate(Iova(0x1fff), Iova(0x2000));
        assert_eq!((place(&iotlb, 0x1000), place(&iotlb, 0x2fff)), (None, None));
        assert_eq!(place(&iotlb, 0x8000), Some((0xd000, PAGE)));
        iotlb.invalidate(Iova(0), Iova(u64::MAX));
        assert!(iotlb.is_empty());
        iotlb.invalidate(Iova(0), Iova(u64::MAX));
    }

    #[test]
    fn what_is_remembered_is_forgotten_with_an_invalidation() {
        let iotlb = table(&[(0x1000, PAGE, 0x5000), (0x2000, PAGE, 0x9000)]);
        let cache = Cache::default();
        assert!(cache.place(&iotlb, 0x1000, 4, DeviceReadable).is_some());
        iotlb.invalidate(Iova(0x1000), Iova(0x1000));
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceReadable), None);
        iotlb.update(translation(0x1000, PAGE, 0xb000, Permission::ALL));
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceReadable), Some((0xb000, PAGE)));
        iotlb.clear();
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceReadable), None);
    }

    #[test]
    fn what_is_remembered_stays_when_other_translations_come() {
        let iotlb = table(&[(0x1000, PAGE, 0x5000)]);
        let generation = iotlb.generation();
        assert!(!iotlb.update(translation(0x4000, PAGE, 0x6000, Permission::ALL)));
        assert_eq!(iotlb.generation(), generation);
        assert!(!iotlb.update(translation(0x4000, PAGE, 0x6000, Permission::ALL)), "the same");
        assert_eq!(iotlb.generation(), generation);
        assert!(iotlb.update(translation(0x4000, PAGE, 0x6000, READ)));
        assert_ne!(iotlb.generation(), generation);
    }

    #[test]
    fn pages_that_follow_each_other_in_both_spaces_are_one_piece() {
        let iotlb = table(&[
            (0x1000, PAGE, 0x5000),
            (0x2000, PAGE, 0x6000),
            (0x3000, PAGE, 0x9000),
            (0x5000, PAGE, 0xb000),
        ]);
        let find = |at, wanted| Cache::default().place(&iotlb, at, wanted, DeviceReadable);
        assert_eq!(find(0x1800, 0x1800), Some((0x5800, 0x1800)));
        assert_eq!(find(0x1800, 0x10_0000), Some((0x5800, 0x1800)));
        assert_eq!(find(0x1800, 4), Some((0x5800, 0x800)), "no further than was asked for");
        assert_eq!(find(0x3000, 0x10_0000), Some((0x9000, PAGE)));
        let cache = Cache::default();
        assert_eq!(cache.place(&iotlb, 0x1000, 4, DeviceReadable), Some((0x5000, PAGE)));
        // What was remembered for a short look does not cut a long one short.
        assert_eq!(cache.place(&iotlb, 0x1000, 0x2000, DeviceReadable), Some((0x5000, 2 * PAGE)));
    }

    #[test]
    fn pages_with_other_rights_are_no_piece_of_it() {
        let iotlb = table(&[(0x1000, PAGE, 0x5000)]);
        iotlb.update(translation(0x2000, PAGE, 0x6000, READ));
        let cache = Cache::default();
        assert_eq!(cache.place(&iotlb, 0x1000, 0x2000, DeviceReadable), Some((0x5000, PAGE)));
        assert_eq!(cache.place(&iotlb, 0x2000, 4, DeviceWritable), None);
    }

    #[test]
    fn the_oldest_translation_goes_when_there_are_too_many() {
        let iotlb = Iotlb::default();
        for number in 0..MOST_TRANSLATIONS as u64 + 3 {
            // Not next to each other, so that each is found for itself.
            iotlb.update(translation(2 * number * PAGE, PAGE, 0, Permission::ALL));
        }
        assert_eq!(iotlb.len(), MOST_TRANSLATIONS);
        assert_eq!(place(&iotlb, 2 * 2 * PAGE), None);
        assert!(place(&iotlb, 2 * 3 * PAGE).is_some());
    }

    #[test]
    fn a_translation_that_is_told_again_is_a_new_one() {
        let iotlb = Iotlb::default();
        for number in 0..MOST_TRANSLATIONS as u64 {
            iotlb.update(translation(2 * number * PAGE, PAGE, 0, Permission::ALL));
        }
        iotlb.update(translation(0, PAGE, 0x7000, Permission::ALL));
        iotlb.update(translation(PAGE, PAGE, 0, READ));
        assert_eq!(place(&iotlb, 0), Some((0x7000, PAGE)));
        assert_eq!(place(&iotlb, 2 * PAGE), None, "the second was the oldest by then");
    }

    #[test]
    fn the_same_translation_told_for_ever_takes_no_more_memory() {
        let iotlb = Iotlb::default();
        for number in 0..5 * MOST_TRANSLATIONS as u64 {
            iotlb.update(translation(0, PAGE, number % 7 * PAGE, Permission::ALL));
        }
        assert_eq!(iotlb.len(), 1);
        assert!(iotlb.table.read().told.len() <= 2 * MOST_TRANSLATIONS);
    }
}
