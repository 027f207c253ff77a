//! Negotiation of permessage-deflate (RFC 7692 5 and 7.1; the header's grammar is RFC 6455 9.1).
//!
//! Invariant: what is answered holds no state between messages, in either direction. So one compressor per
//! window size and one inflater serve all connections of a shard.

use std::ops::RangeInclusive;

use super::handshake::{Rejection, Request, is_token_byte};
use http::header::SEC_WEBSOCKET_EXTENSIONS;

/// The only extension served.
const PERMESSAGE_DEFLATE: &str = "permessage-deflate";
/// What RFC 7692 7.1.2 lets a client name, as the base-2 logarithm of bytes.
const OFFERED_WINDOW_BITS: RangeInclusive<u8> = 8..=15;
/// What a DEFLATE encoder on zlib's design can do: it turns a raw window of 8 into 9 without a word.
const SERVED_WINDOW_BITS: RangeInclusive<u8> = 9..=15;

/// The accepted parameters of permessage-deflate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// The window the server compresses with, as the base-2 logarithm of bytes: 9 to 15.
    pub server_window_bits: u8,
    /// The client named `server_max_window_bits`, so that it is answered.
    echo_window_bits: bool,
}

impl Negotiated {
    /// The value of `Sec-WebSocket-Extensions` that accepts the offer.
    ///
    /// `client_max_window_bits` is never answered: the inflater takes the full window, and not answering
    /// allows just that (RFC 7692 7.1.2.2).
    pub fn response_value(&self) -> String {
        let mut value =
            format!("{PERMESSAGE_DEFLATE}; server_no_context_takeover; client_no_context_takeover");
        if self.echo_window_bits {
            value += &format!("; server_max_window_bits={}", self.server_window_bits);
        }
        value
    }
}

/// Accepts the first offer of permessage-deflate that can be served, over all header lines.
///
/// An offer with an unknown, doubled or invalid parameter, or with a server window of 8, is declined (RFC
/// 7692 7.1.4), and so are other extensions. `Ok(None)`: nothing is accepted.
///
/// # Errors
/// 400 for a header that breaks the grammar (RFC 6455 9.1).
pub fn negotiate(request: &Request) -> Result<Option<Negotiated>, Rejection> {
    let mut accepted = None;
    for line in request.headers().get_all(SEC_WEBSOCKET_EXTENSIONS) {
        let mut reader = Reader { rest: line.as_bytes() };
        while let Some(offer) = reader.next_offer()? {
            accepted = accepted.or(accept(&offer));
        }
    }
    Ok(accepted)
}

/// One offer: `name; parameter; parameter=value`.
struct Offer<'a> {
    name: &'a [u8],
    parameters: Vec<(&'a [u8], Option<Vec<u8>>)>,
}

/// The outcome of one offer; `None` declines it.
fn accept(offer: &Offer<'_>) -> Option<Negotiated> {
    if !offer.name.eq_ignore_ascii_case(PERMESSAGE_DEFLATE.as_bytes()) {
        return None;
    }
    let mut seen: Vec<&[u8]> = Vec::new();
    let mut server_window_bits = None;
    for (name, value) in &offer.parameters {
        if seen.contains(name) {
            return None;
        }
        seen.push(name);
        match (*name, value) {
            (b"server_no_context_takeover" | b"client_no_context_takeover", None) => {}
            (b"server_max_window_bits", Some(value)) => {
                server_window_bits =
                    Some(window_bits(value).filter(|bits| SERVED_WINDOW_BITS.contains(bits))?);
            }
            (b"client_max_window_bits", None) => {}
            (b"client_max_window_bits", Some(value)) => {
                window_bits(value)?;
            }
            _ => return None,
        }
    }
    Some(Negotiated {
        server_window_bits: server_window_bits.unwrap_or(*SERVED_WINDOW_BITS.end()),
        echo_window_bits: server_window_bits.is_some(),
    })
}

/// A decimal number without leading zeros in the range of RFC 7692 7.1.2.
fn window_bits(value: &[u8]) -> Option<u8> {
    let is_number = value.iter().all(u8::is_ascii_digit) && !value.starts_with(b"0");
    let bits = std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()?;
    OFFERED_WINDOW_BITS.contains(&bits).then_some(bits)
}

/// Reads the grammar of RFC 6455 9.1 from the front of a header line.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next element of the list; empty ones are skipped (RFC 9110 5.6.1.2).
    fn next_offer(&mut self) -> Result<Option<Offer<'a>>, Rejection> {
        while self.skip(b',') {}
        if self.rest.is_empty() {
            return Ok(None);
        }
        let name = self.token()?;
        let mut parameters = Vec::new();
        while self.skip(b';') {
            let parameter = self.token()?;
            let value = if self.skip(b'=') { Some(self.value()?) } else { None };
            parameters.push((parameter, value));
        }
        if !self.rest.is_empty() && !self.skip(b',') {
            return Err(malformed());
        }
        Ok(Some(Offer { name, parameters }))
    }

    /// Skips white space and then `separator`, if it is there.
    fn skip(&mut self, separator: u8) -> bool {
        self.rest = self.rest.trim_ascii_start();
        match self.rest {
            [first, rest @ ..] if *first == separator => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn token(&mut self) -> Result<&'a [u8], Rejection> {
        let rest = self.rest.trim_ascii_start();
        let end = rest.iter().position(|&byte| !is_token_byte(byte)).unwrap_or(rest.len());
        let (token, rest) = rest.split_at(end);
        self.rest = rest;
        if token.is_empty() { Err(malformed()) } else { Ok(token) }
    }

    /// A token, or a quoted string that holds one.
    fn value(&mut self) -> Result<Vec<u8>, Rejection> {
        if !self.skip(b'"') {
            return self.token().map(<[u8]>::to_vec);
        }
        let mut value = Vec::new();
        loop {
            let (byte, rest) = match self.rest {
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    let is_token = !value.is_empty() && value.iter().all(|&byte| is_token_byte(byte));
                    return if is_token { Ok(value) } else { Err(malformed()) };
                }
                [b'\\', byte, rest @ ..] | [byte, rest @ ..] => (*byte, rest),
                [] => return Err(malformed()),
            };
            value.push(byte);
            self.rest = rest;
        }
    }
}

