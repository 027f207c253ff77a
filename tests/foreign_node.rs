//! Foreign witness: node's `ws`, the most used WebSocket client outside of browsers, plays scenarios of
//! `tests/foreign/client.js`.

#[path = "foreign/program.rs"]
mod program;
mod support;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use support::server::Server;

/// node, if it is there together with `ws`; else says that the test is skipped.
fn node() -> Option<PathBuf> {
    let node = program::find(&["node", "nodejs"]);
    if node.is_none() {
        program::skip("there is no node in the PATH");
    } else if !program::installed().join("node_modules/ws").is_dir() {
        program::skip("the npm module ws is not installed: run tests/foreign/install.sh");
        return None;
    }
    node
}

/// Runs a scenario against a server with these flags.
#[track_caller]
fn play(scenario: &str, flags: &[&str]) -> Option<Value> {
    let node = node()?;
    let server = Server::start_shards(2, flags);
    let mut command = Command::new(node);
    command.arg(program::source("client.js")).env("NODE_PATH", program::installed().join("node_modules"));
    Some(program::play(command, &server, scenario))
}

/// What both echo scenarios must have echoed, in `ws`'s words for text and binary.
fn all_echoed() -> Value {
    let sizes = [0, 1, 125, 126, 65_535];
    sizes.iter().flat_map(|size| [format!("string {size}"), format!("object {size}")]).collect()
}

#[test]
fn ws_negotiates_compression_and_gets_its_echoes() {
    let Some(seen) = play("compressed", &["--echo"]) else { return };
    let extensions = seen["extensions"].as_str().expect("no extension negotiated");
    assert!(extensions.starts_with("permessage-deflate;"), "{seen}");
    assert_eq!(seen["echoed"], all_echoed(), "{seen}");
    assert_eq!(seen["close"], json!([1000, ""]), "{seen}");
    for count in ["bytesRead", "bytesWritten"] {
        assert!(
            seen[count].as_u64().expect("a count") < 10_000,
            "two messages of 64 KiB uncompressed: {seen}"
        );
    }
}

#[test]
fn ws_without_compression_gets_its_echoes() {
    let Some(seen) = play("plain", &["--echo"]) else { return };
    assert_eq!(seen["extensions"], Value::Null, "{seen}");
    assert_eq!(seen["echoed"], all_echoed(), "{seen}");
    assert!(seen["bytesRead"].as_u64().expect("a count") > 130_000, "{seen}");
}

#[test]
fn ws_gets_the_window_it_wishes() {
    let Some(seen) = play("windows", &["--echo"]) else { return };
    assert_eq!(seen["echoed"], all_echoed(), "{seen}");
    let extensions = seen["extensions"].as_str().expect("no extension negotiated");
    assert!(extensions.contains("server_max_window_bits=10"), "{seen}");
}

#[test]
fn ws_is_told_the_chosen_sub_protocol() {
    let flags = ["--echo", "--subprotocol", "first", "--subprotocol", "second"];
    let Some(seen) = play("subprotocol", &flags) else { return };
    assert_eq!(seen, json!({ "chosen": "second", "close": [1005, ""], "refused": 400 }));
}

#[test]
fn ws_sees_why_it_is_refused() {
    let Some(seen) = play("refusals", &["--echo"]) else { return };
    let expected = json!({ "/nowhere": 404, "/pubsub/a": 403, "/sub/": 400, "/sub/%ff": 400, "origin": 403 });
    assert_eq!(seen, expected);
}

#[test]
fn ws_sees_close_codes_and_reasons() {
    let Some(seen) = play("closes", &["--echo"]) else { return };
    assert_eq!(seen["byClient"], json!([4321, ""]), "{seen}");
    assert_eq!(seen["withoutCode"], json!([1005, ""]), "{seen}");
    for (name, code) in [("dataOnSub", 1008), ("tooLarge", 1009)] {
        assert_eq!(seen[name][0], code, "{seen}");
        assert_ne!(seen[name][1], "", "{name} without a reason: {seen}");
    }
}

#[test]
fn ws_and_the_server_answer_each_others_pings() {
    let Some(seen) = play("pings", &["--echo", "--keepalive", "4s"]) else { return };
    assert_eq!(seen, json!({ "pong": "are you there", "echo": "still here", "close": [1001, ""] }));
}

#[test]
fn ws_sends_fragments_with_and_without_compression() {
    let Some(seen) = play("fragments", &["--echo"]) else { return };
    assert_eq!(seen, json!(["between", "Grüße", true, "between", "Grüße", true]));
}

#[test]
fn ws_subscribers_get_what_is_published() {
    let Some(seen) = play("fanout", &["--client-publish"]) else { return };
    assert_eq!(seen["published"], json!([[201, 3], [201, 3], [202, 0], [201, 3]]), "{seen}");
    let bytes = json!({ "type": "Buffer", "data": [0, 7, 14] });
    let messages = json!(["from HTTP", bytes, "from a client", true]);
    assert_eq!(seen["received"], json!([messages, messages, messages]), "{seen}");
    assert_eq!(seen["compressed"], json!([true, false, true]), "{seen}");
}
