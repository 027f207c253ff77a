//! Topics across cores: subscriptions, the owner's side of a publish, and messages from other cores.
//!
//! A publish goes to the topic's owner, wherever it was made; the owner gives it its offset and hands it to
//! each shard with subscribers, or refuses it as a whole when one of them cannot take more.

use std::sync::Arc;

use super::Shard;
use super::mesh::{Cursor, Mesh};
use super::message::{Application, Overloaded, Publisher, Receipt, Source, ToControl, ToShard, TopicStatus};
use super::slab::State;
use super::stats::DropReason;
use super::topics::{Audience, Report};
use crate::component::{CloseCause, CloseReason, Origin, SiblingMessage};
use crate::compression::Encoding;
use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::topic::TopicName;

/// Bytes of messages that one pass may take in; beyond it they are sent in its midst.
const PENDING_BYTES: usize = 1024 * 1024;

impl Shard {
    // ---- subscriptions ----

    pub(super) fn subscribe(&mut self, id: ConnectionId, topic: &TopicName) {
        let Some(number) = self.enter_topic(id, topic, false) else { return };
        let entry = self.local.get_mut(number);
        if !entry.joined {
            // A connection that is just opening is told so only when the owner has confirmed.
            if let Some(outbound) = self.slab[id.slot].outbound.as_mut().filter(|outbound| outbound.holds > 0)
            {
                outbound.holds += 1;
                entry.waiting.push(id);
            }
        }
    }

    /// Counts a connection among a topic's subscribers, and lists it unless it is to catch up first. The topic's number;
    /// `None` if it is a subscriber already, is not open, or there is no room for the topic.
    pub(super) fn enter_topic(
        &mut self,
        id: ConnectionId,
        topic: &TopicName,
        catching_up: bool,
    ) -> Option<u32> {
        self.slab.find(id).filter(|slot| slot.state == State::Open)?;
        let owner = topic.owner(self.mesh.shards());
        let owned_here = owner == self.mesh.shard();
        if owned_here && !self.has_place_for(topic) {
            self.refuse_subscription(id);
            return None;
        }
        let number = self.local.enter(topic, owner, owned_here);
        if !catching_up {
            // What was published before is not for this one.
            self.serve_all(number);
        }
        if !self.local.add(number, &mut self.slab, id.slot, catching_up) {
            self.context.count_subscription(id, -1);
            return None;
        }
        self.stats.subscriptions.add(1);
        let entry = self.local.get_mut(number);
        if owned_here {
            let audience = entry.audience();
            self.owned.set_subscribers(topic, audience, self.now_nanos);
        } else if !self.local.is_known(number) {
            // At once, and so ahead of what this very connection may publish or ask for in the same pass.
            let report = self.local.report(number);
            self.send_report(report);
        }
        Some(number)
    }

    /// Ends a subscription; false if there is none.
    pub(super) fn unsubscribe(&mut self, index: u32, number: u32) -> bool {
        self.finish_sweep(number);
        if !self.local.remove(number, &mut self.slab, index) {
            return false;
        }
        if self.local.get_mut(number).count() == 0 {
            self.serve_all(number);
        }
        self.stats.subscriptions.subtract(1);
        self.forget_catch_up(index, number);
        let id = self.slab.id(index);
        let entry = self.local.get_mut(number);
        if let Some(place) = entry.waiting.iter().position(|&waiting| waiting == id) {
            entry.waiting.swap_remove(place);
            self.release_hold(id);
        }
        let entry = self.local.get_mut(number);
        if entry.owner == self.mesh.shard() {
            let audience = entry.audience();
            self.owned.set_subscribers(&entry.name, audience, self.now_nanos);
        }
        true
    }

    pub(super) fn unsubscribe_from(&mut self, id: ConnectionId, topic: &TopicName) {
        let ended = match (self.local.find(topic), self.slab.find(id).is_some()) {
            (Some(number), true) => self.unsubscribe(id.slot, number),
            _ => false,
        };
        if !ended {
            self.context.count_subscription(id, 1);
        }
    }

