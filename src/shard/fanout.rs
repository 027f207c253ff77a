//! Bytes to sockets: staged sends, send queues, broadcasts.
//!
//! Invariants:
//! 1. What goes to one connection goes in order: while it has a send queue everything is queued behind, and it
//!    has at most one send in a batch.
//! 2. Nothing here ends a session or changes a topic's list, because a fan-out may be under way: what failed
//!    or overflowed is noted and ended afterwards ([`Shard::end_broken`], [`Shard::end_overflowed`]).

use std::sync::Arc;

use super::Shard;
use super::batch::{Broadcast, Payload};
use super::outbound::{Piece, Progress};
use super::ring::ShortSend;
use super::shared_pages::{Place, SharedPages};
use super::slab::State;
use super::stats::DropReason;
use super::topics::CATCHING_UP;
use crate::clock;
use crate::component::CloseCause;
use crate::compression::Encoding;
use crate::config::SlowConsumer;
use crate::connection_id::ConnectionId;
use crate::frame::Frame;

/// Most bytes of one topic that are joined into one send; more leave in several.
const MAX_JOINED_BYTES: usize = 256 * 1024;

/// One encoding of a broadcast that is under way.
#[derive(Clone, Copy)]
struct Held {
    /// Its number in the batch.
    payload: u32,
    length: usize,
    /// Where it lies, if it goes out from shared pages.
    place: Option<Place>,
}

impl Shard {
    // ---- to one connection ----

    /// Sends a payload, of the held arena or shared, to one connection.
    pub(super) fn send_direct(&mut self, id: ConnectionId, payload: Payload) {
        let Some(slot) = self.slab.find(id) else { return };
        if slot.sealed || matches!(slot.state, State::Dead | State::Free) {
            return;
        }
        if slot.outbound.is_none() && self.batch.is_staged() && slot.staged_in == self.batch.number() {
            self.flush_batch();
        }
        let slot = &mut self.slab[id.slot];
        if slot.sealed {
            return;
        }
        if slot.outbound.is_some() {
            let piece = self.piece_of(&payload);
            return self.enqueue(id.slot, piece, 0);
        }
        if self.batch.is_full() {
            self.flush_batch();
        }
        let slot = &mut self.slab[id.slot];
        slot.staged_in = self.batch.number();
        if let Some(socket) = slot.descriptor() {
            let payload = self.batch.hold(payload);
            self.batch.stage(&mut self.ring, id.slot, payload, socket);
        }
    }

    /// A payload for one connection as its send queue holds it.
    fn piece_of(&self, payload: &Payload) -> Piece {
        match payload {
            Payload::Shared(bytes) => Piece::Shared(bytes.clone()),
            Payload::Direct(span) => Piece::Bytes(self.batch.arena_bytes(*span).into()),
            Payload::Broadcast(broadcast) => Piece::Bytes(broadcast.bytes().into()),
        }
    }

    /// Queues a piece behind what waits already; beyond the limit the policy for slow consumers decides.
    fn enqueue(&mut self, index: u32, piece: Piece, sent: usize) {
        let bytes = piece.len() - sent;
        let outbound = self.slab[index].outbound.as_ref();
        if outbound.is_some_and(|outbound| outbound.is_over(bytes, self.settings.send_queue_bytes))
            && !self.make_room(index, &piece, bytes)
        {
            return;
        }
        if let (Piece::Frame { topic, .. }, Some(outbound)) = (&piece, &mut self.slab[index].outbound) {
            if let Some(last) = outbound.take_gap(*topic) {
                self.tell_gap(index, *topic, last);
            }
        }
        self.queue(index, piece, sent);
    }

    /// Queues a piece behind what waits already, whatever that is.
    pub(super) fn queue(&mut self, index: u32, piece: Piece, sent: usize) {
        let id = self.slab.id(index);
        let slot = &mut self.slab[index];
        let outbound = match &mut slot.outbound {
            Some(outbound) => outbound,
            none => {
                let outbound = none.insert(Box::default());
                self.context.show_queue(id, outbound.shown_bytes());
                outbound
            }
        };
        let before = outbound.queued_bytes();
        outbound.push(piece, sent);
        self.stats.send_queue_bytes.add((outbound.queued_bytes() - before) as u64);
        if outbound.holds == 0 && !slot.watching_writable {
            slot.watching_writable = true;
            if let Some(socket) = slot.descriptor() {
                self.ring.watch_writable(index, slot.generation, socket);
            }
        }
    }

