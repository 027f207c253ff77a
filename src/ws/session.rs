//! The receiving state of one server-side connection: bytes in, events out (RFC 6455 5 and 6.2).
//!
//! Invariants:
//!
//! 1. Between two messages a [`Session`] is one null pointer.
//! 2. A whole unfragmented frame in the input is unmasked where it lies and handed out as a slice of the
//!    input: no copy, no allocation.
//! 3. Memory follows bytes that arrived, never a length that was declared: at most twice the arrived
//!    bytes of the message plus [`GROWTH_STEP_BYTES`].
//! 4. Work is linear in the bytes that arrived; an empty fragment costs its header and holds nothing.
//! 5. Text is checked as it arrives, so invalid UTF-8 ends the connection inside an unfinished frame. Only
//!    compressed text waits for its end.
//!
//! After an error, and after [`Event::Close`], the rest of the input means nothing: give the session no more.

mod partial;

use super::close::{self, CloseFrame};
use super::deflate::Inflater;
use super::error::ProtocolError;
use super::frame::{BINARY, ClientHeader, Control, Data, OpCode, TEXT};
use super::mask;
use super::utf8;
use partial::{Assembly, FrameEnd, Partial};

pub use partial::GROWTH_STEP_BYTES;

/// What the peer may make the server hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest message in bytes, as the application sees it: assembled and inflated. Beyond it the
    /// outcome is [`ProtocolError::MessageTooBig`] (1009).
    pub max_message_bytes: usize,
    /// Whether the peer may send messages at all. If not, the header of a data frame is answered with
    /// [`ProtocolError::DataRefused`] (1008), and nothing of it is held.
    pub takes_messages: bool,
}

impl Limits {
    /// Messages are taken, up to this size.
    #[must_use]
    pub const fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, takes_messages: true }
    }

    /// Judges a frame by its header alone.
    fn judge(&self, header: &ClientHeader) -> Result<(), ProtocolError> {
        match header.opcode {
            OpCode::Data(_) if !self.takes_messages => Err(ProtocolError::DataRefused),
            _ => Ok(()),
        }
    }
}

/// Text or binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

impl MessageKind {
    /// The opcode of a message of this kind.
    pub fn opcode(self) -> OpCode {
        match self {
            Self::Text => TEXT,
            Self::Binary => BINARY,
        }
    }
}

/// A whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'e> {
    /// Text, already checked.
    Text(&'e str),
    /// Any bytes.
    Binary(&'e [u8]),
}

impl<'e> Payload<'e> {
    /// Text or binary.
    pub fn kind(self) -> MessageKind {
        match self {
            Self::Text(_) => MessageKind::Text,
            Self::Binary(_) => MessageKind::Binary,
        }
    }

    /// The bytes of either kind.
    pub fn as_bytes(self) -> &'e [u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The text, if it is text.
    pub fn as_text(self) -> Option<&'e str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    #[inline]
    fn of(kind: MessageKind, bytes: &'e [u8]) -> Result<Self, ProtocolError> {
        match kind {
            MessageKind::Text => match utf8::check(bytes) {
                Ok(text) => Ok(Self::Text(text)),
                Err(utf8::InvalidUtf8) => Err(ProtocolError::TextNotUtf8),
            },
            MessageKind::Binary => Ok(Self::Binary(bytes)),
        }
    }
}

impl<'e> From<&'e str> for Payload<'e> {
    fn from(text: &'e str) -> Self {
        Self::Text(text)
    }
}

impl<'e> From<&'e String> for Payload<'e> {
    fn from(text: &'e String) -> Self {
        Self::Text(text)
    }
}

impl<'e> From<&'e [u8]> for Payload<'e> {
    fn from(bytes: &'e [u8]) -> Self {
        Self::Binary(bytes)
    }
}

impl<'e, const N: usize> From<&'e [u8; N]> for Payload<'e> {
    fn from(bytes: &'e [u8; N]) -> Self {
        Self::Binary(bytes)
    }
}

impl<'e> From<&'e Vec<u8>> for Payload<'e> {
    fn from(bytes: &'e Vec<u8>) -> Self {
        Self::Binary(bytes)
    }
}

