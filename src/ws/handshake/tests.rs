//! Tests of the handshake as a whole; tungstenite's client half judges what is accepted.

use proptest::prelude::*;

use super::*;

const MAX: usize = 8192;

const HEADERS: &str = "Host: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn request(target: &str, headers: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\n{headers}\r\n").into_bytes()
}

/// All of the handshake, from bytes to the response.
fn shake(bytes: &[u8]) -> Result<String, RejectReason> {
    let outcome = parse(bytes, MAX).and_then(|parsed| {
        let (request, head_bytes) = parsed.expect("the head is whole");
        assert_eq!(head_bytes, bytes.len());
        let key = check_upgrade(&request)?;
        let mut out = Vec::new();
        write_acceptance(key, None, None, &HeaderMap::new(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    });
    outcome.map_err(|rejection| rejection.reason)
}

/// `HEADERS` with the line that starts with `name` replaced by `lines`.
fn with(name: &str, lines: &str) -> Vec<u8> {
    let kept = HEADERS.split_inclusive("\r\n").filter(|line| !line.starts_with(&format!("{name}:")));
    request("/", &format!("{}{lines}", kept.collect::<String>()))
}

#[test]
fn rfc_6455_example() {
    let response = shake(&request("/chat", HEADERS)).unwrap();
    assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\n"));
    let has = |line: &str| response.lines().any(|l| l == line);
    assert!(has("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{response}");
    assert!(has("Upgrade: websocket") && has("Connection: Upgrade"));
    assert_eq!(response.lines().count(), 5, "{response}");
}

#[test]
fn upgrades_are_recognised_in_all_their_spellings() {
    let accepted = [
        with("Connection", "Connection: keep-alive, Upgrade\r\n"),
        with("Connection", "Connection: keep-alive\r\nConnection: Upgrade\r\n"),
        with("Connection", "connection:upgrade\r\n"),
        with("Connection", "CONNECTION: ,, UPGRADE ,\r\n"),
        with("Upgrade", "Upgrade: WebSocket\r\n"),
        with("Upgrade", "Upgrade: h2c, websocket\r\n"),
        with("Upgrade", "Upgrade: foo/2\r\nUPGRADE: WEBSOCKET\r\n"),
        with("Sec-WebSocket-Key", "Sec-WebSocket-Key:   AQIDBAUGBwgJCgsMDQ4PEC==  \r\n"),
        with("Sec-WebSocket-Key", "sec-websocket-key: ++//++//++//++//++//+A==\r\n"),
        with("Host", "Host: [::1]:8080\r\n"),
        with("X", "X: \u{e9}\u{20ac}\r\nCookie: \u{ff}\r\n"),
        with("X", "Content-Length: 0\r\n"),
        request("http://example.com/x", HEADERS),
        request("wss://example.com:443", HEADERS),
        [b"\r\n\r\n", &request("/", HEADERS)[..]].concat(),
        request("/", HEADERS).into_iter().filter(|&byte| byte != b'\r').collect(),
    ];
    for bytes in accepted {
        assert!(shake(&bytes).is_ok(), "{}", bytes.escape_ascii());
    }
}

#[test]
fn every_fault_has_its_reason() {
    use RejectReason::*;
    let long_method = "M".repeat(33);
    let post = format!("POST / HTTP/1.1\r\n{HEADERS}\r\n").into_bytes();
    let many_headers = "X: y\r\n".repeat(125);
    let refused = [
        (with("Connection", ""), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ==\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQA==\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: ==\r\n"), BadRequest),
        (with("Connection", "Connection: keep-alive\r\n"), BadRequest),
        (with("Connection", "Connection: upgrades, notupgrade\r\n"), BadRequest),
        (with("Upgrade", ""), BadRequest),
        (with("Upgrade", "Upgrade: h2c\r\n"), UpgradeRequired),
        (with("Upgrade", "Upgrade: websockets\r\n"), UpgradeRequired),
        (request("/", "Host: a\r\n"), UpgradeRequired),
        (request("/", "Host: a\r\nConnection: close\r\n"), UpgradeRequired),
        (with("Sec-WebSocket-Version", ""), Version),
        (with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8\r\n"), Version),
        (with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 130\r\n"), Version),
        (with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8\r\n"), Version),
        (with("X", "Sec-WebSocket-Version: 13\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", ""), BadRequest),
        (with("X", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key:\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j====\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQa=\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub2-_ZQ==\r\n"), BadRequest),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\u{e9}Q==\r\n"), BadRequest),
        (with("Host", ""), BadRequest),
        (with("Host", "Host:\r\n"), BadRequest),
        (with("Host", "Host: a b\r\n"), BadRequest),
        (with("Host", "Host: a/b\r\n"), BadRequest),
        (with("Host", "Host: user@a\r\n"), BadRequest),
        (with("Host", "Host: a:b\r\n"), BadRequest),
        (with("Host", "Host: a\r\nHost: a\r\n"), BadRequest),
        (with("X", "Content-Length: 5\r\n"), BadRequest),
        (with("X", "Content-Length: 0\r\nContent-Length: 1\r\n"), BadRequest),
        (with("X", "Transfer-Encoding: chunked\r\n"), BadRequest),
        (with("X", "X y: z\r\n"), BadRequest),
        (with("X", "X : z\r\n"), BadRequest),
        (with("X", "X: \0\r\n"), BadRequest),
        (with("X", "no colon\r\n"), BadRequest),
        (with("X", &many_headers), TooLarge),
        (request("example.com:80", HEADERS), BadRequest),
        (request("*", HEADERS), BadRequest),
        (request("ftp://example.com/", HEADERS), BadRequest),
        (request("http://user@example.com/", HEADERS), BadRequest),
        (request("/a b", HEADERS), BadRequest),
        (request("", HEADERS), BadRequest),
        (post, Method),
        (b"HEAD / HTTP/1.0\r\n\r\n".to_vec(), Method),
        (b"get / HTTP/1.1\r\n\r\n".to_vec(), Method),
        (format!("GET / HTTP/1.0\r\n{HEADERS}\r\n").into_bytes(), UpgradeRequired),
        (format!("GET / HTTP/3.0\r\n{HEADERS}\r\n").into_bytes(), HttpVersion),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), HttpVersion),
        (b"GET /\r\n\r\n".to_vec(), BadRequest),
        (b"GET / http/1.1\r\n\r\n".to_vec(), BadRequest),
        (format!("{long_method} / HTTP/1.1\r\n\r\n").into_bytes(), BadRequest),
    ];
    for (bytes, reason) in refused {
        assert_eq!(shake(&bytes).unwrap_err(), reason, "{}", bytes.escape_ascii());
    }
}

#[test]
fn of_several_faults_the_first_is_told() {
    let faults = [
        ("Host: a\r\n", "a header that may appear once appears twice"),
        ("Content-Length: 5\r\n", "a WebSocket upgrade has no body"),
        ("Connection", "Upgrade needs the header Connection: Upgrade"),
        ("Sec-WebSocket-Version: 13\r\n", "a header that may appear once appears twice"),
        ("Sec-WebSocket-Key", "the header Sec-WebSocket-Key is missing"),
    ];
    for (first, (_, message)) in faults.iter().enumerate() {
        let mut headers = HEADERS.to_owned();
        for (fault, _) in &faults[first..] {
            let is_meant = |line: &&str| line.starts_with(&format!("{fault}:"));
            match headers.clone().split_inclusive("\r\n").find(is_meant) {
                Some(line) => headers = headers.replace(line, ""),
                None => headers += fault,
            }
        }
        let bytes = request("/", &headers);
        let (request, _) = parse(&bytes, MAX).unwrap().unwrap();
        assert_eq!(check_upgrade(&request).unwrap_err().message, *message, "{headers}");
    }
    for (name, message) in [
        ("Host", "the header Host is missing"),
        ("Upgrade", "Connection: Upgrade needs the header Upgrade: websocket"),
        ("Sec-WebSocket-Version", "Sec-WebSocket-Version must be 13"),
    ] {
        let bytes = with(name, "");
        let (request, _) = parse(&bytes, MAX).unwrap().unwrap();
        assert_eq!(check_upgrade(&request).unwrap_err().message, message);
    }
}

#[test]
fn what_is_not_http_is_refused_at_its_first_bytes() {
    let noise: [&[u8]; 8] = [
        b"\x16\x03\x01",
        b"\x00",
        b"\x81\x85",
        b" GET",
        b"GET\t/",
        b"{\"json\"",
        b"\xffSMB",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ];
    for bytes in noise {
        assert_eq!(
            parse(bytes, MAX).unwrap_err().reason,
            RejectReason::BadRequest,
            "{}",
            bytes.escape_ascii()
        );
    }
    assert_eq!(parse(&[b'A'; 33], MAX).unwrap_err().reason, RejectReason::BadRequest);
    assert!(matches!(parse(&[b'A'; 32], MAX), Ok(None)));
}

#[test]
fn a_head_in_pieces_is_found_at_its_last_byte_and_the_first_frames_are_left() {
    for head in [request("/", HEADERS), b"\r\nGET / HTTP/1.1\nHost: a\n\n".to_vec()] {
        let bytes = [&head[..], b"\x81\x80\0\0\0\0"].concat();
        let mut seen = 0;
        for len in 0..head.len() {
            assert!(matches!(parse(&bytes[..len], MAX), Ok(None)), "{len}");
            assert!(matches!(parse_more(&bytes[..len], seen, MAX), Ok(None)), "{len}");
            seen = len;
        }
        for seen in 0..head.len() {
            for len in head.len()..=bytes.len() {
                let (_, head_bytes) = parse_more(&bytes[..len], seen, MAX).unwrap().unwrap();
                assert_eq!(head_bytes, head.len(), "after {seen}");
            }
        }
    }
}

#[test]
fn the_size_limit_is_exact_and_early() {
    let head = request("/", HEADERS);
    assert!(matches!(parse(&head, head.len()), Ok(Some(_))));
    let reason = |bytes: &[u8], max| parse(bytes, max).unwrap_err().reason;
    assert_eq!(reason(&head, head.len() - 1), RejectReason::TooLarge);
    let endless = [b"GET /", &[b'a'; MAX][..]].concat();
    assert!(matches!(parse(&endless[..MAX - 1], MAX), Ok(None)));
    assert_eq!(reason(&endless[..MAX], MAX), RejectReason::TooLarge);
    let endless_header = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; MAX]].concat();
    assert_eq!(reason(&endless_header, MAX), RejectReason::TooLarge);
    assert_eq!(reason(&[b'\n'; MAX], MAX), RejectReason::TooLarge);
    // Frames behind the head do not count.
    assert!(matches!(parse(&[&head[..], &[0; 2 * MAX]].concat(), MAX), Ok(Some(_))));
}

#[test]
fn acceptance_carries_what_was_chosen_and_refuses_what_cannot_be_sent() {
    let bytes = request("/", HEADERS);
    let (request, _) = parse(&bytes, MAX).unwrap().unwrap();
    let mut more = HeaderMap::new();
    more.append("x-served-by", HeaderValue::from_static("corecast"));
    let mut out = b"before".to_vec();
    let key = check_upgrade(&request).unwrap();
    write_acceptance(key, Some("chat"), Some("permessage-deflate"), &more, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("beforeHTTP/1.1 101 ") && text.ends_with("\r\n\r\n"));
    for line in [
        "Sec-WebSocket-Protocol: chat",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "x-served-by: corecast",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }

    for (subprotocol, extensions) in [(Some("a\r\nb"), None), (None, Some("a\nb"))] {
        let mut out = b"before".to_vec();
        let rejection = write_acceptance(key, subprotocol, extensions, &more, &mut out).unwrap_err();
        assert_eq!((rejection.reason, &out[..]), (RejectReason::Internal, &b"before"[..]));
    }
}

#[test]
fn rejections_are_whole_responses() {
    let every = [
        (Rejection::bad_request("why"), 400, ""),
        (Rejection::method(), 405, "Allow: GET"),
        (Rejection::not_found(), 404, ""),
        (Rejection::upgrade_required(), 426, "Sec-WebSocket-Version: 13"),
        (Rejection::version(), 426, "Sec-WebSocket-Version: 13"),
        (Rejection::http_version(), 505, ""),
        (Rejection::origin(), 403, ""),
        (Rejection::subprotocol(), 400, ""),
        (Rejection::topic("topic too long"), 400, ""),
        (Rejection::forbidden("no"), 403, ""),
        (Rejection::unauthorized(), 401, "WWW-Authenticate: Bearer"),
        (Rejection::too_large(), 431, ""),
        (Rejection::capacity(7), 503, "Retry-After: 7"),
        (Rejection::per_ip(8), 503, "Retry-After: 8"),
        (Rejection::accept_rate(1), 503, "Retry-After: 1"),
        (Rejection::new(RejectReason::ProxyHeader, "no header"), 400, ""),
        (Rejection::subscriptions(), 400, ""),
        (Rejection::topics(5), 503, "Retry-After: 5"),
        (Rejection::descriptors(9), 503, "Retry-After: 9"),
        (Rejection::unavailable("draining", 10), 503, "Retry-After: 10"),
        (Rejection::timeout(), 408, ""),
        (Rejection::internal(), 500, ""),
    ];
    for (i, (rejection, status, line)) in every.iter().enumerate() {
        assert_eq!(rejection.reason, RejectReason::ALL[i]);
        assert_eq!(rejection.reason.index(), i);
        let mut out = Vec::new();
        write_rejection(rejection, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, format!("{}\n", rejection.message));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert!(lines.iter().any(|l| l.starts_with("Connection: close")), "{head}");
        assert!(lines.contains(&format!("Content-Length: {}", body.len()).as_str()), "{head}");
        assert!(line.is_empty() || lines.contains(line), "{head}");
        assert_eq!(lines.contains(&"Upgrade: websocket"), *status == 426, "{head}");
        assert!(head.split("\r\n").all(|line| !line.contains(['\r', '\n'])));
    }
    let mut labels = RejectReason::ALL.map(RejectReason::as_str).to_vec();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), RejectReason::ALL.len());
}

#[test]
fn tungstenites_client_accepts_the_answer() {
    use std::io::{Cursor, Read, Write};
    /// Answers the client's request when it is whole.
    #[derive(Debug)]
    struct Server {
        request: Vec<u8>,
        response: Cursor<Vec<u8>>,
    }
    impl Write for Server {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.request.extend_from_slice(bytes);
            if let Some((request, _)) = parse(&self.request, MAX).unwrap() {
                let key = check_upgrade(&request).unwrap();
                let supported = ["chat".to_owned()];
                let chosen = select_subprotocol(&request, &supported, true).unwrap();
                let mut out = Vec::new();
                write_acceptance(key, chosen, None, &HeaderMap::new(), &mut out).unwrap();
                self.response = Cursor::new(out);
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl Read for Server {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.response.read(bytes)
        }
    }
    let uri = "ws://example.com/x".parse().unwrap();
    let builder = tungstenite::client::ClientRequestBuilder::new(uri).with_sub_protocol("chat");
    let server = Server { request: Vec::new(), response: Cursor::new(Vec::new()) };
    let (_, response) = tungstenite::client(builder, server).unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic_and_alike_in_pieces(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(
                prop::sample::select(vec![
                    "GET ", "/ ", "/%ff ", "*", "http://a/ ", "HTTP/1.1\r\n", "HTTP/1.0\r\n", "\r\n", "\n", "Host: a\r\n",
                    "Connection: upgrade\r\n", "Upgrade: websocket\r\n", "Origin: null\r\n", "\u{e9}: x\r\n",
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "Sec-WebSocket-Version: 13\r\n",
                    "Sec-WebSocket-Protocol: \u{e9}\r\n", "Connection: \u{e9}, upgrade\r\n",
                ]),
                0..14,
            ).prop_map(|parts| [b"GET / HTTP/1.1\r\n", parts.concat().as_bytes(), b"\r\n"].concat()),
        ],
        max in 0..300usize,
    ) {
        let mut seen = 0;
        for len in 0..=bytes.len() {
            let whole = parse(&bytes[..len], max);
            let more = parse_more(&bytes[..len], seen, max);
            seen = len;
            let summary = |outcome: &Result<Option<(Request, usize)>, Rejection>| match outcome {
                Ok(parsed) => Ok(parsed.as_ref().map(|(request, bytes)| (request.uri().clone(), *bytes))),
                Err(rejection) => Err(rejection.reason),
            };
            prop_assert_eq!(summary(&whole), summary(&more));
            match whole {
                Ok(None) => {}
                Err(_) => break,
                Ok(Some((request, head_bytes))) => {
                    prop_assert_eq!(head_bytes, len);
                    let _ = path_segments(&request);
                    let _ = OriginPolicy::SameHost.check(&request);
                    let _ = select_subprotocol(&request, &["a".to_owned()], true);
                    if let Ok(key) = check_upgrade(&request) {
                        let mut out = Vec::new();
                        write_acceptance(key, None, None, &HeaderMap::new(), &mut out).unwrap();
                    }
                    break;
                }
            }
        }
    }
}
