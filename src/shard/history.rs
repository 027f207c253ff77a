//! Messages that an owner keeps for those who come later or come back.
//!
//! Lives on the topic's owner shard. A [`History`] belongs to one topic; the [`Keeper`] bounds them all, in messages per
//! topic, in age, and in bytes of the whole shard.
//!
//! Invariants:
//! 1. A topic's history ends with its last message, or is empty, and has no gap: only the oldest are let go.
//! 2. Every kept message has an entry in the keeper's queue, which is in the order of time over all topics; entries of
//!    messages that are gone already are passed over, and never outnumber the others by more than a constant.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::owned_topics::OwnedTopic;
use crate::frame::Frame;
use crate::position::Position;
use crate::topic::TopicName;

/// What a kept message takes in memory beside its frame's bytes: the frame itself, its counts, and the entries for it.
const MESSAGE_BYTES: usize = size_of::<Frame>() + size_of::<Entry>() + size_of::<Arc<Frame>>() + 16;

/// Entries of messages that are gone which are put up with before the queue is cleaned.
const STALE_ENTRIES: usize = 1024;

/// Bounds of what one shard keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Messages of each topic; 0 is none.
    pub messages: usize,
    /// Age in nanoseconds from which a message is let go.
    pub age_nanos: u64,
    /// Bytes of all topics that the shard owns.
    pub bytes: usize,
}

/// The last messages of one topic.
#[derive(Debug, Default)]
pub(super) struct History {
    messages: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    frame: Arc<Frame>,
    /// What it is counted for.
    bytes: usize,
}

impl History {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn first(&self) -> Option<Position> {
        self.messages.front().and_then(|kept| kept.frame.position())
    }

    /// Where the messages behind an offset are, of a topic whose last one has the offset `last`; `None` if they are not
    /// all here. No more than fit into `bytes`, but one at least if there is one, or none for 0.
    pub(super) fn after(&self, offset: u64, last: u64, bytes: usize) -> Option<Range<usize>> {
        if offset == last {
            return Some(0..0);
        }
        let skip = (offset + 1).checked_sub(self.first()?.offset)?;
        let begin = usize::try_from(skip).ok()?.min(self.len());
        let mut left = bytes;
        let mut end = begin;
        for kept in self.messages.range(begin..) {
            if bytes == 0 || (kept.bytes > left && end > begin) {
                break;
            }
            left = left.saturating_sub(kept.bytes);
            end += 1;
        }
        Some(begin..end)
    }

    /// The messages at these places.
    pub(super) fn frames(&self, range: Range<usize>) -> Vec<Arc<Frame>> {
        self.messages.range(range).map(|kept| kept.frame.clone()).collect()
    }
}

/// A message in the order of time.
#[derive(Debug)]
struct Entry {
    topic: TopicName,
    position: Option<Position>,
    kept_nanos: u64,
}

/// Bounds the histories of one shard.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    limits: HistoryLimits,
    queue: VecDeque<Entry>,
    bytes: usize,
    messages: usize,
    /// Messages let go because of the bound on bytes.
    pub(super) evicted: u64,
}

