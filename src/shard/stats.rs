//! Counters of one shard, readable from any thread.
//!
//! Exactly one thread writes: the shard itself. So a counter is moved by a relaxed load and store instead of
//! a locked instruction, and readers see each number whole, if slightly late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::REFUSAL_RESERVE;
use crate::ws::RejectReason;

/// A number that its shard alone moves.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds; only the owning shard may call this.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// Subtracts; only the owning shard may call this.
    pub fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    /// Sets; only the owning shard may call this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Reads, from any thread.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Labels of [`ShardStats::closed`]: one per close code of RFC 6455 section 7.4.1, the ranges for libraries
/// and applications as one label each, to keep the number of time series bounded.
pub const CLOSE_LABELS: [&str; 18] = [
    "1000",
    "1001",
    "1002",
    "1003",
    "1004",
    "1005",
    "1006",
    "1007",
    "1008",
    "1009",
    "1010",
    "1011",
    "1012",
    "1013",
    "1014",
    "1015",
    "3000-3999",
    "4000-4999",
];

/// Index into [`CLOSE_LABELS`] of a close code.
#[must_use]
pub fn close_label(code: u16) -> usize {
    match code {
        1000..=1015 => usize::from(code - 1000),
        3000..=3999 => 16,
        4000..=4999 => 17,
        _ => 6,
    }
}

/// Why a message did not reach a subscriber that was subscribed when it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The subscriber's send queue was full and the policy gave it up.
    SlowConsumer,
    /// The publish was refused by the topic's owner, as a ring to a subscriber and its overflow were full. One that was
    /// refused on its way to the owner is not among them: nobody there knows the subscribers.
    RingFull,
}

impl DropReason {
    /// All reasons, in the order of [`ShardStats::dropped`].
    pub const ALL: [Self; 2] = [Self::SlowConsumer, Self::RingFull];

    /// The label of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SlowConsumer => "slow_consumer",
            Self::RingFull => "ring_full",
        }
    }
}

/// Why a connection's turn ended although it had brought more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// Its messages had so many bytes.
    Messages,
    /// So many bytes of answers had been queued.
    Answers,
}

impl TurnEnd {
    /// All of them, in the order of [`ShardStats::turns_ended`].
    pub const ALL: [Self; 2] = [Self::Messages, Self::Answers];

    /// The label of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Answers => "answers",
        }
    }
}

/// Counters of one shard. Names follow the metrics they feed.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardStats {
    /// The CPU that the shard is pinned to.
    pub cpu: usize,
    /// WebSocket connections open now.
    pub connections: Cell,
    /// Sockets held now in any state: handshaking, open, closing.
    pub sockets: Cell,
    /// Those of them that were not accepted beyond a limit, only to be refused.
    pub places: Cell,
    /// WebSocket connections opened.
    pub opened: Cell,
    /// WebSocket connections closed, by [`CLOSE_LABELS`].
    pub closed: [Cell; CLOSE_LABELS.len()],
    /// Handshakes refused, by [`RejectReason::index`].
    pub rejected: [Cell; RejectReason::ALL.len()],
    /// Subscriptions now (a connection with three topics has three).
    pub subscriptions: Cell,
    /// Topics that this shard owns now.
    pub topics: Cell,
    /// Subscriptions refused to components because the connection has as many as it may have.
    pub subscriptions_refused: Cell,
    /// Subscriptions to new topics that this shard's share of the limit on topics had no room for.
    pub topics_refused_subscribers: Cell,
    /// Publishes to such.
    pub topics_refused_publishes: Cell,
    /// Publishes that this shard refused because a ring and its overflow were full: the publisher was told.
    pub ring_full_publishes: Cell,
    /// Messages accepted from WebSocket clients by this shard as owner.
    pub publishes_websocket: Cell,
    /// Messages accepted from components that publish for themselves by this shard as owner.
    pub publishes_component: Cell,
    /// Messages accepted from the control port by this shard as owner.
    pub publishes_http: Cell,
    /// Messages accepted from other threads of the program by this shard as owner.
    pub publishes_thread: Cell,
    /// Messages handed to the kernel or to a connection's send queue.
    pub deliveries: Cell,
    /// Bytes of those messages, frame headers included.
    pub delivery_bytes: Cell,
    /// Messages not delivered, in the order of [`DropReason::ALL`].
    pub dropped: [Cell; DropReason::ALL.len()],
    /// Connections that met their send queue's limit.
    pub slow_consumers: Cell,
    /// Pings of clients at their send queue's limit that the answer to a later one stands for.
    pub pongs_left_out: Cell,
    /// Other shards' drain markers that did not come in time.
    pub drain_markers_missed: Cell,
    /// Connections dropped because they answered no ping.
    pub keepalive_timeouts: Cell,
    /// Bytes that wait in send queues now.
    pub send_queue_bytes: Cell,
    /// Times the ring to shard `i` was full.
    pub ring_full: Box<[Cell]>,
    /// Nanoseconds by which passes were later than their tick asked for.
    pub loop_stall_nanos: Cell,
    /// Messages kept in history now.
    pub history_messages: Cell,
    /// Bytes of those messages in memory.
    pub history_bytes: Cell,
    /// Messages let go before their time because of the bound on bytes.
    pub history_evicted: Cell,
    /// Subscriptions that were to begin in the past: those that could not, those that could.
    pub resumes: [Cell; 2],
    /// Messages compressed: one for each publish and window size in use, however many subscribers there are.
    pub compressions: Cell,
    /// Panics caught in callbacks of components and in their tasks.
    pub callback_panics: Cell,
    /// Errors that callbacks of components and their tasks returned.
    pub callback_errors: Cell,
    /// Connections closed because they sent more messages than a rate limit lets pass.
    pub rate_limited: Cell,
    /// Turns of connections that ended early, in the order of [`TurnEnd::ALL`].
    pub turns_ended: [Cell; TurnEnd::ALL.len()],
    /// Time of the last tick, in nanoseconds of [`crate::clock::monotonic_nanos`].
    pub last_tick_nanos: Cell,
}

