//! permessage-deflate (RFC 7692) as a client without context takeover sees it: offer, answer, inflating.
//! No socket, no clock.
//!
//! Nothing is kept from one message to the next, so that one [`Inflater`] serves all connections of a thread.

use flate2::{Decompress, FlushDecompress, Status};

use crate::frame::ProtocolError;

const NAME: &str = "permessage-deflate";
/// The empty stored block that a sender leaves out (RFC 7692 7.2.1), and a final one: reading exactly to its end
/// proves that the message ended between two blocks.
const TAIL: [u8; 9] = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];
/// Least room that is added when the output is full.
const OUTPUT_STEP_BYTES: usize = 4096;

/// What is offered in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Largest window that the server may compress with, as a power of two.
    pub(crate) server_window_bits: Option<u8>,
}

impl Offer {
    /// Value of `Sec-WebSocket-Extensions`.
    pub(crate) fn value(self) -> String {
        let mut value = format!("{NAME}; client_no_context_takeover; server_no_context_takeover");
        if let Some(bits) = self.server_window_bits {
            value += &format!("; server_max_window_bits={bits}");
        }
        value
    }

    /// Checks the server's answer; an error names what was wrong with it.
    pub(crate) fn check(self, answer: &str) -> Result<(), &'static str> {
        const PARAMETERS: &str = "compression_parameters";
        let mut parts = answer.split(';').map(str::trim);
        if !parts.next().is_some_and(|name| name.eq_ignore_ascii_case(NAME)) {
            return Err("extension_not_offered");
        }
        let (mut server_forgets, mut client_forgets, mut window_bits) = (false, false, None);
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim_end(), Some(value.trim_start().trim_matches('"'))),
                None => (part, None),
            };
            let is_first = match (name, value) {
                ("server_no_context_takeover", None) => !std::mem::replace(&mut server_forgets, true),
                ("client_no_context_takeover", None) => !std::mem::replace(&mut client_forgets, true),
                ("server_max_window_bits", Some(value)) => {
                    let bits = value.parse::<u8>().ok().filter(|bits| (8..=15).contains(bits));
                    window_bits.replace(bits.ok_or(PARAMETERS)?).is_none()
                }
                _ => false,
            };
            if !is_first {
                return Err(PARAMETERS);
            }
        }
        let window_fits =
            self.server_window_bits.is_none_or(|offered| window_bits.is_some_and(|bits| bits <= offered));
        if server_forgets && window_fits { Ok(()) } else { Err(PARAMETERS) }
    }
}

/// Inflates messages, one at a time, whatever window they were compressed with.
#[derive(Debug)]
pub(crate) struct Inflater {
    state: Decompress,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Inflater {
    /// An inflater with the full window.
    pub(crate) fn new() -> Self {
        Self { state: Decompress::new(false), input: Vec::new(), output: Vec::new() }
    }

    /// The message whose compressed payload is `payload`; one of more than `max_bytes` is an error.
    pub(crate) fn inflate(&mut self, payload: &[u8], max_bytes: usize) -> Result<&[u8], ProtocolError> {
        self.state.reset(false);
        self.input.clear();
        self.input.extend_from_slice(payload);
        self.input.extend_from_slice(&TAIL);
        self.output.clear();
        let mut rest = &self.input[..];
        loop {
            if self.output.len() > max_bytes {
                return Err(ProtocolError::TooLong);
            }
            if self.output.len() == self.output.capacity() {
                self.output.reserve(OUTPUT_STEP_BYTES);
            }
            let before = self.state.total_in();
            let status = self.state.decompress_vec(rest, &mut self.output, FlushDecompress::None);
            rest = &rest[(self.state.total_in() - before) as usize..];
            let full = self.output.len() == self.output.capacity();
            match status.map_err(|_| ProtocolError::BadDeflate)? {
                Status::StreamEnd if rest.is_empty() => break,
                // A final block within the message (RFC 7692 7.2.3.4).
                Status::StreamEnd => self.state.reset(false),
                Status::Ok | Status::BufError if full => {}
                Status::Ok | Status::BufError => return Err(ProtocolError::BadDeflate),
            }
        }
        if self.output.len() > max_bytes { Err(ProtocolError::TooLong) } else { Ok(&self.output) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    const MAX: usize = 1 << 20;

    fn deflate(message: &[u8], window_bits: u8) -> Vec<u8> {
        let mut out = Vec::with_capacity(message.len() + 1024);
        let mut state = Compress::new_with_window_bits(Compression::default(), false, window_bits);
        state.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL[..4]));
        out.truncate(out.len() - 4);
        out
    }

    fn text(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|index| b'a' + (index * index / 7 % 11) as u8).collect()
    }

