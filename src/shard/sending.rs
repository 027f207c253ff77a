//! Bytes to sockets: staged sends and send queues.
//!
//! Invariants:
//! 1. What goes to one connection goes in order: while it has a send queue everything is queued behind, and it
//!    has at most one send in a batch.
//! 2. Nothing here ends a session or changes a topic's list, because a fan-out may be under way: what failed
//!    or overflowed is noted and ended afterwards ([`Shard::end_broken`], [`Shard::end_overflowed`]).

use super::Shard;
use super::batch::Payload;
use super::outbound::{Piece, Progress};
use super::ring::ShortSend;
use super::slab::State;
use super::stats::DropReason;
use crate::component::CloseCause;
use crate::config::SlowConsumer;
use crate::connection_id::ConnectionId;
use crate::ws::ServerHeader;
use crate::ws::frame::{OpCode, PONG};

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
            let held = self.batch.hold(payload);
            self.batch.stage(&mut self.ring, id.slot, &held, socket);
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
    pub(super) fn enqueue(&mut self, index: u32, piece: Piece, sent: usize) {
        let bytes = piece.len() - sent;
        if self.is_over(index, bytes) {
            if let Piece::Bytes(frames) = &piece {
                debug_assert_eq!(sent, 0, "only a first piece may have begun, and the first has room");
                return self.enqueue_apart(index, frames);
            }
            if !self.make_room(index, &piece, bytes) {
                return;
            }
        }
        if let (Piece::Frame { topic, .. }, Some(outbound)) = (&piece, &mut self.slab[index].outbound) {
            if let Some(last) = outbound.take_gap(*topic) {
                self.tell_gap(index, *topic, last);
            }
        }
        self.queue(index, piece, sent);
    }

    fn is_over(&self, index: u32, bytes: usize) -> bool {
        let outbound = self.slab[index].outbound.as_ref();
        outbound.is_some_and(|outbound| outbound.is_over(bytes, self.settings.send_queue_bytes))
    }

    /// Queues frames for one connection that together are over the limit: control frames beyond it, and messages until
    /// there is no room for one.
    fn enqueue_apart(&mut self, index: u32, mut frames: &[u8]) {
        let mut is_full = false;
        while let Some((opcode, length)) = ServerHeader::first_of(frames) {
            let (frame, rest) = frames.split_at(length.min(frames.len()));
            frames = rest;
            if matches!(opcode, OpCode::Control(_)) {
                self.queue_control(index, frame);
                continue;
            }
            let piece = Piece::Bytes(frame.into());
            is_full |= self.is_over(index, frame.len()) && !self.make_room(index, &piece, frame.len());
            if self.slab[index].sealed {
                return;
            }
            if !is_full {
                self.queue(index, piece, 0);
            }
        }
    }

    /// Queues a control frame of the server's own in a send queue that there is, beyond its limit.
    pub(super) fn queue_control(&mut self, index: u32, frame: &[u8]) {
        let Some(outbound) = &mut self.slab[index].outbound else { return };
        let before = outbound.queued_bytes();
        let replaced = outbound.push_control(frame.into());
        self.stats.send_queue_bytes.add(outbound.queued_bytes() as u64);
        self.stats.send_queue_bytes.subtract(before as u64);
        self.stats.pongs_left_out.add(u64::from(replaced && frame[0] == 0x80 | u8::from(PONG)));
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
        if outbound.holds == 0 {
            self.watch_writable(index);
        }
    }

    /// Watches for room in the socket, unless that is watched for already.
    fn watch_writable(&mut self, index: u32) {
        let slot = &mut self.slab[index];
        if slot.watching_writable {
            return;
        }
        slot.watching_writable = true;
        if let Some(socket) = slot.descriptor() {
            self.ring.watch_writable(index, slot.generation, socket, slot.peer_ended);
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

    pub(super) fn on_writable(&mut self, index: u32, generation: u32, more: bool) {
        let slot = &mut self.slab[index];
        if slot.state == State::Free || !super::ring::same_generation(slot.generation, generation) {
            return;
        }
        slot.watching_writable = more;
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
            Ok(Progress::Blocked) => self.watch_writable(index),
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

    pub(super) fn is_staged(&self, index: u32) -> bool {
        self.batch.is_staged() && self.slab[index].staged_in == self.batch.number()
    }

    // ---- the batch ----

    /// Hands all staged sends to the kernel and queues what it did not take.
    pub(super) fn flush_batch(&mut self) {
        self.submit();
        self.queue_short_sends();
        self.batch.release();
    }

    pub(super) fn submit(&mut self) {
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
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::shard::outbound::Piece;
    use crate::shard::test_rig::{Rig, received};

    #[test]
    fn a_close_frame_behind_a_message_without_room_is_not_lost() {
        let mut rig = Rig::new(|config: &mut Config| config.send_queue_bytes = 2000);
        let (id, mut client) = rig.connect();
        rig.shard.queue(id.slot, Piece::Bytes([&[0x82, 126, 7, 0xD0][..], &[0; 2000]].concat().into()), 0);
        let full = [&[0x82, 100][..], &[1; 100]].concat();
        let close = [0x88, 2, 3, 232];
        rig.shard.slab[id.slot].state = crate::shard::slab::State::Finishing;
        rig.shard.enqueue(id.slot, Piece::Bytes([&full[..], &close].concat().into()), 0);
        rig.shard.send_queued(id.slot);
        let got = received(&mut client);
        assert_eq!((got.len(), &got[got.len() - 4..]), (2004 + 4, &close[..]));
    }
}
