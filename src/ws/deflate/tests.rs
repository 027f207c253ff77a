//! Tests of both directions: RFC examples, windows, truncation, bombs.

use proptest::prelude::*;

use super::*;

#[path = "plain.rs"]
mod plain;

const MAX: usize = 64 * 1024;

/// The blocks of RFC 7692 7.2.3, all of which are "Hello".
const RFC_HELLO: [&[u8]; 4] = [
    b"\xf2\x48\xcd\xc9\xc9\x07\x00",
    b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
    b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
    b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
];

fn inflate(payload: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    Inflater::new().inflate(payload, MAX).map(<[u8]>::to_vec)
}

fn deflate(window_bits: u8, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::new(window_bits).deflate(message, &mut out);
    out
}

/// Bytes without pattern, the same in every run.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn rfc_7692_examples() {
    for payload in RFC_HELLO {
        assert_eq!(inflate(payload).unwrap(), b"Hello", "{}", payload.escape_ascii());
    }
    assert_eq!(deflate(15, b"Hello"), RFC_HELLO[0]);
    assert_eq!(inflate(b"\x00").unwrap(), b"");
    assert_eq!(deflate(15, b""), b"\x00");
    // 7.2.3.2 needs the window of the message before, which is not taken over.
    let mut inflater = Inflater::new();
    assert_eq!(inflater.inflate(RFC_HELLO[0], MAX).unwrap(), b"Hello");
    assert_eq!(inflater.inflate(b"\xf2\x00\x11\x00\x00", MAX), Err(ProtocolError::DeflateInvalid));
    assert_eq!(inflater.inflate(RFC_HELLO[0], MAX).unwrap(), b"Hello", "an error leaves nothing behind");
}

#[test]
fn what_the_original_zlib_compressed_is_inflated() {
    // Python: zlib.compressobj(9, zlib.DEFLATED, -9), Z_SYNC_FLUSH, tail cut.
    let compressed =
        b"\x0a\xc9\x48\x55\x28\x2c\xcd\x4c\xce\x56\x48\x2a\xca\x2f\xcf\x53\x48\xcb\xaf\x50\xc8\x2a\xcd\x2d\
        \x28\x56\xc8\x2f\x4b\x2d\x52\x28\x01\x4a\xe7\x24\x56\x55\x2a\xa4\xe4\xa7\xeb\x29\x84\xd0\x4c\xf1\
        \xe1\x39\x79\x87\xd7\x27\x1f\xde\x96\x72\x78\xa5\xc2\xa3\xa6\x35\x00\x00";
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(3) + "Ünïcödé €";
    assert_eq!(inflate(compressed).unwrap(), text.as_bytes());
}

#[test]
fn final_blocks_may_end_a_message_or_be_followed_by_others() {
    let hello = RFC_HELLO[2].strip_suffix(b"\x00").unwrap();
    assert_eq!(inflate(hello).unwrap(), b"Hello", "without the padding block");
    assert_eq!(inflate(&[hello, RFC_HELLO[0]].concat()).unwrap(), b"HelloHello");
    assert_eq!(inflate(&[hello, RFC_HELLO[1]].concat()).unwrap(), b"HelloHello");
    assert_eq!(
        inflate(&[hello, b"\x07"].concat()),
        Err(ProtocolError::DeflateInvalid),
        "a reserved block type"
    );
    let empty_final = b"\x03\x00";
    assert_eq!(inflate(&empty_final.repeat(MAX_FINAL_BLOCKS)).unwrap(), b"");
    assert_eq!(inflate(&empty_final.repeat(MAX_FINAL_BLOCKS + 1)), Err(ProtocolError::DeflateInvalid));
}

#[test]
fn a_payload_of_no_bytes_is_an_empty_message() {
    assert_eq!(inflate(b"").unwrap(), b"");
}

#[test]
fn every_truncation_is_refused() {
    let text = b"abcabcabcabc, the beginning and the end, abcabcabc".repeat(5);
    let dynamic = deflate(15, &noise(300).iter().map(|byte| byte % 7).collect::<Vec<_>>());
    for whole in [deflate(15, &text), dynamic, RFC_HELLO[1].to_vec(), deflate(15, &noise(500))] {
        assert!(inflate(&whole).is_ok());
        // One zero byte is the empty message; it also begins every stored block.
        for len in (1..whole.len()).filter(|&len| whole[..len] != [0]) {
            assert_eq!(
                inflate(&whole[..len]),
                Err(ProtocolError::DeflateInvalid),
                "{len} of {}",
                whole.len()
            );
        }
        // The tail left on is not a whole series of blocks either.
        assert_eq!(inflate(&[&whole[..], &TAIL].concat()), Err(ProtocolError::DeflateInvalid));
    }
}

