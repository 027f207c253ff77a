//! Those who come back, or late: history, resume without gap or repeat, and what they are told.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use support::client::{Client, Event, Upgrade};
use support::frame::{self, Frame};
use support::http::once;
use support::server::Server;
use support::{PATIENCE, QUIET, wait_for};

/// Topics enough that every shard of three owns some, whatever the hash.
const TOPICS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn history_server(flags: &[&str]) -> Server {
    Server::start_shards(3, &[&["--history", "100", "--client-publish"], flags].concat())
}

/// Publishes and returns the epoch and the offset.
fn publish(server: &Server, topic: &str, text: &str) -> (String, u64) {
    let answer = server.publish(topic, text).json();
    (answer["epoch"].as_str().expect("an epoch").to_owned(), answer["offset"].as_u64().expect("an offset"))
}

/// Publishes numbers in words that say their offset; returns the epoch.
fn publish_up_to(server: &Server, topic: &str, last: u64) -> String {
    let mut epoch = String::new();
    loop {
        let next = server.get(&format!("/pub/{topic}")).json()["offset"].as_u64().expect("an offset") + 1;
        if next > last {
            return epoch;
        }
        let told = publish(server, topic, &format!("{topic} {next}"));
        assert_eq!(told.1, next);
        epoch = told.0;
    }
}

#[track_caller]
fn expect_run(client: &mut Client, topic: &str, offsets: impl Iterator<Item = u64>) {
    offsets.for_each(|offset| client.expect_text(&format!("{topic} {offset}")));
}

#[track_caller]
fn expect_notice(client: &mut Client, recovered: bool, topic: &str, epoch: &str, offset: u64) {
    let text = String::from_utf8(client.message().payload).expect("text");
    let notice: serde_json::Value = serde_json::from_str(&text).expect("a notice");
    let expected =
        serde_json::json!({"recovered": recovered, "topic": topic, "epoch": epoch, "offset": offset});
    assert_eq!(notice, expected);
}

#[test]
fn since_goes_on_behind_the_offset_without_gap_or_repeat() {
    let server = history_server(&[]);
    for topic in TOPICS {
        let epoch = publish_up_to(&server, topic, 5);
        // One that is there already, so that the shard has the topic when the next ones come.
        let mut first = server.connect(&format!("/sub/{topic}"));
        let mut back: Vec<Client> = (0..6)
            .flat_map(|offset| {
                ["sub", "pubsub"]
                    .map(|route| server.connect(&format!("/{route}/{topic}?since={epoch}:{offset}")))
            })
            .collect();
        publish(&server, topic, &format!("{topic} 6"));
        first.expect_text(&format!("{topic} 6"));
        for (at, client) in back.iter_mut().enumerate() {
            expect_run(client, topic, at as u64 / 2 + 1..=6);
        }
    }
    let resumes = (12 * TOPICS.len()) as f64;
    server.expect_metric("corecast_resumes_total", &[("recovered", "true")], resumes);
}

#[test]
fn where_that_cannot_be_it_is_said_and_it_goes_on_live() {
    let server = Server::start_shards(3, &["--history", "3"]);
    for topic in TOPICS {
        let epoch = publish_up_to(&server, topic, 9);
        let other = format!("{}{}", if epoch.starts_with('0') { "1" } else { "0" }, &epoch[1..]);
        let lost = [
            format!("{epoch}:5"),
            format!("{epoch}:0"),
            format!("{epoch}:10"),
            format!("{other}:8"),
            format!("{other}:9"),
        ];
        for since in lost {
            let mut client = server.connect(&format!("/sub/{topic}?since={since}"));
            expect_notice(&mut client, false, topic, &epoch, 9);
            client.expect_silence(Duration::from_millis(1));
        }
        let mut kept = server.connect(&format!("/sub/{topic}?since={epoch}:6"));
        expect_run(&mut kept, topic, 7..=9);
        let mut quiet = server.connect(&format!("/sub/{topic}?since={epoch}:0&notice=false"));
        let mut lost = server.connect(&format!("/sub/{topic}?since={epoch}:0"));
        publish(&server, topic, "live");
        expect_notice(&mut lost, false, topic, &epoch, 9);
        [&mut kept, &mut quiet, &mut lost].into_iter().for_each(|client| client.expect_text("live"));
    }
    server.wait_metric("corecast_resumes_total", &[("recovered", "false")], |count| count >= 40.0);
}

