//! The components of the server binary: subscribe, publish and subscribe, echo.
//!
//! They are written on the public API alone, and so are the examples of how to use it.

use std::collections::HashMap;
use std::rc::{Rc, Weak};

use crate::component::{Component, Connection, Message};
use crate::topic::TopicName;
use crate::ws::{Rejection, Request};

/// Path below which topics are subscribed to.
pub const SUBSCRIBE_PREFIX: &str = "/sub/";

/// Path below which topics are published to and subscribed to.
pub const PUBLISH_PREFIX: &str = "/pubsub/";

/// Path of the echo.
pub const ECHO_PATH: &str = "/echo";

fn bad_topic(error: crate::topic::TopicError) -> Rejection {
    Rejection::topic(error.to_string())
}

/// `/sub/<topic>[,<topic>…]`: sends what is published; a data frame from the client is a policy violation.
#[derive(Debug, Default)]
pub struct Subscribe {
    sub_protocols: Vec<String>,
}

impl Subscribe {
    /// Speaks these sub-protocols.
    #[must_use]
    pub fn new(sub_protocols: Vec<String>) -> Self {
        Self { sub_protocols }
    }

    fn topics(request: &Request) -> Result<Vec<TopicName>, Rejection> {
        let list = request.uri().path().strip_prefix(SUBSCRIBE_PREFIX).unwrap_or_default();
        TopicName::list_from_path(list).map_err(bad_topic)
    }
}

impl Component for Subscribe {
    fn sub_protocols(&self) -> &[String] {
        &self.sub_protocols
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        Self::topics(request).map(drop)
    }

    fn on_open(&mut self, connection: &Connection) {
        let topics = connection.http_request().map(Self::topics);
        for topic in topics.and_then(Result::ok).unwrap_or_default() {
            connection.subscribe(topic);
        }
    }

    fn takes_messages(&self) -> bool {
        false
    }
}

/// `/pubsub/<topic>`: as subscribe, and what the client sends is published, to itself too.
#[derive(Debug, Default)]
pub struct PublishSubscribe {
    sub_protocols: Vec<String>,
    allowed: bool,
    /// One name per topic in use, so that a connection holds a count and not a name of its own.
    topics: HashMap<TopicName, Weak<TopicName>>,
}

impl PublishSubscribe {
    /// Speaks these sub-protocols; answers every request with 403 unless clients are `allowed` to publish.
    #[must_use]
    pub fn new(sub_protocols: Vec<String>, allowed: bool) -> Self {
        Self { sub_protocols, allowed, topics: HashMap::new() }
    }

    fn topic(request: &Request) -> Result<TopicName, Rejection> {
        let name = request.uri().path().strip_prefix(PUBLISH_PREFIX).unwrap_or_default();
        TopicName::from_path(name).map_err(bad_topic)
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
    fn sub_protocols(&self) -> &[String] {
        &self.sub_protocols
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        if !self.allowed {
            return Err(Rejection::forbidden("clients may not publish here"));
        }
        Self::topic(request).map(drop)
    }

    fn on_open(&mut self, connection: &Connection) {
        let topic = connection.http_request().map(Self::topic);
        if let Some(Ok(topic)) = topic {
            connection.set_data(self.shared(topic.clone()));
            connection.subscribe(topic);
        }
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) {
        if let Some(topic) = connection.data::<TopicName>() {
            connection.publish(&topic, message);
        }
    }

    fn on_close(&mut self, connection: &Connection, _reason: &crate::component::CloseReason) {
        // The last connection of a topic takes its entry along.
        if let Some(topic) = connection.data::<TopicName>() {
            if Rc::strong_count(&topic) <= 2 {
                self.topics.remove(&*topic);
            }
        }
    }
}

/// `/echo`: sends every message back.
#[derive(Debug, Default)]
pub struct Echo {
    sub_protocols: Vec<String>,
}

impl Echo {
    /// Speaks these sub-protocols.
    #[must_use]
    pub fn new(sub_protocols: Vec<String>) -> Self {
        Self { sub_protocols }
    }
}

impl Component for Echo {
    fn sub_protocols(&self) -> &[String] {
        &self.sub_protocols
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) {
        connection.reply(message);
    }
}
