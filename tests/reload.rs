//! SIGHUP: what changes at run time, what does not, and what happens to a bad file.

mod support;

use std::fs;
use std::path::PathBuf;

use libc::{SIGHUP, SIGTERM};

use support::client::Upgrade;
use support::http;
use support::server::{Launch, Server};
use support::sys::Cage;
use support::{PATIENCE, wait_for};

/// A configuration file that is removed again.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(name: &str, text: &str) -> ConfigFile {
        let path = std::env::temp_dir().join(format!("corecast-{}-{name}.toml", std::process::id()));
        let file = ConfigFile(path);
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(&self.0, text).expect("cannot write the configuration file");
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path that is text")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Sends SIGHUP and waits until the server has dealt with it.
fn reload(server: &Server, outcome: &str) {
    let labels = [("outcome", outcome)];
    let before = server.metrics().sum("corecast_config_reloads_total", &labels);
    server.signal(SIGHUP);
    server.wait_metric("corecast_config_reloads_total", &labels, |count| count == before + 1.0);
}

/// The status of an upgrade by a page of that origin.
fn status_from(server: &Server, origin: &str) -> u16 {
    let upgrade = Upgrade::to("/echo").header("Origin", origin);
    upgrade.send(server.data).expect("an answer").0.status
}

#[test]
fn settings_change_without_a_restart() {
    let file = ConfigFile::new(
        "change",
        "allowed-origin = ['https://old.example']\nmax-message-size = '50B'\n\
            handshake-timeout = '10m'\n",
    );
    let server = Launch::new(&["--echo", "--config", file.path(), "--cores", "2", "--oversubscribe"]).start();
    let mut stays = server.connect("/echo");
    assert_eq!(status_from(&server, "https://old.example"), 101);
    assert_eq!(status_from(&server, "https://new.example"), 403);
    server.publish("a", &"x".repeat(50));

    file.write(
        "allowed-origin = ['https://new.example']\nmax-message-size = '10B'\nmax-connections = 77\n\
         handshake-timeout = '3s'\nmax-handshake-size = '600B'\npublish-token = 'secret'\ndrain-window = '0'\n",
    );
    reload(&server, "done");
    // Shards are told by message, each in its own time: twice refused in a row could still be one of them.
    wait_for("every core to know the new origins", || {
        let refused = (0..20).all(|_| status_from(&server, "https://old.example") == 403);
        let welcome = (0..20).all(|_| status_from(&server, "https://new.example") == 101);
        (refused && welcome).then_some(())
    });
    stays.send_text(&"x".repeat(10));
    stays.expect_text(&"x".repeat(10));
    stays.send_text(&"x".repeat(11));
    stays.expect_failed(1009);
    let publish = |token: &[(&str, &str)], length: usize| {
        let body = "x".repeat(length);
        http::once(server.control(), "POST", "/pub/a", token, body.as_bytes()).expect("an answer").status
    };
    let token = [("Authorization", "Bearer secret")];
    assert_eq!((publish(&[], 1), publish(&token, 11), publish(&token, 10)), (401, 413, 202));
    server.expect_metric("corecast_max_connections", &[], 77.0);
    let long = Upgrade::to("/echo").header("X-Long", &"x".repeat(700)).refused(server.data);
    assert_eq!(long.status, 431);
    let mut mute = support::client::Client::open_socket(server.data).expect("connect");
    mute.expect_gone(); // after 3 s, not after the 10 min of the start
    let last = server.connect("/sub/a");
    server.signal(SIGTERM);
    let ended = server.wait_exit(PATIENCE);
    assert!(ended.stderr.contains("window_millis=0"), "{}", ended.stderr);
    drop(last);
}

