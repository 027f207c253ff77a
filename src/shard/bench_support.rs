//! What the benches in `bench/` see of a shard: [`StillShard`], [`SendQueue`] and [`HopEnd`].
//!
//! The engine's types are nobody's business outside of `shard`, and stay so: this module exists only with the feature
//! `bench-internals`, which is off unless something asks for it. The package itself does, among its development
//! dependencies, so that `cargo test` and `cargo bench` have it without a flag and whoever depends on corecast does not.
//! It adds no behaviour: every method is one call of the engine, or the few that a pass makes in a row.
//!
//! Invariants:
//! 1. A [`StillShard`] and a [`HopEnd`] own a ring, and so live on the thread that made them.
//! 2. Nothing here is compiled into the server.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use super::mesh::{self, ControlLink, Cursor, Mesh};
use super::message::{Publisher, ToShard};
use super::outbound::{LocalFrame, Outbound, Piece, Progress};
use super::ring::{Completions, Ring};
use super::slab::State;
use super::stats::ShardStats;
use super::topics::Audience;
use super::{Parts, ProcessCounts, Settings, Shard, TICK};
use crate::compression::{Encoding, Encodings};
use crate::config::Config;
use crate::frame::Frame;
use crate::routes::Routes;
use crate::topic::TopicName;

/// Shards of the mesh around whatever is measured.
const SHARDS: usize = 2;

/// Number of the [`StillShard`].
pub const HERE: usize = 0;

/// Number of the shard that is there in name only: its end of the rings, which the bench empties.
pub const ELSEWHERE: usize = 1;

/// The ends of the rings of two shards, and the control thread's.
///
/// # Errors
/// When the kernel refuses an event descriptor or an io_uring instance.
pub fn connect() -> io::Result<([Mesh; SHARDS], ControlLink)> {
    connect_with(&stats())
}

fn connect_with(stats: &[Arc<ShardStats>]) -> io::Result<([Mesh; SHARDS], ControlLink)> {
    let (meshes, link) = mesh::connect(stats)?;
    let meshes = meshes.try_into().map_err(|_| io::Error::other("not one mesh for each shard"))?;
    Ok((meshes, link))
}

fn stats() -> Vec<Arc<ShardStats>> {
    (0..SHARDS).map(|cpu| Arc::new(ShardStats::new(cpu, SHARDS))).collect()
}

/// A name, of those that begin with `stem`, that shard `owner` owns.
///
/// # Panics
/// When `stem` is not the beginning of a topic name.
#[must_use]
pub fn topic_of(owner: usize, stem: &str) -> TopicName {
    let mut names = (0_u32..).map(|n| TopicName::new(&format!("{stem}-{n}")).expect("a topic name"));
    names.find(|name| name.owner(SHARDS) == owner).expect("each shard owns some name")
}

/// Shard [`HERE`] of two, driven by nobody: it does what it is told and no more.
///
/// Its connections are open and have no socket, which neither a subscription nor the owner's part of a publish looks at.
pub struct StillShard {
    shard: Shard,
    elsewhere: Mesh,
    _control: ControlLink,
}

impl fmt::Debug for StillShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StillShard").field("connections", &self.shard.slab.in_use()).finish_non_exhaustive()
    }
}

impl StillShard {
    /// With so many connections, which are numbered from 0, and so many messages kept of each topic.
    ///
    /// # Errors
    /// When the kernel refuses a ring or a descriptor.
    pub fn new(connections: u32, history: usize) -> io::Result<Self> {
        let stats = stats();
        let ([mesh, elsewhere], control) = connect_with(&stats)?;
        let config = Config { history, ..Config::default() };
        let parts = Parts {
            settings: Settings::new(&config, u64::from(connections), SHARDS).map_err(io::Error::other)?,
            mesh,
            listeners: Vec::new(),
            routes: Arc::new(|| Routes::new(None)),
            all_stats: stats.into(),
            process: Arc::new(ProcessCounts::new(u64::from(connections))),
            on_failure: Arc::new(|| {}),
        };
        let mut shard = Shard::new(parts)?;
        for _ in 0..connections {
            let slot = shard.slab.insert(socket_pair()?.0);
            shard.slab[slot].state = State::Open;
            shard.slab[slot].socket = None;
        }
        Ok(Self { shard, elsewhere, _control: control })
    }

    /// Subscribes a connection.
    #[inline]
    pub fn subscribe(&mut self, connection: u32, topic: &TopicName) {
        let id = self.shard.slab.id(connection);
        self.shard.subscribe(id, topic);
    }

    /// Ends a connection's subscription.
    #[inline]
    pub fn unsubscribe(&mut self, connection: u32, topic: &TopicName) {
        let id = self.shard.slab.id(connection);
        self.shard.unsubscribe_from(id, topic);
    }

    /// Tells the owners what has changed, and forgets topics without subscribers, as the end of a pass does.
    #[inline]
    pub fn report_subscribers(&mut self) {
        self.shard.report_subscribers();
    }

    /// Has shard [`ELSEWHERE`] report subscribers of a topic that this shard owns.
    pub fn set_subscribers_elsewhere(&mut self, topic: &TopicName, count: u32) {
        let audience = Audience { shard: ELSEWHERE, count, encodings: Encodings::default() };
        self.shard.owned.set_subscribers(topic, audience, self.shard.now_nanos);
    }

