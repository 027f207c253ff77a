//! The topics that a shard owns: which shards have subscribers, the last offset, what is kept.
//!
//! Invariants:
//! 1. A topic that is remembered has subscribers or an offset above 0. One without subscribers stands in the queue of idle
//!    ones, so that it is forgotten some day.
//! 2. When a topic with messages is forgotten, the epoch of those made later changes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::history::{History, HistoryLimits, Keeper};
use super::topics::Audience;
use crate::compression::Encodings;
use crate::frame::Frame;
use crate::position::Position;
use crate::topic::TopicName;

/// How long the owner remembers the offset of a topic that nobody subscribes to, in nanoseconds.
pub(super) const IDLE_TOPIC_NANOS: u64 = 300_000_000_000;

/// Topics without subscribers that an owner remembers; beyond it the one longest idle is forgotten.
pub(super) const IDLE_TOPICS: usize = 100_000;

/// A topic that this shard orders. It has subscribers, or has had a message.
#[derive(Debug, Default)]
pub(super) struct OwnedTopic {
    /// Names the time since the topic was made; offsets count within it.
    pub(super) epoch: u64,
    /// Its last messages.
    pub(super) history: History,
    /// Shards with subscribers.
    pub(super) shards: Vec<Audience>,
    /// Offset of the last message; 0 before the first.
    pub(super) offset: u64,
    /// Whether it stands in the queue of idle topics; at most once.
    queued: bool,
    /// Time in nanoseconds of the last publish or change.
    used: u64,
}

impl OwnedTopic {
    /// Subscribers on all shards.
    pub(super) fn subscribers(&self) -> u64 {
        self.shards.iter().map(|audience| u64::from(audience.count)).sum()
    }

    /// Place of the last message.
    pub(super) fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.offset }
    }

    /// Encodings other than plain that they use.
    pub(super) fn encodings(&self) -> Encodings {
        self.shards.iter().fold(Encodings::default(), |all, audience| all.union(audience.encodings))
    }
}

/// The topics that this shard owns.
#[derive(Debug, Default)]
pub(super) struct OwnedTopics {
    topics: HashMap<TopicName, OwnedTopic>,
    /// Topics to be looked at: those that were without subscribers, in that order. Some are in use again.
    idle: VecDeque<(u64, TopicName)>,
    pub(super) keeper: Keeper,
    /// Epoch of topics that are made now. It changes when a topic is forgotten, because its offsets begin anew if it
    /// is used again, and must not be taken for the old ones.
    epoch: u64,
}

impl OwnedTopics {
    pub(super) fn new(epoch: u64, limits: HistoryLimits) -> Self {
        Self { epoch, keeper: Keeper::new(limits), ..Self::default() }
    }

