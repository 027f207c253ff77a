//! When has every receiver got a message? Counted per thread, then between threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Messages that may be between "first thread complete" and "last thread complete" at once.
const RING: usize = 1 << 16;
const THREAD_BITS: u32 = 16;

/// Messages in flight to the receivers of one thread.
#[derive(Debug, Default)]
pub(crate) struct Countdown {
    /// Sequence number of the first entry.
    base: u64,
    /// Receivers that still miss the message.
    missing: VecDeque<u32>,
}

impl Countdown {
    /// One receiver got `sequence`, of `receivers` in this thread; true if it was the last one.
    #[inline]
    pub(crate) fn delivered(&mut self, sequence: u64, receivers: u32) -> bool {
        let Some(index) = sequence.checked_sub(self.base) else {
            return false;
        };
        let index = index as usize;
        let Some(missing) = self.missing.get_mut(index) else {
            return self.first_delivered(index, receivers);
        };
        *missing = missing.saturating_sub(1);
        *missing == 0 && self.complete(index)
    }

    /// The first of `receivers` got message `index`.
    #[cold]
    fn first_delivered(&mut self, index: usize, receivers: u32) -> bool {
        self.missing.resize(index + 1, receivers);
        self.missing[index] = receivers.saturating_sub(1);
        self.missing[index] == 0 && self.complete(index)
    }

    /// Nobody misses message `index` any more.
    #[cold]
    fn complete(&mut self, index: usize) -> bool {
        if index == 0 {
            self.trim();
        }
        true
    }

    /// A receiver that had got everything before `next` is gone; calls `complete` for what was waiting only for it.
    pub(crate) fn receiver_gone(&mut self, next: u64, mut complete: impl FnMut(u64)) {
        let first = next.saturating_sub(self.base) as usize;
        for (index, missing) in
            self.missing.iter_mut().enumerate().skip(first).filter(|(_, missing)| **missing > 0)
        {
            *missing -= 1;
            if *missing == 0 {
                complete(self.base + index as u64);
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.missing.front() == Some(&0) {
            self.missing.pop_front();
            self.base += 1;
        }
    }
}

/// Counts, for each message, the threads whose receivers all have it.
pub(crate) struct Completions {
    threads: u64,
    completed: AtomicU64,
    /// Sequence number and thread count in one word; a slot serves every `RING`th message.
    ring: Box<[AtomicU64]>,
}

impl Completions {
    /// For `threads` threads.
    pub(crate) fn new(threads: usize) -> Self {
        let slots = if threads == 1 { 0 } else { RING };
        Self {
            threads: threads as u64,
            completed: AtomicU64::new(0),
            ring: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// All receivers of one thread have `sequence`; true if it was the last thread.
    pub(crate) fn thread_complete(&self, sequence: u64) -> bool {
        let last = self.threads == 1 || {
            let slot = &self.ring[sequence as usize % RING];
            let fresh = (sequence << THREAD_BITS) | 1;
            let update =
                |word: u64| Some(if word >> THREAD_BITS == sequence && word != 0 { word + 1 } else { fresh });
            let before = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, update).unwrap_or(0);
            before >> THREAD_BITS == sequence && (before & ((1 << THREAD_BITS) - 1)) + 1 == self.threads
        };
        if last {
            self.completed.fetch_add(1, Ordering::Release);
        }
        last
    }

    /// Messages that every receiver has.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_complete_with_its_last_receiver() {
        let mut countdown = Countdown::default();
        assert!(!countdown.delivered(0, 2));
        assert!(!countdown.delivered(1, 2));
        assert!(countdown.delivered(1, 2));
        assert!(countdown.delivered(0, 2));
        assert_eq!((countdown.base, countdown.missing.len()), (2, 0));
        assert!(!countdown.delivered(0, 2), "a repeat of what was complete");
    }

    #[test]
    fn a_receiver_that_leaves_is_not_waited_for() {
        let mut countdown = Countdown::default();
        countdown.delivered(0, 2);
        countdown.delivered(1, 2);
        let mut complete = Vec::new();
        countdown.receiver_gone(1, |sequence| complete.push(sequence));
        assert_eq!(complete, [1]);
        assert!(countdown.delivered(0, 1));
        assert!(countdown.delivered(2, 1));
    }

    #[test]
    fn the_last_thread_completes_a_message() {
        let completions = Completions::new(3);
        for sequence in [0, 1, RING as u64] {
            assert!(!completions.thread_complete(sequence));
            assert!(!completions.thread_complete(sequence));
            assert!(completions.thread_complete(sequence), "{sequence}");
        }
        assert_eq!(completions.count(), 3);
        assert!(Completions::new(1).thread_complete(9));
    }
}
