//! How connections end: closing, failing, overflowing, lingering, freeing the slot.
//!
//! A session ends first ([`Shard::end_session`]: subscriptions, `on_close`, counters), the socket when all is sent
//! ([`Shard::on_all_sent`]), the slot when the kernel watches it no more ([`Shard::free_if_unwatched`]).
//! [`super::connection`] has the picture.

use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::outbound::Piece;
use super::ring::same_generation;
use super::slab::{State, Subscriptions};
use super::{Shard, stats};
use crate::component::{CloseCause, CloseReason};
use crate::ws::{self, CloseCode, ProtocolError, Session};

impl Shard {
    /// The peer broke the protocol: it is told the code, and what it still sends is thrown away.
    pub(super) fn fail(&mut self, index: u32, error: ProtocolError) {
        let code = error.close_code();
        if self.slab[index].state == State::Open {
            self.queue_close(index, code.into(), error.as_str());
        }
        let reason =
            CloseReason { code: code.into(), text: error.as_str().to_owned(), cause: CloseCause::Protocol };
        self.closings.remove(&index);
        self.end_session(index, &reason);
        self.linger(index);
    }

    /// Begins the close handshake from our side: close frame out, then wait for the peer's.
    pub(super) fn begin_close(&mut self, index: u32, reason: CloseReason) {
        // What was published before goes ahead of the close frame; it may be too much.
        self.fan_out_before_leaving();
        if self.slab[index].state != State::Open {
            return;
        }
        let id = self.slab.id(index);
        self.context.begin_closing(id);
        self.unsubscribe_all(index);
        self.queue_close(index, reason.code, &reason.text);
        self.slab[index].state = State::Closing;
        self.closings.insert(index, reason);
        self.close_deadlines.start(id, self.now_nanos);
    }

    /// Drops a peer that does not answer: it is told so if its socket takes it, and not waited for.
    pub(super) fn drop_silent(&mut self, index: u32) {
        let reason = CloseReason {
            code: 1011,
            text: "keepalive ping timeout".to_owned(),
            cause: CloseCause::KeepAlive,
        };
        self.queue_close(index, reason.code, &reason.text);
        self.end_session(index, &reason);
        self.finish(index);
    }

    fn queue_close(&mut self, index: u32, code: u16, text: &str) {
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        ws::close::encode(Some(CloseCode::from(code)), text, &mut frame);
        self.context.send_bytes(self.slab.id(index), &frame, &[]);
        self.scratch = frame;
    }

    /// The send queue of a connection is full: what it has not begun to get is dropped, and it is told 1008.
    /// Called within a fan-out; the rest follows in [`Shard::end_overflowed`].
    pub(super) fn overflow(&mut self, index: u32) {
        let id = self.slab.id(index);
        let slot = &mut self.slab[index];
        slot.sealed = true;
        let counted = slot.outbound.as_ref().is_some_and(|outbound| outbound.met_limit);
        if let Some(outbound) = &mut slot.outbound {
            if outbound.holds > 0 {
                // Not even the 101 has gone out: there is nothing that could be said in a frame.
                self.broken.push(id);
            }
            let before = outbound.queued_bytes();
            let dropped = outbound.drop_unsent();
            let mut frame = Vec::new();
            ws::close::encode(Some(CloseCode::Policy), "slow consumer", &mut frame);
            outbound.holds = 0;
            outbound.push(Piece::Bytes(frame.into()), 0);
            self.stats.send_queue_bytes.add(outbound.queued_bytes() as u64);
            self.stats.send_queue_bytes.subtract(before as u64);
            self.stats.dropped[stats::DropReason::SlowConsumer as usize].add(dropped as u64 + 1);
        }
        self.stats.slow_consumers.add(u64::from(!counted));
        let peer = slot.peer().map(tracing::field::display);
        tracing::warn!(shard = id.shard, peer, "slow consumer, closing it");
        if matches!(slot.state, State::Open | State::Closing) {
            slot.state = State::Linger;
            self.overflowed.push(index);
        }
    }

