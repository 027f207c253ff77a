//! Topics as one shard sees them: its own subscribers of each ([`LocalTopics`]), and for the topics it owns,
//! which shards have subscribers and what the last offset was ([`OwnedTopics`]).
//!
//! Invariants:
//! 1. A topic's owner is the same for every core ([`TopicName::owner`]), and all its messages pass through it:
//!    so all subscribers see one order.
//! 2. A shard reports its number of subscribers to the owner whenever it changes; from the owner's answer to
//!    the first report on, every message reaches the shard.
//! 3. A subscriber that is catching up counts as one, but is in no list yet: messages reach it by the owner's answers.
//! 4. A subscriber stands in a topic's list at the position that its slot remembers; a removal moves the last
//!    one into the gap and tells its slot.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::history::{History, HistoryLimits, Keeper};
use super::slab::{Slab, Slot, Subscription};
use crate::compression::{Encoding, Encodings};
use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::position::Position;
use crate::topic::TopicName;

/// How long the owner remembers the offset of a topic that nobody subscribes to, in nanoseconds.
pub(super) const IDLE_TOPIC_NANOS: u64 = 300_000_000_000;

/// Topics without subscribers that an owner remembers; beyond it the one longest idle is forgotten.
pub(super) const IDLE_TOPICS: usize = 100_000;

/// The position of a subscriber that is catching up.
pub(super) const CATCHING_UP: u32 = u32::MAX;

/// A topic with subscribers on this shard.
#[derive(Debug)]
pub(super) struct LocalTopic {
    pub(super) name: TopicName,
    /// The shard that owns it.
    pub(super) owner: usize,
    /// Slots of the subscribers.
    pub(super) subscribers: Vec<u32>,
    /// Slots of those that are to be subscribers once they have what came before.
    pub(super) catching_up: Vec<u32>,
    /// How many of both use each encoding.
    encodings: [u32; Encoding::COUNT],
    /// Whether the owner has confirmed that messages reach this shard.
    pub(super) joined: bool,
    /// Number of this stay, so that the confirmation of an earlier one is not taken for this one's.
    pub(super) stay: u64,
    /// Connections whose opening waits for that confirmation.
    pub(super) waiting: Vec<ConnectionId>,
    /// Messages that arrived in this pass.
    pub(super) pending: Vec<Arc<Frame>>,
    changed: bool,
}

impl LocalTopic {
    /// Encodings other than plain that its subscribers use.
    pub(super) fn encodings(&self) -> Encodings {
        Encodings::counted(&self.encodings)
    }

    /// Subscribers, those that are catching up included.
    pub(super) fn count(&self) -> u32 {
        (self.subscribers.len() + self.catching_up.len()) as u32
    }

    /// What the owner knows of this shard, when the owner is this shard itself.
    pub(super) fn audience(&self) -> Audience {
        Audience { shard: self.owner, count: self.count(), encodings: self.encodings() }
    }
}

/// The topics that this shard has subscribers of.
#[derive(Debug, Default)]
pub(super) struct LocalTopics {
    by_name: HashMap<TopicName, u32>,
    topics: Vec<Option<LocalTopic>>,
    free: Vec<u32>,
    /// Topics with pending messages.
    dirty: VecDeque<u32>,
    /// Topics whose number of subscribers the owner does not know yet.
    changed: Vec<u32>,
    stays: u64,
}

/// A number of subscribers that the owner is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) name: TopicName,
    pub(super) owner: usize,
    pub(super) count: u32,
    pub(super) encodings: Encodings,
    pub(super) stay: u64,
}

