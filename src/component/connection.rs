//! The handle to one connection.

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;

use super::context::{Command, Context, Origin};
use super::{CloseCause, CloseReason, Core, Message, Outcome, PreparedMessage};
use crate::clock;
use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::path_pattern::PathParameters;
use crate::position::{Notice, Start};
use crate::topic::{TopicError, TopicName};
use crate::ws::{CloseCode, Request, close};

/// A handle to one connection of this core. Handles of one connection are equal, so they can be kept in a set.
///
/// It stays harmless when the connection is gone: what it is told then is ignored. To publish and to spawn still work,
/// for "someone has left".
pub struct Connection {
    id: ConnectionId,
    route: u8,
    context: Rc<Context>,
    request: Option<Rc<Request>>,
}

impl Clone for Connection {
    /// The same connection, without the request: a handle that is kept does not keep that.
    fn clone(&self) -> Self {
        Self { id: self.id, route: self.route, context: self.context.clone(), request: None }
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Connection {}

impl Hash for Connection {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(
        id: ConnectionId,
        route: u8,
        context: &Rc<Context>,
        request: Option<Rc<Request>>,
    ) -> Self {
        Self { id, route, context: context.clone(), request }
    }

    // ---- what it is ----

    /// The connection's name.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The upgrade request: path, query, headers, and in its extensions the [`super::PeerAddress`] and the
    /// [`PathParameters`]. `None` outside of [`super::Component::on_open`], unless the component keeps requests.
    #[must_use]
    pub fn http_request(&self) -> Option<Rc<Request>> {
        self.request.clone().or_else(|| self.context.request(self.id))
    }

    /// The value of a `{name}` in the route's path, decoded; `None` where [`Connection::http_request`] is, or
    /// when the path has no such name.
    #[must_use]
    pub fn path_parameter(&self, name: &str) -> Option<String> {
        let request = self.http_request()?;
        PathParameters::of(&request).get(name).map(str::to_owned)
    }

    /// Address of the other end, or of the client that a trusted proxy names, with port 0 where it names none; `None`
    /// once the connection is gone.
    #[must_use]
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.context.peer(self.id)
    }

    /// The core it lives on.
    #[must_use]
    pub fn core(&self) -> Core {
        Core::new(self.route, &self.context)
    }

    /// Whether the connection is closing or gone.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.context.is_closing(self.id)
    }

    /// Bytes that wait for this connection because it reads too slowly, as of the last pass: what this very
    /// callback has sent is not among them yet.
    #[must_use]
    pub fn send_queue_bytes(&self) -> usize {
        self.context.send_queue_bytes(self.id)
    }

    // ---- what it is told ----