    /// Ends the sessions of connections that overflowed in this pass.
    pub(super) fn end_overflowed(&mut self) {
        while let Some(index) = self.overflowed.pop() {
            self.end_overflowed_session(index);
            self.linger(index);
        }
    }

    fn end_overflowed_session(&mut self, index: u32) {
        let text = "slow consumer".to_owned();
        self.closings.remove(&index);
        self.end_session(index, &CloseReason { code: 1008, text, cause: CloseCause::SlowConsumer });
    }

    /// The session is over: no more subscriptions, `on_close`, counters. The socket may live on to say so.
    pub(super) fn end_session(&mut self, index: u32, reason: &CloseReason) {
        let id = self.slab.id(index);
        // Its leaving has rounds of its topics finished: it is not served any more, or it might overflow, and end, in its end.
        self.slab[index].excluded = true;
        self.unsubscribe_all(index);
        self.slab[index].excluded = false;
        self.context.begin_closing(id);
        self.message_rates.remove(&index);
        self.stats.connections.subtract(1);
        self.stats.closed[stats::close_label(reason.code)].add(1);
        let peer = || self.slab[index].peer().map(tracing::field::display);
        let (code, cause) = (reason.code, reason.cause);
        tracing::debug!(shard = id.shard, connection = %id, peer = peer(), code, ?cause, "connection closed");
        let route = self.slab[index].route;
        self.call(id, route, None, |component, connection| {
            component.on_close(connection, reason);
            Ok(())
        });
        // Drops what the component attached, and so may run its code.
        let context = &self.context;
        if catch_unwind(AssertUnwindSafe(|| context.gone(id))).is_err() {
            self.stats.callback_panics.add(1);
        }
    }

    fn unsubscribe_all(&mut self, index: u32) {
        if matches!(self.slab[index].subscriptions, Subscriptions::None) {
            return;
        }
        while let Some(&subscription) = self.slab[index].subscriptions.as_slice().last() {
            self.unsubscribe(index, subscription.topic);
        }
        self.slab[index].subscriptions = Subscriptions::None;
    }

    /// The connection ends as soon as what is queued has gone out.
    pub(super) fn finish(&mut self, index: u32) {
        self.end_as(State::Finishing, index);
    }

    /// All is said but for what is queued.
    pub(super) fn linger(&mut self, index: u32) {
        self.end_as(State::Linger, index);
    }

    fn end_as(&mut self, state: State, index: u32) {
        // The time of one whose close frame is queued already goes on: nothing follows that frame.
        let has_deadline = self.slab[index].state == State::Closing;
        self.slab[index].state = state;
        self.ending.push(index);
        if !has_deadline {
            self.close_deadlines.start(self.slab.id(index), self.now_nanos);
        }
    }

    /// Ends what was to end once its bytes are out. Called when this pass's sends are submitted.
    pub(super) fn end_flushed(&mut self) {
        while let Some(index) = self.ending.pop() {
            if self.slab[index].outbound.is_none() {
                self.on_all_sent(index);
            }
        }
    }

    /// Nothing is queued for the connection any more.
    pub(super) fn on_all_sent(&mut self, index: u32) {
        let slot = &mut self.slab[index];
        match slot.state {
            State::Finishing => self.kill(index, CloseCause::Peer),
            State::Linger if slot.peer_ended => self.kill(index, CloseCause::Peer),
            // The peer reads our last words and then the end. What it sends meanwhile is read and thrown
            // away: closing over unread bytes would reset the connection and could take the words with it.
            State::Linger if !slot.write_ended => {
                slot.write_ended = true;
                if let Some(socket) = &slot.socket {
                    if socket.shutdown(Shutdown::Write).is_err() {
                        self.kill(index, CloseCause::Transport);
                    }
                }
            }
            _ => {}
        }
    }

