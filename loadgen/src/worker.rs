//! One thread of load: its connections, its receive buffer and the mode that it serves.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::time::Duration;

use crate::compression::Inflater;
use crate::conductor::{Shared, Stage};
use crate::frame::{self, ProtocolError, opcode};
use crate::handshake::{self, Response};
use crate::links::{Fragments, Links, Slot, State};
use crate::received::Message;
use crate::sys::{self, READABLE};

/// Room for one `recv`; a thread has one such buffer.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Room in front of it, where the beginning of a frame is put that an earlier `recv` brought.
const HEADROOM_BYTES: usize = 64 * 1024;
/// A larger message of the server is an error.
const MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Longest wait without looking whether the run was stopped.
const WAIT_MAX: Duration = Duration::from_millis(500);
const WAKER_TOKEN: u64 = u64::MAX;

/// Connections that a thread opens before the measurement: how many to which target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) target: usize,
    pub(crate) count: usize,
}

/// Whose turn should come early because of what happened in this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Wake {
    #[default]
    None,
    /// Thread 0's.
    Leader,
    /// Every thread's.
    All,
}

/// What a mode wants after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The next event is soon enough.
    Wait,
    /// Another turn at this time of the monotonic clock.
    WaitUntil(u64),
    /// This thread has done its part of the stage.
    Done,
}

/// What distinguishes `fanout` from `echo`: reactions to what happens on connections.
///
/// Slots of the connections opened before the measurement are numbered from 0 in the order of [`Opening`]s.
pub(crate) trait Mode: Send {
    /// A handshake is complete. `latency_ns` counts from when the connection was to begin.
    fn on_open(&mut self, _links: &mut Links, _slot: Slot, _latency_ns: u64) {}
    /// A handshake failed, which is counted already; the slot is vacant.
    fn on_refused(&mut self, _links: &mut Links, _slot: Slot) {}
    /// A message arrived.
    fn on_message(&mut self, links: &mut Links, slot: Slot, message: Message<'_>, now_ns: u64);
    /// An open connection ended; `asked` if we had begun to close it.
    fn on_closed(&mut self, _links: &mut Links, _slot: Slot, _asked: bool) {}
    /// A new stage begins.
    fn on_stage(&mut self, _links: &mut Links, _stage: Stage, _now_ns: u64) {}
    /// All events that were ready have been handled.
    fn on_turn(&mut self, links: &mut Links, stage: Stage, now_ns: u64) -> Turn;
    /// Which other threads should have a turn because of what happened in this one.
    fn take_wake(&mut self) -> Wake {
        Wake::None
    }
    /// Number that grows as long as the run makes progress.
    fn progress(&self) -> u64;
}

/// One thread's loop.
pub(crate) struct Worker<'a, M> {
    index: usize,
    shared: &'a Shared,
    links: Links,
    mode: M,
    openings: Vec<Opening>,
    handshakes_max: usize,
    buffer: Vec<u8>,
    /// Where compression is offered, and so negotiated on every open connection.
    inflater: Option<Inflater>,
}

impl<'a, M: Mode> Worker<'a, M> {
    /// A worker that has not started; `handshakes_max` bounds the handshakes in progress.
    pub(crate) fn new(
        index: usize,
        shared: &'a Shared,
        links: Links,
        mode: M,
        openings: Vec<Opening>,
        handshakes_max: usize,
    ) -> Self {
        Self {
            index,
            shared,
            inflater: links.compression.map(|_| Inflater::new()),
            links,
            mode,
            openings,
            handshakes_max,
            buffer: vec![0; HEADROOM_BYTES + RECEIVE_BYTES],
        }
    }

    /// Runs from the first connection to the end of the run and gives back what was measured.
    pub(crate) fn run(mut self) -> io::Result<(M, Links)> {
        sys::sharpen_timers();
        let waker = self.shared.waker(self.index);
        self.links.epoll.add(waker.descriptor(), READABLE, WAKER_TOKEN)?;
        let mut stage = Stage::Connect;
        let mut reported = None;
        let mut limit = Duration::ZERO;
        loop {
            self.links.epoll.wait(limit)?;
            for index in 0..self.links.epoll.count() {
                let (token, input) = self.links.epoll.event(index);
                if token == WAKER_TOKEN {
                    waker.drain();
                } else {
                    self.on_ready(token as Slot, input);
                }
            }
            let now = sys::now_ns();
            let current = self.shared.stage();
            if current != stage {
                stage = current;
                self.mode.on_stage(&mut self.links, stage, now);
            }
            let turn = match stage {
                Stage::Stop => break,
                Stage::Connect => self.open_some(now),
                stage => self.mode.on_turn(&mut self.links, stage, now),
            };
            match self.mode.take_wake() {
                Wake::None => {}
                Wake::Leader => self.shared.waker(0).wake(),
                Wake::All => self.shared.wake_all(),
            }
            self.shared.note_progress(self.index, self.links.open_count(), self.mode.progress());
            limit = match turn {
                Turn::Wait | Turn::Done => WAIT_MAX,
                Turn::WaitUntil(time) => {
                    Duration::from_nanos(time.saturating_sub(sys::now_ns())).min(WAIT_MAX)
                }
            };
            if turn == Turn::Done && reported != Some(stage) {
                reported = Some(stage);
                self.shared.report_done();
            }
        }
        self.links.close_all();
        Ok((self.mode, self.links))
    }

