//! The control port: the publish API, the health routes, the metrics.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::QUIET;
use support::frame::{CLOSE, Frame};
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
    for path in ["/publish/a", "/nowhere"] {
        http.post(path, b"x").expect("publish").expect(404);
    }
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
    http.post("/pub", br#"[{"topic":"a","data":"no"}]"#).expect("publish").expect(401);
    http.get("/pub/a").expect("look").expect(401);
    http.request("DELETE", "/pub/a", &[], b"").expect("delete").expect(401);
    let right = [("Authorization", "Bearer s3cret")];
    assert_eq!(http.request("GET", "/pub/a", &right, b"").expect("look").expect(200).json()["offset"], 0);
    for right in ["Bearer s3cret", "bearer s3cret"] {
        http.request("POST", "/pub/a", &[("Authorization", right)], b"yes").expect("publish").expect(201);
        client.expect_text("yes");
    }
    client.expect_silence(QUIET);
    // Health and metrics stay open for whoever watches.
    for path in ["/live", "/ready", "/metrics"] {
        server.wait_status(path, 200);
    }
}

#[test]
fn a_topic_can_be_looked_at() {
    let server = Server::start_shards(2, &[]);
    let mut http = server.http();
    let unused = http.get("/pub/a").expect("look").expect(200).json();
    let keys: BTreeSet<_> = unused.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["epoch", "messages", "offset", "subscribers", "topic"].into());
    assert_eq!(unused["topic"], "a");
    for count in ["subscribers", "messages", "offset"] {
        assert_eq!(unused[count], 0, "{count}");
    }
    let mut clients: Vec<_> = (0..8).map(|_| server.connect("/sub/a")).collect();
    for _ in 0..2 {
        server.publish("a", "x");
        clients.iter_mut().for_each(|client| client.expect_text("x"));
    }
    // A subscriber is counted once its handshake is answered, and until its shard has reported its end.
    clients.truncate(5);
    support::wait_for("the topic to have 5 subscribers", || {
        (http.get("/pub/a").expect("look").expect(200).json()["subscribers"] == 5).then_some(())
    });
    let used = http.get("/pub/a").expect("look").json();
    assert_eq!((&used["offset"], &used["epoch"]), (&2.into(), &unused["epoch"]));
    assert_eq!(
        http.get("/pub/with%20space/%C3%A9").expect("look").expect(200).json()["topic"],
        "with space/é"
    );
    http.get("/pub/a,b").expect("look").expect(400);
    // Looking at topics makes none: the gauge, moved by the tick, shows the one that is used.
    server.wait_metric("corecast_topics", &[], |count| count == 1.0);
}

#[test]
fn deleting_a_topic_closes_its_subscribers_on_every_core() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut http = server.http();
    let mut subscribers: Vec<_> = (0..20).map(|_| server.connect("/sub/a")).collect();
    subscribers.push(server.connect("/pubsub/a"));
    subscribers.push(server.connect("/sub/b,a"));
    let mut others: Vec<_> = (0..4).map(|_| server.connect("/sub/b")).collect();
    let texts: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let items: Vec<_> = texts.iter().map(|text| serde_json::json!({"topic": "a", "data": text})).collect();
    let batch = serde_json::to_vec(&items).expect("JSON");
    http.post("/pub", &batch).expect("publish").expect(200);
    let deleted = http.request("DELETE", "/pub/a", &[], b"").expect("delete").expect(204);
    assert!(deleted.body.is_empty() && deleted.header("Content-Length").is_none(), "{deleted:?}");
    // Whatever was published before is delivered before the close frame.
    for client in &mut subscribers {
        for text in &texts {
            client.expect_text(text);
        }
        assert_eq!(client.expect_closed(1000), "topic deleted");
    }
    server.wait_connections(others.len());
    server.expect_metric("corecast_connections_closed_total", &[("code", "1000")], 22.0);
    server.wait_metric("corecast_subscriptions", &[], |count| count == 4.0);

    // The topic lives on: offsets go on counting, and new subscribers are welcome.
    assert_eq!(http.post("/pub/a", b"nobody").expect("publish").expect(202).json()["offset"], 101);
    let mut again = server.connect("/sub/a");
    assert_eq!(http.post("/pub/a", b"again").expect("publish").expect(201).json()["offset"], 102);
    again.expect_text("again");
    server.publish("b", "to others");
    others.iter_mut().for_each(|client| client.expect_text("to others"));
    others.iter_mut().for_each(support::client::Client::expect_alive);

    for unused in ["/pub/a", "/pub/never-used"] {
        http.request("DELETE", unused, &[], b"").expect("delete").expect(204);
    }
    assert_eq!(again.expect_closed(1000), "topic deleted");
    http.request("DELETE", "/pub/", &[], b"").expect("delete").expect(400);
}

