//! The control port: the publish API, the health routes, the metrics.

mod support;

use std::collections::BTreeSet;

use support::QUIET;
use support::frame::Frame;
use support::server::Server;

#[test]
fn a_publish_says_who_it_reached() {
    let server = Server::start_shards(2, &[]);
    let mut http = server.http();
    let nobody = http.post("/pub/a", b"x").expect("publish").expect(202).json();
    assert_eq!((&nobody["topic"], &nobody["subscribers"]), (&"a".into(), &0.into()));
    let mut clients: Vec<_> = (0..3).map(|_| server.connect("/sub/a")).collect();
    let answer = http.post("/pub/a", b"x").expect("publish").expect(201);
    assert!(
        answer.header("Content-Type").is_some_and(|value| value.starts_with("application/json")),
        "{answer:?}"
    );
    let answer = answer.json();
    assert_eq!((&answer["topic"], &answer["subscribers"]), (&"a".into(), &3.into()));
    let keys: BTreeSet<_> = answer.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["epoch", "offset", "subscribers", "topic"].into());
    for client in &mut clients {
        client.expect_text("x");
    }
}

#[test]
fn the_content_type_decides_between_text_and_binary() {
    let server = Server::start_shards(2, &[]);
    let mut client = server.connect("/sub/a");
    let mut http = server.http();
    for (content_type, binary) in [
        ("application/octet-stream", true),
        ("Application/Octet-Stream", true),
        ("application/octet-stream; charset=binary", true),
        ("text/plain", false),
        ("application/json", false),
        ("application/x-www-form-urlencoded", false), // what curl -d sends
    ] {
        let headers = [("Content-Type", content_type)];
        http.request("POST", "/pub/a", &headers, "grüß".as_bytes()).expect("publish").expect(201);
        let expected = if binary { Frame::binary("grüß") } else { Frame::text("grüß") };
        assert_eq!(client.message(), expected, "{content_type}");
    }
    http.post("/pub/a", b"no type at all").expect("publish").expect(201);
    client.expect_text("no type at all");
    http.post("/pub/a", b"").expect("publish").expect(201);
    client.expect_text("");

    http.request("POST", "/pub/a", &[("Content-Type", "text/plain")], b"\xFF").expect("publish").expect(415);
    http.post("/pub/a", b"\xC3").expect("publish").expect(415);
    client.expect_silence(QUIET);
}

#[test]
fn a_message_over_the_limit_is_413() {
    let server = Server::start(&["--max-message-size", "1000B"]);
    let mut client = server.connect("/sub/a");
    let mut http = server.http();
    http.post("/pub/a", &[b'x'; 1000]).expect("publish").expect(201);
    assert_eq!(client.message().payload.len(), 1000);
    http.post("/pub/a", &[b'x'; 1001]).expect("publish").expect(413);
    server.http().post("/pub/a", &[b'x'; 3 << 20]).expect("publish").expect(413);
    let mut http = server.http();
    // Without a Content-Length the server finds out while it reads.
    let chunked = [("Transfer-Encoding", "chunked")];
    let body = format!("400\r\n{}\r\n400\r\n{}\r\n0\r\n\r\n", "x".repeat(1024), "x".repeat(1024));
    http.request_raw("POST", "/pub/a", &chunked, body.as_bytes()).expect("publish").expect(413);
    client.expect_silence(QUIET);
}

#[test]
fn a_bad_topic_is_400_and_a_wrong_path_404() {
    let server = Server::start(&[]);
    let mut http = server.http();
    for path in ["/pub/", "/pub/a,b", "/pub/a%0A", "/pub/%FF", &format!("/pub/{}", "x".repeat(129))] {
        http.post(path, b"x").expect("publish").expect(400);
    }
    for path in ["/pub", "/publish/a", "/nowhere"] {
        http.post(path, b"x").expect("publish").expect(404);
    }
    http.request("PUT", "/pub/a", &[], b"x").expect("publish").expect(405);
    http.post(&format!("/pub/{}", "x".repeat(128)), b"x").expect("publish").expect(202);
    http.post("/pub/with/slash", b"x").expect("publish").expect(202);
}