#[test]
fn more_connections_than_open_files_is_neither_said_nor_tried() {
    let file = ConfigFile::new("descriptors", "max-connections = 5000\n");
    let cage = Cage { descriptors: Some(300), ..Cage::default() };
    let flags = ["--config", file.path(), "--cores", "1", "--drain-window", "0"];
    let server = Launch::new(&flags).cage(cage).start();
    // 300 less 64 of the process and 16 of its shard.
    server.expect_metric("corecast_max_connections", &[], 220.0);
    let status = http::once(server.control(), "GET", "/status", &[], b"").expect("status");
    assert!(status.text().contains("\"max_connections\":220,"), "{}", status.text());

    file.write("max-connections = 20\n");
    reload(&server, "done");
    server.expect_metric("corecast_max_connections", &[], 20.0);
    file.write("max-connections = 6000\n");
    reload(&server, "done");
    server.expect_metric("corecast_max_connections", &[], 220.0);

    let mut held = Vec::new();
    let refused =
        wait_for("a refusal", || match Upgrade::to("/sub/a").send(server.data).expect("no answer") {
            (response, client) if response.status == 101 => {
                held.push(client);
                None
            }
            (response, _) => Some(response),
        });
    assert_eq!((refused.status, held.len()), (503, 220));
    server.wait_status("/ready", 503);
    drop(held);
    server.signal(SIGTERM);
    let ended = server.wait_exit(PATIENCE);
    assert!(ended.stdout.contains("Limit      220 connections"), "{}", ended.stdout);
    for wanted in ["--max-connections 5000 does not fit", "--max-connections 6000 does not fit"] {
        let line = ended.stderr.lines().find(|line| line.contains(wanted)).unwrap_or_default();
        assert!(
            ["room for 220", "ulimit -Hn", "LimitNOFILE"].iter().all(|word| line.contains(word)),
            "{line}"
        );
    }
    assert!(!ended.stderr.contains("--max-connections 20 "), "{}", ended.stderr);
}

#[test]
fn addresses_are_denied_and_allowed_again() {
    let file = ConfigFile::new("deny", "deny-ip = ['192.0.2.0/24', '127.0.0.0/8']\n");
    let server = Launch::new(&["--config", file.path()]).start();
    let status = || Upgrade::to("/sub/a").send(server.data).map(|(response, _)| response.status);
    assert!(status().is_err(), "cut without an answer");
    server.wait_metric("corecast_handshakes_rejected_total", &[("reason", "address")], |count| count >= 1.0);
    file.write("deny-ip = []\n");
    reload(&server, "done");
    let mut client = server.connect("/sub/a");
    file.write("deny-ip = ['127.0.0.1']\n");
    reload(&server, "done");
    assert!(status().is_err(), "cut without an answer");
    client.expect_alive();
}

#[test]
fn flags_and_environment_still_beat_the_file() {
    let file = ConfigFile::new("precedence", "max-connections = 5\nmax-message-size = '5B'\n");
    let server = Launch::new(&["--config", file.path(), "--max-connections", "50"])
        .env("CORECAST_MAX_MESSAGE_SIZE", "50B")
        .start();
    file.write("max-connections = 6\nmax-message-size = '6B'\n");
    reload(&server, "done");
    server.expect_metric("corecast_max_connections", &[], 50.0);
    server.publish("a", &"x".repeat(50));
    assert!(server.stderr().contains("nothing changed"), "{}", server.stderr());
}

#[test]
fn what_needs_a_restart_is_named_and_stays() {
    let file = ConfigFile::new("restart", "echo = false\n");
    let server = Launch::new(&["--config", file.path()]).start();
    file.write("echo = true\nkeepalive = '5s'\nsend-queue = '2MiB'\n");
    reload(&server, "done");
    let log = wait_for("the log", || Some(server.stderr()).filter(|log| log.contains("changed: send-queue")));
    let warning = log.lines().find(|line| line.contains("WARN") && line.contains("restart"));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {log}"));
    assert!(warning.contains("echo, keepalive") && !warning.contains("listen"), "{warning}");
    assert_eq!(Upgrade::to("/echo").refused(server.data).status, 404);
}

