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
        self.local.forget_report(number);
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
        self.stats.rejected[rejection.reason.index()].add(1);
        let reason = CloseReason { code: 1006, text: String::new(), cause: CloseCause::Overloaded };
        self.end_session(index, &reason);
        self.send_queued(index);
        self.linger(index);
    }
}