    /// Does with a full send queue what the policy for slow consumers says; false if the piece is not to be queued.
    fn make_room(&mut self, index: u32, piece: &Piece, bytes: usize) -> bool {
        let slot = &mut self.slab[index];
        let Some(outbound) = &mut slot.outbound else { return false };
        let before = outbound.queued_bytes();
        let (dropped, is_dropped_itself) = match (self.settings.slow_consumer, piece) {
            (SlowConsumer::Drop, Piece::Frame { frame, topic, .. }) => {
                if let (true, Some(position)) = (slot.wants_notices, frame.position()) {
                    outbound.note_gap(*topic, position);
                }
                (1, true)
            }
            (SlowConsumer::Latest, Piece::Frame { topic, .. }) => (outbound.keep_latest(*topic), false),
            _ => (0, false),
        };
        self.stats.dropped[DropReason::SlowConsumer as usize].add(dropped as u64);
        self.stats.send_queue_bytes.subtract((before - outbound.queued_bytes()) as u64);
        let is_first = dropped > 0 && !std::mem::replace(&mut outbound.met_limit, true);
        let fits = !outbound.is_over(bytes, self.settings.send_queue_bytes);
        if is_first {
            self.stats.slow_consumers.add(1);
            let peer = slot.peer().map(tracing::field::display);
            tracing::warn!(shard = self.context.shard(), peer, "slow consumer, dropping messages for it");
        }
        if !fits && !is_dropped_itself && matches!(slot.state, State::Open | State::Closing) {
            self.overflow(index);
        }
        fits && !is_dropped_itself
    }

    pub(super) fn on_writable(&mut self, index: u32, generation: u32) {
        let slot = &mut self.slab[index];
        if slot.state == State::Free || !super::ring::same_generation(slot.generation, generation) {
            return;
        }
        slot.watching_writable = false;
        if slot.state == State::Dead {
            return self.free_if_unwatched(index);
        }
        let was_behind = slot.outbound.is_some();
        self.send_queued(index);
        let slot = &self.slab[index];
        if was_behind && slot.outbound.is_none() && slot.state == State::Open {
            let (id, route) = (self.slab.id(index), slot.route);
            self.call(id, route, None, |component, connection| component.on_drain(connection));
        }
    }

    /// Sends what a connection's queue holds and its socket takes.
    pub(super) fn send_queued(&mut self, index: u32) {
        let slot = &mut self.slab[index];
        let (Some(outbound), Some(socket)) = (&mut slot.outbound, &slot.socket) else {
            return;
        };
        if outbound.holds > 0 {
            return;
        }
        let before = outbound.queued_bytes();
        let progress = outbound.send(socket);
        self.stats.send_queue_bytes.subtract((before - outbound.queued_bytes()) as u64);
        match progress {
            Ok(Progress::Empty) if outbound.has_gaps() => {
                for (topic, last) in outbound.take_gaps() {
                    self.tell_gap(index, topic, last);
                }
                // With nothing to tell after all, the queue is as empty as it was.
                self.send_queued(index);
            }
            Ok(Progress::Empty) => {
                slot.outbound = None;
                self.context.unshow_queue(index);
                self.catch_ups.note_empty(index);
                // More may have been asked for in this pass: whether all is sent is judged at its end.
                if matches!(slot.state, State::Finishing | State::Linger) {
                    self.ending.push(index);
                }
            }
            Ok(Progress::Blocked) if slot.watching_writable => {}
            Ok(Progress::Blocked) => {
                slot.watching_writable = true;
                self.ring.watch_writable(index, slot.generation, std::os::fd::AsFd::as_fd(socket));
            }
            Err(_) => {
                let id = self.slab.id(index);
                self.broken.push(id);
            }
        }
    }

    /// One reason less to hold back what is queued.
    pub(super) fn release_hold(&mut self, id: ConnectionId) {
        let Some(slot) = self.slab.find(id) else { return };
        let Some(outbound) = &mut slot.outbound else {
            return;
        };
        if outbound.holds > 0 {
            outbound.holds -= 1;
            if outbound.holds == 0 {
                self.send_queued(id.slot);
            }
        }
    }

    // ---- to all subscribers ----

