//! Topics as one shard sees them: its own subscribers of each. What a topic's owner knows is in
//! [`super::owned_topics`].
//!
//! Invariants:
//! 1. A topic's owner is the same for every core ([`TopicName::owner`]), and all its messages pass through it:
//!    so all subscribers see one order.
//! 2. A shard reports its number of subscribers to the owner whenever it changes; from the owner's answer to
//!    the first report on, every message reaches the shard. A stay that was reported ends with a report of none, also
//!    when it was refused: so the owner knows of none when it is told of the next one.
//! 3. A subscriber that is catching up counts as one, but is in no list yet: messages reach it by the owner's answers.
//! 4. A subscriber stands in a topic's list at the position that its slot remembers; a removal moves the last
//!    one into the gap and tells its slot.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::slab::{Slab, Slot, Subscription};
use super::sweep::Sweep;
use crate::compression::{Encoding, Encodings};
use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::topic::TopicName;

/// Marks the position of a subscriber that is catching up: the other bits are its index among those.
pub(super) const CATCHING_UP: u32 = 1 << 31;

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
    /// Those of them that have it, each with the number of pending messages that were in it.
    pub(super) arriving: Vec<(ConnectionId, usize)>,
    /// What the owner was told last.
    reported: (u32, Encodings),
    /// How many of both use each encoding.
    encodings: [u32; Encoding::COUNT],
    /// Whether the owner has confirmed that messages reach this shard.
    pub(super) joined: bool,
    /// Number of this stay, so that the confirmation of an earlier one is not taken for this one's.
    pub(super) stay: u64,
    /// Connections whose opening waits for that confirmation.
    pub(super) waiting: Vec<ConnectionId>,
    /// Messages that somebody has yet to get.
    pub(super) sweep: Sweep,
    changed: bool,
    /// Its number is in the queue of dirty ones.
    queued: bool,
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

    /// Whether messages are for anybody here. Before it is joined, one is the tail of an earlier stay, with a gap behind it.
    pub(super) fn takes_messages(&self) -> bool {
        self.joined && self.count() > 0
    }

    /// Slots of both: a copy, for what takes them off their lists.
    pub(super) fn everyone(&self) -> Vec<u32> {
        [&self.subscribers[..], &self.catching_up].concat()
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
    /// Topics with pending messages; some may have been served out of turn since, or even be forgotten. A number is free
    /// for another topic only when it is not in here.
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
            arriving: Vec::new(),
            reported: <_>::default(),
            encodings: [0; Encoding::COUNT],
            joined,
            waiting: Vec::new(),
            sweep: Sweep::default(),
            changed: false,
            queued: false,
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
            let position = CATCHING_UP | entry.catching_up.len() as u32;
            subscriptions.push(Subscription { topic, position });
            entry.catching_up.push(slot);
        } else {
            subscriptions.push(Subscription { topic, position: entry.subscribers.len() as u32 });
            entry.subscribers.push(slot);
        }
        entry.encodings[encoding.index()] += 1;
        self.note_change(topic);
        true
    }

    /// Has a subscriber that was catching up get whatever is delivered from now on. With messages pending, which it has,
    /// it is listed when those are out ([`LocalTopics::list`]).
    pub(super) fn go_live(&mut self, topic: u32, slab: &mut Slab, id: ConnectionId) {
        let entry = self.get_mut(topic);
        if entry.sweep.is_empty() {
            self.list(topic, slab, id.slot);
        } else {
            debug_assert!(!entry.sweep.is_under_way());
            entry.arriving.push((id, entry.sweep.pending().len()));
        }
    }

    /// Puts a subscriber that was catching up into the list; false if it is none, any more.
    pub(super) fn list(&mut self, topic: u32, slab: &mut Slab, slot: u32) -> bool {
        let places = slab[slot].subscriptions.as_slice();
        let Some(place) = places.iter().find(|place| place.topic == topic) else { return false };
        if place.position & CATCHING_UP == 0 {
            return false;
        }
        let index = place.position & !CATCHING_UP;
        self.leave_catching_up(topic, slab, index);
        let entry = self.get_mut(topic);
        let position = entry.subscribers.len() as u32;
        entry.subscribers.push(slot);
        set_position(slab, slot, topic, position);
        true
    }

    fn leave_catching_up(&mut self, topic: u32, slab: &mut Slab, index: u32) {
        let catching_up = &mut self.get_mut(topic).catching_up;
        catching_up.swap_remove(index as usize);
        if let Some(&moved) = catching_up.get(index as usize) {
            set_position(slab, moved, topic, CATCHING_UP | index);
        }
    }

    /// Removes a subscriber; false if it is none.
    pub(super) fn remove(&mut self, topic: u32, slab: &mut Slab, slot: u32) -> bool {
        let Some(subscription) = slab[slot].subscriptions.remove(topic) else {
            return false;
        };
        let encoding = slab[slot].form().index();
        self.get_mut(topic).encodings[encoding] -= 1;
        if subscription.position & CATCHING_UP != 0 {
            self.leave_catching_up(topic, slab, subscription.position & !CATCHING_UP);
            self.note_change(topic);
            return true;
        }
        let subscribers = &mut self.get_mut(topic).subscribers;
        subscribers.swap_remove(subscription.position as usize);
        if let Some(&moved) = subscribers.get(subscription.position as usize) {
            set_position(slab, moved, topic, subscription.position);
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

    /// Adds a message to those that are to leave.
    pub(super) fn deliver(&mut self, topic: u32, frame: Arc<Frame>) {
        self.get_mut(topic).sweep.push(frame);
        self.mark_dirty(topic);
    }

    /// Has a topic with pending messages take its turn behind the others that have, unless it waits already.
    pub(super) fn mark_dirty(&mut self, topic: u32) {
        if !std::mem::replace(&mut self.get_mut(topic).queued, true) {
            self.dirty.push_back(topic);
        }
    }

    /// Whether any topic may have pending messages.
    pub(super) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes the topic with pending messages whose turn it is.
    pub(super) fn next_dirty(&mut self) -> Option<u32> {
        while let Some(topic) = self.dirty.pop_front() {
            match &mut self.topics[topic as usize] {
                Some(entry) => {
                    entry.queued = false;
                    if !entry.sweep.is_empty() {
                        return Some(topic);
                    }
                }
                None => self.free.push(topic),
            }
        }
        None
    }

    /// What the owner is to be told of a topic's subscribers; `None` if it has been told so already.
    pub(super) fn report(&mut self, topic: u32) -> Option<Report> {
        let entry = self.get_mut(topic);
        let (count, encodings) = (entry.count(), entry.encodings());
        let earlier = std::mem::replace(&mut entry.reported, (count, encodings));
        (earlier != (count, encodings)).then(|| Report {
            name: entry.name.clone(),
            owner: entry.owner,
            count,
            encodings,
            stay: entry.stay,
        })
    }

    /// The owner has refused the topic: the stay is over, and a subscriber that comes now begins another. What the owner is
    /// to be told: when there was room again it has taken what the stay reported later.
    pub(super) fn end_stay(&mut self, topic: u32) -> Report {
        self.stays += 1;
        let next = self.stays;
        let entry = self.get_mut(topic);
        entry.reported = <_>::default();
        let stay = std::mem::replace(&mut entry.stay, next);
        let (name, owner) = (entry.name.clone(), entry.owner);
        Report { name, owner, count: 0, encodings: Encodings::default(), stay }
    }

    /// Whether the owner knows that there are subscribers here, and of all encodings that they use.
    pub(super) fn is_known(&mut self, topic: u32) -> bool {
        let entry = self.get_mut(topic);
        let (count, encodings) = entry.reported;
        count > 0 && encodings.union(entry.encodings()) == encodings
    }

    /// Takes a topic whose number of subscribers has changed, and forgets it when there are none left; with what the
    /// owner is to be told. A topic without subscribers must have no pending messages.
    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    pub(super) fn next_changed(&mut self) -> Option<Option<Report>> {
        let topic = self.changed.pop()?;
        let report = self.report(topic);
        let entry = self.get_mut(topic);
        entry.changed = false;
        if entry.count() == 0 {
            debug_assert!(entry.sweep.is_empty());
            let (name, queued) = (entry.name.clone(), entry.queued);
            self.topics[topic as usize] = None;
            self.by_name.remove(&name);
            if !queued {
                self.free.push(topic);
            }
        }
        Some(report)
    }
}

/// Tells a slot where it stands in a topic.
fn set_position(slab: &mut Slab, slot: u32, topic: u32, position: u32) {
    let places = slab[slot].subscriptions.as_mut_slice();
    if let Some(place) = places.iter_mut().find(|place| place.topic == topic) {
        place.position = position;
    }
}

/// The subscribers of a topic on one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Audience {
    pub(super) shard: usize,
    pub(super) count: u32,
    pub(super) encodings: Encodings,
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::ws::MessageKind;

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
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
                    let id = slab.id(slot);
                    topics.go_live(topic, &mut slab, id);
                }
            } else {
                assert_eq!(topics.remove(topic, &mut slab, slot), known);
            }
            for &topic in &numbers {
                for (index, &slot) in topics.get_mut(topic).catching_up.iter().enumerate() {
                    let place = Subscription { topic, position: CATCHING_UP | index as u32 };
                    assert!(slab[slot].subscriptions.as_slice().contains(&place));
                }
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
        let report = topics.next_changed().flatten().unwrap();
        assert_eq!((report.name, report.owner, report.count), (name("a"), 5, 2));
        assert_eq!(topics.next_changed(), None);
        topics.remove(topic, &mut slab, 0);
        topics.remove(topic, &mut slab, 1);
        assert_eq!(topics.next_changed().flatten().unwrap().count, 0);
        assert_eq!(topics.find(&name("a")), None);
        let again = topics.enter(&name("a"), 5, false);
        assert_ne!(topics.get_mut(again).stay, report.stay, "a second stay has a number of its own");
    }

    #[test]
    fn what_the_owner_was_told_is_told_again_only_after_a_refusal() {
        let mut slab = slab(2);
        let mut topics = LocalTopics::default();
        let topic = topics.enter(&name("a"), 5, false);
        topics.add(topic, &mut slab, 0, false);
        assert!(!topics.is_known(topic));
        assert_eq!(topics.report(topic).map(|report| report.count), Some(1));
        assert!(topics.is_known(topic));
        assert_eq!(topics.next_changed(), Some(None), "the end of the pass has nothing to add");
        // Refused: the one leaves, and in the same pass another comes.
        topics.remove(topic, &mut slab, 0);
        let end = topics.end_stay(topic);
        topics.add(topic, &mut slab, 1, false);
        assert!(!topics.is_known(topic));
        let report = topics.report(topic).unwrap();
        assert_eq!((end.count, report.count), (0, 1));
        assert_ne!(end.stay, report.stay, "it does not belong to what was refused");
        slab[0].with_ids = true;
        topics.add(topic, &mut slab, 0, true);
        assert!(!topics.is_known(topic), "with a form that the owner does not know of");
    }

    #[test]
    fn a_topic_that_is_forgotten_while_it_waits_leaves_its_number_to_nobody_before_its_turn() {
        let mut slab = slab(1);
        let mut topics = LocalTopics::default();
        let gone = topics.enter(&name("a"), 0, true);
        topics.add(gone, &mut slab, 0, false);
        topics.deliver(gone, Frame::new(MessageKind::Text, b"x", 0, None));
        topics.remove(gone, &mut slab, 0);
        // Served out of turn, as nobody is left.
        let sweep = &mut topics.get_mut(gone).sweep;
        sweep.begin_turn(0, true);
        sweep.end_turn(drop);
        assert!(topics.next_changed().is_some() && topics.find(&name("a")).is_none());
        let other = topics.enter(&name("b"), 0, true);
        assert_ne!(other, gone);
        topics.deliver(other, Frame::new(MessageKind::Text, b"x", 0, None));
        assert_eq!(topics.next_dirty(), Some(other));
        assert_eq!(topics.next_dirty(), None);
        assert_eq!(topics.enter(&name("c"), 0, true), gone, "now it is free");
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
        assert_eq!(topics.get_mut(topic).sweep.pending().len(), 3);
    }
}