#[test]
fn without_history_only_who_missed_nothing_recovers() {
    let server = Server::start_shards(2, &[]);
    let (epoch, _) = publish(&server, "a", "one");
    let mut there = server.connect(&format!("/sub/a?since={epoch}:1&notice=true"));
    expect_notice(&mut there, true, "a", &epoch, 1);
    let mut behind = server.connect(&format!("/sub/a?since={epoch}:0"));
    expect_notice(&mut behind, false, "a", &epoch, 1);
    let mut late = server.connect("/sub/a?last=5");
    publish(&server, "a", "two");
    [&mut there, &mut behind, &mut late].into_iter().for_each(|client| client.expect_text("two"));
}

#[test]
fn last_shows_the_newest_and_notice_says_where_one_begins() {
    let server = history_server(&[]);
    for topic in TOPICS {
        let epoch = publish_up_to(&server, topic, 5);
        let mut one = server.connect(&format!("/sub/{topic}?last=1"));
        let mut many = server.connect(&format!("/sub/{topic}?last=99&notice=true"));
        let mut none = server.connect(&format!("/sub/{topic}?last=0"));
        let mut now = server.connect(&format!("/sub/{topic}?notice=true"));
        publish(&server, topic, &format!("{topic} 6"));
        expect_run(&mut one, topic, 5..=6);
        expect_notice(&mut many, true, topic, &epoch, 0);
        expect_run(&mut many, topic, 1..=6);
        expect_run(&mut none, topic, 6..=6);
        expect_notice(&mut now, false, topic, &epoch, 5);
        expect_run(&mut now, topic, 6..=6);
    }
}

#[test]
fn several_topics_resume_each_from_its_own_place() {
    let server = history_server(&[]);
    let epochs = TOPICS.map(|topic| publish_up_to(&server, topic, 4));
    let since: Vec<String> = epochs.iter().zip(0..).map(|(epoch, n)| format!("{epoch}:{}", n % 5)).collect();
    let mut client = server.connect(&format!("/sub/{}?since={}", TOPICS.join(","), since.join(",")));
    let expected: Vec<Vec<String>> = TOPICS
        .iter()
        .zip(0..)
        .map(|(topic, n)| (n % 5 + 1..=4).map(|offset| format!("{topic} {offset}")).collect())
        .collect();
    let mut got: Vec<Vec<String>> = vec![Vec::new(); TOPICS.len()];
    for _ in 0..expected.iter().flatten().count() {
        let text = String::from_utf8(client.message().payload).expect("text");
        let topic = TOPICS.iter().position(|topic| text.starts_with(topic)).expect("a topic");
        got[topic].push(text);
    }
    assert_eq!(got, expected);
    client.expect_alive();
}

#[test]
fn bad_beginnings_are_400() {
    let server = history_server(&[]);
    for query in ["since=x", "since=:", "last=x", "last=-1", "notice=perhaps", "last=1&last=1", "since=0:0"] {
        for route in ["sub", "pubsub"] {
            let answer = Upgrade::to(&format!("/{route}/a?{query}")).refused(server.data);
            assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        }
    }
    let (epoch, _) = publish(&server, "a", "x");
    assert_eq!(Upgrade::to(&format!("/sub/a,b?since={epoch}:0")).refused(server.data).status, 400);
}

/// The parts of a message of `ws+meta.nchan`: id, content type, payload.
fn meta(message: &Frame) -> (String, String, Vec<u8>) {
    let end = message.payload.windows(2).position(|pair| pair == b"\n\n").expect("a head");
    let head = std::str::from_utf8(&message.payload[..end]).expect("text");
    let mut lines = head.lines();
    let mut line = |name| lines.next().and_then(|line| line.strip_prefix(name)).expect(name).to_owned();
    (line("id: "), line("content-type: "), message.payload[end + 2..].to_vec())
}

fn connect_meta(server: &Server, path: &str, compressed: bool) -> Client {
    let mut upgrade = Upgrade::to(path).with("Sec-WebSocket-Protocol", "ws+meta.nchan");
    if compressed {
        upgrade = upgrade.with("Sec-WebSocket-Extensions", "permessage-deflate");
    }
    let (response, client) = upgrade.send(server.data).expect("an answer");
    assert_eq!(response.status, 101);
    assert_eq!(response.header("Sec-WebSocket-Protocol"), Some("ws+meta.nchan"));
    client
}

