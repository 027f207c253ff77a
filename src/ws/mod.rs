//! The WebSocket protocol (RFC 6455) with permessage-deflate (RFC 7692), for the server's side.
//!
//! This layer touches no socket, clock or runtime: bytes go in, events and bytes come out. It imports
//! nothing of this crate, so it can be tested and fuzzed alone.
//!
//! | Module | Owns |
//! |---|---|
//! | [`handshake`] | the HTTP upgrade: request head in, 101 or a rejection out |
//! | [`extension`] | which permessage-deflate offer is accepted |
//! | [`frame`] | frame headers, both ways |
//! | [`mask`] | removing the client's mask |
//! | [`utf8`] | UTF-8 of whole and of streamed text |
//! | [`close`] | close codes and the payload of close frames |
//! | [`session`] | the receiving state of one connection |
//! | [`deflate`] | compressing and inflating one message |
//! | [`error`] | what a peer can do wrong and the close code that answers it |
//!
//! Invariants:
//!
//! 1. Nothing a peer sends can panic, and no allocation follows a length that is only declared.
//! 2. A connection between two messages holds nothing but one pointer that is null.
//! 3. Every refusal is a value that names the cause: [`Rejection`] before the upgrade, [`ProtocolError`]
//!    after it.

pub mod close;
pub mod deflate;
pub mod error;
pub mod extension;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod session;
pub mod utf8;

pub use close::{CloseCode, CloseFrame};
pub use deflate::{Deflater, Inflater};
pub use error::ProtocolError;
pub use extension::Negotiated;
pub use frame::{OpCode, ServerHeader};
pub use handshake::{InvalidOrigin, LivePage, OriginPolicy, RejectReason, Rejection, Request};
pub use session::{Event, Limits, MessageKind, Payload, Session};
