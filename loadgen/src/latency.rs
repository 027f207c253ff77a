//! Latencies: one HDR histogram per thread, merged at the end, and what is reported of it.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart: one hour.
const MAX_NS: u64 = 3_600_000_000_000;
/// Three significant digits.
const DIGITS: u8 = 3;

/// Latencies in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    /// An empty one.
    pub(crate) fn new() -> Self {
        // The bounds are constants that the crate accepts, so the fallback is never taken.
        Self(
            Histogram::new_with_bounds(1, MAX_NS, DIGITS).unwrap_or_else(|_| unreachable!("constant bounds")),
        )
    }

    /// Adds one; longer ones than an hour count as an hour.
    #[inline]
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        // Both have the same constant bounds.
        let _ = self.0.add(&other.0);
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
        self.0.len()
    }

    /// What is reported.
    pub(crate) fn summary(&self) -> Summary {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Summary {
            count: self.0.len(),
            min: self.0.min(),
            mean: self.0.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: self.0.max(),
            curve: self
                .0
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
    fn the_empty_and_the_endless_are_harmless() {
        assert_eq!(Latency::new().summary().max, 0);
        let mut endless = Latency::new();
        endless.record(u64::MAX);
        assert!(endless.summary().max >= MAX_NS);
    }
}
