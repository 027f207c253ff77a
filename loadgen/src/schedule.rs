//! The open-loop schedule: event `i` is due at `start + i / rate`, whatever happened to those before it.

/// A schedule is kept if its last event is done at most this much after it was due: of the schedule's length, and besides.
const SLACK_SHARE: f64 = 0.1;
const SLACK_NS: u64 = 1_000_000_000;

/// Times at which events are due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start_ns: u64,
    interval_ns: f64,
}

impl Schedule {
    /// `rate` events a second, the first one at `start_ns`.
    pub(crate) fn new(start_ns: u64, rate: f64) -> Self {
        Self { start_ns, interval_ns: 1e9 / rate }
    }

    /// When event `index` is due.
    pub(crate) fn due(&self, index: u64) -> u64 {
        self.start_ns + (index as f64 * self.interval_ns) as u64
    }

    /// Number of events that are due before `duration_ns` has passed, at least one.
    pub(crate) fn count_within(&self, duration_ns: u64) -> u64 {
        ((duration_ns as f64 / self.interval_ns).ceil() as u64).max(1)
    }

    /// How far a schedule of `count` events was kept of which event `last` was the latest one to be done, at `done_ns`.
    pub(crate) fn lag(&self, count: u64, last: u64, done_ns: u64) -> Lag {
        let length_ns = count as f64 * self.interval_ns;
        Lag {
            behind_ns: done_ns.saturating_sub(self.due(last)),
            allowed_ns: SLACK_NS + (length_ns * SLACK_SHARE) as u64,
        }
    }
}

/// How far a schedule was kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Lag {
    /// Time from when the last event was due to when it was done.
    pub(crate) behind_ns: u64,
    /// How much of that is allowed.
    pub(crate) allowed_ns: u64,
}

impl Lag {
    /// Whether the schedule was kept.
    pub(crate) fn is_allowed(self) -> bool {
        self.behind_ns <= self.allowed_ns
    }
}

/// Checks a rate from the command line.
pub(crate) fn check_rate(rate: f64) -> Result<f64, String> {
    if rate > 0.0 && rate <= 1e8 {
        Ok(rate)
    } else {
        Err(format!("--rate {rate}: expected more than 0, at most 1e8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_due_at_the_rate_without_drift() {
        let schedule = Schedule::new(1000, 3.0);
        assert_eq!(
            [schedule.due(0), schedule.due(3), schedule.due(3_000_000)],
            [1000, 1_000_001_000, 1_000_000_000_001_000]
        );
        assert_eq!(schedule.count_within(2_000_000_000), 6);
        assert_eq!(schedule.count_within(1), 1);
    }

    #[test]
    fn a_schedule_is_kept_within_a_tenth_of_it_and_a_second() {
        let schedule = Schedule::new(1000, 100.0);
        let lag = |done_ns: u64| schedule.lag(300, 299, 1000 + done_ns);
        assert_eq!(lag(2_990_000_000), Lag { behind_ns: 0, allowed_ns: 1_300_000_000 });
        assert!(lag(4_290_000_000).is_allowed() && lag(1).is_allowed());
        assert!(!lag(4_291_000_000).is_allowed());
    }

    #[test]
    fn nonsense_rates_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(check_rate(rate).is_err(), "{rate}");
        }
    }
}
