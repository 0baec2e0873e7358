//! Times in buckets of nearly equal ratio.

use std::time::Duration;

/// Buckets for each doubling: a value is known to about 3 %.
const PER_OCTAVE: usize = 32;
const OCTAVE_BITS: u32 = PER_OCTAVE.trailing_zeros();
/// Nanoseconds up to 2^63, far past any run.
const BUCKETS: usize = PER_OCTAVE * (64 - OCTAVE_BITS as usize + 1);

/// Counts of times. Recording takes no memory and no branch on the value.
#[derive(Clone)]
pub(super) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0 }
    }

    pub(super) fn record(&mut self, time: Duration) {
        let bucket = bucket(time.as_nanos() as u64);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
            self.total += 1;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.total += other.total;
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
    }

    pub(super) fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// The time that a share of `q` (0 to 1) of all do not exceed, to the bucket's upper end;
    /// zero if there are none.
    pub(super) fn quantile(&self, q: f64) -> Duration {
        let rank = ((self.total as f64 * q).ceil() as u64).clamp(1, self.total.max(1));
        let mut below = 0;
        let found = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        });
        Duration::from_nanos(found.map_or(0, upper))
    }
}

/// Values below `PER_OCTAVE` have buckets of their own; above, the leading bits choose.
fn bucket(nanos: u64) -> usize {
    let octave = (64 - nanos.leading_zeros()).saturating_sub(OCTAVE_BITS + 1);
    (octave as usize) * PER_OCTAVE + (nanos >> octave) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let octave = (bucket / PER_OCTAVE).saturating_sub(1) as u32;
    let first = (bucket - octave as usize * PER_OCTAVE) as u64;
    ((first + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let mut last = 0;
        for shift in 0..58 {
            for low in [0, 1, 3, 17, 31] {
                let value = (1_u64 << shift) + ((low << shift) >> 5);
                let bucket = bucket(value);
                assert!(bucket < BUCKETS && bucket >= last, "{value}");
                assert!(upper(bucket) >= value);
                assert!(upper(bucket) as f64 <= value as f64 * 1.04 + 1.0, "{value}");
                assert!(bucket == 0 || upper(bucket - 1) < value);
                last = bucket;
            }
        }
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        (1..=100).for_each(|n| histogram.record(Duration::from_nanos(n % 20 + 1)));
        assert_eq!(histogram.quantile(0.5), Duration::from_nanos(10));
        assert_eq!(histogram.quantile(0.99), Duration::from_nanos(20));
        assert_eq!(histogram.quantile(0.0), Duration::from_nanos(1));
        let mut twice = histogram.clone();
        twice.add(&histogram);
        assert_eq!((twice.total, twice.quantile(0.5)), (200, Duration::from_nanos(10)));
    }
}