    /// Takes a message of a topic that this shard owns, as it comes from another core.
    #[inline]
    pub fn publish(&mut self, topic: TopicName, frame: Arc<Frame>) {
        let publisher = Publisher::Core { shard: ELSEWHERE as u16, route: 0 };
        self.shard.on_shard_message(ToShard::Publish { topic, frame, publisher });
    }

    /// Lets go of what a pass would now send: to connections, which have no sockets, and to the other shard. Returns how
    /// many messages that one was sent.
    ///
    /// # Panics
    /// When they are more than a ring holds.
    pub fn settle(&mut self) -> usize {
        self.shard.fan_out();
        self.shard.flush_batch();
        self.shard.note_flushed();
        assert!(!self.shard.mesh.has_overflow(), "a bench sends no more in a pass than a ring holds");
        let mut cursor = Cursor::default();
        std::iter::from_fn(|| self.elsewhere.receive(&mut cursor)).count()
    }

    /// Subscriptions of all connections.
    #[must_use]
    pub fn subscriptions(&self) -> u64 {
        self.shard.stats.subscriptions.get()
    }

    /// The last offset of a topic that this shard owns, and how many of its messages are kept.
    #[must_use]
    pub fn published(&self, topic: &TopicName) -> (u64, usize) {
        self.shard.owned.find(topic).map_or((0, 0), |owned| (owned.offset, owned.history.len()))
    }
}

/// A connected pair of stream sockets that do not block.
///
/// # Errors
/// When the kernel refuses descriptors.
pub fn socket_pair() -> io::Result<(TcpStream, TcpStream)> {
    let (near, far) = UnixStream::pair()?;
    let stream = |socket: UnixStream| {
        socket.set_nonblocking(true)?;
        Ok(TcpStream::from(OwnedFd::from(socket)))
    };
    stream(near).and_then(|near| Ok((near, stream(far)?)))
}

/// A frame as the send queues of one core share it.
#[derive(Clone, Debug)]
pub struct SharedFrame(LocalFrame);

impl SharedFrame {
    /// Shares a frame.
    #[must_use]
    pub fn new(frame: Arc<Frame>) -> Self {
        Self(Rc::new(frame))
    }
}

/// The send queue of one slow connection.
#[derive(Debug, Default)]
pub struct SendQueue(Outbound);

impl SendQueue {
    /// Queues a whole message of a topic, which is named by a number.
    #[inline]
    pub fn push(&mut self, frame: &SharedFrame, topic: u64) {
        let piece = Piece::Frame { frame: frame.0.clone(), encoding: Encoding::PLAIN, topic };
        self.0.push(piece, 0);
    }

    /// Drops all but the newest message of each topic, and that of `topic` too; returns how many.
    #[inline]
    pub fn keep_latest(&mut self, topic: u64) -> usize {
        self.0.keep_latest(topic)
    }

    /// Sends what the socket takes; whether that was everything.
    ///
    /// # Errors
    /// The socket's.
    #[inline]
    pub fn send(&mut self, socket: &TcpStream) -> io::Result<bool> {
        Ok(self.0.send(socket)? == Progress::Empty)
    }

    /// Bytes that wait.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.0.queued_bytes()
    }
}

/// One shard's end of a hop: its rings to the other shard, its io_uring, its doorbell.
pub struct HopEnd {
    mesh: Mesh,
    ring: Ring,
    completions: Completions,
}

impl fmt::Debug for HopEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HopEnd").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl HopEnd {
    /// For the calling thread, and reachable from now on.
    ///
    /// # Errors
    /// When the kernel refuses the ring.
    pub fn new(mesh: Mesh) -> io::Result<Self> {
        let ring = Ring::new()?;
        mesh.doorbell().install(ring.fd());
        Ok(Self { mesh, ring, completions: Completions::default() })
    }

    /// Sends to the other shard.
    #[inline]
    pub fn send(&mut self, message: ToShard) {
        self.mesh.send(SHARDS - 1 - self.mesh.shard(), message);
    }

    /// Stages a knock if the other shard was sent something and sleeps; true if so.
    #[inline]
    pub fn ring_doorbells(&mut self) -> bool {
        let (ring, mut knocked) = (&mut self.ring, false);
        self.mesh.ring_doorbells(|ring_fd| {
            ring.knock(ring_fd);
            knocked = true;
        });
        knocked
    }

    /// Hands a staged knock to the kernel, and takes those that came.
    ///
    /// # Errors
    /// When the kernel refuses the ring.
    #[inline]
    pub fn submit(&mut self) -> io::Result<()> {
        self.ring.submit(&mut self.completions)?;
        self.completions.events.clear();
        Ok(())
    }

    /// The next message, if one is here.
    #[inline]
    pub fn try_receive(&mut self) -> Option<ToShard> {
        self.mesh.receive(&mut Cursor::default())
    }

    /// Announces sleep.
    #[inline]
    pub fn fall_asleep(&self) {
        self.mesh.doorbell().fall_asleep();
    }

    /// Takes that back.
    #[inline]
    pub fn wake_up(&self) {
        self.mesh.doorbell().wake_up();
    }

    /// The next message; sleeps in the ring until it is here, as the driver does. A staged knock goes out with it.
    ///
    /// # Errors
    /// When the kernel refuses the ring.
    pub fn receive(&mut self) -> io::Result<ToShard> {
        loop {
            self.fall_asleep();
            let mut received = self.try_receive();
            if received.is_none() {
                self.ring.wait(TICK, &mut self.completions)?;
                self.completions.events.clear();
            }
            self.wake_up();
            received = received.or_else(|| self.try_receive());
            if let Some(message) = received {
                return Ok(message);
            }
        }
    }
}