/// Publishes 0, 1, 2 … in batches for as long as there are subscribers; how many messages had some.
fn publish_numbers(server: &Server) -> u64 {
    let mut http = server.http();
    for first in (0_u64..).step_by(20) {
        let item = |n: u64| serde_json::json!({"topic": "a", "data": n.to_string()});
        let batch = serde_json::Value::from_iter((first..first + 20).map(item)).to_string();
        let outcomes = http.post("/pub", batch.as_bytes()).expect("publish").expect(200).json();
        let outcomes = outcomes.as_array().expect("an array");
        if let Some(last) = outcomes.iter().position(|outcome| outcome["subscribers"] == 0) {
            return first + last as u64;
        }
    }
    unreachable!("somebody stays subscribed")
}

/// Reads 0, 1, 2 … until the topic is deleted; how many came.
fn read_numbers(mut client: support::client::Client) -> u64 {
    for n in 0.. {
        let frame = client.frame();
        if frame.opcode == CLOSE {
            assert_eq!(frame.close_code(), Some((1000, "topic deleted".to_owned())));
            return n;
        }
        assert_eq!(frame, Frame::text(&n.to_string()));
    }
    unreachable!("no end of numbers")
}

#[test]
fn all_subscribers_get_the_messages_up_to_the_deletion() {
    for shards in [1, 2] {
        let server = Server::start_shards(shards, &[]);
        for round in 0..40 {
            let clients = [(); 6].map(|()| server.connect("/sub/a"));
            let published = std::thread::scope(|scope| {
                let publisher = scope.spawn(|| publish_numbers(&server));
                std::thread::sleep(Duration::from_micros(500 * (round % 8)));
                server.http().request("DELETE", "/pub/a", &[], b"").expect("delete").expect(204);
                publisher.join().expect("the publisher failed")
            });
            let read = clients.map(read_numbers);
            assert!(read.iter().all(|&count| count == read[0]), "an end of its own: {read:?}");
            // The owner hears from another core a moment later that nobody is left.
            assert!(read[0] == published || (shards > 1 && read[0] < published), "{published}: {read:?}");
        }
    }
}

#[test]
fn only_own_pages_may_use_the_publish_api() {
    let server = Server::start(&[]);
    let mut client = server.connect("/sub/a");
    let (mut http, own) = (server.http(), format!("http://{}", server.control()));
    let batch = br#"[{"topic":"a","data":"no"}]"#.as_slice();
    for (method, path, body, status) in
        [("POST", "/pub/a", b"no".as_slice(), 201), ("POST", "/pub", batch, 200), ("GET", "/pub/a", b"", 200)]
    {
        let from = |origin: &'static str| [("Origin", origin)];
        for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
            http.request(method, path, &from(origin), body).expect("request").expect(403);
        }
        http.request(method, path, &[("Origin", &own)], body).expect("request").expect(status);
    }
    client.expect_text("no");
    client.expect_text("no");
    let elsewhere = [("Origin", "https://evil.example")];
    http.request("DELETE", "/pub/a", &elsewhere, b"").expect("request").expect(403);
    client.expect_alive();
    http.request("DELETE", "/pub/a", &[("Origin", &own)], b"").expect("request").expect(204);
    client.expect_closed(1000);
}

