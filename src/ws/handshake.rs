//! The opening handshake (RFC 6455 4.2): a request head in, an acceptance or a rejection out.
//!
//! The order of use: [`parse`] until there is a request, [`check_upgrade`], the route by
//! [`path_segments`], [`OriginPolicy::check`], [`select_subprotocol`], then [`write_acceptance`]; any
//! [`Rejection`] goes to [`write_rejection`] and the connection is closed.
//!
//! Invariants:
//!
//! 1. A head is parsed once, when it is whole. Until then a byte costs a search for the blank line, and
//!    what cannot become a request is refused at once.
//! 2. Nothing the peer sent is repeated in an answer but its key, hashed, and its choice of subprotocol.

mod origin;
mod path;
mod rejection;
mod request;
mod subprotocol;

pub use origin::{InvalidOrigin, LivePage, OriginPolicy, is_host, names_host, names_loopback};
pub use path::{path_segments, percent_decode};
pub use rejection::{RejectReason, Rejection, write_rejection};
pub use request::{parse, parse_more};
pub use subprotocol::select_subprotocol;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tungstenite::handshake::derive_accept_key;

/// A parsed request head.
pub type Request = http::Request<()>;

/// The only version of the protocol (RFC 6455 4.1).
const VERSION: &str = "13";

/// Checks that the request is an upgrade to WebSocket as RFC 6455 4.2.1 wants it.
///
/// Errors: 400 for a bad `Host`, a body, half an upgrade and a bad key; 426 for a request without
/// upgrade and for another version of the protocol.
pub fn check_upgrade(request: &Request) -> Result<(), Rejection> {
    let headers = request.headers();
    check_host(headers)?;
    check_no_body(headers)?;
    let connection = tokens(headers, header::CONNECTION).any(|t| t.eq_ignore_ascii_case(b"upgrade"));
    let upgrade = tokens(headers, header::UPGRADE).any(|t| t.eq_ignore_ascii_case(b"websocket"));
    match (connection, upgrade) {
        (true, true) => {}
        (false, true) => {
            return Err(Rejection::bad_request("Upgrade needs the header Connection: Upgrade"));
        }
        (true, false) if !headers.contains_key(header::UPGRADE) => {
            return Err(Rejection::bad_request("Connection: Upgrade needs the header Upgrade: websocket"));
        }
        (_, false) => return Err(Rejection::upgrade_required()),
    }
    match only(headers, header::SEC_WEBSOCKET_VERSION)? {
        Some(version) if version == VERSION.as_bytes() => {}
        _ => return Err(Rejection::version()),
    }
    websocket_key(headers).map(|_| ())
}

/// Appends the 101 response to `out`.
///
/// `extensions` is the value of `Sec-WebSocket-Extensions`; `more` are further headers. Errors: 400 if the
/// request has no valid key, 500 if a value of ours cannot be sent; `out` is as before then.
pub fn write_acceptance(
    request: &Request,
    subprotocol: Option<&str>,
    extensions: Option<&str>,
    more: &HeaderMap,
    out: &mut Vec<u8>,
) -> Result<(), Rejection> {
    // Of tungstenite only the key's answer serves here. Its create_response looks at the first Connection
    // line only, wants Upgrade to be no list, and refuses the very key of RFC 6455 4.1, whose last bits are
    // not zero; its write_response has header names in lower case, which some small clients do not find.
    let accept_key = derive_accept_key(websocket_key(request.headers())?);
    let own = |value: &str| HeaderValue::from_str(value).map_err(|_| Rejection::internal());
    let subprotocol = subprotocol.map(own).transpose()?;
    let extensions = extensions.map(own).transpose()?;
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
    );
    write_header("Sec-WebSocket-Accept", accept_key.as_bytes(), out);
    if let Some(subprotocol) = subprotocol {
        write_header("Sec-WebSocket-Protocol", subprotocol.as_bytes(), out);
    }
    if let Some(extensions) = extensions {
        write_header("Sec-WebSocket-Extensions", extensions.as_bytes(), out);
    }
    for (name, value) in more {
        write_header(name.as_str(), value.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn write_header(name: &str, value: &[u8], out: &mut Vec<u8>) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// `Host` once, and an authority (RFC 9112 3.2).
fn check_host(headers: &HeaderMap) -> Result<(), Rejection> {
    let host = only(headers, header::HOST)?.ok_or(Rejection::bad_request("the header Host is missing"))?;
    match origin::parse_authority(host) {
        Some(_) => Ok(()),
        None => Err(Rejection::bad_request("the header Host is invalid")),
    }
}

/// A body would be read as the first frames.
fn check_no_body(headers: &HeaderMap) -> Result<(), Rejection> {
    let has_length = headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0");
    if has_length || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Rejection::bad_request("a WebSocket upgrade has no body"));
    }
    Ok(())
}

/// The one `Sec-WebSocket-Key`: base64 of 16 bytes (RFC 6455 4.2.1).
///
/// The four bits of the last digit that encode nothing are not judged: the example key of RFC 6455 4.1 has
/// them set, and so have clients that copied it.
fn websocket_key(headers: &HeaderMap) -> Result<&[u8], Rejection> {
    let key = only(headers, header::SEC_WEBSOCKET_KEY)?
        .ok_or(Rejection::bad_request("the header Sec-WebSocket-Key is missing"))?;
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key.strip_suffix(b"==") {
        Some(digits) if digits.len() == 22 && digits.iter().all(is_digit) => Ok(key),
        _ => Err(Rejection::bad_request("the header Sec-WebSocket-Key is not 16 bytes in base64")),
    }
}

/// The value of a header that may appear once. Error: it appears more often.
fn only(headers: &HeaderMap, name: HeaderName) -> Result<Option<&[u8]>, Rejection> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|value| value.as_bytes().trim_ascii())),
        (_, Some(_)) => Err(Rejection::bad_request("a header that may appear once appears twice")),
    }
}

/// The elements of a comma-separated list over all lines of a header (RFC 9110 5.6.1); empty ones are left out.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(|token| token.trim_ascii())
        .filter(|token| !token.is_empty())
}

/// True for the bytes of a token (RFC 9110 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
