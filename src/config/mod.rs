//! Every limit and knob: its unit in the name, its default, one validation.
//!
//! A setting is added in one place: a field of [`Config`], whose doc comment is its help text, and its
//! default in [`Config::default`]. Flag, environment variable, file key, `--print-config` and the default
//! shown by `--help` follow from the field.
//!
//! This module imports nothing of this crate.

mod cpus;
mod environment;
mod load;
mod reload;
mod validate;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;

pub use environment::environment_warnings;
pub use load::{Action, Invocation, LoadError, load};
pub use reload::Reloaded;
pub use validate::ConfigError;
pub use values::{ControlAddress, CpuList, PublishToken};

use values::{
    parse_address, parse_bool, parse_cores, parse_count, parse_duration, parse_network, parse_number,
    parse_size, serialize_duration, serialize_networks, serialize_size,
};

/// Most shards that one process can have.
pub const MAX_SHARDS: usize = 1024;

/// Largest `--max-connections`: a slot's number has 32 bits.
pub const MAX_CONNECTIONS: u64 = u32::MAX as u64;

/// Largest `--max-connections-per-ip`: the table of addresses counts with 16 bits.
pub const MAX_CONNECTIONS_PER_IP: u64 = u16::MAX as u64;

/// Largest `--accept-rate` and `--message-rate`, per second.
pub const MAX_RATE: u64 = 1_000_000_000;

/// Largest `--max-subscriptions`: a connection's subscriptions are searched one by one.
pub const MAX_SUBSCRIPTIONS: u64 = 4096;

/// Largest `--max-topics`.
pub const MAX_TOPICS: u64 = u32::MAX as u64;

/// Largest `--max-message-size` and `--send-queue`, in bytes.
pub const MAX_QUEUE_BYTES: usize = 256 * 1024 * 1024;

/// Least and largest `--max-handshake-size`, in bytes. Below it, no browser's request fits.
pub const HANDSHAKE_BYTES: (usize, usize) = (512, 1024 * 1024);

/// Least and largest `--handshake-timeout`, in milliseconds.
pub const HANDSHAKE_TIMEOUT_MILLIS: (u64, u64) = (10, 600_000);

/// Least and largest `--keepalive` that is not off, in milliseconds.
pub const KEEPALIVE_MILLIS: (u64, u64) = (10, 24 * 3_600_000);

/// Largest `--drain-window`, in milliseconds.
pub const MAX_DRAIN_WINDOW_MILLIS: u64 = 3_600_000;

/// Largest `--history`, in messages of one topic.
pub const MAX_HISTORY: usize = 10_000_000;

/// Least and largest `--history-ttl`, in milliseconds.
pub const HISTORY_TTL_MILLIS: (u64, u64) = (100, 30 * 24 * 3_600_000);

/// Least and largest `--history-size`, in bytes.
pub const HISTORY_BYTES: (usize, usize) = (64 * 1024, 1 << 40);

/// Descriptors kept free of WebSocket connections for the process: standard streams, event descriptors and
/// the usual number of control connections.
pub const DESCRIPTOR_RESERVE_PROCESS: u64 = 64;

/// Descriptors kept free of WebSocket connections for each shard: its executor's and its own io_uring
/// instances, its event descriptors and its listeners.
pub const DESCRIPTOR_RESERVE_SHARD: u64 = 16;

/// How many connections fit under `descriptor_limit` open files with `shards` shards: the limit less
/// [`DESCRIPTOR_RESERVE_PROCESS`] and [`DESCRIPTOR_RESERVE_SHARD`], but at least one.
#[must_use]
pub fn derived_max_connections(descriptor_limit: u64, shards: usize) -> u64 {
    let shards = DESCRIPTOR_RESERVE_SHARD.saturating_mul(shards as u64);
    descriptor_limit.saturating_sub(shards).saturating_sub(DESCRIPTOR_RESERVE_PROCESS).max(1)
}

