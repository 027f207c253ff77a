//! The limits of a shard, and how it takes over new ones. They are the shard's own copy: a change arrives as a
//! message, like everything else.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{HistoryLimits, Shard};
use crate::config::{Config, SlowConsumer, Switch, WaitMode};
use crate::position::Position;
use crate::ws::{InvalidOrigin, Limits, OriginPolicy};

/// How a shard with nothing to do waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// In its own ring as long as no user task lives on the executor, else in the executor.
    #[default]
    Automatic,
    /// Always in its own ring; user tasks run between its sleeps only, and their timers are late.
    Ring,
    /// Always in the executor.
    Executor,
}

/// What one shard is told about its limits. See the flags of the same names.
#[derive(Clone, Debug)]
pub struct Settings {
    /// WebSocket connections that the whole process may have.
    pub max_connections: u64,
    /// Connections that one address may have. Stays as it is for the life of the shard.
    pub max_connections_per_ip: Option<u16>,
    /// New connections that the whole process takes in a second.
    pub accept_rate: Option<u64>,
    /// Proxies that are believed what they say of a client's address. Stays as well.
    pub trusted_proxies: Arc<[IpNet]>,
    /// Whether connections of those begin with a header of the PROXY protocol. Stays as well.
    pub proxy_protocol: bool,
    /// Messages that a connection may send in a second.
    pub message_rate: Option<u64>,
    /// Topics that a connection may be subscribed to.
    pub max_subscriptions: usize,
    /// Topics of the whole process; each shard may own an equal share of them.
    pub max_topics: usize,
    /// Largest message from a client, in bytes.
    pub max_message_bytes: usize,
    /// Largest request head, in bytes.
    pub max_handshake_bytes: usize,
    /// Time a client has from connecting to the end of its request.
    pub handshake_timeout: Duration,
    /// Bytes that may wait for one connection.
    pub send_queue_bytes: usize,
    /// What happens to a connection at that limit.
    pub slow_consumer: SlowConsumer,
    /// Whether permessage-deflate is negotiated.
    pub compression: bool,
    /// Smallest payload that is compressed, in bytes.
    pub compression_min_bytes: usize,
    /// Origins that browsers may come from, on routes that have no origins of their own.
    pub allowed_origins: OriginPolicy,
    /// What this shard keeps of the topics that it owns. Stays as it is for the life of the shard.
    pub history: HistoryLimits,
    /// Epoch of the topics at first. Stays as well.
    pub epoch: u64,
    /// How to wait. Stays as well.
    pub waiting: Waiting,
}

impl Settings {
    /// What a configuration says for each of so many shards, with a new epoch. `room` is how many connections the limit
    /// on open files leaves room for: more are never taken, whatever the configuration says.
    ///
    /// # Errors
    /// [`InvalidOrigin`] for an allowed origin that is none.
    pub fn new(config: &Config, room: u64, shards: usize) -> Result<Self, InvalidOrigin> {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Self {
            max_connections: config.max_connections.unwrap_or(room).min(room),
            max_connections_per_ip: config
                .max_connections_per_ip
                .map(|limit| u16::try_from(limit).unwrap_or(u16::MAX)),
            accept_rate: config.accept_rate,
            trusted_proxies: config.trusted_proxies.as_slice().into(),
            proxy_protocol: config.proxy_protocol == Switch::On,
            message_rate: config.message_rate,
            max_subscriptions: count(config.max_subscriptions),
            max_topics: count(config.max_topics),
            max_message_bytes: config.max_message_bytes,
            max_handshake_bytes: config.max_handshake_bytes,
            handshake_timeout: Duration::from_millis(config.handshake_timeout_millis),
            send_queue_bytes: config.send_queue_bytes,
            slow_consumer: config.slow_consumer,
            compression: config.compression == Switch::On,
            compression_min_bytes: config.compression_min_bytes,
            allowed_origins: OriginPolicy::parse(&config.allowed_origins)?,
            history: HistoryLimits {
                messages: config.history,
                age_nanos: config.history_ttl_millis.saturating_mul(1_000_000),
                bytes: config.history_bytes / shards,
            },
            epoch: Position::random_epoch(),
            waiting: match config.wait {
                WaitMode::Auto => Waiting::Automatic,
                WaitMode::Ring => Waiting::Ring,
                WaitMode::Executor => Waiting::Executor,
            },
        })
    }
}

impl Shard {
    /// Goes on with these settings. Connections that are open keep what was negotiated; what waits for a slow one
    /// already may be more than the new limit, and then meets it with the next message.
    pub(super) fn configure(&mut self, settings: &Settings) {
        let Settings { history, epoch, waiting, .. } = self.settings;
        self.settings = Settings { history, epoch, waiting, ..settings.clone() };
        self.context.set_max_subscriptions(settings.max_subscriptions);
        self.limits = Limits::new(settings.max_message_bytes);
        self.handshake_deadlines.set_length(settings.handshake_timeout, self.now_nanos);
        self.context
            .with_compressors(|compressors| compressors.set_min_bytes(settings.compression_min_bytes));
        self.routes.set_configured_origins(&settings.allowed_origins);
    }
}
