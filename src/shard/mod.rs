//! One core's world: a pinned glommio executor that owns its listeners, connections, topics and keep-alive.
//!
//! Everything here is `!Send` and lives on its shard's thread; nothing but owned messages
//! ([`message::ToShard`]) crosses to another. There is no lock.
//!
//! | Module | Owns |
//! |---|---|
//! | `driver` | the pass: completions, messages, commands, fan-out, sleep |
//! | `connection`, `ending` | a connection's life, from accept to the free slot |
//! | `admission`, `address_counts` | who may connect, and whose address a connection has |
//! | `callbacks`, `tasks` | calls into components, and the tasks that they spawn |
//! | `fanout`, `sweep` | messages of topics to all subscribers, part by part |
//! | `sending` | bytes to sockets: staged sends, send queues |
//! | `publish` | the owner's side of topics, joins, messages from other cores |
//! | `topic_limit` | who is told that there is no room for another topic |
//! | `upkeep` | the tick: keep-alive, deadlines |
//! | `drain` | the way to the end: listeners, close frames, what was accepted before |
//! | `settings` | limits, and their change at run time |
//! | `ring`, `batch` | the io_uring, and the bytes that staged sends refer to |
//! | `shared_pages` | bytes of large broadcasts, which sockets refer to instead of copying |
//! | `slab`, `outbound`, `topics` | state per connection, per slow connection, per topic |
//! | [`mesh`], [`message`] | the rings between cores and what travels in them |
//! | `parking` | sleep in the executor, while user tasks are alive |
//! | `keepalive`, `deadlines` | when connections are looked at |
//! | `unsent` | nothing: what the kernel knows of a slow reader |
//! | [`listener`] | the sockets that accept, one per core and address |
//! | [`stats`] | counters that other threads may read |
//! | `test_rig` | nothing: a shard that unit tests drive by hand |
//! | `bench_support` | nothing: what `bench/` may see of all this, and no build without `bench-internals` has |

mod address_counts;
mod admission;
mod batch;
#[cfg(feature = "bench-internals")]
#[doc(hidden)]
pub mod bench_support;
mod callbacks;
mod catch_up;
mod connection;
mod deadlines;
mod drain;
mod driver;
mod ending;
mod fanout;
mod history;
mod keepalive;
pub mod listener;
pub mod mesh;
pub mod message;
mod outbound;
mod owned_topics;
mod parking;
mod publish;
pub(crate) mod ring;
mod sending;
mod settings;
mod shared_pages;
mod slab;
pub mod stats;
mod sweep;
mod tasks;
#[cfg(test)]
mod test_rig;
mod topic_limit;
mod topics;
mod unsent;
mod upkeep;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::arena::Arena;
use crate::by_slot::BySlot;
use crate::clock;
use crate::component::{CloseReason, Command, Context};
use crate::compression::Compressors;
use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::routes::Routes;
use crate::token_bucket::TokenBucket;
use crate::topic::TopicName;
use crate::ws::{Inflater, Limits};
use address_counts::AddressKey;
use batch::Batch;
use catch_up::CatchUps;
use deadlines::Deadlines;
use drain::Drain;
use keepalive::Wheel;
use listener::{Listener, Sharing};
use mesh::Mesh;
use message::Publisher;
use owned_topics::OwnedTopics;
use ring::{Completions, Ring};
use shared_pages::SharedPages;
use slab::Slab;
use stats::ShardStats;
use tasks::{ShardExecutor, Tasks};
use topics::LocalTopics;

pub use admission::ProcessCounts;
pub use driver::{Handle, spawn};
pub use history::HistoryLimits;
pub use settings::{Settings, Waiting};

/// Longest time between two ticks: the bound on any sleep, and so on what a lost wake-up could cost.
pub const TICK: Duration = Duration::from_millis(100);

/// Bytes read from a socket in one call, and so the most that one connection may bring into a turn.
const RECEIVE_BYTES: usize = 64 * 1024;

/// Bytes of messages after which a connection's turn is over, whatever it has sent beyond them: compressed, a thousandth of
/// that is enough to make so much.
const TURN_BYTES: usize = 256 * 1024;

