//! Rates: a bucket for one user of it, and one that all cores draw from.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One token of a bucket, and nanoseconds of a second.
const ONE: u64 = 1_000_000_000;

/// A token bucket that one core owns: what is left of it, in billionths of a token.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    left_nanos: u64,
    seen_nanos: u64,
}

impl TokenBucket {
    /// A full one.
    pub(crate) fn full(now_nanos: u64, burst: u64) -> Self {
        Self { left_nanos: burst.saturating_mul(ONE), seen_nanos: now_nanos }
    }

    /// Takes a token out at a time; false if there is none.
    pub(crate) fn take(&mut self, now_nanos: u64, per_second: u64, burst: u64) -> bool {
        let passed = now_nanos.saturating_sub(self.seen_nanos);
        self.seen_nanos = now_nanos;
        let filled = self.left_nanos.saturating_add(passed.saturating_mul(per_second));
        self.left_nanos = filled.min(burst.saturating_mul(ONE));
        match self.left_nanos.checked_sub(ONE) {
            Some(left) => {
                self.left_nanos = left;
                true
            }
            None => false,
        }
    }
}

/// A rate of the whole process: one number that all cores move, by the generic cell rate algorithm. A second's
/// worth may come at once.
#[derive(Debug, Default)]
pub struct SharedRate {
    /// When what has been taken so far would all be due.
    due_nanos: AtomicU64,
}

impl SharedRate {
    /// Takes one at a time; false if the rate is used up.
    pub(crate) fn take(&self, now_nanos: u64, per_second: u64) -> bool {
        let step = ONE.checked_div(per_second).unwrap_or(ONE).max(1);
        let taken = self.due_nanos.fetch_update(Relaxed, Relaxed, |due| {
            let next = due.max(now_nanos).saturating_add(step);
            (next <= now_nanos.saturating_add(ONE)).then_some(next)
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::full(0, 3);
        let mut taken = |now| bucket.take(now, 10, 3);
        assert!(taken(0) && taken(0) && taken(0) && !taken(0));
        assert!(!taken(ONE / 10 - 1), "not quite a tenth of a second");
        assert!(taken(ONE / 10) && !taken(ONE / 10));
        assert!(taken(100 * ONE) && taken(100 * ONE) && taken(100 * ONE), "it is full again");
        assert!(!taken(100 * ONE), "and no more than full");
        assert!(!taken(0), "a clock that stands still gives nothing");
    }

    #[test]
    fn a_shared_rate_gives_a_seconds_worth_and_then_its_rate() {
        let rate = SharedRate::default();
        let count = |now, most: usize| (0..most).take_while(|_| rate.take(now, 4)).count();
        assert_eq!(count(5 * ONE, 10), 4);
        assert_eq!(count(5 * ONE + ONE / 4 - 1, 10), 0);
        assert_eq!(count(5 * ONE + ONE / 4, 10), 1);
        assert_eq!(count(6 * ONE, 10), 3);
        assert_eq!(count(60 * ONE, 10), 4, "what was not used is not saved up");
        assert_eq!(count(59 * ONE, 10), 0, "a core whose clock was read earlier gets no more");
        let slow = SharedRate::default();
        assert!(slow.take(0, 1) && !slow.take(ONE - 1, 1) && slow.take(ONE, 1));
    }

    #[test]
    fn all_cores_together_get_no_more_than_the_rate() {
        let rate = SharedRate::default();
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| rate.take(ONE, 500)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 500);
    }
}
