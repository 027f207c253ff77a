//! Which component serves which path. One table per core.

use std::net::SocketAddr;
use std::time::Duration;

use crate::address_rules::AddressRules;
use crate::component::{Component, PeerAddress};
use crate::path_pattern::PathPattern;
use crate::ws::handshake::WebSocketKey;
use crate::ws::{LivePage, OriginPolicy, RejectReason, Rejection, Request, handshake};

/// One route: the paths, who may come, and the component that serves them.
pub(crate) struct Route {
    /// Paths served.
    pub(crate) pattern: PathPattern,
    /// The host that the request must name, without port; `None` is any.
    pub(crate) host: Option<String>,
    /// Origins that browsers may come from.
    pub(crate) origins: OriginPolicy,
    /// Whether these are the configuration's, and change with it.
    pub(crate) has_configured_origins: bool,
    /// Whether a client that offers sub-protocols must offer one of the component's.
    pub(crate) strict_sub_protocols: bool,
    /// Interval of pings; zero is none.
    pub(crate) keepalive: Duration,
    /// The component of this core.
    pub(crate) component: Box<dyn Component>,
}

/// A route, and what its component said of itself.
struct Entry {
    route: Route,
    sub_protocols: Vec<String>,
    takes_messages: bool,
    keeps_requests: bool,
    address_rules: Vec<AddressRules>,
}

/// What a request is answered with.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Index of the route.
    pub(crate) route: u8,
    /// The sub-protocol chosen.
    pub(crate) sub_protocol: Option<String>,
    /// The request's key.
    pub(crate) key: WebSocketKey,
}

/// Most routes that a server can have: a slot has one byte for the number of its route.
pub(crate) const MAX_ROUTES: usize = 256;

/// The routes of one core, in the order in which they are asked.
#[derive(Default)]
pub(crate) struct Routes {
    entries: Vec<Entry>,
    /// The page that may use routes for which nobody has said which pages may.
    live_page: Option<LivePage>,
    /// Whether every route has address rules: only then can an address be refused before its request is here.
    all_have_rules: bool,
}

impl Routes {
    /// None yet.
    pub(crate) fn new(live_page: Option<LivePage>) -> Self {
        Self { live_page, ..Self::default() }
    }

    /// Adds a route behind those there are. More than [`MAX_ROUTES`] are ruled out where routes are gathered.
    pub(crate) fn add(&mut self, mut route: Route) {
        debug_assert!(self.entries.len() < MAX_ROUTES);
        route.origins = route.origins.or_page(self.live_page);
        let component = &mut route.component;
        self.entries.push(Entry {
            sub_protocols: component.sub_protocols(),
            takes_messages: component.takes_messages(),
            keeps_requests: component.keeps_requests(),
            address_rules: component.address_rules(),
            route,
        });
        self.all_have_rules = self.entries.iter().all(|entry| !entry.address_rules.is_empty());
    }

    /// Replaces the origins of those routes that have the configuration's.
    pub(crate) fn set_configured_origins(&mut self, origins: &OriginPolicy) {
        let routes = self.entries.iter_mut().map(|entry| &mut entry.route);
        let origins = origins.clone().or_page(self.live_page);
        routes.filter(|route| route.has_configured_origins).for_each(|r| r.origins.clone_from(&origins));
    }

    /// Number of routes.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The component of a route.
    pub(crate) fn component(&mut self, route: u8) -> &mut dyn Component {
        &mut *self.entries[usize::from(route)].route.component
    }

    /// Whether clients of a route may send messages.
    pub(crate) fn takes_messages(&self, route: u8) -> bool {
        self.entries[usize::from(route)].takes_messages
    }

    /// Whether a route's component keeps requests.
    pub(crate) fn keeps_requests(&self, route: u8) -> bool {
        self.entries[usize::from(route)].keeps_requests
    }

    /// Interval of a route's pings; zero is none.
    pub(crate) fn keepalive(&self, route: u8) -> Duration {
        self.entries[usize::from(route)].route.keepalive
    }

    /// Whether an address is refused whatever it may ask for; `peer` is looked up only if that can be.
    pub(crate) fn refuses(&self, peer: impl FnOnce() -> Option<SocketAddr>) -> bool {
        if !self.all_have_rules || self.entries.is_empty() || self.entries.iter().any(Entry::denies_nobody) {
            return false;
        }
        peer().is_some_and(|peer| self.entries.iter().all(|entry| entry.denies(peer)))
    }

    /// Judges an upgrade request: the first reason to refuse it, or the route that takes it. The request gets its
    /// extensions.
    pub(crate) fn accept(
        &mut self,
        request: &mut Request,
        peer: Option<SocketAddr>,
    ) -> Result<Accepted, Rejection> {
        let (index, parameters) = self.find(request)?;
        let entry = &mut self.entries[index];
        let key = handshake::check_upgrade(request)?;
        if peer.is_some_and(|peer| entry.denies(peer)) {
            return Err(Rejection::new(RejectReason::Address, "this address may not connect"));
        }
        entry.route.origins.check(request)?;
        let chosen =
            handshake::select_subprotocol(request, &entry.sub_protocols, entry.route.strict_sub_protocols)?;
        let sub_protocol = chosen.map(str::to_owned);
        if !parameters.is_empty() {
            request.extensions_mut().insert(parameters);
        }
        if let Some(peer) = peer {
            request.extensions_mut().insert(PeerAddress(peer));
        }
        entry.route.component.on_request(request)?;
        Ok(Accepted { route: index as u8, sub_protocol, key })
    }

    fn find(&self, request: &Request) -> Result<(usize, crate::path_pattern::PathParameters), Rejection> {
        let path = request.uri().path();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.route.host.as_deref().is_some_and(|host| !handshake::names_host(request, host)) {
                continue;
            }
            if let Some(parameters) = entry.route.pattern.matches(path)? {
                return Ok((index, parameters));
            }
        }
        // Whoever wrote the route and tries it by address, not by name, would look for a fault in the path.
        let elsewhere =
            self.entries.iter().find(|entry| matches!(entry.route.pattern.matches(path), Ok(Some(_))));
        match elsewhere.and_then(|entry| entry.route.host.as_deref()) {
            Some(host) => Err(Rejection::other_host(host)),
            None => Err(Rejection::not_found()),
        }
    }
}

impl Entry {
    fn denies_nobody(&self) -> bool {
        self.address_rules.iter().all(AddressRules::is_empty)
    }

    fn denies(&self, peer: SocketAddr) -> bool {
        self.address_rules.iter().any(|rules| rules.denies(peer.ip()))
    }
}
