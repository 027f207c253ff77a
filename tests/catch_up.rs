//! Subscribers that catch up with a long past, or with many topics, while others go on.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use corecast::{Component, Connection, Message, Notice, Outcome, Start};

use probe::{Running, app, tell};
use support::client::{Client, Event, Upgrade};
use support::frame;
use support::server::Server;
use support::{PATIENCE, QUIET};

/// Subscribes as the path says; publishes what it is sent.
struct Chat;

impl Component for Chat {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        match connection.path_parameter("how").as_deref() {
            Some("join") => {
                connection.publish_to_others("t", "someone joined")?;
                connection.subscribe_from("t", Start::Latest(10_000), Notice::Never)?;
            }
            Some("past") => connection.subscribe_from("t", Start::Latest(10_000), Notice::Never)?,
            _ => connection.subscribe("t")?,
        }
        Ok(())
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        if message.as_bytes() == b"both" {
            connection.publish_to_others("t", "mine")?;
            connection.publish("t", "all")?;
        } else {
            connection.publish("t", message)?;
        }
        Ok(())
    }
}

/// The first two words of each message, until one is the last.
fn words_until(client: &mut Client, last: &str) -> Vec<String> {
    let mut got: Vec<String> = Vec::new();
    while got.last().is_none_or(|words| words != last) {
        let text = String::from_utf8(client.message().payload).expect("text");
        got.push(text.split(' ').take(2).collect::<Vec<_>>().join(" "));
    }
    got
}

#[test]
fn one_that_publishes_while_it_catches_up_gets_each_once_and_its_own_not() {
    let app = app().cores(1).configure(|config| {
        config.history = 10_000;
        config.send_queue_bytes = 64 * 1024;
    });
    let server = Running::start(app.route("/{how}", || Chat));
    let mut live = Client::connect(server.address, "/live");
    let filler = "x".repeat(1000);
    for n in 1..=1000 {
        let text = format!("past {n} {filler}");
        tell(&mut live, &text);
        live.expect_text(&text);
    }
    let mut client = Client::connect_narrow(server.address, "/past");
    assert_eq!(words_until(&mut client, "past 1"), ["past 1"]);
    tell(&mut client, "both");
    live.expect_text("mine");
    live.expect_text("all");
    let expected: Vec<String> = (2..=1000).map(|n| format!("past {n}")).chain(["all".to_owned()]).collect();
    assert_eq!(words_until(&mut client, "all"), expected);
    client.expect_alive();
    server.end();
}

#[test]
fn what_one_publishes_to_others_is_not_in_its_own_past() {
    let app = app().cores(2).configure(|config| config.history = 10);
    let server = Running::start(app.route("/{how}", || Chat));
    for _ in 0..4 {
        let mut client = Client::connect(server.address, "/join");
        tell(&mut client, "now");
        let got = words_until(&mut client, "now");
        // Those of the ones before it, and what they published.
        assert_eq!(got.iter().filter(|words| *words == "now").count(), got.len().div_ceil(2), "{got:?}");
        assert_eq!(
            got.first().map(String::as_str),
            Some(if got.len() == 1 { "now" } else { "someone joined" })
        );
    }
    server.end();
}

fn topics() -> Vec<String> {
    (0..120).map(|n| format!("t{n}")).collect()
}

/// A server on which each of 120 topics has one message of so many bytes.
fn server_with_pasts(shards: usize, flags: &[&str], bytes: usize) -> Server {
    let server = Server::start_shards(shards, &[&["--history", "5"], flags].concat());
    let (mut http, text) = (server.http(), "x".repeat(bytes));
    for topic in topics() {
        http.post(&format!("/pub/{topic}"), text.as_bytes()).expect("publish").expect(202);
    }
    server
}

