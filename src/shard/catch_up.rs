//! Subscribers that begin in the past: they catch up with what the topic's owner has kept, then go live.
//!
//! Lives on the subscriber's shard, but for [`Shard::replay`], the owner's side.
//!
//! The seam is exact because answers and messages come from the owner on one ring: an answer that says it is complete
//! holds all messages up to some offset, and those after it are delivered behind it. So a subscriber that has had the
//! answer, and is to get what is delivered from then on ([`super::topics::LocalTopics::go_live`]), has no gap and no repeat.
//!
//! Invariants:
//! 1. A subscriber that is catching up counts at the owner ([`super::topics::LocalTopics::add`]) before it asks.
//! 2. The first answer fixes a subscriber's place in each of its topics, and as much of what it brings is taken as fits.
//!    After that the topics of a connection catch up one after another. What they bring fits into half of its send queue,
//!    but for one message: the other half is for what is live, and a slow reader costs no more than any other.
//! 3. What an owner lets go before a subscriber can take it is not passed over in silence: while the topic waits for its
//!    turn the subscriber is told and goes on with what there is, and in its turn it is closed as a slow consumer.
//! 4. An entry here goes with its subscription ([`Shard::forget_catch_up`]).

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;

use super::Shard;
use super::message::{ReplayRequest, Replayed, Ticket, ToShard};
use super::outbound::Piece;
use super::slab::State;
use crate::by_slot::{BySlot, SlotMap};
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

/// A subscriber that is catching up with one topic.
#[derive(Debug)]
struct CatchUp {
    topic: TopicName,
    /// The request that was sent last.
    ticket: Ticket,
    /// What is still to be said with the first answer.
    first: Option<First>,
    /// What it has been sent so far; `None` while a request is under way.
    sent: Option<Position>,
    /// Its opening is held back until the first answer.
    holds: bool,
    /// Other topics of the connection are ahead of it, and it has not had its turn.
    waits: bool,
}

/// What the first answer brings along.
#[derive(Clone, Copy, Debug)]
struct First {
    notice: Notice,
    /// It is to go on behind a message that it has had.
    resumes: bool,
    /// It has had a place before, and what followed was let go.
    is_lost: bool,
}

/// The subscribers of one shard that are catching up.
#[derive(Debug, Default)]
pub(super) struct CatchUps {
    /// By slot and by the topic's number here.
    entries: SlotMap<(u32, u32), CatchUp>,
    /// The topics with which each slot is catching up; the first is the one that brings messages now.
    turns: BySlot<VecDeque<u32>>,
    requests: u64,
    /// Slots that may ask for more.
    ready: Vec<u32>,
}

impl CatchUps {
    /// Notes that a send queue has emptied.
    pub(super) fn note_empty(&mut self, slot: u32) {
        if !self.entries.is_empty() {
            self.ready.push(slot);
        }
    }

