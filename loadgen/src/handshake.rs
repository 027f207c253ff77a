//! The client's side of the opening handshake. No socket, no clock.

use crate::compression::Offer;
use crate::units::Url;

/// The example of RFC 6455 section 1.3: with a fixed key the expected answer is a constant.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A response head longer than this is refused.
const HEAD_MAX_BYTES: usize = 16 * 1024;

/// Request bytes that open a connection to `url`.
pub(crate) fn request(url: &Url, compression: Option<Offer>) -> Vec<u8> {
    let extensions = compression.map(|offer| format!("Sec-WebSocket-Extensions: {}\r\n", offer.value()));
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{}\r\n",
        url.path,
        url.authority,
        extensions.unwrap_or_default()
    )
    .into_bytes()
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

/// Reads the server's response from the beginning of `bytes`. What was offered must be accepted.
pub(crate) fn response(bytes: &[u8], mut offer: Option<Offer>) -> Response {
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
            match offer.take().ok_or("extension_not_offered").and_then(|offer| offer.check(value)) {
                Ok(()) => {}
                Err(reason) => return Response::Invalid(reason),
            }
        }
    }
    if offer.is_some() {
        return Response::Invalid("compression_declined");
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
            assert_eq!(response(&GOOD.as_bytes()[..cut], None), Response::Incomplete, "cut at {cut}");
        }
        let with_frame = [GOOD.as_bytes(), &[0x82, 0]].concat();
        assert_eq!(response(&with_frame, None), Response::Open(GOOD.len()));
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(response(b"HTTP/1.1 403 Forbidden\r\n\r\n", None), Response::Status(403));
        assert_eq!(response(b"SSH-2.0-x\r\n\r\n", None), Response::Invalid("status_line"));
        let other_key = GOOD.replace("s3pP", "S3PP");
        assert_eq!(response(other_key.as_bytes(), None), Response::Invalid("accept_header"));
        let extension = GOOD.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
        assert_eq!(response(extension.as_bytes(), None), Response::Invalid("extension_not_offered"));
        assert_eq!(response(&vec![b'a'; HEAD_MAX_BYTES + 1], None), Response::Invalid("head_too_long"));
    }

    #[test]
    fn an_offer_must_be_accepted_once() {
        let offer = Some(Offer { server_window_bits: None });
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
        let text = String::from_utf8(request(&url, None)).unwrap();
        assert!(
            text.starts_with("GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:9\r\n") && text.ends_with("13\r\n\r\n")
        );
        let text = String::from_utf8(request(&url, Some(Offer { server_window_bits: None }))).unwrap();
        assert!(
            text.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; ")
                && text.ends_with("over\r\n\r\n")
        );
    }
}