/// Settings of a server. Start from [`Config::default`], set fields, then [`Config::validate`].
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize)]
#[group(skip)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// Address of the WebSocket port, IP:PORT. Repeat it, or separate with commas, for more addresses. Every
    /// core listens on each of them; an address in use ends the start with exit code 1
    #[arg(help_heading = "Addresses", long,
        value_name = "ADDR", value_delimiter = ',', value_parser = parse_address)]
    pub listen: Vec<SocketAddr>,

    /// Address of the control port (publish API, metrics, health), IP:PORT, or off. Beyond loopback it needs
    /// --publish-token
    #[arg(help_heading = "Addresses", long, value_name = "ADDR|off")]
    pub control: ControlAddress,

    /// Listen even where another program, such as a second corecast, already shares the address
    #[arg(help_heading = "Addresses", long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub reuse_port: bool,

    /// Number of shards, each pinned to one CPU. Default: every CPU this process may run on. More than that
    /// is refused without --oversubscribe
    #[arg(help_heading = "Cores", long, value_name = "N", value_parser = parse_cores)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,

    /// Exact CPUs, one shard on each, such as 0-3,8; overrides --cores. A CPU this process may not run on, or
    /// one named twice without --oversubscribe, is refused
    #[arg(help_heading = "Cores", long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuList>,

    /// Allow more shards than CPUs: --cores goes round the allowed CPUs, --cpus may name one twice
    #[arg(help_heading = "Cores", long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub oversubscribe: bool,

    /// How a shard without work waits: on its own ring, in its executor, or as it sees fit. For measurements
    #[arg(long, hide = true, value_enum, value_name = "HOW")]
    #[serde(skip_serializing_if = "WaitMode::is_auto")]
    pub wait: WaitMode,

    /// Connections of the whole process. Over it: 503 with Retry-After. Default, and never more: the limit
    /// on open files (raised to its hard limit at start) less a small reserve
    #[arg(help_heading = "Connections", long, value_name = "N", value_parser = parse_count)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u64>,

    /// Connections from one address, whatever their state; of IPv6 from one /64. Over it: 503 with Retry-After.
    /// Default: off
    #[arg(help_heading = "Connections", long, value_name = "N", value_parser = parse_count)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections_per_ip: Option<u64>,

    /// New connections of the whole process in a second. Over it: 503 with Retry-After. Default: off
    #[arg(help_heading = "Connections", long, value_name = "N", value_parser = parse_count)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_rate: Option<u64>,

    /// Address or network (CIDR) of proxies that are believed what they say of a client's address: in
    /// X-Forwarded-For, and with --proxy-protocol on. Repeat it, or separate with commas, for more
    #[arg(help_heading = "Connections", long = "trusted-proxy",
        value_name = "CIDR", value_delimiter = ',', value_parser = parse_network)]
    #[serde(rename = "trusted-proxy", serialize_with = "serialize_networks")]
    pub trusted_proxies: Vec<IpNet>,

    /// Connections of a --trusted-proxy begin with a header of the PROXY protocol, version 1 or 2, or are closed
    #[arg(help_heading = "Connections", long, value_enum, value_name = "on|off")]
    pub proxy_protocol: Switch,

    /// Interval of pings, ms s m h; 0 is off. A peer silent for a whole further interval is dropped
    #[arg(help_heading = "Connections", long = "keepalive",
        value_name = "DUR", value_parser = parse_duration)]
    #[serde(rename = "keepalive", serialize_with = "serialize_duration")]
    pub keepalive_millis: u64,

    /// Bytes of a request head, B KiB MiB. Over it: 431
    #[arg(help_heading = "Connections", long = "max-handshake-size",
        value_name = "SIZE", value_parser = parse_size)]
    #[serde(rename = "max-handshake-size", serialize_with = "serialize_size")]
    pub max_handshake_bytes: usize,

    /// Time for a complete request head, ms s m h. Over it: closed
    #[arg(help_heading = "Connections", long = "handshake-timeout",
        value_name = "DUR", value_parser = parse_duration)]
    #[serde(rename = "handshake-timeout", serialize_with = "serialize_duration")]
    pub handshake_timeout_millis: u64,

    /// Browser origin that may connect, SCHEME://HOST or SCHEME://HOST:PORT, or * for any. Repeat it, or
    /// separate with commas, for more. Default: the origin's host is the request's Host. Others: 403. A
    /// request without Origin does not come from a browser's page and passes
    #[arg(
        help_heading = "Connections",
        long = "allowed-origin",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    #[serde(rename = "allowed-origin")]
    pub allowed_origins: Vec<String>,

    /// Address or network (CIDR) whose connections are cut as soon as they are accepted, such as 192.0.2.0/24.
    /// Repeat it, or separate with commas, for more
    #[arg(
        help_heading = "Connections",
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = parse_network
    )]
    #[serde(serialize_with = "serialize_networks")]
    pub deny_ip: Vec<IpNet>,

    /// WebSocket subprotocol spoken here. Repeat it, or separate with commas, for more
    #[arg(help_heading = "Connections", long = "subprotocol", value_name = "NAME", value_delimiter = ',')]
    #[serde(rename = "subprotocol")]
    pub subprotocols: Vec<String>,

    /// A client that offers subprotocols must offer one of ours, else 400
    #[arg(help_heading = "Connections", long,
        value_name = "BOOL", action = ArgAction::Set, value_parser = parse_bool)]
    pub strict_subprotocols: bool,

    /// Bytes of one message, received or published, B KiB MiB. Over it: close 1009, or 413 by HTTP
    #[arg(help_heading = "Messages", long = "max-message-size",
        value_name = "SIZE", value_parser = parse_size)]
    #[serde(rename = "max-message-size", serialize_with = "serialize_size")]
    pub max_message_bytes: usize,

    /// Messages from one connection in a second. Over it: close 1008 "message rate". Default: off
    #[arg(help_heading = "Messages", long, value_name = "N", value_parser = parse_count)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_rate: Option<u64>,

    /// Topics that one connection may be subscribed to. Over it: 400
    #[arg(help_heading = "Messages", long, value_name = "N", value_parser = parse_count)]
    pub max_subscriptions: u64,

    /// Topics of the whole process, each core an equal share of it; one that nobody uses counts for 5 minutes.
    /// A new one over it: 503 to a subscriber, 429 to a publisher
    #[arg(help_heading = "Messages", long, value_name = "N", value_parser = parse_count)]
    pub max_topics: u64,

    /// Bytes that may wait for one connection that reads too slowly, B KiB MiB. Over it: see --slow-consumer
    #[arg(help_heading = "Messages", long = "send-queue", value_name = "SIZE", value_parser = parse_size)]
    #[serde(rename = "send-queue", serialize_with = "serialize_size")]
    pub send_queue_bytes: usize,

    /// What happens to a connection at the limit of --send-queue: close it with 1008 "slow consumer"; drop the newest
    /// messages of its topics; or keep only the latest of each topic. What is meant for it alone, such as an echo,
    /// closes it in any case
    #[arg(help_heading = "Messages", long, value_enum, value_name = "close|drop|latest")]
    pub slow_consumer: SlowConsumer,

    /// permessage-deflate (RFC 7692) for clients that offer it; a broadcast is compressed once
    #[arg(help_heading = "Messages", long, value_enum, value_name = "on|off")]
    pub compression: Switch,

    /// Smallest payload that is compressed, B KiB MiB
    #[arg(help_heading = "Messages", long = "compression-min", value_name = "SIZE", value_parser = parse_size)]
    #[serde(rename = "compression-min", serialize_with = "serialize_size")]
    pub compression_min_bytes: usize,

    /// Messages kept of each topic, for clients that come back (?since=) or come late (?last=); 0 is none
    #[arg(help_heading = "Messages", long, value_name = "N", value_parser = parse_number)]
    pub history: usize,

    /// How long they are kept, ms s m h
    #[arg(help_heading = "Messages", long = "history-ttl", value_name = "DUR", value_parser = parse_duration)]
    #[serde(rename = "history-ttl", serialize_with = "serialize_duration")]
    pub history_ttl_millis: u64,

    /// Bytes of memory that the kept messages of all topics may take together, B KiB MiB. Over it: the oldest go first,
    /// counted. Each core has an equal share, for the topics that it owns
    #[arg(help_heading = "Messages", long = "history-size", value_name = "SIZE", value_parser = parse_size)]
    #[serde(rename = "history-size", serialize_with = "serialize_size")]
    pub history_bytes: usize,

    /// Add the route /echo
    #[arg(help_heading = "Messages", long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub echo: bool,

    /// Let clients publish on /pubsub/TOPIC. Without it: 403
    #[arg(help_heading = "Messages", long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", value_parser = parse_bool)]
    pub client_publish: bool,

    /// Bearer token of the publish API; requests without it: 401. Others on this machine can read flags:
    /// better set CORECAST_PUBLISH_TOKEN. --print-config leaves it out
    #[arg(help_heading = "Messages", long, value_name = "TOKEN")]
    #[serde(skip)]
    pub publish_token: Option<PublishToken>,

    /// On SIGTERM or SIGINT, connections are closed with 1012 spread evenly over this time, ms s m h. A
    /// second signal ends at once
    #[arg(help_heading = "Running", long = "drain-window", value_name = "DUR", value_parser = parse_duration)]
    #[serde(rename = "drain-window", serialize_with = "serialize_duration")]
    pub drain_window_millis: u64,

    /// Form of the log on stderr
    #[arg(help_heading = "Running", long, value_enum, value_name = "FORM")]
    pub log_format: LogFormat,

    /// Least important level that is logged
    #[arg(help_heading = "Running", long, value_enum, value_name = "LEVEL")]
    pub log: LogLevel,

    /// Lines a second that each kind of log line may have; 0 is no limit. Over it: left out, counted, and said in
    /// one line a second
    #[arg(help_heading = "Running", long = "log-rate", value_name = "N", value_parser = parse_number)]
    #[serde(rename = "log-rate")]
    pub log_lines_per_second: usize,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            listen: vec![loopback(8080)],
            control: ControlAddress::At(loopback(8081)),
            reuse_port: false,
            cores: None,
            cpus: None,
            oversubscribe: false,
            wait: WaitMode::Auto,
            max_connections: None,
            max_connections_per_ip: None,
            accept_rate: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: Switch::Off,
            keepalive_millis: 30_000,
            max_handshake_bytes: 8 * 1024,
            handshake_timeout_millis: 10_000,
            allowed_origins: Vec::new(),
            deny_ip: Vec::new(),
            subprotocols: Vec::new(),
            strict_subprotocols: true,
            max_message_bytes: 64 * 1024,
            message_rate: None,
            max_subscriptions: 128,
            max_topics: 1_000_000,
            send_queue_bytes: 1024 * 1024,
            slow_consumer: SlowConsumer::Close,
            compression: Switch::On,
            compression_min_bytes: 256,
            history: 0,
            history_ttl_millis: 300_000,
            history_bytes: 256 * 1024 * 1024,
            echo: false,
            client_publish: false,
            publish_token: None,
            drain_window_millis: 10_000,
            log_format: LogFormat::Text,
            log: LogLevel::Info,
            log_lines_per_second: 10,
        }
    }
}

/// Something that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// What happens to a connection whose send queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SlowConsumer {
    /// It is closed with 1008 `slow consumer`.
    #[default]
    Close,
    /// The newest messages of its topics are dropped until there is room again.
    Drop,
    /// Of what waits, only the newest message of each topic is kept.
    Latest,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One readable line for each event.
    Text,
    /// One JSON object for each event.
    Json,
}

/// Least important level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What needs someone to act.
    Error,
    /// What is not as it should be.
    Warn,
    /// What happens to the server as a whole, and whom it refuses.
    Info,
    /// What happens to single connections.
    Debug,
    /// Everything.
    Trace,
}

/// How a shard without work waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WaitMode {
    /// In its own ring while no user task lives on its executor, else in the executor.
    #[default]
    Auto,
    /// Always in its own ring.
    Ring,
    /// Always in its executor.
    Executor,
}

impl WaitMode {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_leaves_what_the_machine_can_hold() {
        assert_eq!(derived_max_connections(20_000, 1), 19_920);
        assert_eq!(derived_max_connections(20_000, 2), 19_904);
        assert_eq!(derived_max_connections(10, 2), 1);
        assert_eq!(derived_max_connections(u64::MAX, usize::MAX), 1);
    }
}
