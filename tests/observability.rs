//! What comes with the server to watch it: the dashboard and the alerts name nothing that it does not expose; the
//! live page and its figures are served as promised.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use support::metrics::{Metrics, Sample};
use support::server::Server;
use support::wait_for;

/// Labels that Prometheus adds to what it scrapes.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/observability").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The texts under a key, wherever they are.
fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == key => found.push(text),
                    field => texts(field, key, found),
                }
            }
        }
        _ => {}
    }
}

/// A label and the values that it is compared with.
type Matcher<'a> = (&'a str, Vec<&'a str>);

/// The metrics that an expression names, each with its matchers.
fn selectors(expression: &str) -> Vec<(&str, Vec<Matcher<'_>>)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("corecast_") {
        let text = &expression[at..];
        let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let (name, rest) = text.split_at(end.unwrap_or(text.len()));
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(inside, _)| inside);
        let matchers = matchers.unwrap_or_default().split(',').filter(|matcher| !matcher.is_empty());
        let matchers = matchers.map(|matcher| {
            let (label, value) = matcher.split_once('=').expect("a matcher");
            let value = value.trim_start_matches('~').trim_matches('"');
            (label.trim_end_matches('!').trim(), value.split('|').collect())
        });
        found.push((name, matchers.collect()));
    }
    found
}

/// Labels by which an expression groups.
fn grouped_by(expression: &str) -> impl Iterator<Item = &str> {
    let groups = expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
    groups.flat_map(|labels| labels.split(',')).map(str::trim)
}

/// Panics unless the server exposes what an expression asks for.
#[track_caller]
fn check_expression(metrics: &Metrics, expression: &str) {
    let mut labels = BTreeSet::from(TARGET_LABELS.map(str::to_owned));
    let named = selectors(expression);
    for (name, matchers) in &named {
        let samples: Vec<&Sample> = metrics.matching(name, &[]).collect();
        assert!(!samples.is_empty(), "there is no {name}: {expression}");
        labels.extend(samples.iter().flat_map(|sample| sample.labels.keys().cloned()));
        for (label, values) in matchers.iter().filter(|(label, _)| !TARGET_LABELS.contains(label)) {
            let known: BTreeSet<&str> =
                samples.iter().filter_map(|sample| Some(sample.labels.get(*label)?.as_str())).collect();
            for value in values {
                assert!(
                    known.contains(value),
                    "{name} has no {label}={value:?}, but {known:?}: {expression}"
                );
            }
        }
    }
    for label in grouped_by(expression) {
        assert!(labels.contains(label), "nothing has the label {label}: {expression}");
    }
}

