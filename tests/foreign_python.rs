//! Foreign witness: PyPI's `websockets` plays scenarios of `tests/foreign/client.py`.

#[path = "foreign/program.rs"]
mod program;
mod support;

use std::process::Command;

use serde_json::{Value, json};

use support::server::Server;

/// Runs a scenario against a server with these flags; `None` if `websockets` is missing, which is said.
#[track_caller]
fn play(scenario: &str, flags: &[&str]) -> Option<Value> {
    // The interpreter of the virtual environment finds `websockets` by itself.
    let python = program::installed().join("venv/bin/python");
    if !python.is_file() {
        program::skip("the Python package websockets is not installed: run tests/foreign/install.sh");
        return None;
    }
    let server = Server::start_shards(2, flags);
    let mut command = Command::new(python);
    command.arg("-B").arg(program::source("client.py"));
    Some(program::play(command, &server, scenario))
}

/// What both echo scenarios must have echoed, in Python's words for text and binary.
fn all_echoed() -> Value {
    let sizes = [0, 1, 125, 126, 65_535];
    sizes.iter().flat_map(|size| [format!("str {size}"), format!("bytes {size}")]).collect()
}

/// The server's answer to an offer, its parameters sorted. What window the client uses it leaves to the client: it
/// inflates all of them.
fn answer(parameters: &[&str]) -> Value {
    let always = ["client_no_context_takeover", "permessage-deflate", "server_no_context_takeover"];
    let mut all = [&always, parameters].concat();
    all.sort_unstable();
    all.into()
}

#[test]
fn websockets_negotiates_compression_and_gets_its_echoes() {
    let Some(seen) = play("compressed", &["--echo"]) else { return };
    assert_eq!(seen["echoed"], all_echoed(), "{seen}");
    assert_eq!(seen["extensions"], answer(&[]), "{seen}");
    // Only the two large ones reach the default of --compression-min.
    let large = |at| at >= 8;
    assert_eq!(seen["compressed"], (0..10).map(large).collect::<Value>(), "{seen}");
}

#[test]
fn websockets_without_compression_gets_its_echoes() {
    let Some(seen) = play("plain", &["--echo"]) else { return };
    assert_eq!(seen, json!({ "extensions": null, "echoed": all_echoed() }));
}

#[test]
fn websockets_gets_every_window_size_it_wishes() {
    let Some(seen) = play("windows", &["--echo"]) else { return };
    let expected: Value = (9..=15)
        .map(|bits| {
            let window = format!("server_max_window_bits={bits}");
            // The repetition lies 5000 bytes back.
            let small = 1 << bits > 5000;
            json!([answer(&[&window]), true, true, small])
        })
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn websockets_gets_an_answer_to_every_offer() {
    let Some(seen) = play("offers", &["--echo"]) else { return };
    let (any, window) = (answer(&[]), answer(&["server_max_window_bits=11"]));
    let expected = json!({
        "nothing": [any, 10],
        "client bits without a value": [any, 10],
        "a window that zlib does not have": [null, 10],
        "no takeover by the server": [any, 10],
        "no takeover by the client": [any, 10],
        "everything": [window, 10],
    });
    assert_eq!(seen, expected);
}

#[test]
fn websockets_is_told_the_chosen_sub_protocol() {
    let flags = ["--echo", "--subprotocol", "first", "--subprotocol", "second"];
    let Some(seen) = play("subprotocol", &flags) else { return };
    assert_eq!(seen, json!({ "chosen": "second", "refused": 400 }));
}

#[test]
fn websockets_sees_why_it_is_refused() {
    let Some(seen) = play("refusals", &["--echo"]) else { return };
    let expected = json!({ "/nowhere": 404, "/pubsub/a": 403, "/sub/": 400, "/sub/%ff": 400, "origin": 403 });
    assert_eq!(seen, expected);
}

#[test]
fn websockets_sees_close_codes_and_reasons() {
    let Some(seen) = play("closes", &["--echo"]) else { return };
    assert_eq!(seen["byClient"], json!([4321, ""]), "{seen}");
    for (name, code) in [("dataOnSub", 1008), ("tooLarge", 1009)] {
        assert_eq!(seen[name][0], code, "{seen}");
        assert_ne!(seen[name][1], "", "{name} without a reason: {seen}");
    }
}

#[test]
fn websockets_gets_a_pong() {
    let Some(seen) = play("pings", &["--echo"]) else { return };
    assert_eq!(seen, "still here");
}

#[test]
fn websockets_sends_fragments_with_and_without_compression() {
    let Some(seen) = play("fragments", &["--echo"]) else { return };
    assert_eq!(seen, json!(["Grüße", true, "Grüße", true]));
}

#[test]
fn websockets_subscribers_get_what_is_published() {
    let Some(seen) = play("fanout", &["--client-publish"]) else { return };
    assert_eq!(seen["published"], json!([[201, 3], [201, 3], [202, 0]]), "{seen}");
    let messages = json!(["from HTTP", [0, 7, 14], "from a client", true]);
    assert_eq!(seen["received"], json!([messages, messages, messages]), "{seen}");
    let only_the_large_one = json!([false, false, false, true]);
    assert_eq!(seen["compressed"], json!([only_the_large_one, only_the_large_one]), "{seen}");
}
