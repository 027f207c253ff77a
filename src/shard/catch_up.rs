//! Subscribers that begin in the past: they catch up with what the topic's owner has kept, then go live.
//!
//! Lives on the subscriber's shard, but for [`Shard::replay`], the owner's side.
//!
//! The seam is exact because answers and messages come from the owner on one ring: an answer that says it is complete
//! holds all messages up to some offset, and those after it are delivered behind it. So a subscriber that has had the
//! answer, and is listed before the next message of the ring is looked at, has no gap and no repeat.
//!
//! Invariants:
//! 1. A subscriber that is catching up counts at the owner ([`super::topics::LocalTopics::add`]) before it asks.
//! 2. At most one request of a subscriber in a topic is under way. What it is sent fits into half of its send queue; the
//!    next request follows when that queue is empty, so a slow reader costs no more than any other.
//! 3. Its entry here goes with its subscription ([`Shard::forget_catch_up`]).

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::Shard;
use super::message::{ReplayRequest, Replayed, Ticket, ToShard};
use super::outbound::Piece;
use super::slab::State;
use super::topics::CATCHING_UP;
use crate::component::{CloseCause, CloseReason};
use crate::compression::Encoding;
use crate::connection_id::ConnectionId;
use crate::frame::{Frame, with_meta};
use crate::position::{Notice, Position, Start};
use crate::topic::TopicName;
use crate::ws::{MessageKind, ServerHeader};

/// Most bytes of one answer.
const ANSWER_BYTES: usize = 256 * 1024;

/// Content type of a notice, where messages have one.
const NOTICE_TYPE: &str = "application/vnd.corecast.notice+json";

/// A subscriber that is catching up.
#[derive(Debug)]
struct CatchUp {
    topic: TopicName,
    ticket: Ticket,
    /// What is still to be said with the first answer.
    first: Option<First>,
    /// What it has been sent so far; `None` while a request is under way.
    sent: Option<Position>,
    /// Its opening is held back until the first answer.
    holds: bool,
}

/// What the first answer brings along.
#[derive(Clone, Copy, Debug)]
struct First {
    notice: Notice,
    /// It is to go on behind a message that it has had.
    resumes: bool,
}

/// The subscribers of one shard that are catching up.
#[derive(Debug, Default)]
pub(super) struct CatchUps {
    /// By slot and by the topic's number here.
    entries: HashMap<(u32, u32), CatchUp>,
    requests: u64,
    /// Slots whose send queue has emptied.
    ready: Vec<u32>,
}

impl CatchUps {
    /// Notes that a send queue has emptied.
    pub(super) fn note_empty(&mut self, slot: u32) {
        if !self.entries.is_empty() {
            self.ready.push(slot);
        }
    }

    /// Whether something is to be asked for.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn next_ticket(&mut self, connection: ConnectionId) -> Ticket {
        self.requests += 1;
        Ticket { connection, number: self.requests }
    }
}

/// What a client is told of where it begins, as JSON.
#[derive(Serialize)]
struct NoticeBody<'a> {
    recovered: bool,
    topic: &'a str,
    epoch: String,
    offset: u64,
}

impl Shard {
    // ---- the subscriber's shard ----

    /// Subscribes a connection from a place in the past.
    pub(super) fn subscribe_from(
        &mut self,
        id: ConnectionId,
        topic: &TopicName,
        start: Start,
        notice: Notice,
    ) {
        let Some(number) = self.enter_topic(id, topic, true) else { return };
        // A connection that is just opening is told so only when it is sure where it begins.
        let outbound = self.slab[id.slot].outbound.as_mut().filter(|outbound| outbound.holds > 0);
        let holds = outbound.map(|outbound| outbound.holds += 1).is_some();
        let ticket = self.catch_ups.next_ticket(id);
        let first = Some(First { notice, resumes: matches!(start, Start::After(_)) });
        let entry = CatchUp { topic: topic.clone(), ticket, first, sent: None, holds };
        self.catch_ups.entries.insert((id.slot, number), entry);
        self.ask(topic.clone(), ticket, start);
    }