#[test]
fn meta_nchan_has_the_id_in_each_message_and_resumes_with_it() {
    let server = history_server(&[]);
    for topic in TOPICS {
        let path = format!("/sub/{topic}");
        let mut plain = server.connect(&path);
        let mut live = connect_meta(&server, &path, topic == "a");
        let epoch = publish_up_to(&server, topic, 3);
        let binary = once(
            server.control(),
            "POST",
            &format!("/pub/{topic}"),
            &[("Content-Type", "application/octet-stream")],
            &[0xff, 0, 0x0a, 0x0a],
        );
        binary.expect("an answer").expect(201);
        let long = "long ".repeat(200);
        publish(&server, topic, &long);
        expect_run(&mut plain, topic, 1..=3);
        assert_eq!(plain.message().payload, [0xff, 0, 0x0a, 0x0a]);
        plain.expect_text(&long);

        let expect_from = |client: &mut Client, first: u64| {
            for offset in first..=5 {
                let message = client.message();
                let (id, content_type, payload) = meta(&message);
                assert_eq!(id, format!("{epoch}:{offset}"));
                let (opcode, expected_type, expected) = match offset {
                    4 => (frame::BINARY, "application/octet-stream", vec![0xff, 0, 0x0a, 0x0a]),
                    5 => (frame::TEXT, "text/plain", long.clone().into_bytes()),
                    _ => (frame::TEXT, "text/plain", format!("{topic} {offset}").into_bytes()),
                };
                assert_eq!(
                    (message.opcode, content_type.as_str(), payload),
                    (opcode, expected_type, expected)
                );
            }
        };
        expect_from(&mut live, 1);
        for (first, query) in
            [(3, format!("last_event_id={epoch}%3A2")), (2, format!("since={epoch}:1")), (5, "last=1".into())]
        {
            expect_from(&mut connect_meta(&server, &format!("{path}?{query}"), true), first);
        }
        let mut lost = connect_meta(&server, &format!("{path}?last_event_id=1700000000%3A0"), false);
        let (id, content_type, payload) = meta(&lost.message());
        assert_eq!(
            (id, content_type.as_str()),
            (format!("{epoch}:5"), "application/vnd.corecast.notice+json")
        );
        assert!(payload.starts_with(b"{\"recovered\":false,"), "{payload:?}");
    }
}

#[test]
fn what_is_kept_is_bounded_in_number_in_age_and_in_bytes() {
    let server = Server::start_shards(2, &["--history", "5", "--history-ttl", "6s"]);
    publish_up_to(&server, "a", 9);
    let kept =
        |server: &Server, topic: &str| server.get(&format!("/pub/{topic}")).json()["messages"].as_u64();
    assert_eq!(kept(&server, "a"), Some(5));
    wait_for("messages to be too old", || (kept(&server, "a") == Some(0)).then_some(()));
    assert_eq!(server.get("/pub/a").json()["offset"], 9, "offsets count on");
    server.wait_metric("corecast_history_messages", &[], |messages| messages == 0.0);
    server.wait_metric("corecast_history_bytes", &[], |bytes| bytes == 0.0);

    let server = Server::start_shards(1, &["--history", "1000", "--history-size", "64KiB"]);
    let text = "x".repeat(4000);
    (0..40).for_each(|n| drop(publish(&server, TOPICS[n % 8], &text)));
    // The gauges are moved by the tick: until all have been counted as kept or evicted.
    let (messages, bytes) = wait_for("all to be kept or evicted", || {
        let metrics = server.metrics();
        let [messages, bytes, evicted] = ["messages", "bytes", "evicted_total"]
            .map(|name| metrics.sum(&format!("corecast_history_{name}"), &[]));
        (messages + evicted == 40.0).then_some((messages, bytes))
    });
    assert!((8.0..=16.0).contains(&messages), "{messages}");
    assert!(bytes <= 65536.0 && bytes > 4000.0 * messages, "{bytes}");
}

#[test]
fn delete_drops_what_is_kept_and_offsets_count_on() {
    let server = history_server(&[]);
    let epoch = publish_up_to(&server, "a", 3);
    assert_eq!(server.get("/pub/a").json()["messages"], 3);
    once(server.control(), "DELETE", "/pub/a", &[], &[]).expect("an answer").expect(204);
    assert_eq!(server.get("/pub/a").json()["messages"], 0);
    let mut client = server.connect(&format!("/sub/a?since={epoch}:1"));
    expect_notice(&mut client, false, "a", &epoch, 3);
    assert_eq!(publish(&server, "a", "a 4"), (epoch, 4));
    client.expect_text("a 4");
}

/// Numbers of a message published by the flood, in words.
fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.split(' ').nth(1)?.parse().ok()).expect("a number")
}

