//! The limit on topics, and what those are told whose topic would be one too many.
//!
//! Each shard may own an equal share of `max_topics`; a topic without messages counts as long as it has subscribers, any
//! other until it is forgotten. Topics that there are go on as before. A publisher is refused as when the shards cannot take more. A subscriber whose
//! handshake is still held back is answered with 503, any other is closed with 1013.

use super::Shard;
use super::admission::RETRY_AFTER_SECONDS;
use super::message::ToShard;
use super::outbound::Piece;
use super::slab::State;
use crate::component::{CloseCause, CloseReason};
use crate::connection_id::ConnectionId;
use crate::topic::TopicName;
use crate::ws::{self, Rejection};

impl Shard {
    /// Topics that this shard may own.
    fn max_owned(&self) -> usize {
        self.settings.max_topics.div_ceil(self.mesh.shards())
    }

    /// Whether the owner, this shard, knows the topic or has room for it.
    pub(super) fn has_place_for(&self, topic: &TopicName) -> bool {
        self.owned.len() < self.max_owned() || self.owned.find(topic).is_some()
    }

    /// Whether what is queued could bring the topics that this shard owns to their limit: then a handshake is held
    /// back until its topics have their places.
    pub(super) fn may_meet_topic_limit(&self) -> bool {
        self.owned.len() + self.context.mark() >= self.max_owned()
    }

    /// The owner's part of a shard's report: false when the topic is not to be entered for it.
    pub(super) fn admits_subscribers(
        &mut self,
        topic: &TopicName,
        shard: u16,
        count: u32,
        stay: u64,
    ) -> bool {
        if self.owned.find(topic).is_some() {
            return true;
        }
        // The end of a stay that was refused, or whose topic has been forgotten.
        if count == 0 {
            return false;
        }
        let admits = self.has_place_for(topic);
        if !admits {
            self.mesh.send(shard.into(), ToShard::JoinRefused { topic: topic.clone(), stay });
        }
        admits
    }

    /// The owner has no place for a topic that this shard has subscribers of.
    pub(super) fn on_join_refused(&mut self, topic: &TopicName, stay: u64) {
        let Some(number) = self.local.find(topic) else {
            return;
        };
        let entry = self.local.get_mut(number);
        if entry.stay != stay || entry.joined {
            return;
        }
        let subscribers = entry.everyone();
        // What other topics have for them goes ahead.
        self.fan_out();
        for index in subscribers {
            self.refuse_subscription(self.slab.id(index));
        }
        // One that comes in this very pass still finds the entry.
        let report = self.local.end_stay(number);
        self.send_report(Some(report));
    }

    /// Tells a subscriber that its topic would be one too many.
    pub(super) fn refuse_subscription(&mut self, id: ConnectionId) {
        self.stats.topics_refused_subscribers.add(1);
        let index = id.slot;
        let Some(slot) = self.slab.find(id).filter(|slot| slot.state == State::Open) else {
            return;
        };
        let Some(outbound) = slot.outbound.as_mut().filter(|outbound| outbound.holds > 0) else {
            let text = "no room for another topic".to_owned();
            return self.begin_close(index, CloseReason { code: 1013, text, cause: CloseCause::Overloaded });
        };
        // Not even the 101 has gone out, and now never will.
        let rejection = Rejection::topics(RETRY_AFTER_SECONDS);
        let mut response = Vec::new();
        ws::handshake::write_rejection(&rejection, &mut response);
        let before = outbound.queued_bytes();
        outbound.drop_unsent();
        outbound.holds = 0;
        outbound.push(Piece::Bytes(response.into()), 0);
        self.stats.send_queue_bytes.add(outbound.queued_bytes() as u64);
        self.stats.send_queue_bytes.subtract(before as u64);
        slot.sealed = true;
        self.note_rejected(index, &rejection);
        let reason = CloseReason { code: 1006, text: String::new(), cause: CloseCause::Overloaded };
        self.end_session(index, &reason);
        self.send_queued(index);
        self.linger(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Encodings;
    use crate::shard::test_rig::{ELSEWHERE, Rig, received, topic_of};

    const HERE: usize = 0;

    /// The reports among messages: each one's count and stay.
    fn reports(sent: Vec<ToShard>) -> Vec<(u32, u64)> {
        let report = |message| match message {
            ToShard::Subscribers { count, stay, .. } => Some((count, stay)),
            _ => None,
        };
        sent.into_iter().filter_map(report).collect()
    }

    #[test]
    fn a_stay_that_is_refused_leaves_nobody_behind_at_the_owner() {
        let mut rig = Rig::new(|_| {});
        let topic = topic_of(ELSEWHERE, "a");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let (id, client) = rig.connect_held();
            rig.shard.subscribe(id, &topic);
            rig.shard.release_hold(id);
            rig.end_pass();
            clients.push(client);
        }
        let told = reports(rig.sent());
        let stay = told[0].1;
        assert_eq!(told, [(1, stay), (2, stay)]);
        // The owner has refused the first report and accepted the second.
        rig.shard.on_shard_message(ToShard::JoinRefused { topic: topic.clone(), stay });
        // One that comes in the same pass.
        let (id, mut client) = rig.connect_held();
        rig.shard.subscribe(id, &topic);
        rig.shard.release_hold(id);
        rig.end_pass();
        for client in &mut clients {
            assert!(received(client).starts_with(b"HTTP/1.1 503"));
        }
        let told = reports(rig.sent());
        let next = told[1].1;
        assert_eq!(told, [(0, stay), (1, next)], "the owner must forget those that it refused");
        rig.shard.on_shard_message(ToShard::Joined { topic: topic.clone(), stay });
        assert_eq!(received(&mut client), b"", "that was for the others");
        rig.shard.on_shard_message(ToShard::Joined { topic, stay: next });
        assert_eq!(received(&mut client), b"101");
    }

    #[test]
    fn an_owner_that_has_refused_a_stay_answers_the_next_one() {
        let mut rig = Rig::new(|config| config.max_topics = 2);
        let (id, _client) = rig.connect();
        rig.shard.subscribe(id, &topic_of(HERE, "taken"));
        let topic = topic_of(HERE, "a");
        let answer_to = |rig: &mut Rig, count, stay| {
            let (topic, shard) = (topic.clone(), ELSEWHERE as u16);
            let encodings = Encodings::default();
            rig.shard.on_shard_message(ToShard::Subscribers { topic, shard, count, encodings, stay });
            rig.sent().pop().map(|answer| match answer {
                ToShard::Joined { stay, .. } => (true, stay),
                ToShard::JoinRefused { stay, .. } => (false, stay),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(answer_to(&mut rig, 1, 7), Some((false, 7)));
        rig.shard.unsubscribe_from(id, &topic_of(HERE, "taken"));
        rig.end_pass();
        assert_eq!(answer_to(&mut rig, 2, 7), Some((true, 7)), "there is room by now");
        assert_eq!(answer_to(&mut rig, 0, 7), None);
        assert_eq!(rig.shard.owned.len(), 0);
        assert_eq!(answer_to(&mut rig, 1, 8), Some((true, 8)));
    }
}
