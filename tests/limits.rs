//! Limits of the push service: what happens at each, that it is counted, and that nobody else notices.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use corecast::{CloseCode, CloseReason, Component, Connection, Core, Message, Outcome, TopicName};

use probe::{Events, Log, Running, app, log, tell};
use support::client::{Client, Upgrade};
use support::frame::{self, Frame};
use support::http::{self, Response};
use support::metrics::Metrics;
use support::server::Server;
use support::{PATIENCE, wait_for};

/// Clients that are kept to be refused, over all cores, and that take no place of others.
const REFUSAL_RESERVE: usize = 32;

/// Waits until so many handshakes are counted as refused for that reason.
#[track_caller]
fn expect_rejected(server: &Server, reason: &str, count: f64) {
    server.expect_metric("corecast_handshakes_rejected_total", &[("reason", reason)], count);
}

#[track_caller]
fn expect_retry_after(response: &Response) {
    let seconds: u64 =
        response.header("Retry-After").and_then(|value| value.parse().ok()).expect("no Retry-After");
    assert!((1..=60).contains(&seconds), "{response:?}");
}

/// Connects from an address of this machine; the refusal if it is not accepted.
#[track_caller]
fn connect_from(source: &str, server: SocketAddr) -> Result<Client, Response> {
    let (response, client) = Upgrade::to("/sub/a").send_from(source, server).expect("no answer");
    if response.status == 101 { Ok(client) } else { Err(response) }
}

/// Connects from an address as soon as it has a place.
#[track_caller]
fn connect_in_time(source: &str, server: SocketAddr) -> Client {
    wait_for("a place for the address", || connect_from(source, server).ok())
}

// ---- connections of one address ----

#[test]
fn an_address_over_its_limit_gets_503_and_others_do_not() {
    let server = Server::start_shards(2, &["--max-connections-per-ip", "3"]);
    let mut held: Vec<Client> = (0..3).map(|_| connect_from("127.0.0.2", server.data).unwrap()).collect();
    for refused in 1..=3 {
        let response = connect_from("127.0.0.2", server.data).err().expect("a fourth connection");
        assert_eq!(response.status, 503);
        expect_retry_after(&response);
        expect_rejected(&server, "per_ip", f64::from(refused));
    }
    let mut other = connect_from("127.0.0.3", server.data).expect("another address");
    other.expect_alive();
    held.iter_mut().for_each(Client::expect_alive);
    server.wait_status("/ready", 200); // one address being full is nothing to the others
    held.pop();
    connect_in_time("127.0.0.2", server.data).expect_alive();
}

#[test]
fn silent_connections_over_the_limit_of_an_address_take_no_place_of_others() {
    let flags = ["--max-connections", "120", "--max-connections-per-ip", "2", "--handshake-timeout", "10m"];
    let server = Server::start_shards(2, &flags);
    let flood: Vec<_> = (0..300)
        .map(|_| Client::open_socket_from("127.0.0.2".parse().unwrap(), server.data).expect("connect"))
        .collect();
    // Two are within the limit, and each shard keeps 32 for their refusal; all others are cut.
    server.wait_metric("corecast_handshakes_rejected_total", &[("reason", "per_ip")], |cut| cut >= 234.0);
    server.wait_metric("corecast_sockets", &[], |sockets| sockets <= 66.0);
    connect_from("127.0.0.3", server.data).expect("another address").expect_alive();
    drop(flood);
    server.wait_metric("corecast_sockets", &[], |sockets| sockets == 0.0);
    connect_from("127.0.0.2", server.data).expect("the address, once it is calm").expect_alive();
}

