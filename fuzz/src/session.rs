//! The session: any bytes, in any pieces.
//!
//! The first bytes choose limits, compression and cuts, and which of three kinds of stream the rest is:
//! raw bytes, frames right and wrong, or a conversation without fault.
//!
//! What must hold:
//!
//! 1. No panic.
//! 2. Events, error and idleness are the same however the stream is cut.
//! 3. The start of a stream gives the start of its events, and no error that the whole has not.
//! 4. A conversation without fault gives exactly its events, even where a message is as large as the limit.
//! 5. No message exceeds the limit.
//! 6. Memory follows the bytes that arrived since the session was idle last; an idle session holds none.
//! 7. What follows an error or a close frame, which a caller should not give, neither panics nor takes more
//!    memory than that.

use corecast::ws::session::GROWTH_STEP_BYTES;
use corecast::ws::{Event, Inflater, Limits, Payload, Session};

use super::source::{Cuts, Source};
use super::stream::{self, Outcome, Seen};

/// What the session may hold beside the bytes of a message: one box of buffers for header and control frame.
const PARTIAL_BYTES: usize = 512;
/// Streams up to this size are also given byte by byte.
const BYTEWISE_BYTES: usize = 4096;

/// Checks `data`. `held_bytes` tells how much memory the thread has allocated; a constant where nobody counts.
pub fn check(data: &[u8], held_bytes: fn() -> usize) {
    let mut source = Source::new(data);
    let options = source.byte();
    let compression = options & 0x04 != 0;
    let max_message_bytes = source.choose(&[0, 1, 10, 125, 150, 1000, 70_000, 1 << 20]);
    let mut limits = Limits::new(max_message_bytes);
    limits.takes_messages = options & 0x38 != 0x38;
    let cuts = source.cuts();
    let stream = match options % 4 {
        0 => source.rest().to_vec(),
        1 | 2 => stream::frames(&mut source, 0x70, true),
        _ => {
            let (stream, expected) = stream::conversation(&mut source, compression);
            check_conversation(&stream, expected, compression, cuts);
            return;
        }
    };
    let whole = run([&stream[..]], limits, compression);
    check_events(&whole, limits);
    let pieces = cuts.clone().pieces(&stream);
    assert_eq!(run(pieces.iter().copied(), limits, compression), whole, "in pieces");
    if stream.len() <= BYTEWISE_BYTES {
        assert_eq!(run(stream.chunks(1), limits, compression), whole, "byte by byte");
    }
    check_start(&stream[..stream.len() / 2], &whole, limits, compression);
    check_memory(&stream, cuts, limits, compression, held_bytes);
}

fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits, compression: bool) -> Outcome {
    let mut inflater = compression.then(Inflater::new);
    stream::run(pieces, limits, inflater.as_mut())
}

/// No event is larger than it may be.
fn check_events(outcome: &Outcome, limits: Limits) {
    for seen in &outcome.seen {
        let (bytes, max) = match seen {
            Seen::Text(text) => (text.len(), limits.max_message_bytes),
            Seen::Binary(bytes) => (bytes.len(), limits.max_message_bytes),
            Seen::Ping(payload) | Seen::Pong(payload) => (payload.len(), 125),
            Seen::Close(None) => (0, 0),
            Seen::Close(Some((_, reason))) => (reason.len(), 123),
        };
        assert!(bytes <= max, "{bytes} bytes: {seen:?}");
        let is_message = matches!(seen, Seen::Text(_) | Seen::Binary(_));
        assert!(limits.takes_messages || !is_message, "a message where none is taken");
    }
}

/// The start of a stream gives the start of its events.
fn check_start(start: &[u8], whole: &Outcome, limits: Limits, compression: bool) {
    let outcome = run([start], limits, compression);
    assert!(whole.seen.starts_with(&outcome.seen), "the start: {outcome:?}, the whole: {whole:?}");
    if outcome.error.is_some() {
        assert_eq!((&outcome.seen, outcome.error), (&whole.seen, whole.error), "a verdict is final");
    }
}

/// A conversation is understood, with limits that just allow it.
fn check_conversation(stream: &[u8], expected: Vec<Seen>, compression: bool, cuts: Cuts) {
    let largest = expected.iter().map(|seen| match seen {
        Seen::Text(text) => text.len(),
        Seen::Binary(bytes) => bytes.len(),
        Seen::Ping(_) | Seen::Pong(_) | Seen::Close(_) => 0,
    });
    let limits = Limits::new(largest.max().unwrap_or_default());
    let idle = !matches!(expected.last(), Some(Seen::Close(_)));
    let expected = Outcome { seen: expected, error: None, idle };
    assert_eq!(run([stream], limits, compression), expected, "whole");
    assert_eq!(run(cuts.pieces(stream), limits, compression), expected, "in pieces");
}

/// The session's memory follows what arrived. Goes on after an error, unlike a caller.
fn check_memory(stream: &[u8], cuts: Cuts, limits: Limits, compression: bool, held_bytes: fn() -> usize) {
    let mut inflater = compression.then(Inflater::new);
    // All memory of the check itself is taken before the first look at the count.
    let mut pieces: Vec<Vec<u8>> = cuts.pieces(stream).into_iter().map(<[u8]>::to_vec).collect();
    let mut session = Session::default();
    // The inflater keeps the last message: at most the limit, and one byte that tells "full" from "beyond".
    let inflater_bytes = if compression { limits.max_message_bytes + 1 } else { 0 };
    let base_bytes = held_bytes();
    let mut arrived_bytes = 0;
    let mut failed = false;
    for piece in &mut pieces {
        let mut input = piece.as_mut_slice();
        loop {
            let left_bytes = input.len();
            let event = session.next_event(&mut input, &limits, inflater.as_mut());
            let more = matches!(event, Ok(Some(_)));
            failed |= matches!(event, Err(_) | Ok(Some(Event::Close(_))));
            if let Ok(Some(Event::Message(Payload::Text(text)))) = event {
                // What was checked piece by piece is text as a whole.
                assert!(std::str::from_utf8(text.as_bytes()).is_ok());
            }
            arrived_bytes += left_bytes - input.len();
            let held = held_bytes().saturating_sub(base_bytes);
            let mut allowed = PARTIAL_BYTES + 2 * arrived_bytes + GROWTH_STEP_BYTES + inflater_bytes;
            if session.is_idle() && !more {
                allowed = inflater_bytes;
                arrived_bytes = 0;
            }
            assert!(held <= allowed, "{held} bytes held, {allowed} allowed, failed: {failed}");
            if !more {
                break;
            }
        }
    }
    session.clear();
    let held = held_bytes().saturating_sub(base_bytes);
    assert!(held <= inflater_bytes, "{held} bytes held after clear");
}
