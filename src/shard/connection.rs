//! A connection's life on its shard, from accept to the free slot.
//!
//! ```text
//! Handshake ──101──▶ Open ──our close──▶ Closing ──peer's close──┐
//!     │               │ ├──peer's close──────────────▶ Finishing ┤
//!  refusal          error, slow consumer                         │
//!     └──────▶ Linger ◀┘ ──peer's end, time up──▶ Dead ◀─────────┘ ──watches over──▶ Free
//! ```
//!
//! Invariants:
//! 1. `on_close` runs exactly once for each `on_open`, when the connection leaves `Open` or `Closing` for good
//!    ([`Shard::end_session`]).
//! 2. Nothing but a close frame follows once closing has begun: subscriptions end first.
//! 3. A socket is closed only when the kernel has no watch on it and no send to it is staged, so that a new
//!    connection of the same descriptor number can get nothing that was meant for the old one.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use http::HeaderMap;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::admission::{Preface, RETRY_AFTER_SECONDS};
use super::listener::Sharing;
use super::outbound::Outbound;
use super::ring::same_generation;
use super::slab::State;
use super::stats::TurnEnd;
use super::{Shard, TURN_BYTES, TURN_QUEUED_BYTES};
use crate::component::{CloseCause, CloseReason, Command, Connection, SubProtocol, SubscriptionLimit};
use crate::compression::Encoding;
use crate::connection_id::ConnectionId;
use crate::token_bucket::TokenBucket;
use crate::ws::{self, Event, Limits, RejectReason, Rejection, Request};

impl Shard {
    // ---- accept ----

    /// Arms every listener that is not armed, unless the shard is to accept no more.
    pub(super) fn arm_listeners(&mut self) {
        for (number, listener) in self.listeners.iter_mut().enumerate() {
            if let (Some(socket), false) = (&listener.socket, listener.armed || listener.stopped) {
                let once = listener.sharing == Sharing::Shards;
                self.ring.accept(number as u32, std::os::fd::AsFd::as_fd(socket), once);
                listener.armed = true;
            }
        }
    }