    /// Tells the owners of topics whose number of subscribers here has changed in this pass.
    pub(super) fn report_subscribers(&mut self) {
        while let Some(report) = self.local.next_changed() {
            self.send_report(report);
        }
    }

    pub(super) fn send_report(&mut self, report: Option<Report>) {
        if let Some(report) = report.filter(|report| report.owner != self.mesh.shard()) {
            let Report { name: topic, owner, count, encodings, stay } = report;
            let shard = self.mesh.shard() as u16;
            self.mesh.send(owner, ToShard::Subscribers { topic, shard, count, encodings, stay });
        }
    }

    // ---- publishing ----

    /// A component publishes on this shard.
    pub(super) fn publish(&mut self, origin: Origin, topic: TopicName, frame: Arc<Frame>) {
        let owner = topic.owner(self.mesh.shards());
        let publisher = match origin {
            Origin::Connection { id, route } => Publisher::Connection { id, route },
            Origin::Core { route } => Publisher::Core { shard: self.mesh.shard() as u16, route },
        };
        if owner == self.mesh.shard() {
            self.accept_publish(topic, frame, publisher);
        } else if self.mesh.has_room(owner) {
            self.mesh.send(owner, ToShard::Publish { topic, frame, publisher });
        } else {
            self.refuse(publisher, topic);
        }
    }

    /// The owner's part: all of it, or a refusal.
    fn accept_publish(&mut self, topic: TopicName, frame: Arc<Frame>, publisher: Publisher) {
        if !self.has_place_for(&topic) {
            self.stats.topics_refused_publishes.add(1);
            return self.tell_refusal(publisher, topic, Overloaded::Topics);
        }
        let here = self.mesh.shard();
        let owned = self.owned.enter(&topic, self.now_nanos);
        let has_room = |mesh: &Mesh, shard: usize| shard == here || mesh.has_room(shard);
        if !owned.shards.iter().all(|audience| has_room(&self.mesh, audience.shard)) {
            self.stats.dropped[DropReason::RingFull as usize].add(owned.subscribers());
            return self.refuse(publisher, topic);
        }
        owned.offset += 1;
        let receipt = Receipt { subscribers: owned.subscribers(), position: owned.position() };
        let encodings = owned.encodings();
        if !encodings.is_empty() {
            self.context.with_compressors(|compressors| frame.compress(encodings, compressors));
        }
        frame.set_place(receipt.position, encodings.contains(Encoding::WITH_ID));
        frame.expect_flushes(owned.shards.len());
        let mut deliver_here = false;
        for &Audience { shard, .. } in &owned.shards {
            if shard == here {
                deliver_here = true;
            } else {
                let message = ToShard::Deliver { topic: topic.clone(), frame: frame.clone() };
                self.mesh.send(shard, message);
            }
        }
        if receipt.subscribers == 0 {
            self.owned.note_message(&topic, self.now_nanos);
        }
        if self.settings.history.messages > 0 {
            self.owned.keep(&topic, &frame, self.now_nanos);
        }
        if deliver_here {
            self.deliver(&topic, frame);
        }
        match publisher {
            Publisher::Connection { .. } => self.stats.publishes_websocket.add(1),
            Publisher::Core { .. } => self.stats.publishes_component.add(1),
            Publisher::Control { request, source } => {
                match source {
                    Source::Http => self.stats.publishes_http.add(1),
                    Source::Thread => self.stats.publishes_thread.add(1),
                }
                self.mesh.send_to_control(ToControl::Published { request, outcome: Ok(receipt) });
            }
        }
    }

    fn deliver(&mut self, topic: &TopicName, frame: Arc<Frame>) {
        match self.local.find(topic) {
            Some(number) if self.local.get_mut(number).takes_messages() => {
                self.pending_bytes += frame.memory_bytes();
                self.local.deliver(number, frame);
                if self.pending_bytes > PENDING_BYTES {
                    self.fan_out();
                }
            }
            // The last subscriber has just gone: this shard has nothing to flush.
            _ => self.unflushed.push(frame),
        }
    }