    #[test]
    fn offers_name_the_window_only_if_it_is_asked_for() {
        let plain = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";
        assert_eq!(Offer { server_window_bits: None }.value(), plain);
        let with_window = format!("{plain}; server_max_window_bits=11");
        assert_eq!(Offer { server_window_bits: Some(11) }.value(), with_window);
    }

    #[test]
    fn answers_are_accepted_if_they_fit_the_offer() {
        let check = |bits, answer: &str| Offer { server_window_bits: bits }.check(answer);
        let forgets = "permessage-deflate; server_no_context_takeover";
        assert_eq!(check(None, forgets), Ok(()));
        assert_eq!(
            check(None, "Permessage-Deflate;client_no_context_takeover ;server_no_context_takeover"),
            Ok(())
        );
        for value in ["9", "\"10\"", " 11"] {
            assert_eq!(check(Some(11), &format!("{forgets}; server_max_window_bits={value}")), Ok(()));
        }
        assert_eq!(check(None, &format!("{forgets}; server_max_window_bits=15")), Ok(()));

        assert_eq!(check(None, "permessage-bzip2"), Err("extension_not_offered"));
        let wrong = [
            "permessage-deflate".to_owned(),
            "permessage-deflate; client_no_context_takeover".to_owned(),
            format!("{forgets}; server_no_context_takeover"),
            format!("{forgets}; client_max_window_bits=15"),
            format!("{forgets}; server_max_window_bits=16"),
            format!("{forgets}; server_max_window_bits"),
            format!("{forgets}; unknown"),
            format!("{forgets}, permessage-deflate"),
        ];
        for answer in wrong {
            assert_eq!(check(None, &answer), Err("compression_parameters"), "{answer}");
        }
        assert_eq!(check(Some(11), forgets), Err("compression_parameters"));
        let larger = format!("{forgets}; server_max_window_bits=12");
        assert_eq!(check(Some(11), &larger), Err("compression_parameters"));
    }

    #[test]
    fn one_inflater_reads_messages_of_every_size_and_window() {
        let mut inflater = Inflater::new();
        for bytes in [1, 24, OUTPUT_STEP_BYTES - 1, OUTPUT_STEP_BYTES, OUTPUT_STEP_BYTES + 1, 300_000] {
            for window_bits in [9, 12, 15] {
                let message = text(bytes);
                let payload = deflate(&message, window_bits);
                assert_eq!(
                    inflater.inflate(&payload, MAX),
                    Ok(&message[..]),
                    "{bytes} B, {window_bits} bits"
                );
            }
        }
        assert_eq!(inflater.inflate(&[0], MAX), Ok(&[][..]), "an empty message");
        let final_block = [&[1, 2, 0, 0xFD, 0xFF][..], b"hi", &[0]].concat();
        assert_eq!(inflater.inflate(&final_block, MAX), Ok(&b"hi"[..]));
    }

    #[test]
    fn a_damaged_message_is_an_error_and_the_next_one_is_fine() {
        let mut inflater = Inflater::new();
        let message = text(2000);
        let payload = deflate(&message, 15);
        for cut in 0..payload.len() {
            assert_eq!(
                inflater.inflate(&payload[..cut], MAX),
                Err(ProtocolError::BadDeflate),
                "cut at {cut}"
            );
        }
        assert_eq!(inflater.inflate(&[0xFF; 40], MAX), Err(ProtocolError::BadDeflate));
        let twice_ended = [&payload[..], &TAIL[..4]].concat();
        assert_eq!(inflater.inflate(&twice_ended, MAX), Err(ProtocolError::BadDeflate));
        assert_eq!(inflater.inflate(&payload, MAX), Ok(&message[..]));
    }

    #[test]
    fn inflating_stops_at_the_limit() {
        let mut inflater = Inflater::new();
        let payload = deflate(&vec![0; 10_000_000], 15);
        assert!(payload.len() < 20_000);
        assert_eq!(inflater.inflate(&payload, 100_000), Err(ProtocolError::TooLong));
        assert!(inflater.output.capacity() < 400_000, "{}", inflater.output.capacity());
        let message = text(1000);
        let payload = deflate(&message, 15);
        assert_eq!(inflater.inflate(&payload, 999), Err(ProtocolError::TooLong));
        assert_eq!(inflater.inflate(&payload, 1000), Ok(&message[..]));
    }
}