    /// Sends a message. Ignored when the connection is closing or gone.
    ///
    /// ```
    /// # fn example(connection: &corecast::Connection) {
    /// connection.send("text");
    /// connection.send(&[1, 2, 3]);
    /// # }
    /// ```
    pub fn send<'m>(&self, message: impl Into<Message<'m>>) {
        self.context.send(self.id, message.into());
    }

    /// Sends a message that was encoded before; however many connections get it, it is held once. Ignored when
    /// the connection is closing or gone.
    pub fn send_prepared(&self, message: &PreparedMessage) {
        self.context.send_prepared(self.id, message);
    }

    /// Closes the connection; Ratchet's default is [`CloseCode::default`], normal (1000). A code that may not be sent
    /// (RFC 6455 section 7.4: 1004–1006, 1015, outside 1000–4999) becomes 1011. Ignored when the connection is
    /// closing or gone.
    pub fn close(&self, code: CloseCode) {
        self.close_with_reason(code, "");
    }

    /// As [`Connection::close`], with a reason of at most 123 bytes; a longer one is cut.
    pub fn close_with_reason(&self, code: CloseCode, reason: &str) {
        self.close_for(CloseCause::Component, code.into(), reason);
    }

    pub(crate) fn close_for(&self, cause: CloseCause, code: u16, text: &str) {
        let code = if close::is_sendable(CloseCode::from(code)) { code } else { 1011 };
        if self.context.begin_closing(self.id) {
            let reason = CloseReason { code, text: text.to_owned(), cause };
            self.context.push(Command::Close { connection: self.id, reason });
        }
    }

    // ---- topics ----

    /// Subscribes to a topic: from the moment the shard has the owner's word, every message published to it
    /// on any core is sent to this connection. A second subscription to the same topic changes nothing, but in one
    /// callback it counts twice. Where the server has no room for another topic (`--max-topics`), the handshake is
    /// answered with 503 or, once it is over, the connection closed with 1013.
    ///
    /// # Errors
    /// [`TopicError::TooMany`] when the connection has as many subscriptions as it may have (`--max-subscriptions`).
    /// When a text is no [`TopicName`].
    pub fn subscribe<T>(&self, topic: T) -> Result<(), TopicError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        let (connection, topic) = (self.id, topic.try_into()?);
        self.context.subscribe(connection, Command::Subscribe { connection, topic })
    }

    /// As [`Connection::subscribe`], from a place in the past, as far as `Config::history` keeps it: first what the
    /// topic had then, in order, then what is published, without a gap and without a repeat.
    ///
    /// What waits for a slow reader counts towards its send queue in parts; one that cannot keep up with its own past
    /// is closed as a slow consumer.
    ///
    /// ```
    /// # fn example(connection: &corecast::Connection) -> corecast::Outcome {
    /// use corecast::{Notice, Start};
    /// // The last message, so that a page has something to show at once.
    /// connection.subscribe_from("prices", Start::Latest(1), Notice::Never)?;
    /// // On with what this client has not had, and a word if that is impossible.
    /// let last = "0f3a5c7e9b1d2f40:17".parse()?;
    /// connection.subscribe_from("news", Start::After(last), Notice::IfLost)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Connection::subscribe`].
    pub fn subscribe_from<T>(&self, topic: T, start: Start, notice: Notice) -> Result<(), TopicError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        let (connection, topic) = (self.id, topic.try_into()?);
        self.context.subscribe(connection, Command::SubscribeFrom { connection, topic, start, notice })
    }

    /// From now on, messages of topics come to this connection with their ids in front, in the form of the sub-protocol
    /// `ws+meta.nchan`: `id: EPOCH:OFFSET`, `content-type: …`, a blank line, the payload. The id is the [`Position`]
    /// to start after. To be called before it subscribes; ignored afterwards. What is sent to it alone comes as it is.
    ///
    /// [`Position`]: crate::Position
    pub fn show_message_ids(&self) {
        self.context.push(Command::ShowIds { connection: self.id });
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// When a text is no [`TopicName`]; with a `TopicName` never.
    pub fn unsubscribe<T>(&self, topic: T) -> Result<(), TopicError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        self.context.unsubscribe(self.id, topic.try_into()?);
        Ok(())
    }

    /// Publishes to the topic's subscribers on all cores, this connection included if it is one. When they
    /// cannot take it, or the topic is new and there is no room for it (`--max-topics`), this connection is closed with
    /// 1013 (try again later), or if it is closing for another reason or has gone, as in
    /// [`super::Component::on_close`], [`super::Component::on_refused`] is called.
    ///
    /// A topic's messages come in one order to all, but by way of the topic's owner, which may be another core: what
    /// is sent to a connection directly may overtake them.
    ///
    /// # Errors
    /// As [`Connection::unsubscribe`].
    pub fn publish<'m, T>(&self, topic: T, message: impl Into<Message<'m>>) -> Result<(), TopicError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        self.publish_except(topic.try_into()?, message.into(), None);
        Ok(())
    }

    /// As [`Connection::publish`], to all subscribers but this connection.
    ///
    /// # Errors
    /// As [`Connection::unsubscribe`].
    pub fn publish_to_others<'m, T>(
        &self,
        topic: T,
        message: impl Into<Message<'m>>,
    ) -> Result<(), TopicError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        self.publish_except(topic.try_into()?, message.into(), Some(self.id));
        Ok(())
    }

    fn publish_except(&self, topic: TopicName, message: Message<'_>, except: Option<ConnectionId>) {
        let frame = Frame::new(message.kind(), message.as_bytes(), clock::monotonic_nanos(), except);
        let origin = match self.context.is_known(self.id) {
            true => Origin::Connection { id: self.id, route: self.route },
            false => Origin::Core { route: self.route },
        };
        self.context.publish(topic, frame, origin);
    }

    // ---- the component's own ----

    /// Attaches a value of the component's own to the connection; it is dropped with the connection, after
    /// `on_close`.
    pub fn set_data<T: 'static>(&self, data: Rc<T>) {
        self.context.set_data(self.id, data);
    }

    /// The attached value, if there is one of this type.
    #[must_use]
    pub fn data<T: 'static>(&self) -> Option<Rc<T>> {
        self.context.data(self.id)?.downcast().ok()
    }

    /// Runs a future on this core, on behalf of this connection: it may wait for anything, and use this and any
    /// other handle of its core afterwards. An `Err` or a panic is told to [`super::Component::on_error`] as
    /// one in a callback is. The future outlives the connection if it is not done by then; it ends with the
    /// server.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn example(connection: &corecast::Connection) {
    /// let later = connection.clone();
    /// connection.spawn(async move {
    ///     later.core().sleep(Duration::from_secs(1)).await;
    ///     later.send("a second has passed");
    ///     Ok(())
    /// });
    /// # }
    /// ```
    pub fn spawn(&self, task: impl Future<Output = Outcome> + 'static) {
        self.context.spawn(self.route, Some(self.id), task);
    }
}
