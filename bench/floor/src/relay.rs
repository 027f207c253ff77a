//! The loop: epoll, `recv`, one `send` per client.
//!
//! Invariants:
//! 1. `clients[position[fd]].socket` is `fd` for every open client; `clients` is dense, so that a relay walks it
//!    without holes.
//! 2. A client is removed only between two relays or events, never while `clients` is being walked.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::{frame, handshake, sys};

/// Bytes taken from a socket at once.
pub(crate) const RECEIVE_BYTES: usize = 256 * 1024;
/// A request head or message that does not fit into this is refused.
pub(crate) const PARTIAL_LIMIT_BYTES: usize = 16 * 1024 * 1024;
const VACANT: u32 = u32::MAX;

/// What was done, for the line at exit.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) accepted: u64,
    pub(crate) messages: u64,
    pub(crate) sends: u64,
    pub(crate) slow_dropped: u64,
}

struct Client {
    socket: OwnedFd,
    upgraded: bool,
    /// Bytes of a request head or frame that is not complete yet.
    partial: Vec<u8>,
}

/// Listener, clients and the buffers that all of them share.
pub(crate) struct Relay {
    listener: TcpListener,
    epoll: OwnedFd,
    clients: Vec<Client>,
    position: Vec<u32>,
    buffer: Vec<u8>,
    outgoing: Vec<u8>,
    gone: Vec<RawFd>,
    totals: Totals,
}

impl Relay {
    /// Listens on 127.0.0.1:`port`.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let listener = sys::listen(port)?;
        let epoll = sys::epoll()?;
        sys::watch(&epoll, listener.as_raw_fd())?;
        Ok(Self {
            listener,
            epoll,
            clients: Vec::new(),
            position: Vec::new(),
            buffer: vec![0; RECEIVE_BYTES],
            outgoing: Vec::new(),
            gone: Vec::new(),
            totals: Totals::default(),
        })
    }

    /// Serves until a signal asks to stop.
    pub(crate) fn run(&mut self) -> io::Result<Totals> {
        let mut ready = Vec::new();
        while !sys::stop_requested() {
            match sys::wait(&self.epoll, &mut ready) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for socket in &ready {
                if *socket == self.listener.as_raw_fd() {
                    self.accept_all()?;
                } else if let Some(index) = self.index(*socket) {
                    if self.receive(index).is_err() {
                        self.remove(*socket);
                    }
                }
                while let Some(socket) = self.gone.pop() {
                    self.totals.slow_dropped += 1;
                    self.remove(socket);
                }
            }
        }
        Ok(std::mem::take(&mut self.totals))
    }

    fn accept_all(&mut self) -> io::Result<()> {
        while let Some(socket) = sys::accept(&self.listener)? {
            sys::watch(&self.epoll, socket.as_raw_fd())?;
            let number = socket.as_raw_fd() as usize;
            if self.position.len() <= number {
                self.position.resize(number + 1, VACANT);
            }
            self.position[number] = self.clients.len() as u32;
            self.clients.push(Client { socket, upgraded: false, partial: Vec::new() });
            self.totals.accepted += 1;
        }
        Ok(())
    }

    /// Takes what one client sent and relays the data messages in it.
    fn receive(&mut self, index: usize) -> Result<(), frame::Refused> {
        let client = &mut self.clients[index];
        let socket = client.socket.as_raw_fd();
        let mut buffer = std::mem::take(&mut self.buffer);
        let kept = client.partial.len();
        if buffer.len() < kept + RECEIVE_BYTES {
            buffer.resize(kept + RECEIVE_BYTES, 0);
        }
        buffer[..kept].copy_from_slice(&client.partial);
        client.partial.clear();
        let result = match sys::receive(socket, &mut buffer[kept..]) {
            Ok(0) => Err(frame::Refused),
            Ok(count) => self.process(index, &mut buffer[..kept + count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.process(index, &mut buffer[..kept]),
            Err(_) => Err(frame::Refused),
        };
        self.buffer = buffer;
        result
    }

    fn process(&mut self, index: usize, mut bytes: &mut [u8]) -> Result<(), frame::Refused> {
        let socket = self.clients[index].socket.as_raw_fd();
        if !self.clients[index].upgraded {
            let Some(length) = handshake::head_length(bytes) else {
                return self.keep(index, bytes);
            };
            let answer = handshake::answer(&bytes[..length]).ok_or(frame::Refused)?;
            if !sys::send(socket, &answer) {
                return Err(frame::Refused);
            }
            self.clients[index].upgraded = true;
            bytes = &mut bytes[length..];
        }
        self.outgoing.clear();
        let mut result = Ok(());
        while !bytes.is_empty() {
            let Some(received) = frame::decode(bytes)? else {
                result = self.keep(index, bytes);
                break;
            };
            match received.opcode {
                frame::CLOSE => {
                    answer_control(socket, frame::CLOSE, received.payload);
                    result = Err(frame::Refused);
                    break;
                }
                frame::PING => answer_control(socket, frame::PONG, received.payload),
                frame::PONG => {}
                opcode => {
                    self.totals.messages += 1;
                    frame::append(&mut self.outgoing, opcode, received.payload);
                }
            }
            let length = received.length;
            bytes = &mut bytes[length..];
        }
        if !self.outgoing.is_empty() {
            self.relay();
        }
        result
    }

    fn relay(&mut self) {
        for client in self.clients.iter().filter(|client| client.upgraded) {
            let socket = client.socket.as_raw_fd();
            if !sys::send(socket, &self.outgoing) {
                self.gone.push(socket);
            }
        }
        self.totals.sends += self.clients.len() as u64;
    }

    fn keep(&mut self, index: usize, bytes: &[u8]) -> Result<(), frame::Refused> {
        if bytes.len() > PARTIAL_LIMIT_BYTES {
            return Err(frame::Refused);
        }
        self.clients[index].partial.extend_from_slice(bytes);
        Ok(())
    }

    fn index(&self, socket: RawFd) -> Option<usize> {
        self.position.get(socket as usize).filter(|index| **index != VACANT).map(|index| *index as usize)
    }

    fn remove(&mut self, socket: RawFd) {
        let Some(index) = self.index(socket) else { return };
        self.position[socket as usize] = VACANT;
        self.clients.swap_remove(index);
        if let Some(moved) = self.clients.get(index) {
            self.position[moved.socket.as_raw_fd() as usize] = index as u32;
        }
    }
}

fn answer_control(socket: RawFd, opcode: u8, payload: &[u8]) {
    let mut answer = Vec::with_capacity(payload.len() + 10);
    frame::append(&mut answer, opcode, payload);
    // A peer that cannot take a control frame is found out by the next relay.
    let _ = sys::send(socket, &answer);
}
