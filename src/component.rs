//! The user's side of a connection: what a server does with it ([`Component`]) and what it can do to it
//! ([`Connection`]).
//!
//! | Module | Owns |
//! |---|---|
//! | `connection` | the handle to one connection |
//! | `core` | the handle to one core: tasks, timers, sibling components |
//! | `prepared` | messages that are encoded once and sent to many |
//! | `context` | what the handles of one core share with its shard |
//!
//! Everything here lives on one core. A callback may do anything to any connection of its core at any
//! moment and nothing re-enters: what it asks for is queued and carried out by the shard after the callback has
//! returned. A [`Connection`] is a name, not the socket: it is cheap to clone, and harmless once the connection
//! is gone.

mod connection;
mod context;
mod core;
mod prepared;

use std::any::{Any, type_name};
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::address_rules::AddressRules;
pub use crate::connection_id::ConnectionId;
use crate::topic::TopicName;
/// A whole message: text, always valid UTF-8, or binary. What `send` and `publish` take is made from `&str`,
/// `&String`, `&[u8]` and `&Vec<u8>`.
pub use crate::ws::Payload as Message;
use crate::ws::{Rejection, Request};

pub use self::connection::Connection;
pub use self::core::{BlockingWork, Core, Overloaded};
pub use self::prepared::PreparedMessage;
pub(crate) use context::{Command, Context, Origin};
pub(crate) use core::{Executor, LocalFuture};

/// What a callback comes to. An `Err` is told to [`Component::on_error`] and closes the connection with 1011.
/// Any error converts by `?`, and so does a `&str` by `Err("why")?`.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// Close code of RFC 6455 section 7.4: the peer's, or the one sent to it; 1005 when the peer gave none, 1006
    /// when there was no close frame.
    pub code: u16,
    /// Text that came with the code.
    pub text: String,
    /// What brought it about.
    pub cause: CloseCause,
}

/// What brought a connection's end about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseCause {
    /// The client sent a close frame.
    Peer,
    /// A component closed the connection.
    Component,
    /// The client broke the protocol.
    Protocol,
    /// The client answered no ping for a whole interval.
    KeepAlive,
    /// The client did not read and its send queue was full.
    SlowConsumer,
    /// The client sent more messages than `--message-rate` or [`crate::decorators::RateLimit`] let pass.
    RateLimit,
    /// A topic that the client had subscribed to was deleted by the publish API.
    TopicDeleted,
    /// A publish by this client could not be taken.
    Overloaded,
    /// A callback, or a task of this connection, panicked or failed.
    Fault,
    /// The server is shutting down.
    Drain,
    /// The transport ended or failed without a close frame.
    Transport,
}

/// A fault that concerns one connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// A callback or a task panicked; the text is the panic's message.
    Panic(String),
    /// A callback or a task returned an error.
    Error(Box<dyn Error>),
}

impl Fault {
    /// The fault that stands for a caught panic.
    pub(crate) fn of_panic(panic: Box<dyn Any + Send>) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        drop_caught(panic);
        Self::Panic(text)
    }
}

/// Drops something of a user's; a panic in its drop is nobody's fault any more.
pub(crate) fn drop_caught<T>(value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // What the panic carries may panic in its own drop.
        std::mem::forget(panic);
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(message) => write!(f, "panicked: {message}"),
            Self::Error(error) => error.fmt(f),
        }
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Panic(_) => None,
            Self::Error(error) => Some(&**error),
        }
    }
}

/// A value that came from the instance of this component on another core. See [`Core::send_to_siblings`].
pub struct SiblingMessage {
    from: usize,
    value: Box<dyn Any + Send>,
}

impl SiblingMessage {
    pub(crate) fn new(from: usize, value: Box<dyn Any + Send>) -> Self {
        Self { from, value }
    }

    /// The shard that sent it.
    #[must_use]
    pub fn from(&self) -> usize {
        self.from
    }

    /// The value, moved out.
    ///
    /// # Errors
    /// When the value is of another type: the caller's mistake, told in words that name the type.
    pub fn downcast<T: Any>(self) -> Result<T, Box<dyn Error>> {
        match self.value.downcast() {
            Ok(value) => Ok(*value),
            Err(_) => Err(format!("a message from a sibling is no {}", type_name::<T>()).into()),
        }
    }
}

impl fmt::Debug for SiblingMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiblingMessage").field("from", &self.from).finish_non_exhaustive()
    }
}

