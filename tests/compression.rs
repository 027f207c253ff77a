//! permessage-deflate (RFC 7692): what is negotiated, that nobody gets anything else for it, and its limits.

mod support;

use flate2::{Compress, Compression, FlushCompress};

use support::client::{Client, Upgrade};
use support::frame::{self, CONTINUATION, Frame, PING, PONG, RSV1};
use support::inflate;
use support::server::Server;
use support::swarm::{Member, Swarm};

const EXTENSIONS: &str = "Sec-WebSocket-Extensions";

/// What the server answers to an offer.
fn answer(server: &Server, offer: &str) -> Option<String> {
    let (response, _client) =
        Upgrade::to("/echo").header(EXTENSIONS, offer).send(server.data).expect("no answer");
    assert_eq!(response.status, 101, "{offer}: {response:?}");
    response.header(EXTENSIONS).map(|value| value.replace(' ', ""))
}

/// A client that negotiated compression by this offer.
#[track_caller]
fn compressing(server: &Server, path: &str, offer: &str) -> Client {
    let (response, client) =
        Upgrade::to(path).header(EXTENSIONS, offer).send(server.data).expect("no answer");
    assert!(response.header(EXTENSIONS).is_some(), "{offer} was declined: {response:?}");
    client
}

/// A payload as a client compresses it.
fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::default(), false);
    let mut out = Vec::with_capacity(payload.len() + 1024);
    compress.compress_vec(payload, &mut out, FlushCompress::Sync).expect("deflate");
    assert!(out.ends_with(&[0, 0, 0xFF, 0xFF]));
    out.truncate(out.len() - 4);
    out
}

fn compressed_text(text: &str) -> Frame {
    Frame::new(frame::TEXT, deflated(text.as_bytes())).with_rsv(RSV1)
}

#[test]
fn an_offer_is_accepted_without_any_context_takeover() {
    let server = Server::start(&["--echo"]);
    let plain = "permessage-deflate;server_no_context_takeover;client_no_context_takeover";
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=10",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate", // the first cannot be kept
        "permessage-deflate; what_is_this, permessage-deflate",
    ] {
        let answer = answer(&server, offer).unwrap_or_else(|| panic!("{offer} was declined"));
        let (name, parameters) = answer.split_once(';').expect("no parameters");
        assert_eq!(name, "permessage-deflate", "{offer}");
        for parameter in plain.split(';').skip(1) {
            assert!(parameters.split(';').any(|given| given == parameter), "{offer} → {answer}");
        }
        assert!(!answer.contains("server_max_window_bits"), "{offer} → {answer}");
    }
}

#[test]
fn an_offer_that_cannot_be_kept_is_declined_and_not_an_error() {
    let server = Server::start(&["--echo"]);
    for offer in [
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=zehn",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; unknown",
        "permessage-bzip2",
        "x-webkit-deflate-frame",
    ] {
        assert_eq!(answer(&server, offer), None, "{offer}");
    }
    let off = Server::start(&["--echo", "--compression", "off"]);
    assert_eq!(answer(&off, "permessage-deflate"), None);
    let mut client = off.connect("/echo");
    client.send(&compressed_text("not negotiated"));
    client.expect_failed(1002);
}

#[test]
fn the_window_asked_for_is_kept() {
    let server = Server::start(&["--echo"]);
    // The same random bytes twice, 28 KiB apart: a full window finds them again, a small one must not. What
    // stands between can be compressed in any window.
    let mut state = 1u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let noise: Vec<u8> = noise.take(20 * 1024).collect();
    let payload = [&noise[..], &[b'a'; 8 * 1024], &noise].concat();
    for bits in 9..=15 {
        let offer = format!("permessage-deflate; server_max_window_bits={bits}");
        let confirmed = answer(&server, &offer).unwrap_or_else(|| panic!("{offer} was declined"));
        assert!(confirmed.contains(&format!("server_max_window_bits={bits}")), "{offer} → {confirmed}");
        let mut client = compressing(&server, "/echo", &offer);
        client.send(&Frame::binary(payload.clone()));
        let frame = client.frame();
        assert_eq!(frame.rsv, RSV1, "the echo was not compressed");
        let inflated = inflate::message(&frame.payload).expect("inflate");
        assert!(inflated.bytes == payload, "the echo differs");
        assert!(inflated.farthest <= 1 << bits, "{} back in a window of {bits} bits", inflated.farthest);
        if bits == 15 {
            assert!(inflated.farthest > 1 << 14, "the largest window found nothing: the test proves nothing");
        }
    }
}

#[test]
fn compressed_messages_of_clients_are_understood() {
    let server = Server::start(&["--echo"]);
    let mut client = compressing(&server, "/echo", "permessage-deflate");
    for text in ["", "a", "Hello", &"grüße ".repeat(2000)] {
        client.send(&compressed_text(text));
        client.expect_text(text);
        client.send_text(text); // uncompressed is as good
        client.expect_text(text);
    }

    // In fragments: RSV1 on the first only; cut at every byte; a ping between.
    let text = "Hello, hello, hello: a message in two compressed fragments";
    let payload = deflated(text.as_bytes());
    for cut in 0..=payload.len() {
        client.send(&Frame::new(frame::TEXT, &payload[..cut]).with_rsv(RSV1).unfinished());
        client.send(&Frame::new(PING, "between"));
        client.send(&Frame::new(CONTINUATION, &payload[cut..]));
        client.expect_frame(&Frame::new(PONG, "between"));
        client.expect_text(text);
    }

    // The RFC's own examples (7.2.3): two messages of fixed codes, a stored block, a final block, two blocks.
    let examples: [&[u8]; 5] = [
        &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
        &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00],
        &[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00],
        &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
        &[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00],
    ];
    for example in examples {
        client.send(&Frame::new(frame::TEXT, example).with_rsv(RSV1));
        client.expect_text("Hello");
    }
    client.expect_alive();
}

