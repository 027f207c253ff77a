//! The log of the server binary: levels, forms, and what becomes of a flood.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;

use support::client::{Client, Upgrade};
use support::server::Server;
use support::{PATIENCE, wait_for};

/// Refused handshakes: each is one line of one kind.
const FLOOD: u64 = 60;

#[track_caller]
fn refuse(server: &Server, times: u64) {
    for _ in 0..times {
        Upgrade::to("/nowhere").refused(server.data);
    }
}

/// Ends the server, and gives all that it said, line by line.
fn end(server: Server) -> Vec<String> {
    server.signal(libc::SIGTERM);
    let finished = server.wait_exit(PATIENCE);
    assert_eq!(finished.code(), Some(0), "{finished:?}");
    finished.stderr.lines().map(str::to_owned).collect()
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn json_lines_have_stable_names() {
    let server = Server::start(&["--cores", "1", "--log-format", "json", "--drain-window", "0"]);
    refuse(&server, 1);
    let lines: Vec<Value> = end(server).iter().map(|line| parse(line)).collect();
    for line in &lines {
        let text = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
        assert!(text("timestamp").ends_with('Z') && !text("message").is_empty(), "{line}");
        assert!(text("target").starts_with("corecast"), "{line}");
        assert_eq!(text("level"), "INFO", "{line}");
    }
    let find = |message: &str| {
        lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{message}: {lines:?}"))
    };
    let refused = find("handshake refused");
    assert_eq!((&refused["reason"], &refused["status"]), (&"not_found".into(), &404.into()), "{refused}");
    assert_eq!(refused["shard"], 0);
    let peer = refused["peer"].as_str().expect("a peer");
    assert!(peer.starts_with("127."), "{refused}");
    assert_eq!(find("shard drained")["shard"], 0);
    find("received SIGTERM");
}

#[test]
fn a_refused_origin_is_told_and_forges_no_line() {
    for (format, shown) in
        [("json", r#""origin":"http://a\\xff\\\"b""#), ("text", r#"origin="http://a\\xff\\\"b""#)]
    {
        let server = Server::start(&["--cores", "1", "--log-format", format, "--drain-window", "0"]);
        let mut request = Upgrade::to("/sub/a").bytes();
        request.truncate(request.len() - 2);
        request.extend_from_slice(b"Origin: http://a\xff\"b\r\n\r\n");
        let mut client = Client::open_socket(server.data).expect("connect");
        client.send_raw(&request).expect("send");
        assert_eq!(client.read_response().expect("an answer").status, 403);
        let lines = end(server);
        let told = lines.iter().find(|line| line.contains("handshake refused")).expect("a line");
        assert!(told.contains(shown), "{told}");
    }
}

#[test]
fn a_subscriber_without_a_place_for_its_topic_is_told_of() {
    let server =
        Server::start_shards(2, &["--max-topics", "2", "--log-format", "json", "--drain-window", "0"]);
    let answers =
        (0..12).map(|n| Upgrade::to(&format!("/sub/topic-{n}")).send(server.data).expect("no answer"));
    // Those that were accepted keep their places.
    let answers: Vec<_> = answers.collect();
    let count = answers.iter().filter(|(response, _)| response.status == 503).count();
    assert!(count > 0, "each core has one place");
    let lines: Vec<Value> = end(server).iter().map(|line| parse(line)).collect();
    let told =
        lines.iter().filter(|line| line["message"] == "handshake refused" && line["reason"] == "topics");
    assert_eq!(told.count(), count, "{lines:?}");
}

#[test]
fn a_level_is_a_threshold() {
    for (level, refusals) in
        [("off", false), ("error", false), ("warn", false), ("info", true), ("trace", true)]
    {
        let server = Server::start(&["--cores", "1", "--log", level, "--drain-window", "0"]);
        refuse(&server, 1);
        let lines = end(server);
        assert_eq!(
            lines.iter().any(|line| line.contains("handshake refused")),
            refusals,
            "{level}: {lines:?}"
        );
        assert_eq!(lines.is_empty(), !refusals, "{level}: {lines:?}");
    }
}

#[test]
fn debug_tells_what_happens_to_single_connections() {
    let flags =
        ["--log", "debug", "--log-format", "json", "--handshake-timeout", "50ms", "--drain-window", "0"];
    let server = Server::start_shards(1, &flags);
    let client = server.connect("/sub/news?last=3");
    client.close(4001);
    server.wait_connections(0);
    Client::open_socket(server.data).expect("connect").expect_gone();
    let lines: Vec<Value> = end(server).iter().map(|line| parse(line)).collect();
    let find = |message: &str| {
        let mut found = lines.iter().filter(|line| line["message"] == message);
        let line = found.next().unwrap_or_else(|| panic!("{message}: {lines:?}"));
        assert_eq!((&line["level"], &line["shard"]), (&"DEBUG".into(), &0.into()), "{line}");
        assert!(found.next().is_none(), "{message} is told twice");
        line
    };
    let (opened, closed) = (find("connection opened"), find("connection closed"));
    assert_eq!(opened["path"], "/sub/news");
    assert!(opened["peer"].as_str().is_some_and(|peer| peer.starts_with("127.")), "{opened}");
    assert_eq!((&opened["peer"], &opened["connection"]), (&closed["peer"], &closed["connection"]));
    assert_eq!((&closed["code"], &closed["cause"]), (&4001.into(), &"Peer".into()), "{closed}");
    assert_eq!(find("handshake cut")["reason"], "timeout");
}

/// What a flood came to: lines of the kind, and lines that were said to be left out.
fn flood(rate: &str) -> (u64, u64, Duration) {
    let flags = ["--cores", "1", "--log-format", "json", "--log-rate", rate, "--drain-window", "0"];
    let server = Server::start(&flags);
    let start = Instant::now();
    refuse(&server, FLOOD);
    let took = start.elapsed();
    if rate != "0" {
        // It is said while the server runs, not only at its end.
        wait_for("what was left out to be said", || server.stderr().contains("\"left_out\":").then_some(()));
        let counted = server.metrics().sum("corecast_log_lines_left_out_total", &[("reason", "rate")]);
        assert!(counted > 0.0 && counted < FLOOD as f64, "{counted}");
    }
    let lines: Vec<Value> = end(server).iter().map(|line| parse(line)).collect();
    let refused = lines.iter().filter(|line| line["message"] == "handshake refused").count();
    let left_out = lines.iter().filter(|line| line["kind"] == "handshake refused");
    let left_out = left_out.map(|line| line["left_out"].as_u64().expect("a number")).sum();
    (refused as u64, left_out, took)
}

#[test]
fn a_flood_of_one_kind_is_bounded_and_nothing_is_lost_silently() {
    let (lines, left_out, took) = flood("3");
    // The flood begins and ends within a second each.
    let most = 3 * (took.as_secs() + 2);
    assert!(lines >= 3 && lines <= most, "{lines} lines in {took:?}");
    assert_eq!(lines + left_out, FLOOD, "{lines} lines, {left_out} left out");
}

#[test]
fn without_a_rate_every_line_is_there() {
    let (lines, left_out, _) = flood("0");
    assert_eq!((lines, left_out), (FLOOD, 0));
}

#[test]
fn a_slow_consumer_is_named() {
    let server = Server::start(&["--cores", "1", "--send-queue", "64KiB", "--log-format", "json"]);
    let _slow = support::client::Client::connect_narrow(server.data, "/sub/a");
    server.wait_connections(1);
    let message = "x".repeat(60_000);
    wait_for("a slow consumer", || {
        server.publish("a", &message);
        server.stderr().contains("slow consumer").then_some(())
    });
    let stderr = server.stderr();
    let line = parse(stderr.lines().find(|line| line.contains("slow consumer")).expect("seen just now"));
    assert_eq!((&line["level"], &line["shard"]), (&"WARN".into(), &0.into()), "{line}");
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.")), "{line}");
}

#[test]
fn a_reader_that_stands_still_holds_up_nobody() {
    use std::process::{Command, Stdio};
    // Nobody reads this server's stderr, a pipe that is soon full.
    let mut child = Command::new(env!("CARGO_BIN_EXE_corecast"))
        .args(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--cores", "1", "--log-rate", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cannot start the server binary");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut printed = std::io::BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut address = |prefix: &str| {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut printed, &mut line).expect("a line");
            let address = line.split(prefix).nth(1).unwrap_or_else(|| panic!("{line}"));
            address.trim().parse::<std::net::SocketAddr>().expect("an address")
        };
        let (data, control) = (address("ws://"), address("http://"));
        wait_for("lines to be left out", || {
            for _ in 0..500 {
                Upgrade::to("/nowhere").refused(data);
            }
            let metrics = support::http::once(control, "GET", "/metrics", &[], b"").expect("metrics").text();
            let metrics = support::metrics::Metrics::parse(&metrics).expect("metrics");
            let left_out = metrics.sum("corecast_log_lines_left_out_total", &[("reason", "slow_reader")]);
            (left_out > 0.0).then_some(())
        });
    }));
    let _ = child.kill();
    let _ = child.wait();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
