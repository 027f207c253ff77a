//! The echo loop: epoll, `read`, the frames made over in place, `write`.
//!
//! Invariants:
//! 1. `clients[fd].socket` is `fd` for every open client.
//! 2. Bytes of a client are copied only while its request or a frame is incomplete.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::relay::{PARTIAL_LIMIT_BYTES, RECEIVE_BYTES, Totals};
use crate::{frame, handshake, sys};

struct Client {
    /// Keeps the descriptor open.
    _socket: OwnedFd,
    upgraded: bool,
    /// Bytes of a request head or frame that is not complete yet.
    partial: Vec<u8>,
}

/// Listener, clients and the buffer that all of them share.
pub(crate) struct Echo {
    listener: TcpListener,
    epoll: OwnedFd,
    clients: Vec<Option<Client>>,
    buffer: Vec<u8>,
    totals: Totals,
}

/// Why a client is let go.
#[derive(Debug, PartialEq, Eq)]
enum Gone {
    /// It has ended, or broken the protocol.
    Ended,
    /// Its socket buffer is full.
    Slow,
}

impl From<frame::Refused> for Gone {
    fn from(_: frame::Refused) -> Self {
        Self::Ended
    }
}

impl Echo {
    /// Listens on 127.0.0.1:`port`.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let listener = sys::listen(port)?;
        let epoll = sys::epoll()?;
        sys::watch(&epoll, listener.as_raw_fd())?;
        let (clients, totals) = (Vec::new(), Totals::default());
        Ok(Self { listener, epoll, clients, buffer: vec![0; RECEIVE_BYTES], totals })
    }

    /// Serves until a signal asks to stop.
    pub(crate) fn run(&mut self) -> io::Result<Totals> {
        let mut ready = Vec::new();
        while !sys::stop_requested() {
            match sys::wait(&self.epoll, &mut ready) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for &socket in &ready {
                if socket == self.listener.as_raw_fd() {
                    self.accept_all()?;
                } else if let Err(gone) = self.serve(socket) {
                    self.totals.slow_dropped += u64::from(gone == Gone::Slow);
                    self.clients[socket as usize] = None;
                }
            }
        }
        Ok(std::mem::take(&mut self.totals))
    }

    fn accept_all(&mut self) -> io::Result<()> {
        while let Some(socket) = sys::accept(&self.listener)? {
            sys::watch(&self.epoll, socket.as_raw_fd())?;
            let number = socket.as_raw_fd() as usize;
            if self.clients.len() <= number {
                self.clients.resize_with(number + 1, || None);
            }
            self.clients[number] = Some(Client { _socket: socket, upgraded: false, partial: Vec::new() });
            self.totals.accepted += 1;
        }
        Ok(())
    }

    /// Takes what one client sent, once, and sends it back.
    fn serve(&mut self, socket: RawFd) -> Result<(), Gone> {
        let Some(client) = self.clients.get_mut(socket as usize).and_then(Option::as_mut) else {
            return Ok(());
        };
        let kept = client.partial.len();
        if kept > 0 {
            self.buffer.resize(self.buffer.len().max(kept + RECEIVE_BYTES), 0);
            self.buffer[..kept].copy_from_slice(&client.partial);
            client.partial.clear();
        }
        let count = match sys::read(socket, &mut self.buffer[kept..]) {
            Ok(0) => return Err(Gone::Ended),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return Err(Gone::Ended),
        };
        let mut bytes = &mut self.buffer[..kept + count];
        if !client.upgraded {
            let Some(length) = handshake::head_length(bytes) else { return client.keep(bytes) };
            let answer = handshake::answer(&bytes[..length]).ok_or(Gone::Ended)?;
            if !sys::write(socket, &answer) {
                return Err(Gone::Slow);
            }
            client.upgraded = true;
            bytes = &mut bytes[length..];
        }
        let reflected = frame::reflect(bytes)?;
        self.totals.messages += reflected.messages;
        if reflected.written > 0 {
            self.totals.sends += 1;
            if !sys::write(socket, &bytes[..reflected.written]) {
                return Err(Gone::Slow);
            }
        }
        if reflected.closed {
            return Err(Gone::Ended);
        }
        client.keep(&bytes[reflected.read..])
    }
}

impl Client {
    fn keep(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        if bytes.len() > PARTIAL_LIMIT_BYTES {
            return Err(Gone::Ended);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// A server that is driven by hand, and a client of it.
    fn pair() -> (Echo, RawFd, TcpStream) {
        let mut echo = Echo::bind(0).unwrap();
        let client = TcpStream::connect(echo.listener.local_addr().unwrap()).unwrap();
        let mut ready = Vec::new();
        sys::wait(&echo.epoll, &mut ready).unwrap();
        echo.accept_all().unwrap();
        let socket = echo.clients.iter().position(Option::is_some).unwrap() as RawFd;
        (echo, socket, client)
    }

    /// Serves the client's next bytes once they are here.
    fn turn(echo: &mut Echo, socket: RawFd) -> Result<(), Gone> {
        let mut ready = Vec::new();
        sys::wait(&echo.epoll, &mut ready).unwrap();
        assert_eq!(ready, [socket]);
        echo.serve(socket)
    }

    const REQUEST: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const HELLO: [u8; 11] = [0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];

    #[test]
    fn a_message_comes_back_also_when_it_comes_in_pieces() {
        let (mut echo, socket, mut client) = pair();
        for part in [&REQUEST[..20], &REQUEST[20..], &HELLO[..7], &HELLO[7..]] {
            client.write_all(part).unwrap();
            assert_eq!(turn(&mut echo, socket), Ok(()));
        }
        assert_eq!((echo.totals.accepted, echo.totals.messages, echo.totals.sends), (1, 1, 1));
        drop(echo);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received.starts_with(b"HTTP/1.1 101 ") && received.ends_with(b"\r\n\r\n\x81\x05hello"));
    }

    #[test]
    fn one_who_says_goodbye_is_answered_and_let_go() {
        let (mut echo, socket, mut client) = pair();
        client.write_all(REQUEST).unwrap();
        assert_eq!(turn(&mut echo, socket), Ok(()));
        client.write_all(&[0x88, 0x80, 0, 0, 0, 0]).unwrap();
        assert_eq!(turn(&mut echo, socket), Err(Gone::Ended));
        drop(echo);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received.ends_with(&[0x88, 0]));
    }

    #[test]
    fn a_request_without_a_key_is_no_client() {
        let (mut echo, socket, mut client) = pair();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(turn(&mut echo, socket), Err(Gone::Ended));
    }
}