    /// Whether something may have to be asked for.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn next_ticket(&mut self, connection: ConnectionId) -> Ticket {
        self.requests += 1;
        Ticket { connection, number: self.requests }
    }

    /// Removes an entry, and has the slot's next topic take its turn.
    fn remove(&mut self, slot: u32, number: u32) -> Option<CatchUp> {
        let entry = self.entries.remove(&(slot, number))?;
        if let Some(turns) = self.turns.get_mut(&slot) {
            turns.retain(|&other| other != number);
            if turns.is_empty() {
                self.turns.remove(&slot);
            } else {
                self.ready.push(slot);
            }
        }
        Some(entry)
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
        self.slab[id.slot].wants_notices |= notice != Notice::Never;
        // A connection that is just opening is told so only when it is sure where it begins.
        let outbound = self.slab[id.slot].outbound.as_mut().filter(|outbound| outbound.holds > 0);
        let holds = outbound.map(|outbound| outbound.holds += 1).is_some();
        let ticket = self.catch_ups.next_ticket(id);
        let first = Some(First { notice, resumes: matches!(start, Start::After(_)), is_lost: false });
        let turns = self.catch_ups.turns.entry(id.slot).or_default();
        let waits = !turns.is_empty();
        turns.push_back(number);
        let entry = CatchUp { topic: topic.clone(), ticket, first, sent: None, holds, waits };
        self.catch_ups.entries.insert((id.slot, number), entry);
        // Also with others ahead of it: what it does not have when its turn comes may have been let go by then. A smaller share
        // with each, so that topics with long histories are not looked through for what cannot be taken.
        let share = turns.len();
        let bytes = self.replay_budget(id.slot) / share;
        self.ask(topic.clone(), ticket, start, bytes);
    }

    /// From now on, messages of topics go to this connection with their ids; ignored once it is a subscriber.
    pub(super) fn show_ids(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slab.find(id).filter(|slot| slot.subscriptions.as_slice().is_empty()) {
            slot.with_ids = true;
            slot.wants_notices = true;
        }
    }

    /// Bytes of messages from the past that a connection may be sent now.
    fn replay_budget(&self, slot: u32) -> usize {
        let queued = self.slab[slot].outbound.as_ref().map_or(0, |outbound| outbound.cost());
        (self.settings.send_queue_bytes / 2).saturating_sub(queued).min(ANSWER_BYTES)
    }

    fn ask(&mut self, topic: TopicName, ticket: Ticket, start: Start, bytes: usize) {
        let owner = topic.owner(self.mesh.shards());
        let with_ids = self.slab[ticket.connection.slot].with_ids;
        let request = ReplayRequest { topic, ticket, start, bytes, with_ids };
        if owner == self.mesh.shard() {
            self.replay(request);
        } else {
            self.mesh.send(owner, ToShard::Replay(request));
        }
    }

    /// Asks for more on behalf of those that can take more; true if there were any.
    pub(super) fn continue_catch_ups(&mut self) -> bool {
        let any = self.catch_ups.is_ready();
        while let Some(slot) = self.catch_ups.ready.pop() {
            self.continue_catch_up(slot);
        }
        any
    }

    fn continue_catch_up(&mut self, slot: u32) {
        let Some(&number) = self.catch_ups.turns.get(&slot).and_then(VecDeque::front) else { return };
        let bytes = self.replay_budget(slot);
        // What is queued goes first: when it is sent, this is called again.
        if bytes == 0 {
            return;
        }
        let ticket = self.catch_ups.next_ticket(self.slab.id(slot));
        let Some(entry) = self.catch_ups.entries.get_mut(&(slot, number)) else { return };
        // Without a place, a request is under way, and its answer calls this again.
        let Some(sent) = entry.sent.take() else { return };
        entry.ticket = ticket;
        let topic = entry.topic.clone();
        self.ask(topic, ticket, Start::After(sent), bytes);
    }

    /// The subscription has ended.
    pub(super) fn forget_catch_up(&mut self, slot: u32, number: u32) {
        if let Some(CatchUp { holds: true, ticket, .. }) = self.catch_ups.remove(slot, number) {
            self.release_hold(ticket.connection);
        }
    }

    /// Sends a subscriber what the owner has kept for it, and has it go live if that is all.
    pub(super) fn on_replayed(&mut self, replayed: Replayed) {
        let Replayed { topic, ticket, recovered, from, mut frames, complete } = replayed;
        let id = ticket.connection;
        let Some(number) = self.local.find(&topic) else { return };
        let Some(entry) = self.catch_ups.entries.get_mut(&(id.slot, number)) else { return };
        if entry.ticket != ticket {
            return;
        }
        let (first, holds) = (entry.first.take(), std::mem::take(&mut entry.holds));
        if first.is_none() {
            let waited = std::mem::take(&mut entry.waits);
            if !recovered {
                return self.lose_place(id, number, waited);
            }
        }
        // In its turn it gets on, however large a message is.
        let least = usize::from(!entry.waits);
        let recovered = recovered && !first.is_some_and(|first| first.is_lost);
        if first.is_some_and(|first| first.resumes) {
            self.stats.resumes[usize::from(recovered)].add(1);
        }
        let is_told = match first.map(|first| first.notice) {
            None | Some(Notice::Never) => false,
            Some(Notice::IfLost) => !recovered,
            Some(Notice::Always) => true,
        };
        // A send of this pass goes first.
        if self.slab[id.slot].outbound.is_none() && self.is_staged(id.slot) {
            self.flush_batch();
        }
        let fitting = self.fitting(id.slot, &frames).max(least);
        let complete = complete && fitting >= frames.len();
        frames.truncate(fitting);
        if let Some(entry) = self.catch_ups.entries.get_mut(&(id.slot, number)) {
            entry.sent = Some(Position { offset: from.offset + frames.len() as u64, ..from });
        }
        self.queue_replay(id, number, is_told.then_some((recovered, from)), &frames);
        if complete {
            self.catch_ups.remove(id.slot, number);
            self.finish_sweep(number);
            self.local.go_live(number, &mut self.slab, id);
        } else {
            self.catch_ups.ready.push(id.slot);
        }
        if holds {
            self.release_hold(id);
        }
    }

    /// What a subscriber still had to get is no longer kept. If it has only `waited` for topics ahead of it, it is told so
    /// and goes on with what there is; one that is never told anything cannot be.
    fn lose_place(&mut self, id: ConnectionId, number: u32, waited: bool) {
        if !waited || !self.slab[id.slot].wants_notices {
            return self.fall_behind(id.slot);
        }
        let bytes = self.replay_budget(id.slot);
        let ticket = self.catch_ups.next_ticket(id);
        let Some(entry) = self.catch_ups.entries.get_mut(&(id.slot, number)) else { return };
        entry.ticket = ticket;
        entry.first = Some(First { notice: Notice::IfLost, resumes: false, is_lost: true });
        let topic = entry.topic.clone();
        self.ask(topic, ticket, Start::Latest(u64::MAX), bytes);
    }

    /// What a slow reader still had to get is no longer kept.
    fn fall_behind(&mut self, slot: u32) {
        self.stats.slow_consumers.add(1);
        let text = "slow consumer".to_owned();
        self.begin_close(slot, CloseReason { code: 1008, text, cause: CloseCause::SlowConsumer });
    }

    /// Whether anything may follow what a connection has been told: nothing does behind a close frame.
    fn takes_more(&self, slot: u32) -> bool {
        !self.slab[slot].sealed && self.slab[slot].state == State::Open
    }

    /// How many of the messages a connection may be sent now.
    fn fitting(&self, slot: u32, frames: &[Arc<Frame>]) -> usize {
        let (mut left, encoding) = (self.replay_budget(slot), self.replay_form(slot));
        let fits = |frame: &&Arc<Frame>| {
            let cost = frame.bytes(encoding).len() + size_of::<Piece>();
            let fits = cost <= left;
            left = left.saturating_sub(cost);
            fits
        };
        frames.iter().take_while(fits).count()
    }

    /// The form in which a connection gets messages from the past. Plain where it would be compressed: the past is not
    /// worth a compression for each.
    fn replay_form(&self, slot: u32) -> Encoding {
        if self.slab[slot].with_ids { Encoding::WITH_ID } else { Encoding::PLAIN }
    }

    /// Queues messages from the past, and before them what the client is told of its place.
    fn queue_replay(
        &mut self,
        id: ConnectionId,
        number: u32,
        notice: Option<(bool, Position)>,
        frames: &[Arc<Frame>],
    ) {
        let slot = id.slot;
        if !self.takes_more(slot) {
            return;
        }
        let entry = self.local.get_mut(number);
        let stay = entry.stay;
        if let Some((recovered, from)) = notice {
            let bytes = notice_frame(&entry.name, recovered, from, self.slab[slot].form());
            self.queue(slot, Piece::Bytes(bytes), 0);
        }
        let encoding = self.replay_form(slot);
        let (mut bytes, mut count) = (0, 0);
        for frame in frames.iter().filter(|frame| frame.except() != Some(id)) {
            bytes += frame.bytes(encoding).len();
            count += 1;
            let frame = Rc::new(frame.clone());
            self.queue(slot, Piece::Frame { frame, encoding, topic: stay }, 0);
        }
        self.stats.deliveries.add(count);
        self.stats.delivery_bytes.add(bytes as u64);
    }

    /// Tells a client that messages of a topic were dropped because it reads too slowly, up to `last`; ahead of what
    /// comes next. Nothing if it has left the topic since, or is closing.
    pub(super) fn tell_gap(&mut self, slot: u32, stay: u64, last: Position) {
        if !self.takes_more(slot) {
            return;
        }
        let topics: Vec<u32> =
            self.slab[slot].subscriptions.as_slice().iter().map(|place| place.topic).collect();
        let form = self.slab[slot].form();
        for topic in topics {
            let entry = self.local.get_mut(topic);
            if entry.stay == stay {
                let bytes = notice_frame(&entry.name, false, last, form);
                return self.queue(slot, Piece::Bytes(bytes), 0);
            }
        }
    }

    // ---- the owner ----

    /// Looks up what a subscriber has missed.
    pub(super) fn replay(&mut self, request: ReplayRequest) {
        let ReplayRequest { topic, ticket, start, bytes, with_ids } = request;
        // Not known, it was refused, and its subscribers are told so.
        let Some(owned) = self.owned.find(&topic) else { return };
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
        let kept = known.and_then(|from| {
            let frames = self.owned.replay(&topic, from.offset, bytes, with_ids, self.now_nanos)?;
            Some((from, frames))
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::test_rig::{ELSEWHERE, Rig, received, topic_of};

    /// A connection that asks for the past of so many topics of the other shard.
    fn subscribed(rig: &mut Rig, topics: usize, notice: Notice) -> (ConnectionId, std::net::TcpStream) {
        let (id, client) = rig.connect();
        for n in 0..topics {
            let topic = topic_of(ELSEWHERE, &format!("topic-{n}"));
            rig.shard.subscribe_from(id, &topic, Start::Latest(9), notice);
        }
        (id, client)
    }

    /// What the other shard was asked for.
    fn requests(rig: &mut Rig) -> Vec<ReplayRequest> {
        let request = |message| match message {
            ToShard::Replay(request) => Some(request),
            _ => None,
        };
        rig.sent().into_iter().filter_map(request).collect()
    }

    fn place(offset: u64) -> Position {
        Position { epoch: 5, offset }
    }

    /// Answers with messages behind an offset, which are all that there are.
    fn answer(rig: &mut Rig, request: &ReplayRequest, recovered: bool, from: u64, payloads: &[&[u8]]) {
        let frame = |(n, payload): (usize, &&[u8])| {
            let frame = Frame::new(MessageKind::Text, payload, 0, None);
            frame.set_place(place(from + 1 + n as u64), false);
            frame
        };
        let frames = payloads.iter().enumerate().map(frame).collect();
        let (topic, ticket, from) = (request.topic.clone(), request.ticket, place(from));
        let replayed = Replayed { topic, ticket, recovered, from, frames, complete: true };
        rig.shard.on_shard_message(ToShard::Replayed(Box::new(replayed)));
    }

    /// What a client gets of a queue that its socket takes whole.
    fn flushed(rig: &mut Rig, id: ConnectionId, client: &mut std::net::TcpStream) -> String {
        rig.shard.send_queued(id.slot);
        String::from_utf8_lossy(&received(client)).into_owned()
    }

    #[test]
    fn a_topic_need_not_wait_for_others_to_bring_what_fits() {
        let mut rig = Rig::new(|_| {});
        let (id, mut client) = subscribed(&mut rig, 3, Notice::Never);
        let asked = requests(&mut rig);
        assert!(asked.iter().all(|request| request.bytes > 0), "{asked:?}");
        answer(&mut rig, &asked[2], true, 7, &[b"third"]);
        answer(&mut rig, &asked[1], true, 0, &[b"second"]);
        let got = flushed(&mut rig, id, &mut client);
        assert!(got.contains("third") && got.contains("second"), "{got}");
        answer(&mut rig, &asked[0], true, 0, &[b"first"]);
        rig.end_pass();
        assert!(requests(&mut rig).is_empty(), "all have what there is");
        assert!(rig.shard.catch_ups.entries.is_empty() && rig.shard.catch_ups.turns.is_empty());
    }

    #[test]
    fn what_all_topics_bring_at_first_is_bounded_together() {
        const HALF: usize = 32 * 1024;
        let mut rig = Rig::new(|config| config.send_queue_bytes = 2 * HALF);
        let (id, mut client) = subscribed(&mut rig, 12, Notice::Never);
        let text = "x".repeat(10_000);
        for request in requests(&mut rig).iter().rev() {
            answer(&mut rig, request, true, 0, &[text.as_bytes(), text.as_bytes()]);
            assert!(
                rig.shard.slab[id.slot]
                    .outbound
                    .as_ref()
                    .is_some_and(|outbound| outbound.cost() < HALF + 10_100)
            );
        }
        // Then each in its turn, from where it is.
        let mut got = 0;
        while !rig.shard.catch_ups.entries.is_empty() {
            let outbound = &rig.shard.slab[id.slot].outbound;
            assert!(outbound.as_ref().is_some_and(|outbound| outbound.cost() < HALF + 10_100));
            got += flushed(&mut rig, id, &mut client).len() / 10_000;
            rig.end_pass();
            let asked = requests(&mut rig);
            assert_eq!(asked.len(), 1);
            let Start::After(sent) = asked[0].start else { panic!("{asked:?}") };
            let left = vec![text.as_bytes(); 2 - sent.offset as usize];
            answer(&mut rig, &asked[0], true, sent.offset, &left);
        }
        assert_eq!(got + flushed(&mut rig, id, &mut client).len() / 10_000, 24);
    }

    #[test]
    fn one_that_loses_its_place_while_it_waits_is_told_and_goes_on() {
        for (notice, goes_on) in [(Notice::IfLost, true), (Notice::Never, false)] {
            let mut rig = Rig::new(|config| config.send_queue_bytes = 20_000);
            let (id, mut client) = subscribed(&mut rig, 2, notice);
            let asked = requests(&mut rig);
            answer(&mut rig, &asked[0], true, 0, &["x".repeat(15_000).as_bytes()]);
            answer(&mut rig, &asked[1], true, 3, &["y".repeat(15_000).as_bytes()]);
            assert!(!flushed(&mut rig, id, &mut client).contains('y'));
            rig.end_pass();
            let asked = requests(&mut rig);
            assert_eq!((asked.len(), asked[0].start), (1, Start::After(place(3))));
            answer(&mut rig, &asked[0], false, 9, &[]);
            let asked = requests(&mut rig);
            assert_eq!(rig.shard.stats.slow_consumers.get(), u64::from(!goes_on));
            if goes_on {
                assert_eq!((asked.len(), asked[0].start), (1, Start::Latest(u64::MAX)));
                answer(&mut rig, &asked[0], true, 8, &[b"ninth"]);
                let got = flushed(&mut rig, id, &mut client);
                let notice = got.find("{\"recovered\":false").expect("a notice");
                assert!(got.contains("\"offset\":8}") && got.find("ninth") > Some(notice), "{got}");
            }
        }
    }
}