#[test]
fn the_pasts_of_many_topics_fit_the_send_queue_together() {
    for (policy, shards) in [("close", 1), ("drop", 3)] {
        let server = server_with_pasts(shards, &["--slow-consumer", policy], 16_000);
        let mut client = Client::connect_narrow(server.data, &format!("/sub/{}?last=1", topics().join(",")));
        server.wait_metric("corecast_send_queue_bytes", &[], |waiting| waiting > 100_000.0);
        thread::sleep(QUIET); // more may come
        let waiting = server.metrics().sum("corecast_send_queue_bytes", &[]);
        assert!(waiting > 100_000.0 && waiting <= 512.0 * 1024.0 + 16_100.0, "{waiting}");
        server.publish("t0", "live");
        let mut got: Vec<usize> = (0..121).map(|_| client.message().payload.len()).collect();
        got.sort_unstable();
        assert_eq!((got[0], got[1], got[120]), (4, 16_000, 16_000));
        client.expect_alive();
        assert_eq!(server.metrics().sum("corecast_slow_consumers_total", &[]), 0.0);
    }
}

#[test]
fn a_fast_reader_of_many_topics_is_no_slow_consumer() {
    let server = server_with_pasts(2, &[], 60_000);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut http = server.http();
            while !over.load(Relaxed) {
                http.post("/pub/t0", b"live").expect("publish");
            }
        });
        let readers = scope.spawn(|| {
            for _ in 0..10 {
                let mut client = server.connect(&format!("/sub/{}?last=1", topics().join(",")));
                // All but the topic whose last message is a short one by now.
                let mut long = 0;
                while long < 119 {
                    match client.event(PATIENCE) {
                        Event::Frame(message) if message.opcode == frame::TEXT => {
                            long += usize::from(message.payload.len() > 10);
                        }
                        other => panic!("after {long}: {other:?}"),
                    }
                }
            }
        });
        let outcome = readers.join();
        over.store(true, Relaxed);
        outcome.expect("the readers");
    });
}

#[test]
fn many_topics_of_which_little_is_kept_are_no_reason_to_close_a_fast_reader() {
    let server = Server::start_shards(2, &["--history", "1"]);
    let topics = topics();
    let over = AtomicBool::new(false);
    let batch = |count: u64| {
        let messages: Vec<_> = topics
            .iter()
            .map(|topic| serde_json::json!({"topic": topic, "data": format!("{topic} {count}")}))
            .collect();
        serde_json::to_vec(&messages).expect("JSON")
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut http = server.http();
            let mut count = 0;
            while !over.load(Relaxed) {
                count += 1;
                http.post("/pub", &batch(count)).expect("publish");
            }
        });
        let readers = scope.spawn(|| {
            for _ in 0..30 {
                let mut client = server.connect(&format!("/sub/{}?last=1", topics.join(",")));
                let mut last: HashMap<String, u64> = HashMap::new();
                // Until each has gone on a little, without a gap.
                while last.len() < topics.len() {
                    let text = String::from_utf8(client.message().payload).expect("text");
                    let (topic, count) = text.split_once(' ').expect("no notice");
                    let count: u64 = count.parse().expect("a number");
                    let before = last.insert(topic.to_owned(), count);
                    assert!(before.is_none_or(|before| before + 1 == count), "{text} after {before:?}");
                }
            }
        });
        let outcome = readers.join();
        over.store(true, Relaxed);
        outcome.expect("the readers");
    });
    assert_eq!(server.metrics().sum("corecast_slow_consumers_total", &[]), 0.0);
}

