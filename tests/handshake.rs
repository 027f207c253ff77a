//! The opening handshake: what is accepted, what is refused and with which HTTP status.

mod support;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use support::client::{ACCEPT, Client, Upgrade};
use support::frame::{self, Frame};
use support::server::Server;
use support::{PATIENCE, QUIET};

/// Waits until so many handshakes are counted as rejected, for whatever reason.
#[track_caller]
fn expect_rejected(server: &Server, count: f64) {
    server.expect_metric("corecast_handshakes_rejected_total", &[], count);
}

#[test]
fn a_right_upgrade_gets_101_with_the_right_accept_key() {
    let server = Server::start(&["--echo"]);
    for path in ["/sub/a", "/echo", "/echo?with=query", "/sub/a?x=1&y=2"] {
        let (response, mut client) = Upgrade::to(path).send(server.data).expect("no answer");
        assert_eq!(response.status, 101, "{path}: {response:?}");
        assert_eq!(response.header("Sec-WebSocket-Accept"), Some(ACCEPT));
        assert!(response.header("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
        assert!(response.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
        assert_eq!(response.header("Sec-WebSocket-Protocol"), None, "none was offered");
        assert_eq!(response.header("Sec-WebSocket-Extensions"), None, "none was offered");
        client.expect_alive();
    }
    let key = "AQIDBAUGBwgJCgsMDQ4PEA==";
    let (response, _client) =
        Upgrade::to("/echo").with("Sec-WebSocket-Key", key).send(server.data).expect("no answer");
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    assert_eq!(response.header("Sec-WebSocket-Accept"), Some(accept.as_str()));
}

#[test]
fn header_names_and_tokens_count_in_any_case_and_any_arrangement() {
    let server = Server::start(&["--echo"]);
    let echo = || Upgrade::to("/echo");
    let arrangements = [
        echo().with("Connection", "keep-alive").header("Connection", "Upgrade"),
        echo().with("Connection", "Upgrade").header("connection", "keep-alive"),
        echo().with("Connection", "keep-alive, Upgrade"),
        echo().with("Connection", "keep-alive ,\tuPGRADE"),
        echo().with("Upgrade", "WebSocket"),
        echo().with("Upgrade", "h2c, websocket"),
        echo().without("Sec-WebSocket-Version").header("SEC-WEBSOCKET-VERSION", "13"),
        echo().header("X-Large", &"x".repeat(4000)),
    ];
    for upgrade in arrangements {
        upgrade.accepted(server.data).expect_alive();
    }
}

#[test]
fn a_wrong_request_gets_its_status_and_the_connection_ends() {
    let server = Server::start(&[]);
    let sub = || Upgrade::to("/sub/a");
    let refused = [
        (404, Upgrade::to("/")),
        (404, Upgrade::to("/nowhere")),
        (404, Upgrade::to("/sub")),
        (404, Upgrade::to("/subs/a")),
        (404, Upgrade::to("/echo")), // without --echo, whatever else is wrong
        (404, Upgrade::to("/echo").without("Upgrade").without("Connection")),
        (404, Upgrade::to("/echo").with("Origin", "http://elsewhere.example")),
        (404, Upgrade::to("/echo").with("Sec-WebSocket-Protocol", "unknown")),
        (403, Upgrade::to("/pubsub/a")), // without --client-publish
        (405, sub().request_line("POST /sub/a HTTP/1.1")),
        (405, sub().request_line("HEAD /sub/a HTTP/1.1")),
        (405, sub().request_line("BREW /sub/a HTTP/1.1")),
        (426, sub().without("Upgrade").without("Connection")),
        (400, sub().without("Upgrade")), // but with `Connection: Upgrade`
        (426, sub().with("Sec-WebSocket-Version", "8")),
        (426, sub().with("Sec-WebSocket-Version", "14")),
        (400, sub().without("Sec-WebSocket-Key")),
        (400, sub().with("Sec-WebSocket-Key", "c2hvcnQ=")),
        (400, sub().with("Sec-WebSocket-Key", "not base64 not base64 ==")),
        (400, sub().with("Sec-WebSocket-Key", "")),
        (400, sub().with("Connection", "close")),
        (400, sub().without("Connection")),
        (400, sub().without("Host")),
    ];
    for (at, (status, upgrade)) in refused.into_iter().enumerate() {
        let response = upgrade.refused(server.data);
        assert_eq!(response.status, status, "{upgrade:?} got {response:?}");
        assert!(
            response.header("Connection").is_some_and(|value| value.to_lowercase().contains("close")),
            "no `Connection: close`: {response:?}"
        );
        if upgrade.bytes().windows(11).any(|window| window == b"Version: 8\r") || status == 426 {
            assert_eq!(response.header("Sec-WebSocket-Version"), Some("13"), "{response:?}");
        }
        if status == 405 {
            assert_eq!(response.header("Allow"), Some("GET"), "{response:?}");
        }
        expect_rejected(&server, (at + 1) as f64);
    }
    server.connect("/sub/a").expect_alive();
}

#[test]
fn a_refusal_says_what_would_help() {
    let server = Server::start(&[]);
    for (upgrade, help) in [
        (Upgrade::to("/pubsub/a"), "--client-publish"),
        (Upgrade::to("/sub/a").header("Origin", "http://elsewhere.example"), "--allowed-origin"),
        (Upgrade::to("/pub/a").request_line("POST /pub/a HTTP/1.1"), "control port"),
        (Upgrade::to("/sub/a?since=abcd:1"), "16 hex digits"),
    ] {
        let body = upgrade.refused(server.data).text();
        assert!(body.contains(help) && !body.contains("elsewhere"), "{upgrade:?} got {body:?}");
    }
}

#[test]
fn a_get_without_upgrade_is_told_that_one_is_required() {
    let server = Server::start(&[]);
    let plain = Upgrade::to("/sub/a")
        .without("Upgrade")
        .without("Connection")
        .without("Sec-WebSocket-Key")
        .without("Sec-WebSocket-Version");
    let response = plain.refused(server.data);
    assert_eq!(response.status, 426);
    assert!(
        response.header("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
        "{response:?}"
    );
}

#[test]
fn a_browsers_origin_must_be_the_host_or_allowed() {
    let server = Server::start(&[]);
    let from = |host: &str, origin: &str| Upgrade::to("/sub/a").with("Host", host).header("Origin", origin);
    for (host, origin) in [
        ("example.org", "http://example.org"),
        ("example.org:8080", "http://example.org:8080"),
        ("EXAMPLE.org:8080", "http://example.ORG:8080"),
    ] {
        from(host, origin).accepted(server.data).expect_alive();
    }
    for (host, origin) in [
        ("example.org", "http://example.com"),
        ("example.org", "http://example.org.evil.com"),
        ("example.org", "http://evil-example.org"),
        ("example.org:8080", "http://example.org:9090"),
        ("example.org", "null"),
        ("example.org", "garbage"),
    ] {
        assert_eq!(from(host, origin).refused(server.data).status, 403, "{host} {origin}");
    }
    expect_rejected(&server, 6.0);

    let server =
        Server::start(&["--allowed-origin", "https://a.example", "--allowed-origin", "https://b.example"]);
    for origin in ["https://a.example", "https://b.example"] {
        from("example.org", origin).accepted(server.data).expect_alive();
    }
    for origin in ["https://c.example", "http://a.example", "https://a.example.evil.com"] {
        assert_eq!(from("example.org", origin).refused(server.data).status, 403, "{origin}");
    }

    let server = Server::start(&["--allowed-origin", "*"]);
    from("example.org", "https://anything.example").accepted(server.data).expect_alive();
}

#[test]
fn a_request_of_one_mebibyte_gets_431() {
    let server = Server::start(&[]);
    let before = server.holdings();
    let mut bystander = server.connect("/sub/a");
    let header = Upgrade::to("/sub/a").header("X-Huge", &"x".repeat(1024 * 1024)).bytes();
    for huge in [
        &header[..],
        &header[..header.len() - 2], // its end never comes
        &Upgrade::to(&format!("/sub/a?{}", "x".repeat(1024 * 1024))).bytes(),
    ] {
        let mut client = Client::open_socket(server.data).expect("connect");
        // The server may close before it has read all of it; its answer must arrive all the same.
        let _ = client.send_raw(huge);
        assert_eq!(client.read_response().expect("no answer").status, 431);
        client.expect_gone();
    }
    expect_rejected(&server, 3.0);
    bystander.expect_alive();
    drop(bystander);
    server.expect_holdings(&before);
}

#[test]
fn the_limit_of_a_request_is_max_handshake_size() {
    let server = Server::start(&["--max-handshake-size", "1KiB"]);
    let with = |bytes: usize| Upgrade::to("/sub/a").header("X-Fill", &"x".repeat(bytes));
    with(500).accepted(server.data).expect_alive();
    let (response, _client) = with(1200).send(server.data).expect("no answer");
    assert_eq!(response.status, 431);
}

#[test]
fn frames_in_the_same_packet_as_the_upgrade_are_not_lost() {
    // Without keepalive: a pong must not fall into the frame that is cut below.
    let server = Server::start_shards(2, &["--echo", "--client-publish", "--keepalive", "0"]);
    let mut client = Client::open_socket(server.data).expect("connect");
    let bytes =
        [Upgrade::to("/echo").bytes(), Frame::text("one").masked(), Frame::text("two").masked()].concat();
    client.send_raw(&bytes).expect("send");
    assert_eq!(client.read_response().expect("no answer").status, 101);
    client.expect_text("one");
    client.expect_text("two");

    // The last frame cut in its middle; on topics of which some are owned by the other shard.
    for round in 0..20 {
        let mut client = Client::open_socket(server.data).expect("connect");
        let upgrade = Upgrade::to(&format!("/pubsub/{round}")).bytes();
        let (whole, cut) = (Frame::text("whole").masked(), Frame::text("cut").masked());
        client.send_raw(&[&upgrade[..], &whole, &cut[..4]].concat()).expect("send");
        assert_eq!(client.read_response().expect("no answer").status, 101);
        client.expect_text("whole"); // the sender is included
        client.send_raw(&cut[4..]).expect("send");
        client.expect_text("cut");
    }
}

#[test]
fn a_handshake_in_single_bytes_is_as_good_as_a_whole_one() {
    let server = Server::start(&["--echo", "--keepalive", "0"]);
    let mut client = Client::open_socket(server.data).expect("connect");
    for byte in [Upgrade::to("/echo").bytes(), Frame::text("also in single bytes").masked()].concat() {
        client.send_raw(&[byte]).expect("send");
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(client.read_response().expect("no answer").status, 101);
    client.expect_text("also in single bytes");
}

#[test]
fn a_handshake_at_one_byte_a_second_is_cut_off_at_its_timeout() {
    let server = Server::start(&["--handshake-timeout", "4s"]);
    let before = server.holdings();
    let mut quick = server.connect("/sub/a");
    let start = Instant::now();
    let mut slow = Client::open_socket(server.data).expect("connect");
    let mut silent = Client::open_socket(server.data).expect("connect");
    let request = Upgrade::to("/sub/a").bytes();
    let mut ended = None;
    for byte in &request[..20] {
        if slow.send_raw(&[*byte]).is_err() {
            ended = Some(start.elapsed());
            break;
        }
        if ended_within(&mut slow, Duration::from_secs(1)) {
            ended = Some(start.elapsed());
            break;
        }
    }
    let ended = ended.expect("a handshake of one byte a second was never cut off");
    assert!(ended >= Duration::from_millis(3900), "cut off too early, after {ended:?}");
    assert!(ended_within(&mut silent, PATIENCE), "a connection without a word was never cut off");
    server.wait_metric("corecast_handshakes_rejected_total", &[], |count| count == 2.0);
    quick.expect_alive();
    drop(quick);
    server.expect_holdings(&before);
}

/// Whether the server ends a connection that has not shaken hands, with or without an HTTP answer (408).
fn ended_within(client: &mut Client, limit: Duration) -> bool {
    match client.read_response_within(limit) {
        Ok(response) => {
            assert_eq!(response.status, 408, "{response:?}");
            true
        }
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}

#[test]
fn topics_are_1_to_128_bytes_of_percent_decoded_text() {
    let server = Server::start(&[]);
    let status = |path: &str| Upgrade::to(path).send(server.data).expect("no answer").0.status;
    let long = "x".repeat(128);
    for path in [
        "/sub/a",
        &format!("/sub/{long}"),
        "/sub/AZaz09_-.:@=",
        "/sub/with/slash",
        "/sub/%C3%BCber",
        &format!("/sub/{}", "%C3%A4".repeat(64)), // 128 bytes once decoded
        "/sub/one,two,three",
        &format!("/sub/a,{long}"),
        &format!("/sub/{}", numbered(128)),
    ] {
        assert_eq!(status(path), 101, "{path}");
    }
    for path in [
        "/sub/",
        &format!("/sub/{long}x"),
        &format!("/sub/{}a", "%C3%A4".repeat(64)),
        "/sub/a%0Ab",
        "/sub/a%00",
        "/sub/%7F",
        "/sub/%C2%85", // a control character beyond ASCII
        "/sub/%FF",
        "/sub/%C3",
        "/sub/a%2Cb", // a comma that does not separate
        "/sub/a,",
        "/sub/,a",
        "/sub/a,,b",
        "/sub/%",
        "/sub/%2",
        "/sub/%zz",
        &format!("/sub/a,{long}x"),
        &format!("/sub/{}", numbered(129)), // one too many
    ] {
        assert_eq!(status(path), 400, "{path}");
    }
}

/// A list of that many topics.
fn numbered(count: usize) -> String {
    (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn a_percent_encoded_topic_is_the_topic_it_names() {
    let server = Server::start_shards(2, &[]);
    let mut plain = server.connect("/sub/room:1@a=b");
    let mut encoded = server.connect("/sub/%72oom%3A1%40a%3db");
    let mut umlaut = server.connect("/sub/%C3%BCber/%C3%9F");
    server.publish("room:1@a=b", "hello");
    plain.expect_text("hello");
    encoded.expect_text("hello");
    server.publish("%c3%bcber/%C3%9F", "hallo");
    umlaut.expect_text("hallo");
    plain.expect_silence(QUIET);
}

#[test]
fn what_a_refused_request_asked_for_is_nobodys() {
    let server = Server::start_shards(1, &["--client-publish"]);
    for path in ["/sub/", "/pubsub/"] {
        // Refused for its offer, after its topic and its place have been understood.
        let refused = Upgrade::to(&format!("{path}refused?notice=true"));
        let refused = refused.header("Sec-WebSocket-Extensions", "permessage-deflate; =");
        assert_eq!(refused.refused(server.data).status, 400);
        let mut own = server.connect(&format!("{path}own"));
        server.publish("refused", "to nobody").expect(202);
        server.publish("own", "to its subscriber").expect(201);
        own.expect_text("to its subscriber");
        own.close(1000);
        server.wait_connections(0);
    }
}

#[test]
fn what_is_not_http_gets_no_101_and_harms_nobody() {
    let server = Server::start(&[]);
    let before = server.holdings();
    let mut bystander = server.connect("/sub/a");
    let tls_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[0x5A; 506]].concat();
    let garbage: [&[u8]; 7] = [
        &tls_hello,
        b"\0\0\0\0\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /sub/a HTTP/9.9\r\n\r\n",
        b"GET /sub/a HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /sub/a HTTP/1.1\r\nHost: \xFF\xFE\r\nUpgrade: \xF0\r\n\r\n",
    ];
    for bytes in garbage {
        let mut client = Client::open_socket(server.data).expect("connect");
        client.send_raw(bytes).expect("send");
        client.end_sending();
        match client.read_response() {
            Ok(response) => {
                assert!((400..506).contains(&response.status), "{} → {response:?}", bytes.escape_ascii())
            }
            Err(error) => {
                let ended = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
                assert!(ended.contains(&error.kind()), "{} → {error}", bytes.escape_ascii());
            }
        }
    }
    bystander.expect_alive();
    drop(bystander);
    server.expect_holdings(&before);
}

#[test]
fn subprotocols_are_chosen_by_the_clients_order_and_strictly() {
    let server = Server::start(&["--subprotocol", "chat.v2", "--subprotocol", "chat.v1"]);
    let offer = |names: &str| Upgrade::to("/sub/a").header("Sec-WebSocket-Protocol", names);
    for (offered, chosen) in [
        ("chat.v1", Some("chat.v1")),
        ("chat.v1, chat.v2", Some("chat.v1")), // the client's preference
        ("chat.v2, chat.v1", Some("chat.v2")),
        ("ws+meta.nchan, chat.v1", Some("ws+meta.nchan")),
        ("chat.v1, ws+meta.nchan", Some("chat.v1")),
        ("other,chat.v1", Some("chat.v1")),
    ] {
        let (response, _client) = offer(offered).send(server.data).expect("no answer");
        assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, chosen), "{offered}");
    }
    let (response, _client) = Upgrade::to("/sub/a").send(server.data).expect("no answer");
    assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, None));
    assert_eq!(offer("other").refused(server.data).status, 400);

    let lenient = Server::start(&["--subprotocol", "chat.v1", "--strict-subprotocols", "false"]);
    let (response, _client) = offer("other").send(lenient.data).expect("no answer");
    assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, None));
}

#[test]
fn a_connection_over_the_limit_gets_503_and_retry_after() {
    let server = Server::start_shards(2, &["--max-connections", "4"]);
    let held: Vec<Client> = (0..4).map(|_| server.connect("/sub/a")).collect();
    server.wait_connections(4);
    let response = Upgrade::to("/sub/a").refused(server.data);
    assert_eq!(response.status, 503);
    let wait: u64 =
        response.header("Retry-After").and_then(|value| value.parse().ok()).expect("no Retry-After");
    assert!((1..=3600).contains(&wait));
    expect_rejected(&server, 1.0);
    server.wait_status("/ready", 503);
    drop(held);
    server.wait_connections(0);
    server.connect("/sub/a").expect_alive();
    server.wait_status("/ready", 200);
}

#[test]
fn a_data_frame_before_the_answer_does_not_overtake_a_refusal() {
    let server = Server::start(&[]);
    let mut client = Client::open_socket(server.data).expect("connect");
    client
        .send_raw(&[Upgrade::to("/echo").bytes(), Frame::new(frame::PING, "").masked()].concat())
        .expect("send");
    assert_eq!(client.read_response().expect("no answer").status, 404);
    client.expect_gone();
}