/// What the peer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'e> {
    /// A whole message.
    Message(Payload<'e>),
    /// A ping, to be answered by a pong with the same payload (at most 125 bytes).
    Ping(&'e [u8]),
    /// A pong.
    Pong(&'e [u8]),
    /// The peer closes; `None` if it gave no code.
    Close(Option<CloseFrame<'e>>),
}

impl<'e> Event<'e> {
    fn of_control(control: Control, payload: &'e [u8]) -> Result<Self, ProtocolError> {
        match control {
            Control::Ping => Ok(Self::Ping(payload)),
            Control::Pong => Ok(Self::Pong(payload)),
            Control::Close => Ok(Self::Close(close::parse(payload)?)),
            Control::Reserved(code) => Err(ProtocolError::ReservedOpcode(code)),
        }
    }
}

/// The receiving state of one connection.
#[derive(Debug, Default)]
pub struct Session {
    /// What has arrived of a message or frame that is not complete. `None` between messages.
    partial: Option<Box<Partial>>,
}

const _: () = assert!(size_of::<Session>() == size_of::<usize>());

impl Session {
    /// True at a message boundary with no partial bytes; the session holds nothing then.
    ///
    /// A message handed out from the session's own memory counts until the next call of
    /// [`next_event`](Self::next_event), which frees it.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Takes at most one event from the front of `input` and advances it past what was used.
    ///
    /// `Ok(None)`: all of the input was consumed and more is needed. Call until then, since that call also
    /// frees what the last event borrowed. `inflater` is given if, and only if, permessage-deflate was
    /// negotiated. Input is unmasked in place, so its bytes are not what they were afterwards.
    ///
    /// # Errors
    /// They are the peer's ([`ProtocolError`]) and end the connection.
    #[inline]
    pub fn next_event<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i mut [u8],
        limits: &Limits,
        inflater: Option<&'s mut Inflater>,
    ) -> Result<Option<Event<'s>>, ProtocolError> {
        self.free_delivered();
        if input.is_empty() {
            return Ok(None);
        }
        // The common case is inlined into the caller: returning the event through memory costs more than
        // all of its work for a short message.
        if self.partial.is_none() && limits.takes_messages {
            if let Some((header, payload)) = take_whole_message(input, limits) {
                mask::unmask(payload, header.mask, 0);
                let kind = if header.opcode == TEXT { MessageKind::Text } else { MessageKind::Binary };
                return Payload::of(kind, payload).map(|payload| Some(Event::Message(payload)));
            }
        }
        self.next_event_of_any_kind(input, limits, inflater)
    }

    /// [`next_event`](Self::next_event) for everything but a plain message in one whole frame.
    #[inline(never)]
    fn next_event_of_any_kind<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i mut [u8],
        limits: &Limits,
        inflater: Option<&'s mut Inflater>,
    ) -> Result<Option<Event<'s>>, ProtocolError> {
        let compression = inflater.is_some();
        let end = loop {
            if let Some(partial) = self.partial.as_deref_mut().filter(|partial| partial.is_inside_frame()) {
                if !partial.has_header() {
                    let Some(header) = partial.complete_header(input, compression)? else {
                        return Ok(None);
                    };
                    limits.judge(&header)?;
                    partial.open_frame(&header, limits)?;
                }
                match partial.take_payload(input)? {
                    FrameEnd::NotYet => return Ok(None),
                    FrameEnd::Fragment => continue,
                    end => break end,
                }
            }
            let Some(header) = ClientHeader::parse(input, compression)? else {
                if !input.is_empty() {
                    let start = take(input, input.len());
                    self.partial_mut().keep_header(start);
                }
                return Ok(None);
            };
            limits.judge(&header)?;
            if header.payload_bytes > (input.len() - header.header_bytes) as u64 {
                take(input, header.header_bytes);
                self.partial_mut().open_frame(&header, limits)?;
                continue;
            }
            // The whole frame is at hand.
            let (_, payload) = take(input, header.header_bytes + header.payload_bytes as usize)
                .split_at_mut(header.header_bytes);
            if let OpCode::Control(control) = header.opcode {
                mask::unmask(payload, header.mask, 0);
                return Event::of_control(control, payload).map(Some);
            }
            if header.rsv1 && header.fin && self.partial.is_none() {
                judge_size(true, header.payload_bytes, limits)?;
                mask::unmask(payload, header.mask, 0);
                return inflated(kind_of(header.opcode), payload, limits, inflater).map(Some);
            }
            let partial = self.partial_mut();
            partial.open_frame(&header, limits)?;
            match partial.take_payload(&mut &mut *payload)? {
                FrameEnd::NotYet | FrameEnd::Fragment => continue,
                end => break end,
            }
        };
        self.deliver(end, limits, inflater)
    }

    /// Forgets what was received in part. For a connection that has failed and waits for its end.
    pub fn clear(&mut self) {
        self.partial = None;
    }

    fn partial_mut(&mut self) -> &mut Partial {
        self.partial.get_or_insert_default()
    }

    /// Frees what the last event borrowed.
    fn free_delivered(&mut self) {
        if self.partial.as_deref_mut().is_some_and(Partial::free_delivered) {
            self.partial = None;
        }
    }

    /// The event that `end` completed, from the session's own memory.
    fn deliver<'s>(
        &'s mut self,
        end: FrameEnd,
        limits: &Limits,
        inflater: Option<&'s mut Inflater>,
    ) -> Result<Option<Event<'s>>, ProtocolError> {
        let Some(partial) = self.partial.as_deref_mut() else {
            return Ok(None);
        };
        match end {
            FrameEnd::Control(control) => Event::of_control(control, partial.deliver_control()).map(Some),
            FrameEnd::Message => match partial.deliver_message()? {
                Assembly::Text { text, .. } => Ok(Some(Event::Message(Payload::Text(text)))),
                Assembly::Binary(bytes) => Ok(Some(Event::Message(Payload::Binary(bytes)))),
                Assembly::Compressed { kind, bytes } => {
                    inflated(Some(*kind), bytes, limits, inflater).map(Some)
                }
            },
            FrameEnd::NotYet | FrameEnd::Fragment => Ok(None),
        }
    }
}

