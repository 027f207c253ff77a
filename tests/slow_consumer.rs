//! A subscriber that does not read: bounded memory, its own end, and nobody else notices.

mod support;

use std::time::{Duration, Instant};

use support::client::{Client, Event, Upgrade};
use support::frame::{self, Frame};
use support::http::Http;
use support::server::Server;
use support::swarm::Swarm;
use support::{PATIENCE, wait_for};

const OTHERS: usize = 999;
const MESSAGE_BYTES: usize = 1000;

/// A message that carries its number and the microsecond of its publishing.
fn message(number: usize, epoch: Instant) -> Vec<u8> {
    let mut text = format!("{number:>8} {:>12} ", epoch.elapsed().as_micros());
    text += &"x".repeat(MESSAGE_BYTES - text.len());
    text.into_bytes()
}

/// Publishes messages one at a time, each once the swarm has the one before; returns the median latency.
fn publish_and_measure(
    swarm: &mut Swarm,
    http: &mut Http,
    epoch: Instant,
    count: usize,
    mut stop: impl FnMut() -> bool,
) -> Duration {
    let first = swarm.members[0].messages.len();
    let mut published = first;
    while published < first + count && !stop() {
        http.post("/pub/feed", &message(published, epoch)).expect("publish").expect(201);
        published += 1;
        swarm.read_messages(published);
    }
    let mut latencies = Vec::new();
    for member in &swarm.members {
        for (at, received) in member.messages.iter().enumerate().skip(first) {
            let mut fields = received.text().split_whitespace();
            let number: usize = fields.next().and_then(|field| field.parse().ok()).expect("a number");
            assert_eq!((number, received.len), (at, MESSAGE_BYTES), "a message is missing or out of order");
            let sent: u64 = fields.next().and_then(|field| field.parse().ok()).expect("a time");
            latencies.push((received.at - epoch).saturating_sub(Duration::from_micros(sent)));
        }
    }
    latencies.sort();
    latencies[latencies.len() / 2]
}

#[test]
fn one_that_never_reads_is_closed_and_999_others_do_not_notice() {
    let server = Server::start_shards(2, &["--send-queue", "64KiB"]);
    let mut swarm = Swarm::connect(server.data, "/sub/feed", OTHERS);
    let mut http = server.http();
    let epoch = Instant::now();
    let alone = publish_and_measure(&mut swarm, &mut http, epoch, 100, || false);
    let memory_before = server.resident_bytes();

    let mut slow = Client::connect_narrow(server.data, "/sub/feed");
    // Two pauses a second for the metrics: a scrape is no part of what is measured.
    let mut next_look = Instant::now();
    let beside_slow = publish_and_measure(&mut swarm, &mut http, epoch, 3000, || {
        if Instant::now() < next_look {
            return false;
        }
        next_look = Instant::now() + Duration::from_millis(500);
        server.metrics().sum("corecast_slow_consumers_total", &[]) > 0.0
    });
    server.expect_metric("corecast_slow_consumers_total", &[], 1.0);
    let grown = server.resident_bytes().saturating_sub(memory_before);
    assert!(grown < 16 << 20, "one slow consumer with a queue of 64 KiB cost {grown} bytes");
    // Whoever waits for the slow one waits until it is closed. What is less than that may be the machine.
    assert!(
        beside_slow < alone * 4 + Duration::from_millis(200),
        "the others' median latency went from {alone:?} to {beside_slow:?}"
    );
    let after = publish_and_measure(&mut swarm, &mut http, epoch, 20, || false);
    println!("medians: {alone:?} alone, {beside_slow:?} beside the slow one, {after:?} after");

    // What the slow one finds when it comes back: a beginning without a gap, then the reason, if it fitted.
    let read = slow_readers_messages(&mut slow);
    assert!(read.last_frame_was_close || read.ended, "neither closed nor dropped");
    server.wait_connections(OTHERS);
    server.expect_metric("corecast_slow_consumers_total", &[], 1.0);
    swarm.pump(Duration::ZERO);
    assert!(swarm.members.iter().all(|member| !member.gone), "a healthy subscriber was closed");
}

#[derive(Debug, Default)]
struct Read {
    messages: usize,
    last_frame_was_close: bool,
    ended: bool,
}

