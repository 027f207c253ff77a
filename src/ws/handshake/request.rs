//! From bytes to a request head.

use tungstenite::error::{CapacityError, Error};
use tungstenite::handshake::machine::TryParse;

use super::{Rejection, Request, is_token_byte, origin};

/// The longest method that is waited for, in bytes; registered ones have at most 17.
const MAX_METHOD_BYTES: usize = 32;

/// Finds and parses one request head at the front of `bytes`.
///
/// `Ok(None)`: more bytes are needed. The number is the bytes of the head; what follows are the client's
/// first frames.
///
/// # Errors
/// 431 once the head is known to exceed `max_handshake_bytes` or to have more than 124 headers, 405 for a
/// method other than GET, 426 for HTTP/1.0 (which cannot upgrade: RFC 9110 7.8), 505 for another version, 400
/// for anything that is not HTTP, as early as the bytes show it.
pub fn parse(bytes: &[u8], max_handshake_bytes: usize) -> Result<Option<(Request, usize)>, Rejection> {
    parse_more(bytes, 0, max_handshake_bytes)
}

/// [`parse`], told that it has answered `Ok(None)` to the first `seen_bytes` of `bytes` before.
///
/// A head that comes byte by byte is then searched for its end once, not once per byte.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_more(
    bytes: &[u8],
    seen_bytes: usize,
    max_handshake_bytes: usize,
) -> Result<Option<(Request, usize)>, Rejection> {
    let window = &bytes[..bytes.len().min(max_handshake_bytes)];
    // RFC 9112 2.2: empty lines before the request are ignored.
    let skipped = window.iter().take_while(|&&byte| matches!(byte, b'\r' | b'\n')).count();
    let head = &window[skipped..];
    let line = match memchr::memchr(b'\n', head) {
        Some(end) => Some(RequestLine::parse(head[..end].strip_suffix(b"\r").unwrap_or(&head[..end]))?),
        None => {
            check_method_so_far(head)?;
            None
        }
    };
    let (Some(line), Some(head_bytes)) = (line, find_head_end(head, seen_bytes.saturating_sub(skipped)))
    else {
        return if bytes.len() < max_handshake_bytes { Ok(None) } else { Err(Rejection::too_large()) };
    };
    if !line.is_get {
        return Err(Rejection::method());
    }
    if !line.is_http_11 {
        return Err(Rejection::upgrade_required());
    }
    match Request::try_parse(&head[..head_bytes]) {
        Ok(Some((parsed_bytes, request))) if has_usable_target(&request) => {
            Ok(Some((request, skipped + parsed_bytes)))
        }
        Ok(Some(_)) => Err(Rejection::bad_request("the request target is not a path or URL")),
        Err(Error::Capacity(CapacityError::TooManyHeaders)) => Err(Rejection::too_large()),
        Ok(None) | Err(_) => Err(Rejection::bad_request("the request is not valid HTTP")),
    }
}

/// What the first line tells, so that each refusal gets its own status: tungstenite's parser has one error
/// for all.
struct RequestLine {
    is_get: bool,
    /// Else HTTP/1.0.
    is_http_11: bool,
}

impl RequestLine {
    fn parse(line: &[u8]) -> Result<Self, Rejection> {
        check_method_so_far(line)?;
        let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
        let is_http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Rejection::http_version());
            }
            _ => return Err(Rejection::bad_request("the request is not valid HTTP")),
        };
        Ok(Self { is_get: line.starts_with(b"GET "), is_http_11 })
    }
}

/// Refuses what cannot become a method: TLS, binary protocols, noise.
fn check_method_so_far(line: &[u8]) -> Result<(), Rejection> {
    let start = &line[..line.len().min(MAX_METHOD_BYTES + 1)];
    let end = start.iter().position(|&byte| !is_token_byte(byte)).unwrap_or(start.len());
    match start.get(end) {
        Some(b' ') if end > 0 => Ok(()),
        None if end <= MAX_METHOD_BYTES => Ok(()),
        _ => Err(Rejection::bad_request("this is not HTTP")),
    }
}

/// The bytes up to and including the blank line. The first `seen_bytes` are known to hold none.
fn find_head_end(head: &[u8], seen_bytes: usize) -> Option<usize> {
    // Of the line end and the blank line behind it, all but the last byte may have been seen.
    let from = seen_bytes.saturating_sub(2).min(head.len());
    memchr::memchr_iter(b'\n', &head[from..]).find_map(|i| match &head[from + i + 1..] {
        [b'\n', ..] => Some(from + i + 2),
        [b'\r', b'\n', ..] => Some(from + i + 3),
        _ => None,
    })
}

/// Origin-form, or absolute-form of a scheme that leads here (RFC 9112 3.2).
fn has_usable_target(request: &Request) -> bool {
    let uri = request.uri();
    let absolute_is_ours = match (uri.scheme_str(), uri.authority()) {
        (None, None) => true,
        (Some(scheme), Some(authority)) => {
            origin::default_port(scheme.as_bytes()).is_some()
                && origin::parse_authority(authority.as_str().as_bytes()).is_some()
        }
        _ => false,
    };
    absolute_is_ours && uri.path().starts_with('/')
}
