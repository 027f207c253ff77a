//! The user's side of a connection: what a server does with it ([`Component`]) and what it can do to it
//! ([`Connection`]).
//!
//! Everything here lives on one core. A callback may do anything to any connection of its core at any
//! moment and nothing re-enters: what it asks for is queued in the core's `Context` and carried out by the
//! shard after the callback has returned. A [`Connection`] is a name, not the socket: it is cheap to clone,
//! and harmless once the connection is gone.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::arena::{Arena, Span};
use crate::clock;
use crate::compression::{Compressors, Encoding};
use crate::frame::Frame;
use crate::topic::TopicName;
/// A whole message from a client: text, always valid UTF-8, or binary.
pub use crate::ws::Payload as Message;
use crate::ws::frame::ServerHeader;
use crate::ws::{CloseCode, MessageKind, Rejection, Request, close};

/// Names a connection for as long as the process lives: its slot may be used again, the generation tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// Shard that owns the connection.
    pub shard: u16,
    /// Slot in that shard's slab.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// Close code of RFC 6455 section 7.4: the peer's, or the one sent to it; 1006 when there was none.
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
    /// A publish by this client could not be taken.
    Overloaded,
    /// A callback panicked.
    Panic,
    /// The server is shutting down.
    Drain,
    /// The transport ended or failed without a close frame.
    Transport,
}

/// A fault that concerns one connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// A callback of the component panicked; the connection is closed with 1011.
    Panic(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(message) => write!(f, "a callback panicked: {message}"),
        }
    }
}

impl std::error::Error for Fault {}

/// What a server does with its connections. One instance per core; it need not be `Send`.
///
/// Every callback has a default, and a panic in one costs that connection only.
pub trait Component: 'static {
    /// Sub-protocols this component speaks, best first (RFC 6455 section 1.9).
    fn sub_protocols(&self) -> &[String] {
        &[]
    }

    /// Whether clients may send messages. If not, a data frame closes with 1008 as soon as its header is here,
    /// and nothing of it is held. Asked once, when the component is made.
    fn takes_messages(&self) -> bool {
        true
    }

    /// Sees the upgrade request before it is answered.
    ///
    /// # Errors
    /// A [`Rejection`] is sent instead of the 101, and the connection never opens.
    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        let _ = request;
        Ok(())
    }

    /// The connection is open. Here, and only here, [`Connection::http_request`] has the request.
    fn on_open(&mut self, connection: &Connection) {
        let _ = connection;
    }

    /// A whole message has arrived.
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) {
        let _ = (connection, message);
    }

    /// The connection is gone; called exactly once for each `on_open`.
    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        let _ = (connection, reason);
    }

    /// Something went wrong that concerns this connection.
    fn on_error(&mut self, connection: &Connection, fault: &Fault) {
        let _ = (connection, fault);
    }
}

/// A handle to one connection of this core.
pub struct Connection {
    id: ConnectionId,
    context: Rc<Context>,
    request: Option<Rc<Request>>,
}

impl Clone for Connection {
    /// The same connection, without the request: a handle that is kept does not keep that.
    fn clone(&self) -> Self {
        Self { id: self.id, context: self.context.clone(), request: None }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, context: &Rc<Context>, request: Option<Rc<Request>>) -> Self {
        Self { id, context: context.clone(), request }
    }

    /// The connection's name.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The upgrade request; `None` outside of [`Component::on_open`].
    #[must_use]
    pub fn http_request(&self) -> Option<&Request> {
        self.request.as_deref()
    }