/// Reads all that comes: messages numbered without a gap, then 1008 or nothing, then the end.
fn slow_readers_messages(slow: &mut Client) -> Read {
    let mut read = Read::default();
    let mut last = None;
    loop {
        match slow.event(PATIENCE) {
            Event::Gone(_) => {
                read.ended = true;
                return read;
            }
            Event::Nothing => return read,
            Event::Frame(frame) if frame.opcode == frame::CLOSE => {
                let (code, reason) = frame.close_code().expect("a close without a code");
                assert_eq!((code, reason.as_str()), (1008, "slow consumer"));
                read.last_frame_was_close = true;
            }
            Event::Frame(frame) => {
                assert!(!read.last_frame_was_close, "data after the close: {frame:?}");
                let text = String::from_utf8(frame.payload).expect("text");
                let number: usize = text[..8].trim().parse().expect("a number");
                if let Some(last) = last {
                    assert_eq!(number, last + 1, "a gap in what a slow consumer got");
                }
                last = Some(number);
                read.messages += 1;
            }
        }
    }
}

#[test]
fn a_slow_consumer_that_reads_again_is_told_why() {
    let server = Server::start_shards(2, &["--send-queue", "32KiB"]);
    let before = server.holdings();
    let mut slow = Client::connect_narrow(server.data, "/sub/feed");
    let mut http = server.http();
    let epoch = Instant::now();
    for number in 0..2000 {
        let answer = http.post("/pub/feed", &message(number, epoch)).expect("publish");
        if answer.status == 202 {
            break; // no subscriber any more
        }
    }
    server.wait_metric("corecast_slow_consumers_total", &[], |count| count == 1.0);
    let read = slow_readers_messages(&mut slow);
    assert!(read.messages > 10 && read.last_frame_was_close && read.ended, "{read:?}");
    server.wait_metric("corecast_connections_closed_total", &[("code", "1008")], |count| count == 1.0);
    drop((slow, http));
    server.expect_holdings(&before);
}

#[test]
fn one_that_never_reads_and_never_ends_is_dropped_at_last() {
    let server = Server::start_shards(2, &["--send-queue", "32KiB"]);
    let before = server.holdings();
    let _slow = Client::connect_narrow(server.data, "/sub/feed");
    let mut http = server.http();
    let epoch = Instant::now();
    for number in 0..2000 {
        if http.post("/pub/feed", &message(number, epoch)).expect("publish").status == 202 {
            break;
        }
    }
    drop(http);
    // The client still holds its side open and reads nothing; the server's side must end all the same.
    server.expect_holdings(&before);
}

/// The end of one has what is under way to the others finished first, which must not reach its own full queue.
#[test]
fn slow_consumers_that_leave_end_once() {
    let server = Server::start_shards(1, &["--send-queue", "64KiB"]);
    let mut swarm = Swarm::connect(server.data, "/sub/feed", 200);
    let mut http = server.http();
    let epoch = Instant::now();
    let mut published = 0;
    for round in 0..12 {
        let slow: Vec<_> = (0..20).map(|_| Client::connect_narrow(server.data, "/sub/feed")).collect();
        // Until the queues are about to be full: each round at another place.
        let narrow_queues = 20.0 * f64::from(48 * 1024 + 1300 * round);
        let mut looks = 0;
        while server.metrics().sum("corecast_send_queue_bytes", &[]) < narrow_queues && looks < 400 {
            for _ in 0..4 {
                http.post("/pub/feed", &message(published, epoch)).expect("publish").expect(201);
                published += 1;
            }
            looks += 1;
        }
        let mut leaving = slow.into_iter();
        while let Some(client) = leaving.next() {
            client.reset();
            if let Some(client) = leaving.next() {
                client.end_sending();
            }
            http.post("/pub/feed", &message(published, epoch)).expect("publish").expect(201);
            published += 1;
        }
        swarm.read_messages(published);
    }
    server.wait_connections(200);
    let metrics = server.metrics();
    let total = |name: &str| metrics.sum(name, &[]);
    assert_eq!(total("corecast_connections_opened_total"), 440.0);
    assert_eq!(total("corecast_connections_closed_total"), 240.0, "one that has ended has ended once");
}

