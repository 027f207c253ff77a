//! Tests of the session: RFC examples, every cut, hostile input, memory, and tungstenite as a second opinion.

use proptest::prelude::*;

use super::super::close::CloseCode;
use super::*;

#[path = "compressed.rs"]
mod compressed;
#[path = "differential.rs"]
mod differential;
#[path = "memory.rs"]
mod memory;
#[path = "violations.rs"]
mod violations;

/// An [`Event`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
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

/// What a stream of bytes came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) seen: Vec<Seen>,
    pub(super) error: Option<ProtocolError>,
    /// The session held nothing at the end.
    pub(super) idle: bool,
    /// How many pieces were given before the end.
    pieces: usize,
}

pub(super) const LIMITS: Limits = Limits::new(100_000);

pub(super) fn run<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limits: Limits,
    mut inflater: Option<&mut Inflater>,
) -> Outcome {
    let mut session = Session::default();
    let mut outcome = Outcome { seen: Vec::new(), error: None, idle: true, pieces: 0 };
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            match session.next_event(&mut input, &limits, inflater.as_deref_mut()) {
                Ok(None) => break,
                Ok(Some(event)) => outcome.seen.push(event.into()),
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            }
            if let Some(Seen::Close(_)) = outcome.seen.last() {
                return outcome;
            }
        }
        assert!(input.is_empty(), "Ok(None) consumes all input");
        outcome.pieces += 1;
    }
    outcome.idle = session.is_idle();
    outcome
}

fn run_whole(stream: &[u8]) -> Outcome {
    run([stream], LIMITS, None)
}

/// A masked frame with `first` as its first byte.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let key = [0x37, 0xfa, 0x21, payload.len() as u8];
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0xff);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&key);
    bytes.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]));
    bytes
}

fn text(text: &str) -> Seen {
    Seen::Text(text.to_owned())
}

#[test]
fn rfc_6455_examples() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(run_whole(&hello).seen, [text("Hello")]);
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(run_whole(&pong).seen, [Seen::Pong(b"Hello".to_vec())]);
    let fragments = [frame(0x01, b"Hel"), frame(0x80, b"lo")].concat();
    assert_eq!(run_whole(&fragments).seen, [text("Hello")]);
    for size in [256, 65536] {
        assert_eq!(run_whole(&frame(0x82, &vec![7; size])).seen, [Seen::Binary(vec![7; size])]);
    }
}

#[test]
fn a_whole_frame_is_handed_out_where_it_lies() {
    let mut bytes = frame(0x81, "in place, no copy: €".as_bytes());
    let range = bytes.as_ptr_range();
    let mut session = Session::default();
    let mut input = bytes.as_mut_slice();
    let event = session.next_event(&mut input, &LIMITS, None).unwrap();
    let Some(Event::Message(Payload::Text(text))) = event else { panic!("{event:?}") };
    assert_eq!(text, "in place, no copy: €");
    assert!(range.contains(&text.as_ptr()));
    assert!(session.is_idle());
}

/// Streams that together pass through every state; the second and later ones are short.
fn representative() -> Vec<(Vec<u8>, Vec<Seen>)> {
    let long = "Ünïcödé €𝄞 ".repeat(12);
    let (left, right) = long.as_bytes().split_at(37);
    let (middle, right) = right.split_at(50);
    vec![
        (
            [
                frame(0x81, b""),
                frame(0x81, long.as_bytes()),
                frame(0x01, left),
                frame(0x89, b"between"),
                frame(0x00, middle),
                frame(0x00, b""),
                frame(0x8a, b""),
                frame(0x80, right),
                frame(0x82, &[0; 126]),
                frame(0x02, &[1; 127]),
                frame(0x80, b""),
                frame(0x89, &[9; 125]),
                frame(0x88, b"\x03\xe8bye"),
            ]
            .concat(),
            vec![
                text(""),
                text(&long),
                Seen::Ping(b"between".to_vec()),
                Seen::Pong(Vec::new()),
                text(&long),
                Seen::Binary(vec![0; 126]),
                Seen::Binary(vec![1; 127]),
                Seen::Ping(vec![9; 125]),
                Seen::Close(Some((1000, "bye".to_owned()))),
            ],
        ),
        (
            [frame(0x01, b"\xe2"), frame(0x89, b"p"), frame(0x00, b"\x82"), frame(0x80, b"\xac!")].concat(),
            vec![Seen::Ping(b"p".to_vec()), text("€!")],
        ),
        (
            [frame(0x02, b""), frame(0x8a, b""), frame(0x80, b""), frame(0x88, b"")].concat(),
            vec![Seen::Pong(Vec::new()), Seen::Binary(Vec::new()), Seen::Close(None)],
        ),
        (
            [frame(0x82, &[5; 130]), frame(0x81, "é".as_bytes())].concat(),
            vec![Seen::Binary(vec![5; 130]), text("é")],
        ),
    ]
}