    /// Begins as many of the planned connections as may be in progress at once.
    fn open_some(&mut self, now: u64) -> Turn {
        while self.links.opening() < self.handshakes_max {
            let Some(opening) = self.openings.iter_mut().find(|opening| opening.count > 0) else {
                break;
            };
            opening.count -= 1;
            let target = opening.target;
            self.links.begin(target, now);
        }
        if self.links.opening() == 0 { Turn::Done } else { Turn::Wait }
    }

    fn on_ready(&mut self, slot: Slot, input: bool) {
        let result = match self.links.connection(slot).state {
            State::Vacant => Ok(()),
            State::Connecting => self.links.send_request(slot),
            _ => {
                if self.links.unsent_bytes(slot) > 0 {
                    self.links.send_unsent(slot);
                }
                if input { self.receive(slot) } else { Ok(()) }
            }
        };
        if let Err(kind) = result {
            self.links.fault(kind);
            self.remove(slot);
        }
    }

    fn remove(&mut self, slot: Slot) {
        match self.links.remove(slot) {
            State::Open => self.mode.on_closed(&mut self.links, slot, false),
            State::Closing => self.mode.on_closed(&mut self.links, slot, true),
            State::Connecting | State::AwaitingResponse => self.mode.on_refused(&mut self.links, slot),
            State::Vacant => {}
        }
    }