#[test]
fn a_client_that_reads_slowly_but_in_time_loses_nothing() {
    let server = Server::start_shards(2, &["--send-queue", "4MiB"]);
    let mut slow = Client::connect_narrow(server.data, "/sub/feed");
    let mut http = server.http();
    let epoch = Instant::now();
    for number in 0..1000 {
        http.post("/pub/feed", &message(number, epoch)).expect("publish").expect(201);
    }
    server.wait_metric("corecast_send_queue_bytes", &[], |queued| queued > 100_000.0);
    for number in 0..1000 {
        let text = String::from_utf8(slow.message().payload).expect("text");
        assert_eq!(text[..8].trim(), number.to_string());
    }
    slow.expect_alive();
    server.wait_metric("corecast_send_queue_bytes", &[], |queued| queued == 0.0);
    assert_eq!(server.metrics().sum("corecast_slow_consumers_total", &[]), 0.0);
}

/// Sends to `/echo` and never reads, until the server has closed the connection and given it up; calls `meanwhile`
/// after each 64 messages.
fn flood_the_echo(server: &Server, mut meanwhile: impl FnMut()) -> Client {
    let mut flooder = Client::connect_narrow(server.data, "/echo");
    let chunk: Vec<u8> = (0..64).flat_map(|_| Frame::binary(vec![1; 1000]).masked()).collect();
    for _ in 0..1000 {
        if flooder.send_raw(&chunk).is_err() {
            break;
        }
        meanwhile();
    }
    flooder
}

#[test]
fn an_echo_client_that_never_reads_does_not_fill_the_memory() {
    let server = Server::start(&["--echo", "--send-queue", "64KiB"]);
    let before = server.holdings();
    let mut bystander = server.connect("/echo");
    let memory_before = server.resident_bytes();
    let flooder = flood_the_echo(&server, || bystander.expect_alive());
    server.expect_metric("corecast_slow_consumers_total", &[], 1.0);
    let grown = server.resident_bytes().saturating_sub(memory_before);
    assert!(grown < 16 << 20, "a flooder cost {grown} bytes");
    bystander.expect_alive();
    drop((flooder, bystander));
    server.expect_holdings(&before);
}

/// How many messages were dropped of so many that were published to one subscriber. All have come to its queue, or to
/// nothing, before it reads: else the queue could empty in between and fill twice.
#[track_caller]
fn dropped_of(server: &Server, published: usize) -> usize {
    server.expect_metric("corecast_deliveries_total", &[], published as f64);
    let dropped = server.metrics().sum("corecast_deliveries_dropped_total", &[("reason", "slow_consumer")]);
    assert!(dropped > 0.0, "the test did not fill the queue");
    dropped as usize
}

/// The number of the next message.
#[track_caller]
fn next_number(client: &mut Client) -> usize {
    let text = String::from_utf8(client.message().payload).expect("text");
    text[..8].trim().parse().expect("a number")
}

#[test]
fn policy_drop_loses_the_newest_counts_it_and_keeps_the_connection() {
    let server = Server::start_shards(2, &["--send-queue", "64KiB", "--slow-consumer", "drop"]);
    let mut slow = Client::connect_narrow(server.data, "/sub/feed");
    let mut http = server.http();
    let epoch = Instant::now();
    for number in 0..1000 {
        http.post("/pub/feed", &message(number, epoch)).expect("publish").expect(201);
    }
    let dropped = dropped_of(&server, 1000);
    // Each message is delivered or counted as dropped. That no other comes shows below.
    let numbers: Vec<usize> = (0..1000 - dropped).map(|_| next_number(&mut slow)).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order");
    assert_eq!(numbers[..100], (0..100).collect::<Vec<_>>(), "the oldest were not the ones that were kept");
    // Not for each message. More than once where the kernel took all that was queued in between.
    let met = server.metrics().sum("corecast_slow_consumers_total", &[]);
    assert!(met >= 1.0 && met <= dropped as f64 / 4.0, "{dropped} dropped, at the limit {met} times");
    server.publish("feed", "after the flood");
    slow.expect_text("after the flood");
}