#[test]
fn what_is_let_go_while_other_topics_have_their_turn_is_told() {
    let server = Server::start_shards(2, &["--history", "1"]);
    let mut http = server.http();
    let long = "x".repeat(16_000);
    let mut publish_all = |text: &str| {
        for topic in topics() {
            http.post(&format!("/pub/{topic}"), format!("{topic} {text}").as_bytes()).expect("publish");
        }
    };
    publish_all(&long);
    let mut client = Client::connect_narrow(server.data, &format!("/sub/{}?last=1", topics().join(",")));
    server.wait_metric("corecast_send_queue_bytes", &[], |waiting| waiting > 100_000.0);
    thread::sleep(QUIET); // more may come
    publish_all("short");
    // Of each topic what was kept at first, or the word that it is lost; then what came later.
    let (mut begun, mut ended, mut lost) = (HashSet::new(), HashSet::new(), 0);
    while ended.len() < topics().len() {
        let payload = client.message().payload;
        if payload.starts_with(b"{") {
            let notice: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
            assert_eq!((&notice["recovered"], &notice["offset"]), (&false.into(), &1.into()));
            assert!(begun.insert(notice["topic"].as_str().expect("a topic").to_owned()), "{notice}");
            lost += 1;
            continue;
        }
        let text = String::from_utf8(payload).expect("text");
        let (topic, text) = text.split_once(' ').expect("two words");
        match text {
            "short" => assert!(begun.contains(topic) && ended.insert(topic.to_owned()), "{topic}"),
            _ => assert!(begun.insert(topic.to_owned()), "{topic}"),
        }
    }
    assert!(lost > 0 && lost < topics().len(), "{lost}");
    client.expect_alive();
    assert_eq!(server.metrics().sum("corecast_slow_consumers_total", &[]), 0.0);
}

#[test]
fn topics_of_one_connection_end_and_begin_again_while_they_catch_up() {
    let server = server_with_pasts(3, &["--client-publish"], 8_000);
    let list = topics();
    for turn in 0..30 {
        let some: Vec<&str> = list.iter().skip(turn % 5).step_by(1 + turn % 3).map(String::as_str).collect();
        let mut client = server.connect(&format!("/sub/{}?last=1", some.join(",")));
        match turn % 3 {
            0 => client.reset(),
            1 => (0..some.len()).for_each(|_| assert_eq!(client.message().payload.len(), 8_000)),
            _ => drop(client.message()),
        }
    }
    server.wait_metric("corecast_connections", &[], |open| open == 0.0);
    server.wait_metric("corecast_subscriptions", &[], |open| open == 0.0);
    server.wait_metric("corecast_send_queue_bytes", &[], |bytes| bytes == 0.0);
    let deleted = &list[..40];
    let mut client = server.connect(&format!("/sub/{}?last=1", list.join(",")));
    for topic in deleted {
        let answer = support::http::once(server.control(), "DELETE", &format!("/pub/{topic}"), &[], &[]);
        answer.expect("an answer").expect(204);
    }
    let close = loop {
        if let Some(close) = Some(client.frame()).filter(|frame| frame.opcode == frame::CLOSE) {
            break close.close_code();
        }
    };
    assert_eq!(close, Some((1000, "topic deleted".to_owned())));
}

#[test]
fn ids_are_within_the_history_size() {
    let flags = ["--history", "100000", "--history-size", "1MiB", "--compression", "off"];
    let server = Server::start_shards(1, &flags);
    let (mut http, text) = (server.http(), "x".repeat(10_000));
    (0..120).for_each(|_| drop(http.post("/pub/a", text.as_bytes()).expect("publish").expect(202)));
    // Full, and so no more is to come: the gauge is moved by the tick.
    server.wait_metric("corecast_history_bytes", &[], |bytes| bytes > 1024.0 * 1024.0 - 11_000.0);
    let before = server.wait_metric("corecast_history_messages", &[], |messages| messages > 80.0);
    let upgrade = Upgrade::to("/sub/a?last=100000").with("Sec-WebSocket-Protocol", "ws+meta.nchan");
    let mut client = upgrade.accepted(server.data);
    assert!(client.message().payload.starts_with(b"id: "));
    let after = server.wait_metric("corecast_history_messages", &[], |messages| messages < before);
    assert!(after > 40.0, "{after}");
    let bytes = server.metrics().sum("corecast_history_bytes", &[]);
    assert!(bytes <= 1024.0 * 1024.0, "{bytes}");
}