    /// Stages what is pending in every topic.
    pub(super) fn fan_out(&mut self) {
        self.pending_bytes = 0;
        while let Some(topic) = self.local.next_dirty() {
            let entry = self.local.get_mut(topic);
            let stay = entry.stay;
            let pending = std::mem::take(&mut entry.pending);
            let subscribers = std::mem::take(&mut entry.subscribers);
            if !subscribers.is_empty() {
                let mut rest = pending.as_slice();
                while !rest.is_empty() {
                    let (group, next) = rest.split_at(joinable(rest));
                    self.broadcast_group(topic, stay, group, &subscribers);
                    rest = next;
                }
            }
            let entry = self.local.get_mut(topic);
            debug_assert!(entry.subscribers.is_empty());
            entry.subscribers = subscribers;
            for (id, skip) in std::mem::take(&mut entry.arriving) {
                self.welcome(topic, stay, id, &pending[skip..]);
            }
            self.unflushed.extend(pending);
        }
    }

    /// Lists a subscriber that has caught up, and sends it what has come since.
    fn welcome(&mut self, topic: u32, stay: u64, id: ConnectionId, mut rest: &[Arc<Frame>]) {
        if self.slab.find(id).is_none() || !self.local.list(topic, &mut self.slab, id.slot) {
            return;
        }
        while !rest.is_empty() {
            let (group, next) = rest.split_at(joinable(rest));
            self.broadcast_group(topic, stay, group, &[id.slot]);
            rest = next;
        }
    }

    /// Sends the frames of a group to all subscribers but, of each frame, its excepted one.
    fn broadcast_group(&mut self, topic: u32, stay: u64, group: &[Arc<Frame>], subscribers: &[u32]) {
        if group.iter().all(|frame| frame.except().is_none()) {
            return self.broadcast(stay, group, subscribers);
        }
        let mut excluded = Vec::new();
        for id in group.iter().filter_map(|frame| frame.except()) {
            if id.shard == self.context.shard() {
                if let Some(slot) = self.slab.find(id).filter(|slot| !slot.excluded) {
                    slot.excluded = true;
                    excluded.push(id);
                }
            }
        }
        self.broadcast(stay, group, subscribers);
        for id in excluded {
            let slot = &mut self.slab[id.slot];
            slot.excluded = false;
            // One that publishes to a topic without subscribing to it gets nothing at all.
            let is_subscriber = match subscribers {
                [one] => *one == id.slot,
                _ => {
                    let mut places = slot.subscriptions.as_slice().iter();
                    places.any(|place| place.topic == topic && place.position & CATCHING_UP == 0)
                }
            };
            let others: Vec<_> = group.iter().filter(|frame| frame.except() != Some(id)).cloned().collect();
            if is_subscriber && !others.is_empty() {
                self.broadcast(stay, &others, &[id.slot]);
            }
        }
    }

    /// Stages one send per subscriber with all the frames of a group.
    fn broadcast(&mut self, topic: u64, group: &[Arc<Frame>], subscribers: &[u32]) {
        // One payload per encoding in use, held when the first subscriber of that encoding comes.
        let mut payloads = [None; Encoding::COUNT];
        let (mut bytes, mut served) = (0, 0);
        for &index in subscribers {
            if self.ring.room() == 0 || self.is_staged(index) {
                self.flush_and_hold_again(&mut payloads);
            }
            let slot = &mut self.slab[index];
            if slot.state != State::Open || slot.excluded {
                continue;
            }
            let encoding = slot.form();
            let Held { payload, length, place } = *payloads[encoding.index()].get_or_insert_with(|| {
                let broadcast = Broadcast::new(topic, group.to_vec(), encoding);
                let length = broadcast.bytes().len();
                let is_large = SharedPages::serves(length, subscribers.len());
                let place = if is_large { self.pages.hold(broadcast.bytes()) } else { None };
                Held { payload: self.batch.hold(Payload::Broadcast(broadcast)), length, place }
            });
            bytes += length;
            served += 1;
            if slot.outbound.is_some() {
                self.enqueue_broadcast(index, payload, 0);
                continue;
            }
            if let Some(place) = place {
                self.send_from_pages(index, payload, place);
                continue;
            }
            slot.staged_in = self.batch.number();
            if let Some(socket) = slot.descriptor() {
                self.batch.stage(&mut self.ring, index, payload, socket);
            }
        }
        self.pages.release();
        self.stats.deliveries.add(served * group.len() as u64);
        self.stats.delivery_bytes.add(bytes as u64);
    }

    /// Sends a large broadcast at once. Nothing is staged for the connection.
    fn send_from_pages(&mut self, index: u32, payload: u32, place: Place) {
        let Some(socket) = self.slab[index].descriptor() else { return };
        match self.pages.send(socket, place) {
            Ok(sent) if sent == place.length() => {}
            Ok(sent) => self.enqueue_broadcast(index, payload, sent),
            Err(_) => {
                let id = self.slab.id(index);
                self.broken.push(id);
            }
        }
    }

