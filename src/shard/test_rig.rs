//! Shard 0 of two, driven by hand: for tests of what crosses between cores, in an order that the test chooses.

use std::io::Read;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::mesh::{self, ControlLink, Cursor, Mesh};
use super::message::ToShard;
use super::outbound::{Outbound, Piece};
use super::slab::State;
use super::stats::ShardStats;
use super::{Parts, ProcessCounts, Settings, Shard};
use crate::component::Component;
use crate::compression::Encoding;
use crate::config::Config;
use crate::connection_id::ConnectionId;
use crate::path_pattern::PathPattern;
use crate::routes::{Route, Routes};
use crate::topic::TopicName;
use crate::ws::OriginPolicy;

/// Shards of the mesh.
const SHARDS: usize = 2;

/// Number of the shard that the test plays.
pub(super) const ELSEWHERE: usize = 1;

/// The shard, and the other one's ends of the rings.
pub(super) struct Rig {
    pub(super) shard: Shard,
    elsewhere: Mesh,
    _control: ControlLink,
}

/// Does nothing.
struct Idle;

impl Component for Idle {}

fn routes() -> Routes {
    let mut routes = Routes::new(None);
    routes.add(Route {
        pattern: PathPattern::parse("/").unwrap(),
        host: None,
        origins: OriginPolicy::Any,
        has_configured_origins: false,
        strict_sub_protocols: true,
        keepalive: Duration::ZERO,
        component: Box::new(Idle),
    });
    routes
}

impl Rig {
    pub(super) fn new(configure: impl FnOnce(&mut Config)) -> Self {
        let stats: Vec<_> = (0..SHARDS).map(|cpu| Arc::new(ShardStats::new(cpu, SHARDS))).collect();
        let (mut meshes, control) = mesh::connect(&stats).unwrap();
        let elsewhere = meshes.pop().unwrap();
        let mut config = Config::default();
        configure(&mut config);
        let parts = Parts {
            settings: Settings::new(&config, 100, SHARDS).unwrap(),
            mesh: meshes.pop().unwrap(),
            listeners: Vec::new(),
            routes: Arc::new(routes),
            all_stats: stats.into(),
            process: Arc::new(ProcessCounts::new(100)),
            on_failure: Arc::new(|| {}),
        };
        Self { shard: Shard::new(parts).unwrap(), elsewhere, _control: control }
    }

    /// An open connection, and its client.
    pub(super) fn connect(&mut self) -> (ConnectionId, TcpStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let slot = self.shard.slab.insert(TcpStream::from(OwnedFd::from(near)));
        self.shard.slab[slot].state = State::Open;
        self.shard.stats.connections.add(1);
        self.shard.stats.sockets.add(1);
        self.shard.stats.places.add(1);
        let id = self.shard.slab.id(slot);
        self.shard.context.opened(id, Encoding::PLAIN, None, None);
        (id, TcpStream::from(OwnedFd::from(far)))
    }

    /// A connection whose 101, here the bytes `101`, is held back.
    pub(super) fn connect_held(&mut self) -> (ConnectionId, TcpStream) {
        let (id, client) = self.connect();
        self.shard.slab[id.slot].outbound = Some(Box::new(Outbound::held()));
        self.shard.queue(id.slot, Piece::Bytes((*b"101").into()), 0);
        (id, client)
    }

    /// Applies what callbacks asked for and tells owners what has changed, as a pass does at its end.
    pub(super) fn end_pass(&mut self) {
        self.shard.apply_commands();
        self.shard.continue_catch_ups();
        self.shard.fan_out();
        self.shard.flush_batch();
        self.shard.report_subscribers();
    }

    /// What the other shard was sent since the last call.
    pub(super) fn sent(&mut self) -> Vec<ToShard> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(|| self.elsewhere.receive(&mut cursor)).collect()
    }
}

/// A topic of that shard.
pub(super) fn topic_of(owner: usize, stem: &str) -> TopicName {
    let mut names = (0..).map(|n| TopicName::new(&format!("{stem}-{n}")).unwrap());
    names.find(|name| name.owner(SHARDS) == owner).unwrap()
}

/// What a client has got and not read.
pub(super) fn received(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // With the connection open there is no end, only no more.
    let _ = client.read_to_end(&mut bytes);
    bytes
}