/// Bytes queued by callbacks at which they are applied before anybody else has a turn.
const APPLY_AT_BYTES: usize = 1024 * 1024;

/// The same in the midst of a turn, which is over then: more than plain messages come to that are answered with as much.
const TURN_QUEUED_BYTES: usize = 2 * APPLY_AT_BYTES;

/// How long a connection that has queued its close frame, or its refusal, has for that to go out and for the peer to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections above a limit that are kept just long enough to be refused with 503; more on a shard are cut at once, and so
/// is everybody while so many sockets are open beyond the limit of the process.
pub const REFUSAL_RESERVE: u64 = 32;

struct Listening {
    socket: Option<TcpListener>,
    sharing: Sharing,
    armed: bool,
    /// It is to be closed, after its last completion.
    stopped: bool,
}

/// One shard.
struct Shard {
    settings: Settings,
    limits: Limits,
    ring: Ring,
    batch: Batch,
    pages: SharedPages,
    completions: Completions,
    slab: Slab,
    local: LocalTopics,
    owned: OwnedTopics,
    catch_ups: CatchUps,
    mesh: Mesh,
    routes: Routes,
    context: Rc<Context>,
    tasks: Rc<Tasks>,
    stats: Arc<ShardStats>,
    /// Counters of all shards, for limits that concern the process.
    all_stats: Arc<[Arc<ShardStats>]>,
    process: Arc<ProcessCounts>,
    /// What connections have been counted as in [`ProcessCounts`], by slot.
    counted: BySlot<AddressKey>,
    /// Addresses that proxies told, of connections whose request is not complete, by slot.
    proxied: BySlot<Option<SocketAddr>>,
    /// How fast connections send that have sent anything, by slot; only where there is a limit.
    message_rates: BySlot<TokenBucket>,
    listeners: Vec<Listening>,
    receive_buffer: Box<[u8]>,
    /// Made when the first client that negotiated compression sends something.
    inflater: Option<Box<Inflater>>,
    /// Requests that have arrived in part, by slot.
    partial_requests: BySlot<Vec<u8>>,
    /// Why connections in state `Closing` are, by slot.
    closings: BySlot<CloseReason>,
    /// Empty, between passes: what is swapped against the queue of commands.
    commands: Vec<Command>,
    spare_arena: Arena,
    scratch: Vec<u8>,
    /// Connections that may have more to read than one call brought, each once.
    unread: Vec<ConnectionId>,
    /// What connections sent beyond their turn, by slot. All of them are in `unread`.
    put_off: BySlot<Vec<u8>>,
    /// Connections that are to end once this pass's sends are out.
    ending: Vec<u32>,
    /// Connections whose send queue overflowed in this pass.
    overflowed: Vec<u32>,
    /// Connections whose socket failed while its sends were handed over; ended at the next safe point.
    broken: Vec<ConnectionId>,
    /// Publishes of this core that were refused, and whose publishers have yet to be told.
    refused: Vec<(Publisher, TopicName)>,
    /// Bytes of messages that topics hold for somebody.
    pending_bytes: usize,
    /// Frames that were staged and not yet flushed.
    unflushed: Vec<Arc<Frame>>,
    fanout_micros: Histogram<u64>,
    /// One wheel for each interval that routes have.
    wheels: Vec<Wheel>,
    /// The wheel of each route, if it has one.
    wheel_of_route: Vec<Option<usize>>,
    handshake_deadlines: Deadlines,
    close_deadlines: Deadlines,
    now_nanos: u64,
    tick_due_nanos: u64,
    drain: Option<Drain>,
    /// Shards whose [`message::ToShard::DrainMarker`] has not come yet.
    markers_awaited: usize,
    /// The control thread has been told that the shard is drained.
    drained: bool,
    /// The control thread has told the shard to end.
    ending_now: bool,
    /// Connections that were still open when a drain's time was up.
    cut: u64,
}

