//! Streams of client frames: built from a fuzz input, and run through a session.

use corecast::ws::{Deflater, Event, Inflater, Limits, Payload, ProtocolError, Session};

use super::source::Source;

/// Longest stream that is built, in bytes: bounds the time of one execution.
const MAX_STREAM_BYTES: usize = 1 << 18;

/// An [`Event`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame with its code and reason.
    Close(Option<(u16, String)>),
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Message(Payload::Text(text)) => Self::Text(text.to_owned()),
            Event::Message(Payload::Binary(bytes)) => Self::Binary(bytes.to_vec()),
            Event::Ping(payload) => Self::Ping(payload.to_vec()),
            Event::Pong(payload) => Self::Pong(payload.to_vec()),
            Event::Close(frame) => Self::Close(frame.map(|f| (f.code.into(), f.reason.to_owned()))),
        }
    }
}

/// What a session made of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Events up to the error or the close frame.
    pub seen: Vec<Seen>,
    /// What ended the connection.
    pub error: Option<ProtocolError>,
    /// The session held nothing at the end.
    pub idle: bool,
}

/// Runs the pieces through a new session, up to an error or a close frame.
///
/// Panics if a call leaves input behind without an event, or if the session stays busy once cleared.
pub fn run<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limits: Limits,
    mut inflater: Option<&mut Inflater>,
) -> Outcome {
    let mut session = Session::default();
    let mut outcome = Outcome { seen: Vec::new(), error: None, idle: true };
    'stream: for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            let left_bytes = input.len();
            match session.next_event(&mut input, &limits, inflater.as_deref_mut()) {
                Ok(None) => break,
                Ok(Some(event)) => outcome.seen.push(event.into()),
                Err(error) => {
                    outcome.error = Some(error);
                    break 'stream;
                }
            }
            assert!(input.len() < left_bytes, "an event uses input");
            if let Some(Seen::Close(_)) = outcome.seen.last() {
                break 'stream;
            }
        }
        assert!(input.is_empty(), "Ok(None) consumes all input");
    }
    let ended = outcome.error.is_some() || matches!(outcome.seen.last(), Some(Seen::Close(_)));
    outcome.idle = !ended && session.is_idle();
    session.clear();
    assert!(session.is_idle(), "a cleared session holds nothing");
    outcome
}

/// How the length of a frame is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthForm {
    /// As short as it can be.
    Minimal,
    /// In 16 bits.
    Bits16,
    /// In 64 bits.
    Bits64,
    /// In 64 bits, and far more than there is.
    Overstated,
}

