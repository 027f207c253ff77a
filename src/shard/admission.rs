//! Who may connect: the limits of the process, of an address and of time, and whose address a connection has.
//!
//! A connection that is over a limit is kept just long enough for its request to be answered with 503; where too
//! many are, it is cut. An address counts from the moment it is known: at accept for a direct peer, with the
//! PROXY header or the request for one behind a trusted proxy.
//!
//! Invariants:
//! 1. An address is counted at most once per connection, and given back when its socket is closed
//!    ([`Shard::forget_admission`]), whichever way that came about.
//! 2. What a proxy says is believed only while `trusted_proxies` has the address that says it.

use std::net::{SocketAddr, TcpStream};

use super::address_counts::{AddressCounts, AddressKey};
use super::slab::OverLimit;
use super::stats::places_taken;
use super::{REFUSAL_RESERVE, Shard};
use crate::component::CloseCause;
use crate::forwarded::{ProxyHeader, forwarded_for, is_trusted, parse_proxy_header};
use crate::token_bucket::SharedRate;
use crate::ws::{RejectReason, Rejection, Request};

/// What a client refused for the server's own reasons is told to wait, in seconds.
pub(super) const RETRY_AFTER_SECONDS: u32 = 5;

/// What a client over the accept rate is told to wait, in seconds: the rate's own unit.
const RATE_RETRY_AFTER_SECONDS: u32 = 1;

/// What all shards count together.
#[derive(Debug)]
pub struct ProcessCounts {
    addresses: AddressCounts,
    accepts: SharedRate,
}

impl ProcessCounts {
    /// For a process of that many connections.
    #[must_use]
    pub fn new(max_connections: u64) -> Self {
        Self { addresses: AddressCounts::new(max_connections), accepts: SharedRate::default() }
    }
}

/// What the front of a connection's bytes came to.
pub(super) enum Preface {
    /// Its PROXY header is not complete.
    Incomplete,
    /// There is none, or its client may not connect: the connection is gone.
    Refused,
    /// The request begins after this many bytes.
    Over(usize),
}

impl OverLimit {
    fn reason(self) -> RejectReason {
        match self {
            Self::Process => RejectReason::Capacity,
            Self::Address => RejectReason::PerIp,
            Self::Rate => RejectReason::AcceptRate,
        }
    }

    /// What the request is answered with.
    pub(super) fn rejection(self) -> Rejection {
        match self {
            Self::Process => Rejection::capacity(RETRY_AFTER_SECONDS),
            Self::Address => Rejection::per_ip(RETRY_AFTER_SECONDS),
            Self::Rate => Rejection::accept_rate(RATE_RETRY_AFTER_SECONDS),
        }
    }
}

impl Shard {
    /// Takes an accepted socket in, or closes it.
    pub(super) fn admit(&mut self, socket: TcpStream) {
        let sockets: u64 = self.all_stats.iter().map(|stats| stats.sockets.get()).sum();
        if sockets >= self.settings.max_connections + REFUSAL_RESERVE {
            return self.count_rejected(RejectReason::Capacity);
        }
        let is_full = places_taken(&self.all_stats) >= self.settings.max_connections;
        let looks_at_peer =
            self.settings.max_connections_per_ip.is_some() || !self.settings.trusted_proxies.is_empty();
        let peer = looks_at_peer.then(|| socket.peer_addr().ok()).flatten();
        let by_proxy = peer.is_some_and(|peer| self.is_trusted(peer));
        if !by_proxy && self.routes.refuses(|| peer.or_else(|| socket.peer_addr().ok())) {
            return self.count_rejected(RejectReason::Address);
        }
        let (mut counted, mut over_limit) = (None, None);
        if is_full {
            over_limit = Some(OverLimit::Process);
        } else {
            match peer.filter(|_| !by_proxy).map(|peer| self.acquire(peer)) {
                Some(Err(over)) => over_limit = Some(over),
                Some(Ok(key)) => counted = key,
                None => {}
            }
            if over_limit.is_none() && !self.takes_accept() {
                over_limit = Some(OverLimit::Rate);
            }
        }
        if over_limit.is_some_and(|over| self.cuts(over)) {
            if let Some(key) = counted {
                self.process.addresses.release(key);
            }
            return;
        }
        let index = self.slab.insert(socket);
        self.counted.extend(counted.map(|key| (index, key)));
        let slot = &mut self.slab[index];
        slot.over_limit = over_limit;
        slot.awaits_proxy_header = by_proxy && self.settings.proxy_protocol;
        self.watch_readable(index, false);
        self.stats.sockets.add(1);
        self.stats.places.add(u64::from(over_limit.is_none()));
        let slab = &mut self.slab;
        self.handshake_deadlines.drop_ended(|id| slab.find(id).is_some_and(|slot| slot.is_unanswered()));
        self.handshake_deadlines.start(self.slab.id(index), self.now_nanos);
    }

