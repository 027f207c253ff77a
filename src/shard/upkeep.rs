//! What a shard does by the clock: the tick, keep-alive, deadlines.

use std::time::Duration;

use super::slab::State;
use super::{Shard, TICK, unsent};
use crate::component::CloseCause;
use crate::ws::{RejectReason, ServerHeader, frame::PING};

impl Shard {
    /// Does what is due.
    pub(super) fn tick(&mut self) {
        self.ping_due();
        if self.now_nanos < self.tick_due_nanos {
            return;
        }
        let tick = TICK.as_nanos() as u64;
        let late = self.now_nanos - self.tick_due_nanos;
        if late > tick {
            self.stats.loop_stall_nanos.add(late);
        }
        self.tick_due_nanos = self.now_nanos + tick;
        self.stats.last_tick_nanos.set(self.now_nanos);
        self.context.set_max_subscriptions(self.settings.max_subscriptions);
        self.expire_deadlines();
        self.owned.expire(self.now_nanos);
        self.stats.topics.set(self.owned.len() as u64);
        self.stats.history_messages.set(self.owned.keeper.messages() as u64);
        self.stats.history_bytes.set(self.owned.keeper.bytes() as u64);
        self.stats.history_evicted.set(self.owned.keeper.evicted);
        self.arm_listeners();
        self.drain_due();
    }

    /// Nanoseconds until something is due.
    pub(super) fn until_due(&self) -> u64 {
        let tick = self.tick_due_nanos.saturating_sub(self.now_nanos);
        self.wheels.iter().fold(tick, |until, wheel| until.min(wheel.until_next(self.now_nanos)))
    }

    fn ping_due(&mut self) {
        for number in 0..self.wheels.len() {
            while let Some(bucket) = self.wheels[number].due(self.now_nanos) {
                let interval = self.wheels[number].interval();
                for index in self.wheels[number].members(bucket, self.slab.len()) {
                    let slot = &self.slab[index];
                    if slot.state == State::Open
                        && self.wheel_of_route[usize::from(slot.route)] == Some(number)
                    {
                        self.ping(index, interval);
                    }
                }
            }
        }
    }

    /// Pings an open connection, or drops it when it has been silent since the last ping. A ping does not wait behind what
    /// is queued for a slow reader, but in the kernel it does: as long as bytes wait there, what the peer takes is a sign
    /// of life as well.
    fn ping(&mut self, index: u32, interval: Duration) {
        let slot = &mut self.slab[index];
        let is_taken = || slot.descriptor().is_some_and(|socket| unsent::is_taken(socket, interval));
        if slot.pinged && !slot.heard && !is_taken() {
            self.stats.keepalive_timeouts.add(1);
            let peer = slot.peer().map(tracing::field::display);
            tracing::info!(shard = self.mesh.shard(), peer, "no answer to a ping, disconnecting");
            return self.drop_silent(index);
        }
        slot.pinged = true;
        slot.heard = false;
        let header = ServerHeader::new(PING, false, 0);
        // While a queue is held, the answer to the handshake may still be on its way to it.
        if slot.outbound.as_ref().is_some_and(|outbound| outbound.holds == 0) {
            return self.queue_control(index, header.as_bytes());
        }
        self.context.send_bytes(self.slab.id(index), header.as_bytes(), &[]);
    }

    fn expire_deadlines(&mut self) {
        let now = self.now_nanos;
        loop {
            let slab = &mut self.slab;
            let late = self
                .handshake_deadlines
                .expired(now, |id| slab.find(id).is_some_and(|slot| slot.is_unanswered()));
            if let Some(id) = late {
                self.count_rejected(RejectReason::Timeout);
                self.kill(id.slot, CloseCause::Transport);
                continue;
            }
            let slab = &mut self.slab;
            let ending = [State::Closing, State::Linger, State::Finishing];
            let is_ending = |id| slab.find(id).is_some_and(|slot| ending.contains(&slot.state));
            match self.close_deadlines.expired(now, is_ending) {
                Some(id) => {
                    self.note_cut(id.slot);
                    self.kill(id.slot, CloseCause::Transport);
                }
                None => return,
            }
        }
    }
}
