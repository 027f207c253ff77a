//! The connections of one thread: opening, sending, closing, and a count of all that went wrong.
//!
//! A connection costs one [`Connection`] and one descriptor. Only one that is in the middle of a frame, or cannot
//! send at the moment, owns memory besides.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::compression::Offer;
use crate::frame::{self, opcode};
use crate::handshake::{self, Offers};
use crate::sys::{self, Epoll, READABLE, WRITABLE};
use crate::units::Url;

/// Index of a connection within its thread.
pub(crate) type Slot = usize;

/// What went wrong, by kind.
pub(crate) type Faults = BTreeMap<Cow<'static, str>, u64>;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Slot without a connection.
    Vacant,
    /// TCP handshake under way.
    Connecting,
    /// Request sent, response awaited.
    AwaitingResponse,
    /// Both directions in use.
    Open,
    /// Our close frame is sent; the end of the stream is awaited.
    Closing,
}

/// What a connection owns only while it must.
#[derive(Default)]
pub(crate) struct Extra {
    /// Bytes received of a response or frame that is not complete.
    pub(crate) partial: Vec<u8>,
    /// What has come of a fragmented message.
    pub(crate) fragments: Option<Fragments>,
    /// Bytes that the socket did not take yet; the whole request while the connection comes about.
    unsent: Vec<u8>,
}

/// A message whose last fragment is awaited.
pub(crate) struct Fragments {
    pub(crate) text: bool,
    pub(crate) wire_bytes: usize,
    pub(crate) payload: Vec<u8>,
}

impl Extra {
    /// True if there is nothing in it.
    pub(crate) fn is_idle(&self) -> bool {
        self.partial.is_empty() && self.fragments.is_none() && self.unsent.is_empty()
    }
}

/// One connection.
pub(crate) struct Connection {
    socket: Option<OwnedFd>,
    pub(crate) state: State,
    target: u16,
    /// When it was begun, or was meant to be.
    pub(crate) started_ns: u64,
    pub(crate) extra: Option<Box<Extra>>,
}

const _: () = assert!(size_of::<Connection>() <= 64);

/// Where connections may go, and in which subprotocol.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) subprotocol: Option<&'static str>,
}

/// All connections of one thread.
pub(crate) struct Links {
    pub(crate) epoll: Epoll,
    connections: Vec<Connection>,
    vacant: Vec<Slot>,
    targets: Vec<Target>,
    /// Offered on every connection.
    pub(crate) compression: Option<Offer>,
    sources: Vec<IpAddr>,
    next_source: usize,
    outgoing: Vec<u8>,
    mask_state: u64,
    opening: usize,
    open: usize,
    /// Pings answered.
    pub(crate) pings: u64,
    pub(crate) faults: Faults,
}

