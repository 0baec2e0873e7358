//! Finding the region of an address in time that does not grow with the number of regions.
//!
//! The addresses from the first region to the end of the last are cut into equal buckets, each a
//! power of two long. A bucket holds the number of the last region that starts at or before the
//! bucket's first address: the wanted region is that one or one of the few that start inside the
//! bucket. Regions that are crowded into few buckets (one region far away from all others) are
//! found by halving instead.

/// The number of buckets of a table. They take 8 KiB, and are four times as many as there can be
/// regions.
const BUCKETS: u64 = 4096;

/// So many regions are looked at one by one before the search goes on by halving.
const NEAR: usize = 4;

/// The first address of each region, and the buckets.
#[derive(Debug, Default)]
pub(super) struct Index {
    starts: Box<[u64]>,
    first: u64,
    shift: u32,
    buckets: Box<[u16]>,
}

impl Index {
    /// Makes the index of `regions`, a sorted list of (first address, bytes) without overlap or
    /// wrap.
    pub(super) fn new(regions: impl ExactSizeIterator<Item = (u64, u64)>) -> Self {
        let mut end = 0;
        let starts: Box<[u64]> = regions
            .map(|(start, size)| {
                end = start + (size - 1);
                start
            })
            .collect();
        let Some(&first) = starts.first() else { return Self::default() };
        let width = 64 - (end - first).leading_zeros();
        let shift = width.saturating_sub(BUCKETS.trailing_zeros());
        let count = ((end - first) >> shift) + 1;
        let mut last = 0;
        let buckets = (0..count)
            .map(|bucket| {
                let from = first + (bucket << shift);
                while starts.get(last + 1).is_some_and(|&next| next <= from) {
                    last += 1;
                }
                last as u16
            })
            .collect();
        Self { starts, first, shift, buckets }
    }

    /// Returns the number of the last region that starts at or before `at`: the only one that can
    /// hold it. A number past the end if there is none.
    #[inline]
    pub(super) fn find(&self, at: u64) -> usize {
        let bucket = at.checked_sub(self.first).map(|offset| (offset >> self.shift) as usize);
        let Some(&guess) = bucket.and_then(|b| self.buckets.get(b)) else { return usize::MAX };
        let guess = usize::from(guess);
        for place in guess..guess + NEAR {
            if self.starts.get(place + 1).is_none_or(|&next| next > at) {
                return place;
            }
        }
        self.starts.partition_point(|&start| start <= at) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(starts: &[u64], at: u64) -> Option<usize> {
        starts.iter().rposition(|&start| start <= at)
    }

    proptest! {
        #[test]
        fn finds_the_same_region_as_a_search_from_the_end(
            sizes in prop::collection::vec((0_u64..1 << 40, 1_u64..1 << 33), 1..509),
            far in any::<bool>(),
            probe in any::<u64>(),
        ) {
            let mut next = 0x1000;
            let mut regions: Vec<_> = sizes
                .iter()
                .map(|&(gap, size)| {
                    let start = next + gap;
                    next = start + size;
                    (start, size)
                })
                .collect();
            if far {
                regions.push((1 << 63, 1 << 62));
            }
            let starts: Vec<_> = regions.iter().map(|r| r.0).collect();
            let index = Index::new(regions.iter().copied());
            let edges = regions.iter().flat_map(|r| [r.0, r.0 + r.1 - 1, r.0 + r.1 / 2]);
            for at in edges.chain([probe % next]) {
                prop_assert!(
                    index.find(at) == slow(&starts, at).unwrap_or(usize::MAX)
                        || slow(&starts, at).is_none()
                );
            }
        }
    }

    #[test]
    fn an_empty_table_finds_nothing() {
        assert_eq!(Index::default().find(0), usize::MAX);
    }

    #[test]
    fn an_address_below_the_first_region_finds_nothing() {
        let index = Index::new([(0x1000, 0x1000)].into_iter());
        assert_eq!(index.find(0xfff), usize::MAX);
        assert_eq!(index.find(0x1000), 0);
    }

    #[test]
    fn a_region_that_ends_at_the_top_of_the_space_is_found() {
        let index = Index::new([(0, 0x1000), (u64::MAX - 0xfff, 0x1000)].into_iter());
        assert_eq!(index.find(u64::MAX), 1);
        assert_eq!(index.find(0x800), 0);
    }
}