/// What a shard is made of; everything in it may cross to the shard's thread.
pub struct Parts {
    /// Limits.
    pub settings: Settings,
    /// Its ends of the rings.
    pub mesh: Mesh,
    /// Its listening sockets.
    pub listeners: Vec<Listener>,
    /// Makes its routes, on its thread.
    pub(crate) routes: Arc<dyn Fn() -> Routes + Send + Sync>,
    /// Counters of all shards.
    pub all_stats: Arc<[Arc<ShardStats>]>,
    /// What all shards count together.
    pub process: Arc<ProcessCounts>,
    /// Called on the shard's thread when it fails.
    pub on_failure: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("mesh", &self.mesh)
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

/// Largest fan-out time that is told apart from larger ones: one minute, in microseconds.
const MAX_FANOUT_MICROS: u64 = 60_000_000;

impl Shard {
    /// Makes the shard on its own thread.
    fn new(parts: Parts) -> io::Result<Self> {
        let Parts { settings, mesh, listeners, routes, all_stats, process, on_failure: _ } = parts;
        let shard = mesh.shard();
        let now_nanos = clock::monotonic_nanos();
        let fanout_micros = Histogram::new_with_bounds(1, MAX_FANOUT_MICROS, 2).map_err(io::Error::other)?;
        shared_pages::block_signals_of_errors()?;
        let ring = Ring::new()?;
        mesh.doorbell().install(ring.fd());
        let routes = catch_unwind(AssertUnwindSafe(|| routes()))
            .map_err(|panic| io::Error::other(callbacks::factory_fault(panic)))?;
        let (wheels, wheel_of_route) = wheels(&routes, now_nanos);
        let tasks = Rc::new(Tasks::default());
        let compressors = Compressors::new(settings.compression_min_bytes);
        let executor = Box::new(ShardExecutor(tasks.clone()));
        let context =
            Context::new(shard as u16, mesh.shards(), mesh::OVERFLOW_MESSAGES, compressors, executor);
        context.set_max_subscriptions(settings.max_subscriptions);
        let listeners = listeners.into_iter().map(|Listener { socket, sharing }| Listening {
            socket: Some(socket),
            sharing,
            armed: false,
            stopped: false,
        });
        let markers_awaited = mesh.shards() - 1;
        Ok(Self {
            limits: Limits::new(settings.max_message_bytes),
            ring,
            batch: Batch::default(),
            pages: SharedPages::default(),
            completions: Completions::default(),
            slab: Slab::new(shard as u16),
            local: LocalTopics::default(),
            owned: OwnedTopics::new(settings.epoch, settings.history),
            catch_ups: CatchUps::default(),
            mesh,
            routes,
            context,
            tasks,
            stats: all_stats[shard].clone(),
            all_stats,
            process,
            counted: BySlot::default(),
            proxied: BySlot::default(),
            message_rates: BySlot::default(),
            listeners: listeners.collect(),
            receive_buffer: vec![0; RECEIVE_BYTES].into(),
            inflater: None,
            partial_requests: BySlot::default(),
            closings: BySlot::default(),
            commands: Vec::new(),
            spare_arena: Arena::default(),
            scratch: Vec::new(),
            unread: Vec::new(),
            put_off: BySlot::default(),
            ending: Vec::new(),
            overflowed: Vec::new(),
            broken: Vec::new(),
            refused: Vec::new(),
            pending_bytes: 0,
            unflushed: Vec::new(),
            fanout_micros,
            wheels,
            wheel_of_route,
            handshake_deadlines: Deadlines::new(settings.handshake_timeout),
            close_deadlines: Deadlines::new(CLOSE_TIMEOUT),
            settings,
            now_nanos,
            tick_due_nanos: now_nanos,
            drain: None,
            markers_awaited,
            drained: false,
            ending_now: false,
            cut: 0,
        })
    }
}

/// A wheel for each interval in use, and for each route which of them it has.
fn wheels(routes: &Routes, now_nanos: u64) -> (Vec<Wheel>, Vec<Option<usize>>) {
    let mut intervals: Vec<Duration> = Vec::new();
    let of_route = (0..routes.len()).map(|route| {
        let interval = routes.keepalive(route as u8);
        if interval.is_zero() {
            return None;
        }
        let known = intervals.iter().position(|&known| known == interval);
        Some(known.unwrap_or_else(|| {
            intervals.push(interval);
            intervals.len() - 1
        }))
    });
    let of_route = of_route.collect();
    (intervals.into_iter().filter_map(|interval| Wheel::new(interval, now_nanos)).collect(), of_route)
}