#[test]
fn the_limit_is_exact() {
    let mut inflater = Inflater::new();
    for size in [1, 2, 125, 1023, 1024, 1025, 2048, 65535, 65536, 100_000] {
        for message in [vec![0; size], noise(size)] {
            let payload = deflate(15, &message);
            assert_eq!(inflater.inflate(&payload, size).unwrap(), message);
            assert_eq!(inflater.inflate(&payload, size + 1).unwrap(), message);
            assert_eq!(inflater.inflate(&payload, size - 1), Err(ProtocolError::MessageTooBig));
            assert_eq!(inflater.inflate(&payload, 0), Err(ProtocolError::MessageTooBig));
        }
    }
    assert_eq!(inflater.inflate(&deflate(15, b""), 0).unwrap(), b"");
}

#[test]
fn a_bomb_is_stopped_at_the_limit_with_bounded_memory() {
    let bomb = deflate(15, &vec![0; 32 << 20]);
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let mut inflater = Inflater::new();
    assert_eq!(inflater.inflate(&bomb, MAX), Err(ProtocolError::MessageTooBig));
    assert!(inflater.output.capacity() <= MAX + 1, "{}", inflater.output.capacity());
    // A large message is served, and its memory given back with the next one.
    assert_eq!(inflater.inflate(&deflate(15, &vec![0; 1 << 20]), 1 << 20).unwrap().len(), 1 << 20);
    assert_eq!(inflater.inflate(RFC_HELLO[0], MAX).unwrap(), b"Hello");
    assert!(inflater.output.capacity() <= KEPT_BYTES);
}

fn inflate_plainly(payload: &[u8]) -> Option<plain::Inflated> {
    plain::inflate(&[payload, &TAIL].concat())
}

#[test]
fn the_window_is_honoured() {
    for window_bits in 9..=15 {
        let window_bytes = 1 << window_bits;
        // Repeats within the window (zlib looks back 262 bytes less than all of it), and beyond it.
        let near = noise(window_bytes / 4).repeat(12);
        let far = noise(window_bytes + 300).repeat(3);
        for message in [&near, &far] {
            let payload = deflate(window_bits, message);
            let inflated = inflate_plainly(&payload).unwrap();
            assert!(inflated.message == *message, "{window_bits}");
            assert!(inflated.max_distance <= window_bytes, "{window_bits}: {}", inflated.max_distance);
            assert!(Inflater::new().inflate(&payload, 1 << 20).unwrap() == message, "{window_bits}");
        }
        let inflated = inflate_plainly(&deflate(window_bits, &near)).unwrap();
        assert!(inflated.max_distance >= window_bytes / 4, "{window_bits}: it does look back");
        if window_bits < 15 {
            let inflated = inflate_plainly(&deflate(15, &far)).unwrap();
            assert!(
                inflated.max_distance > window_bytes,
                "{window_bits}: the witness notices a larger window"
            );
        }
    }
}

#[test]
fn one_deflater_serves_messages_in_any_order() {
    let mut deflater = Deflater::new(12);
    let messages = [&b"first"[..], b"", &noise(70_000), b"first", &[0; 70_000]];
    for message in messages.iter().chain(messages.iter().rev()) {
        let mut out = b"head".to_vec();
        deflater.deflate(message, &mut out);
        assert_eq!(&out[..4], b"head");
        assert_eq!(out[4..], deflate(12, message), "as from a fresh one");
        assert_eq!(&Inflater::new().inflate(&out[4..], 1 << 20).unwrap(), message);
    }
}

proptest! {
    #[test]
    fn what_is_deflated_is_inflated(
        parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..50), 1..60usize), 0..6),
        window_bits in 9..=15u8,
    ) {
        let message: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times)).collect();
        let payload = deflate(window_bits, &message);
        prop_assert!(payload.len() <= message.len() + message.len() / 8 + 16);
        let plainly = inflate_plainly(&payload).unwrap();
        prop_assert_eq!(&plainly.message, &message);
        prop_assert!(plainly.max_distance <= 1 << window_bits);
        prop_assert_eq!(inflate(&payload).unwrap(), message);
    }

    #[test]
    fn any_payload_is_judged_without_panic(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        max in prop_oneof![Just(MAX), 0..100usize],
    ) {
        let mut inflater = Inflater::new();
        let first = inflater.inflate(&payload, max).map(<[u8]>::to_vec);
        if let Ok(message) = &first {
            prop_assert!(message.len() <= max);
        }
        prop_assert_eq!(inflater.inflate(&payload, max).map(<[u8]>::to_vec), first);
    }

    #[test]
    fn damaged_payloads_are_judged_without_panic(
        message in prop::collection::vec(0..9u8, 1..400),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let mut payload = deflate(15, &message);
        let at = at.index(payload.len());
        payload[at] ^= flip;
        match inflate(&payload) {
            Ok(inflated) => prop_assert!(inflated.len() <= MAX),
            Err(error) => prop_assert!(matches!(
                error,
                ProtocolError::DeflateInvalid | ProtocolError::MessageTooBig
            )),
        }
    }
}
