//! The send queue of one slow connection: exists only while the socket takes less than there is to send.
//!
//! What is queued is whole messages; only the first may have gone out in part. Frames of broadcasts are shared
//! with all other queues of the core, bytes meant for this connection alone are owned.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;

use socket2::SockRef;

use crate::compression::Encoding;
use crate::frame::Frame;
use crate::position::Position;
use crate::ws::frame::CLOSE;

/// Pieces handed to the kernel in one call.
const PIECES_PER_CALL: usize = 64;

/// Control frames of the server's own that may wait beyond the limit of a send queue: a ping, the latest pong and the close
/// frame, of 127 bytes at most. A client whose queue is full is asked, answered and told the end like any other.
const CONTROL_RESERVE: usize = 3;

/// A frame as the send queues of one core share it.
#[allow(clippy::redundant_allocation, reason = "cores that count the same frame would fight over its count")]
pub(super) type LocalFrame = Rc<Arc<Frame>>;

/// Something queued.
#[derive(Debug)]
pub(super) enum Piece {
    /// A frame of a broadcast to a topic, which is named by the shard's stay in it.
    Frame { frame: LocalFrame, encoding: Encoding, topic: u64 },
    /// Bytes that were encoded before, shared by all connections that get them.
    Shared(Rc<[u8]>),
    /// Whole frames for this connection alone.
    Bytes(Box<[u8]>),
    /// One control frame of the server's own, beyond the limit: see [`Outbound::push_control`].
    Control(Box<[u8]>),
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Frame { frame, encoding, .. } => frame.bytes(*encoding),
            Self::Shared(bytes) => bytes,
            Self::Bytes(bytes) | Self::Control(bytes) => bytes,
        }
    }

    fn is_control(&self) -> bool {
        matches!(self, Self::Control(_))
    }
}

/// A send queue.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent already.
    sent_of_first: usize,
    /// Shared with the connection's handles.
    queued_bytes: Rc<Cell<usize>>,
    /// What [`Piece::Control`] takes, which does not count towards the limit.
    reserved_bytes: usize,
    /// While above zero nothing is sent: joins of topics that the owners have not confirmed.
    pub(super) holds: u32,
    /// The limit has been met since the queue was last empty.
    pub(super) met_limit: bool,
    /// Topics, by the shard's stay, of which messages were dropped that the client is yet to be told of; with the place
    /// of the last one.
    gaps: Vec<(u64, Position)>,
}

/// How far [`Outbound::send`] came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing is left.
    Empty,
    /// The socket takes no more now.
    Blocked,
}

impl Outbound {
    /// A queue that holds everything back until the hold is released.
    pub(super) fn held() -> Self {
        Self { holds: 1, ..Self::default() }
    }

    /// Bytes that wait.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// The same number, for those who look at it later.
    pub(super) fn shown_bytes(&self) -> Rc<Cell<usize>> {
        self.queued_bytes.clone()
    }

    /// Whether a piece of `bytes` more would exceed `limit`. Each piece counts for what it takes in the queue
    /// too, so that tiny messages do not take many times the limit. The first piece always has a place, so that
    /// a message larger than the limit on an otherwise idle connection is not refused.
    pub(super) fn is_over(&self, bytes: usize, limit: usize) -> bool {
        let cost = self.cost();
        cost > 0 && cost + bytes + size_of::<Piece>() > limit
    }

    /// What waits, as it counts towards the limit.
    pub(super) fn cost(&self) -> usize {
        self.queued_bytes() + self.pieces.len() * size_of::<Piece>() - self.reserved_bytes
    }

    /// Queues a piece of which the first `sent` bytes have gone out already; only a first piece may have.
    pub(super) fn push(&mut self, piece: Piece, sent: usize) {
        debug_assert!(sent == 0 || self.pieces.is_empty());
        self.queued_bytes.set(self.queued_bytes() + piece.bytes().len() - sent);
        if self.pieces.is_empty() {
            self.sent_of_first = sent;
        }
        self.pieces.push_back(piece);
    }

    /// Queues a control frame beyond the limit, as far as [`CONTROL_RESERVE`] goes. A close frame goes behind
    /// everything, for it is the last. A ping or a pong goes ahead of everything but the first piece, which may have
    /// begun or be the answer to the handshake; if one of its kind waits there already it takes its place (RFC 6455
    /// 5.5.3: only the latest ping must be answered), and the answer is true.
    pub(super) fn push_control(&mut self, frame: Box<[u8]>) -> bool {
        let opcode = frame[0];
        let is_last = opcode == 0x80 | u8::from(CLOSE);
        let piece = Piece::Control(frame);
        self.queued_bytes.set(self.queued_bytes() + piece.len());
        self.reserved_bytes += piece.len() + size_of::<Piece>();
        if is_last {
            self.pieces.push_back(piece);
            return false;
        }
        let begun = usize::from(self.sent_of_first > 0);
        let waits = |piece: &Piece| piece.is_control() && piece.bytes()[0] == opcode;
        let earlier = self.pieces.iter_mut().take(CONTROL_RESERVE).skip(begun).find(|piece| waits(piece));
        if let Some(earlier) = earlier {
            let replaced = std::mem::replace(earlier, piece).len();
            self.queued_bytes.set(self.queued_bytes() - replaced);
            self.reserved_bytes -= replaced + size_of::<Piece>();
            return true;
        }
        self.pieces.insert(self.pieces.len().min(1), piece);
        false
    }

