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

/// Bytes of a key: 16 bytes in base64.
const KEY_BYTES: usize = 24;

/// The key of a request that [`check_upgrade`] has found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocketKey([u8; KEY_BYTES]);

/// Checks that the request is an upgrade to WebSocket as RFC 6455 4.2.1 wants it, and gives its key.
///
/// # Errors
/// 400 for a bad `Host`, a body, half an upgrade and a bad key; 426 for a request without
/// upgrade and for another version of the protocol.
pub fn check_upgrade(request: &Request) -> Result<WebSocketKey, Rejection> {
    let headers = UpgradeHeaders::of(request.headers());
    check_host(headers.host)?;
    // A body would be read as the first frames.
    if headers.has_body {
        return Err(Rejection::bad_request("a WebSocket upgrade has no body"));
    }
    match (headers.connection_upgrades, headers.upgrades_to_websocket) {
        (true, true) => {}
        (false, true) => {
            return Err(Rejection::bad_request("Upgrade needs the header Connection: Upgrade"));
        }
        (true, false) if !headers.has_upgrade => {
            return Err(Rejection::bad_request("Connection: Upgrade needs the header Upgrade: websocket"));
        }
        (_, false) => return Err(Rejection::upgrade_required()),
    }
    match headers.version.value()? {
        Some(version) if version == VERSION.as_bytes() => {}
        _ => return Err(Rejection::version()),
    }
    websocket_key(headers.key)
}

/// Appends the 101 response to `out`.
///
/// `extensions` is the value of `Sec-WebSocket-Extensions`; `more` are further headers.
///
/// # Errors
/// 500 if a value of ours cannot be sent; `out` is as before then.
pub fn write_acceptance(
    key: WebSocketKey,
    subprotocol: Option<&str>,
    extensions: Option<&str>,
    more: &HeaderMap,
    out: &mut Vec<u8>,
) -> Result<(), Rejection> {
    // Of tungstenite only the key's answer serves here. Its create_response looks at the first Connection
    // line only, wants Upgrade to be no list, and refuses the very key of RFC 6455 4.1, whose last bits are
    // not zero; its write_response has header names in lower case, which some small clients do not find.
    let accept_key = derive_accept_key(&key.0);
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

/// What [`check_upgrade`] looks at, found in one pass: a look-up of each name costs more than all of a request's
/// headers do here.
#[derive(Default)]
struct UpgradeHeaders<'a> {
    host: AtMostOnce<'a>,
    version: AtMostOnce<'a>,
    key: AtMostOnce<'a>,
    has_body: bool,
    /// `Connection` has `upgrade`.
    connection_upgrades: bool,
    /// There is a header `Upgrade`.
    has_upgrade: bool,
    /// And it has `websocket`.
    upgrades_to_websocket: bool,
}

impl<'a> UpgradeHeaders<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            let value = value.as_bytes();
            if *name == header::HOST {
                found.host.add(value);
            } else if *name == header::CONNECTION {
                found.connection_upgrades |= has_token(value, b"upgrade");
            } else if *name == header::UPGRADE {
                found.has_upgrade = true;
                found.upgrades_to_websocket |= has_token(value, b"websocket");
            } else if *name == header::SEC_WEBSOCKET_VERSION {
                found.version.add(value);
            } else if *name == header::SEC_WEBSOCKET_KEY {
                found.key.add(value);
            } else if *name == header::CONTENT_LENGTH {
                found.has_body |= value != b"0";
            } else if *name == header::TRANSFER_ENCODING {
                found.has_body = true;
            }
        }
        found
    }
}

/// A header that may appear once.
#[derive(Clone, Copy, Default)]
enum AtMostOnce<'a> {
    #[default]
    Missing,
    Once(&'a [u8]),
    Again,
}

impl<'a> AtMostOnce<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Missing => Self::Once(value.trim_ascii()),
            Self::Once(_) | Self::Again => Self::Again,
        };
    }

    /// The value, if there is one. Error: the header appears more often.
    fn value(self) -> Result<Option<&'a [u8]>, Rejection> {
        match self {
            Self::Missing => Ok(None),
            Self::Once(value) => Ok(Some(value)),
            Self::Again => Err(Rejection::bad_request("a header that may appear once appears twice")),
        }
    }
}

/// `Host` once, and an authority (RFC 9112 3.2).
fn check_host(host: AtMostOnce<'_>) -> Result<(), Rejection> {
    let host = host.value()?.ok_or_else(|| Rejection::bad_request("the header Host is missing"))?;
    match origin::parse_authority(host) {
        Some(_) => Ok(()),
        None => Err(Rejection::bad_request("the header Host is invalid")),
    }
}

/// The one `Sec-WebSocket-Key`: base64 of 16 bytes (RFC 6455 4.2.1).
///
/// The four bits of the last digit that encode nothing are not judged: the example key of RFC 6455 4.1 has
/// them set, and so have clients that copied it.
fn websocket_key(key: AtMostOnce<'_>) -> Result<WebSocketKey, Rejection> {
    let key =
        key.value()?.ok_or_else(|| Rejection::bad_request("the header Sec-WebSocket-Key is missing"))?;
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match <[u8; KEY_BYTES]>::try_from(key) {
        Ok(key @ [digits @ .., b'=', b'=']) if digits.iter().all(is_digit) => Ok(WebSocketKey(key)),
        _ => Err(Rejection::bad_request("the header Sec-WebSocket-Key is not 16 bytes in base64")),
    }
}

/// The value of a header that may appear once. Error: it appears more often.
fn only(headers: &HeaderMap, name: HeaderName) -> Result<Option<&[u8]>, Rejection> {
    let mut found = AtMostOnce::default();
    headers.get_all(name).iter().for_each(|value| found.add(value.as_bytes()));
    found.value()
}

/// The elements of a comma-separated list over all lines of a header (RFC 9110 5.6.1); empty ones are left out.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).into_iter().flat_map(|line| elements(line.as_bytes()))
}

/// The elements of one line of such a list.
fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b',').map(|element| element.trim_ascii()).filter(|element| !element.is_empty())
}

/// Whether one line of a list has a token, in whatever case.
fn has_token(line: &[u8], token: &[u8]) -> bool {
    elements(line).any(|element| element.eq_ignore_ascii_case(token))
}

/// True for the bytes of a token (RFC 9110 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+')
        || matches!(byte, b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

#[cfg(test)]
mod tests;