    /// Refuses a message because of full rings.
    fn refuse(&mut self, publisher: Publisher, topic: TopicName) {
        self.stats.ring_full_publishes.add(1);
        self.tell_refusal(publisher, topic, Overloaded::Rings);
    }

    /// Tells a publisher that its message reached nobody.
    fn tell_refusal(&mut self, publisher: Publisher, topic: TopicName, why: Overloaded) {
        let shard = match publisher {
            Publisher::Control { request, .. } => {
                let outcome = Err(why);
                return self.mesh.send_to_control(ToControl::Published { request, outcome });
            }
            Publisher::Connection { id, .. } => usize::from(id.shard),
            Publisher::Core { shard, .. } => usize::from(shard),
        };
        if shard == self.mesh.shard() {
            // Told in the next pass: a component that publishes again at once must find the receivers' rings emptied
            // in between, or it would be refused for ever.
            self.refused.push((publisher, topic));
        } else {
            self.mesh.send(shard, ToShard::Refused { publisher, topic });
        }
    }

    /// Tells publishers of this core what was refused in the pass before.
    pub(super) fn tell_refused(&mut self) {
        for (publisher, topic) in std::mem::take(&mut self.refused) {
            self.on_refused(publisher, &topic);
        }
    }

    fn on_refused(&mut self, publisher: Publisher, topic: &TopicName) {
        let route = match publisher {
            Publisher::Connection { id, .. } if self.close_overloaded(id) => return,
            Publisher::Connection { route, .. } | Publisher::Core { route, .. } => route,
            // Answered by the owner.
            Publisher::Control { .. } => return,
        };
        self.call_for_core(route, |component, core| {
            component.on_refused(core, topic);
            Ok(())
        });
    }

    /// Closes a connection whose message was refused; false if it is not there to be told so.
    fn close_overloaded(&mut self, id: ConnectionId) -> bool {
        // What is still to go to it may be too much for it, and then it is closed for that.
        self.fan_out_before_leaving();
        let Some(slot) = self.slab.find(id) else { return false };
        if slot.state == State::Open {
            let text = "the server cannot take more messages now".to_owned();
            self.begin_close(id.slot, CloseReason { code: 1013, text, cause: CloseCause::Overloaded });
            return true;
        }
        // One close tells of all that were refused.
        self.closings.get(&id.slot).is_some_and(|reason| reason.cause == CloseCause::Overloaded)
    }

    // ---- questions of the control thread ----

    /// The owner's part of a look at a topic: it leaves no trace, or looks alone could fill the memory.
    fn inspect_topic(&mut self, topic: &TopicName, request: u64) {
        let unused = TopicStatus { subscribers: 0, messages: 0, position: self.owned.beginning() };
        let status = self.owned.find(topic).map_or(unused, |owned| TopicStatus {
            subscribers: owned.subscribers(),
            messages: owned.history.len() as u64,
            position: owned.position(),
        });
        self.mesh.send_to_control(ToControl::Inspected { request, status });
    }

    /// The owner's part of the end of a topic: every shard with subscribers is told to close them, or none is.
    /// The offset stays, so that a later message is not taken for an earlier one.
    fn delete_topic(&mut self, topic: &TopicName, request: u64) {
        let shards: Vec<usize> = self
            .owned
            .find(topic)
            .map_or_else(Vec::new, |owned| owned.shards.iter().map(|audience| audience.shard).collect());
        let mut outcome = Err(Overloaded::Rings);
        if shards.iter().all(|&shard| self.mesh.has_room(shard)) {
            outcome = Ok(());
            self.owned.clear_history(topic);
            for shard in shards {
                if shard == self.mesh.shard() {
                    self.close_subscribers(topic);
                } else {
                    self.mesh.send(shard, ToShard::CloseSubscribers { topic: topic.clone() });
                }
            }
        }
        self.mesh.send_to_control(ToControl::Deleted { request, outcome });
    }