impl Keeper {
    pub(super) fn new(limits: HistoryLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages kept.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Keeps a topic's newest message; [`Keeper::trim`] is to follow.
    pub(super) fn keep(
        &mut self,
        topic: &TopicName,
        history: &mut History,
        frame: &Arc<Frame>,
        now_nanos: u64,
    ) {
        if self.limits.messages == 0 {
            return;
        }
        while history.len() >= self.limits.messages {
            self.drop_oldest(history);
        }
        let bytes = frame.memory_bytes() + MESSAGE_BYTES;
        self.bytes += bytes;
        self.messages += 1;
        history.messages.push_back(Kept { frame: frame.clone(), bytes });
        let position = frame.position();
        self.queue.push_back(Entry { topic: topic.clone(), position, kept_nanos: now_nanos });
    }

    /// Makes sure that messages have their twins with the ids, and counts those; [`Keeper::trim`] is to follow.
    pub(super) fn add_ids(&mut self, history: &mut History, range: Range<usize>) {
        for kept in history.messages.range_mut(range) {
            let made = kept.frame.ensure_id();
            kept.bytes += made;
            self.bytes += made;
        }
    }

    /// Lets everything of a topic go.
    pub(super) fn clear(&mut self, history: &mut History) {
        while !history.is_empty() {
            self.drop_oldest(history);
        }
        history.messages.shrink_to_fit();
    }

    fn drop_oldest(&mut self, history: &mut History) {
        if let Some(kept) = history.messages.pop_front() {
            self.bytes -= kept.bytes;
            self.messages -= 1;
        }
        if history.messages.capacity() > 64 && history.len() < history.messages.capacity() / 4 {
            history.messages.shrink_to(history.len() * 2);
        }
    }

    /// Lets the oldest messages go until the bounds on bytes and age are kept.
    pub(super) fn trim(&mut self, topics: &mut HashMap<TopicName, OwnedTopic>, now_nanos: u64) {
        while let Some(oldest) = self.queue.front() {
            let too_old = oldest.kept_nanos.saturating_add(self.limits.age_nanos) <= now_nanos;
            let too_much = self.bytes > self.limits.bytes;
            let history = topics.get_mut(&oldest.topic).map(|topic| &mut topic.history);
            match history.filter(|history| !history.is_empty() && history.first() == oldest.position) {
                // Let go already, by the bound on messages or with the topic.
                None => {}
                Some(history) if too_old || too_much => {
                    self.evicted += u64::from(!too_old);
                    self.drop_oldest(history);
                }
                Some(_) => break,
            }
            self.queue.pop_front();
        }
        if self.queue.len() > 2 * self.messages + STALE_ENTRIES {
            self.queue.retain(|entry| {
                let first = topics.get(&entry.topic).and_then(|topic| topic.history.first());
                first.zip(entry.position).is_some_and(|(first, position)| {
                    position.epoch == first.epoch && position.offset >= first.offset
                })
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::MessageKind;

    fn offsets(history: &History) -> Vec<u64> {
        history.messages.iter().filter_map(|kept| Some(kept.frame.position()?.offset)).collect()
    }

    struct Rig {
        keeper: Keeper,
        topics: HashMap<TopicName, OwnedTopic>,
    }

    impl Rig {
        fn new(messages: usize, age_nanos: u64, bytes: usize) -> Self {
            Self { keeper: Keeper::new(HistoryLimits { messages, age_nanos, bytes }), topics: HashMap::new() }
        }

        fn publish(&mut self, topic: &str, payload: usize, now_nanos: u64) {
            let topic = TopicName::new(topic).unwrap();
            let owned = self.topics.entry(topic.clone()).or_default();
            owned.offset += 1;
            let frame = Frame::new(MessageKind::Binary, &vec![0; payload], 0, None);
            frame.set_place(Position { epoch: 1, offset: owned.offset }, false);
            self.keeper.keep(&topic, &mut owned.history, &frame, now_nanos);
            self.keeper.trim(&mut self.topics, now_nanos);
        }

        fn offsets(&self, topic: &str) -> Vec<u64> {
            let owned = &self.topics[&TopicName::new(topic).unwrap()];
            offsets(&owned.history)
        }

        fn check(&self) {
            let kept = || self.topics.values().flat_map(|topic| &topic.history.messages);
            assert_eq!(self.keeper.messages(), kept().count());
            let bytes: usize = kept().map(|kept| kept.bytes).sum();
            assert_eq!(self.keeper.bytes(), bytes);
            assert!(self.keeper.queue.len() <= 2 * self.keeper.messages() + STALE_ENTRIES);
            for topic in self.topics.values() {
                let offsets = offsets(&topic.history);
                assert!(offsets.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a gap");
                assert!(offsets.last().is_none_or(|last| *last == topic.offset), "not to the end");
            }
        }
    }

    #[test]
    fn the_newest_of_each_topic_are_kept() {
        let mut rig = Rig::new(3, u64::MAX, usize::MAX);
        for n in 0..5 {
            rig.publish("a", 10, n);
            rig.publish("b", 10, n);
        }
        assert_eq!((rig.offsets("a"), rig.offsets("b")), (vec![3, 4, 5], vec![3, 4, 5]));
        rig.check();
    }

    #[test]
    fn age_and_bytes_are_bounded_over_all_topics() {
        let mut rig = Rig::new(100, 50, usize::MAX);
        rig.publish("a", 10, 0);
        rig.publish("b", 10, 20);
        rig.publish("a", 10, 30);
        rig.keeper.trim(&mut rig.topics, 49);
        assert_eq!((rig.offsets("a"), rig.offsets("b")), (vec![1, 2], vec![1]));
        rig.keeper.trim(&mut rig.topics, 70);
        assert_eq!((rig.offsets("a"), rig.offsets("b")), (vec![2], vec![]));
        assert_eq!(rig.keeper.evicted, 0, "an old message is no loss");

        let mut rig = Rig::new(100, u64::MAX, 4 * (1_000 + 4 + MESSAGE_BYTES));
        for n in 0..6 {
            rig.publish(if n % 2 == 0 { "a" } else { "b" }, 1_000, n);
        }
        assert_eq!((rig.offsets("a"), rig.offsets("b")), (vec![2, 3], vec![2, 3]));
        assert_eq!(rig.keeper.evicted, 2);
        rig.check();
    }

    #[test]
    fn what_comes_after_an_offset_is_all_or_nothing() {
        let mut rig = Rig::new(4, u64::MAX, usize::MAX);
        (0..10).for_each(|n| rig.publish("a", 100, n));
        let history = &rig.topics[&TopicName::new("a").unwrap()].history;
        let after = |offset, last, bytes| {
            let frames = history.frames(history.after(offset, last, bytes)?);
            Some(frames.iter().filter_map(|frame| Some(frame.position()?.offset)).collect::<Vec<_>>())
        };
        assert_eq!(after(6, 10, usize::MAX), Some(vec![7, 8, 9, 10]));
        assert_eq!(after(9, 10, usize::MAX), Some(vec![10]));
        assert_eq!(after(10, 10, usize::MAX), Some(vec![]));
        assert_eq!(after(5, 10, usize::MAX), None, "the sixth is gone");
        assert_eq!(after(6, 10, 1), Some(vec![7]), "one at least");
        assert_eq!(after(6, 10, 0), Some(vec![]), "only whether they are there");
        assert_eq!(after(6, 10, 2 * (102 + MESSAGE_BYTES)), Some(vec![7, 8]));
        assert_eq!(History::default().after(3, 3, 0), Some(0..0));
        assert!(History::default().after(2, 3, 0).is_none());
    }

    #[test]
    fn twins_that_are_made_later_count() {
        let mut rig = Rig::new(10, u64::MAX, 10 * (100 + 2 + MESSAGE_BYTES));
        (0..10).for_each(|n| rig.publish("a", 100, n));
        let before = rig.keeper.bytes();
        let owned = rig.topics.values_mut().next().unwrap();
        for _ in 0..2 {
            rig.keeper.add_ids(&mut owned.history, 2..8);
        }
        assert!(rig.keeper.bytes() > before + 6 * 100 && rig.keeper.bytes() < before + 6 * 200);
        rig.check();
        rig.keeper.trim(&mut rig.topics, 10);
        assert!(rig.keeper.messages() < 10, "and others go for them");
        rig.check();
    }

    #[test]
    fn nothing_is_kept_without_history() {
        let mut rig = Rig::new(0, u64::MAX, usize::MAX);
        rig.publish("a", 10, 0);
        assert_eq!((rig.keeper.messages(), rig.keeper.queue.len()), (0, 0));
    }

    #[test]
    fn the_books_balance_whatever_happens() {
        let mut rig = Rig::new(5, 400, 30 * MESSAGE_BYTES);
        let mut seed = 99_u64;
        for now in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let topic = format!("topic {}", (seed >> 40) % 12);
            match seed >> 60 {
                0 => {
                    if let Some(owned) = rig.topics.get_mut(&TopicName::new(&topic).unwrap()) {
                        rig.keeper.clear(&mut owned.history);
                    }
                }
                _ => rig.publish(&topic, (seed >> 33) as usize % 500, now),
            }
            rig.check();
        }
    }
}
