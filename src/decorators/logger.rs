//! Logs what happens to connections.

use crate::component::{CloseReason, Component, Connection, Fault, Outcome};

/// Logs the opening and the end of connections at level `info` and faults at `warn`, through `tracing`; then lets
/// the component see them. The program has to install a subscriber, such as `tracing_subscriber::fmt::init()`.
#[derive(Debug)]
pub struct Logger<C> {
    inner: C,
}

impl<C: Component> Logger<C> {
    /// Wraps a component.
    pub fn new(inner: C) -> Self {
        Self { inner }
    }
}

impl<C: Component> Component for Logger<C> {
    fn inner(&mut self) -> Option<&mut dyn Component> {
        Some(&mut self.inner)
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let request = connection.http_request();
        let path = request.as_deref().map_or("", |request| request.uri().path());
        let peer = connection.remote_addr();
        tracing::info!(connection = %connection.id(), ?peer, path, "opened");
        self.inner.on_open(connection)
    }

    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        let CloseReason { code, text, cause } = reason;
        tracing::info!(connection = %connection.id(), code, ?cause, text, "closed");
        self.inner.on_close(connection, reason);
    }

    fn on_error(&mut self, connection: &Connection, fault: &Fault) {
        tracing::warn!(connection = %connection.id(), error = %fault, "a callback failed");
        self.inner.on_error(connection, fault);
    }
}
