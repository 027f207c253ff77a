//! Compressing and inflating: any bytes inflated, and any message there and back.
//!
//! What must hold:
//!
//! 1. No panic.
//! 2. Inflating says what a second inflater says, bit by bit: the message, too big, or invalid.
//! 3. The message is within the limit, and so is the memory.
//! 4. What an inflater or deflater did before changes nothing.
//! 5. Deflating and inflating gives the message back, for each window from 9 to 15; no copy reaches farther
//!    than the window; the limit may be as large as the message exactly, and not one byte less.
//! 6. The compressed form is never larger than a session lets pass: an eighth and 64 bytes more.

use corecast::ws::{Deflater, Inflater, ProtocolError};

use super::inflate::{self, Refusal};
use super::source::Source;

/// Longest message that is compressed, in bytes: bounds the time of one execution.
const MAX_MESSAGE_BYTES: usize = 70_000;
/// Longest message that the second inflater is asked about: enough to tell windows up to 13 from larger ones.
const MAX_SECOND_BYTES: usize = 8200;

/// Checks `data`. `held_bytes` tells how much memory the thread has allocated; a constant where nobody counts.
pub fn check(data: &[u8], held_bytes: fn() -> usize) {
    let mut source = Source::new(data);
    let options = source.byte();
    if options % 2 == 0 {
        let max_message_bytes = source.choose(&[0, 1, 5, 100, 1000, 1024, 2048, 70_000]);
        check_inflate(source.rest(), max_message_bytes, held_bytes);
    } else {
        let repeats = source.choose(&[1, 1, 1, 2, 3, 8, 40, 300]);
        let message = source.rest().repeat(repeats);
        check_round_trip(&message[..message.len().min(MAX_MESSAGE_BYTES)], 9 + options / 2 % 7);
    }
}

fn check_inflate(payload: &[u8], max_message_bytes: usize, held_bytes: fn() -> usize) {
    let expected = inflate::inflate(payload, max_message_bytes);
    let expected = match &expected {
        Ok(inflated) => Ok(&inflated.message[..]),
        Err(Refusal::TooBig) => Err(ProtocolError::MessageTooBig),
        Err(Refusal::Invalid) => Err(ProtocolError::DeflateInvalid),
    };
    let mut inflater = Inflater::new();
    let base_bytes = held_bytes();
    let outcome = inflater.inflate(payload, max_message_bytes);
    let held = held_bytes().saturating_sub(base_bytes);
    assert_eq!(outcome, expected, "corecast and the second inflater");
    assert!(held <= max_message_bytes + 1, "{held} bytes held for at most {max_message_bytes}");
    // The same inflater again, after another message and after half of this one.
    assert_eq!(inflater.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 5), Ok(&b"Hello"[..]));
    let _ = inflater.inflate(&payload[..payload.len() / 2], max_message_bytes);
    assert_eq!(inflater.inflate(payload, max_message_bytes), expected, "a second time");
}

fn check_round_trip(message: &[u8], window_bits: u8) {
    let mut deflater = Deflater::new(window_bits);
    let mut out = b"before".to_vec();
    deflater.deflate(message, &mut out);
    let payload = out.strip_prefix(b"before").expect("the payload is appended");
    assert!(payload.len() <= message.len() + message.len() / 8 + 64, "{} bytes", payload.len());
    let mut again = Vec::new();
    deflater.deflate(&message[..message.len() / 2], &mut again);
    again.clear();
    deflater.deflate(message, &mut again);
    assert_eq!(payload, again, "a second time");

    let mut inflater = Inflater::new();
    assert_eq!(inflater.inflate(payload, message.len()), Ok(message), "there and back");
    if let Some(less) = message.len().checked_sub(1) {
        assert_eq!(inflater.inflate(payload, less), Err(ProtocolError::MessageTooBig));
    }
    if message.len() > MAX_SECOND_BYTES {
        return;
    }
    let plainly = inflate::inflate(payload, message.len()).expect("what was deflated");
    assert!(plainly.message == message, "there and back by the second inflater");
    assert!(plainly.max_distance <= 1 << window_bits, "a copy from {} bytes back", plainly.max_distance);
}
