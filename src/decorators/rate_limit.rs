//! Closes connections that send too many messages.

use std::collections::HashMap;

use crate::clock;
use crate::component::{CloseCause, CloseReason, Component, Connection, Message, Outcome};
use crate::connection_id::ConnectionId;

/// Closes with 1008 `too many messages` a connection that sends more messages than this; counted in
/// `rate_limited_connections_total`. Memory is held for connections only once they send.
///
/// Each connection has a bucket of `burst` messages, which fills again with `per_second` of them a second.
#[derive(Debug)]
pub struct RateLimit<C> {
    inner: C,
    per_second: u32,
    burst: u32,
    buckets: HashMap<ConnectionId, Bucket>,
}

/// What a connection has left: messages, in billionths.
#[derive(Debug)]
struct Bucket {
    left_nanos: u64,
    seen_nanos: u64,
}

/// One message of a bucket.
const ONE: u64 = 1_000_000_000;

impl Bucket {
    /// Takes a message out at a time; false if there is none.
    fn take(&mut self, now_nanos: u64, per_second: u32, burst: u32) -> bool {
        let passed = now_nanos.saturating_sub(self.seen_nanos);
        self.seen_nanos = now_nanos;
        let filled = self.left_nanos.saturating_add(passed.saturating_mul(per_second.into()));
        self.left_nanos = filled.min(u64::from(burst) * ONE);
        match self.left_nanos.checked_sub(ONE) {
            Some(left) => {
                self.left_nanos = left;
                true
            }
            None => false,
        }
    }
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
        let full = || Bucket { left_nanos: u64::from(self.burst) * ONE, seen_nanos: now_nanos };
        let bucket = self.buckets.entry(connection.id()).or_insert_with(full);
        if bucket.take(now_nanos, self.per_second, self.burst) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket { left_nanos: 3 * ONE, seen_nanos: 0 };
        let mut taken = |now| bucket.take(now, 10, 3);
        assert!(taken(0) && taken(0) && taken(0) && !taken(0));
        assert!(!taken(ONE / 10 - 1), "not quite a tenth of a second");
        assert!(taken(ONE / 10) && !taken(ONE / 10));
        assert!(taken(100 * ONE) && taken(100 * ONE) && taken(100 * ONE), "it is full again");
        assert!(!taken(100 * ONE), "and no more than full");
        assert!(!taken(0), "a clock that stands still gives nothing");
    }
}
