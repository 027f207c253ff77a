//! A blocking WebSocket client that can be correct, wrong, slow or rude on purpose.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::frame::{self, Frame, FrameReader, RSV1};
use super::http::{self, Response};
use super::inflate;
use super::sys;
use super::{PATIENCE, wait_for};

/// The key of the example in RFC 6455 section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The accept key that belongs to [`KEY`] by the RFC's own word.
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An upgrade request, right unless a test makes it wrong.
#[derive(Debug, Clone)]
pub struct Upgrade {
    request_line: String,
    headers: Vec<(String, String)>,
}

impl Upgrade {
    pub fn to(path: &str) -> Self {
        let headers = [
            ("Host", "127.0.0.1"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
        ];
        Upgrade {
            request_line: format!("GET {path} HTTP/1.1"),
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        }
    }

    /// Replaces the whole first line.
    pub fn request_line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.request_line);
        self
    }

    /// Adds a header line, beside one of the same name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// Replaces a header.
    pub fn with(self, name: &str, value: &str) -> Self {
        self.without(name).header(name, value)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.request_line);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        (text + "\r\n").into_bytes()
    }

    /// Sends it and reads the answer's head.
    pub fn send(&self, address: SocketAddr) -> io::Result<(Response, Client)> {
        let mut client = Client::open_socket(address)?;
        client.send_raw(&self.bytes())?;
        let response = client.read_response()?;
        Ok((response, client))
    }

    /// The same from another address of this machine.
    pub fn send_from(&self, source: &str, address: SocketAddr) -> io::Result<(Response, Client)> {
        let source = source.parse().expect("an IP address");
        let mut client = Client::open_socket_from(source, address)?;
        client.send_raw(&self.bytes())?;
        let response = client.read_response()?;
        Ok((response, client))
    }

    /// Sends it and insists on an answer other than 101, with its body.
    #[track_caller]
    pub fn refused(&self, address: SocketAddr) -> Response {
        let answer = || {
            let mut client = Client::open_socket(address)?;
            client.send_raw(&self.bytes())?;
            io::Result::Ok((http::read_response(&mut client.stream, PATIENCE)?, client))
        };
        let (response, mut client) = answer().unwrap_or_else(|error| panic!("{self:?}: {error}"));
        assert_ne!(response.status, 101, "accepted: {self:?}");
        client.expect_gone();
        response
    }

    /// Sends it and insists on a 101.
    #[track_caller]
    pub fn accepted(&self, address: SocketAddr) -> Client {
        let (response, client) = self.send(address).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        assert_eq!(response.status, 101, "{self:?} was refused: {response:?}");
        assert_eq!(response.header("Sec-WebSocket-Accept"), Some(ACCEPT), "{response:?}");
        client
    }
}

/// What came next on the connection.
#[derive(Debug)]
pub enum Event {
    Frame(Frame),
    /// The server ended the TCP connection.
    Gone(End),
    /// Nothing within the limit.
    Nothing,
}

/// How a TCP connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Orderly,
    Reset,
}

/// A client connection, before or after its handshake.
pub struct Client {
    stream: TcpStream,
    reader: FrameReader,
    /// Pings are shown to the test. Otherwise they are answered and not seen: with a keepalive of 30 s the
    /// first may come at any moment.
    pub shows_pings: bool,
    pings_answered: usize,
}

/// What came of [`Client::flood`].
#[derive(Debug)]
pub struct Flood {
    pub answers: u64,
    pub close: Option<(u16, String)>,
    pub took: Duration,
}

impl Client {
    /// Connects and shakes hands; panics on anything but a correct 101.
    #[track_caller]
    pub fn connect(address: SocketAddr, path: &str) -> Client {
        Upgrade::to(path).accepted(address)
    }

    /// A TCP connection without a word said.
    pub fn open_socket(address: SocketAddr) -> io::Result<Client> {
        Client::over(TcpStream::connect_timeout(&address, PATIENCE)?)
    }

