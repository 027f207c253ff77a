//! UTF-8 of text messages (RFC 6455 8.1): whole at once, or streamed with fail-fast.
//!
//! Invariant of [`Utf8Stream`]: the bytes it keeps between two pieces are a proper prefix of at least one
//! valid sequence, so an invalid sequence is reported with the byte that makes it so, even when that
//! sequence is not complete.

/// Bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidUtf8;

/// The whole of `bytes` as text.
///
/// # Errors
/// [`InvalidUtf8`] if it is not UTF-8.
pub fn check(bytes: &[u8]) -> Result<&str, InvalidUtf8> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| InvalidUtf8)
}

/// Checks text that arrives in pieces cut at any byte.
#[derive(Debug, Default, Clone, Copy)]
pub struct Utf8Stream {
    /// The start of a sequence whose end has not arrived.
    pending: [u8; 4],
    pending_bytes: u8,
}

impl Utf8Stream {
    /// True if the text does not end within a sequence.
    pub fn is_complete(&self) -> bool {
        self.pending_bytes == 0
    }

    /// Bytes kept of a sequence whose end has not arrived (0 to 3).
    pub fn pending_bytes(&self) -> usize {
        usize::from(self.pending_bytes)
    }

    /// Takes the next piece and hands the text it completes to `sink`, in order, in one to five parts.
    ///
    /// # Errors
    /// At the first byte that cannot continue valid UTF-8. After an error the stream must not be used again.
    pub fn feed(&mut self, piece: &[u8], mut sink: impl FnMut(&str)) -> Result<(), InvalidUtf8> {
        let mut rest = piece;
        while !self.is_complete() {
            let Some((&byte, after)) = rest.split_first() else {
                return Ok(());
            };
            rest = after;
            let mut sequence = self.pending;
            let len = self.pending_bytes();
            sequence[len] = byte;
            match std::str::from_utf8(&sequence[..=len]) {
                Ok(text) => {
                    sink(text);
                    self.pending_bytes = 0;
                }
                Err(error) if error.error_len().is_none() => {
                    self.pending = sequence;
                    self.pending_bytes += 1;
                }
                Err(_) => return Err(InvalidUtf8),
            }
        }
        let (whole, tail) = rest.split_at(rest.len() - cut_sequence_bytes(rest));
        sink(check(whole)?);
        if let Err(error) = std::str::from_utf8(tail) {
            if error.error_len().is_some() {
                return Err(InvalidUtf8);
            }
            self.pending[..tail.len()].copy_from_slice(tail);
            self.pending_bytes = tail.len() as u8;
        }
        Ok(())
    }
}