    pub(super) fn is_staged(&self, index: u32) -> bool {
        self.batch.is_staged() && self.slab[index].staged_in == self.batch.number()
    }

    /// Queues the frames of a broadcast of which the first `sent` bytes have gone out.
    fn enqueue_broadcast(&mut self, index: u32, payload: u32, mut sent: usize) {
        let Payload::Broadcast(broadcast) = self.batch.payload_mut(payload) else { return };
        let encoding = broadcast.encoding();
        let (topic, frames) = (broadcast.topic(), broadcast.local().to_vec());
        for frame in frames {
            let length = frame.bytes(encoding).len();
            if sent >= length {
                sent -= length;
                continue;
            }
            // A frame that has begun is finished in any case: whatever is said last must stand behind it.
            if sent == 0 && self.slab[index].state != State::Open {
                return;
            }
            self.enqueue(index, Piece::Frame { frame, encoding, topic }, sent);
            sent = 0;
        }
    }

    // ---- the batch ----

    /// Hands all staged sends to the kernel and queues what it did not take.
    pub(super) fn flush_batch(&mut self) {
        self.submit();
        self.queue_short_sends();
        self.batch.release();
    }

    /// As [`Shard::flush_batch`], in the middle of a broadcast: its payloads go on to the next batch.
    fn flush_and_hold_again(&mut self, payloads: &mut [Option<Held>]) {
        self.submit();
        self.queue_short_sends();
        let numbers = payloads.iter().flatten().map(|held| held.payload);
        let kept: Vec<Payload> = numbers.map(|number| self.batch.take(number)).collect();
        self.batch.release();
        for (held, payload) in payloads.iter_mut().flatten().zip(kept) {
            held.payload = self.batch.hold(payload);
        }
    }

    fn submit(&mut self) {
        if let Err(error) = self.ring.submit(&mut self.completions) {
            // Nothing that a peer or a component does leads here: the kernel refuses the ring itself.
            panic!("io_uring_enter: {error}");
        }
        self.batch.submitted(&mut self.ring);
    }

    pub(super) fn queue_short_sends(&mut self) {
        let mut short_sends = std::mem::take(&mut self.completions.short_sends);
        for ShortSend { slot, payload, result } in short_sends.drain(..) {
            if matches!(self.slab[slot].state, State::Dead | State::Free) {
                continue;
            }
            if result < 0 && result != -libc::EAGAIN {
                let id = self.slab.id(slot);
                self.broken.push(id);
                continue;
            }
            let sent = usize::try_from(result).unwrap_or(0);
            if let Payload::Broadcast(_) = self.batch.payload(payload) {
                self.enqueue_broadcast(slot, payload, sent);
            } else {
                let piece = self.piece_of(self.batch.payload(payload));
                self.enqueue(slot, piece, sent);
            }
        }
        self.completions.short_sends = short_sends;
    }

    /// Ends connections whose socket failed.
    pub(super) fn end_broken(&mut self) {
        while let Some(id) = self.broken.pop() {
            if self.slab.find(id).is_some() {
                self.kill(id.slot, CloseCause::Transport);
            }
        }
    }

    /// Notes the fan-out time of the frames that are out, once the last shard has flushed each.
    pub(super) fn note_flushed(&mut self) {
        if self.unflushed.is_empty() {
            return;
        }
        let now = clock::monotonic_nanos();
        for frame in self.unflushed.drain(..) {
            if frame.flushed() {
                let micros = now.saturating_sub(frame.accepted_nanos()) / 1_000;
                self.fanout_micros.saturating_record(micros);
            }
        }
    }
}

/// How many of the first frames are sent as one: at least one, and no more than [`MAX_JOINED_BYTES`].
fn joinable(frames: &[Arc<Frame>]) -> usize {
    let mut bytes = 0;
    let fits = |frame: &&Arc<Frame>| {
        bytes += frame.bytes(Encoding::PLAIN).len();
        bytes <= MAX_JOINED_BYTES
    };
    frames.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::MessageKind;

    #[test]
    fn groups_are_bounded_and_never_empty() {
        let frame = |bytes| Frame::new(MessageKind::Binary, &vec![0; bytes], 0, None);
        let large = frame(MAX_JOINED_BYTES + 1);
        assert_eq!(joinable(&[large.clone(), large]), 1);
        let half = frame(MAX_JOINED_BYTES / 2 - 16);
        assert_eq!(joinable(&[half.clone(), half.clone(), half]), 2);
        assert_eq!(joinable(&[frame(1)]), 1);
    }
}
