//! Did every receiver get every message once and in order? Four bytes a receiver while all is well.

use std::collections::BTreeMap;

/// What one arrival means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The next one, or one after a gap: new.
    New,
    /// New, but after a later one.
    Late,
    /// Was here before.
    Duplicate,
}

/// What went wrong over all receivers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disorder {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
}

/// Sequence numbers seen by the receivers of one thread.
#[derive(Debug)]
pub(crate) struct Tracker {
    next: Vec<u32>,
    /// Runs of sequence numbers jumped over and not seen yet, (receiver, first) to end; empty while all is well.
    missing: BTreeMap<(u32, u32), u32>,
    disorder: Disorder,
}

impl Tracker {
    /// A tracker for `receivers` receivers that have seen nothing.
    pub(crate) fn new(receivers: usize) -> Self {
        Self { next: vec![0; receivers], missing: BTreeMap::new(), disorder: Disorder::default() }
    }

    /// Notes that `receiver` got `sequence`; `None` if it is not below `sent()`, so that it was never sent.
    #[inline]
    pub(crate) fn arrive(
        &mut self,
        receiver: usize,
        sequence: u64,
        sent: impl FnOnce() -> u64,
    ) -> Option<Arrival> {
        let next = &mut self.next[receiver];
        if u64::from(*next) == sequence {
            *next += 1;
            return Some(Arrival::New);
        }
        let sequence = u32::try_from(sequence).ok().filter(|sequence| u64::from(*sequence) < sent())?;
        Some(self.arrive_out_of_order(receiver, sequence))
    }

    #[cold]
    fn arrive_out_of_order(&mut self, receiver: usize, sequence: u32) -> Arrival {
        if sequence > self.next[receiver] {
            self.skip_to(receiver, sequence);
            self.next[receiver] = sequence + 1;
            Arrival::New
        } else if self.take_missing(receiver as u32, sequence) {
            self.disorder.reordered += 1;
            Arrival::Late
        } else {
            self.disorder.duplicated += 1;
            Arrival::Duplicate
        }
    }

    /// Notes that nothing before `sequence` is to be awaited any more by `receiver`; what it misses is lost unless
    /// it comes late.
    pub(crate) fn skip_to(&mut self, receiver: usize, sequence: u32) {
        let next = &mut self.next[receiver];
        if sequence > *next {
            self.missing.insert((receiver as u32, *next), sequence);
            *next = sequence;
        }
    }

    fn take_missing(&mut self, receiver: u32, sequence: u32) -> bool {
        let run = self.missing.range(..=(receiver, sequence)).next_back().map(|(first, end)| (*first, *end));
        let Some((first, end)) = run.filter(|((of, _), end)| *of == receiver && sequence < *end) else {
            return false;
        };
        self.missing.remove(&first);
        if first.1 < sequence {
            self.missing.insert(first, sequence);
        }
        if sequence + 1 < end {
            self.missing.insert((receiver, sequence + 1), end);
        }
        true
    }

    /// First sequence number that `receiver` has not got to.
    pub(crate) fn next(&self, receiver: usize) -> u64 {
        u64::from(self.next[receiver])
    }

    /// The balance after `sent(receiver)` messages; only the first `receivers` receivers count.
    pub(crate) fn disorder(&self, receivers: usize, sent: impl Fn(usize) -> u64) -> Disorder {
        let behind = |(receiver, next): (usize, &u32)| sent(receiver).saturating_sub(u64::from(*next));
        let behind: u64 = self.next[..receivers].iter().enumerate().map(behind).sum();
        let runs = self.missing.iter().filter(|((receiver, _), _)| (*receiver as usize) < receivers);
        let jumped: u64 = runs.map(|((_, first), end)| u64::from(end - first)).sum();
        Disorder { lost: behind + jumped, ..self.disorder }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(arrivals: &[u64], sent: u64) -> Disorder {
        let mut tracker = Tracker::new(1);
        for sequence in arrivals {
            assert!(tracker.arrive(0, *sequence, || sent).is_some());
        }
        tracker.disorder(1, |_| sent)
    }

    #[test]
    fn order_without_gap_is_clean() {
        assert_eq!(play(&[0, 1, 2, 3], 4), Disorder::default());
    }

    #[test]
    fn loss_duplicate_and_reordering_are_told_apart() {
        assert_eq!(play(&[0, 2, 3], 4), Disorder { lost: 1, ..Disorder::default() });
        assert_eq!(play(&[0, 1], 4), Disorder { lost: 2, ..Disorder::default() });
        assert_eq!(play(&[0, 1, 1, 2, 3, 0], 4), Disorder { duplicated: 2, ..Disorder::default() });
        assert_eq!(play(&[0, 2, 1, 3], 4), Disorder { reordered: 1, ..Disorder::default() });
        assert_eq!(play(&[0, 5, 3, 1, 4, 2, 3], 6), Disorder { lost: 0, duplicated: 1, reordered: 4 });
        assert_eq!(play(&[3, 3, 0, 0], 4), Disorder { lost: 2, duplicated: 2, reordered: 1 });
    }

    #[test]
    fn what_is_skipped_is_lost_but_may_come_late() {
        let mut tracker = Tracker::new(1);
        tracker.skip_to(0, 5);
        assert_eq!((tracker.next(0), tracker.disorder(1, |_| 5).lost), (5, 5));
        assert_eq!(tracker.arrive(0, 5, || 6), Some(Arrival::New));
        assert_eq!(tracker.arrive(0, 2, || 6), Some(Arrival::Late));
        tracker.skip_to(0, 1);
        assert_eq!((tracker.next(0), tracker.disorder(1, |_| 6).lost), (6, 4));
    }

    #[test]
    fn receivers_are_apart_and_the_unsent_is_refused() {
        let mut tracker = Tracker::new(3);
        assert_eq!(tracker.arrive(1, 0, || 1), Some(Arrival::New));
        assert_eq!(tracker.arrive(1, 7, || 1), None);
        assert_eq!(tracker.arrive(1, u64::MAX, || 1), None);
        assert_eq!((tracker.next(0), tracker.next(1)), (0, 1));
        assert_eq!(tracker.disorder(2, |_| 1).lost, 1);
    }
}