#[test]
fn other_methods_are_told_which_there_are() {
    let server = Server::start(&[]);
    let mut http = server.http();
    let allowed = |path: &str, method: &str, http: &mut support::http::Http| -> BTreeSet<String> {
        let answer = http.request(method, path, &[], b"x").expect("request").expect(405);
        let allow = answer.header("Allow").unwrap_or_else(|| panic!("no Allow: {answer:?}"));
        allow.split(',').map(|method| method.trim().to_owned()).collect()
    };
    for method in ["PUT", "PATCH", "OPTIONS", "BREW"] {
        let expected = ["DELETE", "GET", "HEAD", "POST"].map(str::to_owned);
        assert_eq!(allowed("/pub/a", method, &mut http), expected.into(), "{method}");
    }
    for method in ["GET", "DELETE", "PUT"] {
        assert_eq!(allowed("/pub", method, &mut http), ["POST".to_owned()].into(), "{method}");
    }
}

#[test]
fn a_batch_is_published_item_by_item() {
    let server = Server::start_shards(2, &["--max-message-size", "1000B"]);
    let mut clients: Vec<_> = (0..6).map(|_| server.connect("/sub/a")).collect();
    let mut http = server.http();
    let long = "x".repeat(1001);
    let batch = serde_json::json!([
        {"topic": "a", "data": "grüß"},
        {"topic": "nobody is here", "data": "x"},
        {"topic": "a", "data": long},
        {"topic": "a", "data_base64": "AP8="},
        {"topic": "", "data": "x"},
        {"topic": "a", "data_base64": "not base64"},
        {"topic": "a"},
        {"topic": "a", "data": ""},
    ]);
    let headers = [("Content-Type", "application/json")];
    let answer =
        http.request("POST", "/pub", &headers, batch.to_string().as_bytes()).expect("publish").expect(200);
    assert!(
        answer.header("Content-Type").is_some_and(|value| value.starts_with("application/json")),
        "{answer:?}"
    );
    let outcomes = answer.json();
    let outcomes = outcomes.as_array().expect("an array");
    let statuses: Vec<_> = outcomes.iter().map(|outcome| outcome["status"].as_u64().unwrap_or(0)).collect();
    assert_eq!(statuses, [201, 202, 413, 201, 400, 400, 400, 201]);
    for (outcome, item) in outcomes.iter().zip(batch.as_array().expect("an array")) {
        assert_eq!(outcome["topic"], item["topic"]);
        let good = outcome["status"].as_u64() < Some(400);
        assert_eq!(outcome["error"].is_string(), !good, "{outcome}");
    }
    let offsets: Vec<_> = [0, 3, 7].iter().map(|&index| outcomes[index]["offset"].as_u64()).collect();
    assert_eq!(offsets, [Some(1), Some(2), Some(3)]);
    assert_eq!((&outcomes[0]["subscribers"], &outcomes[1]["subscribers"]), (&6.into(), &0.into()));
    assert_eq!(http.get("/pub/a").expect("look").json()["epoch"], outcomes[0]["epoch"]);
    for client in &mut clients {
        client.expect_text("grüß");
        assert_eq!(client.message(), Frame::binary(*b"\x00\xFF"));
        client.expect_text("");
    }
    clients[0].expect_silence(QUIET);
}

#[test]
fn a_large_batch_arrives_whole_and_in_order() {
    const ITEMS: usize = 1024;
    let server = Server::start_shards(2, &[]);
    let mut clients: Vec<_> = (0..4).map(|_| server.connect("/sub/a,b")).collect();
    let mut http = server.http();
    let item = |n: usize| serde_json::json!({"topic": (["a", "b"][n % 2]), "data": n.to_string()});
    let batch = |items: usize| serde_json::Value::from_iter((0..items).map(item)).to_string();
    http.post("/pub", batch(ITEMS + 1).as_bytes()).expect("publish").expect(413);
    let outcomes = http.post("/pub", batch(ITEMS).as_bytes()).expect("publish").expect(200).json();
    let outcomes = outcomes.as_array().expect("an array");
    assert_eq!(outcomes.len(), ITEMS);
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!((&outcome["status"], &outcome["offset"]), (&201.into(), &(n / 2 + 1).into()), "{outcome}");
    }
    for client in &mut clients {
        // Each topic has its own order.
        let mut next = [0, 1];
        for _ in 0..ITEMS {
            let text = String::from_utf8(client.message().payload).expect("UTF-8");
            let n: usize = text.parse().expect("a number");
            assert_eq!(n, next[n % 2]);
            next[n % 2] += 2;
        }
    }
    server.expect_metric("corecast_publishes_total", &[("source", "http")], ITEMS as f64);
}

