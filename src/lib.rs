//! A thread-per-core WebSocket push server for Linux: publish one message, and every subscriber on every core
//! has it within the time that the kernel needs to send it.
//!
//! This is the library behind the `corecast` binary, for those who write their server in Rust. If you know
//! Ratchet's `WsServer`, you know it.
//!
//! # A chat
//!
//! ```no_run
//! use corecast::{App, Component, Connection, Message, Outcome};
//!
//! struct Chat;
//!
//! impl Component for Chat {
//!     fn on_open(&mut self, connection: &Connection) -> Outcome {
//!         connection.subscribe("chat")?;
//!         Ok(())
//!     }
//!
//!     fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
//!         connection.publish_to_others("chat", message)?;
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> Result<(), corecast::StartError> {
//!     // For requests to ws://localhost:8080/chat, and to no other name or address: `*` is any host.
//!     App::new("localhost", 8080).route("/chat", || Chat).run()
//! }
//! ```
//!
//! It runs on every core: [`App::route`] takes a *factory*, which makes one `Chat` per core, on that core. So a
//! component needs no lock and need not be `Send`, and it sees the connections of its own core only. What
//! concerns all cores goes over *topics*: a publish reaches every subscriber on every core, in one order for all.
//!
//! # The tour
//!
//! - [`Component`]: the callbacks, all of which have a default. [`Component::on_request`] sees the upgrade request
//!   and may refuse it with an HTTP status ([`Rejection::with_status`]).
//! - [`Connection`]: send, close, subscribe, publish, the request, data of your own. A handle is cheap to clone, may
//!   be kept, and is harmless once the connection is gone.
//! - [`App`], [`Server`], [`WsServer`]: routes, allowed origins, keep-alive. [`App::configure`] reaches every limit
//!   there is ([`Config`]). [`RunningServer`] is a server that runs, [`ControlHandle`] ends it from anywhere.
//! - [`decorators`]: components that wrap yours, such as [`decorators::IpDenyList`] and
//!   [`decorators::RateLimit`]. [`Component::inner`] shows how to write one.
//! - [`Connection::spawn`] and [`Core`]: futures, timers, blocking work, and messages to the instances of your
//!   component on the other cores.
//! - [`Publisher`]: publishes from any thread of your program, such as one that listens to a database or a message
//!   queue. [`App::publisher`] and [`RunningServer::publisher`] have it, with or without a control port.
//!
//! What a callback asks for is queued and carried out after it has returned, so nothing ever re-enters your code.
//! A panic or an `Err` in a callback costs that connection and nothing else.
//!
//! # From Ratchet
//!
//! | Ratchet | corecast |
//! |---|---|
//! | `onOpen`, `onMessage`, `onClose`, `onError` | [`Component::on_open`], [`Component::on_message`], [`Component::on_close`], [`Component::on_error`] |
//! | `$conn->send($data)` | [`Connection::send`] |
//! | `$conn->close($code = 1000)` | [`Connection::close`] with a [`CloseCode`]; [`CloseCode::default`] is 1000 |
//! | `$conn->httpRequest` | [`Connection::http_request`] |
//! | `$conn->WebSocket->closing` | [`Connection::is_closing`] |
//! | `$conn->resourceId`, `remoteAddress` | [`Connection::id`], [`Connection::remote_addr`] |
//! | `SplObjectStorage` of connections | a `HashSet<Connection>`, or a topic |
//! | `enableKeepAlive($loop, $interval)` | [`WsServer::enable_keep_alive`] |
//! | `setStrictSubProtocolCheck($enable)` | [`WsServer::set_strict_sub_protocol_check`]; a client that offers none passes here, and a refusal is 400 |
//! | `App::route($path, $component, $allowedOrigins, $httpHost)` | [`App::route`], then [`App::allowed_origins`], [`App::host`] |
//! | `IoServer::factory(new HttpServer($ws), $port)->run()` | [`Server::bind`], [`Server::run`]; pages of other origins need [`Server::allowed_origins`] |
//! | `OriginCheck`, `IpBlackList` | [`decorators::OriginCheck`], [`decorators::IpDenyList`] |
//! | `Topic::broadcast($msg, $exclude)` | [`Connection::publish`], [`Connection::publish_to_others`] |
//! | `$loop->addPeriodicTimer(…)` | [`Core::spawn`] and [`Core::sleep`] |
//! | pushes from elsewhere, by a `$pull` socket of ZeroMQ on the loop | [`Publisher`], from a thread that receives them |
//!
//! # Architecture
//!
//! Each CPU core runs one *shard*: a pinned [glommio](https://docs.rs/glommio) executor with its own listeners
//! (SO_REUSEPORT), connections, topics, keep-alive wheel and io_uring. Nothing is shared between shards, and
//! nothing is locked: owned messages cross in single-producer single-consumer rings. A *control thread* does
//! everything that is not the hot path: publishes by HTTP and of other threads, metrics, health, signals.
//!
//! Every topic has one *owner* shard. A publish goes there, gets its place in the topic's order, is encoded
//! once and handed to each shard that has subscribers; each serves them part by part, takes in what arrives in between,
//! and sends everything of a topic that a subscriber has yet to get as one write. What is large goes out from pages of
//! memory that all sockets share.
//!
//! | Module | Owns | Lives on |
//! |---|---|---|
//! | [`config`] | every limit and knob | start |
//! | `app`, `ws_server`, `server` | a server put together from the parts below | start |
//! | `component`, [`decorators`], `routes` | what users write, and which path it serves | its shard |
//! | `shard` | connections, topics, fan-out of one core | its shard |
//! | `control` | HTTP API, publishes of other threads, metrics, signals | the control thread |
//! | [`ws`] | the protocol, without sockets, clocks or a runtime | anywhere |
//! | `service_manager` | what systemd is told | start, the control thread |
//! | `topic`, `frame`, `compression`, `arena`, `clock` | names, encoded messages, bytes of a pass, time | anywhere |
//! | `by_slot` | tables of what few connections have | its shard |
//!
//! Imports point one way: `app` → `server` → `control` → `shard` → `routes` → `component` → `ws`.

pub mod config;
pub mod decorators;
pub mod log;
pub mod ws;

// Internals: public for the project's own benchmarks, and without any promise.
#[doc(hidden)]
pub mod arena;
#[doc(hidden)]
pub mod clock;
#[doc(hidden)]
pub mod compression;
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod frame;
#[doc(hidden)]
pub mod preflight;
#[doc(hidden)]
pub mod shard;
#[doc(hidden)]
pub mod token_bucket;

mod address_rules;
mod app;
mod by_slot;
mod component;
mod connection_id;
mod forwarded;
mod path_pattern;
mod position;
mod routes;
mod server;
mod service_manager;
mod topic;
mod ws_server;

pub use address_rules::{AddressRules, InvalidNetwork};
pub use app::{App, Server};
pub use component::{
    BlockingWork, CloseCause, CloseReason, Component, Connection, ConnectionId, Core, Fault, Message,
    Outcome, Overloaded, PeerAddress, PreparedMessage, SiblingMessage, SubProtocol, SubscriptionLimit,
};
pub use config::Config;
pub use control::{ControlHandle, PublishError, Publisher, Summary};
pub use path_pattern::{InvalidPath, PathParameters};
pub use position::{InvalidPosition, Notice, Position, Start};
pub use server::{RunningServer, StartError};
pub use shard::message::Receipt;
pub use topic::{MAX_TOPIC_BYTES, TopicError, TopicName};
pub use ws::{CloseCode, MessageKind, Rejection, Request};
pub use ws_server::{IntoWsServer, WsServer};

/// The HTTP status of a [`Rejection`].
pub use http::StatusCode;