    /// Whether the connection is closing or gone.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.context.with_visible(self.id, |visible| visible.closing).unwrap_or(true)
    }

    /// Sends a text message. Ignored when the connection is closing or gone.
    pub fn send_text(&self, text: &str) {
        self.send(MessageKind::Text, text.as_bytes());
    }

    /// Sends a binary message. Ignored when the connection is closing or gone.
    pub fn send_binary(&self, payload: &[u8]) {
        self.send(MessageKind::Binary, payload);
    }

    /// Answers in the kind in which a message came. Ignored when the connection is closing or gone.
    pub fn reply(&self, message: Message<'_>) {
        self.send(message.kind(), message.as_bytes());
    }

    fn send(&self, kind: MessageKind, payload: &[u8]) {
        let encoding =
            self.context.with_visible(self.id, |visible| (!visible.closing).then_some(visible.encoding));
        if let Some(Some(encoding)) = encoding {
            self.context.send_message(self.id, encoding, kind, payload);
        }
    }

    /// Closes normally (1000).
    pub fn close(&self) {
        self.close_with(1000, "");
    }

    /// Closes with a code of RFC 6455 section 7.4 and a reason of at most 123 bytes; a longer one is cut. A
    /// code that may not be sent (1004–1006, 1015, outside 1000–4999) becomes 1011.
    pub fn close_with(&self, code: u16, reason: &str) {
        self.close_for(CloseCause::Component, code, reason);
    }

    pub(crate) fn close_for(&self, cause: CloseCause, code: u16, text: &str) {
        let code = if close::is_sendable(CloseCode::from(code)) { code } else { 1011 };
        let first =
            self.context.with_visible(self.id, |visible| !std::mem::replace(&mut visible.closing, true));
        if first == Some(true) {
            let reason = CloseReason { code, text: text.to_owned(), cause };
            self.context.push(Command::Close { connection: self.id, reason });
        }
    }

    /// Subscribes to a topic: from the moment the shard has the owner's word, every message published to it
    /// on any core is sent to this connection. A second subscription to the same topic changes nothing.
    pub fn subscribe(&self, topic: TopicName) {
        self.context.push(Command::Subscribe { connection: self.id, topic });
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, topic: TopicName) {
        self.context.push(Command::Unsubscribe { connection: self.id, topic });
    }

    /// Publishes to the topic's subscribers on all cores. When they cannot take it, this connection is
    /// closed with 1013 (try again later).
    pub fn publish(&self, topic: &TopicName, message: Message<'_>) {
        let frame = Frame::new(message.kind(), message.as_bytes(), clock::monotonic_nanos());
        self.context.publish_bytes.set(self.context.publish_bytes.get() + frame.memory_bytes());
        self.context.push(Command::Publish { connection: self.id, topic: topic.clone(), frame });
    }

    /// Attaches a value of the component's own to the connection; it is dropped with the connection.
    pub fn set_data<T: 'static>(&self, data: Rc<T>) {
        // The earlier value is dropped outside of the borrow: its own drop may use handles.
        let data: Rc<dyn Any> = data;
        let mut data = Some(data);
        self.context.with_visible(self.id, |visible| std::mem::swap(&mut visible.data, &mut data));
    }

    /// The attached value, if there is one of this type.
    #[must_use]
    pub fn data<T: 'static>(&self) -> Option<Rc<T>> {
        let data = self.context.with_visible(self.id, |visible| visible.data.clone())??;
        data.downcast().ok()
    }
}

/// What a callback asked for, in order.
#[derive(Debug)]
pub(crate) enum Command {
    Send {
        connection: ConnectionId,
        bytes: Span,
    },
    Close {
        connection: ConnectionId,
        reason: CloseReason,
    },
    Subscribe {
        connection: ConnectionId,
        topic: TopicName,
    },
    Unsubscribe {
        connection: ConnectionId,
        topic: TopicName,
    },
    Publish {
        connection: ConnectionId,
        topic: TopicName,
        frame: Arc<Frame>,
    },
    /// From the shard itself: the opening callback is over, its subscriptions stand before this.
    Release {
        connection: ConnectionId,
    },
}

/// What handles can see of a connection.
#[derive(Default)]
struct Visible {
    generation: u32,
    closing: bool,
    encoding: Encoding,
    data: Option<Rc<dyn Any>>,
}

/// What the handles of one core share with its shard. No borrow of it outlives a call.
pub(crate) struct Context {
    shard: u16,
    compressors: RefCell<Compressors>,
    visible: RefCell<Vec<Visible>>,
    commands: RefCell<Vec<Command>>,
    arena: RefCell<Arena>,
    /// Bytes of the frames among the commands.
    publish_bytes: Cell<usize>,
}

