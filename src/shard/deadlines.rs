//! Deadlines of connections that are about to open or to end.
//!
//! All deadlines of one kind have the same length, so they end in the order in which they began: a queue is
//! enough, and what ended early is dropped when it comes to the front. It lives on one core.

use std::collections::VecDeque;
use std::time::Duration;

use crate::connection_id::ConnectionId;

/// Deadlines of one kind.
#[derive(Debug)]
pub(super) struct Deadlines {
    length_nanos: u64,
    queue: VecDeque<(u64, ConnectionId)>,
}

impl Deadlines {
    pub(super) fn new(length: Duration) -> Self {
        let length_nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self { length_nanos, queue: VecDeque::new() }
    }

    /// Changes the length: deadlines that would end later than one that starts now are shortened to it.
    pub(super) fn set_length(&mut self, length: Duration, now_nanos: u64) {
        *self = Self { queue: std::mem::take(&mut self.queue), ..Self::new(length) };
        let latest = now_nanos.saturating_add(self.length_nanos);
        // They stand in order, so the later ones are at the end.
        for (deadline, _) in self.queue.iter_mut().rev().take_while(|(deadline, _)| *deadline > latest) {
            *deadline = latest;
        }
    }

    /// Drops those in front for which `waits` is false: they have no deadline any more. Called ahead of each start it
    /// keeps the queue as short as the line of those that wait, also while many begin and end between two looks at the clock.
    pub(super) fn drop_ended(&mut self, mut waits: impl FnMut(ConnectionId) -> bool) {
        while self.queue.front().is_some_and(|&(_, connection)| !waits(connection)) {
            self.queue.pop_front();
        }
    }

    /// Starts a deadline.
    pub(super) fn start(&mut self, connection: ConnectionId, now_nanos: u64) {
        self.queue.push_back((now_nanos.saturating_add(self.length_nanos), connection));
    }

    /// The next connection whose time is up, of those for which `waits` is true.
    pub(super) fn expired(
        &mut self,
        now_nanos: u64,
        waits: impl FnMut(ConnectionId) -> bool,
    ) -> Option<ConnectionId> {
        self.drop_ended(waits);
        match self.queue.front() {
            Some(&(deadline, connection)) if deadline <= now_nanos => {
                self.queue.pop_front();
                Some(connection)
            }
            Some(_) => None,
            None => {
                if self.queue.capacity() > 1024 {
                    self.queue.shrink_to_fit();
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_end_in_order_and_early_ends_are_skipped() {
        let id = |slot| ConnectionId { shard: 0, slot, generation: 0 };
        let mut deadlines = Deadlines::new(Duration::from_nanos(100));
        (0..4).for_each(|n| deadlines.start(id(n), u64::from(n) * 10));
        assert_eq!(deadlines.expired(99, |_| true), None);
        assert_eq!(deadlines.expired(100, |_| true), Some(id(0)));
        assert_eq!(deadlines.expired(100, |_| true), None);
        assert_eq!(deadlines.expired(500, |id| id.slot == 2), Some(id(2)));
        assert_eq!(deadlines.expired(500, |id| id.slot == 2), None);
        assert!(deadlines.queue.is_empty());
    }

    #[test]
    fn those_that_ended_early_make_room_for_those_that_begin() {
        let id = |slot| ConnectionId { shard: 0, slot, generation: 0 };
        let mut deadlines = Deadlines::new(Duration::from_nanos(100));
        for slot in 0..1000 {
            // Number 499 waits for good, the others until the next fifty have begun.
            deadlines.drop_ended(|id| id.slot == 499 || id.slot + 50 > slot);
            deadlines.start(id(slot), u64::from(slot));
            assert!(deadlines.queue.len() <= 50 || slot >= 499, "{} at {slot}", deadlines.queue.len());
        }
        assert_eq!(deadlines.queue.front().map(|(_, id)| id.slot), Some(499), "it still waits");
    }

    #[test]
    fn a_new_length_shortens_what_is_longer_and_keeps_the_order() {
        let id = |slot| ConnectionId { shard: 0, slot, generation: 0 };
        let mut deadlines = Deadlines::new(Duration::from_nanos(100));
        deadlines.start(id(0), 0);
        deadlines.start(id(1), 50);
        deadlines.set_length(Duration::from_nanos(60), 60);
        deadlines.start(id(2), 61);
        let ends: Vec<u64> = deadlines.queue.iter().map(|(end, _)| *end).collect();
        assert_eq!(ends, [100, 120, 121]);
        deadlines.set_length(Duration::from_nanos(500), 70);
        deadlines.start(id(3), 70);
        assert_eq!(deadlines.queue.back().map(|(end, _)| *end), Some(570));
    }
}