    /// Reads the PROXY header of a connection that must have one.
    pub(super) fn take_preface(&mut self, index: u32, bytes: &[u8]) -> Preface {
        if !self.slab[index].awaits_proxy_header {
            return Preface::Over(0);
        }
        let (refusal, length) = match parse_proxy_header(bytes) {
            Ok(None) => return Preface::Incomplete,
            Ok(Some(ProxyHeader { client: None, length })) => {
                self.proxied.insert(index, None);
                (None, length)
            }
            Ok(Some(ProxyHeader { client: Some(client), length })) => {
                (self.meet_client(index, client), length)
            }
            Err(_) => (Some(RejectReason::ProxyHeader), 0),
        };
        self.slab[index].awaits_proxy_header = false;
        match refusal {
            None => Preface::Over(length),
            Some(reason) => {
                self.count_rejected(reason);
                self.kill(index, CloseCause::Transport);
                Preface::Refused
            }
        }
    }

    /// A proxy has said for whom it connects; the reason if the connection is to be cut for that.
    fn meet_client(&mut self, index: u32, client: SocketAddr) -> Option<RejectReason> {
        self.proxied.insert(index, Some(client));
        // Another proxy, which says more in its request.
        if self.is_trusted(client) {
            return None;
        }
        if self.routes.refuses(|| Some(client)) {
            return Some(RejectReason::Address);
        }
        if self.slab[index].over_limit.is_none() {
            match self.acquire(client) {
                Ok(key) => self.counted.extend(key.map(|key| (index, key))),
                Err(over) if self.refusing() >= REFUSAL_RESERVE => return Some(over.reason()),
                Err(over) => {
                    self.slab[index].over_limit = Some(over);
                    self.stats.places.subtract(1);
                }
            }
        }
        None
    }

    /// The client's address, and its place among the connections of that address.
    ///
    /// # Errors
    /// What the request is answered with: the proxy's word on the client is none, or there is no place.
    pub(super) fn client_of(
        &mut self,
        index: u32,
        request: &Request,
    ) -> Result<Option<SocketAddr>, Rejection> {
        let direct = || self.slab[index].socket.as_ref().and_then(|socket| socket.peer_addr().ok());
        let proxied = self.proxied.get(&index).copied();
        let Some(mut client) = proxied.flatten().or_else(direct) else {
            return Ok(None);
        };
        // Where the PROXY header names nobody, the proxy does not look into requests: what stands there is the client's.
        if proxied != Some(None) && self.is_trusted(client) {
            let named = forwarded_for(request.headers(), &self.settings.trusted_proxies);
            let wrong = "the header X-Forwarded-For has an entry that is no IP address";
            client = named.map_err(|_| Rejection::bad_request(wrong))?.unwrap_or(client);
        }
        if !self.counted.contains_key(&index) {
            let key = self.acquire(client).map_err(OverLimit::rejection)?;
            self.counted.extend(key.map(|key| (index, key)));
        }
        Ok(Some(client))
    }

    /// The connection's socket is closed.
    pub(super) fn forget_admission(&mut self, index: u32) {
        self.stats.places.subtract(u64::from(self.slab[index].over_limit.is_none()));
        self.proxied.remove(&index);
        if let Some(key) = self.counted.remove(&index) {
            self.process.addresses.release(key);
        }
    }

    fn is_trusted(&self, address: SocketAddr) -> bool {
        is_trusted(&self.settings.trusted_proxies, address.ip())
    }

    /// Counts a connection of an address; nothing to give back if there is no limit.
    fn acquire(&self, client: SocketAddr) -> Result<Option<AddressKey>, OverLimit> {
        let Some(limit) = self.settings.max_connections_per_ip else {
            return Ok(None);
        };
        let key = AddressKey::new(client.ip());
        match self.process.addresses.acquire(key, limit) {
            true => Ok(Some(key)),
            false => Err(OverLimit::Address),
        }
    }

    fn takes_accept(&self) -> bool {
        self.settings.accept_rate.is_none_or(|rate| self.process.accepts.take(self.now_nanos, rate))
    }

    /// Whether a connection over a limit is cut, because too many wait to be refused already; then it is counted.
    fn cuts(&self, over: OverLimit) -> bool {
        // Those over the limit of the process are bounded by it.
        let cut = over != OverLimit::Process && self.refusing() >= REFUSAL_RESERVE;
        if cut {
            self.count_rejected(over.reason());
        }
        cut
    }

    /// Connections of this shard that were accepted beyond a limit.
    fn refusing(&self) -> u64 {
        self.stats.sockets.get() - self.stats.places.get()
    }

    /// Counts a client that goes without an answer.
    pub(super) fn count_rejected(&self, reason: RejectReason) {
        self.stats.rejected[reason.index()].add(1);
        tracing::debug!(shard = self.mesh.shard(), reason = reason.as_str(), "handshake cut");
    }
}
