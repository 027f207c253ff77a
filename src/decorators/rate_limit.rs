//! Closes connections that send too many messages.

use std::collections::HashMap;

use crate::clock;
use crate::component::{CloseCause, CloseReason, Component, Connection, Message, Outcome};
use crate::connection_id::ConnectionId;
use crate::token_bucket::TokenBucket;

/// Closes with 1008 `too many messages` a connection that sends more messages than this; counted in
/// `rate_limited_connections_total`. Memory is held for connections only once they send.
///
/// Each connection has a bucket of `burst` messages, which fills again with `per_second` of them a second.
#[derive(Debug)]
pub struct RateLimit<C> {
    inner: C,
    per_second: u32,
    burst: u32,
    buckets: HashMap<ConnectionId, TokenBucket>,
}

impl<C: Component> RateLimit<C> {
    /// Wraps a component: `burst` messages at once, and `per_second` in the long run. Zero of either is taken for
    /// one.
    pub fn new(inner: C, per_second: u32, burst: u32) -> Self {
        Self { inner, per_second: per_second.max(1), burst: burst.max(1), buckets: HashMap::new() }
    }
}

impl<C: Component> Component for RateLimit<C> {
    fn inner(&mut self) -> Option<&mut dyn Component> {
        Some(&mut self.inner)
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let now_nanos = clock::monotonic_nanos();
        let (per_second, burst) = (self.per_second.into(), self.burst.into());
        let full = || TokenBucket::full(now_nanos, burst);
        let bucket = self.buckets.entry(connection.id()).or_insert_with(full);
        if bucket.take(now_nanos, per_second, burst) {
            return self.inner.on_message(connection, message);
        }
        connection.close_for(CloseCause::RateLimit, 1008, "too many messages");
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        self.buckets.remove(&connection.id());
        self.inner.on_close(connection, reason);
    }
}