#[test]
fn what_is_ready_has_a_place_for_a_newcomer_and_what_is_not_has_none() {
    const LIMIT: usize = 40;
    let flags = ["--max-connections", "40", "--handshake-timeout", "10m"];
    let server = Server::start_shards(2, &flags);
    let silent = || Client::open_socket(server.data).expect("connect");
    let expect_sockets = |count: usize| {
        server.wait_metric("corecast_sockets", &[], |sockets| sockets == count as f64);
    };
    // Some have asked, others may yet: all are within the limit.
    let mut held: Vec<Client> = (0..LIMIT / 2).map(|_| server.connect("/sub/a")).collect();
    held.extend((LIMIT / 2..LIMIT).map(|_| silent()));
    expect_sockets(LIMIT);
    server.wait_status("/ready", 503);
    assert_eq!(Upgrade::to("/sub/a").refused(server.data).status, 503);
    expect_sockets(LIMIT);

    // Those who are to be refused do not go, and yet hold no place of those within the limit.
    let refused: Vec<Client> = (0..REFUSAL_RESERVE).map(|_| silent()).collect();
    expect_sockets(LIMIT + REFUSAL_RESERVE);
    drop(held.pop());
    expect_sockets(LIMIT + REFUSAL_RESERVE - 1);
    server.wait_status("/ready", 200);
    held.push(server.connect("/sub/a"));
    server.wait_status("/ready", 503);

    // No more sockets than that, whatever they want.
    let mut flood: Vec<Client> = (0..100).map(|_| silent()).collect();
    for client in &mut flood {
        client.expect_gone();
    }
    server.wait_metric("corecast_sockets", &[], |sockets| sockets == (LIMIT + REFUSAL_RESERVE) as f64);
    drop(refused);
    expect_sockets(LIMIT);
    assert_eq!(Upgrade::to("/sub/a").refused(server.data).status, 503);
    drop(held);
    server.wait_status("/ready", 200);
}

/// Opens a connection and ends it in one of many ways.
fn open_and_end(server: SocketAddr, way: usize) {
    let upgrade = |path: &str| Upgrade::to(path).send_from("127.0.0.2", server);
    let silent = || Client::open_socket_from("127.0.0.2".parse().unwrap(), server);
    // The address may be over its limit, and the server may be the first to end: that is a way, too.
    match way % 12 {
        0 => drop(upgrade("/sub/a")),
        1 => drop(upgrade("/echo").map(|(_, client)| client.reset())),
        2 => drop(upgrade("/echo").map(|(_, mut client)| {
            let _ = client.send_raw(&Frame::close(1000, "").masked());
            client.drain(PATIENCE)
        })),
        3 => drop(upgrade("/echo").map(|(_, mut client)| {
            let _ = client.send_raw(&[0xFF; 64]);
            client.drain(PATIENCE)
        })),
        4 => drop(upgrade("/echo").map(|(_, mut client)| {
            client.end_sending();
            client.drain(PATIENCE)
        })),
        5 => drop(upgrade("/nowhere")),
        6 => drop(silent().map(|mut client| {
            let _ = client.send_raw(b"\x16\x03\x01 no HTTP");
            client.drain(PATIENCE)
        })),
        7 => drop(silent()),
        8 => drop(silent().map(|client| client.reset())),
        // Until the time for the handshake is over.
        9 => drop(silent().map(|mut client| client.drain(PATIENCE))),
        10 => drop(upgrade("/sub/a").map(|(_, mut client)| {
            let _ = client.send_raw(&Frame::text("not allowed here").masked());
            client.drain(PATIENCE)
        })),
        _ => drop(upgrade("/echo").map(|(_, mut client)| {
            let message = Frame::text("x").masked().repeat(400);
            let _ = client.send_raw(&message);
            client.drain(PATIENCE)
        })),
    }
}

#[test]
fn every_end_of_a_connection_gives_its_place_back_once() {
    const LIMIT: usize = 6;
    let limit = LIMIT.to_string();
    let flags = ["--echo", "--max-connections-per-ip", &limit, "--handshake-timeout", "3s"];
    let server = Server::start_shards(2, &[&flags[..], &["--message-rate", "100"]].concat());
    let before = server.holdings();
    thread::scope(|scope| {
        for thread in 0..4 {
            let data = server.data;
            scope.spawn(move || (0..24).for_each(|way| open_and_end(data, way + thread * 5)));
        }
    });
    server.wait_metric("corecast_sockets", &[], |sockets| sockets == 0.0);
    server.expect_holdings(&before);
    // Neither fewer than the limit fit, nor more.
    let mut held: Vec<Client> =
        (0..LIMIT).map(|_| connect_from("127.0.0.2", server.data).expect("a place was lost")).collect();
    assert!(connect_from("127.0.0.2", server.data).is_err(), "a place was given back twice");
    held.iter_mut().for_each(Client::expect_alive);
}

