//! Foreign witness: the npm package `nchan`, the browser client of nginx's module of that name, resumes by itself.

#[path = "foreign/program.rs"]
mod program;
mod support;

use std::process::Command;

use serde_json::{Value, json};

use support::server::Server;

#[track_caller]
fn play(scenario: &str) -> Option<Value> {
    let Some(node) = program::find(&["node", "nodejs"]) else {
        program::skip("there is no node in the PATH");
        return None;
    };
    let modules = program::installed().join("node_modules");
    if !modules.join("nchan").is_dir() || !modules.join("ws").is_dir() {
        program::skip("the npm modules nchan and ws are not installed: run tests/foreign/install.sh");
        return None;
    }
    let server = Server::start_shards(2, &["--history", "10"]);
    let mut command = Command::new(node);
    command.arg(program::source("nchan.js")).env("NODE_PATH", modules);
    Some(program::play(command, &server, scenario))
}

fn message(seen: &Value, text: &str, offset: u64) -> Value {
    json!([text, format!("{}:{offset}", seen["epoch"].as_str().expect("an epoch")), "text/plain"])
}

#[test]
fn nchan_resumes_without_a_gap_after_the_network_broke() {
    let Some(seen) = play("resume") else { return };
    let expected = ["one", "two", "three", "four"].iter().zip(1..);
    let expected: Vec<Value> = expected.map(|(text, offset)| message(&seen, text, offset)).collect();
    assert_eq!(seen["messages"], json!(expected), "{seen}");
}

#[test]
fn nchan_is_told_when_it_cannot_resume() {
    let Some(seen) = play("lost") else { return };
    let epoch = seen["epoch"].as_str().expect("an epoch");
    let notice = &seen["messages"][0];
    assert_eq!(notice[2], "application/vnd.corecast.notice+json", "{seen}");
    let body: Value = serde_json::from_str(notice[0].as_str().expect("text")).expect("JSON");
    assert_eq!(body, json!({"recovered": false, "topic": "news", "epoch": epoch, "offset": 1}), "{seen}");
    assert_eq!(seen["messages"][1], message(&seen, "two", 2), "{seen}");
}
