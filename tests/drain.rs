//! What a drain promises: who is connected misses nothing that was accepted before it began.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use libc::SIGTERM;

use support::client::Client;
use support::http::Http;
use support::server::Server;
use support::swarm::{Member, Swarm};
use support::{PATIENCE, wait_for};

const TOPICS: [&str; 4] = ["a", "b", "c", "d"];

/// Publishes as fast as answers come, until told to end or refused; the time of each 201. Counts them as they come.
fn flood(server: &Server, topic: &str, ended: &AtomicBool, count: &AtomicUsize) -> Vec<Instant> {
    let mut http = Http::connect(server.control()).expect("connect");
    let mut accepted = Vec::new();
    while !ended.load(Relaxed) {
        match http.post(&format!("/pub/{topic}"), format!("{topic}-{}", accepted.len()).as_bytes()) {
            Ok(response) if response.status == 201 => {
                accepted.push(Instant::now());
                count.store(accepted.len(), Relaxed);
            }
            // The last subscriber is gone, or the server.
            _ => break,
        }
    }
    accepted
}

/// Panics unless the member has the first `count` messages of the topic, in order and without a gap.
#[track_caller]
fn expect_first(member: &Member, topic: &str, count: usize) {
    let of_topic = member.messages.iter().filter(|message| message.text().starts_with(topic));
    let numbers: Vec<usize> =
        of_topic.map(|message| message.text()[2..].parse().expect("a number")).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()), "{topic}: a gap or another order: {numbers:?}");
    assert!(
        numbers.len() >= count,
        "{topic}: {} of {count} messages, then {:?}",
        numbers.len(),
        member.close
    );
}

#[test]
fn what_was_accepted_before_the_drain_reaches_every_subscriber() {
    for window in ["0s", "1s"] {
        let flags = ["--drain-window", window, "--send-queue", "64MiB"];
        let server = Server::start_shards(3, &flags);
        let mut swarm = Swarm::connect(server.data, "/sub/a,b,c,d", 40);
        let ended = AtomicBool::new(false);
        let (signalled, accepted) = thread::scope(|scope| {
            let counts = TOPICS.map(|_| Arc::new(AtomicUsize::new(0)));
            let publishers: Vec<_> = TOPICS
                .iter()
                .zip(counts.clone())
                .map(|(topic, count)| {
                    let (server, ended) = (&server, &ended);
                    scope.spawn(move || flood(server, topic, ended, &count))
                })
                .collect();
            swarm.read_until("messages", |members| {
                counts.iter().all(|count| count.load(Relaxed) > 10)
                    && members.iter().all(|member| member.messages.len() > 200)
            });
            // Anything answered until now was accepted before the server can know of its end.
            let signalled = Instant::now();
            server.signal(SIGTERM);
            swarm.read_until("the closes", |members| members.iter().all(|member| member.gone));
            ended.store(true, Relaxed);
            let accepted: HashMap<&str, Vec<Instant>> = TOPICS
                .into_iter()
                .zip(publishers.into_iter().map(|publisher| publisher.join().expect("a publisher")))
                .collect();
            (signalled, accepted)
        });
        for member in &swarm.members {
            assert_eq!(member.close.as_ref().map(|(code, _)| *code), Some(1012), "window {window}");
            for topic in TOPICS {
                let before = accepted[topic].iter().filter(|&&at| at <= signalled).count();
                assert!(before > 10, "{topic}: too few to tell anything: {before}");
                expect_first(member, topic, before);
            }
        }
        assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
    }
}

