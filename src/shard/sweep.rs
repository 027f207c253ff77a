//! How far the parts of a topic's subscribers have come with its pending messages.
//!
//! A topic's messages go out part by part of its subscribers, so that a shard takes in what arrives while it serves
//! many; and each part gets in one send all that has come since its last turn. The parts take turns: while messages
//! keep coming the sweep goes round and round, and nobody waits longer than a round.
//!
//! Invariants:
//! 1. Every subscriber gets every message once, in order: a part is served from the message behind its last one on.
//! 2. While a sweep is under way the list of subscribers does not change ([`super::Shard::finish_sweep`] comes first).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::frame::Frame;

/// Subscribers of a part: a pass costs a hundredth of sending to them. More in one call and the kernel leaves a share of the
/// receiving to its `ksoftirqd`, which costs switches to and fro.
pub(super) const PART_SUBSCRIBERS: usize = 64;

/// The pending messages of one topic.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pending: Vec<Arc<Frame>>,
    /// Number of the first one pending, counted from the first that ever was.
    first: u64,
    /// Of each part, from the one whose turn it is on, the number of the message that comes next for it: the least one in
    /// front. Empty while nobody has got any of what is pending.
    next: VecDeque<u64>,
    /// The part whose turn it is.
    turn: usize,
}

/// Most messages for which memory is kept while none are pending.
const KEPT_CAPACITY: usize = 16;

impl Sweep {
    /// Adds a message.
    pub(super) fn push(&mut self, frame: Arc<Frame>) {
        self.pending.push(frame);
    }

    /// What somebody has yet to get.
    pub(super) fn pending(&self) -> &[Arc<Frame>] {
        &self.pending
    }

    /// Whether everybody has got everything.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether some have got what others have not.
    pub(super) fn is_under_way(&self) -> bool {
        !self.next.is_empty()
    }

    /// Whose turn it is to get all that is pending, by their places among so many subscribers; with `whole` everybody's,
    /// if the sweep is not under way.
    pub(super) fn begin_turn(&mut self, subscribers: usize, whole: bool) -> Range<usize> {
        let parts = subscribers.div_ceil(PART_SUBSCRIBERS);
        if self.next.is_empty() {
            if whole || parts <= 1 {
                return 0..subscribers;
            }
            self.next.extend(std::iter::repeat_n(self.first, parts));
        }
        debug_assert_eq!(self.next.len(), parts, "subscribers came or went during a sweep");
        debug_assert_eq!(
            self.next[0], self.first,
            "somebody waits for the first one, and the longest are in front"
        );
        let start = self.turn * PART_SUBSCRIBERS;
        start..subscribers.min(start + PART_SUBSCRIBERS)
    }

    /// Those of the last turn have got everything. Hands out what nobody waits for any more.
    pub(super) fn end_turn(&mut self, done: impl FnMut(Arc<Frame>)) {
        let end = self.first + self.pending.len() as u64;
        if self.next.pop_front().is_some() {
            self.next.push_back(end);
            self.turn = (self.turn + 1) % self.next.len();
        }
        let first = self.next.front().map_or(end, |&next| next);
        self.pending.drain(..(first - self.first) as usize).for_each(done);
        self.first = first;
        if first == end {
            self.next.clear();
            self.turn = 0;
            self.pending.shrink_to(KEPT_CAPACITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ws::MessageKind;

    fn frame(number: u64) -> Arc<Frame> {
        Frame::new(MessageKind::Binary, &[], number, None)
    }

    /// Serves one turn: the numbers of the messages that each subscriber has got are in `got`.
    fn take_turn(sweep: &mut Sweep, got: &mut [Vec<u64>], whole: bool) -> usize {
        let part = sweep.begin_turn(got.len(), whole);
        for subscriber in &mut got[part.clone()] {
            subscriber.extend(sweep.pending().iter().map(|frame| frame.accepted_nanos()));
        }
        sweep.end_turn(drop);
        part.len()
    }

    #[test]
    fn few_are_served_at_once() {
        let mut sweep = Sweep::default();
        let mut got = vec![Vec::new(); PART_SUBSCRIBERS];
        (0..3).for_each(|number| sweep.push(frame(number)));
        assert_eq!(take_turn(&mut sweep, &mut got, false), PART_SUBSCRIBERS);
        assert!(sweep.is_empty() && !sweep.is_under_way());
        assert!(got.iter().all(|got| *got == [0, 1, 2]));
    }

    #[test]
    fn who_comes_later_in_the_round_gets_what_came_meanwhile_in_one_turn() {
        let mut sweep = Sweep::default();
        let mut got = vec![Vec::new(); 2 * PART_SUBSCRIBERS];
        sweep.push(frame(0));
        take_turn(&mut sweep, &mut got, false);
        assert!(sweep.is_under_way());
        sweep.push(frame(1));
        take_turn(&mut sweep, &mut got, false);
        assert_eq!((&got[0][..], &got[PART_SUBSCRIBERS][..]), (&[0][..], &[0, 1][..]));
        assert_eq!(sweep.pending().len(), 1, "nobody waits for the first one any more");
        take_turn(&mut sweep, &mut got, false);
        assert!(sweep.is_empty() && !sweep.is_under_way());
        assert!(got.iter().all(|got| *got == [0, 1]));
    }

    #[test]
    fn without_subscribers_nothing_is_kept() {
        let mut sweep = Sweep::default();
        sweep.push(frame(0));
        assert_eq!(take_turn(&mut sweep, &mut [], false), 0);
        assert!(sweep.is_empty());
    }

    proptest! {
        #[test]
        fn everyone_gets_everything_once_and_in_order(
            subscribers in 1..5 * PART_SUBSCRIBERS,
            steps in prop::collection::vec((0..4_u64, 0..3_u8, prop::bool::weighted(0.1)), 1..60),
        ) {
            let mut sweep = Sweep::default();
            let mut got = vec![Vec::new(); subscribers];
            let mut published = 0;
            for (messages, turns, whole) in steps {
                for _ in 0..messages {
                    sweep.push(frame(published));
                    published += 1;
                }
                for _ in 0..turns {
                    if !sweep.is_empty() {
                        take_turn(&mut sweep, &mut got, whole);
                    }
                }
            }
            let mut turns = 0;
            while !sweep.is_empty() {
                take_turn(&mut sweep, &mut got, false);
                turns += 1;
            }
            prop_assert!(turns <= subscribers.div_ceil(PART_SUBSCRIBERS), "more than a round");
            let all: Vec<u64> = (0..published).collect();
            prop_assert!(got.iter().all(|got| *got == all));
        }
    }
}