    /// Place in a topic that is not remembered.
    pub(super) fn beginning(&self) -> Position {
        Position { epoch: self.epoch, offset: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// The topic, if it is remembered.
    pub(super) fn find(&self, name: &TopicName) -> Option<&OwnedTopic> {
        self.topics.get(name)
    }

    /// The topic; it is made if nobody has used it before. It is to have a subscriber, or a message
    /// ([`OwnedTopics::note_message`]).
    pub(super) fn enter(&mut self, name: &TopicName, now_nanos: u64) -> &mut OwnedTopic {
        let new = || OwnedTopic { epoch: self.epoch, ..OwnedTopic::default() };
        let topic = self.topics.entry(name.clone()).or_insert_with(new);
        topic.used = now_nanos;
        topic
    }

    /// Notes that a topic has got a message: one without subscribers is idle from now on.
    pub(super) fn note_message(&mut self, name: &TopicName, now_nanos: u64) {
        if let Some(topic) = self.topics.get_mut(name) {
            if topic.shards.is_empty() && !std::mem::replace(&mut topic.queued, true) {
                self.idle.push_back((now_nanos, name.clone()));
            }
        }
    }

    /// Keeps a message that has just got its place in a topic.
    pub(super) fn keep(&mut self, name: &TopicName, frame: &Arc<Frame>, now_nanos: u64) {
        if let Some(topic) = self.topics.get_mut(name) {
            self.keeper.keep(name, &mut topic.history, frame, now_nanos);
            self.keeper.trim(&mut self.topics, now_nanos);
        }
    }

    /// The messages kept of a topic behind an offset, with their ids if so wanted; `None` if they are not all there. No
    /// more than fit into `bytes`, but one at least, or none for 0.
    pub(super) fn replay(
        &mut self,
        name: &TopicName,
        offset: u64,
        bytes: usize,
        with_ids: bool,
        now_nanos: u64,
    ) -> Option<Vec<Arc<Frame>>> {
        let topic = self.topics.get_mut(name)?;
        let range = topic.history.after(offset, topic.offset, bytes)?;
        if with_ids {
            self.keeper.add_ids(&mut topic.history, range.clone());
        }
        let frames = topic.history.frames(range);
        if with_ids {
            self.keeper.trim(&mut self.topics, now_nanos);
        }
        Some(frames)
    }

    /// Lets go what is kept of a topic.
    pub(super) fn clear_history(&mut self, name: &TopicName) {
        if let Some(topic) = self.topics.get_mut(name) {
            self.keeper.clear(&mut topic.history);
        }
    }

    /// Notes a shard's number of subscribers; true if the shard had none before and has some now. A topic that nobody
    /// has published to goes with its last subscriber.
    pub(super) fn set_subscribers(&mut self, name: &TopicName, audience: Audience, now_nanos: u64) -> bool {
        if audience.count == 0 {
            self.remove_subscribers(name, audience.shard, now_nanos);
            return false;
        }
        let topic = self.enter(name, now_nanos);
        match topic.shards.iter_mut().find(|other| other.shard == audience.shard) {
            Some(earlier) => {
                *earlier = audience;
                false
            }
            None => {
                topic.shards.push(audience);
                true
            }
        }
    }

    fn remove_subscribers(&mut self, name: &TopicName, shard: usize, now_nanos: u64) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        topic.shards.retain(|audience| audience.shard != shard);
        topic.used = now_nanos;
        if topic.shards.is_empty() && topic.offset == 0 {
            self.topics.remove(name);
        } else {
            self.note_message(name, now_nanos);
        }
    }

    /// Forgets topics that have been idle for too long, or are too many, and messages that are too old. A topic of which
    /// messages are kept is not idle for too long.
    pub(super) fn expire(&mut self, now_nanos: u64) {
        self.keeper.trim(&mut self.topics, now_nanos);
        // Each is looked at once, also when all have been used since they were put there and are too many.
        for _ in 0..self.idle.len() {
            let Some((since, _)) = self.idle.front() else { return };
            let too_many = self.idle.len() > IDLE_TOPICS;
            if since.saturating_add(IDLE_TOPIC_NANOS) > now_nanos && !too_many {
                return;
            }
            let Some((since, name)) = self.idle.pop_front() else { return };
            let Some(topic) = self.topics.get_mut(&name) else { continue };
            topic.queued = false;
            if !topic.shards.is_empty() {
                continue;
            }
            let keep_since = match (topic.used > since, topic.history.is_empty()) {
                // Used in the meantime: it goes to the back of the queue once, however often it was used.
                (true, _) => topic.used,
                (false, false) if !too_many => now_nanos,
                _ => {
                    self.keeper.clear(&mut topic.history);
                    self.topics.remove(&name);
                    self.epoch = self.epoch.wrapping_add(1);
                    continue;
                }
            };
            topic.queued = true;
            self.idle.push_back((keep_since, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::MessageKind;

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    fn audience(shard: usize, count: u32) -> Audience {
        Audience { shard, count, encodings: Encodings::default() }
    }

    #[test]
    fn the_owner_counts_by_shard_and_forgets_idle_topics() {
        let mut topics = OwnedTopics::default();
        assert!(topics.set_subscribers(&name("a"), audience(1, 5), 0));
        assert!(!topics.set_subscribers(&name("a"), audience(1, 7), 0));
        assert!(topics.set_subscribers(&name("a"), audience(2, 1), 0));
        assert_eq!(topics.enter(&name("a"), 0).subscribers(), 8);
        topics.enter(&name("a"), 0).offset = 9;
        topics.note_message(&name("a"), 0);
        topics.expire(u64::MAX);
        assert_eq!(topics.len(), 1, "in use");
        topics.set_subscribers(&name("a"), audience(1, 0), 100);
        topics.set_subscribers(&name("a"), audience(2, 0), 100);
        topics.expire(100 + IDLE_TOPIC_NANOS - 1);
        assert_eq!(topics.enter(&name("a"), 200).offset, 9, "still remembered");
        topics.expire(100 + IDLE_TOPIC_NANOS);
        assert_eq!(topics.enter(&name("a"), 200).offset, 9, "used again at 200");
        topics.expire(200 + IDLE_TOPIC_NANOS);
        assert_eq!(topics.len(), 0);
    }

    #[test]
    fn idle_topics_are_bounded_in_number() {
        let mut topics = OwnedTopics::default();
        let publish = |topics: &mut OwnedTopics, n: usize, now_nanos: u64| {
            topics.enter(&name(&n.to_string()), now_nanos).offset += 1;
            topics.note_message(&name(&n.to_string()), now_nanos);
        };
        for n in 0..IDLE_TOPICS + 50 {
            publish(&mut topics, n, 1);
        }
        publish(&mut topics, 7, 2);
        topics.expire(3);
        assert_eq!(topics.len(), IDLE_TOPICS);
        assert!(!topics.topics.contains_key(&name("50")) && topics.topics.contains_key(&name("51")));
        assert!(topics.topics.contains_key(&name("7")), "used since");
        // All used since they were put there: one lap, and the longest idle go next time.
        for n in 0..IDLE_TOPICS + 50 {
            publish(&mut topics, n, 4);
        }
        topics.expire(5);
        topics.expire(5);
        assert_eq!(topics.len(), IDLE_TOPICS);
    }

    #[test]
    fn a_topic_without_a_message_goes_with_its_last_subscriber() {
        let mut topics = OwnedTopics::default();
        for _ in 0..3 {
            assert!(topics.set_subscribers(&name("a"), audience(1, 1), 0));
            assert!(!topics.set_subscribers(&name("a"), audience(1, 0), 0));
            assert_eq!((topics.len(), topics.idle.len()), (0, 0));
        }
        assert_eq!(
            topics.beginning(),
            Position { epoch: 0, offset: 0 },
            "nothing that anyone could come back to"
        );
        assert!(!topics.set_subscribers(&name("b"), audience(1, 0), 0));
        assert_eq!(topics.len(), 0);
    }

    #[test]
    fn what_was_kept_of_a_forgotten_topic_is_not_taken_for_what_is_kept_now() {
        let limits = HistoryLimits { messages: 100, age_nanos: 1_000, bytes: usize::MAX };
        let mut topics = OwnedTopics::new(7, limits);
        let publish = |topics: &mut OwnedTopics, count: u64, now_nanos: u64| {
            for _ in 0..count {
                let topic = topics.enter(&name("a"), now_nanos);
                topic.offset += 1;
                let frame = Frame::new(MessageKind::Text, b"x", 0, None);
                frame.set_place(topic.position(), false);
                topics.keep(&name("a"), &frame, now_nanos);
            }
        };
        publish(&mut topics, 50, 0);
        let mut forgotten = topics.topics.remove(&name("a")).unwrap();
        topics.keeper.clear(&mut forgotten.history);
        topics.epoch += 1;
        publish(&mut topics, 20, 900);
        topics.expire(1_500);
        assert_eq!(topics.find(&name("a")).unwrap().history.len(), 20, "they are young");
        assert!(
            topics.replay(&name("a"), 0, usize::MAX, false, 1_500).is_some_and(|frames| frames.len() == 20)
        );
        topics.expire(1_900);
        assert!(topics.find(&name("a")).unwrap().history.is_empty());
    }
}