    /// Closes this shard's subscribers of a topic that was deleted.
    fn close_subscribers(&mut self, topic: &TopicName) {
        // Before it is joined, all who are here came after the deletion: the owner did not know of them.
        let Some(number) = self.local.find(topic).filter(|_| self.local.is_joined(topic)) else {
            return;
        };
        // What was published before the deletion goes ahead of the close frames.
        self.fan_out();
        for index in self.local.get_mut(number).everyone() {
            let text = "topic deleted".to_owned();
            self.begin_close(index, CloseReason { code: 1000, text, cause: CloseCause::TopicDeleted });
        }
    }

    // ---- siblings ----

    /// Sends a value to the same component on another shard. Its place is assured: the sender had credit for it.
    pub(super) fn send_to_sibling(&mut self, route: u8, shard: usize, value: Application) {
        let from = self.mesh.shard() as u16;
        self.mesh.send(shard, ToShard::Sibling { route, from, value });
        self.context.set_credit(shard, self.mesh.room(shard));
    }

    /// Says again how much may be sent to siblings, while shards are behind.
    pub(super) fn renew_credits(&mut self) {
        for shard in 0..self.mesh.shards() {
            self.context.set_credit(shard, self.mesh.room(shard));
        }
    }

    // ---- messages from other cores ----

    /// Handles what other cores have sent; true if there was anything.
    pub(super) fn receive_messages(&mut self) -> bool {
        let (mut cursor, mut any) = (Cursor::default(), false);
        while let Some(message) = self.mesh.receive(&mut cursor) {
            any = true;
            self.on_shard_message(message);
        }
        any
    }

    pub(super) fn on_shard_message(&mut self, message: ToShard) {
        match message {
            ToShard::Publish { topic, frame, publisher } => self.accept_publish(topic, frame, publisher),
            ToShard::Deliver { topic, frame } => self.deliver(&topic, frame),
            ToShard::Subscribers { topic, shard, count, encodings, stay } => {
                if !self.admits_subscribers(&topic, shard, count, stay) {
                    return;
                }
                let shard = usize::from(shard);
                let audience = Audience { shard, count, encodings };
                if self.owned.set_subscribers(&topic, audience, self.now_nanos) {
                    self.mesh.send(shard, ToShard::Joined { topic, stay });
                }
            }
            ToShard::Joined { topic, stay } => self.on_joined(&topic, stay),
            ToShard::Replay(request) => self.replay(request),
            ToShard::Replayed(replayed) => self.on_replayed(*replayed),
            ToShard::JoinRefused { topic, stay } => self.on_join_refused(&topic, stay),
            ToShard::Refused { publisher, topic } => self.on_refused(publisher, &topic),
            ToShard::Sibling { route, from, value } => {
                let message = SiblingMessage::new(usize::from(from), value.0);
                self.call_for_core(route, |component, core| component.on_sibling(core, message));
            }
            ToShard::Inspect { topic, request } => self.inspect_topic(&topic, request),
            ToShard::Delete { topic, request } => self.delete_topic(&topic, request),
            ToShard::CloseSubscribers { topic } => self.close_subscribers(&topic),
            ToShard::Snapshot { request } => {
                let fanout_micros = Box::new(self.fanout_micros.clone());
                self.mesh.send_to_control(ToControl::Snapshot { request, fanout_micros });
            }
            ToShard::Drain { window_millis, hurried } => self.begin_drain(window_millis, hurried),
            ToShard::DrainMarker => self.on_drain_marker(),
            ToShard::Configure(settings) => self.configure(&settings),
            ToShard::End => self.ending_now = true,
        }
    }

    fn on_joined(&mut self, topic: &TopicName, stay: u64) {
        let Some(number) = self.local.find(topic) else {
            return;
        };
        let entry = self.local.get_mut(number);
        if entry.stay == stay {
            entry.joined = true;
            for id in std::mem::take(&mut entry.waiting) {
                self.release_hold(id);
            }
        }
    }
}
