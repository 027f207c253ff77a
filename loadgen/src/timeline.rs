//! Events over time: how many in each interval, in bounded memory however long a run is.

use serde::Serialize;
use serde::ser::SerializeStruct;

/// Length of the intervals of a short run.
const INTERVAL_MIN_NS: u64 = 10_000_000;
/// Most intervals that are kept; a longer run has intervals twice as long, and so on.
const INTERVALS_MAX: usize = 200;

/// Counts of events per interval since the beginning of the measurement.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    interval_ns: u64,
    counts: Vec<u64>,
}

impl Timeline {
    /// Without events.
    pub(crate) fn new() -> Self {
        Self { interval_ns: INTERVAL_MIN_NS, counts: Vec::with_capacity(INTERVALS_MAX) }
    }

    /// Counts an event `since_ns` after the beginning.
    #[inline]
    pub(crate) fn record(&mut self, since_ns: u64) {
        self.add(since_ns, 1);
    }

    /// Adds those of several threads that began together.
    pub(crate) fn merged<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        parts.fold(Self::new(), |mut sum, part| {
            while sum.interval_ns < part.interval_ns {
                sum.double_interval();
            }
            for (index, count) in part.counts.iter().enumerate() {
                sum.add(index as u64 * part.interval_ns, *count);
            }
            sum
        })
    }

    fn add(&mut self, since_ns: u64, count: u64) {
        while since_ns / self.interval_ns >= INTERVALS_MAX as u64 {
            self.double_interval();
        }
        let index = (since_ns / self.interval_ns) as usize;
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += count;
    }

    fn double_interval(&mut self) {
        self.interval_ns *= 2;
        let pairs = self.counts.len().div_ceil(2);
        for index in 0..pairs {
            self.counts[index] = self.counts[index * 2] + self.counts.get(index * 2 + 1).unwrap_or(&0);
        }
        self.counts.truncate(pairs);
    }
}

impl Serialize for Timeline {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Timeline", 2)?;
        fields.serialize_field("interval_seconds", &(self.interval_ns as f64 / 1e9))?;
        fields.serialize_field("counts", &self.counts)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn intervals_grow_with_the_run_and_no_event_is_lost() {
        let mut timeline = Timeline::new();
        for millisecond in 0..2000 {
            timeline.record(millisecond * MS);
        }
        assert_eq!((timeline.interval_ns, timeline.counts.as_slice()), (10 * MS, [10; 200].as_slice()));
        timeline.record(2000 * MS);
        let mut expected = vec![20; 100];
        expected.push(1);
        assert_eq!((timeline.interval_ns, &timeline.counts), (20 * MS, &expected));
        timeline.record(u64::MAX);
        assert_eq!(timeline.counts.iter().sum::<u64>(), 2002);
        assert!(timeline.counts.len() <= INTERVALS_MAX);
    }

    #[test]
    fn threads_with_different_intervals_are_added_up() {
        let (mut short, mut long) = (Timeline::new(), Timeline::new());
        short.record(0);
        short.record(35 * MS);
        long.record(3000 * MS);
        for parts in [[&short, &long], [&long, &short]] {
            let sum = Timeline::merged(parts.into_iter());
            assert_eq!((sum.interval_ns, sum.counts.len()), (20 * MS, 151));
            assert_eq!((sum.counts[0], sum.counts[1], sum.counts[150]), (1, 1, 1));
        }
        assert!(Timeline::merged([].into_iter()).counts.is_empty());
    }
}
