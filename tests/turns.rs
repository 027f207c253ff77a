//! Turns: whatever one connection sends, the others of its core are served meanwhile.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corecast::{Component, Connection, Message, Outcome};
use flate2::{Compress, Compression, FlushCompress};

use probe::{Running, app};
use support::client::{Client, Upgrade};
use support::frame::{self, Frame, RSV1};
use support::metrics::Metrics;

/// Counts messages, answers each with so many bytes, and tells how many there were by now.
struct Counter {
    counted: Rc<Cell<u64>>,
    answer: Vec<u8>,
}

impl Component for Counter {
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        if message.as_text() == Some("how many?") {
            connection.send(&self.counted.get().to_string());
            return Ok(());
        }
        self.counted.set(self.counted.get() + 1);
        if !self.answer.is_empty() {
            connection.send(&self.answer);
        }
        Ok(())
    }
}

fn start(answer_bytes: usize) -> Running {
    let app = app()
        .cores(1)
        .control(([127, 0, 0, 1], 0).into())
        .configure(|config| config.send_queue_bytes = 256 << 20);
    Running::start(app.route("/", move || Counter { counted: Rc::default(), answer: vec![0; answer_bytes] }))
}

/// Turns that have ended early because of messages, and because of answers.
fn ended_early(server: &Running) -> [f64; 2] {
    let control = server.server.as_ref().and_then(|server| server.control_address()).expect("a control port");
    let text = support::http::once(control, "GET", "/metrics", &[], b"").expect("metrics").text();
    let metrics = Metrics::parse(&text).expect("metrics");
    ["messages", "answers"]
        .map(|reason| metrics.sum("corecast_turns_ended_early_total", &[("reason", reason)]))
}

fn how_many(client: &mut Client) -> u64 {
    client.send_text("how many?");
    String::from_utf8(client.message().payload).expect("text").parse().expect("a number")
}

/// The others are served before all the messages that one client has sent at once are.
fn expect_turns(server: &Running, flooder: &mut Client, message: &[u8], messages: u64) {
    let mut other = Client::connect(server.address, "/");
    assert_eq!(how_many(&mut other), 0);
    flooder.send_raw(&message.repeat(messages as usize)).expect("send");
    let mut between = 0;
    loop {
        match how_many(&mut other) {
            counted if counted == messages => break,
            0 => {}
            _ => between += 1,
        }
    }
    assert!(between > 0, "nobody else was served before all {messages} messages were");
}

#[test]
fn a_little_that_inflates_to_much_is_more_than_one_turn() {
    let server = start(0);
    assert_eq!(ended_early(&server), [0.0, 0.0]);
    let deflate = Upgrade::to("/").with("Sec-WebSocket-Extensions", "permessage-deflate");
    let mut flooder = deflate.accepted(server.address);
    let mut compressed = Vec::with_capacity(1024);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(&[0; 64 * 1024], &mut compressed, FlushCompress::Sync).expect("deflate");
    compressed.truncate(compressed.len() - 4);
    let bomb = Frame::new(frame::BINARY, compressed).with_rsv(RSV1).masked();
    assert!(bomb.len() < 128, "{}", bomb.len());
    expect_turns(&server, &mut flooder, &bomb, 500);
    let [messages, answers] = ended_early(&server);
    assert!(messages > 0.0 && answers == 0.0, "{messages} {answers}");
    server.end();
}

#[test]
fn a_little_that_is_answered_with_much_is_more_than_one_turn() {
    let server = start(256 << 10);
    let mut flooder = Client::connect(server.address, "/");
    expect_turns(&server, &mut flooder, &Frame::text("more").masked(), 500);
    let [messages, answers] = ended_early(&server);
    assert!(messages == 0.0 && answers > 0.0, "{messages} {answers}");
    server.end();
}

/// Messages of one byte, each seven on the wire, that one read brings.
const TURN_MESSAGES: u64 = 64 * 1024 / 7;

#[test]
fn who_sends_without_end_has_no_more_turns_than_others() {
    let server = start(0);
    let address = server.address;
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let flood = std::thread::spawn(move || {
        let (mut stream, _) = Client::connect(address, "/").into_parts();
        // Small ones: it takes less time to send them than to take them, so there are always more.
        let chunk = Frame::binary(vec![0]).masked().repeat(TURN_MESSAGES as usize);
        while !ended.load(Ordering::Relaxed) {
            stream.write_all(&chunk).expect("send");
        }
    });
    let mut other = Client::connect(server.address, "/");
    while how_many(&mut other) == 0 {}
    // This thread may be stopped between any two, so the least counts.
    let counts: Vec<u64> = (0..60).map(|_| how_many(&mut other)).collect();
    let least = counts[30..].windows(2).map(|pair| pair[1] - pair[0]).min();
    over.store(true, Ordering::Relaxed);
    flood.join().expect("the flood");
    assert!(least < Some(5 * TURN_MESSAGES), "{least:?} messages between two turns of another client");
    server.end();
}