impl Context {
    pub(crate) fn new(shard: u16, compressors: Compressors) -> Rc<Self> {
        Rc::new(Self {
            shard,
            compressors: RefCell::new(compressors),
            visible: RefCell::default(),
            commands: RefCell::default(),
            arena: RefCell::default(),
            publish_bytes: Cell::new(0),
        })
    }

    /// Calls `work` with the core's compressors.
    pub(crate) fn with_compressors<R>(&self, work: impl FnOnce(&mut Compressors) -> R) -> R {
        work(&mut self.compressors.borrow_mut())
    }

    pub(crate) fn shard(&self) -> u16 {
        self.shard
    }

    /// Makes a connection visible to handles.
    pub(crate) fn opened(&self, id: ConnectionId, encoding: Encoding) {
        let mut visible = self.visible.borrow_mut();
        let slot = id.slot as usize;
        if visible.len() <= slot {
            visible.resize_with(slot + 1, Visible::default);
        }
        visible[slot] = Visible { generation: id.generation, closing: false, encoding, data: None };
    }

    /// Marks a connection as closing; its handles see it at once.
    pub(crate) fn closing(&self, id: ConnectionId) {
        self.with_visible(id, |visible| visible.closing = true);
    }

    /// Forgets a connection; its handles do nothing from now on.
    pub(crate) fn gone(&self, id: ConnectionId) {
        let data = self.with_visible(id, |visible| {
            visible.closing = true;
            visible.generation = visible.generation.wrapping_add(1);
            visible.data.take()
        });
        // Dropped only here, outside of the borrow: the value's own drop may use handles.
        drop(data);
    }

    fn with_visible<R>(&self, id: ConnectionId, look: impl FnOnce(&mut Visible) -> R) -> Option<R> {
        let mut visible = self.visible.borrow_mut();
        visible.get_mut(id.slot as usize).filter(|visible| visible.generation == id.generation).map(look)
    }

    /// Encodes a message for a connection and queues it.
    fn send_message(&self, id: ConnectionId, encoding: Encoding, kind: MessageKind, payload: &[u8]) {
        let mut compressors = self.compressors.borrow_mut();
        match compressors.compress(encoding, kind, payload) {
            Some((header, compressed)) => self.send_bytes(id, header.as_bytes(), compressed),
            None => {
                let header = ServerHeader::new(kind.opcode(), false, payload.len());
                self.send_bytes(id, header.as_bytes(), payload);
            }
        }
    }

    /// Queues encoded bytes for a connection.
    pub(crate) fn send_bytes(&self, connection: ConnectionId, head: &[u8], tail: &[u8]) {
        let span = self.arena.borrow_mut().append(head, tail);
        let mut commands = self.commands.borrow_mut();
        if let Some(Command::Send { connection: last, bytes }) = commands.last_mut() {
            if *last == connection && bytes.extend(span) {
                return;
            }
        }
        commands.push(Command::Send { connection, bytes: span });
    }

    pub(crate) fn push(&self, command: Command) {
        self.commands.borrow_mut().push(command);
    }

    /// Place in the queue, for [`Context::any_since`].
    pub(crate) fn mark(&self) -> usize {
        self.commands.borrow().len()
    }

    /// Whether a command queued since the mark is of a kind. Commands that joined an older one do not count.
    pub(crate) fn any_since(&self, mark: usize, is: impl FnMut(&Command) -> bool) -> bool {
        self.commands.borrow().get(mark..).is_some_and(|queued| queued.iter().any(is))
    }

    /// Bytes queued and not yet taken by the shard: messages, and the commands themselves.
    pub(crate) fn queued_bytes(&self) -> usize {
        let commands = self.commands.borrow().len() * size_of::<Command>();
        self.arena.borrow().len() + self.publish_bytes.get() + commands
    }

    /// Swaps the queue for empty ones: afterwards the caller's hold what was asked for so far. False when
    /// there was nothing.
    pub(crate) fn take(&self, commands: &mut Vec<Command>, arena: &mut Arena) -> bool {
        debug_assert!(commands.is_empty() && arena.is_empty());
        if self.commands.borrow().is_empty() {
            return false;
        }
        std::mem::swap(commands, &mut self.commands.borrow_mut());
        std::mem::swap(arena, &mut self.arena.borrow_mut());
        self.publish_bytes.set(0);
        true
    }
}
