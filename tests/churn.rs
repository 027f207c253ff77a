//! Subscribers that come and go all the time, and all at once, watched by the load generator: nobody misses anything.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::server::Server;

/// The load generator beside the server binary: there after a build of the workspace, else built now.
fn loadgen() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_corecast")).with_file_name("loadgen");
    if !binary.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "loadgen"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if binary.parent().is_some_and(|directory| directory.ends_with("release")) {
            build.arg("--release");
        }
        assert!(build.status().expect("cannot run cargo").success(), "cannot build loadgen");
    }
    binary
}

/// Runs the load generator against `path` of the server; its exit code and its text.
fn run(server: &Server, mode: &str, path: &str, flags: &str) -> (Option<i32>, String) {
    let mut command = Command::new(loadgen());
    command.args([mode, "--url", &format!("ws://{}{path}", server.data), "--progress", "off"]);
    let output = command.args(flags.split_whitespace()).output().expect("cannot run loadgen");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

#[test]
fn under_churn_everyone_gets_everything_once_and_in_order() {
    let server = Server::start_shards(2, &["--history", "2000", "--client-publish"]);
    let flags = "--connections 100 --topics 5 --rate 300 --churn 40 --duration 3s --timeout 30s";
    let (code, text) = run(&server, "verify", "/pubsub/churn", flags);
    assert_eq!(code, Some(0), "{text}");
    // 900 messages, each to its fifth of the subscribers.
    assert!(text.contains("expected 18,000   delivered 18,000   lost 0"), "{text}");
    assert!(server.metrics().sum("corecast_resumes_total", &[("recovered", "true")]) > 0.0, "{text}");
    assert_eq!(server.metrics().sum("corecast_resumes_total", &[("recovered", "false")]), 0.0, "{text}");

    // The same topics once more: their offsets go on, and so must the checks.
    let (code, text) =
        run(&server, "verify", "/pubsub/churn", "--connections 20 --duration 1s --timeout 30s");
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn in_a_topic_of_many_nobody_is_passed_over_when_others_come_and_go() {
    // Far more than are served in one pass, so that lists change between the parts of a round.
    let server = Server::start_shards(1, &["--history", "2000", "--client-publish"]);
    let flags = "--connections 400 --topics 1 --rate 150 --churn 100 --duration 2s --timeout 30s";
    let (code, text) = run(&server, "verify", "/pubsub/many", flags);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("expected 120,000   delivered 120,000   lost 0"), "{text}");
}

#[test]
fn what_the_history_no_longer_has_is_told_and_not_pretended() {
    let server = Server::start_shards(2, &["--history", "1", "--client-publish"]);
    let flags = "--connections 20 --topics 2 --rate 400 --churn 100 --duration 2s --timeout 5s";
    let (code, text) = run(&server, "verify", "/pubsub/short", flags);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("× failed_recovery"), "{text}");
    assert!(text.contains("duplicated 0   reordered 0   corrupted 0   foreign 0"), "{text}");
    // All that is missing was announced.
    assert!(
        text.lines().any(|line| line.trim_start().starts_with("gaps") && line.ends_with(" 0.000")),
        "{text}"
    );
}

#[test]
fn without_history_and_ids_the_order_is_checked_all_the_same() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let flags = "--plain --connections 30 --topics 3 --rate 300 --duration 1s --timeout 30s";
    let (code, text) = run(&server, "verify", "/pubsub/plain", flags);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn after_a_storm_everyone_is_back_and_receives() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let (code, text) = run(&server, "storm", "/pubsub/storm", "--connections 300 --rounds 3 --timeout 30s");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("expected 900   delivered 900   lost 0"), "{text}");
    server.wait_connections(0);
}