    /// A TCP connection from an address of this machine's choice among its own: all of 127.0.0.0/8 are.
    pub fn open_socket_from(source: IpAddr, address: SocketAddr) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        Client::over(socket.into())
    }

    /// Begins to connect, without waiting; to be ended by [`Client::finish_connecting`].
    pub fn begin(address: SocketAddr) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Client::over(socket.into()),
        }
    }

    /// Waits until the connection stands, and has it wait for whatever comes next.
    pub fn finish_connecting(&mut self) -> io::Result<()> {
        if !sys::writable(self.stream.as_raw_fd(), PATIENCE)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        self.stream.set_nonblocking(false)
    }

    /// A client that lets the server queue hardly anything in the kernel: small receive buffer, small segments.
    #[track_caller]
    pub fn connect_narrow(address: SocketAddr, path: &str) -> Client {
        Client::connect_narrow_with(address, &Upgrade::to(path))
    }

    /// The same, with an upgrade of one's own.
    #[track_caller]
    pub fn connect_narrow_with(address: SocketAddr, upgrade: &Upgrade) -> Client {
        let narrow = || -> io::Result<Client> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_recv_buffer_size(4096)?;
            socket.set_tcp_mss(536)?;
            socket.connect(&address.into())?;
            Client::over(socket.into())
        };
        let mut client = narrow().unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        client.send_raw(&upgrade.bytes()).expect("cannot send the upgrade");
        assert_eq!(client.read_response().expect("no answer to the upgrade").status, 101);
        client
    }

    fn over(stream: TcpStream) -> io::Result<Client> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream, reader: FrameReader::default(), shows_pings: false, pings_answered: 0 })
    }

    /// Reads the head of an HTTP response; bytes after it are kept as the first frames.
    pub fn read_response(&mut self) -> io::Result<Response> {
        self.read_response_within(PATIENCE)
    }

    /// The same with a limit of the test's choice; what was read of an unfinished head is lost.
    pub fn read_response_within(&mut self, limit: Duration) -> io::Result<Response> {
        let (response, rest) = http::read_head(&mut self.stream, Instant::now() + limit)?;
        self.reader.push(&rest);
        self.reader.may_be_compressed = response.header("Sec-WebSocket-Extensions").is_some();
        Ok(response)
    }

    /// How long a write may block before it fails; [`PATIENCE`] at first.
    pub fn set_write_limit(&self, limit: Duration) {
        self.stream.set_write_timeout(Some(limit)).expect("set_write_timeout");
    }

    /// Any bytes, right or wrong.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A masked frame; panics if the connection does not take it.
    #[track_caller]
    pub fn send(&mut self, frame: &Frame) {
        self.send_raw(&frame.masked()).unwrap_or_else(|error| panic!("sending {frame:?}: {error}"));
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send(&Frame::text(text));
    }

    /// Waits for the next frame, of any kind.
    pub fn event(&mut self, limit: Duration) -> Event {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.reader.next_frame() {
                Ok(Some(frame)) if frame.opcode == frame::PING && !self.shows_pings => {
                    // The server may have closed its side; whatever comes next tells.
                    let _ = self.send_raw(&Frame::new(frame::PONG, frame.payload).masked());
                    self.pings_answered += 1;
                    continue;
                }
                Ok(Some(frame)) => return Event::Frame(frame),
                Ok(None) => {}
                Err(fault) => panic!("{fault}"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Event::Nothing;
            }
            self.stream.set_read_timeout(Some(left)).expect("set_read_timeout");
            match self.stream.read(&mut buffer) {
                Ok(0) => return Event::Gone(End::Orderly),
                Ok(count) => self.reader.push(&buffer[..count]),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                        return Event::Gone(End::Reset);
                    }
                    _ => panic!("reading: {error}"),
                },
            }
        }
    }

    /// The next frame; panics when none comes.
    #[track_caller]
    pub fn frame(&mut self) -> Frame {
        match self.event(PATIENCE) {
            Event::Frame(frame) => frame,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    /// The next frame, which must be a data message; the server sends them unfragmented. Inflated if need be.
    #[track_caller]
    pub fn message(&mut self) -> Frame {
        let frame = self.frame();
        assert!(frame.fin && frame.opcode <= frame::BINARY, "expected a message, got {frame:?}");
        if frame.rsv != RSV1 {
            return frame;
        }
        let inflated = inflate::message(&frame.payload).unwrap_or_else(|fault| panic!("{fault}: {frame:?}"));
        Frame::new(frame.opcode, inflated.bytes)
    }

    #[track_caller]
    pub fn expect_text(&mut self, text: &str) {
        assert_eq!(self.message(), Frame::text(text));
    }

    #[track_caller]
    pub fn expect_frame(&mut self, expected: &Frame) {
        assert_eq!(self.frame(), *expected);
    }

    /// The next frame must be a close frame with this code; returns its reason.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        match self.frame().close_code() {
            Some((seen, reason)) if seen == code => reason,
            other => panic!("expected a close with {code}, got {other:?}"),
        }
    }

    /// The server must close with this code *and* end the TCP connection at once, as after a protocol error or
    /// our own close.
    #[track_caller]
    pub fn expect_failed(&mut self, code: u16) -> String {
        let reason = self.expect_close(code);
        self.expect_gone();
        reason
    }

    /// The server must close with this code, and end the TCP connection once we have answered.
    #[track_caller]
    pub fn expect_closed(&mut self, code: u16) -> String {
        let reason = self.expect_close(code);
        // A server that ends, or has waited long enough, may be gone before the answer.
        let _ = self.send_raw(&Frame::close(code, "").masked());
        self.expect_gone();
        reason
    }

    /// The TCP connection must end without another frame.
    #[track_caller]
    pub fn expect_gone(&mut self) -> End {
        match self.event(PATIENCE) {
            Event::Gone(end) => end,
            other => panic!("expected the end of the connection, got {other:?}"),
        }
    }

    /// Nothing at all may come within the limit, and the connection must stay.
    #[track_caller]
    pub fn expect_silence(&mut self, limit: Duration) {
        match self.event(limit) {
            Event::Nothing => {}
            other => panic!("expected silence, got {other:?}"),
        }
    }

    /// Reads and forgets whatever comes, HTTP or frames; true once the server has ended the connection.
    pub fn drain(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("set_read_timeout");
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Proves the connection alive: a ping is answered, with nothing else before it.
    #[track_caller]
    pub fn expect_alive(&mut self) {
        self.send(&Frame::new(frame::PING, "alive?"));
        self.expect_frame(&Frame::new(frame::PONG, "alive?"));
    }

    /// Sends 200 messages in one write, more than any pause makes room for, and reads answers until the server closes. Tells
    /// how many came, why it closed, and how long it took at most.
    #[track_caller]
    pub fn flood(&mut self, message: &str, answer: &str) -> Flood {
        let begun = Instant::now();
        self.send_raw(&Frame::text(message).masked().repeat(200)).expect("send");
        let mut answers = 0;
        loop {
            match self.frame() {
                frame if frame.opcode == frame::CLOSE => {
                    return Flood { answers, close: frame.close_code(), took: begun.elapsed() };
                }
                frame => assert_eq!(frame, Frame::text(answer)),
            }
            answers += 1;
        }
    }

    /// A closing handshake begun by the client.
    #[track_caller]
    pub fn close(mut self, code: u16) {
        self.send(&Frame::close(code, ""));
        assert_eq!(self.expect_failed(code), "");
    }

    /// Ends the TCP connection with a reset instead of an orderly end.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// Tells the server that nothing more will be sent, as `shutdown(SHUT_WR)` does.
    pub fn end_sending(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }

    /// Sends one byte out of band, which no read brings.
    pub fn send_urgent(&self) {
        assert_eq!(SockRef::from(&self.stream).send_out_of_band(b"!").expect("send"), 1);
    }

    /// Has a thread of its own read, and so answer pings, until the test wants the client back.
    pub fn in_background(mut self) -> Background {
        let enough = Arc::new(AtomicUsize::new(usize::MAX));
        let wanted = enough.clone();
        let thread = thread::spawn(move || {
            while self.pings_answered < wanted.load(Ordering::Relaxed) {
                match self.event(Duration::from_millis(20)) {
                    Event::Nothing => {}
                    other => panic!("expected nothing but pings in the background, got {other:?}"),
                }
            }
            self
        });
        Background { enough, thread }
    }

    /// The socket and what it has read beyond the last frame, for the [`super::swarm::Swarm`].
    pub fn into_parts(self) -> (TcpStream, FrameReader) {
        (self.stream, self.reader)
    }
}

/// A client that lives without the test's doing.
pub struct Background {
    enough: Arc<AtomicUsize>,
    thread: JoinHandle<Client>,
}

impl Background {
    /// The client again, once it has answered so many pings in all; panics if it was sent anything else, or closed.
    #[track_caller]
    pub fn end_after(self, pings: usize) -> Client {
        self.enough.store(pings, Ordering::Relaxed);
        wait_for("the pings of a client in the background", || self.thread.is_finished().then_some(()));
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
