//! When each connection is looked at by the keep-alive: a wheel without entries.
//!
//! The interval is cut into buckets; a connection is in the bucket of its slot's number modulo their count.
//! So pings are spread evenly over the interval, every connection is visited exactly once in each, and no
//! connection holds anything for it. What a busy shard is late with it catches up with, by a tenth of the interval; a longer
//! stall puts all visits off. So two of one connection are never closer together than nine tenths of the interval.

use std::time::Duration;

/// Shortest turn of the wheel from one bucket to the next.
const SHORTEST_STEP: Duration = Duration::from_millis(100);

/// The part of the interval, as a divisor, that a shard may be late and still catch up.
const SLACK_PART: u64 = 10;

/// The wheel of one shard.
#[derive(Debug)]
pub(super) struct Wheel {
    buckets: u32,
    step_nanos: u64,
    started_nanos: u64,
    steps_done: u64,
}

impl Wheel {
    /// A wheel that visits everyone once in `interval`; `None` for an interval of zero, which is off.
    pub(super) fn new(interval: Duration, now_nanos: u64) -> Option<Self> {
        if interval.is_zero() {
            return None;
        }
        let buckets = (interval.as_nanos() / SHORTEST_STEP.as_nanos()).clamp(1, 1 << 20) as u32;
        let step_nanos = u64::try_from(interval.as_nanos() / u128::from(buckets)).unwrap_or(u64::MAX);
        Some(Self { buckets, step_nanos: step_nanos.max(1), started_nanos: now_nanos, steps_done: 0 })
    }

    /// The bucket that is due now, if one is. To be asked again until there is none. What a stall has held up beyond the
    /// slack is not caught up with but put off, with all that follows: else everyone would be pinged in one burst, and some
    /// again at once, without the time to answer.
    pub(super) fn due(&mut self, now_nanos: u64) -> Option<u32> {
        let late = now_nanos.checked_sub(self.next_nanos())?;
        let slack = (u64::from(self.buckets) * self.step_nanos / SLACK_PART).max(self.step_nanos);
        self.started_nanos += late.saturating_sub(slack);
        let bucket = (self.steps_done % u64::from(self.buckets)) as u32;
        self.steps_done += 1;
        Some(bucket)
    }

    /// Time between two visits of one connection.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_nanos(u64::from(self.buckets).saturating_mul(self.step_nanos))
    }

    /// Slots of a bucket, of `slots` in all.
    pub(super) fn members(&self, bucket: u32, slots: u32) -> impl Iterator<Item = u32> + use<> {
        (bucket..slots).step_by(self.buckets as usize)
    }

    /// Nanoseconds until the next bucket is due.
    pub(super) fn until_next(&self, now_nanos: u64) -> u64 {
        self.next_nanos().saturating_sub(now_nanos)
    }

    fn next_nanos(&self) -> u64 {
        self.started_nanos.saturating_add((self.steps_done + 1).saturating_mul(self.step_nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visits(wheel: &mut Wheel, slots: u32, times: impl Iterator<Item = u64>) -> Vec<Vec<u64>> {
        let mut visits = vec![Vec::new(); slots as usize];
        for now in times {
            while let Some(bucket) = wheel.due(now) {
                wheel.members(bucket, slots).for_each(|slot| visits[slot as usize].push(now));
            }
        }
        visits
    }

    #[test]
    fn everyone_is_visited_once_an_interval_and_evenly() {
        let mut wheel = Wheel::new(Duration::from_secs(3), 500).unwrap();
        let millisecond = 1_000_000;
        let seen = visits(&mut wheel, 3_000, (0..=9_001).map(|n| 500 + n * millisecond));
        for visits in &seen {
            assert_eq!(visits.len(), 3);
            assert!(visits.windows(2).all(|two| two[1] - two[0] == 3_000 * millisecond));
        }
        let mut first: Vec<u64> = seen.iter().map(|visits| visits[0]).collect();
        first.sort_unstable();
        let busiest = first.chunk_by(|a, b| a == b).map(<[u64]>::len).max().unwrap();
        assert_eq!(busiest, 100, "a thirtieth of 3,000 in each of thirty steps");
    }

    #[test]
    fn after_a_stall_nobody_is_visited_early_and_pings_are_spread() {
        let millisecond = 1_000_000;
        for stall in [150, 950, 1_000, 60_000] {
            let mut wheel = Wheel::new(Duration::from_secs(1), 0).unwrap();
            let before = 0..=2_450;
            let after = (2_450 + stall)..=(8_450 + stall);
            let times = before.chain(after).map(|n| n * millisecond);
            for visits in visits(&mut wheel, 50, times) {
                let gaps: Vec<u64> = visits.windows(2).map(|two| (two[1] - two[0]) / millisecond).collect();
                assert!(gaps.iter().all(|&gap| gap >= 900), "stall of {stall} ms: {gaps:?}");
                assert!(
                    gaps.iter().filter(|&&gap| gap > 1_000).count() <= 1,
                    "stall of {stall} ms: {gaps:?}"
                );
                assert!(visits.len() >= 8, "stall of {stall} ms: {visits:?}");
            }
        }
    }

    #[test]
    fn a_shard_of_long_passes_keeps_the_interval() {
        let mut wheel = Wheel::new(Duration::from_secs(30), 0).unwrap();
        let seen = visits(&mut wheel, 300, (0..=480).map(|pass| pass * 250_000_000));
        assert!(seen.iter().all(|visits| visits.len() == 4), "two minutes in passes of 250 ms: {seen:?}");
    }

    #[test]
    fn zero_is_off_and_short_intervals_have_one_bucket() {
        assert!(Wheel::new(Duration::ZERO, 0).is_none());
        let mut wheel = Wheel::new(Duration::from_millis(50), 0).unwrap();
        assert_eq!(wheel.until_next(0), 50_000_000);
        assert_eq!(wheel.due(49_999_999), None);
        assert_eq!(wheel.due(50_000_000), Some(0));
        assert_eq!(wheel.due(50_000_000), None);
        assert_eq!(wheel.members(0, 3).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
