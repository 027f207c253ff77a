//! Latencies: one HDR histogram per thread, merged at the end, and what is reported of it.
//!
//! Recording costs a shift and two additions, where that of the crate `hdrhistogram` costs sixty instructions: with
//! many messages in one read it would be the dearest part of taking a message. Its buckets are used, and
//! the crate reads percentiles out of them at the end.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart: one hour.
const MAX_NS: u64 = 3_600_000_000_000;
/// Three significant digits.
const DIGITS: u8 = 3;

/// Values are told apart to this many binary digits: what three decimal ones need.
const PRECISION_BITS: u32 = 11;
const HALF: usize = 1 << (PRECISION_BITS - 1);
const BUCKETS: usize = bucket(MAX_NS) + 1;

/// Latencies in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    counts: Box<[u64]>,
    total: u64,
}

/// The bucket of `value`: by its first `PRECISION_BITS` digits and by how many come after them.
#[inline]
const fn bucket(value: u64) -> usize {
    let after = (u64::BITS - value.leading_zeros()).saturating_sub(PRECISION_BITS);
    after as usize * HALF + (value >> after) as usize
}

/// The least value in a bucket.
const fn least(bucket: usize) -> u64 {
    if bucket < 2 * HALF {
        return bucket as u64;
    }
    ((bucket % HALF + HALF) as u64) << (bucket / HALF - 1)
}

impl Latency {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0 }
    }

    /// Adds one; longer ones than an hour count as an hour.
    #[inline]
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds.min(MAX_NS))] += 1;
        self.total += 1;
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.total += other.total;
    }

    /// Merges those of several threads.
    pub(crate) fn merged<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        parts.fold(Self::new(), |mut sum, part| {
            sum.merge(part);
            sum
        })
    }

    /// Number of latencies.
    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    fn histogram(&self) -> Histogram<u64> {
        // The bounds are constants that the crate accepts, so the fallback is never taken.
        let mut histogram =
            Histogram::new_with_bounds(1, MAX_NS, DIGITS).unwrap_or_else(|_| unreachable!("constant bounds"));
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            histogram.saturating_record_n(least(bucket), *count);
        }
        histogram
    }

    /// What is reported.
    pub(crate) fn summary(&self) -> Summary {
        let histogram = self.histogram();
        let at = |quantile| histogram.value_at_quantile(quantile);
        Summary {
            count: self.total,
            min: histogram.min(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
            curve: histogram
                .iter_quantiles(2)
                .map(|step| (step.quantile_iterated_to() * 100.0, step.value_iterated_to()))
                .collect(),
        }
    }
}

/// Percentiles in nanoseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) min: u64,
    pub(crate) mean: f64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    #[serde(rename = "p99.9")]
    pub(crate) p99_9: u64,
    pub(crate) max: u64,
    /// (percentile, nanoseconds), denser towards 100.
    pub(crate) curve: Vec<(f64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_give_the_percentiles_of_the_whole() {
        let (mut odd, mut even) = (Latency::new(), Latency::new());
        for value in 1..=1000_u64 {
            if value % 2 == 1 { &mut odd } else { &mut even }.record(value * 1000);
        }
        let summary = Latency::merged([&odd, &even].into_iter()).summary();
        assert_eq!(summary.count, 1000);
        for (value, expected) in [(summary.p50, 500_000), (summary.p99, 990_000), (summary.max, 1_000_000)] {
            assert!(value.abs_diff(expected) <= expected / 500, "{value} for {expected}");
        }
        assert!(summary.curve.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }

    #[test]
    fn buckets_are_those_of_the_crate() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut values: Vec<u64> = (0..42).flat_map(|bits| [1_u64 << bits, (1 << bits) - 1]).collect();
        values.extend((0..20_000).map(|_| random.u64(..MAX_NS) >> random.u32(..42)));
        let (mut own, mut theirs) =
            (Latency::new(), Histogram::<u64>::new_with_bounds(1, MAX_NS, DIGITS).unwrap());
        for value in values.into_iter().chain([0, MAX_NS - 1, MAX_NS]) {
            own.record(value);
            theirs.saturating_record(value);
            assert!(theirs.equivalent(least(bucket(value.min(MAX_NS))), value.min(MAX_NS)), "{value}");
        }
        let own = own.histogram();
        let buckets = |histogram: &Histogram<u64>| {
            let recorded = histogram.iter_recorded();
            recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect::<Vec<_>>()
        };
        assert_eq!(buckets(&own), buckets(&theirs));
        assert_eq!([own.min(), own.max(), own.len()], [theirs.min(), theirs.max(), theirs.len()]);
    }

    #[test]
    fn the_empty_and_the_endless_are_harmless() {
        assert_eq!(Latency::new().summary().max, 0);
        let mut endless = Latency::new();
        endless.record(u64::MAX);
        assert!(endless.summary().max >= MAX_NS);
    }
}