#[test]
fn a_batch_that_cannot_be_read_publishes_nothing() {
    let server = Server::start(&[]);
    let mut client = server.connect("/sub/a");
    let mut http = server.http();
    for body in ["", "[", r#"{"topic":"a","data":"x"}"#, r#"[{"topic":"a","data":"x"},]"#, "x", "[]]"] {
        http.post("/pub", body.as_bytes()).expect("publish").expect(400);
    }
    http.post("/pub", b"[{\"topic\":\"a\",\"data\":\"\xFF\"}]").expect("publish").expect(400);
    assert_eq!(http.post("/pub", b"[]").expect("publish").expect(200).text(), "[]");
    let long = format!(r#"[{{"topic":"a","data":"{}"}}]"#, "x".repeat(2 << 20));
    server.http().post("/pub", long.as_bytes()).expect("publish").expect(413);
    client.expect_silence(QUIET);
    assert_eq!(server.metrics().sum("corecast_publishes_total", &[]), 0.0);
}

#[test]
fn one_connection_carries_many_requests_even_pipelined() {
    let server = Server::start_shards(2, &[]);
    let mut client = server.connect("/sub/a");
    let mut http = server.http();
    for n in 0..50 {
        http.post("/pub/a", n.to_string().as_bytes()).expect("publish").expect(201);
        client.expect_text(&n.to_string());
        http.get("/pub/a").expect("look").expect(200);
        http.request("DELETE", "/pub/unused", &[], b"").expect("delete").expect(204);
        http.request("PUT", "/pub/a", &[], b"x").expect("put").expect(405);
    }

    let batch = r#"[{"topic":"a","data":"batch"}]"#;
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let bare = |method: &str, more: &str| format!("{method} /pub/a HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let round = [post("/pub/a", "single"), bare("GET", ""), post("/pub", batch), post("/pub/a,b", "bad")];
    let last = [bare("DELETE", ""), bare("GET", "Connection: close\r\n")];
    let requests = round.concat().repeat(20) + &last.concat();
    let mut stream = TcpStream::connect(server.control()).expect("connect");
    stream.set_read_timeout(Some(support::PATIENCE)).expect("set_read_timeout");
    stream.write_all(requests.as_bytes()).expect("write");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("read");
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    let expected = [["201", "200", "200", "400"].repeat(20), vec!["204", "200"]].concat();
    assert_eq!(statuses, expected, "{answers}");
    for _ in 0..20 {
        client.expect_text("single");
        client.expect_text("batch");
    }
    client.expect_closed(1000);
}

#[test]
fn a_server_that_is_well_is_live_and_ready() {
    let server = Server::start_shards(2, &[]);
    server.wait_status("/live", 200);
    server.wait_status("/ready", 200);
    server.get("/nowhere").expect(404);
}

#[test]
fn a_server_that_stood_still_goes_on() {
    let server = Server::start_shards(2, &[]);
    let mut client = server.connect("/sub/a");
    server.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(500));
    server.signal(libc::SIGCONT);
    // It recovers by itself: nobody is cut off for half a second of standstill.
    server.wait_status("/live", 200);
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
    server.expect_metric("corecast_connections_opened_total", &[], 2.0);
    server.expect_metric("corecast_connections_closed_total", &[("code", "1000")], 1.0);
    server.expect_metric("corecast_connections_closed_total", &[("code", "1002")], 1.0);
    server.expect_metric("corecast_handshakes_rejected_total", &[], 1.0);

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
    server.expect_metric("corecast_deliveries_total", &[], 60.0);
    // Up to a quarter of a second old, and counted when the last core has told.
    server.expect_metric("corecast_fanout_seconds_count", &[], 6.0);
    let metrics = server.metrics();
    assert_eq!(metrics.sum("corecast_publishes_total", &[]), 6.0);
    assert_eq!(
        metrics.matching("corecast_publishes_total", &[]).filter(|sample| sample.value > 0.0).count(),
        2
    );
    let bytes = metrics.sum("corecast_delivery_bytes_total", &[]);
    // Payload alone, or with the two bytes of each frame's header.
    assert!((610.0..=730.0).contains(&bytes), "{bytes} bytes counted");
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
