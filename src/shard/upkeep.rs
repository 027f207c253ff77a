//! What a shard does by the clock: the tick, keep-alive, deadlines, drain.

use super::message::ToControl;
use super::slab::State;
use super::{CLOSE_TIMEOUT, Shard, TICK};
use crate::component::{CloseCause, CloseReason};
use crate::ws::{RejectReason, ServerHeader, frame::PING};

/// A drain under way: every connection is closed once, evenly over the window.
#[derive(Debug)]
pub(super) struct Drain {
    began_nanos: u64,
    ends_nanos: u64,
    /// Slots below this have been closed.
    closed_below: u32,
    /// Slots there were when the drain began.
    slots: u32,
}

impl Drain {
    pub(super) fn new(began_nanos: u64, ends_nanos: u64, slots: u32) -> Self {
        Self { began_nanos, ends_nanos, closed_below: 0, slots }
    }

    /// Ends the window earlier, never later.
    pub(super) fn shorten(&mut self, ends_nanos: u64) {
        self.ends_nanos = self.ends_nanos.min(ends_nanos);
    }

    /// Slots that are due to be closed by now.
    fn due(&self, now_nanos: u64) -> u32 {
        if now_nanos >= self.ends_nanos {
            return self.slots;
        }
        let window = u128::from(self.ends_nanos - self.began_nanos).max(1);
        let passed = u128::from(now_nanos.saturating_sub(self.began_nanos));
        (u128::from(self.slots) * passed / window) as u32
    }
}

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
                for index in self.wheels[number].members(bucket, self.slab.len()) {
                    let slot = &self.slab[index];
                    if slot.state == State::Open
                        && self.wheel_of_route[usize::from(slot.route)] == Some(number)
                    {
                        self.ping(index);
                    }
                }
            }
        }
    }

    /// Pings an open connection, or drops it when it has been silent since the last ping.
    fn ping(&mut self, index: u32) {
        let slot = &mut self.slab[index];
        if slot.pinged && !slot.heard {
            self.stats.keepalive_timeouts.add(1);
            return self.drop_silent(index);
        }
        slot.pinged = true;
        slot.heard = false;
        let header = ServerHeader::new(PING, false, 0);
        self.context.send_bytes(self.slab.id(index), header.as_bytes(), &[]);
    }

    fn expire_deadlines(&mut self) {
        let now = self.now_nanos;
        loop {
            let slab = &mut self.slab;
            let late = self.handshake_deadlines.expired(now, |id| {
                // An open connection whose 101 is still held back has not been answered either.
                slab.find(id).is_some_and(|slot| {
                    let held = slot.outbound.as_ref().is_some_and(|outbound| outbound.holds > 0);
                    slot.state == State::Handshake || (slot.state == State::Open && held)
                })
            });
            if let Some(id) = late {
                self.stats.rejected[RejectReason::Timeout.index()].add(1);
                self.kill(id.slot, CloseCause::Transport);
                continue;
            }
            let slab = &mut self.slab;
            let ending = [State::Closing, State::Linger, State::Finishing];
            let is_ending = |id| slab.find(id).is_some_and(|slot| ending.contains(&slot.state));
            match self.close_deadlines.expired(now, is_ending) {
                Some(id) => self.kill(id.slot, CloseCause::Transport),
                None => return,
            }
        }
    }

    fn drain_due(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        // Once the window is over this takes in what was accepted while the drain began.
        let over = self.now_nanos >= drain.ends_nanos;
        let (from, to) = (drain.closed_below, if over { self.slab.len() } else { drain.due(self.now_nanos) });
        drain.closed_below = to.max(from);
        let cut_nanos = drain.ends_nanos.saturating_add(CLOSE_TIMEOUT.as_nanos() as u64);
        for index in from..to {
            match self.slab[index].state {
                State::Open => {
                    let text = "server is restarting".to_owned();
                    self.begin_close(index, CloseReason { code: 1012, text, cause: CloseCause::Drain });
                }
                State::Handshake => self.kill(index, CloseCause::Drain),
                _ => {}
            }
        }
        if self.now_nanos >= cut_nanos {
            self.cut_all();
        }
    }

    /// Says once that the shard is drained: nothing is open and nothing accepts.
    pub(super) fn report_drained(&mut self) {
        if self.drain.is_none() || self.drained || self.slab.in_use() > 0 {
            return;
        }
        if self.listeners.iter().all(|listener| listener.socket.is_none()) {
            self.drained = true;
            let shard = self.mesh.shard() as u16;
            self.mesh.send_to_control(ToControl::Drained { shard, cut: self.cut });
        }
    }

    /// Gives every connection up.
    pub(super) fn cut_all(&mut self) {
        self.cut += self.stats.connections.get();
        (0..self.slab.len()).for_each(|index| self.kill(index, CloseCause::Drain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_closes_evenly_and_can_be_shortened() {
        let mut drain = Drain::new(1_000, 2_000, 50);
        assert_eq!(drain.due(1_000), 0);
        assert_eq!(drain.due(1_500), 25);
        assert_eq!(drain.due(1_999), 49);
        assert_eq!(drain.due(2_000), 50);
        drain.shorten(3_000);
        assert_eq!(drain.due(1_500), 25);
        drain.shorten(1_400);
        assert_eq!(drain.due(1_500), 50);
        assert_eq!(Drain::new(5, 5, 7).due(5), 7);
    }
}
