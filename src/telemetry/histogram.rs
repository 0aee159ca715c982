//! A histogram with fixed buckets, which is updated once a batch. Pure.
//!
//! The crate's own histogram takes a lock for each observation; a batch has thousands.

/// Whole numbers (rows, or microseconds) by size.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// The upper bounds of the buckets, ascending; one more bucket has none.
    bounds: &'static [u64],
    counts: Vec<u64>,
    sum: u64,
}

/// Microseconds from 1 ms to an hour.
pub(crate) const LATENCY_US: &[u64] = &[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    3_600_000_000,
];

/// Microseconds from 0.25 ms to a minute.
pub(crate) const COMMIT_US: &[u64] = &[
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 60_000_000,
];

pub(crate) const ROWS: &[u64] = &[
    1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000,
];

impl Histogram {
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0,
        }
    }

    #[inline]
    pub fn observe(&mut self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    pub fn sum(&self) -> u64 {
        self.sum
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The buckets that have a bound, each with what lies in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        std::iter::zip(self.bounds.iter().copied(), self.counts.iter().copied())
    }

    /// What lies beyond the last bound.
    pub fn beyond(&self) -> u64 {
        self.counts.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_the_first_bucket_whose_bound_it_does_not_pass() {
        let mut histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, 1_000] {
            histogram.observe(value);
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!((buckets, histogram.beyond()), (vec![(10, 2), (20, 2)], 2));
        assert_eq!((histogram.count(), histogram.sum()), (6, 1_062));
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [LATENCY_US, COMMIT_US, ROWS] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