/// What a server does with its connections: Ratchet's `MessageComponentInterface`. One instance per core, made
/// there by its route's factory; it need not be `Send`.
///
/// Every callback has a default. A panic or an `Err` in one is told to [`Component::on_error`] and costs that
/// connection only; [`Component::on_close`] runs exactly once for each [`Component::on_open`].
///
/// ```
/// use corecast::{Component, Connection, Message, Outcome};
///
/// struct Echo;
///
/// impl Component for Echo {
///     fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
///         connection.send(message);
///         Ok(())
///     }
/// }
/// ```
///
/// A decorator names in [`Component::inner`] what it wraps: every callback that it does not write itself goes
/// there.
///
/// ```
/// use corecast::{Component, Connection, Message, Outcome};
///
/// /// Lets through what is not too loud.
/// struct Calm<C>(C);
///
/// impl<C: Component> Component for Calm<C> {
///     fn inner(&mut self) -> Option<&mut dyn Component> {
///         Some(&mut self.0)
///     }
///
///     fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
///         match message {
///             Message::Text(text) if text.ends_with('!') => Ok(()),
///             message => self.0.on_message(connection, message),
///         }
///     }
/// }
/// ```
pub trait Component: 'static {
    /// The component that this one decorates, if it does: where callbacks go that are not overridden.
    fn inner(&mut self) -> Option<&mut dyn Component> {
        None
    }

    /// Sub-protocols this component speaks, in any order: of those, a client gets the one that it offers first (RFC 6455
    /// section 1.9). Asked once, on each core.
    fn sub_protocols(&mut self) -> Vec<String> {
        self.inner().map(|inner| inner.sub_protocols()).unwrap_or_default()
    }

    /// Whether clients may send messages. If not, a data frame closes with 1008 as soon as its header is here,
    /// and nothing of it is held. Asked once, on each core.
    fn takes_messages(&mut self) -> bool {
        self.inner().is_none_or(|inner| inner.takes_messages())
    }

    /// Whether [`Connection::http_request`] is to have the request for as long as the connection lives, and not
    /// in `on_open` only. It costs the request's memory, about 1 KiB for a browser's. Asked once, on each core.
    fn keeps_requests(&mut self) -> bool {
        self.inner().is_some_and(|inner| inner.keeps_requests())
    }

    /// Addresses whose connections are refused: at once when every route refuses them, else with 403. Asked
    /// once, on each core; the rules themselves may change at any time.
    fn address_rules(&mut self) -> Vec<AddressRules> {
        self.inner().map(|inner| inner.address_rules()).unwrap_or_default()
    }

    /// The core has been set up and is about to accept connections: the place to start tasks that belong to no
    /// connection.
    ///
    /// # Errors
    /// Whatever stands in the way of serving: it ends the start of the server, as a panic does.
    fn on_start(&mut self, core: &Core) -> Outcome {
        self.inner().map_or(Ok(()), |inner| inner.on_start(core))
    }

    /// Sees the upgrade request before it is answered. Its extensions have the [`PeerAddress`], and the
    /// [`crate::PathParameters`] of the route. No other callback comes between this one and the request's `on_open`, so
    /// what has been worked out here can be kept for that; but there is no `on_open` if the request is refused after all.
    ///
    /// # Errors
    /// A [`Rejection`] is sent instead of the 101, and the connection never opens.
    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        self.inner().map_or(Ok(()), |inner| inner.on_request(request))
    }

    /// The connection is open, and [`Connection::http_request`] has the request.
    ///
    /// # Errors
    /// Whatever makes the connection of no use: it is told to [`Component::on_error`], and closed with 1011.
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        self.inner().map_or(Ok(()), |inner| inner.on_open(connection))
    }

    /// A whole message has arrived. Not called any more once the connection is closing.
    ///
    /// # Errors
    /// As those of [`Component::on_open`]. A message that only displeases is no error: answer it, or close the
    /// connection with a code that says so.
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        match self.inner() {
            Some(inner) => inner.on_message(connection, message),
            None => Ok(()),
        }
    }

    /// What waited for this connection because it read too slowly has all gone out: it can take more again.
    ///
    /// # Errors
    /// As those of [`Component::on_open`].
    fn on_drain(&mut self, connection: &Connection) -> Outcome {
        self.inner().map_or(Ok(()), |inner| inner.on_drain(connection))
    }

    /// The instance of this component on another core has sent a value.
    ///
    /// # Errors
    /// Whatever went wrong: no connection is to blame, so it is logged and counted, as a panic is, and nothing else
    /// comes of it.
    fn on_sibling(&mut self, core: &Core, message: SiblingMessage) -> Outcome {
        match self.inner() {
            Some(inner) => inner.on_sibling(core, message),
            None => Ok(()),
        }
    }

    /// A publish reached nobody, because the shards could not take more or there was no room for its topic: one by
    /// [`Core::publish`], or by [`Connection::publish`] of a connection that could not be closed for it any more. Who
    /// publishes again at once, and finds no room for the topic again, keeps the core busy with that.
    fn on_refused(&mut self, core: &Core, topic: &TopicName) {
        if let Some(inner) = self.inner() {
            inner.on_refused(core, topic);
        }
    }

    /// The connection is gone; called exactly once for each `on_open`. What is sent to it is ignored.
    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        if let Some(inner) = self.inner() {
            inner.on_close(connection, reason);
        }
    }

    /// A callback or a task of this connection failed. Afterwards the connection is closed with 1011, unless it
    /// is closing already: to send another code, close it here. Logged where nobody overrides it.
    fn on_error(&mut self, connection: &Connection, fault: &Fault) {
        match self.inner() {
            Some(inner) => inner.on_error(connection, fault),
            None => tracing::warn!(connection = %connection.id(), error = %fault, "a callback failed"),
        }
    }
}

/// The sub-protocol that was agreed on, as the extension of the request that `on_open` sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubProtocol(pub String);

/// Topics that one connection may be subscribed to, as an extension of every request: `--max-subscriptions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionLimit(pub usize);

/// Address of a connection's other end, or of the client that a trusted proxy names, as the extension of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);
