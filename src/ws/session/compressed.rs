//! The session with permessage-deflate negotiated.

use super::super::super::deflate::Deflater;
use super::*;

const COMPRESSED_TEXT: u8 = 0xc1;
const COMPRESSED_BINARY: u8 = 0xc2;

fn deflated(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(15).deflate(message, &mut out);
    out
}

fn run_with<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits) -> Outcome {
    run(pieces, limits, Some(&mut Inflater::new()))
}

#[test]
fn rfc_7692_examples() {
    let hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    let whole = frame(COMPRESSED_TEXT, hello);
    let fragments = [frame(0x41, &hello[..3]), frame(0x80, &hello[3..])].concat();
    for stream in [whole, fragments] {
        assert_eq!(run_with([&stream[..]], LIMITS).seen, [text("Hello")]);
    }
}

#[test]
fn every_cut_of_compressed_and_plain_messages_gives_the_same_events() {
    let long = "Ünïcödé €𝄞 ".repeat(40);
    let payload = deflated(long.as_bytes());
    let (left, right) = payload.split_at(payload.len() / 2);
    let stream = [
        frame(COMPRESSED_TEXT, &payload),
        frame(0x81, "plain é".as_bytes()),
        frame(0x41, left),
        frame(0x89, b"between"),
        frame(0x00, b""),
        frame(0x80, right),
        frame(COMPRESSED_BINARY, &deflated(&[0xff; 300])),
        frame(COMPRESSED_TEXT, b"\x00"),
        frame(COMPRESSED_TEXT, b""),
        frame(0x42, b""),
        frame(0x80, &deflated(b"after an empty fragment")),
    ]
    .concat();
    let expected = [
        text(&long),
        text("plain é"),
        Seen::Ping(b"between".to_vec()),
        text(&long),
        Seen::Binary(vec![0xff; 300]),
        text(""),
        text(""),
        Seen::Binary(b"after an empty fragment".to_vec()),
    ];
    for cut in 0..=stream.len() {
        let (left, right) = stream.split_at(cut);
        let outcome = run_with([left, right], LIMITS);
        assert_eq!(
            (&outcome.seen[..], outcome.error, outcome.idle),
            (&expected[..], None, true),
            "cut {cut}"
        );
    }
    let bytewise = run_with(stream.chunks(1), LIMITS);
    assert_eq!((&bytewise.seen[..], bytewise.error, bytewise.idle), (&expected[..], None, true));
}

#[test]
fn violations_are_named_at_every_cut() {
    use ProtocolError as E;
    let hello = deflated(b"hello");
    let too_long = deflated(&[0; 301]);
    let limits = Limits::new(300);
    let cases = [
        ("rsv1 on a continuation", [frame(0x41, &hello), frame(0xc0, b"")].concat(), E::ReservedBits),
        ("rsv1 on a ping", frame(0xc9, b""), E::ReservedBits),
        ("rsv2", frame(0xe1, &hello), E::ReservedBits),
        ("not deflate", frame(COMPRESSED_BINARY, b"\x07"), E::DeflateInvalid),
        ("cut short", frame(COMPRESSED_BINARY, &hello[..hello.len() - 1]), E::DeflateInvalid),
        ("not utf-8", frame(COMPRESSED_TEXT, &deflated(b"abc\xff")), E::TextNotUtf8),
        ("utf-8 cut", frame(COMPRESSED_TEXT, &deflated(b"abc\xe2\x82")), E::TextNotUtf8),
        ("inflates beyond the limit", frame(COMPRESSED_TEXT, &too_long), E::MessageTooBig),
        ("fragments inflate beyond", [frame(0x42, &too_long), frame(0x80, b"")].concat(), E::MessageTooBig),
        ("declares too much", frame(COMPRESSED_BINARY, &[0; 500]), E::MessageTooBig),
        (
            "interrupted",
            [frame(0x41, &hello), frame(COMPRESSED_TEXT, &hello)].concat(),
            E::MessageInterrupted,
        ),
    ];
    for (name, stream, error) in cases {
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            let outcome = run_with([left, right], limits);
            assert_eq!((outcome.error, outcome.seen), (Some(error), Vec::new()), "{name}: cut {cut}");
        }
    }
}

#[test]
fn the_limit_itself_is_allowed_even_where_the_compressed_form_is_larger() {
    // Stored blocks of few bytes each, as a poor compressor makes them.
    let message: Vec<u8> = (0..=255).cycle().take(2048).collect();
    let stored: Vec<u8> = message
        .chunks(64)
        .flat_map(|part| [&[0, part.len() as u8, 0, !(part.len() as u8), 0xff], part].concat())
        .chain([0])
        .collect();
    assert!(stored.len() > message.len() + 100);
    let limits = Limits::new(message.len());
    let (left, right) = stored.split_at(100);
    for stream in [frame(COMPRESSED_BINARY, &stored), [frame(0x42, left), frame(0x80, right)].concat()] {
        for chunk in [1, 50, stream.len()] {
            let outcome = run_with(stream.chunks(chunk), limits);
            assert_eq!((outcome.seen, outcome.error), (vec![Seen::Binary(message.clone())], None));
        }
    }
}

#[test]
fn without_negotiation_rsv1_is_refused() {
    let stream = frame(COMPRESSED_TEXT, &deflated(b"hello"));
    assert_eq!(run_whole(&stream).error, Some(ProtocolError::ReservedBits));
}

proptest! {
    #[test]
    fn any_stream_in_any_pieces_is_the_same_with_compression(
        messages in prop::collection::vec(
            (prop::sample::select(vec![0xc1u8, 0xc2, 0x41, 0x42, 0x81, 0x00, 0x80, 0x89]), any::<String>(), any::<bool>()),
            0..6,
        ),
        size in 1..60usize,
    ) {
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|(first, text, compress)| {
                let payload = if *compress { deflated(text.as_bytes()) } else { text.clone().into_bytes() };
                frame(*first, &payload)
            })
            .collect();
        let whole = run_with([&stream[..]], LIMITS);
        let pieces = run_with(stream.chunks(size), LIMITS);
        prop_assert_eq!((pieces.seen, pieces.error, pieces.idle), (whole.seen, whole.error, whole.idle));
    }
}