    /// Gives the connection up at once.
    pub(super) fn kill(&mut self, index: u32, cause: CloseCause) {
        let state = self.slab[index].state;
        if matches!(state, State::Dead | State::Free) {
            return;
        }
        // What is held back, the 101 first of all, must not go out because the subscriptions end that it waits for.
        if self.slab[index].outbound.as_ref().is_some_and(|outbound| outbound.holds > 0) {
            self.drop_queue(index);
        }
        if let Some(place) = self.overflowed.iter().position(|&overflowed| overflowed == index) {
            self.overflowed.swap_remove(place);
            self.end_overflowed_session(index);
        } else if matches!(state, State::Open | State::Closing) {
            let abnormal = CloseReason { code: 1006, text: String::new(), cause };
            let reason = self.closings.remove(&index).unwrap_or(abnormal);
            self.end_session(index, &reason);
        }
        self.partial_requests.remove(&index);
        self.put_off.remove(&index);
        let slot = &mut self.slab[index];
        slot.state = State::Dead;
        slot.session = Session::default();
        if slot.watching_readable {
            self.ring.unwatch_readable(index, slot.generation);
        }
        if slot.watching_writable {
            self.ring.unwatch_writable(index, slot.generation);
        }
        self.drop_queue(index);
        self.free_if_unwatched(index);
    }

    fn drop_queue(&mut self, index: u32) {
        if let Some(outbound) = self.slab[index].outbound.take() {
            self.stats.send_queue_bytes.subtract(outbound.queued_bytes() as u64);
            self.context.unshow_queue(index);
        }
    }

    pub(super) fn on_unwatch_readable_failed(&mut self, index: u32, generation: u32) {
        let slot = &self.slab[index];
        if same_generation(slot.generation, generation) && slot.state == State::Dead && slot.watching_readable
        {
            self.ring.unwatch_readable(index, slot.generation);
        }
    }

    pub(super) fn on_unwatch_writable_failed(&mut self, index: u32, generation: u32) {
        let slot = &self.slab[index];
        if same_generation(slot.generation, generation) && slot.state == State::Dead && slot.watching_writable
        {
            self.ring.unwatch_writable(index, slot.generation);
        }
    }

    /// Closes the socket of a dead connection and frees its slot, unless the kernel still watches it.
    pub(super) fn free_if_unwatched(&mut self, index: u32) {
        let slot = &self.slab[index];
        if slot.state != State::Dead || slot.watching_readable || slot.watching_writable {
            return;
        }
        if self.batch.is_staged() && slot.staged_in == self.batch.number() {
            self.flush_batch();
            // A failure of that very send cannot have freed the slot: it is dead, and dead slots are passed by.
        }
        self.forget_admission(index);
        drop(self.slab.remove(index));
        self.stats.sockets.subtract(1);
        self.arm_listeners();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Notice, Start};
    use crate::shard::test_rig::{ELSEWHERE, Rig, received, topic_of};

    #[test]
    fn a_handshake_that_is_given_up_is_not_answered() {
        let mut rig = Rig::new(|_| {});
        let (id, mut client) = rig.connect_held();
        rig.shard.subscribe(id, &topic_of(ELSEWHERE, "live"));
        rig.shard.subscribe_from(id, &topic_of(ELSEWHERE, "past"), Start::Latest(1), Notice::IfLost);
        rig.shard.release_hold(id);
        rig.end_pass();
        assert_eq!(rig.shard.slab[id.slot].outbound.as_ref().map(|outbound| outbound.holds), Some(2));
        rig.shard.kill(id.slot, CloseCause::Transport);
        rig.end_pass();
        assert_eq!(received(&mut client), b"");
        assert_eq!(rig.shard.stats.send_queue_bytes.get(), 0);
        assert_eq!(rig.shard.stats.subscriptions.get(), 0);
    }
}
