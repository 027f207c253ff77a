//! The opening handshake: any bytes, in any pieces.
//!
//! The first bytes choose the limit and the cuts, and whether the rest is the whole request or a target and
//! headers that are put into an upgrade which is right without them.
//!
//! What must hold:
//!
//! 1. No panic.
//! 2. `parse_more` on a growing head says what `parse` says, and what it says first stays true of the whole.
//! 3. A head ends where it was found to end: it parses alone, and is incomplete without its last byte.
//! 4. What passes `check_upgrade` is accepted, by a response in which tungstenite's client half finds the
//!    right key and only a subprotocol of ours.
//! 5. An offer of an extension that is declined changes nothing for those behind it.
//! 6. Every rejection is a whole response that tungstenite reads: with its status, `Connection: close`, and a
//!    body as long as declared.

use corecast::ws::extension::negotiate;
use corecast::ws::handshake::{self, path_segments, percent_decode, select_subprotocol};
use corecast::ws::{OriginPolicy, Rejection, Request};
use http::HeaderMap;
use tungstenite::handshake::client::Response;
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;

use super::source::{Cuts, Source};

/// Headers of an upgrade that is right; more may follow.
const UPGRADE: &[u8] = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// A host, and an offer of an extension that the input completes.
const OFFER: &[u8] = b"Host: example.com\r\nSec-WebSocket-Extensions: permessage-deflate";
/// What the fuzzer puts between target and headers.
const SEPARATOR: u8 = 0xff;

/// The part of a parsed request that can be compared.
type Parsed = (http::Method, http::Uri, http::Version, HeaderMap, usize);

/// Checks `data`.
pub fn check(data: &[u8]) {
    let mut source = Source::new(data);
    let options = source.byte();
    let max_handshake_bytes = match options & 0x03 {
        0 => usize::from(source.byte()),
        _ => 8192,
    };
    let cuts = source.cuts();
    let bytes = match options & 0x0c {
        0x00 => source.rest().to_vec(),
        0x04 => upgrade_with(source.rest(), b"Host: example.com\r\n"),
        0x08 => upgrade_with(source.rest(), b""),
        _ => upgrade_with(&[&[SEPARATOR], source.rest()].concat(), OFFER),
    };
    let whole = handshake::parse(&bytes, max_handshake_bytes);
    check_pieces(&bytes, max_handshake_bytes, cuts, &whole);
    match whole {
        Ok(None) => assert!(bytes.len() < max_handshake_bytes, "too large, and yet waited for"),
        Ok(Some((request, head_bytes))) => {
            check_end(&bytes, head_bytes, max_handshake_bytes);
            check_request(&request);
        }
        Err(rejection) => check_rejection(&rejection),
    }
    check_texts(&bytes);
}

/// A request with the target and the headers of `rest`, and between them `first` and those of an upgrade.
fn upgrade_with(rest: &[u8], first: &[u8]) -> Vec<u8> {
    let mut parts = rest.splitn(2, |&byte| byte == SEPARATOR);
    let target = parts.next().unwrap_or_default();
    let headers = parts.next().unwrap_or_default();
    // An offer goes on where the headers of the input begin.
    [b"GET /", target, b" HTTP/1.1\r\n", UPGRADE, first, headers, b"\r\n\r\n"].concat()
}

fn parsed(outcome: &Result<Option<(Request, usize)>, Rejection>) -> Result<Option<Parsed>, Rejection> {
    let found = outcome.as_ref().map_err(Clone::clone)?;
    Ok(found.as_ref().map(|(request, head_bytes)| {
        let method = request.method().clone();
        (method, request.uri().clone(), request.version(), request.headers().clone(), *head_bytes)
    }))
}

/// The head comes in pieces.
fn check_pieces(bytes: &[u8], max: usize, cuts: Cuts, whole: &Result<Option<(Request, usize)>, Rejection>) {
    let whole = parsed(whole);
    let mut seen_bytes = 0;
    for piece in cuts.pieces(bytes) {
        let start = &bytes[..seen_bytes + piece.len()];
        let outcome = parsed(&handshake::parse_more(start, seen_bytes, max));
        assert_eq!(outcome, parsed(&handshake::parse(start, max)), "parse_more after {seen_bytes} bytes");
        if outcome != Ok(None) {
            let same_reason = match (&outcome, &whole) {
                (Err(early), Err(late)) => early.reason == late.reason,
                _ => outcome == whole,
            };
            assert!(same_reason, "{outcome:?} from {} bytes, {whole:?} from all", start.len());
            return;
        }
        seen_bytes = start.len();
    }
    assert!(bytes.is_empty() || whole == Ok(None), "nothing from the pieces, {whole:?} from all");
}

/// The head is what it takes, and no more.
fn check_end(bytes: &[u8], head_bytes: usize, max: usize) {
    assert!(head_bytes <= bytes.len() && head_bytes <= max, "{head_bytes} bytes of head");
    let alone = handshake::parse(&bytes[..head_bytes], max);
    assert!(matches!(&alone, Ok(Some((_, bytes))) if *bytes == head_bytes), "alone: {alone:?}");
    let less = handshake::parse(&bytes[..head_bytes - 1], max);
    assert!(matches!(less, Ok(None)), "without the last byte: {less:?}");
}

