//! Keepalive: pings spread over the interval, and the end of peers that have fallen silent.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::client::{Client, Event};
use support::frame::{self, Frame};
use support::server::Server;
use support::swarm::Swarm;

#[test]
fn pings_are_spread_over_the_interval() {
    const CLIENTS: usize = 120;
    let (interval, flag) = (Duration::from_secs(8), "8s");
    let server = Server::start_shards(2, &["--keepalive", flag]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", CLIENTS);
    swarm.read_until("two pings each", |members| {
        if let Some(at) = members.iter().position(|member| member.gone) {
            panic!("client {at} answered its pings and was dropped");
        }
        members.iter().all(|member| member.pings.len() >= 2)
    });

    let mut all: Vec<Instant> = Vec::new();
    for (at, member) in swarm.members.iter().enumerate() {
        for pair in member.pings.windows(2) {
            // A standstill of the machine delays a ping, and not the next.
            let gap = pair[1] - pair[0];
            assert!(gap > interval / 2, "client {at} waited only {gap:?} between two pings");
        }
        all.extend(&member.pings);
    }
    // The connections were made in a burst. Were the pings one too, a tenth of an interval would hold all of one
    // turn. What a standstill of 2 s delays, comes at once: with the window a third of one turn.
    all.sort();
    let window = interval / 10;
    let most = all
        .iter()
        .enumerate()
        .map(|(first, &start)| all[first..].iter().take_while(|&&ping| ping < start + window).count());
    let most = most.max().unwrap_or(0);
    assert!(most < CLIENTS / 2, "{most} of {CLIENTS} pings within {window:?} of {interval:?}");
    assert_eq!(server.metrics().sum("corecast_keepalive_timeouts_total", &[]), 0.0);
}

#[test]
fn a_silent_peer_is_dropped_and_an_answering_one_lives() {
    const SILENT: usize = 30;
    let (interval, flag) = (Duration::from_secs(5), "5s");
    let server = Server::start_shards(2, &["--keepalive", flag]);
    let before = server.holdings();
    let mut lively = Swarm::connect(server.data, "/sub/a", 10);
    let start = Instant::now();
    let mut silent = Swarm::connect(server.data, "/sub/a", SILENT);
    silent.answers_pings = false;
    silent.read_until("the end of the silent peers", |members| {
        lively.pump(Duration::ZERO);
        members.iter().all(|member| member.gone)
    });
    for member in &silent.members {
        let lived = member.closed_at.expect("it is gone") - start;
        assert!(!member.pings.is_empty(), "dropped without having been asked");
        assert!(lived >= interval, "dropped after {lived:?}, before an interval had passed");
        // A standstill may have delayed the sight of the ping.
        let asked = member.closed_at.expect("it is gone") - member.pings[0];
        assert!(asked >= interval / 2, "had only {asked:?} to answer");
    }
    server.expect_metric("corecast_keepalive_timeouts_total", &[], SILENT as f64);
    server.wait_connections(10);
    // One whose first answer were not heard would be dropped instead of asked again.
    lively.read_until("two pings each", |members| {
        assert!(members.iter().all(|member| !member.gone), "an answering peer was dropped");
        members.iter().all(|member| member.pings.len() >= 2)
    });
    server.publish("a", "still subscribed");
    lively.read_messages(1);
    server.expect_metric("corecast_keepalive_timeouts_total", &[], SILENT as f64);
    drop(lively);
    server.expect_holdings(&before);
}

#[test]
fn a_peer_that_sends_anything_is_not_silent() {
    let server = Server::start(&["--keepalive", "4s", "--echo"]);
    let mut client = server.connect("/echo");
    client.shows_pings = true;
    let start = Instant::now();
    let mut pings = 0;
    // A silent one is dropped within two intervals.
    while start.elapsed() < Duration::from_secs(10) {
        client.send_text("I am here"); // but no pong, ever
        loop {
            match client.frame() {
                frame if frame.opcode == frame::PING => pings += 1,
                frame => break assert_eq!(frame, Frame::text("I am here")),
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
    println!("{pings} pings unanswered"); // a server may leave out pings to a peer it hears
    assert_eq!(server.metrics().sum("corecast_keepalive_timeouts_total", &[]), 0.0);
}

#[test]
fn keepalive_0_sends_no_pings_and_drops_nobody() {
    let server = Server::start(&["--keepalive", "0"]);
    let mut client = server.connect("/sub/a");
    client.shows_pings = true;
    client.expect_silence(Duration::from_secs(2));
    client.expect_alive();
}

#[test]
fn a_pong_nobody_asked_for_is_an_answer_too() {
    let server = Server::start(&["--keepalive", "4s"]);
    let mut client = server.connect("/sub/a");
    client.shows_pings = true; // and so leaves them unanswered
    let start = Instant::now();
    // A silent one is dropped within two intervals.
    while start.elapsed() < Duration::from_secs(10) {
        client.send(&Frame::new(frame::PONG, "unasked"));
        match client.event(Duration::from_millis(300)) {
            Event::Nothing => {}
            Event::Frame(frame) if frame.opcode == frame::PING => {}
            other => panic!("expected pings only, got {other:?}"),
        }
    }
}

/// Its ping waits behind what it has yet to read, but that its socket takes more shows that somebody reads.
#[test]
fn a_slow_reader_with_a_backlog_lives_until_it_stops() {
    const MESSAGE_BYTES: usize = 16 * 1024;
    let interval = Duration::from_secs(3);
    let flags = ["--keepalive", "3s", "--send-queue", "8MiB"];
    let server = Server::start_shards(1, &flags);
    let mut slow = Client::connect_narrow(server.data, "/sub/feed");
    slow.shows_pings = true; // and so leaves them unanswered
    let mut http = server.http();
    while server.metrics().sum("corecast_send_queue_bytes", &[]) < 3e6 {
        slow.send(&Frame::new(frame::PONG, "unasked"));
        http.post("/pub/feed", &[b'x'; MESSAGE_BYTES]).expect("publish").expect(201);
    }
    // A silent one is dropped within two intervals.
    let (start, mut pings) = (Instant::now(), 0);
    while start.elapsed() < 3 * interval {
        match slow.frame() {
            frame if frame.opcode == frame::PING => pings += 1,
            frame => assert_eq!((frame.opcode, frame.payload.len()), (frame::TEXT, MESSAGE_BYTES)),
        }
        thread::sleep(Duration::from_millis(200));
    }
    println!("{pings} pings unanswered");
    let metrics = server.metrics();
    assert_eq!(metrics.sum("corecast_keepalive_timeouts_total", &[]), 0.0);
    assert!(metrics.sum("corecast_send_queue_bytes", &[]) > 0.0, "the test has read all of the backlog");
    // It takes nothing any more.
    server.expect_metric("corecast_keepalive_timeouts_total", &[], 1.0);
    server.wait_connections(0);
}