#[test]
fn the_publish_token_is_asked_for() {
    let server = Server::start(&["--publish-token", "s3cret"]);
    let mut client = server.connect("/sub/a");
    let mut http = server.http();
    for wrong in
        ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Bearer S3CRET", "Basic s3cret", "s3cret"]
    {
        let refused = http.request("POST", "/pub/a", &[("Authorization", wrong)], b"no").expect("publish");
        assert_eq!(refused.status, 401, "{wrong:?}");
        assert!(
            refused.header("WWW-Authenticate").is_some_and(|value| value.starts_with("Bearer")),
            "{refused:?}"
        );
    }
    http.post("/pub/a", b"no").expect("publish").expect(401);
    for right in ["Bearer s3cret", "bearer s3cret"] {
        http.request("POST", "/pub/a", &[("Authorization", right)], b"yes").expect("publish").expect(201);
        client.expect_text("yes");
    }
    client.expect_silence(QUIET);
    // Health and metrics stay open for whoever watches.
    for path in ["/live", "/ready", "/metrics"] {
        server.get(path).expect(200);
    }
}

#[test]
fn a_server_that_is_well_is_live_and_ready() {
    let server = Server::start_shards(2, &[]);
    server.get("/live").expect(200);
    server.get("/ready").expect(200);
    server.get("/nowhere").expect(404);
}

#[test]
fn a_server_that_stood_still_goes_on() {
    let server = Server::start_shards(2, &[]);
    let mut client = server.connect("/sub/a");
    server.signal(libc::SIGSTOP);
    std::thread::sleep(std::time::Duration::from_millis(500));
    server.signal(libc::SIGCONT);
    // It recovers by itself: nobody is cut off for half a second of standstill.
    support::wait_for("/live to be 200", || (server.get("/live").status == 200).then_some(()));
    server.publish("a", "x");
    client.expect_text("x");
}

/// Every name of CONTRACT.md section 6, its type and the labels it must carry.
const NAMES: [(&str, &str, &[&str]); 18] = [
    ("connections", "gauge", &["core"]),
    ("connections_opened_total", "counter", &["core"]),
    ("connections_closed_total", "counter", &["code"]),
    ("handshakes_rejected_total", "counter", &["reason"]),
    ("subscriptions", "gauge", &["core"]),
    ("topics", "gauge", &[]),
    ("publishes_total", "counter", &["source"]),
    ("deliveries_total", "counter", &["core"]),
    ("delivery_bytes_total", "counter", &["core"]),
    ("deliveries_dropped_total", "counter", &["reason"]),
    ("slow_consumers_total", "counter", &[]),
    ("fanout_seconds", "histogram", &[]),
    ("ring_full_total", "counter", &["from", "to"]),
    ("keepalive_timeouts_total", "counter", &[]),
    ("send_queue_bytes", "gauge", &["core"]),
    ("loop_stall_seconds_total", "counter", &["core"]),
    ("draining", "gauge", &[]),
    ("build_info", "gauge", &[]),
];

