//! What the session refuses: each violation with the byte that shows it, and the limits.

use super::*;

/// Errors, each with the number of bytes that show it.
pub(super) fn violations() -> Vec<(&'static str, Vec<u8>, usize, ProtocolError)> {
    let hello = frame(0x01, b"hello");
    let start = hello.len();
    let after = |more: Vec<u8>| [hello.clone(), more].concat();
    let declared = |first: u8, length: u64| {
        let mut bytes = vec![first, 0xff];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    use ProtocolError as E;
    vec![
        ("unmasked", vec![0x81, 0x05, b'h', b'e', b'l', b'l', b'o'], 2, E::Unmasked),
        ("reserved data opcode", frame(0x83, b"x"), 1, E::ReservedOpcode(3)),
        ("reserved control opcode", frame(0x8b, b""), 1, E::ReservedOpcode(11)),
        ("rsv1", frame(0xc1, b"x"), 1, E::ReservedBits),
        ("rsv2", frame(0xa1, b"x"), 1, E::ReservedBits),
        ("rsv3", frame(0x91, b"x"), 1, E::ReservedBits),
        ("fragmented ping", frame(0x09, b"x"), 1, E::ControlFragmented),
        ("long ping", frame(0x89, &[0; 126]), 2, E::ControlTooLong),
        ("non-minimal", vec![0x82, 0xfe, 0, 125, 0, 0, 0, 0], 4, E::NonMinimalLength),
        ("64th bit", declared(0x82, 1 << 63), 10, E::LengthOverflow),
        ("huge", declared(0x82, (1 << 63) - 1), 14, E::MessageTooBig),
        ("one byte beyond the limit", declared(0x82, 100_001), 14, E::MessageTooBig),
        ("limit passed by a fragment", after(declared(0x80, 99_996)), start + 14, E::MessageTooBig),
        ("continuation alone", frame(0x80, b"x"), 6, E::ContinuationWithoutStart),
        ("empty continuation alone", frame(0x00, b""), 6, E::ContinuationWithoutStart),
        (
            "continuation after a message",
            [frame(0x81, b""), frame(0x80, b"")].concat(),
            12,
            E::ContinuationWithoutStart,
        ),
        ("text inside a message", after(frame(0x81, b"x")), start + 6, E::MessageInterrupted),
        ("empty binary inside a message", after(frame(0x82, b"")), start + 6, E::MessageInterrupted),
        ("close of one byte", frame(0x88, b"\x03"), 7, E::CloseTooShort),
        ("close code 1005", frame(0x88, b"\x03\xed"), 8, E::CloseCodeInvalid(1005)),
        ("close code 0 between fragments", after(frame(0x88, b"\0\0")), start + 8, E::CloseCodeInvalid(0)),
        ("close reason", frame(0x88, b"\x03\xe8\xff"), 9, E::CloseReasonNotUtf8),
        ("cut close reason", frame(0x88, b"\x03\xe8\xe2\x82"), 10, E::CloseReasonNotUtf8),
        ("utf-8 at the first byte", frame(0x81, b"\xffaaaa"), 7, E::TextNotUtf8),
        ("utf-8 before a sequence ends", frame(0x81, b"aaaa\xf4\x90\x80\x80aaa"), 12, E::TextNotUtf8),
        ("utf-8 in a fragment", after(frame(0x00, b"\xed\xa0\x80")), start + 8, E::TextNotUtf8),
        (
            "utf-8 across fragments",
            [frame(0x01, b"\xe2"), frame(0x80, b"\x28\xa1")].concat(),
            14,
            E::TextNotUtf8,
        ),
        ("utf-8 cut at the end", frame(0x81, b"\xe2\x82"), 8, E::TextNotUtf8),
        ("utf-8 cut at an empty end", [frame(0x01, b"\xe2"), frame(0x80, b"")].concat(), 13, E::TextNotUtf8),
    ]
}

#[test]
fn every_violation_is_named_at_the_byte_that_shows_it_and_at_every_cut() {
    for (name, stream, known_after, error) in violations() {
        let bytewise = run(stream.chunks(1), LIMITS, None);
        assert_eq!((bytewise.error, bytewise.pieces + 1), (Some(error), known_after), "{name}");
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            let outcome = run([left, right], LIMITS, None);
            assert_eq!((outcome.error, outcome.seen), (Some(error), bytewise.seen.clone()), "{name}: {cut}");
        }
        let alone = run([&stream[..known_after]], LIMITS, None);
        assert_eq!(alone.error, Some(error), "{name}: without the bytes after it");
        assert_eq!(run([&stream[..known_after - 1]], LIMITS, None).error, None, "{name}: one byte before");
    }
}

#[test]
fn the_limit_itself_is_allowed_in_one_frame_and_in_fragments() {
    let limits = Limits::new(300);
    let whole = frame(0x82, &[1; 300]);
    let fragments = [frame(0x02, &[1; 150]), frame(0x00, &[1; 149]), frame(0x80, &[1])].concat();
    for stream in [whole, fragments] {
        for cut in [0, 1, stream.len() / 2, stream.len() - 1] {
            let outcome = run([&stream[..cut], &stream[cut..]], limits, None);
            assert_eq!((outcome.seen, outcome.error), (vec![Seen::Binary(vec![1; 300])], None));
        }
    }
    let euros = "€".repeat(100);
    let cut_in_character =
        [frame(0x01, &euros.as_bytes()[..100]), frame(0x80, &euros.as_bytes()[100..])].concat();
    assert_eq!(run([&cut_in_character[..]], limits, None).seen, [text(&euros)]);
    let one_more = frame(0x82, &[1; 301]);
    for piece in [one_more.len(), 100, 1] {
        assert_eq!(run(one_more.chunks(piece), limits, None).error, Some(ProtocolError::MessageTooBig));
    }
    let beyond = [frame(0x01, &euros.as_bytes()[..100]), frame(0x80, &[b'x'; 201])].concat();
    assert_eq!(run([&beyond[..]], limits, None).error, Some(ProtocolError::MessageTooBig));
}

#[test]
fn data_is_refused_by_its_header_where_none_is_taken() {
    let limits = Limits { takes_messages: false, ..LIMITS };
    let ping: &[u8] = &[0x89, 0x80, 0, 0, 0, 0];
    for first in [0x01, 0x02, 0x81, 0x82, 0x00, 0x80] {
        // Whole, in part, and of a length that never comes: the header alone decides.
        for header in [&[first, 0x80, 1, 2, 3, 4][..], &[first, 0xfe, 0x7f, 0xff, 1, 2, 3, 4]] {
            let stream = [ping, header].concat();
            for cut in 0..=stream.len() {
                let outcome = run([&stream[..cut], &stream[cut..]], limits, None);
                assert_eq!(outcome.error, Some(ProtocolError::DataRefused), "{stream:?} cut at {cut}");
                assert_eq!(outcome.seen, [Seen::Ping(vec![])]);
            }
        }
    }
}