#[test]
fn a_client_that_can_resume_is_told_ahead_of_what_follows_a_drop() {
    let server = Server::start_shards(2, &["--send-queue", "64KiB", "--slow-consumer", "drop"]);
    let mut http = server.http();
    for (path, with_ids) in [("/sub/plain?notice=true", false), ("/sub/ids", true)] {
        let topic = &path[5..].split('?').next().expect("a topic");
        let mut upgrade = Upgrade::to(path);
        if with_ids {
            upgrade = upgrade.with("Sec-WebSocket-Protocol", "ws+meta.nchan");
        }
        let mut slow = Client::connect_narrow_with(server.data, &upgrade);
        if !with_ids {
            assert!(slow.message().payload.starts_with(b"{\"recovered\":false"), "where it begins");
        }
        // What follows the last offset that the client knows of: a message, or a notice of what it missed.
        let (mut last, mut gaps, mut published) = (0_u64, 0, 0);
        let epoch = Instant::now();
        for _ in 0..3 {
            for _ in 0..400 {
                published += 1;
                http.post(&format!("/pub/{topic}"), &message(published, epoch)).expect("publish").expect(201);
            }
            while last < published as u64 {
                let text = String::from_utf8(slow.message().payload).expect("text");
                let text = if with_ids { text.split_once("\n\n").expect("a head").1 } else { &text };
                if text.starts_with('{') {
                    let notice: serde_json::Value = serde_json::from_str(text).expect("a notice");
                    assert_eq!((&notice["recovered"], &notice["topic"]), (&false.into(), &(*topic).into()));
                    let offset = notice["offset"].as_u64().expect("an offset");
                    assert!(offset > last, "{notice} after {last}");
                    (last, gaps) = (offset, gaps + 1);
                } else {
                    let number: u64 = text[..8].trim().parse().expect("a number");
                    assert_eq!(number, last + 1, "a gap without a word");
                    last = number;
                }
            }
        }
        assert!(gaps > 0, "the test did not fill the queue");
        slow.expect_alive();
    }
    // One that has not asked for its place gets nothing but messages.
    let before = server.metrics().sum("corecast_deliveries_total", &[]);
    let mut slow = Client::connect_narrow(server.data, "/sub/other");
    let epoch = Instant::now();
    (0..400).for_each(|number| drop(http.post("/pub/other", &message(number, epoch)).expect("publish")));
    server.expect_metric("corecast_deliveries_total", &[], before + 400.0);
    wait_for("the queue to be empty", || {
        while let Event::Frame(frame) = slow.event(Duration::from_millis(1)) {
            assert!(!frame.payload.starts_with(b"{"));
        }
        (server.metrics().sum("corecast_send_queue_bytes", &[]) == 0.0).then_some(())
    });
}

#[test]
fn policy_latest_keeps_the_newest_of_each_topic() {
    let server = Server::start_shards(2, &["--send-queue", "64KiB", "--slow-consumer", "latest"]);
    let mut slow = Client::connect_narrow(server.data, "/sub/feed,other");
    let mut http = server.http();
    let epoch = Instant::now();
    for number in 0..1000 {
        http.post("/pub/feed", &message(number, epoch)).expect("publish").expect(201);
        if number == 500 {
            http.post("/pub/other", &message(123_456, epoch)).expect("publish").expect(201);
        }
    }
    let dropped = dropped_of(&server, 1001);
    // Each message is delivered or counted as dropped. That no other comes shows below.
    let (others, numbers): (Vec<usize>, Vec<usize>) =
        (0..1001 - dropped).map(|_| next_number(&mut slow)).partition(|&number| number == 123_456);
    assert_eq!(numbers.last(), Some(&999), "the newest message was lost");
    assert_eq!(others.len(), 1, "the newest of the other topic was lost");
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order");
    slow.expect_alive();
    server.wait_metric("corecast_send_queue_bytes", &[], |queued| queued == 0.0);
}

#[test]
fn what_is_meant_for_one_connection_alone_is_never_dropped() {
    for policy in ["drop", "latest"] {
        let flags = ["--echo", "--send-queue", "64KiB", "--slow-consumer", policy];
        let server = Server::start_shards(1, &flags);
        let _flooder = flood_the_echo(&server, || {});
        let closed = [("code", "1008")];
        server.expect_metric("corecast_connections_closed_total", &closed, 1.0);
        server.expect_metric("corecast_slow_consumers_total", &[], 1.0);
    }
}