// ---- new connections in time ----

#[test]
fn connections_above_the_accept_rate_get_503_until_time_has_passed() {
    let server = Server::start_shards(2, &["--accept-rate", "3"]);
    let mut open = Vec::new();
    let refused = wait_for("a refusal", || match connect_from("127.0.0.1", server.data) {
        Ok(client) => {
            open.push(client);
            None
        }
        Err(response) => Some(response),
    });
    assert!(open.len() >= 3, "a second's worth may come at once: {}", open.len());
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("Retry-After"), Some("1"));
    expect_rejected(&server, "accept_rate", 1.0);
    open.iter_mut().for_each(Client::expect_alive);
    connect_in_time("127.0.0.1", server.data).expect_alive();
}

// ---- messages in time ----

#[test]
fn a_connection_above_the_message_rate_is_closed_and_no_other() {
    let server = Server::start_shards(2, &["--echo", "--client-publish", "--message-rate", "5"]);
    let mut calm = server.connect("/pubsub/calm");
    let mut subscriber = server.connect("/sub/loud");
    for path in ["/echo", "/pubsub/loud"] {
        let mut loud = server.connect(path);
        loud.send_raw(&Frame::text("x").masked().repeat(200)).expect("send");
        let mut echoed = 0;
        let reason = loop {
            let frame = loud.frame();
            if frame.opcode == frame::CLOSE {
                let (code, reason) = frame.close_code().expect("a close frame with a code");
                assert_eq!(code, 1008);
                break reason;
            }
            assert_eq!(frame, Frame::text("x"));
            echoed += 1;
        };
        assert_eq!(reason, "message rate");
        // What was published is on its way to the topic's owner when its publisher leaves.
        let least = if path == "/echo" { 5 } else { 0 };
        assert!((least..200).contains(&echoed), "{path}: {echoed} of 200 passed");
    }
    (0..5).for_each(|_| subscriber.expect_text("x"));
    server.expect_metric("corecast_rate_limited_connections_total", &[], 2.0);
    // Control frames are no messages.
    (0..50).for_each(|_| calm.expect_alive());
    calm.send_text("y");
    calm.expect_text("y");
    let closed = server.metrics().sum("corecast_connections_closed_total", &[("code", "1008")]);
    assert!(closed <= 2.0, "{closed}");
}

// ---- subscriptions of one connection ----

#[test]
fn a_request_for_more_topics_than_a_connection_may_have_gets_400() {
    let server = Server::start_shards(2, &["--max-subscriptions", "3"]);
    let mut client = server.connect("/sub/a,b,c");
    for refused in 1..=2 {
        assert_eq!(Upgrade::to("/sub/a,b,c,d").refused(server.data).status, 400);
        expect_rejected(&server, "subscriptions", f64::from(refused));
    }
    server.publish("c", "hello");
    client.expect_text("hello");
    server.expect_metric("corecast_subscriptions", &[], 3.0);
}

/// Subscribes and unsubscribes as its clients say, and answers how that went.
struct Obedient;

impl Component for Obedient {
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let text = message.as_text().unwrap_or_default();
        for command in text.split(';') {
            let outcome = match command.split_once(' ') {
                Some(("+", topic)) => connection.subscribe(topic),
                Some(("-", topic)) => connection.unsubscribe(topic),
                Some(("!", topic)) => connection.publish(topic, "published"),
                _ => Ok(()),
            };
            connection.send(&outcome.map_or_else(|error| error.to_string(), |()| "ok".to_owned()));
        }
        Ok(())
    }
}

