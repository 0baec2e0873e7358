//! How often values of which size were seen.
//!
//! The table is log-linear: each power of two is cut into [`PARTS`] equal parts, so that a value is
//! known to a quarter of itself wherever it lies. Bounds belong to the part below them, as in
//! Prometheus, so that the sums up to a power of two are exact.

use std::sync::atomic::{AtomicU64, Ordering};

/// Parts of each power of two.
const PARTS: u64 = 4;
const PARTS_LOG: u32 = PARTS.trailing_zeros();

/// Values past 2 to this power are counted together: 137 s, in nanoseconds.
const TOP: u32 = 37;

const BUCKETS: usize = ((TOP - PARTS_LOG + 1) as u64 * PARTS) as usize + 1;

/// A table that one thread at a time adds to, while any others read it.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts `value` so many times. Without a locked instruction: no other thread adds meanwhile.
    #[inline]
    pub(crate) fn add(&self, value: u64, times: u64) {
        let bump = |counter: &AtomicU64, by: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        bump(&self.buckets[bucket_of(value)], times);
        bump(&self.sum, value.wrapping_mul(times));
    }

    /// What it has now.
    pub(crate) fn read(&self) -> Distribution {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Distribution { buckets: self.buckets.iter().map(read).collect(), sum: read(&self.sum) }
    }
}

/// The bucket of a value: the first whose bound is not less.
#[inline]
fn bucket_of(value: u64) -> usize {
    // From here on a bound is the last value of its bucket, as whole numbers from 0.
    let below = value.saturating_sub(1);
    if below < PARTS {
        return below as usize;
    }
    let power = below.ilog2();
    if power >= TOP {
        return BUCKETS - 1;
    }
    let shift = power - PARTS_LOG;
    (u64::from(shift) * PARTS + (below >> shift)) as usize
}

/// The largest value of a bucket; none of the last.
fn bound_of(bucket: usize) -> Option<u64> {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return Some(bucket + 1);
    }
    if bucket as usize >= BUCKETS - 1 {
        return None;
    }
    let shift = bucket / PARTS - 1;
    Some((bucket - shift * PARTS + 1) << shift)
}

/// What a histogram had at some moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Distribution {
    buckets: Vec<u64>,
    sum: u64,
}

impl Distribution {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Adds what another has.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (own, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += others;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// How many values are `2^power` or less.
    pub fn up_to(&self, power: u32) -> u64 {
        self.buckets.iter().take(bucket_of(1 << power.min(TOP)) + 1).sum()
    }

    /// The value that the part `q` of all values does not exceed, to a quarter of itself; `None`
    /// without values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * count as f64;
        let (mut before, mut lower) = (0.0, 0.0);
        for (bucket, &values) in self.buckets.iter().enumerate() {
            let Some(upper) = bound_of(bucket) else { break };
            let (upper, values) = (upper as f64, values as f64);
            if values > 0.0 && before + values >= rank {
                return Some(lower + (upper - lower) * ((rank - before) / values).max(0.0));
            }
            (before, lower) = (before + values, upper);
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let near = (0..TOP).flat_map(|power| {
            let at = 1_u64 << power;
            [at - 1, at, at + 1, at + at / 4, at + at / 2, at + at / 2 + 1]
        });
        for value in near.chain([0, 1, 2, 3, 5, 6, 7, 1_000_000]) {
            let bucket = bucket_of(value);
            assert!(bound_of(bucket).is_none_or(|bound| value <= bound), "{value} in {bucket}");
            let below = bucket.checked_sub(1).and_then(bound_of);
            assert!(below.is_none_or(|below| value > below), "{value} in {bucket}");
        }
    }

    #[test]
    fn bounds_grow_by_a_quarter_of_a_power_of_two_and_past_the_last_is_one_bucket() {
        let bounds: Vec<u64> = (0..BUCKETS).map_while(bound_of).collect();
        assert_eq!(bounds.len(), BUCKETS - 1);
        assert_eq!(bounds[..12], [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]);
        assert_eq!(bounds[BUCKETS - 2], 1 << TOP);
        assert_eq!([bucket_of((1 << TOP) + 1), bucket_of(u64::MAX)], [BUCKETS - 1; 2]);
    }

    #[test]
    fn what_is_up_to_a_power_of_two_is_exact() {
        let histogram = Histogram::default();
        for value in [1, 1023, 1024, 1025, 4096] {
            histogram.add(value, 1);
        }
        histogram.add(u64::MAX, 2);
        let seen = histogram.read();
        assert_eq!([0, 9, 10, 11, 12, 37].map(|power| seen.up_to(power)), [1, 1, 3, 4, 5, 5]);
        assert_eq!(seen.count(), 7);
    }

    #[test]
    fn a_quantile_is_near_the_value_of_its_rank() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), None);
        for value in 1..=10_000 {
            histogram.add(value, 3);
        }
        let seen = histogram.read();
        assert_eq!(seen.sum(), 3 * 10_000 * 10_001 / 2);
        for (q, value) in [(0.1, 1000.0), (0.5, 5000.0), (0.99, 9900.0), (1.0, 10_000.0)] {
            let near = seen.quantile(q).unwrap();
            assert!((near - value).abs() <= value / 8.0, "{q}: {near}");
        }
    }

    #[test]
    fn merged_distributions_have_the_values_of_both() {
        let [one, other] = [Histogram::default(), Histogram::default()];
        one.add(100, 2);
        other.add(70_000, 3);
        let mut both = Distribution::default();
        both.merge(&one.read());
        both.merge(&other.read());
        assert_eq!((both.count(), both.sum(), both.up_to(7)), (5, 210_200, 2));
    }
}
