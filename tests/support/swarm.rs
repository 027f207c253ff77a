//! Many subscribers read by one thread, for what a thread each would distort.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::client::Client;
use super::frame::{self, Frame, FrameReader, RSV1};
use super::{PATIENCE, inflate, sys};

/// One message as one member of the swarm got it.
#[derive(Debug, Clone)]
pub struct Received {
    /// The first bytes of the payload, [`HEAD_BYTES`] at most.
    pub head: Vec<u8>,
    /// The payload's whole length, inflated.
    pub len: usize,
    /// The bytes that came, if they came compressed.
    pub compressed_len: Option<usize>,
    pub at: Instant,
}

impl Received {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.head).expect("a message that is not text")
    }
}

/// How much of each payload is kept.
pub const HEAD_BYTES: usize = 48;

/// One subscriber.
pub struct Member {
    stream: TcpStream,
    reader: FrameReader,
    pub messages: Vec<Received>,
    /// When pings came.
    pub pings: Vec<Instant>,
    /// The server's close frame.
    pub close: Option<(u16, String)>,
    /// When the close frame came, or the end of the connection without one.
    pub closed_at: Option<Instant>,
    /// The TCP connection has ended.
    pub gone: bool,
}

/// Connected clients that are read together.
pub struct Swarm {
    pub members: Vec<Member>,
    /// Whether members answer pings; they do unless a test forbids it.
    pub answers_pings: bool,
}

impl Swarm {
    /// Connects `count` clients to the path, one after the other.
    #[track_caller]
    pub fn connect(address: SocketAddr, path: &str, count: usize) -> Swarm {
        sys::raise_descriptor_limit();
        let members = (0..count).map(|_| Member::from(Client::connect(address, path))).collect();
        Swarm { members, answers_pings: true }
    }

    /// Reads whatever comes until `done` says so; panics when it does not within [`PATIENCE`] of silence.
    #[track_caller]
    pub fn read_until(&mut self, what: &str, mut done: impl FnMut(&[Member]) -> bool) {
        let mut last_progress = Instant::now();
        while !done(&self.members) {
            if self.pump(Duration::from_millis(50)) {
                last_progress = Instant::now();
            }
            assert!(last_progress.elapsed() < PATIENCE, "{PATIENCE:?} of silence in waiting for {what}");
        }
    }

    /// Reads until each member has that many messages.
    #[track_caller]
    pub fn read_messages(&mut self, count: usize) {
        self.read_until(&format!("{count} messages each"), |members| {
            if let Some(lost) = members.iter().find(|member| member.gone && member.messages.len() < count) {
                panic!("a member was closed {:?} after {} messages", lost.close, lost.messages.len());
            }
            members.iter().all(|member| member.messages.len() >= count)
        });
    }

    /// Reads for that long.
    pub fn read_for(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.pump(Duration::from_millis(10));
        }
    }

    /// Waits at most `limit` for input and reads what is there; true if a message or an end was among it. (Pings
    /// are no progress: they come for ever.)
    pub fn pump(&mut self, limit: Duration) -> bool {
        let open: Vec<usize> = (0..self.members.len()).filter(|&at| !self.members[at].gone).collect();
        let descriptors: Vec<RawFd> = open.iter().map(|&at| self.members[at].stream.as_raw_fd()).collect();
        let ready = sys::readable(&descriptors, limit).expect("poll");
        let mut progress = false;
        for (&at, _) in open.iter().zip(&ready).filter(|&(_, ready)| *ready) {
            let member = &mut self.members[at];
            let before = member.messages.len();
            member.read_available(self.answers_pings);
            progress |= member.gone || member.messages.len() > before;
        }
        progress
    }
}

impl From<Client> for Member {
    fn from(client: Client) -> Self {
        let (stream, reader) = client.into_parts();
        stream.set_nonblocking(true).expect("set_nonblocking");
        let mut member = Member {
            stream,
            reader,
            messages: Vec::new(),
            pings: Vec::new(),
            close: None,
            closed_at: None,
            gone: false,
        };
        member.take_frames(true);
        member
    }
}

impl Member {
    fn read_available(&mut self, answers_pings: bool) {
        let mut buffer = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.end(),
                Ok(count) => {
                    self.reader.push(&buffer[..count]);
                    self.take_frames(answers_pings);
                    if count < buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(),
            }
        }
    }

    fn end(&mut self) {
        self.gone = true;
        self.closed_at.get_or_insert_with(Instant::now);
    }

    fn take_frames(&mut self, answers_pings: bool) {
        let at = Instant::now();
        while let Some(frame) = self.reader.next_frame().unwrap_or_else(|fault| panic!("{fault}")) {
            match frame.opcode {
                frame::TEXT | frame::BINARY => {
                    let mut payload = frame.payload;
                    let compressed_len = (frame.rsv == RSV1).then_some(payload.len());
                    if compressed_len.is_some() {
                        payload =
                            inflate::message(&payload).expect("a message that cannot be inflated").bytes;
                    }
                    let head = payload[..payload.len().min(HEAD_BYTES)].to_vec();
                    self.messages.push(Received { head, len: payload.len(), compressed_len, at });
                }
                frame::PING => {
                    self.pings.push(at);
                    if answers_pings {
                        // A full send buffer cannot happen with so little sent; a gone peer shows on read.
                        let _ = self.stream.write_all(&Frame::new(frame::PONG, frame.payload).masked());
                    }
                }
                frame::CLOSE => {
                    self.close = frame.close_code();
                    self.closed_at = Some(at);
                    let _ = self.stream.write_all(&Frame::new(frame::CLOSE, frame.payload).masked());
                }
                _ => panic!("unexpected {frame:?}"),
            }
        }
    }
}
