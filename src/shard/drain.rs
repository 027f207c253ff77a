//! The way to a shard's end: it stops accepting, and closes every connection with 1012, evenly over a window.
//!
//! Invariants:
//! 1. A message that was accepted before the drain began reaches a subscriber ahead of its 1012. Each shard sends
//!    a marker to every other when it begins to drain; rings keep order, so whatever it had accepted is here when
//!    its marker is. Until all markers have come ([`MARKER_PATIENCE`]) nobody is closed.
//! 2. Who was connected by the kernel before the listener closed is served like anyone else, and closed in turn. A
//!    listener of a group (SO_REUSEPORT) goes on answering what clients have begun while it ignores what they
//!    begin now: their second attempt, a second later, meets another process of the group. What waits in its
//!    queue is accepted right before it is closed, because the kernel would reset it.
//! 3. Close frames and refusals leave before their sockets are closed: who has got one has [`ANSWER_GRACE`] to answer, and in
//!    any case [`LAST_WORDS_GRACE`] in which what still comes from it is read, for a socket that is closed over unread
//!    bytes is reset, and what was said last could be lost.
//! 4. A socket that was handed over is let go at once: what waits in its queue is for the next process.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::admission::RETRY_AFTER_SECONDS;
use super::listener::{self, Sharing};
use super::message::{ToControl, ToShard};
use super::slab::State;
use super::{Listening, Shard};
use crate::component::{CloseCause, CloseReason};
use crate::ws::Rejection;

/// How long a listener that ignores new clients waits for those that it has answered: their second packet takes
/// one round trip. A client tries again after a second, so this must be well below one.
const LISTENER_GRACE: Duration = Duration::from_millis(400);

/// How long after the window a client that has connected may still take for its request. It is answered with 101 and
/// closed with 1012; later it is refused with 503.
const REQUEST_GRACE: Duration = Duration::from_secs(2);

/// How long after the window a client may still take to answer its close frame.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// What a drain lasts beyond [`REQUEST_GRACE`], or beyond the signal that it is to end at once: time for what is said
/// last to leave, and none for the answers.
const LAST_WORDS_GRACE: Duration = Duration::from_millis(100);

/// How long a drain waits for another shard's marker, which takes microseconds unless that shard is stuck in a
/// callback. Then connections are closed without it, and counted in `drain_markers_missed_total`.
const MARKER_PATIENCE: Duration = Duration::from_secs(2);

/// A drain under way: every connection is closed once, evenly over the window.
#[derive(Debug)]
pub(super) struct Drain {
    began_nanos: u64,
    ends_nanos: u64,
    /// When listeners close.
    listens_until_nanos: u64,
    /// Nobody waits for anything any more: the server is to end at once.
    hurried: bool,
    /// The window is over, and everybody is closed who comes.
    over: bool,
    /// Slots below this have been closed.
    closed_below: u32,
    /// Slots there were when the drain began.
    slots: u32,
}

impl Drain {
    fn new(began_nanos: u64, ends_nanos: u64, slots: u32) -> Self {
        let grace_nanos = LISTENER_GRACE.as_nanos() as u64;
        Self {
            began_nanos,
            ends_nanos,
            listens_until_nanos: ends_nanos.min(began_nanos.saturating_add(grace_nanos)),
            hurried: false,
            over: false,
            closed_below: 0,
            slots,
        }
    }

    /// Ends the window earlier, never later.
    fn shorten(&mut self, ends_nanos: u64) {
        self.ends_nanos = self.ends_nanos.min(ends_nanos);
        self.listens_until_nanos = self.listens_until_nanos.min(ends_nanos);
        self.hurried = true;
    }

    /// When requests come too late to be served.
    fn serves_until(&self) -> u64 {
        let grace_nanos = if self.hurried { 0 } else { REQUEST_GRACE.as_nanos() as u64 };
        self.ends_nanos.saturating_add(grace_nanos)
    }

    /// When all connections are given up.
    fn cut_nanos(&self) -> u64 {
        self.serves_until().saturating_add(LAST_WORDS_GRACE.as_nanos() as u64)
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
    /// Begins to drain; asked again, hurries.
    pub(super) fn begin_drain(&mut self, window_millis: u64, hurried: bool) {
        let ends_nanos = self.now_nanos.saturating_add(window_millis.saturating_mul(1_000_000));
        if hurried {
            // Close frames go out in this very pass.
            self.tick_due_nanos = self.tick_due_nanos.min(self.now_nanos);
        }
        if let Some(drain) = &mut self.drain {
            return drain.shorten(ends_nanos);
        }
        let drain = Drain::new(self.now_nanos, ends_nanos, self.slab.len());
        self.drain = Some(Drain { hurried, ..drain });
        let others = (0..self.mesh.shards()).filter(|&shard| shard != self.mesh.shard());
        for shard in others.collect::<Vec<_>>() {
            self.mesh.send(shard, ToShard::DrainMarker);
        }
        for number in 0..self.listeners.len() {
            let Listening { socket, sharing, .. } = &self.listeners[number];
            let goes_on = match (socket, sharing) {
                (Some(socket), Sharing::Group) => listener::ignore_new_clients(socket).is_ok(),
                _ => false,
            };
            if !goes_on {
                self.stop_listening(number);
            }
        }
    }

    /// Whatever the sender had accepted when its drain began is here.
    pub(super) fn on_drain_marker(&mut self) {
        self.markers_awaited = self.markers_awaited.saturating_sub(1);
    }

    /// Whether a request comes too late to be served.
    pub(super) fn is_too_late(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| self.now_nanos >= drain.serves_until())
    }

