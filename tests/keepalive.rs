//! Keepalive: pings spread over the interval, and the end of peers that have fallen silent.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::client::Event;
use support::frame::{self, Frame};
use support::server::Server;
use support::swarm::Swarm;

#[test]
fn pings_are_spread_over_the_interval() {
    const CLIENTS: usize = 120;
    let server = Server::start_shards(2, &["--keepalive", "2s"]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", CLIENTS);
    swarm.read_for(Duration::from_millis(6500)); // three intervals and a little

    let mut all: Vec<Instant> = Vec::new();
    for (at, member) in swarm.members.iter().enumerate() {
        assert!(!member.gone, "client {at} answered its pings and was dropped");
        let count = member.pings.len();
        assert!((2..=4).contains(&count), "client {at} got {count} pings in three intervals");
        for pair in member.pings.windows(2) {
            let gap = pair[1] - pair[0];
            let range = Duration::from_millis(1000)..Duration::from_millis(3500);
            assert!(range.contains(&gap), "client {at} waited {gap:?} between two pings");
        }
        all.extend(&member.pings);
    }
    // The connections were made in a burst. Were the pings one too, a tenth of an interval would hold all.
    all.sort();
    let window = Duration::from_millis(200);
    let most = all
        .iter()
        .enumerate()
        .map(|(first, &start)| all[first..].iter().take_while(|&&ping| ping < start + window).count());
    let most = most.max().unwrap_or(0);
    assert!(most < CLIENTS / 2, "{most} of {CLIENTS} pings within {window:?} of an interval of 2 s");
    assert_eq!(server.metrics().sum("corecast_keepalive_timeouts_total", &[]), 0.0);
}

#[test]
fn a_silent_peer_is_dropped_and_an_answering_one_lives() {
    const SILENT: usize = 30;
    let interval = Duration::from_secs(1);
    let server = Server::start_shards(2, &["--keepalive", "1s"]);
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
        assert!(lived < interval * 4, "dropped only after {lived:?}");
        let asked = member.closed_at.expect("it is gone") - member.pings[0];
        assert!(asked >= interval * 7 / 10, "had only {asked:?} to answer");
    }
    server.wait_metric("corecast_keepalive_timeouts_total", &[], |count| count == SILENT as f64);
    server.wait_connections(10);
    lively.read_for(interval * 2);
    assert!(lively.members.iter().all(|member| !member.gone), "an answering peer was dropped");
    server.publish("a", "still subscribed");
    lively.read_messages(1);
    assert_eq!(server.metrics().sum("corecast_keepalive_timeouts_total", &[]), SILENT as f64);
    drop(lively);
    server.expect_holdings(&before);
}

#[test]
fn a_peer_that_sends_anything_is_not_silent() {
    let server = Server::start(&["--keepalive", "1s", "--echo"]);
    let mut client = server.connect("/echo");
    client.shows_pings = true;
    let start = Instant::now();
    let mut pings = 0;
    while start.elapsed() < Duration::from_millis(4500) {
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
    let server = Server::start(&["--keepalive", "1s"]);
    let mut client = server.connect("/sub/a");
    client.shows_pings = true; // and so leaves them unanswered
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3500) {
        client.send(&Frame::new(frame::PONG, "unasked"));
        match client.event(Duration::from_millis(300)) {
            Event::Nothing => {}
            Event::Frame(frame) if frame.opcode == frame::PING => {}
            other => panic!("expected pings only, got {other:?}"),
        }
    }
}