    /// Takes what arrived in `slot`; an error is the kind under which the end of the connection is counted.
    fn receive(&mut self, slot: Slot) -> Result<(), Cow<'static, str>> {
        let Some(socket) = self.links.socket(slot) else {
            return Ok(());
        };
        let count = match sys::receive(socket, &mut self.buffer[HEADROOM_BYTES..]) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return self.ended(slot, &error),
        };
        if count == 0 {
            return self.end_of_stream(slot);
        }
        let now = sys::now_ns();
        let extra = &mut self.links.connection(slot).extra;
        let mut partial = extra.as_mut().map(|extra| std::mem::take(&mut extra.partial)).unwrap_or_default();
        let mut buffer = std::mem::take(&mut self.buffer);
        let end = HEADROOM_BYTES + count;
        let result = if partial.len() <= HEADROOM_BYTES {
            let start = HEADROOM_BYTES - partial.len();
            buffer[start..HEADROOM_BYTES].copy_from_slice(&partial);
            self.process(slot, &buffer[start..end], now).map(|taken| {
                partial.clear();
                partial.extend_from_slice(&buffer[start + taken..end]);
            })
        } else {
            partial.extend_from_slice(&buffer[HEADROOM_BYTES..end]);
            self.process(slot, &partial, now).map(|taken| drop(partial.drain(..taken)))
        };
        self.buffer = buffer;
        self.keep(slot, partial);
        result
    }

    /// Keeps what is incomplete; a connection with nothing to keep owns no memory.
    #[inline]
    fn keep(&mut self, slot: Slot, partial: Vec<u8>) {
        let connection = self.links.connection(slot);
        if connection.state == State::Vacant || (partial.is_empty() && connection.extra.is_none()) {
            return;
        }
        let extra = connection.extra.get_or_insert_default();
        extra.partial = partial;
        if extra.is_idle() {
            connection.extra = None;
        }
    }

    /// Handles all that is complete in `bytes` and returns how much that was.
    fn process(&mut self, slot: Slot, bytes: &[u8], now: u64) -> Result<usize, Cow<'static, str>> {
        let mut rest = bytes;
        if self.links.connection(slot).state == State::AwaitingResponse {
            match handshake::response(bytes, self.links.offers(slot)) {
                Response::Incomplete => {}
                Response::Status(status) => return Err(format!("handshake_status_{status}").into()),
                Response::Invalid(reason) => return Err(format!("handshake_invalid_{reason}").into()),
                Response::Open(length) => {
                    rest = &bytes[length..];
                    self.links.opened(slot);
                    let latency = now.saturating_sub(self.links.connection(slot).started_ns);
                    self.mode.on_open(&mut self.links, slot, latency);
                }
            }
        }
        // Only a frame that is no whole message changes it.
        let mut in_fragments = self.in_fragments(slot);
        while matches!(self.links.connection(slot).state, State::Open | State::Closing) {
            let before = rest.len();
            let taken = frame::take(&mut rest, MESSAGE_MAX_BYTES, self.inflater.is_some());
            let Some(frame) = taken.map_err(ProtocolError::kind)? else {
                break;
            };
            let wire_bytes = before - rest.len();
            if frame.fin && matches!(frame.opcode, opcode::BINARY | opcode::TEXT) && !in_fragments {
                let (compressed, payload) = match &mut self.inflater {
                    Some(inflater) if frame.compressed => {
                        let inflated = inflater.inflate(frame.payload, MESSAGE_MAX_BYTES);
                        (true, inflated.map_err(ProtocolError::kind)?)
                    }
                    _ => (false, frame.payload),
                };
                let message = Message { payload, text: frame.opcode == opcode::TEXT, wire_bytes, compressed };
                self.mode.on_message(&mut self.links, slot, message, now);
            } else {
                self.on_other_frame(slot, frame, wire_bytes, now)?;
                in_fragments = self.in_fragments(slot);
            }
        }
        Ok(bytes.len() - rest.len())
    }

    fn in_fragments(&mut self, slot: Slot) -> bool {
        self.links.connection(slot).extra.as_ref().is_some_and(|extra| extra.fragments.is_some())
    }

    #[cold]
    fn on_other_frame(
        &mut self,
        slot: Slot,
        frame: frame::Frame<'_>,
        wire_bytes: usize,
        now: u64,
    ) -> Result<(), Cow<'static, str>> {
        match frame.opcode {
            opcode::PING => self.links.pong(slot, frame.payload),
            opcode::PONG => {}
            opcode::CLOSE => {
                let code = frame::close_code(frame.payload).map_err(ProtocolError::kind)?;
                if self.links.connection(slot).state != State::Closing {
                    self.links.close(slot, if code == 1005 { 1000 } else { code });
                    self.links.fault(format!("close_{code}"));
                    self.links.remove(slot);
                    self.mode.on_closed(&mut self.links, slot, false);
                }
            }
            _ => return self.on_fragment(slot, frame, wire_bytes, now),
        }
        Ok(())
    }

    fn on_fragment(
        &mut self,
        slot: Slot,
        frame: frame::Frame<'_>,
        wire_bytes: usize,
        now: u64,
    ) -> Result<(), Cow<'static, str>> {
        let extra = self.links.connection(slot).extra.get_or_insert_default();
        match &mut extra.fragments {
            // Allowed to a server, but a compressed message is read from a single frame only.
            None if frame.compressed => return Err("compressed_fragment".into()),
            fragments @ None if frame.opcode != opcode::CONTINUATION => {
                let text = frame.opcode == opcode::TEXT;
                *fragments = Some(Fragments { text, wire_bytes, payload: frame.payload.to_vec() });
            }
            Some(fragments) if frame.opcode == opcode::CONTINUATION => {
                if fragments.payload.len() + frame.payload.len() > MESSAGE_MAX_BYTES {
                    return Err(ProtocolError::TooLong.kind().into());
                }
                fragments.wire_bytes += wire_bytes;
                fragments.payload.extend_from_slice(frame.payload);
                if let Some(Fragments { text, wire_bytes, payload }) = extra.fragments.take_if(|_| frame.fin)
                {
                    let message = Message { payload: &payload, text, wire_bytes, compressed: false };
                    self.mode.on_message(&mut self.links, slot, message, now);
                }
            }
            _ => return Err(ProtocolError::BadContinuation.kind().into()),
        }
        Ok(())
    }

    fn end_of_stream(&mut self, slot: Slot) -> Result<(), Cow<'static, str>> {
        match self.links.connection(slot).state {
            State::Closing => {
                self.remove(slot);
                Ok(())
            }
            State::Open => Err("ended_without_close".into()),
            _ => Err("ended_in_handshake".into()),
        }
    }

    fn ended(&mut self, slot: Slot, error: &io::Error) -> Result<(), Cow<'static, str>> {
        match (self.links.connection(slot).state, error.kind()) {
            (State::Open, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Err("reset".into()),
            (State::Closing, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                Err("reset_while_closing".into())
            }
            (_, ErrorKind::ConnectionReset) => Err("reset_in_handshake".into()),
            (_, ErrorKind::ConnectionRefused) => Err("connect_refused".into()),
            _ => Err(format!("receive_errno_{}", error.raw_os_error().unwrap_or(0)).into()),
        }
    }
}
