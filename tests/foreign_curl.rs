//! Foreign witness: `curl` publishes, looks at topics and deletes them, as the README shows it.

#[path = "foreign/program.rs"]
mod program;
mod support;

use std::process::Command;

use serde_json::{Value, json};

use support::server::Server;

/// Runs curl with these arguments; the status and the body.
#[track_caller]
fn curl(arguments: &[&str]) -> Option<(u16, String)> {
    let Some(curl) = program::find(&["curl"]) else {
        program::skip("there is no curl in the PATH");
        return None;
    };
    let mut command = Command::new(curl);
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--noproxy",
        "*",
        "--write-out",
        "\n%{http_code}",
    ]);
    let output = command.args(arguments).output().expect("curl runs");
    let stdout = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{arguments:?}: {stdout}{}", String::from_utf8_lossy(&output.stderr));
    let (body, status) = stdout.rsplit_once('\n').expect("a status");
    Some((status.parse().expect("a number"), body.to_owned()))
}

#[test]
fn curl_publishes_looks_and_deletes() {
    let server = Server::start_shards(2, &["--history", "5", "--publish-token", "secret"]);
    let control = format!("http://{}", server.control());
    let topic = format!("{control}/pub/news");
    let bearer = ["--header", "Authorization: Bearer secret"];
    let with_token = |arguments: &[&str]| curl(&[&bearer[..], arguments].concat());

    let Some((status, _)) = curl(&["--data", "hello", &topic]) else { return };
    assert_eq!(status, 401);
    let mut client = server.connect("/sub/news");
    let (status, body) = with_token(&["--data", "hello", &topic]).expect("curl");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &answer["subscribers"], &answer["offset"]), (201, &json!(1), &json!(1)));
    client.expect_text("hello");

    // Two requests on one connection, with a body that says nothing of its length before.
    let chunked = ["--header", "Transfer-Encoding: chunked", "--data-binary", "again", &topic, &topic];
    let (status, body) = with_token(&chunked).expect("curl");
    assert!(status == 201 && body.contains("\"offset\":2"), "{status} {body}");
    client.expect_text("again");
    client.expect_text("again");

    let binary = ["--header", "Content-Type: application/octet-stream", "--data-binary", "@-", &topic];
    assert_eq!(with_token(&binary).expect("curl").0, 201);
    assert!(client.message().payload.is_empty(), "nothing on standard input");

    let (status, body) = with_token(&[&topic]).expect("curl");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &answer["messages"], &answer["offset"]), (200, &json!(4), &json!(4)));
    assert_eq!(with_token(&["--request", "DELETE", &topic]).expect("curl").0, 204);
    assert_eq!(client.expect_closed(1000), "topic deleted");

    let batch = r#"[{"topic":"news","data":"a"},{"topic":"other","data_base64":"AP8="}]"#;
    let (status, body) = with_token(&["--data", batch, &format!("{control}/pub")]).expect("curl");
    assert_eq!(status, 200);
    let outcomes: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&outcomes[0]["offset"], &outcomes[1]["offset"]), (&json!(5), &json!(1)));
    let (status, body) = curl(&[&format!("{control}/metrics")]).expect("curl");
    assert!(status == 200 && body.contains("corecast_history_messages"), "{status}");
}