    /// Does what is due; called with each tick.
    pub(super) fn drain_due(&mut self) {
        let Some(drain) = &self.drain else { return };
        if self.now_nanos >= drain.listens_until_nanos {
            // Again with each tick, in case the kernel could not cancel in the midst of something.
            (0..self.listeners.len()).for_each(|number| self.stop_listening(number));
        }
        if self.awaits_markers() {
            return;
        }
        let Some(drain) = &mut self.drain else { return };
        // Once the window is over this takes in whoever came since the drain began, whatever the slot.
        let over = self.now_nanos >= drain.ends_nanos;
        if over && !std::mem::replace(&mut drain.over, true) {
            self.close_deadlines.set_length(ANSWER_GRACE, self.now_nanos);
        }
        let too_late = self.now_nanos >= drain.serves_until();
        let (from, to) = match over {
            true => (0, self.slab.len()),
            false => (drain.closed_below, drain.due(self.now_nanos)),
        };
        drain.closed_below = drain.closed_below.max(to);
        let cut_nanos = drain.cut_nanos();
        // What arrived in this pass goes out ahead of the close frames.
        self.fan_out_before_leaving();
        for index in from..to {
            match self.slab[index].state {
                State::Open => {
                    let text = "server is restarting".to_owned();
                    self.begin_close(index, CloseReason { code: 1012, text, cause: CloseCause::Drain });
                }
                State::Handshake if too_late => {
                    let reason = "the server is shutting down";
                    self.reject(index, &Rejection::unavailable(reason, RETRY_AFTER_SECONDS));
                }
                _ => {}
            }
        }
        if self.now_nanos >= cut_nanos {
            self.cut_all();
        }
    }

    /// Whether something that was accepted before the drain may still be on its way here.
    fn awaits_markers(&mut self) -> bool {
        let Some(drain) = &self.drain else { return false };
        if self.markers_awaited == 0 || drain.hurried {
            return false;
        }
        let patience_nanos = MARKER_PATIENCE.as_nanos() as u64;
        if self.now_nanos < drain.began_nanos.saturating_add(patience_nanos) {
            return true;
        }
        self.stats.drain_markers_missed.add(self.markers_awaited as u64);
        self.markers_awaited = 0;
        false
    }

    /// Closes a listener, after its last completion if it is armed.
    fn stop_listening(&mut self, number: usize) {
        self.listeners[number].stopped = true;
        if self.listeners[number].armed {
            self.ring.cancel_accept(number as u32);
        } else {
            self.close_listener(number);
        }
    }

    /// Closes a listener that is not armed.
    pub(super) fn close_listener(&mut self, number: usize) {
        let listener = &mut self.listeners[number];
        let Some(socket) = listener.socket.take() else { return };
        if listener.sharing != Sharing::Group || socket.set_nonblocking(true).is_err() {
            return;
        }
        // Without the filter new clients may come as fast as they are taken: not more than a queue full of them.
        for _ in 0..=listener::BACKLOG {
            match socket.accept().and_then(|(client, _)| prepared(client)) {
                Ok(client) => self.admit(client),
                Err(_) => return,
            }
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

    /// Notes that a connection is given up whose time to answer its close frame is over.
    pub(super) fn note_cut(&mut self, index: u32) {
        let is_over = self.drain.as_ref().is_some_and(|drain| drain.over);
        self.cut += u64::from(is_over && self.slab[index].state == State::Closing);
    }

    /// Gives every connection up.
    pub(super) fn cut_all(&mut self) {
        self.cut += self.stats.connections.get();
        (0..self.slab.len()).for_each(|index| self.kill(index, CloseCause::Drain));
    }
}

fn prepared(client: TcpStream) -> io::Result<TcpStream> {
    client.set_nonblocking(true)?;
    Ok(client)
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

    #[test]
    fn a_drain_ends_soon_after_its_window() {
        let (request, last_words) = (REQUEST_GRACE.as_nanos() as u64, LAST_WORDS_GRACE.as_nanos() as u64);
        let mut drain = Drain::new(0, 5_000, 1);
        assert_eq!(drain.cut_nanos(), 5_000 + request + last_words);
        drain.shorten(3_000);
        assert_eq!(drain.cut_nanos(), 3_000 + last_words);
        assert!(ANSWER_GRACE < REQUEST_GRACE);
    }

    #[test]
    fn listeners_close_soon_and_never_after_the_window() {
        let grace = LISTENER_GRACE.as_nanos() as u64;
        let mut drain = Drain::new(1_000, 10 * grace, 50);
        assert_eq!(drain.listens_until_nanos, 1_000 + grace);
        drain.shorten(2_000);
        assert_eq!(drain.listens_until_nanos, 2_000);
        assert_eq!(Drain::new(5, 5, 7).listens_until_nanos, 5);
    }
}