    /// From now on, messages of topics go to this connection with their ids; ignored once it is a subscriber.
    pub(super) fn show_ids(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slab.find(id).filter(|slot| slot.subscriptions.as_slice().is_empty()) {
            slot.with_ids = true;
        }
    }

    fn ask(&mut self, topic: TopicName, ticket: Ticket, start: Start) {
        let places = self.slab[ticket.connection.slot].subscriptions.as_slice();
        let catching_up = places.iter().filter(|place| place.position == CATCHING_UP).count();
        let bytes = ANSWER_BYTES.min(self.settings.send_queue_bytes / 2 / catching_up.max(1));
        let owner = topic.owner(self.mesh.shards());
        let request = ReplayRequest { topic, ticket, start, bytes };
        if owner == self.mesh.shard() {
            self.replay(request);
        } else {
            self.mesh.send(owner, ToShard::Replay(request));
        }
    }

    /// Asks for more on behalf of those that have sent what they had; true if there were any.
    pub(super) fn continue_catch_ups(&mut self) -> bool {
        let ready = std::mem::take(&mut self.catch_ups.ready);
        for &slot in &ready {
            let places = self.slab[slot].subscriptions.as_slice().iter();
            let catching_up = places.filter(|place| place.position == CATCHING_UP).map(|place| place.topic);
            for topic in catching_up.collect::<Vec<_>>() {
                self.continue_catch_up(slot, topic);
            }
        }
        !ready.is_empty()
    }

    fn continue_catch_up(&mut self, slot: u32, number: u32) {
        let id = self.slab.id(slot);
        let ticket = self.catch_ups.next_ticket(id);
        let Some(entry) = self.catch_ups.entries.get_mut(&(slot, number)) else { return };
        // Without an answer yet, the queue has emptied for another reason and the request is still under way.
        let Some(sent) = entry.sent.take() else { return };
        entry.ticket = ticket;
        let topic = entry.topic.clone();
        self.ask(topic, ticket, Start::After(sent));
    }

    /// The subscription has ended.
    pub(super) fn forget_catch_up(&mut self, slot: u32, number: u32) {
        if self.catch_ups.entries.is_empty() {
            return;
        }
        if let Some(CatchUp { holds: true, ticket, .. }) = self.catch_ups.entries.remove(&(slot, number)) {
            self.release_hold(ticket.connection);
        }
    }

    /// Sends a subscriber what the owner has kept for it, and lists it if that is all.
    pub(super) fn on_replayed(&mut self, replayed: Replayed) {
        let Replayed { topic, ticket, recovered, from, frames, complete } = replayed;
        let id = ticket.connection;
        let Some(number) = self.local.find(&topic) else { return };
        let Some(entry) = self.catch_ups.entries.get_mut(&(id.slot, number)) else { return };
        if entry.ticket != ticket {
            return;
        }
        let (first, holds) = (entry.first.take(), std::mem::take(&mut entry.holds));
        entry.sent = Some(Position { offset: from.offset + frames.len() as u64, ..from });
        if first.is_none() && !recovered {
            return self.fall_behind(id.slot);
        }
        if first.is_some_and(|first| first.resumes) {
            self.stats.resumes[usize::from(recovered)].add(1);
        }
        // What the owner had already delivered is in the answer: it goes to the others before this one is listed.
        if self.local.has_dirty() {
            self.fan_out();
        }
        let is_told = match first.map(|first| first.notice) {
            None | Some(Notice::Never) => false,
            Some(Notice::IfLost) => !recovered,
            Some(Notice::Always) => true,
        };
        self.queue_replay(id.slot, number, is_told.then_some((recovered, from)), &frames);
        if complete {
            self.catch_ups.entries.remove(&(id.slot, number));
            self.local.go_live(number, &mut self.slab, id.slot);
        }
        if holds {
            self.release_hold(id);
        }
    }