/// One scrape of a server in this process.
fn metrics(server: &Running) -> Metrics {
    let control = server.server.as_ref().and_then(|server| server.control_address()).expect("a control port");
    let response = http::once(control, "GET", "/metrics", &[], b"").expect("metrics");
    Metrics::parse(&response.text()).expect("bad metrics text")
}

#[test]
fn a_component_gets_an_error_for_a_subscription_too_many() {
    let limited = app().control(([127, 0, 0, 1], 0).into()).configure(|config| config.max_subscriptions = 2);
    let server = Running::start(limited.route("/", || Obedient));
    let mut client = Client::connect(server.address, "/");
    let mut other = Client::connect(server.address, "/");
    let refused = "more topics than one connection may subscribe to";
    for (command, answer) in [
        ("+ a", "ok"),
        ("+ a", "ok"), // has no effect, and takes no place
        ("+ b", "ok"),
        ("+ c", refused),
        ("- nothing", "ok"),
        ("+ c", refused),
        ("- a", "ok"),
        ("+ c", "ok"),
        ("+ d", refused),
    ] {
        tell(&mut client, command);
        client.expect_text(answer);
    }
    // Within one callback.
    tell(&mut client, "- b;+ d;+ e");
    for answer in ["ok", "ok", refused] {
        client.expect_text(answer);
    }
    tell(&mut other, "! d;! b");
    other.expect_text("ok");
    other.expect_text("ok");
    client.expect_text("published");
    client.expect_alive();
    assert_eq!(metrics(&server).sum("corecast_subscriptions_refused_total", &[]), 4.0);
    assert_eq!(metrics(&server).sum("corecast_subscriptions", &[]), 2.0);
    // What a connection had is nothing to the next one in its place.
    drop(client);
    wait_for("the subscriptions to go", || {
        (metrics(&server).sum("corecast_subscriptions", &[]) == 0.0).then_some(())
    });
    for _ in 0..2 {
        let mut client = Client::connect(server.address, "/");
        tell(&mut client, "+ x;+ y;+ z");
        for answer in ["ok", "ok", refused] {
            client.expect_text(answer);
        }
        client.close(1000);
    }
    server.end();
}

// ---- topics ----

#[test]
fn a_new_topic_too_many_gets_503_or_429_and_the_others_go_on() {
    // Each of two shards may own two.
    let server = Server::start_shards(2, &["--max-topics", "4", "--history", "9"]);
    let mut held: Vec<(String, Client)> = Vec::new();
    let mut refused = Vec::new();
    for n in 0..60 {
        let topic = format!("topic-{n}");
        let (response, client) = Upgrade::to(&format!("/sub/{topic}")).send(server.data).expect("no answer");
        match response.status {
            101 => held.push((topic, client)),
            503 => {
                expect_retry_after(&response);
                refused.push(topic);
            }
            _ => panic!("{response:?}"),
        }
    }
    assert_eq!(held.len(), 4, "of 60 names, some belong to each shard");
    let count = refused.len() as f64;
    expect_rejected(&server, "topics", count);
    server.expect_metric("corecast_topics_refused_total", &[("by", "subscribe")], count);
    server.wait_connections(4);
    for topic in refused.iter().take(10) {
        let response = http::once(server.control(), "POST", &format!("/pub/{topic}"), &[], b"x").unwrap();
        assert_eq!(response.status, 429, "{response:?}");
        expect_retry_after(&response);
        assert!(response.text().contains("--max-topics"), "{}", response.text());
    }
    server.expect_metric("corecast_topics_refused_total", &[("by", "publish")], 10.0);
    // One of several topics is enough for a refusal, and it leaves nothing behind.
    for topic in refused.iter().take(10) {
        // So it is for those who come from the past, by the same message from the topic's owner.
        let path = format!("/sub/{},{topic},{}", held[0].0, held[1].0);
        assert_eq!(Upgrade::to(&path).refused(server.data).status, 503);
        assert_eq!(Upgrade::to(&format!("{path}?last=1")).refused(server.data).status, 503);
        let ids = Upgrade::to(&path).header("Sec-WebSocket-Protocol", "ws+meta.nchan");
        assert_eq!(ids.refused(server.data).status, 503);
    }
    server.wait_metric("corecast_subscriptions", &[], |now| now == 4.0);
    server.wait_connections(4);
    for (topic, client) in &mut held {
        let mut second = server.connect(&format!("/sub/{topic}"));
        server.publish(topic, "hello");
        client.expect_text("hello");
        second.expect_text("hello");
    }
    server.wait_metric("corecast_topics", &[], |topics| topics == 4.0);
}