fn malformed() -> Rejection {
    Rejection::bad_request("the header Sec-WebSocket-Extensions is invalid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The accepted value, or the status of the refusal.
    fn answer(lines: &[&[u8]]) -> Result<Option<String>, u16> {
        let mut request = Request::new(());
        for line in lines {
            let value = http::HeaderValue::from_bytes(line).unwrap();
            request.headers_mut().append(SEC_WEBSOCKET_EXTENSIONS, value);
        }
        let negotiated = negotiate(&request).map_err(|rejection| rejection.status().as_u16())?;
        if let Some(negotiated) = negotiated {
            assert!(SERVED_WINDOW_BITS.contains(&negotiated.server_window_bits));
        }
        Ok(negotiated.map(|negotiated| negotiated.response_value()))
    }

    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn offers_that_are_accepted() {
        let plain = [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate;client_max_window_bits=15;server_no_context_takeover",
            " Permessage-Deflate ; client_no_context_takeover ; server_no_context_takeover ",
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-deflate; unknown, permessage-deflate",
            ", ,permessage-deflate,,",
            "permessage-bzip2; level=\"9\"; quoted=\"a\\b\", permessage-deflate; client_max_window_bits=\"1\\0\"",
        ];
        for line in plain {
            assert_eq!(answer(&[line.as_bytes()]), Ok(Some(PLAIN.to_owned())), "{line}");
        }
        for bits in 9..=15 {
            for value in [format!("{bits}"), format!("\"{bits}\""), format!(" {bits} ")] {
                let line = format!("permessage-deflate; server_max_window_bits={value}");
                let expected = format!("{PLAIN}; server_max_window_bits={bits}");
                assert_eq!(answer(&[line.as_bytes()]), Ok(Some(expected)));
            }
        }
    }

    #[test]
    fn offers_that_are_declined() {
        let declined = [
            "",
            "permessage-deflate2",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits=0",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=265",
            "permessage-deflate; server_max_window_bits=ten",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; unknown",
            "permessage-deflate; client_max_window_bits; unknown=1",
        ];
        for line in declined {
            assert_eq!(answer(&[line.as_bytes()]), Ok(None), "{line}");
        }
        assert_eq!(answer(&[]), Ok(None));
    }

    #[test]
    fn the_first_acceptable_offer_wins_over_all_lines() {
        let wins = |lines: &[&str], bits: u8| {
            let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(answer(&lines), Ok(Some(format!("{PLAIN}; server_max_window_bits={bits}"))));
        };
        wins(&["permessage-deflate; server_max_window_bits=10, permessage-deflate"], 10);
        wins(
            &["permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=9"],
            9,
        );
        wins(&["foo; bar=baz", "permessage-deflate; server_max_window_bits=12", "permessage-deflate"], 12);
    }

    #[test]
    fn headers_that_break_the_grammar_are_refused() {
        let malformed: [&[u8]; 14] = [
            b";",
            b"permessage-deflate;",
            b"permessage-deflate; =1",
            b"permessage-deflate; client_max_window_bits=",
            b"permessage-deflate; client_max_window_bits=\"",
            b"permessage-deflate; client_max_window_bits=\"10",
            b"permessage-deflate; client_max_window_bits=\"\"",
            b"permessage-deflate; client_max_window_bits=\"1 0\"",
            b"permessage-deflate; client_max_window_bits=\"10\"x",
            b"permessage-deflate client_max_window_bits",
            b"permessage deflate",
            b"permessage-deflate, a/b",
            b"\xff",
            b"x=1",
        ];
        for line in malformed {
            assert_eq!(answer(&[line]), Err(400), "{}", line.escape_ascii());
            assert_eq!(answer(&[b"permessage-deflate", line]), Err(400), "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_line_is_judged_without_panic(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    &b"permessage-deflate"[..], b"server_max_window_bits", b"client_max_window_bits", b"=", b"\"", b"9", b"15",
                    b";", b",", b" ", b"\\", b"\xff", b"\t", b"server_no_context_takeover",
                ]),
                0..12,
            )
        ) {
            let line = parts.concat();
            // Whatever is accepted is accepted again beside an offer that is not.
            if let Ok(Some(value)) = answer(&[&line]) {
                prop_assert_eq!(answer(&[b"other; x", &line]), Ok(Some(value)));
            }
        }
    }
}