/// How many bytes at the end of `bytes` begin a sequence that is longer than what is left (0 to 3).
fn cut_sequence_bytes(bytes: &[u8]) -> usize {
    for (back, &byte) in (1..=3).zip(bytes.iter().rev()) {
        let sequence_bytes = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        return if sequence_bytes > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every class of edge in the table of RFC 3629 section 4 and of the Unicode standard (table 3-7).
    const VALID: [&[u8]; 16] = [
        b"",
        b"\x00",
        b"\x7f",
        b"\xc2\x80",
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xe0\xbf\xbf",
        b"\xe1\x80\x80",
        b"\xec\xbf\xbf",
        b"\xed\x80\x80",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80",
        b"\xf3\xbf\xbf\xbf",
        b"\xf4\x8f\xbf\xbf",
    ];

    /// Invalid sequences, with the number of bytes after which they are known to be so.
    const INVALID: [(&[u8], usize); 24] = [
        (b"\x80", 1),
        (b"\xbf", 1),
        (b"\xc0\x80", 1),
        (b"\xc1\xbf", 1),
        (b"\xc2\x7f", 2),
        (b"\xc2\xc0", 2),
        (b"\xe0\x80\x80", 2),
        (b"\xe0\x9f\xbf", 2),
        (b"\xe1\x80\x7f", 3),
        (b"\xe1\x80\xc0", 3),
        (b"\xed\xa0\x80", 2),
        (b"\xed\xbf\xbf", 2),
        (b"\xf0\x80\x80\x80", 2),
        (b"\xf0\x8f\xbf\xbf", 2),
        (b"\xf0\x90\x80\x20", 4),
        (b"\xf1\x80\x20\x80", 3),
        (b"\xf4\x90\x80\x80", 2),
        (b"\xf5\x80\x80\x80", 1),
        (b"\xf7\xbf\xbf\xbf", 1),
        (b"\xf8\x88\x80\x80\x80", 1),
        (b"\xfc\x84\x80\x80\x80\x80", 1),
        (b"\xfe", 1),
        (b"\xff", 1),
        (b"\xe2\x82\xe2\x82\xac", 3),
    ];

    /// Feeds the pieces; the text that came out, or the number of whole pieces before the error.
    fn stream<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(String, bool), usize> {
        let mut stream = Utf8Stream::default();
        let mut text = String::new();
        for (i, piece) in pieces.into_iter().enumerate() {
            stream.feed(piece, |part| text.push_str(part)).map_err(|_| i)?;
        }
        Ok((text, stream.is_complete()))
    }

    #[test]
    fn valid_edges_pass_at_every_position_and_cut() {
        for sequence in VALID {
            for before in 0..70 {
                let text = [&b"a".repeat(before)[..], sequence, b"z"].concat();
                let expected = std::str::from_utf8(&text).unwrap();
                assert_eq!(check(&text), Ok(expected));
                for cut in 0..=text.len() {
                    let (left, right) = text.split_at(cut);
                    assert_eq!(stream([left, right]), Ok((expected.to_owned(), true)), "{text:x?} at {cut}");
                }
            }
        }
    }

    #[test]
    fn invalid_edges_fail_at_every_position_with_the_first_wrong_byte() {
        for (sequence, known_after) in INVALID {
            for before in 0..70 {
                let text = [&b"a".repeat(before)[..], sequence, b"z"].concat();
                assert_eq!(check(&text), Err(InvalidUtf8), "{text:x?}");
                assert_eq!(stream(text.chunks(1)), Err(before + known_after - 1), "{text:x?}");
                // In one piece that ends with the wrong byte, and with everything before it at hand.
                assert_eq!(stream([&text[..before + known_after]]), Err(0), "{text:x?}");
                for cut in 0..before + known_after {
                    let (left, right) = text[..before + known_after].split_at(cut);
                    assert_eq!(stream([left, right]), Err(1), "{text:x?} at {cut}");
                }
            }
        }
    }

    #[test]
    fn unfinished_sequences_are_not_complete() {
        for sequence in VALID.iter().filter(|sequence| sequence.len() > 1) {
            for len in 1..sequence.len() {
                assert_eq!(stream([&sequence[..len]]), Ok((String::new(), false)));
            }
        }
    }

    #[test]
    fn every_pair_and_triple_of_lead_bytes_agrees_with_the_standard_library() {
        for a in 0x7f..=0xff_u8 {
            for b in 0..=0xff_u8 {
                for c in [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff_u8] {
                    let bytes = [a, b, c];
                    let valid = match std::str::from_utf8(&bytes) {
                        Ok(_) => Ok(true),
                        Err(error) if error.error_len().is_none() => Ok(false),
                        Err(_) => Err(()),
                    };
                    let whole = stream([&bytes[..]]).map(|(_, complete)| complete).map_err(|_| ());
                    let bytewise = stream(bytes.chunks(1)).map(|(_, complete)| complete).map_err(|_| ());
                    assert_eq!((whole, bytewise), (valid, valid), "{bytes:x?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_agree_with_the_standard_library(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..6),
                    any::<String>().prop_map(String::into_bytes),
                    prop::collection::vec(0x80..=0xff_u8, 0..3),
                ],
                0..6,
            )
        ) {
            let bytes = pieces.concat();
            let expected = match std::str::from_utf8(&bytes) {
                Ok(text) => Ok((text.to_owned(), true)),
                Err(error) if error.error_len().is_none() => {
                    let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap();
                    Ok((valid.to_owned(), false))
                }
                Err(_) => Err(()),
            };
            prop_assert_eq!(stream(pieces.iter().map(Vec::as_slice)).map_err(|_| ()), expected.clone());
            prop_assert_eq!(stream(bytes.chunks(1)).map_err(|_| ()), expected);
            prop_assert_eq!(check(&bytes).ok(), std::str::from_utf8(&bytes).ok());
        }
    }
}