/// Publishes to a subscriber that does not read, and has it ping until its queue of 64 KiB, in which no other message fits,
/// has no room for pongs either. Returns how many messages and pings there were.
fn fill_its_queue(server: &Server, slow: &mut Client) -> (usize, usize) {
    let mut http = server.http();
    let epoch = Instant::now();
    let (mut messages, mut pings) = (0, 0);
    // 63 messages with their headers, and their places in the queue, leave no room for another.
    while server.metrics().sum("corecast_send_queue_bytes", &[]) < 62.0 * 1004.0 {
        slow.send(&Frame::new(frame::PONG, "unasked"));
        http.post("/pub/feed", &message(messages, epoch)).expect("publish").expect(201);
        messages += 1;
        server.expect_metric("corecast_deliveries_total", &[], messages as f64);
    }
    // Its socket may still take some of them.
    while server.metrics().sum("corecast_pongs_left_out_total", &[]) < 50.0 {
        for _ in 0..20 {
            slow.send(&Frame::new(frame::PING, numbered(pings)));
            pings += 1;
        }
    }
    (messages, pings)
}

/// The longest payload of a ping, with its number.
fn numbered(ping: usize) -> Vec<u8> {
    format!("{ping:0>125}").into_bytes()
}

#[test]
fn pings_and_pongs_have_a_place_in_a_full_queue() {
    for policy in ["close", "drop", "latest"] {
        let flags = ["--send-queue", "64KiB", "--slow-consumer", policy, "--keepalive", "2s"];
        let server = Server::start_shards(1, &flags);
        let mut slow = Client::connect_narrow(server.data, "/sub/feed");
        slow.shows_pings = true;
        let (messages, pinged) = fill_its_queue(&server, &mut slow);
        // Longer than an interval: the server asks, too.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            slow.send(&Frame::new(frame::PONG, "unasked"));
            std::thread::sleep(Duration::from_millis(50));
        }
        let (mut numbers, mut pongs, mut pings, mut asked) = (0, Vec::new(), 0, false);
        let last_word = b"anything left?";
        while pongs.last().is_none_or(|pong| pong != last_word) {
            match slow.frame() {
                frame if frame.opcode == frame::PING => pings += 1,
                frame if frame.opcode == frame::PONG => pongs.push(frame.payload),
                frame => {
                    let text = String::from_utf8(frame.payload).expect("text");
                    assert_eq!(text[..8].trim(), numbers.to_string(), "{policy}: a message is missing");
                    numbers += 1;
                }
            }
            if numbers == messages && pings > 0 && !std::mem::replace(&mut asked, true) {
                slow.send(&Frame::new(frame::PING, *last_word));
            }
        }
        pongs.pop();
        assert!(pongs.contains(&numbered(pinged - 1)), "{policy}: the latest ping is not answered");
        let left_out = server.metrics().sum("corecast_pongs_left_out_total", &[]);
        assert_eq!(pongs.len(), pinged - left_out as usize, "{policy}: each ping is answered or counted");
        let metrics = server.metrics();
        for name in ["corecast_slow_consumers_total", "corecast_connections_closed_total"] {
            assert_eq!(metrics.sum(name, &[]), 0.0, "{policy}: {name}");
        }
    }
}

#[test]
fn a_client_with_a_full_queue_is_closed_with_the_code_that_was_asked_for() {
    for policy in ["close", "drop", "latest"] {
        let flags = ["--send-queue", "64KiB", "--slow-consumer", policy];
        let server = Server::start_shards(1, &flags);
        let mut slow = Client::connect_narrow(server.data, "/sub/feed");
        let (messages, _) = fill_its_queue(&server, &mut slow);
        let answer = server.http().request("DELETE", "/pub/feed", &[], b"").expect("an answer");
        answer.expect(204);
        server.expect_metric("corecast_subscriptions", &[], 0.0);
        let mut numbers = 0;
        let close = loop {
            match slow.frame() {
                frame if frame.opcode == frame::PONG => {}
                frame if frame.opcode == frame::CLOSE => break frame.close_code(),
                _ => numbers += 1,
            }
        };
        assert_eq!((close.map(|(code, _)| code), numbers), (Some(1000), messages), "policy {policy}");
        slow.send(&Frame::close(1000, ""));
        slow.expect_gone();
        server.expect_metric("corecast_connections_closed_total", &[("code", "1000")], 1.0);
    }
}