#[test]
fn the_seam_is_exact_while_others_publish_without_pause() {
    let server = Server::start_shards(3, &["--history", "100000", "--client-publish"]);
    let over = AtomicBool::new(false);
    let published = AtomicU64::new(0);
    let epoch = publish(&server, "a", "flood 1").0;
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut publisher = server.connect("/pubsub/a");
            let mut count = 1;
            while !over.load(Relaxed) {
                for _ in 0..20 {
                    count += 1;
                    publisher.send_text(&format!("flood {count}"));
                }
                while number(&publisher.message().payload) < count {}
                published.store(count, Relaxed);
            }
        });
        let clients: Vec<_> = (0..4_u64)
            .map(|client| {
                let (server, epoch) = (&server, &epoch);
                scope.spawn(move || {
                    let mut last = 0;
                    for turn in 0..60_u64 {
                        let meta_protocol = (client + turn) % 2 == 0;
                        let path = format!("/sub/a?since={epoch}:{last}");
                        let mut socket = match meta_protocol {
                            true => connect_meta(server, &path, turn % 3 == 0),
                            false => server.connect(&path),
                        };
                        for _ in 0..(client * 7 + turn) % 50 + 1 {
                            let message = socket.message();
                            let got = match meta_protocol {
                                true => number(&meta(&message).2),
                                false => number(&message.payload),
                            };
                            assert_eq!(got, last + 1, "client {client} turn {turn}");
                            last = got;
                        }
                        match turn % 2 {
                            0 => socket.reset(),
                            _ => drop(socket),
                        }
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Relaxed);
        flood.join().expect("the flood");
        outcomes.into_iter().for_each(|outcome| outcome.expect("a client"));
    });
    assert!(published.load(Relaxed) > 100);
    assert_eq!(server.metrics().sum("corecast_resumes_total", &[("recovered", "false")]), 0.0);
}

#[test]
fn a_long_past_comes_in_parts_that_fit_the_send_queue() {
    let server = Server::start_shards(2, &["--history", "3000", "--send-queue", "64KiB"]);
    let filler = "x".repeat(1000);
    let mut http = server.http();
    let mut epoch = String::new();
    for n in 1..=3000 {
        let answer = http.post("/pub/a", format!("past {n} {filler}").as_bytes()).expect("publish");
        epoch = answer.json()["epoch"].as_str().expect("an epoch").to_owned();
    }
    let mut slow = Client::connect_narrow(server.data, &format!("/sub/a?since={epoch}:0"));
    let mut fast = server.connect(&format!("/sub/a?since={epoch}:0"));
    (1..=3000).for_each(|n| assert_eq!(number(&fast.message().payload), n));
    for n in 1..=3000 {
        if n % 500 == 0 {
            thread::sleep(QUIET);
            let waiting = server.metrics().sum("corecast_send_queue_bytes", &[]);
            assert!(waiting <= 65536.0, "{waiting}");
        }
        assert_eq!(number(&slow.message().payload), n);
    }
    publish(&server, "a", "past 3001 x");
    [&mut slow, &mut fast].into_iter().for_each(|client| assert_eq!(number(&client.message().payload), 3001));
    assert_eq!(server.metrics().sum("corecast_slow_consumers_total", &[]), 0.0);
}

#[test]
fn one_that_is_slower_than_the_past_goes_by_is_closed_as_a_slow_consumer() {
    let server = Server::start_shards(2, &["--history", "400", "--send-queue", "64KiB"]);
    let filler = "x".repeat(4000);
    let mut http = server.http();
    let mut post =
        |n: u64| http.post("/pub/a", format!("past {n} {filler}").as_bytes()).expect("publish").json();
    let epoch =
        (1..=400).map(&mut post).last().expect("answers")["epoch"].as_str().expect("an epoch").to_owned();
    let mut slow = Client::connect_narrow(server.data, &format!("/sub/a?since={epoch}:0"));
    assert_eq!(number(&slow.message().payload), 1);
    // It is closed now, or when it reads on. If now, it must hurry: the server waits a few seconds for it to read why.
    let is_closed = || server.metrics().sum("corecast_slow_consumers_total", &[]) > 0.0;
    for n in 401..=1200 {
        post(n);
        if n % 20 == 0 && is_closed() {
            break;
        }
    }
    let mut last = 1;
    loop {
        match slow.event(PATIENCE) {
            Event::Frame(message) if message.opcode == frame::TEXT => {
                last += 1;
                assert_eq!(number(&message.payload), last, "a gap without a word");
            }
            Event::Frame(message) => {
                assert_eq!(message.close_code(), Some((1008, "slow consumer".to_owned())));
                break;
            }
            other => panic!("{other:?} after {last}"),
        }
    }
    assert!(last < 400);
    server.expect_metric("corecast_slow_consumers_total", &[], 1.0);
}