impl LocalTopics {
    /// The topic's number, if it has subscribers here.
    pub(super) fn find(&self, name: &TopicName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Whether messages of the topic are sure to reach this shard.
    pub(super) fn is_joined(&self, name: &TopicName) -> bool {
        let topic = self.find(name).and_then(|topic| self.topics[topic as usize].as_ref());
        topic.is_some_and(|topic| topic.joined)
    }

    /// The topic of a number that [`LocalTopics::find`] or [`LocalTopics::enter`] gave out in this pass.
    pub(super) fn get_mut(&mut self, topic: u32) -> &mut LocalTopic {
        self.topics[topic as usize].as_mut().expect("a number in use names a topic")
    }

    /// The topic's number; it is entered if it is new here.
    pub(super) fn enter(&mut self, name: &TopicName, owner: usize, joined: bool) -> u32 {
        if let Some(topic) = self.find(name) {
            return topic;
        }
        self.stays += 1;
        let entry = LocalTopic {
            name: name.clone(),
            stay: self.stays,
            owner,
            subscribers: Vec::new(),
            catching_up: Vec::new(),
            encodings: [0; Encoding::COUNT],
            joined,
            waiting: Vec::new(),
            pending: Vec::new(),
            changed: false,
        };
        let topic = self.free.pop().unwrap_or_else(|| {
            self.topics.push(None);
            (self.topics.len() - 1) as u32
        });
        self.topics[topic as usize] = Some(entry);
        self.by_name.insert(name.clone(), topic);
        topic
    }

    /// Adds a subscriber, or one that is to catch up first; false if it is one already.
    pub(super) fn add(&mut self, topic: u32, slab: &mut Slab, slot: u32, catching_up: bool) -> bool {
        let encoding = slab[slot].form();
        let Slot { subscriptions, .. } = &mut slab[slot];
        if subscriptions.as_slice().iter().any(|subscription| subscription.topic == topic) {
            return false;
        }
        let entry = self.topics[topic as usize].as_mut().expect("a number in use names a topic");
        if catching_up {
            subscriptions.push(Subscription { topic, position: CATCHING_UP });
            entry.catching_up.push(slot);
        } else {
            subscriptions.push(Subscription { topic, position: entry.subscribers.len() as u32 });
            entry.subscribers.push(slot);
        }
        entry.encodings[encoding.index()] += 1;
        self.note_change(topic);
        true
    }

    /// Puts a subscriber that was catching up into the list: it gets whatever is delivered from now on.
    pub(super) fn go_live(&mut self, topic: u32, slab: &mut Slab, slot: u32) {
        let entry = self.topics[topic as usize].as_mut().expect("a number in use names a topic");
        let places = slab[slot].subscriptions.as_mut_slice();
        let place = places.iter_mut().find(|place| place.topic == topic && place.position == CATCHING_UP);
        if let Some(place) = place {
            entry.catching_up.retain(|&other| other != slot);
            place.position = entry.subscribers.len() as u32;
            entry.subscribers.push(slot);
        }
    }

    /// Removes a subscriber; false if it is none.
    pub(super) fn remove(&mut self, topic: u32, slab: &mut Slab, slot: u32) -> bool {
        let Some(subscription) = slab[slot].subscriptions.remove(topic) else {
            return false;
        };
        let encoding = slab[slot].form().index();
        let LocalTopic { subscribers, catching_up, encodings, .. } = self.get_mut(topic);
        encodings[encoding] -= 1;
        if subscription.position == CATCHING_UP {
            catching_up.retain(|&other| other != slot);
            self.note_change(topic);
            return true;
        }
        subscribers.swap_remove(subscription.position as usize);
        if let Some(&moved) = subscribers.get(subscription.position as usize) {
            let places = slab[moved].subscriptions.as_mut_slice();
            if let Some(place) = places.iter_mut().find(|place| place.topic == topic) {
                place.position = subscription.position;
            }
        }
        if subscribers.capacity() > 64 && subscribers.len() < subscribers.capacity() / 4 {
            subscribers.shrink_to(subscribers.len() * 2);
        }
        self.note_change(topic);
        true
    }

    fn note_change(&mut self, topic: u32) {
        let entry = self.get_mut(topic);
        if !std::mem::replace(&mut entry.changed, true) {
            self.changed.push(topic);
        }
    }

    /// Adds a message to those that leave in this pass.
    pub(super) fn deliver(&mut self, topic: u32, frame: Arc<Frame>) {
        let entry = self.get_mut(topic);
        if entry.pending.is_empty() {
            entry.pending.push(frame);
            self.dirty.push_back(topic);
        } else {
            entry.pending.push(frame);
        }
    }

    /// Whether any topic has pending messages.
    pub(super) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes a topic that has pending messages, in the order in which they got them.
    pub(super) fn next_dirty(&mut self) -> Option<u32> {
        self.dirty.pop_front()
    }

    /// Takes a topic whose number of subscribers has changed, and forgets the topic when there are none left.
    /// To be called when no messages are pending.
    pub(super) fn next_changed(&mut self) -> Option<Report> {
        let topic = self.changed.pop()?;
        let entry = self.get_mut(topic);
        entry.changed = false;
        debug_assert!(entry.pending.is_empty());
        let count = entry.count();
        let report = Report {
            name: entry.name.clone(),
            owner: entry.owner,
            count,
            encodings: entry.encodings(),
            stay: entry.stay,
        };
        if count == 0 {
            self.topics[topic as usize] = None;
            self.by_name.remove(&report.name);
            self.free.push(topic);
        }
        Some(report)
    }
}

/// The subscribers of a topic on one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Audience {
    pub(super) shard: usize,
    pub(super) count: u32,
    pub(super) encodings: Encodings,
}