/// Appends a frame with any first byte. `mask` is left out if there is none.
pub fn push_frame(first: u8, form: LengthForm, mask: Option<[u8; 4]>, payload: &[u8], out: &mut Vec<u8>) {
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    out.push(first);
    match (form, payload.len()) {
        (LengthForm::Minimal, len @ 0..=125) => out.push(mask_bit | len as u8),
        (LengthForm::Minimal | LengthForm::Bits16, len @ 0..=0xffff) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        (form, len) => {
            let more = if form == LengthForm::Overstated { 1 << (len % 64) } else { 0 };
            out.push(mask_bit | 127);
            out.extend_from_slice(&(len as u64).saturating_add(more).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
    let key = mask.unwrap_or_default();
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Builds frames as the input says, right and wrong ones: each is a first byte, a shape and a payload.
///
/// `reserved_bits` are kept in first bytes; the others are cleared. `wild` allows missing masks and lengths
/// in other than their shortest form.
pub fn frames(source: &mut Source<'_>, reserved_bits: u8, wild: bool) -> Vec<u8> {
    let mut deflater = None;
    let mut out = Vec::new();
    while !source.is_empty() && out.len() < MAX_STREAM_BYTES {
        let first = source.byte() & (0x8f | reserved_bits);
        let shape = source.byte();
        let bytes = usize::from(source.byte());
        let mut payload = source.bytes(bytes).to_vec();
        if shape & 0x20 != 0 {
            payload = payload.repeat(1 + 2 * usize::from(source.byte()));
        }
        if shape & 0x10 != 0 {
            let plain = std::mem::take(&mut payload);
            deflater.get_or_insert_with(|| Deflater::new(15)).deflate(&plain, &mut payload);
        }
        if shape & 0x40 != 0 {
            // The first part of a payload: what a fragment of a compressed message or of text may be.
            payload.truncate(payload.len() * usize::from(source.byte()) / 256);
        }
        let form = match shape & 0x07 {
            5 if wild => LengthForm::Bits16,
            6 if wild => LengthForm::Bits64,
            7 if wild => LengthForm::Overstated,
            _ => LengthForm::Minimal,
        };
        let mask = [0x37, 0xfa, shape, first];
        push_frame(first, form, Some(mask).filter(|_| !(wild && shape & 0x88 == 0x88)), &payload, &mut out);
    }
    out
}

/// Builds frames that break no rule, and what they mean.
///
/// Each message is a kind, its bytes and how it is cut into fragments, with control frames between them.
pub fn conversation(source: &mut Source<'_>, compression: bool) -> (Vec<u8>, Vec<Seen>) {
    let mut deflater = compression.then(|| Deflater::new(9 + source.byte() % 7));
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    while !source.is_empty() && out.len() < MAX_STREAM_BYTES {
        let kind = source.byte();
        let bytes = usize::from(source.byte());
        let mut message = source.bytes(bytes).to_vec();
        if kind & 0x10 != 0 {
            message = message.repeat(1 + 2 * usize::from(source.byte()));
        }
        if kind & 0x0f == 0x0f {
            push_control(0x88, &message, &mut out, &mut expected);
            break;
        }
        if kind & 0x0c == 0x0c {
            push_control(0x89 + (kind & 1), &message, &mut out, &mut expected);
            continue;
        }
        let opcode = if kind & 1 == 0 {
            let text = String::from_utf8_lossy(&message).into_owned();
            message = text.clone().into_bytes();
            expected.push(Seen::Text(text));
            1
        } else {
            expected.push(Seen::Binary(message.clone()));
            2
        };
        let rsv1 = match &mut deflater {
            Some(deflater) if kind & 2 != 0 => {
                let plain = std::mem::take(&mut message);
                deflater.deflate(&plain, &mut message);
                0x40
            }
            _ => 0,
        };
        push_fragments(opcode | rsv1, &message, source, &mut out, &mut expected);
    }
    (out, expected)
}

/// Appends a message in up to four fragments.
fn push_fragments(
    first: u8,
    message: &[u8],
    source: &mut Source<'_>,
    out: &mut Vec<u8>,
    expected: &mut Vec<Seen>,
) {
    let mut rest = message;
    let mut first = first;
    let plan = source.byte();
    for _ in 0..plan % 4 {
        let (fragment, after) = rest.split_at(rest.len() * usize::from(source.byte()) / 256);
        push_frame(first, LengthForm::Minimal, Some([1, 2, 3, plan]), fragment, out);
        first = 0;
        rest = after;
        if plan & 0x10 != 0 {
            // The message in progress was pushed already and is seen after the control frame.
            let message = expected.pop();
            push_control(0x89 + (plan >> 7), &fragment[..fragment.len().min(3)], out, expected);
            expected.extend(message);
        }
    }
    push_frame(0x80 | first, LengthForm::Minimal, Some([0, 0xff, 0x55, plan]), rest, out);
}

/// Appends a control frame with as much of `payload` as it may have; a close frame with a code that it may have.
fn push_control(first: u8, payload: &[u8], out: &mut Vec<u8>, expected: &mut Vec<Seen>) {
    let mut payload = payload[..payload.len().min(125)].to_vec();
    expected.push(match first {
        0x88 if payload.len() < 2 => {
            payload.clear();
            Seen::Close(None)
        }
        0x88 => {
            let code = 3000 + u16::from_be_bytes([payload[0], payload[1]]) % 2000;
            payload[..2].copy_from_slice(&code.to_be_bytes());
            let whole_bytes = std::str::from_utf8(&payload[2..]).map_or_else(|e| e.valid_up_to(), str::len);
            payload.truncate(2 + whole_bytes);
            Seen::Close(Some((code, String::from_utf8_lossy(&payload[2..]).into_owned())))
        }
        0x89 => Seen::Ping(payload.clone()),
        _ => Seen::Pong(payload.clone()),
    });
    push_frame(first, LengthForm::Minimal, Some([9, 8, 7, 6]), &payload, out);
}
