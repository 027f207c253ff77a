//! The client's side of the opening handshake. No socket, no clock.

use crate::compression::Offer;
use crate::units::Url;

/// The example of RFC 6455 section 1.3: with a fixed key the expected answer is a constant.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A response head longer than this is refused.
const HEAD_MAX_BYTES: usize = 16 * 1024;

/// What a client asks for besides the connection. What was offered must be accepted, and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Offers {
    pub(crate) compression: Option<Offer>,
    pub(crate) subprotocol: Option<&'static str>,
}

/// Request bytes that open a connection to `url`, with `query` after its path.
pub(crate) fn request(url: &Url, query: Option<&str>, offers: Offers) -> Vec<u8> {
    let mut request = format!("GET {}", url.path);
    for part in query.iter().flat_map(|query| [if url.path.contains('?') { "&" } else { "?" }, query]) {
        request += part;
    }
    request += &format!(
        " HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n",
        url.authority
    );
    if let Some(offer) = offers.compression {
        request += &format!("Sec-WebSocket-Extensions: {}\r\n", offer.value());
    }
    if let Some(subprotocol) = offers.subprotocol {
        request += &format!("Sec-WebSocket-Protocol: {subprotocol}\r\n");
    }
    request += "\r\n";
    request.into_bytes()
}

/// What a response turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// The head is not complete.
    Incomplete,
    /// The connection is open; the head took this many bytes.
    Open(usize),
    /// The server answered with another status.
    Status(u16),
    /// Not an answer to this handshake; the reason names what was wrong.
    Invalid(&'static str),
}

/// Reads the server's response to a request with `offers` from the beginning of `bytes`.
pub(crate) fn response(bytes: &[u8], mut offers: Offers) -> Response {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_MAX_BYTES {
            Response::Invalid("head_too_long")
        } else {
            Response::Incomplete
        };
    };
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else {
        return Response::Invalid("head_not_utf8");
    };
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|line| line.get(..3))
        .and_then(|code| code.parse::<u16>().ok());
    match status {
        None => return Response::Invalid("status_line"),
        Some(101) => {}
        Some(status) => return Response::Status(status),
    }
    let (mut upgrade, mut connection, mut accept) = (false, false, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("upgrade") {
            upgrade = value.eq_ignore_ascii_case("websocket");
        } else if name.eq_ignore_ascii_case("connection") {
            connection |= value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
        } else if name.eq_ignore_ascii_case("sec-websocket-accept") {
            accept = value == ACCEPT;
        } else if name.eq_ignore_ascii_case("sec-websocket-extensions") {
            let offered = offers.compression.take().ok_or("extension_not_offered");
            if let Err(reason) = offered.and_then(|offer| offer.check(value)) {
                return Response::Invalid(reason);
            }
        } else if name.eq_ignore_ascii_case("sec-websocket-protocol")
            && offers.subprotocol.take() != Some(value)
        {
            return Response::Invalid("subprotocol_not_offered");
        }
    }
    if offers.compression.is_some() {
        return Response::Invalid("compression_declined");
    }
    if offers.subprotocol.is_some() {
        return Response::Invalid("subprotocol_declined");
    }
    match (upgrade, connection, accept) {
        (true, true, true) => Response::Open(end + 4),
        (false, ..) => Response::Invalid("upgrade_header"),
        (_, false, _) => Response::Invalid("connection_header"),
        (_, _, false) => Response::Invalid("accept_header"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn good_response_is_incomplete_at_every_cut_and_then_open() {
        for cut in 0..GOOD.len() {
            assert_eq!(
                response(&GOOD.as_bytes()[..cut], Offers::default()),
                Response::Incomplete,
                "cut at {cut}"
            );
        }
        let with_frame = [GOOD.as_bytes(), &[0x82, 0]].concat();
        assert_eq!(response(&with_frame, Offers::default()), Response::Open(GOOD.len()));
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(response(b"HTTP/1.1 403 Forbidden\r\n\r\n", Offers::default()), Response::Status(403));
        assert_eq!(response(b"SSH-2.0-x\r\n\r\n", Offers::default()), Response::Invalid("status_line"));
        let other_key = GOOD.replace("s3pP", "S3PP");
        assert_eq!(response(other_key.as_bytes(), Offers::default()), Response::Invalid("accept_header"));
        let extension = GOOD.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
        assert_eq!(
            response(extension.as_bytes(), Offers::default()),
            Response::Invalid("extension_not_offered")
        );
        assert_eq!(
            response(&vec![b'a'; HEAD_MAX_BYTES + 1], Offers::default()),
            Response::Invalid("head_too_long")
        );
    }

    #[test]
    fn an_offer_must_be_accepted_once() {
        let offer = Offers { compression: Some(Offer { server_window_bits: None }), ..Offers::default() };
        let answer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
        let accepted = GOOD.replace("\r\n\r\n", &format!("\r\n{answer}\r\n"));
        assert_eq!(response(accepted.as_bytes(), offer), Response::Open(accepted.len()));
        assert_eq!(response(GOOD.as_bytes(), offer), Response::Invalid("compression_declined"));
        let twice = GOOD.replace("\r\n\r\n", &format!("\r\n{answer}{answer}\r\n"));
        assert_eq!(response(twice.as_bytes(), offer), Response::Invalid("extension_not_offered"));
        let with_context = accepted.replace("server_no", "client_no");
        assert_eq!(response(with_context.as_bytes(), offer), Response::Invalid("compression_parameters"));
    }

    #[test]
    fn request_names_host_and_path_and_offer() {
        let url = "ws://127.0.0.1:9/a?b".parse().unwrap();
        let text = String::from_utf8(request(&url, None, Offers::default())).unwrap();
        assert!(
            text.starts_with("GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:9\r\n") && text.ends_with("13\r\n\r\n")
        );
        let offers = Offers {
            compression: Some(Offer { server_window_bits: None }),
            subprotocol: Some("ws+meta.nchan"),
        };
        let text = String::from_utf8(request(&url, Some("since=1:2"), offers)).unwrap();
        assert!(text.starts_with("GET /a?b&since=1:2 HTTP/1.1\r\n"), "{text}");
        assert!(
            text.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; ")
                && text.ends_with("over\r\nSec-WebSocket-Protocol: ws+meta.nchan\r\n\r\n")
        );
        let url = "ws://127.0.0.1:9/a".parse().unwrap();
        assert!(request(&url, Some("since=1:2"), Offers::default()).starts_with(b"GET /a?since=1:2 HTTP"));
    }

    #[test]
    fn a_subprotocol_must_be_the_offered_one() {
        let offers = Offers { subprotocol: Some("ws+meta.nchan"), ..Offers::default() };
        let chosen =
            |name: &str| GOOD.replace("\r\n\r\n", &format!("\r\nsec-websocket-protocol: {name}\r\n\r\n"));
        let good = chosen("ws+meta.nchan");
        assert_eq!(response(good.as_bytes(), offers), Response::Open(good.len()));
        assert_eq!(response(GOOD.as_bytes(), offers), Response::Invalid("subprotocol_declined"));
        assert_eq!(response(chosen("chat").as_bytes(), offers), Response::Invalid("subprotocol_not_offered"));
        assert_eq!(
            response(good.as_bytes(), Offers::default()),
            Response::Invalid("subprotocol_not_offered")
        );
    }
}