    /// What a slow reader still had to get is no longer kept.
    fn fall_behind(&mut self, slot: u32) {
        self.stats.slow_consumers.add(1);
        let text = "slow consumer".to_owned();
        self.begin_close(slot, CloseReason { code: 1008, text, cause: CloseCause::SlowConsumer });
    }

    /// Queues messages from the past, and before them what the client is told of its place.
    fn queue_replay(
        &mut self,
        slot: u32,
        number: u32,
        notice: Option<(bool, Position)>,
        frames: &[Arc<Frame>],
    ) {
        // A send of this pass goes first.
        if self.slab[slot].outbound.is_none() && self.is_staged(slot) {
            self.flush_batch();
        }
        if self.slab[slot].sealed || self.slab[slot].state != State::Open {
            return;
        }
        let entry = self.local.get_mut(number);
        let stay = entry.stay;
        if let Some((recovered, from)) = notice {
            let bytes = notice_frame(&entry.name, recovered, from, self.slab[slot].form());
            self.queue(slot, Piece::Bytes(bytes), 0);
        }
        // Plain where it would be compressed: the past is not worth a compression for each.
        let with_ids = self.slab[slot].with_ids;
        let encoding = if with_ids { Encoding::WITH_ID } else { Encoding::PLAIN };
        let mut bytes = 0;
        for frame in frames {
            if with_ids {
                frame.ensure_id();
            }
            bytes += frame.bytes(encoding).len();
            let frame = Rc::new(frame.clone());
            self.queue(slot, Piece::Frame { frame, encoding, topic: stay }, 0);
        }
        self.stats.deliveries.add(frames.len() as u64);
        self.stats.delivery_bytes.add(bytes as u64);
    }

    // ---- the owner ----

    /// Looks up what a subscriber has missed.
    pub(super) fn replay(&mut self, request: ReplayRequest) {
        let ReplayRequest { topic, ticket, start, bytes } = request;
        // Not known, it was refused, and its subscribers are told so.
        if self.owned.find(&topic).is_none() {
            return;
        }
        let owned = self.owned.enter(&topic, self.now_nanos);
        let head = owned.position();
        let from = match start {
            Start::Now => None,
            Start::After(position) => Some(position),
            Start::Latest(count) => {
                let count = count.min(owned.history.len() as u64);
                Some(Position { offset: head.offset - count, ..head })
            }
        };
        let known = from.filter(|from| from.epoch == head.epoch && from.offset <= head.offset);
        let kept = known.and_then(|from| Some((from, owned.history.after(from.offset, head.offset, bytes)?)));
        let recovered = kept.is_some();
        let (from, frames) = kept.unwrap_or((head, Vec::new()));
        let complete = from.offset + frames.len() as u64 == head.offset;
        let replayed = Replayed { topic, ticket, recovered, from, frames, complete };
        let shard = usize::from(ticket.connection.shard);
        if shard == self.mesh.shard() {
            self.on_replayed(replayed);
        } else {
            self.mesh.send(shard, ToShard::Replayed(Box::new(replayed)));
        }
    }
}

/// The frame that tells a client where it begins: behind `from`.
fn notice_frame(topic: &TopicName, recovered: bool, from: Position, form: Encoding) -> Box<[u8]> {
    let body = NoticeBody { recovered, topic: topic.as_str(), epoch: from.epoch_text(), offset: from.offset };
    // Strings, a number and a truth value: there is nothing in it that could fail.
    let json = serde_json::to_vec(&body).unwrap_or_default();
    if form == Encoding::WITH_ID {
        return with_meta(MessageKind::Text, from, NOTICE_TYPE, &json);
    }
    let header = ServerHeader::new(MessageKind::Text.opcode(), false, json.len());
    [header.as_bytes(), &json].concat().into()
}