#[test]
fn the_checks_see_what_they_must() {
    let expression = "sum by (core) (rate(corecast_a{job=~\"$job\",reason=~\"x|y\"}[5m])) / corecast_b";
    let expected = vec![
        ("corecast_a", vec![("job", vec!["$job"]), ("reason", vec!["x", "y"])]),
        ("corecast_b", Vec::new()),
    ];
    assert_eq!(selectors(expression), expected);
    assert_eq!(grouped_by(expression).collect::<Vec<_>>(), ["core"]);
    let metrics = Metrics::parse("corecast_a{core=\"0\",reason=\"x\"} 1\n").unwrap();
    check_expression(&metrics, "sum by (core) (corecast_a{reason=\"x\"})");
    for wrong in ["corecast_b", "corecast_a{reason=\"y\"}", "sum by (code) (corecast_a)"] {
        let outcome = std::panic::catch_unwind(|| check_expression(&metrics, wrong));
        assert!(outcome.is_err(), "passed: {wrong}");
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let server = Server::start_shards(2, &[]);
    let metrics = server.metrics();
    let dashboard: Value = serde_json::from_str(&shipped("grafana-dashboard.json")).expect("JSON");
    let mut expressions = Vec::new();
    texts(&dashboard, "expr", &mut expressions);
    texts(&dashboard, "definition", &mut expressions);
    assert!(expressions.len() > 30, "{expressions:?}");
    for expression in &expressions {
        check_expression(&metrics, expression);
    }
    // Every metric that the server has is on it.
    let shown: BTreeSet<&str> =
        expressions.iter().flat_map(|expression| selectors(expression)).map(|(name, _)| name).collect();
    for family in metrics.types.keys() {
        assert!(shown.iter().any(|name| name.starts_with(family.as_str())), "{family} is on no panel");
    }
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has a number of its own");
}

#[test]
fn the_alerts_ask_for_what_there_is() {
    let server = Server::start_shards(2, &[]);
    let metrics = server.metrics();
    let rules: Value = serde_saphyr::from_str(&shipped("alerts.yaml")).expect("YAML");
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    let mut names = BTreeSet::new();
    for rule in &rules {
        let (name, expression) = (rule["alert"].as_str().unwrap(), rule["expr"].as_str().unwrap());
        assert!(names.insert(name), "{name} twice");
        check_expression(&metrics, expression);
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(rule["for"].as_str().is_some_and(|time| time.ends_with('m')), "{name}");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 10), "{name}: {text}");
        }
        // Labels that the texts speak of are there when the alert fires.
        let summary = rule["annotations"]["summary"].as_str().unwrap();
        for rest in summary.split("$labels.").skip(1) {
            let label: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            let kept =
                TARGET_LABELS.contains(&label.as_str()) || grouped_by(expression).any(|by| by == label);
            assert!(kept, "{name} speaks of {label}: {expression}");
        }
    }
    for name in ["Down", "FanoutSlow", "LoopStall", "SlowConsumers", "RingFull", "NearConnectionLimit"] {
        assert!(names.contains(format!("Corecast{name}").as_str()), "{name}");
    }
    assert!(names.contains("CorecastDrainingTooLong") && names.contains("CorecastKeepaliveTimeouts"));
}

#[test]
fn the_page_is_served_with_a_policy_and_loads_nothing() {
    let server = Server::start(&["--cores", "1"]);
    let page = server.get("/").expect(200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let policy = page.header("content-security-policy").expect("a policy");
    for part in ["default-src 'none'", "script-src 'sha256-", "style-src 'sha256-", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(policy.contains(&format!(" ws://*:{} ", server.data.port())), "{policy}");
    let text = page.text();
    for outside in ["src=\"", "href=\"http", "@import", "url("] {
        assert!(!text.contains(outside), "{outside}");
    }
}

#[test]
fn the_figures_of_the_page_are_those_of_the_server() {
    let server = Server::start_shards(2, &["--max-connections", "50"]);
    let mut subscriber = server.connect("/sub/a");
    server.publish("a", "one");
    subscriber.expect_text("one");
    // Topics are counted by the tick, fan-out times are up to a quarter of a second old.
    server.wait_metric("corecast_topics", &[], |count| count == 1.0);
    server.wait_metric("corecast_fanout_seconds_count", &[], |count| count == 1.0);
    // For a moment after a standstill of the whole machine it would say that the shards stand still.
    let answer = wait_for("the server to be ready", || {
        Some(server.get("/status").expect(200)).filter(|answer| answer.json()["not_ready"].is_null())
    });
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let status = answer.json();
    let cores = status["cores"].as_array().expect("cores");
    let sum = |name: &str| cores.iter().filter_map(|core| core[name].as_u64()).sum::<u64>();
    assert_eq!(cores.len(), 2);
    let sums = ["connections", "subscriptions", "deliveries", "delivery_bytes"].map(sum);
    assert_eq!(sums, [1, 1, 1, 5], "{status}");
    assert_eq!((&status["publishes"], &status["topics"]), (&json!(1), &json!(1)), "{status}");
    assert_eq!((&status["draining"], &status["not_ready"]), (&json!(false), &Value::Null), "{status}");
    assert_eq!(status["max_connections"], 50);
    assert_eq!(status["websocket"], json!([server.data.to_string()]));
    assert_eq!(status["publish_token"], false);
    let times = status["fanout_micros"].as_array().expect("times");
    assert_eq!((times.len(), &times[0][1]), (1, &json!(1)), "{status}");
    let later = server.get("/status").expect(200).json();
    assert!(later["uptime_micros"].as_u64() > status["uptime_micros"].as_u64());
    assert_eq!(later["started_unix_millis"], status["started_unix_millis"]);
}