#[test]
fn topics_that_come_all_at_once_are_accepted_or_refused_and_never_half() {
    let server = Server::start_shards(2, &["--max-topics", "4", "--history", "9"]);
    let barrier = Barrier::new(24);
    // All stay until all are answered: a topic goes with its last subscriber.
    let accepted: Vec<Client> = thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|n| {
                let (barrier, data) = (&barrier, server.data);
                scope.spawn(move || {
                    let mut client = Client::open_socket(data).expect("connect");
                    barrier.wait();
                    let start = if n % 2 == 0 { "?last=1" } else { "" };
                    let upgrade = Upgrade::to(&format!("/sub/{n},{}{start}", n + 100));
                    client.send_raw(&upgrade.bytes()).expect("send");
                    let status = client.read_response().expect("no answer").status;
                    assert!(matches!(status, 101 | 503), "{status}");
                    (status == 101).then(|| {
                        client.expect_alive();
                        client
                    })
                })
            })
            .collect();
        clients.into_iter().filter_map(|client| client.join().expect("a client failed")).collect()
    });
    assert!(accepted.len() <= 2, "{} connections of two topics each", accepted.len());
    drop(accepted);
    server.wait_metric("corecast_connections", &[], |open| open == 0.0);
    server.wait_metric("corecast_topics", &[], |topics| topics == 0.0);
}

#[test]
fn an_open_connection_that_asks_for_a_topic_too_many_is_closed() {
    let limited = app().control(([127, 0, 0, 1], 0).into()).configure(|config| config.max_topics = 2);
    let server = Running::start(limited.route("/", || Obedient));
    let mut other = Client::connect(server.address, "/");
    tell(&mut other, "+ kept");
    other.expect_text("ok");
    other.expect_alive();
    let mut closed = 0;
    // Each shard has room for one.
    for n in 0..20 {
        let mut client = Client::connect(server.address, "/");
        tell(&mut client, &format!("+ {n}"));
        client.expect_text("ok");
        // An answer from the owner is behind this, if the owner is another core: so wait for either.
        tell(&mut client, &format!("! {n}"));
        let first = client.frame();
        let next = if first == Frame::text("ok") { client.frame() } else { first };
        if next.opcode == frame::CLOSE {
            let (code, reason) = next.close_code().expect("a close frame with a code");
            assert_eq!((code, reason.as_str()), (1013, "no room for another topic"));
            closed += 1;
        } else {
            assert_eq!(next, Frame::text("published"));
        }
    }
    assert!(closed >= 18, "{closed} of 20");
    let metrics = metrics(&server);
    assert!(metrics.sum("corecast_topics_refused_total", &[("by", "subscribe")]) >= 18.0);
    tell(&mut other, "! kept");
    other.expect_text("ok");
    other.expect_text("published");
    server.end();
}

/// Publishes where there is no room, also when a connection has gone.
struct Refused(Log);

impl Refused {
    /// Enough for some to belong to each shard.
    const TOPICS: usize = 12;
}

impl Component for Refused {
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let command = message.as_text().unwrap_or_default();
        for n in 0..Self::TOPICS {
            match command {
                "core" => connection.core().publish(format!("core-{n}"), "x")?,
                "close" => connection.publish(format!("connection-{n}"), "x")?,
                _ => {}
            }
        }
        match command {
            "close" => connection.close(CloseCode::Normal),
            "connection" => connection.publish("connection", "x")?,
            _ => {}
        }
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        self.0.write(format!("closed {}", reason.code));
        for n in 0..Self::TOPICS {
            connection.publish(format!("left-{n}"), "x").expect("a topic name");
        }
    }

    fn on_refused(&mut self, _core: &Core, topic: &TopicName) {
        let (by, _) = topic.as_str().split_once('-').expect("a topic of this test");
        self.0.write(format!("refused {by}"));
    }
}