/// The message whose compressed bytes are complete.
fn inflated<'s>(
    kind: Option<MessageKind>,
    bytes: &[u8],
    limits: &Limits,
    inflater: Option<&'s mut Inflater>,
) -> Result<Event<'s>, ProtocolError> {
    // Without an inflater, and on other frames than the first of a message, RSV1 was refused in the header.
    let (Some(kind), Some(inflater)) = (kind, inflater) else {
        return Err(ProtocolError::ReservedBits);
    };
    Payload::of(kind, inflater.inflate(bytes, limits.max_message_bytes)?).map(Event::Message)
}

/// Takes a frame that is a plain message by itself, if that is what the input begins with.
#[inline]
fn take_whole_message<'i>(input: &mut &'i mut [u8], limits: &Limits) -> Option<(ClientHeader, &'i mut [u8])> {
    let header = ClientHeader::parse(input, false).ok()??;
    let frame_bytes = usize::try_from(header.payload_bytes).ok()?.checked_add(header.header_bytes)?;
    let is_message = header.fin && matches!(header.opcode, TEXT | BINARY);
    if !is_message
        || frame_bytes > input.len()
        || frame_bytes - header.header_bytes > limits.max_message_bytes
    {
        return None;
    }
    let (_, payload) = take(input, frame_bytes).split_at_mut(header.header_bytes);
    Some((header, payload))
}

/// Cuts `bytes` from the front of `input`. `bytes` must be at hand.
fn take<'i>(input: &mut &'i mut [u8], bytes: usize) -> &'i mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(bytes);
    *input = rest;
    front
}

/// Refuses a message of which `bytes` have arrived or were declared, if that is beyond the limit.
///
/// The compressed form may be larger than the message. The allowance covers literals of nine bits (the
/// fixed Huffman code's worst) and block headers.
fn judge_size(compressed: bool, bytes: u64, limits: &Limits) -> Result<(), ProtocolError> {
    let limit = limits.max_message_bytes as u64;
    let limit = if compressed { limit.saturating_add(limit / 8).saturating_add(64) } else { limit };
    if bytes > limit { Err(ProtocolError::MessageTooBig) } else { Ok(()) }
}

/// The kind of message that a frame begins; `None` if it begins none.
fn kind_of(opcode: OpCode) -> Option<MessageKind> {
    match opcode {
        TEXT => Some(MessageKind::Text),
        BINARY => Some(MessageKind::Binary),
        OpCode::Data(Data::Continue | Data::Reserved(_)) | OpCode::Control(_) => None,
    }
}

#[cfg(test)]
mod tests;