    /// Notes that a message of a topic was dropped.
    pub(super) fn note_gap(&mut self, topic: u64, last: Position) {
        match self.gaps.iter_mut().find(|(other, _)| *other == topic) {
            Some((_, place)) => *place = last,
            None => self.gaps.push((topic, last)),
        }
    }

    /// Takes what was noted of a topic.
    pub(super) fn take_gap(&mut self, topic: u64) -> Option<Position> {
        let place = self.gaps.iter().position(|(other, _)| *other == topic)?;
        Some(self.gaps.swap_remove(place).1)
    }

    /// Whether something was noted.
    pub(super) fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// Takes all that was noted.
    pub(super) fn take_gaps(&mut self) -> Vec<(u64, Position)> {
        std::mem::take(&mut self.gaps)
    }

    /// Drops, of all topics, every message but the newest, and of `topic` that one too: a newer one is about to follow.
    /// One that has begun to go out stays. Returns how many were dropped.
    pub(super) fn keep_latest(&mut self, topic: u64) -> usize {
        let before = self.pieces.len();
        let mut newer = vec![topic];
        let mut kept = VecDeque::new();
        while let Some(piece) = self.pieces.pop_back() {
            let begun = self.pieces.is_empty() && self.sent_of_first > 0;
            match &piece {
                Piece::Frame { topic, .. } if !begun && newer.contains(topic) => {
                    self.queued_bytes.set(self.queued_bytes() - piece.len());
                    continue;
                }
                Piece::Frame { topic, .. } => newer.push(*topic),
                Piece::Shared(_) | Piece::Bytes(_) | Piece::Control(_) => {}
            }
            kept.push_front(piece);
        }
        self.pieces = kept;
        before - self.pieces.len()
    }

