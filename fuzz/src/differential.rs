//! The session beside tungstenite's `WebSocketContext` on the same bytes: same events, same verdict.
//!
//! Both get a stream of whole frames, as a server without extensions: reserved bits are a fault to either.
//! Ours gets it in pieces. The close code that answers a fault must be the same, too.
//!
//! Known differences, each handled below:
//!
//! | Input | corecast | tungstenite | Reason | Here |
//! |---|---|---|---|---|
//! | length not minimal, or with its top bit set | refused | read | RFC 6455 5.2: "the minimal number of bytes MUST be used" | cut off, once ours has refused it |
//! | an unfinished frame that shows a fault | refused at once | waits for its end | fail-fast | cut off |
//! | close code that must not be on the wire | refused with 1002 | an event with code 1002 and words of its own | same verdict, told differently | read as 1002 |
//! | the same with a reason that is not UTF-8 | 1002 | 1007 | two faults, one answer | either |
//! | close code 1014 | an event | as above | registered with IANA after RFC 6455 | read as 1002 |
//! | too large and wrong in another way | the other fault, or 1009 | 1009, or the other fault | two faults, one answer | either |

use std::io::{self, Cursor, Read, Write};

use corecast::ws::{Limits, ProtocolError};
use tungstenite::protocol::{Message, Role, WebSocketConfig, WebSocketContext};

use super::source::Source;
use super::stream::{self, Outcome, Seen};

/// The reason that tungstenite puts in place of the peer's where the close code must not be on the wire.
const THEIR_WORDS: &str = "Protocol violation";

/// Checks `data`.
pub fn check(data: &[u8]) {
    let mut source = Source::new(data);
    let options = source.byte();
    // At least a control frame: tungstenite's limit is for these, too.
    let limits = Limits::new(source.choose(&[150, 125, 1000, 70_000]));
    let cuts = source.cuts();
    let stream = match options % 4 {
        0 => source.rest().to_vec(),
        1 | 2 => stream::frames(&mut source, 0, false),
        _ => stream::conversation(&mut source, false).0,
    };
    let frames = comparable_frames(&stream, limits);
    let ours = stream::run(cuts.pieces(frames), limits, None);
    let (seen, verdict) = tungstenites(frames, limits);
    let ours_verdict = verdict_of(&ours);
    let events = if verdict_is_told_by_event(&ours) { &ours.seen[..ours.seen.len() - 1] } else { &ours.seen };
    assert_eq!(events, seen, "corecast's events and tungstenite's; {ours:?}, {verdict:?}");
    let two_faults = match (ours_verdict, verdict) {
        (Some(ours), Some(theirs)) if ours == 1009 || theirs == 1009 => true,
        (Some(1002), Some(1007)) => matches!(ours.error, Some(ProtocolError::CloseCodeInvalid(_))),
        _ => false,
    };
    assert!(two_faults || ours_verdict == verdict, "{ours:?}, tungstenite: {verdict:?}");
}

/// True for a close frame that tungstenite does not let through, or that reads like its own.
fn verdict_is_told_by_event(ours: &Outcome) -> bool {
    match ours.seen.last() {
        Some(Seen::Close(Some((code, reason)))) => *code == 1014 || (*code == 1002 && reason == THEIR_WORDS),
        _ => false,
    }
}

/// The close code that answers a fault.
fn verdict_of(ours: &Outcome) -> Option<u16> {
    if verdict_is_told_by_event(ours) {
        return Some(1002);
    }
    ours.error.map(|error| error.close_code().into())
}

/// The front of `stream` that is whole frames of the kinds on which both should agree.
///
/// Reads as little of a header as it must, so that faults in the others stay in. Panics if ours lets a length
/// pass on which they do not agree.
fn comparable_frames(stream: &[u8], limits: Limits) -> &[u8] {
    let mut end = 0;
    loop {
        let rest = &stream[end..];
        let Some(&[_, second]) = rest.first_chunk() else { break };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        let (payload_bytes, least, length_bytes) = match second & 0x7f {
            126 => (rest[2..].first_chunk().map(|b| u64::from(u16::from_be_bytes(*b))), 126, 2),
            127 => (rest[2..].first_chunk().map(|b| u64::from_be_bytes(*b)), 1 << 16, 8),
            short => (Some(u64::from(short)), 0, 0),
        };
        let Some(payload_bytes) = payload_bytes else { break };
        if payload_bytes < least || payload_bytes >> 63 != 0 {
            let refused = stream::run([&stream[..end + 2 + length_bytes]], limits, None);
            let closed = matches!(refused.seen.last(), Some(Seen::Close(_)));
            assert!(closed || refused.error.is_some(), "a length of {payload_bytes} passed");
            break;
        }
        let frame_bytes = payload_bytes.saturating_add(2 + length_bytes as u64 + mask_bytes);
        if frame_bytes > rest.len() as u64 {
            break;
        }
        end += frame_bytes as usize;
    }
    &stream[..end]
}

/// Reads `0`'s bytes, swallows what is written.
struct Wire<'a>(Cursor<&'a [u8]>);

impl Read for Wire<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of the stream: events, and the close code of its refusal.
fn tungstenites(stream: &[u8], limits: Limits) -> (Vec<Seen>, Option<u16>) {
    use tungstenite::error::{Error, ProtocolError};

    let config = WebSocketConfig::default()
        .max_message_size(Some(limits.max_message_bytes))
        .max_frame_size(Some(limits.max_message_bytes));
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let mut wire = Wire(Cursor::new(stream));
    let mut seen = Vec::new();
    loop {
        let event = match context.read(&mut wire) {
            Ok(Message::Text(text)) => Seen::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Seen::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Seen::Ping(payload.to_vec()),
            Ok(Message::Pong(payload)) => Seen::Pong(payload.to_vec()),
            Ok(Message::Close(frame)) => {
                if frame
                    .as_ref()
                    .is_some_and(|f| u16::from(f.code) == 1002 && f.reason.as_str() == THEIR_WORDS)
                {
                    return (seen, Some(1002));
                }
                seen.push(Seen::Close(frame.map(|f| (f.code.into(), f.reason.as_str().to_owned()))));
                return (seen, None);
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            // The end of the stream.
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return (seen, None),
            Err(Error::Protocol(_)) => return (seen, Some(1002)),
            Err(Error::Utf8(_)) => return (seen, Some(1007)),
            Err(Error::Capacity(_)) => return (seen, Some(1009)),
            Err(error) => panic!("not a verdict: {error}"),
        };
        seen.push(event);
    }
}