#[test]
fn every_cut_gives_the_same_events() {
    for (stream, expected) in representative() {
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            let outcome = run([left, right], LIMITS, None);
            assert_eq!((outcome.seen, outcome.error), (expected.clone(), None), "cut {cut}");
            assert!(outcome.idle, "cut {cut}");
        }
        for size in 1..9 {
            let outcome = run(stream.chunks(size), LIMITS, None);
            assert_eq!((outcome.seen, outcome.error, outcome.idle), (expected.clone(), None, true));
        }
    }
}

#[test]
fn every_pair_of_cuts_gives_the_same_events() {
    for (stream, expected) in representative().into_iter().skip(1) {
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                let outcome = run(pieces, LIMITS, None);
                assert_eq!((outcome.seen, outcome.error), (expected.clone(), None), "{first} {second}");
            }
        }
    }
}

#[test]
fn the_session_is_idle_exactly_between_messages() {
    for (stream, expected) in representative() {
        let whole = run_whole(&stream);
        assert_eq!(whole.seen, expected);
        for len in 0..stream.len() {
            let outcome = run([&stream[..len]], LIMITS, None);
            // The rest alone is a valid end of the stream exactly if the session is at a boundary.
            let rest = run_whole(&stream[len..]);
            let joined = [outcome.seen, rest.seen].concat();
            assert_eq!(outcome.idle, rest.error.is_none() && joined == whole.seen, "prefix {len}");
        }
    }
}

#[test]
fn clear_makes_the_session_idle() {
    let mut session = Session::default();
    let mut stream = frame(0x01, b"begun");
    assert_eq!(session.next_event(&mut stream.as_mut_slice(), &LIMITS, None), Ok(None));
    assert!(!session.is_idle());
    session.clear();
    assert!(session.is_idle());
}

/// Frames, most of them valid, with a wrong one here and there.
pub(super) fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..20),
        4 => any::<String>().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 120..140),
        2 => (prop::sample::select(vec![999u16, 1000, 1001, 1005, 1007, 3000, 5000]), any::<String>())
            .prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
    ];
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x00, 0x80, 0x89, 0x8a]),
        1 => Just(0x88),
        1 => any::<u8>(),
    ];
    let frames =
        prop::collection::vec((first, payload).prop_map(|(first, payload)| frame(first, &payload)), 0..8);
    (frames, prop::collection::vec(any::<u8>(), 0..6))
        .prop_map(|(frames, tail)| [frames.concat(), tail].concat())
}

proptest! {
    #[test]
    fn any_stream_in_any_pieces_is_the_same(
        stream in any_stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let whole = run_whole(&stream);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]]);
        let cut = run(pieces, LIMITS, None);
        prop_assert_eq!((&cut.seen, cut.error, cut.idle), (&whole.seen, whole.error, whole.idle));
        let bytewise = run(stream.chunks(1), LIMITS, None);
        prop_assert_eq!((bytewise.seen, bytewise.error, bytewise.idle), (whole.seen, whole.error, whole.idle));
    }

    #[test]
    fn random_bytes_never_panic(stream in prop::collection::vec(any::<u8>(), 0..300), size in 1..40usize) {
        let whole = run([&stream[..]], LIMITS, None);
        let pieces = run(stream.chunks(size), LIMITS, None);
        prop_assert_eq!((whole.seen, whole.error), (pieces.seen, pieces.error));
    }
}

#[test]
fn close_frames_are_read_with_code_and_reason() {
    let outcome = run_whole(&frame(0x88, &[&4001u16.to_be_bytes()[..], "tschüß".as_bytes()].concat()));
    assert_eq!(outcome.seen, [Seen::Close(Some((u16::from(CloseCode::Library(4001)), "tschüß".to_owned())))]);
}