    pub(super) fn on_accepted(&mut self, listener: u32, result: io::Result<OwnedFd>, more: bool) {
        if !more {
            self.listeners[listener as usize].armed = false;
        }
        match result {
            Ok(socket) => {
                self.admit(TcpStream::from(socket));
                if !more {
                    self.arm_listeners();
                }
            }
            // Out of descriptors or memory: clients wait in the backlog until a connection goes or the next
            // tick tries again. Anything else concerns one client that is gone already.
            Err(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    self.stats.rejected[RejectReason::Descriptors.index()].add(1);
                    tracing::warn!(shard = self.mesh.shard(), %error, "cannot accept connections");
                }
                Some(libc::ECANCELED) => {}
                _ if !more => self.arm_listeners(),
                _ => {}
            },
        }
        if !more && self.listeners[listener as usize].stopped {
            self.close_listener(listener as usize);
        }
    }

    // ---- bytes in ----

    pub(super) fn on_readable(&mut self, index: u32, generation: u32, ended: bool, more: bool) {
        let slot = &mut self.slab[index];
        if slot.state == State::Free || !same_generation(slot.generation, generation) {
            return;
        }
        slot.watching_readable = more;
        if slot.state == State::Dead {
            return self.free_if_unwatched(index);
        }
        // Where it is to have a turn anyway, another one would make it two, and each pass one more.
        if !slot.unread {
            self.read_and_watch(index, ended);
        }
    }

    /// Gives a connection its turn: reads, and watches on unless more is to be read first. With `until_end` what is read is
    /// followed by an end.
    ///
    /// Who has said something and says more before the keep-alive looks again is watched for good: that is cheaper with each
    /// read, but to end it the kernel searches among all that it watches. Everybody else, and so a subscriber that only
    /// answers pings, is watched for one time and then not at all, and can be closed at once when it ends.
    pub(super) fn read_and_watch(&mut self, index: u32, until_end: bool) {
        let slot = &self.slab[index];
        let id = self.slab.id(index);
        let talks = slot.heard && slot.state == State::Open;
        let put_off = if self.put_off.is_empty() { None } else { self.put_off.remove(&index) };
        let more = match put_off {
            Some(mut bytes) => {
                self.slab[index].heard = true;
                self.on_bytes(index, &mut bytes);
                true
            }
            None => self.read(index, until_end) || self.put_off.contains_key(&index),
        };
        let Some(slot) = self.slab.find(id) else { return };
        if more {
            slot.unread = true;
            return self.unread.push(id);
        }
        // Behind the end nothing comes, and a watch would report the end again and again.
        if slot.watching_readable || slot.peer_ended || slot.state == State::Dead {
            return;
        }
        let each_time = talks && slot.state == State::Open;
        self.watch_readable(index, each_time);
    }

    /// Watches for something to read, once or each time. There must be no such watch.
    pub(super) fn watch_readable(&mut self, index: u32, each_time: bool) {
        let slot = &mut self.slab[index];
        slot.watching_readable = true;
        if let Some(socket) = slot.descriptor() {
            self.ring.watch_readable(index, slot.generation, socket, each_time);
        }
    }

    /// Reads once; true if there may be more, which is read later in the pass, so that one busy client does not hold
    /// up all.
    fn read(&mut self, index: u32, until_end: bool) -> bool {
        let mut buffer = std::mem::take(&mut self.receive_buffer);
        let slot = &mut self.slab[index];
        // Not by the C library, whose wrapper makes each call a point at which the thread may be cancelled.
        let result = match slot.descriptor() {
            Some(socket) => recv(socket, &mut buffer[..], RecvFlags::empty()).map(|(length, _)| length),
            None => Ok(0),
        };
        let mut more = false;
        match result {
            Ok(0) => self.on_end(index),
            Ok(length) => {
                slot.heard = true;
                more = length == buffer.len() || until_end;
                self.on_bytes(index, &mut buffer[..length]);
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(Errno::INTR) => more = true,
            Err(_) => self.kill(index, CloseCause::Transport),
        }
        self.receive_buffer = buffer;
        more
    }

    fn on_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        match self.slab[index].state {
            State::Handshake => self.on_request_bytes(index, bytes),
            State::Open | State::Closing => self.on_frame_bytes(index, bytes),
            // Thrown away: the peer may still be sending when it has already been told that it is over.
            State::Linger | State::Finishing | State::Dead | State::Free => {}
        }
    }

    fn on_end(&mut self, index: u32) {
        let slot = &mut self.slab[index];
        slot.peer_ended = true;
        match slot.state {
            // The peer ended its side only; what is said to it last may still be read.
            State::Finishing => {}
            State::Linger if !slot.write_ended => {}
            _ => self.kill(index, CloseCause::Transport),
        }
    }

    fn on_request_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        let Some(mut earlier) = self.partial_requests.remove(&index) else {
            if let Some(from) = self.take_request(index, bytes, 0) {
                self.partial_requests.insert(index, bytes[from..].to_vec());
            }
            return;
        };
        let seen = earlier.len();
        earlier.extend_from_slice(bytes);
        if let Some(from) = self.take_request(index, &mut earlier, seen) {
            earlier.drain(..from);
            self.partial_requests.insert(index, earlier);
        }
    }

    /// Handles a request once it is complete; while it is not, says where it begins. The first `seen` bytes were not
    /// enough.
    fn take_request(&mut self, index: u32, bytes: &mut [u8], seen: usize) -> Option<usize> {
        let from = match self.take_preface(index, bytes) {
            Preface::Incomplete => return Some(0),
            Preface::Refused => return None,
            Preface::Over(length) => length,
        };
        let bytes = &mut bytes[from..];
        let seen = if from == 0 { seen } else { 0 };
        match ws::handshake::parse_more(bytes, seen, self.settings.max_handshake_bytes) {
            Ok(None) => return Some(from),
            Ok(Some((request, length))) => {
                self.on_request(index, request);
                // Frames may follow in the same packet, but mean something only if the upgrade was accepted.
                if self.slab[index].state == State::Open && bytes.len() > length {
                    self.on_frame_bytes(index, &mut bytes[length..]);
                }
            }
            Err(rejection) => self.reject(index, &rejection),
        }
        None
    }

    fn on_request(&mut self, index: u32, mut request: Request) {
        if self.is_too_late() {
            return self
                .reject(index, &Rejection::unavailable("the server is shutting down", RETRY_AFTER_SECONDS));
        }
        if let Some(over) = self.slab[index].over_limit {
            return self.reject(index, &over.rejection());
        }
        let peer = match self.client_of(index, &request) {
            Ok(peer) => peer,
            Err(rejection) => return self.reject(index, &rejection),
        };
        let limit = SubscriptionLimit(self.settings.max_subscriptions);
        request.extensions_mut().insert(limit);
        let routes = &mut self.routes;
        let accepted = match catch_unwind(AssertUnwindSafe(|| routes.accept(&mut request, peer))) {
            Ok(accepted) => accepted,
            Err(_) => {
                self.stats.callback_panics.add(1);
                Err(Rejection::internal())
            }
        };
        let mut response = std::mem::take(&mut self.scratch);
        response.clear();
        let compression = self.settings.compression;
        let accepted = accepted.and_then(|accepted| {
            let negotiated = if compression { ws::extension::negotiate(&request)? } else { None };
            let extensions = negotiated.map(|negotiated| negotiated.response_value());
            let (sub_protocol, extensions) = (accepted.sub_protocol.as_deref(), extensions.as_deref());
            let more = HeaderMap::new();
            ws::handshake::write_acceptance(accepted.key, sub_protocol, extensions, &more, &mut response)?;
            let window = negotiated.map(|negotiated| Encoding::window(negotiated.server_window_bits));
            Ok((accepted, window.unwrap_or_default()))
        });
        match accepted {
            Ok((accepted, encoding)) => {
                self.slab[index].encoding = encoding;
                if let Some(name) = accepted.sub_protocol {
                    request.extensions_mut().insert(SubProtocol(name));
                }
                self.open(index, accepted.route, peer, request, &response);
            }
            Err(rejection) => self.reject(index, &rejection),
        }
        self.scratch = response;
    }

    /// Opens the connection. The 101 stands before anything that `on_open` sends; it is held back while the
    /// owner of a topic has yet to confirm, or may refuse, so that a client that sees it misses nothing published afterwards.
    fn open(&mut self, index: u32, route: u8, peer: Option<SocketAddr>, request: Request, response: &[u8]) {
        let id = self.slab.id(index);
        let slot = &mut self.slab[index];
        slot.state = State::Open;
        slot.route = route;
        let encoding = slot.encoding;
        let request = Rc::new(request);
        let kept = self.routes.keeps_requests(route).then(|| request.clone());
        self.context.opened(id, encoding, peer, kept);
        self.stats.connections.add(1);
        self.stats.opened.add(1);
        let peer = || peer.or_else(|| self.slab[index].peer()).map(tracing::field::display);
        let path = request.uri().path();
        tracing::debug!(shard = id.shard, connection = %id, peer = peer(), path, "connection opened");
        self.context.send_bytes(id, response, &[]);
        let mark = self.context.mark();
        self.call(id, route, Some(request), |component, connection| component.on_open(connection));
        let (local, shards, shard) = (&self.local, self.mesh.shards(), self.mesh.shard());
        let with_ids = self.context.any_since(mark, |command| matches!(command, Command::ShowIds { .. }));
        let topics_may_end = self.may_meet_topic_limit();
        let must_wait = self.context.any_since(mark, |command| match command {
            Command::Subscribe { topic, .. } | Command::SubscribeFrom { topic, .. }
                if topic.owner(shards) == shard =>
            {
                topics_may_end
            }
            Command::Subscribe { topic, .. } => with_ids || !local.is_joined(topic),
            Command::SubscribeFrom { .. } => true,
            _ => false,
        });
        if must_wait {
            let held = Outbound::held();
            self.context.show_queue(id, held.shown_bytes());
            self.slab[index].outbound = Some(Box::new(held));
            self.context.push(Command::Release { connection: id });
        }
    }

    pub(super) fn reject(&mut self, index: u32, rejection: &Rejection) {
        self.note_rejected(index, rejection);
        let mut response = std::mem::take(&mut self.scratch);
        response.clear();
        ws::handshake::write_rejection(rejection, &mut response);
        self.context.send_bytes(self.slab.id(index), &response, &[]);
        self.scratch = response;
        self.linger(index);
    }

    /// Counts a client that is refused with an answer, and logs it.
    pub(super) fn note_rejected(&self, index: u32, rejection: &Rejection) {
        self.stats.rejected[rejection.reason.index()].add(1);
        // Of what the peer chose there is its origin alone, escaped and bounded.
        tracing::info!(
            shard = self.mesh.shard(),
            peer = self.slab[index].peer().map(tracing::field::display),
            reason = rejection.reason.as_str(),
            status = rejection.status().as_u16(),
            detail = &*rejection.message,
            origin = rejection.refused_origin.as_deref(),
            "handshake refused"
        );
    }

    fn on_frame_bytes(&mut self, index: u32, bytes: &mut [u8]) {
        let id = self.slab.id(index);
        let slot = &mut self.slab[index];
        let mut session = std::mem::take(&mut slot.session);
        let mut inflater = match slot.encoding.is_compressed() {
            true => Some(self.inflater.take().unwrap_or_default()),
            false => None,
        };
        let takes_messages = self.routes.takes_messages(slot.route);
        let limits = Limits { takes_messages, ..self.limits };
        let mut input = bytes;
        let mut taken_bytes = 0;
        loop {
            match session.next_event(&mut input, &limits, inflater.as_deref_mut()) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if let Event::Message(message) = &event {
                        taken_bytes += message.as_bytes().len();
                    }
                    if !self.on_event(id, event) {
                        session.clear();
                        break;
                    }
                    if taken_bytes > TURN_BYTES || self.context.queued_bytes() > TURN_QUEUED_BYTES {
                        self.end_turn(index, input, taken_bytes);
                        break;
                    }
                }
                Err(error) => {
                    session.clear();
                    self.fail(index, error);
                    break;
                }
            }
        }
        self.slab[index].session = session;
        if inflater.is_some() {
            self.inflater = inflater;
        }
    }

    /// Ends a connection's turn; what it has brought beyond that is for its next one.
    fn end_turn(&mut self, index: u32, rest: &[u8], taken_bytes: usize) {
        if !rest.is_empty() {
            let end = if taken_bytes > TURN_BYTES { TurnEnd::Messages } else { TurnEnd::Answers };
            self.stats.turns_ended[end as usize].add(1);
        }
        self.put_off.insert(index, rest.to_vec());
    }

    /// Whether a message is within the connection's rate; if not, the connection is closed.
    fn takes_message(&mut self, id: ConnectionId, route: u8) -> bool {
        let Some(rate) = self.settings.message_rate else {
            return true;
        };
        let now_nanos = self.now_nanos;
        let full = || TokenBucket::full(now_nanos, rate);
        if self.message_rates.entry(id.slot).or_insert_with(full).take(now_nanos, rate, rate) {
            return true;
        }
        // Queued, as what a component asks for: what its earlier messages brought about goes ahead.
        let connection = Connection::new(id, route, &self.context, None);
        connection.close_for(CloseCause::RateLimit, 1008, "message rate");
        false
    }

    /// Handles what the peer did; false when nothing that follows matters.
    fn on_event(&mut self, id: ConnectionId, event: Event<'_>) -> bool {
        let (state, route) = (self.slab[id.slot].state, self.slab[id.slot].route);
        match event {
            Event::Message(message) => {
                if state == State::Open && self.takes_message(id, route) {
                    self.call(id, route, None, |component, connection| {
                        if connection.is_closing() {
                            return Ok(());
                        }
                        component.on_message(connection, message)
                    });
                }
                true
            }
            Event::Ping(payload) => {
                if state == State::Open {
                    let header = ws::ServerHeader::new(ws::frame::PONG, false, payload.len());
                    self.context.send_bytes(id, header.as_bytes(), payload);
                }
                true
            }
            Event::Pong(_) => true,
            Event::Close(frame) => {
                let reason = match self.closings.remove(&id.slot) {
                    Some(ours) => ours,
                    None => {
                        let mut reply = std::mem::take(&mut self.scratch);
                        reply.clear();
                        ws::close::encode_reply(frame, &mut reply);
                        self.context.send_bytes(id, &reply, &[]);
                        self.scratch = reply;
                        CloseReason {
                            code: frame.map_or(1005, |frame| frame.code.into()),
                            text: frame.map_or_else(String::new, |frame| frame.reason.to_owned()),
                            cause: CloseCause::Peer,
                        }
                    }
                };
                self.end_session(id.slot, &reason);
                self.finish(id.slot);
                false
            }
        }
    }
}
