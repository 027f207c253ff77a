//! A component as a WebSocket server: what makes it, and how its connections are kept.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::component::Component;
use crate::path_pattern::PathPattern;
use crate::routes::Route;
use crate::ws::OriginPolicy;

/// Makes a component, on the core that it is for.
type Factory = Arc<dyn Fn() -> Box<dyn Component> + Send + Sync>;

/// A component and how its connections are kept: Ratchet's `WsServer`. One component is made for each core.
///
/// ```
/// # use corecast::{App, Component, WsServer};
/// # use std::time::Duration;
/// # struct Chat;
/// # impl Component for Chat {}
/// let chat = WsServer::new(|| Chat)
///     .enable_keep_alive(Duration::from_secs(10))
///     .set_strict_sub_protocol_check(false);
/// let app = App::new("localhost", 8080).route("/chat", chat);
/// ```
#[derive(Clone)]
#[must_use = "it serves when it is the component of a route"]
pub struct WsServer {
    factory: Factory,
    /// `None` is what the configuration says.
    keep_alive: Option<Duration>,
    strict_sub_protocols: bool,
}

impl fmt::Debug for WsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsServer")
            .field("keep_alive", &self.keep_alive)
            .field("strict_sub_protocols", &self.strict_sub_protocols)
            .finish_non_exhaustive()
    }
}

impl WsServer {
    /// Serves the components that `factory` makes; without keep-alive, with the strict check of sub-protocols.
    pub fn new<C, F>(factory: F) -> Self
    where
        C: Component,
        F: Fn() -> C + Send + Sync + 'static,
    {
        let factory = Arc::new(move || Box::new(factory()) as Box<dyn Component>);
        Self { factory, keep_alive: Some(Duration::ZERO), strict_sub_protocols: true }
    }

    /// Pings every client once in each interval, spread over it; one that has not been heard of when its next
    /// ping is due is disconnected. Zero turns it off; otherwise from 10 ms to 24 h.
    pub fn enable_keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = Some(interval);
        self
    }

    /// Whether a client that offers sub-protocols must offer one of the component's, else it is refused with 400.
    /// On at first.
    pub fn set_strict_sub_protocol_check(mut self, enable: bool) -> Self {
        self.strict_sub_protocols = enable;
        self
    }

    /// The interval, where the configuration has `configured`.
    pub(crate) fn keep_alive(&self, configured: Duration) -> Duration {
        self.keep_alive.unwrap_or(configured)
    }
}

/// What can be the component of a route: a [`WsServer`], or a factory alone, which gets a keep-alive of 30 s (or
/// what the configuration says).
pub trait IntoWsServer {
    /// The server.
    fn into_ws_server(self) -> WsServer;
}

impl IntoWsServer for WsServer {
    fn into_ws_server(self) -> WsServer {
        self
    }
}

impl<C, F> IntoWsServer for F
where
    C: Component,
    F: Fn() -> C + Send + Sync + 'static,
{
    fn into_ws_server(self) -> WsServer {
        WsServer { keep_alive: None, ..WsServer::new(self) }
    }
}

/// A route before its component is made.
#[derive(Clone, Debug)]
pub(crate) struct RouteSpec {
    pub(crate) pattern: PathPattern,
    pub(crate) host: Option<String>,
    /// `None` is what the configuration says.
    pub(crate) origins: Option<OriginPolicy>,
    pub(crate) server: WsServer,
}

impl RouteSpec {
    /// Makes the route of one core; `keep_alive` and `origins` are what the configuration says.
    pub(crate) fn make(&self, keep_alive: Duration, origins: &OriginPolicy) -> Route {
        Route {
            pattern: self.pattern.clone(),
            host: self.host.clone(),
            origins: self.origins.as_ref().unwrap_or(origins).clone(),
            has_configured_origins: self.origins.is_none(),
            strict_sub_protocols: self.server.strict_sub_protocols,
            keepalive: self.server.keep_alive(keep_alive),
            component: (self.server.factory)(),
        }
    }
}
