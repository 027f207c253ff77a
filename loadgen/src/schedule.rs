//! The open-loop schedule: event `i` is due at `start + i / rate`, whatever happened to those before it.

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
    fn nonsense_rates_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(check_rate(rate).is_err(), "{rate}");
        }
    }
}