#[test]
fn what_is_wrong_in_compression_closes_the_connection() {
    let server = Server::start(&["--echo"]);
    let mut bystander = compressing(&server, "/echo", "permessage-deflate");
    let open = || compressing(&server, "/echo", "permessage-deflate");
    let hello = deflated(b"hello, hello, hello");
    for wrong in [
        Frame::new(PING, "x").with_rsv(RSV1),
        compressed_text("x").with_rsv(RSV1 | 0b010),
        compressed_text("x").with_rsv(0b001),
    ] {
        let mut client = open();
        client.send(&wrong);
        client.expect_failed(1002);
    }
    let mut client = open();
    client.send(&Frame::new(frame::TEXT, &hello[..3]).with_rsv(RSV1).unfinished());
    client.send(&Frame::new(CONTINUATION, &hello[3..]).with_rsv(RSV1));
    client.expect_failed(1002);

    // Not a DEFLATE stream: a block of type 3; a distance beyond the beginning; a stored block cut short.
    for garbage in
        [&[0x07, 0x00][..], &[0x03 | 0x02, 0xFF, 0xFF, 0xFF, 0xFF], &[0x00, 0x05, 0x00, 0x00, 0x00, 0x48]]
    {
        let mut client = open();
        client.send(&Frame::new(frame::BINARY, garbage).with_rsv(RSV1));
        match client.frame().close_code() {
            Some((1002 | 1007, _)) => {}
            other => panic!("garbage {garbage:?} was answered by {other:?}"),
        }
        client.expect_gone();
    }
    let mut client = open();
    client.send(&Frame::new(frame::TEXT, deflated(b"not \xFF text")).with_rsv(RSV1));
    client.expect_failed(1007);
    bystander.send(&compressed_text("still here"));
    bystander.expect_text("still here");
}

#[test]
fn a_bomb_is_1009_and_costs_no_memory() {
    let server = Server::start(&["--echo", "--max-message-size", "64KiB"]);
    let mut exact = compressing(&server, "/echo", "permessage-deflate");
    exact.send(&compressed_text(&"0".repeat(64 * 1024)));
    exact.expect_text(&"0".repeat(64 * 1024));
    let before = server.resident_bytes();
    let bomb = deflated(&vec![0; 32 << 20]);
    assert!(bomb.len() < 64 * 1024, "the bomb must pass as a frame, but has {} bytes", bomb.len());
    let slightly = deflated(&vec![0; 64 * 1024 + 1]);
    for payload in [&bomb, &slightly] {
        for _ in 0..20 {
            let mut client = compressing(&server, "/echo", "permessage-deflate");
            client.send(&Frame::binary(payload.clone()).with_rsv(RSV1));
            client.expect_failed(1009);
        }
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "bombs of 32 MiB cost {grown} bytes");
    exact.expect_alive();
}

#[test]
fn compressed_and_plain_subscribers_get_the_same_and_one_compression_serves_all() {
    const MESSAGES: usize = 200;
    let server = Server::start_shards(2, &[]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", 60);
    for offer in ["permessage-deflate", "permessage-deflate; server_max_window_bits=10"] {
        swarm.members.extend((0..60).map(|_| Member::from(compressing(&server, "/sub/a", offer))));
    }
    let mut http = server.http();
    for n in 0..MESSAGES {
        // From 1 byte to beyond 1 KiB: below and above the limit from which compression begins (256 B).
        let text = format!("{n:>4} {}", "x".repeat(n * 7));
        let binary = [("Content-Type", "application/octet-stream")];
        let headers = if n % 3 == 0 { &binary[..] } else { &[] };
        http.request("POST", "/pub/a", headers, text.as_bytes()).expect("publish").expect(201);
    }
    swarm.read_messages(MESSAGES);
    let large = (0..MESSAGES).filter(|n| 5 + n * 7 >= 256).count();
    for (at, member) in swarm.members.iter().enumerate() {
        for (n, message) in member.messages.iter().enumerate() {
            assert_eq!(message.text().split_whitespace().next(), Some(n.to_string().as_str()), "member {at}");
            assert_eq!(message.len, 5 + n * 7);
            let compressed = at >= 60 && message.len >= 256;
            assert_eq!(message.compressed_len.is_some(), compressed, "member {at}, {} bytes", message.len);
            assert!(message.compressed_len.is_none_or(|len| len < message.len / 4));
        }
    }
    // Two window sizes are in use, so two compressions per large message: not one per subscriber or shard.
    server.wait_metric("corecast_compressions_total", &[], |count| count == (2 * large) as f64);
}

#[test]
fn nothing_is_compressed_for_nobody() {
    let server = Server::start_shards(2, &[]);
    let mut plain = server.connect("/sub/a");
    let mut elsewhere = compressing(&server, "/sub/b", "permessage-deflate");
    let large = "large ".repeat(200);
    server.publish("a", &large);
    plain.expect_text(&large);
    assert_eq!(server.metrics().sum("corecast_compressions_total", &[]), 0.0);
    server.publish("b", &large);
    elsewhere.expect_text(&large);
    server.wait_metric("corecast_compressions_total", &[], |count| count == 1.0);
}

#[test]
fn compression_min_is_the_smallest_that_is_compressed() {
    let server = Server::start(&["--compression-min", "100B"]);
    let mut client = compressing(&server, "/sub/a", "permessage-deflate");
    server.publish("a", &"x".repeat(99));
    assert_eq!(client.frame().rsv, 0);
    server.publish("a", &"x".repeat(100));
    assert_eq!(client.frame().rsv, RSV1);
}