impl Links {
    /// No connections yet; those to come go to one of `targets`, from the addresses `sources` in turn.
    pub(crate) fn new(
        targets: Vec<Target>,
        compression: Option<Offer>,
        sources: Vec<IpAddr>,
        first_source: usize,
    ) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            connections: Vec::new(),
            vacant: Vec::new(),
            targets,
            compression,
            sources,
            next_source: first_source,
            outgoing: Vec::new(),
            mask_state: sys::now_ns() | 1,
            opening: 0,
            open: 0,
            pings: 0,
            faults: Faults::new(),
        })
    }

    /// Connections whose handshake is under way.
    pub(crate) fn opening(&self) -> usize {
        self.opening
    }

    /// Connections that are open.
    pub(crate) fn open_count(&self) -> usize {
        self.open
    }

    /// The connection in `slot`.
    #[inline]
    pub(crate) fn connection(&mut self, slot: Slot) -> &mut Connection {
        &mut self.connections[slot]
    }

    /// The socket in `slot` while it has one.
    #[inline]
    pub(crate) fn socket(&self, slot: Slot) -> Option<&OwnedFd> {
        self.connections.get(slot)?.socket.as_ref()
    }

    /// Counts something that went wrong.
    #[cold]
    pub(crate) fn fault(&mut self, kind: impl Into<Cow<'static, str>>) {
        *self.faults.entry(kind.into()).or_default() += 1;
    }

    /// What was offered on the connection in `slot`.
    pub(crate) fn offers(&self, slot: Slot) -> Offers {
        self.offers_of(&self.targets[usize::from(self.connections[slot].target)])
    }

    fn offers_of(&self, target: &Target) -> Offers {
        Offers { compression: self.compression, subprotocol: target.subprotocol }
    }

    /// Begins a connection to target number `target`; a failure is counted.
    pub(crate) fn begin(&mut self, target: usize, started_ns: u64) -> Option<Slot> {
        self.begin_with(target, None, started_ns)
    }

    /// Begins a connection to target number `target` with `query` after its path; a failure is counted.
    pub(crate) fn begin_with(&mut self, target: usize, query: Option<&str>, started_ns: u64) -> Option<Slot> {
        let source = (!self.sources.is_empty()).then(|| self.sources[self.next_source % self.sources.len()]);
        self.next_source += 1;
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(Connection {
                socket: None,
                state: State::Vacant,
                target: 0,
                started_ns: 0,
                extra: None,
            });
            self.connections.len() - 1
        });
        let request =
            handshake::request(&self.targets[target].url, query, self.offers_of(&self.targets[target]));
        match self.start(slot, self.targets[target].url.address, &request, source) {
            Ok((socket, state)) => {
                let connection = &mut self.connections[slot];
                (connection.socket, connection.state) = (Some(socket), state);
                (connection.target, connection.started_ns) = (target as u16, started_ns);
                if state == State::Connecting {
                    connection.extra.get_or_insert_default().unsent = request;
                }
                self.opening += 1;
                Some(slot)
            }
            Err(error) => {
                self.vacant.push(slot);
                self.fault(connect_kind(&error));
                None
            }
        }
    }

    /// Connects, and sends the request at once if the connection is there already, as it is on loopback.
    fn start(
        &self,
        slot: Slot,
        address: SocketAddr,
        request: &[u8],
        source: Option<IpAddr>,
    ) -> io::Result<(OwnedFd, State)> {
        let socket = sys::connect(address, source)?;
        let token = slot as u64;
        match sys::send(&socket, request) {
            Ok(count) if count == request.len() => {
                self.epoll.add(&socket, READABLE, token)?;
                Ok((socket, State::AwaitingResponse))
            }
            Ok(_) => Err(io::Error::other("request sent in part")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                self.epoll.add(&socket, WRITABLE, token)?;
                Ok((socket, State::Connecting))
            }
            Err(error) => Err(error),
        }
    }

    /// Sends the request over a connection that has just come about.
    pub(crate) fn send_request(&mut self, slot: Slot) -> Result<(), Cow<'static, str>> {
        let connection = &mut self.connections[slot];
        let Some(socket) = &connection.socket else {
            return Ok(());
        };
        let request = connection.extra.take().map(|extra| extra.unsent).unwrap_or_default();
        match sys::send(socket, &request) {
            Ok(count) if count == request.len() => {}
            Ok(_) => return Err("request_sent_in_part".into()),
            Err(error) => return Err(connect_kind(&error)),
        }
        connection.state = State::AwaitingResponse;
        self.epoll.modify(socket, READABLE, slot as u64).map_err(|error| connect_kind(&error))
    }

    /// Notes that the handshake in `slot` is complete.
    pub(crate) fn opened(&mut self, slot: Slot) {
        self.connections[slot].state = State::Open;
        self.opening -= 1;
        self.open += 1;
    }

    /// Lets messages go out on `slot` although the server has not acknowledged those before.
    pub(crate) fn send_at_once(&mut self, slot: Slot) {
        if self.socket(slot).is_some_and(|socket| sys::send_at_once(socket).is_err()) {
            self.fault("no_delay_not_possible");
        }
    }

    /// Appends a message to what the next [`flush`](Self::flush) sends.
    pub(crate) fn append(&mut self, opcode: u8, payload: &[u8]) {
        self.mask_state ^= self.mask_state << 13;
        self.mask_state ^= self.mask_state >> 7;
        self.mask_state ^= self.mask_state << 17;
        let key = (self.mask_state as u32).to_ne_bytes();
        frame::append_masked(&mut self.outgoing, opcode, payload, key);
    }

    /// Sends what was appended to `slot`; what the socket does not take waits for room.
    pub(crate) fn flush(&mut self, slot: Slot) {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        self.send_or_keep(slot, &outgoing);
        outgoing.clear();
        self.outgoing = outgoing;
    }

    fn send_or_keep(&mut self, slot: Slot, bytes: &[u8]) {
        let connection = &mut self.connections[slot];
        let Some(socket) = &connection.socket else { return };
        let waiting = connection.extra.as_ref().is_some_and(|extra| !extra.unsent.is_empty());
        let taken = match sys::send(socket, if waiting { &[] } else { bytes }) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            // The next receive on this socket reports the error and closes it.
            Err(_) => return,
        };
        if taken < bytes.len() {
            connection.extra.get_or_insert_default().unsent.extend_from_slice(&bytes[taken..]);
            if !waiting && self.epoll.modify(socket, READABLE | WRITABLE, slot as u64).is_err() {
                self.fault("epoll_modify");
            }
        }
    }

    /// Sends what waited in `slot` for room.
    pub(crate) fn send_unsent(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot];
        let (Some(socket), Some(extra)) = (&connection.socket, &mut connection.extra) else {
            return;
        };
        if let Ok(count) = sys::send(socket, &extra.unsent) {
            extra.unsent.drain(..count);
        }
        if extra.unsent.is_empty() && self.epoll.modify(socket, READABLE, slot as u64).is_err() {
            self.fault("epoll_modify");
        }
    }

    /// Bytes that wait in `slot` for room.
    pub(crate) fn unsent_bytes(&self, slot: Slot) -> usize {
        self.connections[slot].extra.as_ref().map_or(0, |extra| extra.unsent.len())
    }

    /// Answers a ping; not any more once our close frame is sent, for nothing may follow it.
    pub(crate) fn pong(&mut self, slot: Slot, payload: &[u8]) {
        if self.connections[slot].state == State::Open {
            self.pings += 1;
            self.append(opcode::PONG, payload);
            self.flush(slot);
        }
    }

    /// Begins the closing handshake; the slot becomes vacant when the server ends the stream.
    pub(crate) fn close(&mut self, slot: Slot, code: u16) {
        if self.connections[slot].state == State::Open {
            self.append(opcode::CLOSE, &code.to_be_bytes());
            self.flush(slot);
            self.connections[slot].state = State::Closing;
            self.open -= 1;
        }
    }

    /// Ends the connection in `slot` as a client does that crashed: with a reset, without a close frame.
    pub(crate) fn reset(&mut self, slot: Slot) {
        let linger_off = self.socket(slot).map(sys::reset_on_close);
        if linger_off.is_some_and(|result| result.is_err()) {
            self.fault("reset_not_possible");
        }
        self.remove(slot);
    }

    /// Ends every connection with a reset.
    pub(crate) fn reset_all(&mut self) {
        for slot in 0..self.connections.len() {
            if self.connections[slot].state != State::Vacant {
                self.reset(slot);
            }
        }
    }

    /// An open connection.
    pub(crate) fn first_open(&self) -> Option<Slot> {
        self.connections.iter().position(|connection| connection.state == State::Open)
    }

    /// Frees `slot` at once and returns the state in which it was.
    pub(crate) fn remove(&mut self, slot: Slot) -> State {
        let connection = &mut self.connections[slot];
        let state = std::mem::replace(&mut connection.state, State::Vacant);
        connection.socket = None;
        connection.extra = None;
        match state {
            State::Vacant => return state,
            State::Connecting | State::AwaitingResponse => self.opening -= 1,
            State::Open => self.open -= 1,
            State::Closing => {}
        }
        self.vacant.push(slot);
        state
    }

    /// Takes leave of every server connection without waiting for answers.
    pub(crate) fn close_all(&mut self) {
        for slot in 0..self.connections.len() {
            self.close(slot, 1000);
            self.remove(slot);
        }
    }
}

fn connect_kind(error: &io::Error) -> Cow<'static, str> {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect_refused".into(),
        ErrorKind::TimedOut => "connect_timed_out".into(),
        ErrorKind::ConnectionReset => "connect_reset".into(),
        ErrorKind::AddrNotAvailable => "connect_no_local_port".into(),
        _ => match error.raw_os_error() {
            Some(libc::EMFILE) => "connect_no_descriptor".into(),
            Some(code) => format!("connect_errno_{code}").into(),
            None => "connect_failed".into(),
        },
    }
}
