//! The session beside tungstenite on the same bytes: same events, same verdict.
//!
//! Known differences, each handled below:
//!
//! | Input | corecast | tungstenite | Reason |
//! |---|---|---|---|
//! | length not minimal, or with its top bit set | refused | read | RFC 6455 5.2: "the minimal number of bytes MUST be used" |
//! | close code that must not be on the wire | error | closes with 1002 as an event | same verdict, told differently |
//! | close code 1014 | passes | as above | registered with IANA after RFC 6455 |
//! | wrong text or length inside an unfinished frame | refused at once | waits for the frame's end | fail-fast |
//! | bytes of an unfinished frame that show an error | refused at once | waits | the same |

use std::io::{self, Cursor, Read, Write};

use tungstenite::protocol::{Message, Role, WebSocketConfig, WebSocketContext};

use super::*;

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

/// What tungstenite makes of the stream: events, and whether it refused something.
fn foreign(stream: &[u8], limits: Limits) -> (Vec<Seen>, bool) {
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
            Ok(Message::Close(None)) => Seen::Close(None),
            Ok(Message::Close(Some(frame))) => {
                // A refused close code is replaced by 1002 with these words.
                if u16::from(frame.code) == 1002 && frame.reason.as_str() == "Protocol violation" {
                    return (seen, true);
                }
                Seen::Close(Some((frame.code.into(), frame.reason.as_str().to_owned())))
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return (seen, false),
            Err(_) => return (seen, true),
        };
        let closed = matches!(event, Seen::Close(_));
        seen.push(event);
        if closed {
            return (seen, false);
        }
    }
}

/// The stream cut after its last whole frame, since tungstenite judges whole frames only.
fn whole_frames(stream: &[u8]) -> &[u8] {
    let mut end = 0;
    while let Ok(Some(header)) = ClientHeader::parse(&stream[end..], true) {
        let frame_bytes = header.header_bytes as u64 + header.payload_bytes;
        if frame_bytes > (stream.len() - end) as u64 {
            break;
        }
        end += frame_bytes as usize;
    }
    &stream[..end]
}

#[test]
fn known_streams_get_the_same_verdict() {
    for (stream, expected) in representative() {
        assert_eq!(foreign(&stream, LIMITS), (expected, false));
    }
    for (name, stream, _, error) in violations::violations() {
        let (seen, refused) = foreign(&stream, LIMITS);
        // It reads lengths that are not minimal, and waits for the payload of the fragment that is too much.
        let differs = error == ProtocolError::NonMinimalLength || name == "limit passed by a fragment";
        assert_eq!(refused, !differs, "{name}: {seen:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..Default::default() })]
    #[test]
    fn any_whole_frames_get_the_same_events_and_verdict(stream in any_stream(), size in 1..50usize) {
        let stream = whole_frames(&stream);
        // Small enough that fragments pass it, and large enough for a control frame.
        let limits = Limits::new(150);
        let ours = run(stream.chunks(size), limits, None);
        let (seen, refused) = foreign(stream, limits);
        prop_assert_eq!(&ours.seen, &seen);
        prop_assert_eq!(ours.error.is_some(), refused, "{:?}", ours.error);
    }
}