/// Messages wait for a shard that does not run, in the ring and, beyond what it holds, with their sender; then it
/// finds them and the order to drain all at once.
#[test]
fn a_shard_that_is_behind_delivers_before_it_closes() {
    const MESSAGES: usize = 3_000; // A ring holds 1024.
    let server = Server::start_shards(2, &["--drain-window", "0s", "--send-queue", "64MiB"]);
    let topics: Vec<String> = (0..12).map(|number| format!("t{number}")).collect();
    let mut swarm = Swarm::connect(server.data, &format!("/sub/{}", topics.join(",")), 40);
    for core in ["0", "1"] {
        server.wait_metric("corecast_connections", &[("core", core)], |open| open > 0.0);
    }
    let Some(frozen) = server.freeze_a_shard() else { return };
    let topic = server.answered_topic(&topics, b"0");
    let mut http = Http::connect(server.control()).expect("connect");
    for number in 1..MESSAGES {
        let response = http.post(&format!("/pub/{topic}"), number.to_string().as_bytes()).expect("an answer");
        response.expect(201);
    }
    server.signal(SIGTERM);
    wait_for("/ready to turn 503", || (server.get("/ready").status == 503).then_some(()));
    drop(frozen);
    swarm.read_until("the closes", |members| members.iter().all(|member| member.gone));
    for member in &swarm.members {
        assert_eq!(member.close.as_ref().map(|(code, _)| *code), Some(1012));
        // What was tried on the other topics may be among them: a lone 0 each.
        let numbers = member.messages.iter().map(|message| message.text().parse().expect("a number"));
        let numbers: Vec<usize> = numbers.filter(|&number| number > 0).collect();
        assert!(numbers.iter().copied().eq(1..MESSAGES), "{} messages of {MESSAGES}", numbers.len());
    }
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn a_drain_tells_how_far_it_is() {
    let server = Server::start_shards(2, &["--drain-window", "8s"]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", 40);
    server.signal(SIGTERM);
    swarm.read_until("the closes", |members| members.iter().all(|member| member.gone));
    let ended = server.wait_exit(PATIENCE);
    let left: Vec<u32> = ended
        .stderr
        .lines()
        .filter_map(|line| line.split("connections_left=").nth(1)?.trim().parse().ok())
        .collect();
    assert!(left.len() >= 2, "{left:?}: {}", ended.stderr);
    assert!(left.is_sorted_by(|a, b| a >= b) && left[0] > 0 && left[0] <= 40, "{left:?}");
}

#[test]
fn a_request_that_is_under_way_is_served_or_refused_but_not_cut() {
    let server = Server::start_shards(2, &["--drain-window", "6s"]);
    let mut half: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = Client::open_socket(server.data).expect("connect");
            client.send_raw(b"GET /sub/a HTTP/1.1\r\nHost: 127.0.0.1\r\n").expect("send");
            client
        })
        .collect();
    let mut never = Client::open_socket(server.data).expect("connect");
    server.wait_metric("corecast_sockets", &[], |sockets| sockets >= 9.0);
    server.signal(SIGTERM);
    wait_for("/ready to turn 503", || (server.get("/ready").status == 503).then_some(()));
    let rest = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for client in &mut half {
        client.send_raw(rest.as_bytes()).expect("send");
        let response = client.read_response().expect("an answer");
        // 503 only if this machine took all of the window, and 2 s beyond it, to get here.
        assert!(matches!(response.status, 101 | 503), "{response:?}");
        if response.status == 101 {
            client.expect_closed(1012);
        }
    }
    assert_eq!(never.read_response().expect("an answer").status, 503);
    drop(never);
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let server = Server::start_shards(2, &["--drain-window", "1h"]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", 10);
    server.signal(SIGTERM);
    wait_for("/ready to turn 503", || (server.get("/ready").status == 503).then_some(()));
    swarm.read_for(Duration::from_millis(100));
    server.signal(SIGTERM);
    swarm.read_until("the closes", |members| members.iter().all(|member| member.gone));
    assert!(swarm.members.iter().all(|member| matches!(member.close, Some((1012, _)))));
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
}

/// Clients that do not answer get a second, those that have not sent all of their request two.
#[test]
fn silent_clients_hold_a_drain_up_for_little() {
    for (half_sent, grace) in [(false, Duration::from_secs(1)), (true, Duration::from_secs(2))] {
        let server = Server::start_shards(2, &["--drain-window", "0s"]);
        let mut mute: Vec<Client> = (0..10).map(|_| server.connect("/sub/a")).collect();
        let mut half = half_sent.then(|| {
            let mut client = Client::open_socket(server.data).expect("connect");
            client.send_raw(b"GET /sub/a HTTP/1.1\r\nHost: 127.0.0.1\r\n").expect("send");
            client
        });
        server.wait_metric("corecast_sockets", &[], |sockets| {
            sockets >= (mute.len() + usize::from(half_sent)) as f64
        });
        let signalled = Instant::now();
        server.signal(SIGTERM);
        assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
        let took = signalled.elapsed();
        // With room for a machine that stands still; five seconds would be the patience of every day.
        assert!(took >= grace && took < grace + Duration::from_millis(2500), "{half_sent}: {took:?}");
        for client in &mut mute {
            client.expect_close(1012);
        }
        if let Some(half) = &mut half {
            assert_eq!(half.read_response().expect("an answer").status, 503);
        }
    }
}

#[test]
fn a_second_signal_waits_for_no_answer() {
    let server = Server::start_shards(2, &["--drain-window", "1h"]);
    let mut mute: Vec<Client> = (0..10).map(|_| server.connect("/sub/a")).collect();
    server.signal(SIGTERM);
    wait_for("/ready to turn 503", || (server.get("/ready").status == 503).then_some(()));
    let signalled = Instant::now();
    server.signal(SIGTERM);
    let ended = server.wait_exit(PATIENCE);
    println!("ended after {:?}", signalled.elapsed());
    assert_eq!(ended.code(), Some(0));
    // The shards have ended by themselves, and not because their time was up.
    assert!(ended.stderr.contains("all shards drained"), "{}", ended.stderr);
    mute.iter_mut().for_each(|client| drop(client.expect_close(1012)));
}