/// All that is asked of a request, in the order of use.
fn check_request(request: &Request) {
    assert_eq!((request.method(), request.version()), (&http::Method::GET, http::Version::HTTP_11));
    let or_reject = |rejection: Rejection| check_rejection(&rejection);
    match path_segments(request) {
        Ok(segments) => assert_eq!(segments.len(), request.uri().path()[1..].split('/').count()),
        Err(rejection) => check_rejection(&rejection),
    }
    let own = ["https://example.com".to_owned(), "null".to_owned(), "example.org:8080".to_owned()];
    let policies = [OriginPolicy::SameHost, OriginPolicy::Any, OriginPolicy::List(own.to_vec())];
    let verdicts = policies.map(|policy| policy.check(request));
    // What one policy allows or what is malformed, any other says so of, too.
    assert!(verdicts[1].is_ok() || verdicts.iter().all(|verdict| *verdict == verdicts[1]));
    verdicts.into_iter().filter_map(Result::err).for_each(or_reject);
    let supported = ["chat.v2".to_owned(), "chat".to_owned()];
    let strict = select_subprotocol(request, &supported, true);
    let lenient = select_subprotocol(request, &supported, false);
    assert!(strict.is_err() || strict == lenient, "strict: {strict:?}, else {lenient:?}");
    let extensions = match negotiate(request) {
        Ok(negotiated) => negotiated.map(|negotiated| {
            assert!((9..=15).contains(&negotiated.server_window_bits));
            negotiated.response_value()
        }),
        Err(rejection) => {
            check_rejection(&rejection);
            None
        }
    };
    check_offers(request);
    strict.err().into_iter().for_each(or_reject);
    let subprotocol = lenient.unwrap_or_else(|rejection| {
        check_rejection(&rejection);
        None
    });
    check_acceptance(request, subprotocol, extensions.as_deref());
}

/// An offer that is declined changes nothing for those behind it.
fn check_offers(request: &Request) {
    let name = http::header::SEC_WEBSOCKET_EXTENSIONS;
    let mut more = Request::new(());
    more.headers_mut().append(&name, http::HeaderValue::from_static("other; x=\"y\", permessage-deflate; x"));
    for line in request.headers().get_all(&name) {
        more.headers_mut().append(&name, line.clone());
    }
    assert_eq!(negotiate(&more), negotiate(request), "behind an offer that is declined");
}

/// A request that passes is accepted; another gets its rejection.
fn check_acceptance(request: &Request, subprotocol: Option<&str>, extensions: Option<&str>) {
    let key = match handshake::check_upgrade(request) {
        Ok(key) => key,
        Err(rejection) => return check_rejection(&rejection),
    };
    let mut out = Vec::new();
    let accepted = handshake::write_acceptance(key, subprotocol, extensions, &HeaderMap::new(), &mut out);
    assert_eq!(accepted, Ok(()), "the upgrade was checked");
    let (head, response) = read_response(&out);
    assert_eq!((head, response.status().as_u16()), (out.len(), 101));
    let value = |name: &str| response.headers().get(name).map(|value| value.as_bytes());
    let key = request.headers()["sec-websocket-key"].as_bytes();
    assert_eq!(value("sec-websocket-accept"), Some(derive_accept_key(key).as_bytes()));
    assert_eq!(value("sec-websocket-protocol"), subprotocol.map(str::as_bytes));
    assert_eq!(value("sec-websocket-extensions"), extensions.map(str::as_bytes));
    assert_eq!((value("upgrade"), value("connection")), (Some(&b"websocket"[..]), Some(&b"Upgrade"[..])));
}

fn read_response(bytes: &[u8]) -> (usize, Response) {
    match Response::try_parse(bytes) {
        Ok(Some(read)) => read,
        other => panic!("{} is no response: {other:?}", bytes.escape_ascii()),
    }
}

/// A rejection is a whole and valid response, appended to what was there.
fn check_rejection(rejection: &Rejection) {
    let mut out = b"before".to_vec();
    handshake::write_rejection(rejection, &mut out);
    let out = out.strip_prefix(b"before").expect("the response is appended");
    let (head_bytes, response) = read_response(out);
    let body = &out[head_bytes..];
    assert_eq!(response.status(), rejection.status());
    assert!(response.status().is_client_error() || response.status().is_server_error());
    let value = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    assert_eq!(value("content-length"), Some(&body.len().to_string()[..]));
    assert!(value("connection").is_some_and(|options| options.split(", ").any(|option| option == "close")));
    assert_eq!(body, format!("{}\n", rejection.message).as_bytes());
}

/// Functions of text alone.
fn check_texts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match percent_decode(&text) {
        Ok(decoded) => assert!(decoded.len() <= text.len()),
        Err(rejection) => check_rejection(&rejection),
    }
    if text.len() <= 256 {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(percent_decode(&encoded).as_deref(), Ok(&*text), "encoded and decoded");
    }
    let values: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Ok(OriginPolicy::List(list)) = OriginPolicy::parse(&values) {
        assert_eq!(list, values);
        let alone = |value: &String| OriginPolicy::parse(std::slice::from_ref(value)).is_ok();
        assert!(values.iter().all(alone), "each value of an accepted list is accepted");
    }
}