#[test]
fn a_bad_file_changes_nothing_and_is_one_line() {
    let file = ConfigFile::new("bad", "max-message-size = '50B'\n");
    let server = Launch::new(&["--config", file.path()]).start();
    for (text, word) in [
        ("max-message-size = '10B'\nno-such-key = 1\n", "no-such-key"),
        ("max-message-size = '10B'\ndeny-ip = ['10.0.0.0/99']\n", "10.0.0.0/99"),
        ("max-message-size = '10B'\nallowed-origin = ['nonsense']\n", "nonsense"),
        ("max-message-size = '10B'\nkeepalive = \n", "keepalive"),
    ] {
        file.write(text);
        reload(&server, "failed");
        let error = wait_for("the error", || {
            let log = server.stderr();
            log.lines().find(|line| line.contains("ERROR") && line.contains(word)).map(str::to_owned)
        });
        assert!(error.contains(file.path()) || word == "nonsense", "{error}");
        server.publish("a", &"x".repeat(50));
    }
    fs::remove_file(&file.0).expect("remove");
    reload(&server, "failed");
    // The log is written by a thread of its own, a little later than the reload is counted.
    let errors = |log: &str| log.lines().filter(|line| line.contains("ERROR")).count();
    let log = wait_for("the last error", || Some(server.stderr()).filter(|log| errors(log) >= 5));
    assert_eq!(errors(&log), 5, "{log}");
    file.write("max-message-size = '10B'\n");
    reload(&server, "done");
    let response = http::once(server.control(), "POST", "/pub/a", &[], &[b'x'; 11]).expect("an answer");
    assert_eq!(response.status, 413);
}

#[test]
fn the_log_level_changes() {
    let file = ConfigFile::new("log", "log = 'error'\n");
    let server = Launch::new(&["--config", file.path()]).start();
    server.signal(SIGHUP);
    server.wait_metric("corecast_config_reloads_total", &[("outcome", "done")], |count| count == 1.0);
    assert!(!server.stderr().contains("SIGHUP"), "{}", server.stderr());
    file.write("log = 'info'\n");
    reload(&server, "done");
    wait_for("the log to tell of it", || server.stderr().contains("changed: log").then_some(()));
}

#[test]
fn limits_change_without_a_restart() {
    let file = ConfigFile::new("limits", "");
    let server = Launch::new(&["--echo", "--config", file.path(), "--cores", "1"]).start();
    let status = |path: &str| Upgrade::to(path).send(server.data).expect("an answer").0.status;
    let mut talker = server.connect("/echo");
    let mut held = server.connect("/sub/held");
    assert_eq!(status("/sub/a,b,c"), 101);
    server.wait_metric("corecast_topics", &[], |topics| topics == 1.0);

    file.write("max-subscriptions = 2\nmax-topics = 2\nmessage-rate = 3\n");
    reload(&server, "done");
    wait_for("the new limits", || (status("/sub/a,b,c") == 400).then_some(()));
    // The topics of connections that came in between go with them.
    wait_for("room for one topic", || (status("/sub/held,a") == 101).then_some(()));
    assert_eq!(status("/sub/a,b"), 503);
    let flood = talker.flood("x", "x");
    assert_eq!(flood.close, Some((1008, "message rate".to_owned())));
    // Three at once, and three for each second that it took.
    let most = 3 + 3 * (flood.took.as_secs() + 1);
    assert!((3..=most).contains(&flood.answers), "{flood:?}, of which {most} should pass at most");

    file.write("accept-rate = 1\nslow-consumer = 'drop'\ncompression = 'off'\n");
    reload(&server, "done");
    wait_for("new connections to be too many", || (status("/sub/held") == 503).then_some(()));
    held.expect_alive();
    file.write("compression = 'off'\n");
    reload(&server, "done");
    let offer = Upgrade::to("/sub/a,b,c").with("Sec-WebSocket-Extensions", "permessage-deflate");
    let answer = wait_for("the limits to be gone", || {
        Some(offer.send(server.data).expect("an answer").0).filter(|answer| answer.status == 101)
    });
    assert_eq!(answer.header("Sec-WebSocket-Extensions"), None);
}
