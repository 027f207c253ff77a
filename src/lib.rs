//! A thread-per-core WebSocket push server for Linux: publish one message, and every subscriber on every core
//! has it within the time that the kernel needs to send it.
//!
//! # Architecture
//!
//! Each CPU core runs one *shard*: a pinned [glommio](https://docs.rs/glommio) executor with its own listeners
//! (SO_REUSEPORT), connections, topics, keep-alive wheel and io_uring. Nothing is shared between shards, and
//! nothing is locked: owned messages cross in single-producer single-consumer rings. A *control thread* does
//! everything that is not the hot path: HTTP publish, metrics, health, signals.
//!
//! Every topic has one *owner* shard. A publish goes there, gets its place in the topic's order, is encoded
//! once and handed to each shard that has subscribers; each sends everything of a topic that arrived in one
//! pass as one write per connection.
//!
//! | Module | Owns | Lives on |
//! |---|---|---|
//! | [`config`] | every limit and knob | start |
//! | [`app`] | a server put together from the parts below | start |
//! | [`component`], [`routes`] | what users write, and which path it serves | its shard |
//! | [`push`] | the components of the server binary | its shard |
//! | [`shard`] | connections, topics, fan-out of one core | its shard |
//! | [`control`] | HTTP API, metrics, signals | the control thread |
//! | [`ws`] | the protocol, without sockets, clocks or a runtime | anywhere |
//! | [`topic`], [`frame`], [`compression`], [`arena`], [`clock`] | names, encoded messages, bytes of a pass, time | anywhere |
//!
//! Imports point one way: `app` → `control` → `shard` → `component` → `ws`.

pub mod app;
pub mod arena;
pub mod clock;
pub mod component;
pub mod compression;
pub mod config;
pub mod control;
pub mod frame;
pub mod preflight;
pub mod push;
pub mod routes;
pub mod shard;
pub mod topic;
pub mod ws;