/// The next events, sorted: the owners of topics answer in no order.
fn sorted(events: &Events, count: usize) -> Vec<String> {
    let mut got: Vec<String> = (0..count).map(|_| events.next()).collect();
    got.sort_unstable();
    got
}

#[test]
fn a_refused_publish_is_told_to_the_component_when_its_connection_cannot_be() {
    let (log, events) = log();
    let server = Running::start(
        app().configure(|config| config.max_topics = 2).route("/", move || Refused(log.clone())),
    );
    let mut other = Client::connect(server.address, "/");
    // Each shard has room for one.
    tell(&mut other, "core");
    assert_eq!(sorted(&events, Refused::TOPICS - 2), ["refused core"; Refused::TOPICS - 2]);
    let refused = |by| vec![format!("refused {by}"); Refused::TOPICS];

    let mut open = Client::connect(server.address, "/");
    tell(&mut open, "connection");
    let close = open.frame().close_code().expect("a close frame with a code");
    assert_eq!(close, (1013, "the server cannot take more messages now".to_owned()));
    open.send(&Frame::close(1013, ""));
    events.expect("closed 1013");
    assert_eq!(sorted(&events, Refused::TOPICS), refused("left"));

    let mut closing = Client::connect(server.address, "/");
    tell(&mut closing, "close");
    assert_eq!(closing.frame().close_code().map(|(code, _)| code), Some(1000));
    assert_eq!(sorted(&events, Refused::TOPICS), refused("connection"));
    closing.send(&Frame::close(1000, ""));
    events.expect("closed 1000");
    assert_eq!(sorted(&events, Refused::TOPICS), refused("left"));

    Client::connect(server.address, "/").reset();
    events.expect("closed 1006");
    assert_eq!(sorted(&events, Refused::TOPICS), refused("left"));
    other.expect_alive();
    server.end();
}

#[test]
fn a_refusal_is_told_at_once_on_a_shard_that_has_nothing_else_to_do() {
    let (log, events) = log();
    let limited = app().cores(1).configure(|config| config.max_topics = 1);
    let server = Running::start(limited.route("/", move || Refused(log.clone())));
    let mut client = Client::connect(server.address, "/");
    // One that waits for the next tick, every 100 ms, is told just behind it, and then nothing is left to wake the shard.
    let late = (0..20).filter(|_| {
        let start = Instant::now();
        tell(&mut client, "core");
        drop(sorted(&events, Refused::TOPICS - 1));
        start.elapsed() > Duration::from_millis(80)
    });
    assert!(late.count() < 5);
    server.end();
}

// ---- limits that are counted under their own names ----

#[test]
fn limits_of_process_and_handshake_are_counted_apart() {
    let flags = ["--max-connections", "1", "--max-handshake-size", "1KiB", "--handshake-timeout", "3s"];
    let server = Server::start_shards(2, &flags);
    let large = Upgrade::to("/sub/a").header("X-Fill", &"x".repeat(1200));
    assert_eq!(large.refused(server.data).status, 431);
    expect_rejected(&server, "too_large", 1.0);
    server.wait_metric("corecast_sockets", &[], |sockets| sockets == 0.0);
    let mut silent = Client::open_socket(server.data).expect("connect");
    silent.expect_gone();
    expect_rejected(&server, "timeout", 1.0);
    server.wait_metric("corecast_sockets", &[], |sockets| sockets == 0.0);
    let mut client = server.connect("/sub/a");
    assert_eq!(Upgrade::to("/sub/a").refused(server.data).status, 503);
    expect_rejected(&server, "capacity", 1.0);
    client.send(&Frame::new(frame::PING, "still there"));
    client.expect_frame(&Frame::new(frame::PONG, "still there"));
}