/// A topic that this shard orders.
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
    /// Topics to be looked at: those that became idle, in that order. Some are in use again.
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

    /// The topic; it is made if nobody has used it before.
    pub(super) fn enter(&mut self, name: &TopicName, now_nanos: u64) -> &mut OwnedTopic {
        if !self.topics.contains_key(name) {
            let new = OwnedTopic { epoch: self.epoch, queued: true, ..OwnedTopic::default() };
            self.topics.insert(name.clone(), new);
            self.idle.push_back((now_nanos, name.clone()));
        }
        let topic = self.topics.get_mut(name).expect("just entered");
        topic.used = now_nanos;
        topic
    }

    /// Keeps a message that has just got its place in a topic.
    pub(super) fn keep(&mut self, name: &TopicName, frame: &Arc<Frame>, now_nanos: u64) {
        if let Some(topic) = self.topics.get_mut(name) {
            self.keeper.keep(name, &mut topic.history, frame, now_nanos);
            self.keeper.trim(&mut self.topics, now_nanos);
        }
    }

    /// Lets go what is kept of a topic.
    pub(super) fn clear_history(&mut self, name: &TopicName) {
        if let Some(topic) = self.topics.get_mut(name) {
            self.keeper.clear(&mut topic.history);
        }
    }

    /// Notes a shard's number of subscribers; true if the shard had none before and has some now.
    pub(super) fn set_subscribers(&mut self, name: &TopicName, audience: Audience, now_nanos: u64) -> bool {
        let topic = self.enter(name, now_nanos);
        let place = topic.shards.iter().position(|other| other.shard == audience.shard);
        match (place, audience.count) {
            (None, 0) => false,
            (None, _) => {
                topic.shards.push(audience);
                true
            }
            (Some(place), 0) => {
                topic.shards.swap_remove(place);
                if topic.shards.is_empty() && !std::mem::replace(&mut topic.queued, true) {
                    self.idle.push_back((now_nanos, name.clone()));
                }
                false
            }
            (Some(place), _) => {
                topic.shards[place] = audience;
                false
            }
        }
    }

    /// Forgets topics that have been idle for too long, or are too many, and messages that are too old. A topic of which
    /// messages are kept is not idle for too long.
    pub(super) fn expire(&mut self, now_nanos: u64) {
        self.keeper.trim(&mut self.topics, now_nanos);
        while let Some((since, _)) = self.idle.front() {
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
            // Used in the meantime: it goes to the back of the queue once, however often it was used.
            let keep_since = match topic.history.is_empty() {
                true => topic.used,
                false => now_nanos,
            };
            if keep_since > since && !too_many {
                topic.queued = true;
                self.idle.push_back((keep_since, name));
            } else {
                self.keeper.clear(&mut topic.history);
                self.topics.remove(&name);
                self.epoch = self.epoch.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ws::MessageKind;

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    fn audience(shard: usize, count: u32) -> Audience {
        Audience { shard, count, encodings: Encodings::default() }
    }

    fn slab(slots: usize) -> Slab {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut slab = Slab::new(0);
        for _ in 0..slots {
            slab.insert(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        }
        slab
    }

    #[test]
    fn lists_and_slots_agree_through_any_removals() {
        let mut slab = slab(40);
        let mut topics = LocalTopics::default();
        let numbers: Vec<u32> =
            ["a", "b", "c"].iter().map(|text| topics.enter(&name(text), 0, true)).collect();
        let mut seed = 12_345_u64;
        for _ in 0..5_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (slot, topic) = ((seed >> 33) as u32 % 40, numbers[(seed >> 50) as usize % 3]);
            let known = slab[slot].subscriptions.as_slice().iter().any(|place| place.topic == topic);
            if seed >> 60 & 1 == 0 {
                assert_eq!(topics.add(topic, &mut slab, slot, seed >> 45 & 1 == 0), !known);
                if seed >> 46 & 1 == 0 {
                    topics.go_live(topic, &mut slab, slot);
                }
            } else {
                assert_eq!(topics.remove(topic, &mut slab, slot), known);
            }
            for &topic in &numbers {
                for (position, &slot) in topics.get_mut(topic).subscribers.iter().enumerate() {
                    let place = Subscription { topic, position: position as u32 };
                    assert!(slab[slot].subscriptions.as_slice().contains(&place));
                }
            }
            let listed: u32 = numbers.iter().map(|&topic| topics.get_mut(topic).count()).sum();
            let held: usize = (0..40).map(|slot| slab[slot].subscriptions.as_slice().len()).sum();
            assert_eq!(listed as usize, held);
        }
    }

    #[test]
    fn changes_are_reported_once_and_empty_topics_forgotten() {
        let mut slab = slab(2);
        let mut topics = LocalTopics::default();
        let topic = topics.enter(&name("a"), 5, false);
        topics.add(topic, &mut slab, 0, false);
        topics.add(topic, &mut slab, 1, true);
        let report = topics.next_changed().unwrap();
        assert_eq!((report.name, report.owner, report.count), (name("a"), 5, 2));
        assert_eq!(topics.next_changed(), None);
        topics.remove(topic, &mut slab, 0);
        topics.remove(topic, &mut slab, 1);
        assert_eq!(topics.next_changed().unwrap().count, 0);
        assert_eq!(topics.find(&name("a")), None);
        let again = topics.enter(&name("a"), 5, false);
        assert_ne!(topics.get_mut(again).stay, report.stay, "a second stay has a number of its own");
    }

    #[test]
    fn pending_messages_make_a_topic_dirty_once() {
        let mut topics = LocalTopics::default();
        let topic = topics.enter(&name("a"), 0, true);
        for _ in 0..3 {
            topics.deliver(topic, Frame::new(MessageKind::Text, b"x", 0, None));
        }
        assert_eq!(topics.next_dirty(), Some(topic));
        assert_eq!(topics.next_dirty(), None);
        assert_eq!(topics.get_mut(topic).pending.len(), 3);
    }

    #[test]
    fn the_owner_counts_by_shard_and_forgets_idle_topics() {
        let mut topics = OwnedTopics::default();
        assert!(topics.set_subscribers(&name("a"), audience(1, 5), 0));
        assert!(!topics.set_subscribers(&name("a"), audience(1, 7), 0));
        assert!(topics.set_subscribers(&name("a"), audience(2, 1), 0));
        assert_eq!(topics.enter(&name("a"), 0).subscribers(), 8);
        topics.enter(&name("a"), 0).offset = 9;
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
        for n in 0..IDLE_TOPICS + 50 {
            topics.enter(&name(&n.to_string()), 1);
        }
        topics.expire(2);
        assert_eq!(topics.len(), IDLE_TOPICS);
        assert!(!topics.topics.contains_key(&name("49")) && topics.topics.contains_key(&name("50")));
    }
}