#[test]
fn every_metric_of_the_contract_is_there_with_type_and_labels() {
    let server = Server::start_shards(2, &["--echo"]);
    // Something to count, so that labelled counters have samples.
    let mut client = server.connect("/sub/a");
    server.publish("a", "x");
    client.expect_text("x");
    client.close(1000);
    let mut wrong = server.connect("/echo");
    wrong.send(&Frame::text("x").with_rsv(1));
    wrong.expect_failed(1002);
    support::client::Upgrade::to("/nowhere").refused(server.data);
    server.wait_connections(0);

    let answer = server.get("/metrics").expect(200);
    assert!(answer.header("Content-Type").is_some_and(|value| value.starts_with("text/plain")), "{answer:?}");
    let metrics = server.metrics();
    for (short, kind, labels) in NAMES {
        let name = format!("corecast_{short}");
        assert_eq!(metrics.types.get(&name).map(String::as_str), Some(kind), "TYPE of {name}");
        for sample in metrics.matching(&name, &[]) {
            for label in labels {
                assert!(sample.labels.contains_key(*label), "{sample:?} has no label {label}");
            }
        }
    }
    for core in ["0", "1"] {
        for name in [
            "connections",
            "connections_opened_total",
            "subscriptions",
            "deliveries_total",
            "send_queue_bytes",
        ] {
            let name = format!("corecast_{name}");
            assert_eq!(metrics.matching(&name, &[("core", core)]).count(), 1, "{name} of core {core}");
        }
    }
    assert_eq!(metrics.sum("corecast_build_info", &[]), 1.0);
    assert_eq!(metrics.sum("corecast_draining", &[]), 0.0);
    assert_eq!(metrics.sum("corecast_connections_opened_total", &[]), 2.0);
    assert_eq!(metrics.sum("corecast_connections_closed_total", &[("code", "1000")]), 1.0);
    assert_eq!(metrics.sum("corecast_connections_closed_total", &[("code", "1002")]), 1.0);
    assert_eq!(metrics.sum("corecast_handshakes_rejected_total", &[]), 1.0);
}

#[test]
fn publishes_and_deliveries_are_counted() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut clients: Vec<_> = (0..10).map(|_| server.connect("/pubsub/a")).collect();
    for _ in 0..5 {
        server.publish("a", "0123456789");
    }
    clients[0].send_text("by a client");
    for client in &mut clients {
        for _ in 0..5 {
            client.expect_text("0123456789");
        }
        client.expect_text("by a client");
    }
    server.wait_metric("corecast_deliveries_total", &[], |count| count == 60.0);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("corecast_publishes_total", &[]), 6.0);
    assert_eq!(
        metrics.matching("corecast_publishes_total", &[]).filter(|sample| sample.value > 0.0).count(),
        2
    );
    let bytes = metrics.sum("corecast_delivery_bytes_total", &[]);
    // Payload alone, or with the two bytes of each frame's header.
    assert!((610.0..=730.0).contains(&bytes), "{bytes} bytes counted");
    assert_eq!(metrics.sum("corecast_fanout_seconds_count", &[]), 6.0);
    assert!(metrics.sum("corecast_fanout_seconds_bucket", &[("le", "+Inf")]) == 6.0);
    server.wait_metric("corecast_topics", &[], |count| count == 1.0);
    server.wait_metric("corecast_subscriptions", &[], |count| count == 10.0);
}

#[test]
fn without_a_control_port_there_is_none() {
    let server = support::server::Launch::new(&[
        "--listen",
        "127.0.0.1:0",
        "--control",
        "off",
        "--client-publish",
        "--drain-window",
        "300ms",
    ])
    .own_addresses()
    .start();
    assert!(!server.stdout().contains("http://"), "{}", server.stdout());
    let mut client = server.connect("/pubsub/a");
    client.send_text("x");
    client.expect_text("x");
    server.signal(libc::SIGTERM);
    client.expect_close(1012);
    drop(client);
    assert_eq!(server.wait_exit(support::PATIENCE).code(), Some(0));
}

#[test]
fn publishing_in_parallel_from_many_connections_loses_nothing() {
    let server = Server::start_shards(2, &[]);
    let mut client = server.connect("/sub/a");
    std::thread::scope(|scope| {
        for publisher in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let mut http = server.http();
                for n in 0..50 {
                    http.post("/pub/a", format!("{publisher}:{n}").as_bytes()).expect("publish").expect(201);
                }
            });
        }
        let mut seen = BTreeSet::new();
        for _ in 0..400 {
            assert!(seen.insert(client.message().payload), "a message came twice");
        }
    });
}
