//! The components of the server binary: subscribe, publish and subscribe, echo.
//!
//! They are written on the library's public API alone.

use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use corecast::decorators::IpDenyList;
use corecast::{
    AddressRules, App, CloseReason, Component, Config, Connection, Message, Outcome, PathParameters,
    Rejection, Request, SubProtocol, SubscriptionLimit, TopicError, TopicName, WsServer,
};

use super::beginnings::Beginnings;

/// Path of [`Subscribe`].
const SUBSCRIBE_PATH: &str = "/sub/{*topics}";

/// Path of [`PublishSubscribe`].
const PUBLISH_PATH: &str = "/pubsub/{*topic}";

/// Path of [`Echo`].
const ECHO_PATH: &str = "/echo";

/// The sub-protocol in which every message comes with its id; the browser client of that name speaks it.
const META_PROTOCOL: &str = "ws+meta.nchan";

/// A connection opened without a request: the library's fault.
const MISSING: &str = "the request is missing";

fn bad_topic(error: TopicError) -> Rejection {
    match error {
        TopicError::TooMany => Rejection::subscriptions(),
        error => Rejection::topic(error.to_string()),
    }
}

/// Subscribes to topics as the request wants it.
fn subscribe(
    connection: &Connection,
    topics: impl IntoIterator<Item = TopicName>,
    beginnings: &Beginnings,
) -> Outcome {
    let request = connection.http_request().ok_or(MISSING)?;
    if request.extensions().get::<SubProtocol>().is_some_and(|name| name.0 == META_PROTOCOL) {
        connection.show_message_ids();
    }
    for (at, topic) in topics.into_iter().enumerate() {
        match beginnings.start(at) {
            None => connection.subscribe(topic)?,
            Some(start) => connection.subscribe_from(topic, start, beginnings.notice)?,
        }
    }
    Ok(())
}

/// `/sub/<topic>[,<topic>…]`: sends what is published; a data frame from the client is a policy violation.
#[derive(Debug, Default)]
pub(crate) struct Subscribe {
    sub_protocols: Vec<String>,
    /// What the request that opens next asks for.
    asked: Option<(Vec<TopicName>, Beginnings)>,
}

impl Subscribe {
    /// Speaks these sub-protocols.
    #[must_use]
    pub(crate) fn new(sub_protocols: Vec<String>) -> Self {
        Self { sub_protocols, asked: None }
    }

    fn topics(request: &Request) -> Result<Vec<TopicName>, TopicError> {
        let most = request.extensions().get::<SubscriptionLimit>().map_or(usize::MAX, |limit| limit.0);
        TopicName::list_from_path(PathParameters::of(request).get("topics").unwrap_or_default(), most)
    }
}

impl Component for Subscribe {
    fn sub_protocols(&mut self) -> Vec<String> {
        self.sub_protocols.clone()
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        let topics = Self::topics(request).map_err(bad_topic)?;
        let beginnings = Beginnings::of(request, topics.len())?;
        self.asked = Some((topics, beginnings));
        Ok(())
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let (topics, beginnings) = self.asked.take().ok_or(MISSING)?;
        subscribe(connection, topics, &beginnings)
    }

    fn takes_messages(&mut self) -> bool {
        false
    }
}

/// `/pubsub/<topic>`: as subscribe, and what the client sends is published, to itself too.
#[derive(Debug, Default)]
pub(crate) struct PublishSubscribe {
    sub_protocols: Vec<String>,
    allowed: bool,
    /// What the request that opens next asks for.
    asked: Option<(TopicName, Beginnings)>,
    /// The names of topics in use, each held once and counted by its connections.
    topics: HashMap<TopicName, Weak<TopicName>>,
    /// The topic of each connection, by its slot: half of what [`Connection::set_data`] would take.
    of_slot: Vec<Option<Rc<TopicName>>>,
}

