//! Which component serves which path. One table per core.

use crate::component::Component;
use crate::ws::{OriginPolicy, Rejection, Request, handshake};

/// Paths that a route serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This path only.
    Exact(String),
    /// Every path that begins so, and has more behind it.
    Prefix(String),
}

impl Pattern {
    /// Whether the route serves this path.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
        }
    }
}

/// One route: the paths, who may come, and the component that serves them.
pub struct Route {
    /// Paths served.
    pub pattern: Pattern,
    /// Origins that browsers may come from.
    pub origins: OriginPolicy,
    /// Whether a client that offers sub-protocols must offer one of the component's.
    pub strict_sub_protocols: bool,
    /// The component of this core.
    pub component: Box<dyn Component>,
    /// What the component said of itself.
    takes_messages: bool,
}

impl Route {
    /// A route for browsers of the same host, with the strict check of sub-protocols.
    #[must_use]
    pub fn new(pattern: Pattern, component: Box<dyn Component>) -> Self {
        let takes_messages = component.takes_messages();
        Self {
            pattern,
            origins: OriginPolicy::SameHost,
            strict_sub_protocols: true,
            component,
            takes_messages,
        }
    }
}

/// What a request is answered with.
#[derive(Debug)]
pub struct Accepted {
    /// Index of the route.
    pub route: u8,
    /// The sub-protocol chosen.
    pub sub_protocol: Option<String>,
}

/// The routes of one core, in the order in which they are asked.
#[derive(Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Adds a route behind those there are.
    ///
    /// # Panics
    /// When there are 256 routes already.
    pub fn add(&mut self, route: Route) {
        assert!(self.0.len() < 256, "a shard has at most 256 routes");
        self.0.push(route);
    }

    /// The component of a route.
    pub(crate) fn component(&mut self, route: u8) -> &mut dyn Component {
        &mut *self.0[usize::from(route)].component
    }

    /// Whether clients of a route may send messages.
    pub(crate) fn takes_messages(&self, route: u8) -> bool {
        self.0[usize::from(route)].takes_messages
    }

    /// Judges an upgrade request: the first reason to refuse it, or the route that takes it.
    pub(crate) fn accept(&mut self, request: &Request) -> Result<Accepted, Rejection> {
        let path = request.uri().path();
        let found = self.0.iter_mut().enumerate().find(|(_, route)| route.pattern.matches(path));
        let (index, route) = found.ok_or_else(Rejection::not_found)?;
        handshake::check_upgrade(request)?;
        route.origins.check(request)?;
        let supported = route.component.sub_protocols();
        let chosen = handshake::select_subprotocol(request, supported, route.strict_sub_protocols)?;
        let sub_protocol = chosen.map(str::to_owned);
        route.component.on_request(request)?;
        Ok(Accepted { route: index as u8, sub_protocol })
    }
}