impl ShardStats {
    /// All zero, for a shard pinned to `cpu`, one of `shards`.
    #[must_use]
    pub fn new(cpu: usize, shards: usize) -> Self {
        Self {
            cpu,
            connections: Cell::default(),
            sockets: Cell::default(),
            places: Cell::default(),
            opened: Cell::default(),
            closed: Default::default(),
            rejected: Default::default(),
            subscriptions: Cell::default(),
            topics: Cell::default(),
            subscriptions_refused: Cell::default(),
            topics_refused_subscribers: Cell::default(),
            topics_refused_publishes: Cell::default(),
            ring_full_publishes: Cell::default(),
            publishes_websocket: Cell::default(),
            publishes_component: Cell::default(),
            publishes_http: Cell::default(),
            publishes_thread: Cell::default(),
            deliveries: Cell::default(),
            delivery_bytes: Cell::default(),
            dropped: Default::default(),
            slow_consumers: Cell::default(),
            pongs_left_out: Cell::default(),
            drain_markers_missed: Cell::default(),
            keepalive_timeouts: Cell::default(),
            send_queue_bytes: Cell::default(),
            ring_full: (0..shards).map(|_| Cell::default()).collect(),
            loop_stall_nanos: Cell::default(),
            history_messages: Cell::default(),
            history_bytes: Cell::default(),
            history_evicted: Cell::default(),
            resumes: Default::default(),
            compressions: Cell::default(),
            callback_panics: Cell::default(),
            callback_errors: Cell::default(),
            rate_limited: Cell::default(),
            turns_ended: Default::default(),
            last_tick_nanos: Cell::default(),
        }
    }
}

/// How many of the places that `--max-connections` gives are taken: by connections, and by clients that have yet to ask
/// for one, or have been closed and have not gone. Clients that are to be refused take one of the reserve for that, and
/// a place only beyond it; so there are never more sockets than places and reserve.
///
/// Shards count while this adds up. Who waits to be refused is in no sum of places at any time, so that their coming and
/// going makes room for nobody.
#[must_use]
pub fn places_taken(shards: &[Arc<ShardStats>]) -> u64 {
    let sum = |of: fn(&ShardStats) -> &Cell| shards.iter().map(|stats| of(stats).get()).sum::<u64>();
    sum(|stats| &stats.places).max(sum(|stats| &stats.sockets).saturating_sub(REFUSAL_RESERVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_code_has_a_label() {
        for code in 0..=u16::MAX {
            let label = CLOSE_LABELS[close_label(code)];
            match code {
                1000..=1015 => assert_eq!(label, code.to_string()),
                3000..=3999 => assert_eq!(label, "3000-3999"),
                4000..=4999 => assert_eq!(label, "4000-4999"),
                _ => assert_eq!(label, "1006"),
            }
        }
    }

    #[test]
    fn those_to_be_refused_take_a_place_only_beyond_their_reserve() {
        let shards = [(); 2].map(|()| Arc::new(ShardStats::new(0, 2)));
        let taken = |places: [u64; 2], refusing: [u64; 2]| {
            for (stats, (places, refusing)) in shards.iter().zip(places.into_iter().zip(refusing)) {
                stats.sockets.set(places + refusing);
                stats.places.set(places);
            }
            places_taken(&shards)
        };
        assert_eq!(taken([5, 3], [0, 0]), 8);
        assert_eq!(taken([5, 3], [2, 1]), 8);
        assert_eq!(taken([5, 3], [REFUSAL_RESERVE, 10]), 8 + 10);
    }

    #[test]
    fn a_cell_counts() {
        let cell = Cell::default();
        cell.add(5);
        cell.subtract(2);
        assert_eq!(cell.get(), 3);
        cell.set(9);
        assert_eq!(cell.get(), 9);
    }
}