impl PublishSubscribe {
    /// Speaks these sub-protocols; answers every request with 403 unless clients are `allowed` to publish.
    #[must_use]
    pub(crate) fn new(sub_protocols: Vec<String>, allowed: bool) -> Self {
        Self { sub_protocols, allowed, ..Self::default() }
    }

    fn topic(request: &Request) -> Result<TopicName, TopicError> {
        TopicName::from_path(PathParameters::of(request).get("topic").unwrap_or_default())
    }

    fn shared(&mut self, topic: TopicName) -> Rc<TopicName> {
        if let Some(shared) = self.topics.get(&topic).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Rc::new(topic.clone());
        self.topics.insert(topic, Rc::downgrade(&shared));
        shared
    }
}

impl Component for PublishSubscribe {
    fn sub_protocols(&mut self) -> Vec<String> {
        self.sub_protocols.clone()
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        if !self.allowed {
            return Err(Rejection::forbidden(
                "clients may not publish here: --client-publish would let them",
            ));
        }
        let topic = Self::topic(request).map_err(bad_topic)?;
        self.asked = Some((topic, Beginnings::of(request, 1)?));
        Ok(())
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let (topic, beginnings) = self.asked.take().ok_or(MISSING)?;
        let (slot, shared) = (connection.id().slot as usize, self.shared(topic));
        let topic = TopicName::clone(&shared);
        if self.of_slot.len() <= slot {
            self.of_slot.resize(slot + 1, None);
        }
        self.of_slot[slot] = Some(shared);
        subscribe(connection, [topic], &beginnings)
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let topic = self.of_slot.get(connection.id().slot as usize).and_then(Option::as_ref);
        connection.publish(&**topic.ok_or("the topic is missing")?, message)?;
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, _reason: &CloseReason) {
        let topic = self.of_slot.get_mut(connection.id().slot as usize).and_then(Option::take);
        // The last connection of a topic takes its entry along.
        if let Some(topic) = topic.filter(|topic| Rc::strong_count(topic) == 1) {
            self.topics.remove(&*topic);
        }
    }
}

/// `/echo`: sends every message back.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    sub_protocols: Vec<String>,
}

impl Echo {
    /// Speaks these sub-protocols.
    #[must_use]
    pub(crate) fn new(sub_protocols: Vec<String>) -> Self {
        Self { sub_protocols }
    }
}

impl Component for Echo {
    fn sub_protocols(&mut self) -> Vec<String> {
        self.sub_protocols.clone()
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        connection.send(message);
        Ok(())
    }
}

/// An app with the routes of the server binary. Connections from addresses of `denied` are refused.
pub(crate) fn app(config: Config, denied: &AddressRules) -> App {
    let keep_alive = Duration::from_millis(config.keepalive_millis);
    let (mut names, strict) = (config.subprotocols.clone(), config.strict_subprotocols);
    let (client_publish, echo) = (config.client_publish, config.echo);
    let server =
        |server: WsServer| server.enable_keep_alive(keep_alive).set_strict_sub_protocol_check(strict);
    let echoed = names.clone();
    if !names.iter().any(|name| name == META_PROTOCOL) {
        names.push(META_PROTOCOL.to_owned());
    }
    let (subscribe, publish) = (names.clone(), names);
    let rules = denied.clone();
    let subscribe = WsServer::new(move || IpDenyList::new(Subscribe::new(subscribe.clone()), rules.clone()));
    let rules = denied.clone();
    let publish = WsServer::new(move || {
        IpDenyList::new(PublishSubscribe::new(publish.clone(), client_publish), rules.clone())
    });
    let app = App::from_config(config)
        .route(SUBSCRIBE_PATH, server(subscribe))
        .configured_origins()
        .route(PUBLISH_PATH, server(publish))
        .configured_origins();
    if !echo {
        return app;
    }
    let rules = denied.clone();
    let echo = WsServer::new(move || IpDenyList::new(Echo::new(echoed.clone()), rules.clone()));
    app.route(ECHO_PATH, server(echo)).configured_origins()
}