    /// Drops all pieces of which nothing has gone out yet; returns how many they were, control frames aside.
    pub(super) fn drop_unsent(&mut self) -> usize {
        let keep = usize::from(self.sent_of_first > 0);
        let dropped = self.pieces.iter().skip(keep).filter(|piece| !piece.is_control()).count();
        self.pieces.truncate(keep);
        self.pieces.shrink_to_fit();
        let left = self.pieces.front().map_or(0, |piece| piece.bytes().len() - self.sent_of_first);
        self.queued_bytes.set(left);
        let is_reserved = self.pieces.front().is_some_and(Piece::is_control);
        self.reserved_bytes = if is_reserved { left + size_of::<Piece>() } else { 0 };
        dropped
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The socket's, when the connection is broken.
    pub(super) fn send(&mut self, socket: &TcpStream) -> io::Result<Progress> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES_PER_CALL];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                let skip = if count == 0 { self.sent_of_first } else { 0 };
                *slice = IoSlice::new(&piece.bytes()[skip..]);
                count += 1;
            }
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            match SockRef::from(socket).send_vectored_with_flags(&slices[..count], flags) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Empty)
    }

    fn advance(&mut self, mut sent: usize) {
        self.queued_bytes.set(self.queued_bytes() - sent);
        while let Some(first) = self.pieces.front() {
            let left = first.bytes().len() - self.sent_of_first;
            if first.is_control() {
                let freed = if sent < left { sent } else { left + size_of::<Piece>() };
                self.reserved_bytes -= freed;
            }
            if sent < left {
                self.sent_of_first += sent;
                return;
            }
            sent -= left;
            self.sent_of_first = 0;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;
    use crate::ws::MessageKind;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        SockRef::from(&near).set_send_buffer_size(256 * 1024).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn everything_arrives_in_order_however_little_the_socket_takes() {
        let (near, mut far) = pair();
        let mut outbound = Outbound::default();
        let mut expected = Vec::new();
        for n in 0..300_usize {
            let payload = vec![n as u8; 1 + (n * 7_919) % 60_000];
            if n % 2 == 0 {
                let frame = Frame::new(MessageKind::Binary, &payload, 0, None);
                expected.extend_from_slice(frame.bytes(Encoding::PLAIN));
                outbound.push(Piece::Frame { frame: Rc::new(frame), encoding: Encoding::PLAIN, topic: 0 }, 0);
            } else {
                expected.extend_from_slice(&payload);
                outbound.push(Piece::Bytes(payload.into()), 0);
            }
        }
        assert_eq!(outbound.queued_bytes(), expected.len());
        // Before anybody reads: a reader that is quick enough would never let the socket fill.
        assert_eq!(outbound.send(&near).unwrap(), Progress::Blocked, "the test must meet a full socket");
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            far.read_to_end(&mut received).unwrap();
            received
        });
        while outbound.send(&near).unwrap() == Progress::Blocked {
            std::thread::yield_now();
        }
        assert_eq!(outbound.queued_bytes(), 0);
        drop(near);
        assert_eq!(reader.join().unwrap(), expected);
    }

    #[test]
    fn a_piece_that_went_out_in_part_is_kept() {
        let mut outbound = Outbound::default();
        outbound.push(Piece::Bytes(vec![1; 10].into()), 4);
        outbound.push(Piece::Bytes(vec![2; 10].into()), 0);
        assert_eq!(outbound.queued_bytes(), 16);
        let three = 3 * size_of::<Piece>();
        assert!(
            outbound.is_over(1, three + 16) && !outbound.is_over(1, three + 17),
            "the new one counts, too"
        );
        assert_eq!(outbound.drop_unsent(), 1);
        assert_eq!(outbound.queued_bytes(), 6);
        let (near, mut far) = pair();
        assert_eq!(outbound.send(&near).unwrap(), Progress::Empty);
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert_eq!(received, [1; 6]);
    }

    #[test]
    fn the_latest_of_each_topic_is_kept_in_order() {
        let mut outbound = Outbound::default();
        let piece = |byte: u8, topic| {
            let frame = Frame::new(MessageKind::Binary, &[byte; 10], 0, None);
            Piece::Frame { frame: Rc::new(frame), encoding: Encoding::PLAIN, topic }
        };
        outbound.push(piece(0, 7), 3);
        for (byte, topic) in [(1, 7), (2, 8), (3, 9), (4, 8), (5, 7)] {
            outbound.push(piece(byte, topic), 0);
        }
        outbound.push(Piece::Bytes(vec![99; 5].into()), 0);
        assert_eq!(outbound.keep_latest(7), 3, "1 and 5 of topic 7, 2 of topic 8");
        let kept: Vec<u8> = outbound.pieces.iter().map(|piece| piece.bytes()[piece.len() - 1]).collect();
        assert_eq!(kept, [0, 3, 4, 99]);
        assert_eq!(outbound.queued_bytes(), 9 + 12 + 12 + 5);
        assert_eq!(outbound.keep_latest(1), 0);
    }

    #[test]
    fn the_first_piece_has_a_place_in_any_case() {
        let mut outbound = Outbound::default();
        assert!(!outbound.is_over(100, 10));
        outbound.push(Piece::Bytes(vec![1; 100].into()), 0);
        assert!(outbound.is_over(1, 10));
        assert_eq!(outbound.drop_unsent(), 1);
        assert_eq!(outbound.queued_bytes(), 0);
    }

    #[test]
    fn control_frames_wait_beyond_the_limit_and_ahead_of_messages() {
        let (ping, pong, close) = (0x89, 0x8a, 0x88);
        let control = |opcode: u8, byte: u8| Box::from([opcode, 1, byte]);
        let kept = |outbound: &Outbound| {
            let first_and_last = |piece: &Piece| (piece.bytes()[0], piece.bytes()[piece.len() - 1]);
            outbound.pieces.iter().map(first_and_last).collect::<Vec<_>>()
        };
        let mut outbound = Outbound::default();
        outbound.push(Piece::Bytes(vec![1; 10].into()), 4);
        outbound.push(Piece::Bytes(vec![2; 10].into()), 0);
        let cost = outbound.cost();
        assert!(!outbound.push_control(control(pong, 1)) && !outbound.push_control(control(ping, 2)));
        for byte in 3..100 {
            assert!(
                outbound.push_control(control(pong, byte)),
                "a later pong takes the place of an earlier one"
            );
        }
        assert!(!outbound.push_control(control(close, 100)));
        assert_eq!(kept(&outbound), [(1, 1), (ping, 2), (pong, 99), (2, 2), (close, 100)]);
        assert_eq!((outbound.cost(), outbound.queued_bytes()), (cost, 6 + 10 + 3 * 3));
        // One that has begun is finished, and another may wait behind it.
        outbound.advance(6 + 3 + 1);
        assert!(!outbound.push_control(control(pong, 101)) && outbound.push_control(control(pong, 102)));
        assert_eq!(kept(&outbound), [(pong, 99), (pong, 102), (2, 2), (close, 100)]);
        assert_eq!(outbound.cost(), 10 + size_of::<Piece>());
        assert_eq!(outbound.drop_unsent(), 1, "control frames are no messages");
        assert_eq!((outbound.cost(), outbound.queued_bytes()), (0, 2));
        assert!(!outbound.is_over(100, 10), "the first message has a place beside them");
        outbound.advance(2);
        assert_eq!((outbound.cost(), outbound.queued_bytes(), outbound.pieces.len()), (0, 0, 0));
    }
}
