//! The control thread as a whole, through its port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::testing::{Conduct, EPOCH_TEXT, Rig, Told, settings};
use super::{Summary, batch};
use crate::config::PublishToken;
use crate::preflight;
use crate::topic::TopicName;

const BINARY: &str = "Content-Type: application/octet-stream\r\n";

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or(answer)
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn a_publish_reaches_the_owner_and_tells_how_it_went() {
    let rig = Rig::new(&[Conduct::Deliver(7), Conduct::Deliver(7)], settings());
    let answer = rig.client.post("/pub/a/b%20c", "", "hello");
    assert_eq!(status(&answer), "201", "{answer}");
    assert_eq!(header(&answer, "content-type"), Some("application/json"));
    let expected = format!(r#"{{"topic":"a/b c","subscribers":7,"epoch":"{EPOCH_TEXT}","offset":1}}"#);
    assert_eq!(body(&answer), expected);
    let owner = TopicName::new("a/b c").unwrap().owner(2);
    let expected = (owner, Told::Publish("a/b c".into(), b"\x81\x05hello".to_vec()));
    assert_eq!(rig.told.recv().unwrap(), expected);

    assert_eq!(status(&rig.client.post("/pub/x?y=z", BINARY, "\u{1}")), "201");
    assert_eq!(rig.told.recv().unwrap().1, Told::Publish("x".into(), b"\x82\x01\x01".to_vec()));
    rig.end();
}

#[test]
fn a_publish_without_subscribers_is_accepted() {
    let rig = Rig::new(&[Conduct::Deliver(0)], settings());
    let answer = rig.client.post("/pub/a", "", "");
    assert_eq!(status(&answer), "202");
    assert!(body(&answer).contains(r#""subscribers":0"#), "{answer}");
    rig.end();
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let mut settings = settings();
    settings.max_message_bytes = 10;
    let rig = Rig::new(&[Conduct::Deliver(1)], settings);
    assert_eq!(status(&rig.client.post("/pub/a", "", "0123456789")), "201");
    let chunked = |chunks: &str| {
        rig.client.request(&format!(
            "POST /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n{chunks}"
        ))
    };
    let origin = "Origin: http://elsewhere\r\n";
    let put = "PUT /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let cases = [
        ("413", "max-message-size", rig.client.post("/pub/a", "", "0123456789a")),
        ("413", "max-message-size", chunked("6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n")),
        ("400", "badly encoded", chunked("zz\r\n")),
        ("400", "topic is empty", rig.client.post("/pub/", "", "")),
        ("400", "topic has a character", rig.client.post("/pub/a,b", "", "")),
        ("400", "topic has a %", rig.client.post("/pub/a%2", "", "")),
        ("400", "topic is not UTF-8", rig.client.post("/pub/%FF", "", "")),
        ("403", "pages of other origins", rig.client.post("/pub/a", origin, "")),
        ("403", "pages of other origins", rig.client.post("/pub", origin, "[]")),
        ("400", "topic is empty", rig.client.get("/pub/")),
        ("400", "topic has a character", rig.client.delete("/pub/a,b", "")),
        ("403", "pages of other origins", rig.client.delete("/pub/a", origin)),
        ("404", "GET / lists", rig.client.get("/nothing")),
        ("405", "PUT is not possible", rig.client.request(put)),
        ("405", "GET is not possible", rig.client.get("/pub")),
        ("405", "POST is not possible", rig.client.post("/metrics", "", "")),
    ];
    for (code, reason, answer) in cases {
        assert_eq!(status(&answer), code, "{answer}");
        assert!(body(&answer).starts_with(r#"{"error":""#) && body(&answer).contains(reason), "{answer}");
    }
    let allowed = |answer: &str| {
        let mut methods: Vec<_> = header(answer, "allow").unwrap().split(',').map(str::to_owned).collect();
        methods.sort();
        methods
    };
    assert_eq!(allowed(&rig.client.request(put)), ["DELETE", "GET", "HEAD", "POST"]);
    assert_eq!(allowed(&rig.client.get("/pub")), ["POST"]);
    rig.end();
}

#[test]
fn a_topic_is_looked_at_and_deleted_by_its_owner() {
    let rig = Rig::new(&[Conduct::Deliver(7), Conduct::Deliver(7)], settings());
    assert_eq!(status(&rig.client.post("/pub/a/b%20c", "", "x")), "201");
    let owner = TopicName::new("a/b c").unwrap().owner(2);
    assert_eq!(rig.told.recv().unwrap().0, owner);

    let answer = rig.client.get("/pub/a/b%20c");
    assert_eq!((status(&answer), header(&answer, "content-type")), ("200", Some("application/json")));
    let expected =
        format!(r#"{{"topic":"a/b c","subscribers":7,"messages":0,"epoch":"{EPOCH_TEXT}","offset":1}}"#);
    assert_eq!(body(&answer), expected);

    let answer = rig.client.delete("/pub/a/b%20c", "");
    assert_eq!((status(&answer), body(&answer)), ("204", ""));
    assert_eq!(rig.told.recv().unwrap(), (owner, Told::Delete("a/b c".into())));
    rig.end();
}

#[test]
fn a_batch_publishes_in_order_and_tells_how_each_item_went() {
    let mut settings = settings();
    settings.max_message_bytes = 5;
    let rig = Rig::new(&[Conduct::Deliver(7)], settings);
    let batch = r#"[{"topic":"a b","data":"one"},{"topic":"a","data":"123456"},{"topic":"a,b","data":"x"},
        {"topic":"c","data_base64":"AP8="},7,{"topic":"a b","data":"two"}]"#;
    let answer = rig.client.post("/pub", "", batch);
    assert_eq!((status(&answer), header(&answer, "retry-after")), ("200", None));
    let answer: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    let outcomes = answer.as_array().unwrap();
    assert_eq!(outcomes.len(), 6);
    let published = |topic: &str, offset: u64| {
        serde_json::json!(
            {"status": 201, "topic": topic, "subscribers": 7, "epoch": EPOCH_TEXT, "offset": offset}
        )
    };
    assert_eq!(outcomes[0], published("a b", 1));
    assert_eq!(outcomes[3], published("c", 2));
    assert_eq!(outcomes[5], published("a b", 3));
    for (index, code, topic) in [(1, 413, Some("a")), (2, 400, Some("a,b")), (4, 400, None)] {
        let outcome = outcomes[index].as_object().unwrap();
        assert_eq!((&outcome["status"], outcome["topic"].as_str()), (&code.into(), topic), "{outcome:?}");
        assert!(outcome["error"].is_string() && outcome.len() == 3, "{outcome:?}");
    }
    let told = |topic: &str, frame: &[u8]| (0, Told::Publish(topic.to_owned(), frame.to_vec()));
    assert_eq!(rig.told.recv().unwrap(), told("a b", b"\x81\x03one"));
    assert_eq!(rig.told.recv().unwrap(), told("c", b"\x82\x02\x00\xFF"));
    assert_eq!(rig.told.recv().unwrap(), told("a b", b"\x81\x03two"));
    assert_eq!(body(&rig.client.post("/pub", "", "[]")), "[]");
    rig.end();
}

#[test]
fn a_batch_with_a_refused_item_asks_to_come_back() {
    let rig = Rig::new(&[Conduct::Deliver(1), Conduct::Refuse], settings());
    let topic_of = |shard: usize| {
        (0..).map(|n| format!("t{n}")).find(|name| TopicName::new(name).unwrap().owner(2) == shard).unwrap()
    };
    let (taken, refused) = (topic_of(0), topic_of(1));
    let item = |topic: &str| format!(r#"{{"topic":"{topic}","data":"x"}}"#);
    let batch = format!("[{},{},{}]", item(&refused), item(&taken), item(&refused));
    let answer = rig.client.post("/pub", "", &batch);
    assert_eq!((status(&answer), header(&answer, "retry-after")), ("200", Some("1")));
    let outcomes: Vec<serde_json::Value> = serde_json::from_str(body(&answer)).unwrap();
    let seen: Vec<_> = outcomes
        .iter()
        .map(|one| (one["status"].as_u64().unwrap(), one["topic"].as_str().unwrap()))
        .collect();
    assert_eq!(seen, [(429, refused.as_str()), (201, taken.as_str()), (429, refused.as_str())]);
    rig.end();
}

#[test]
fn a_batch_is_bounded_in_bytes_and_items() {
    let mut settings = settings();
    settings.publish_token = Some(PublishToken::new("s3cret"));
    let rig = Rig::new(&[Conduct::Deliver(1)], settings);
    let token = "Authorization: Bearer s3cret\r\n";
    let items = |count: usize| format!("[{}]", vec![r#"{"topic":"a","data":"x"}"#; count].join(","));
    assert_eq!(status(&rig.client.post("/pub", "", &items(1))), "401");
    let answer = rig.client.post("/pub", token, &items(batch::MAX_ITEMS));
    assert_eq!(status(&answer), "200");
    let outcomes: Vec<serde_json::Value> = serde_json::from_str(body(&answer)).unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        assert_eq!((&outcome["status"], &outcome["offset"]), (&201.into(), &(index + 1).into()), "{outcome}");
    }
    assert_eq!(outcomes.len(), batch::MAX_ITEMS);
    let padded = |bytes: usize| format!("[{}]", " ".repeat(bytes));
    for (code, says, answer) in [
        ("413", "at most 1024 items", rig.client.post("/pub", token, &items(batch::MAX_ITEMS + 1))),
        ("413", "the limit of a batch", rig.client.post("/pub", token, &padded(2_000_000))),
        ("400", "not a JSON array of", rig.client.post("/pub", token, &items(1)[1..])),
        ("400", "data_base64", rig.client.post("/pub", token, "")),
    ] {
        assert_eq!(status(&answer), code, "{answer}");
        assert!(body(&answer).starts_with(r#"{"error":""#) && body(&answer).contains(says), "{answer}");
    }
    assert_eq!(body(&rig.client.post("/pub", token, &padded(1_000_000))), "[]");
    rig.end();
}

#[test]
fn a_large_body_does_not_drown_its_refusal() {
    let mut settings = settings();
    settings.publish_token = Some(PublishToken::new("s3cret"));
    let rig = Rig::new(&[Conduct::Deliver(1)], settings);
    let body = "x".repeat(3_000_000);
    assert_eq!(status(&rig.client.post("/pub/a", "", &body)), "401");
    assert_eq!(status(&rig.client.post("/pub/a", "Authorization: Bearer s3cret\r\n", &body)), "413");
    // Nobody waits for a body that the client holds back.
    let head = "POST /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3000000\r\n";
    let is_prompt = || {
        let asked = Instant::now();
        let answer = rig.client.request(&format!("{head}Expect: 100-continue\r\n\r\n"));
        assert_eq!(status(&answer), "401");
        asked.elapsed() < Duration::from_secs(1)
    };
    // A machine that stands still may need another try; the time for the body is over only after 2 s, each time.
    assert!((0..10).any(|_| is_prompt()), "waits for a body");
    rig.end();
}

#[test]
fn a_client_that_asks_before_it_sends_its_body_is_told_to_go_on() {
    let rig = Rig::new(&[Conduct::Deliver(1)], settings());
    let mut stream = TcpStream::connect(rig.client.0).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "POST /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n";
    stream.write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(status(&answer), "201");
    rig.end();
}

#[test]
fn a_page_that_came_by_a_name_pointed_here_is_of_another_origin() {
    let rig = Rig::new(&[Conduct::Deliver(1)], settings());
    let ask = |host: &str, origin: &str| {
        rig.client.request(&format!(
            "POST /pub/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Origin: {origin}\r\nContent-Length: 0\r\n\r\n"
        ))
    };
    for host in ["localhost:8081", "127.0.0.1:8081", "[::1]:8081"] {
        assert_eq!(status(&ask(host, &format!("http://{host}"))), "201", "{host}");
    }
    for host in ["evil.example:8081", "192.0.2.1:8081", "localhost.evil.example:8081"] {
        assert_eq!(status(&ask(host, &format!("http://{host}"))), "403", "{host}");
    }
    rig.end();
}

#[test]
fn text_must_be_utf8_and_bytes_need_not() {
    let rig = Rig::new(&[Conduct::Deliver(1)], settings());
    for (header, code) in [("", "415"), (BINARY, "201")] {
        let mut stream = TcpStream::connect(rig.client.0).unwrap();
        let head = format!(
            "POST /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n{header}\r\n"
        );
        stream.write_all(&[head.as_bytes(), b"\xff"].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(status(&answer), code, "{answer}");
    }
    rig.end();
}

#[test]
fn a_token_is_asked_for() {
    let mut settings = settings();
    settings.publish_token = Some(PublishToken::new("s3cret"));
    let rig = Rig::new(&[Conduct::Deliver(1)], settings);
    let missing = rig.client.post("/pub/a,b", "", "");
    assert_eq!(status(&missing), "401");
    assert_eq!(header(&missing, "www-authenticate"), Some("Bearer realm=\"corecast\""));
    let wrong = rig.client.post("/pub/a", "Authorization: Bearer s3cre\r\n", "");
    assert_eq!(status(&wrong), "401");
    assert!(header(&wrong, "www-authenticate").unwrap().contains("invalid_token"));
    let right = "Authorization: Bearer s3cret\r\nOrigin: http://elsewhere\r\n";
    assert_eq!(status(&rig.client.post("/pub/a", right, "")), "201");
    assert_eq!(status(&rig.client.get("/pub/a")), "401");
    assert_eq!(status(&rig.client.delete("/pub/a", "")), "401");
    assert_eq!(status(&rig.client.delete("/pub/a", right)), "204");
    assert_eq!(status(&rig.client.get("/metrics")), "200");
    rig.end();
}

#[test]
fn full_shards_ask_to_come_back() {
    let rig = Rig::new(&[Conduct::Refuse], settings());
    let answer = rig.client.post("/pub/a", "", "x");
    assert_eq!(status(&answer), "429");
    assert_eq!(header(&answer, "retry-after"), Some("1"));
    let answer = rig.client.delete("/pub/a", "");
    assert_eq!((status(&answer), header(&answer, "retry-after")), ("429", Some("1")));
    rig.end();
}

#[test]
fn a_dead_shard_costs_a_timeout_and_not_the_port() {
    let rig = Rig::new(&[Conduct::Silent], settings());
    let client = rig.client;
    std::thread::scope(|scope| {
        let publish = scope.spawn(move || client.post("/pub/a", "", "x"));
        let looked = scope.spawn(move || client.get("/pub/a"));
        let items = vec![r#"{"topic":"a","data":"x"}"#; 300].join(",");
        let batch = scope.spawn(move || client.post("/pub", "", &format!("[{items}]")));
        let asked = Instant::now();
        let metrics = rig.client.get("/metrics");
        // On a machine that stood still for the whole timeout, nothing can be told.
        let stood_still = asked.elapsed() > Duration::from_secs(4);
        assert!(stood_still || !publish.is_finished(), "metrics wait as long as a publish");
        assert!(metrics.contains("corecast_fanout_seconds_count 0\n"), "{metrics}");
        let answer = publish.join().unwrap();
        assert_eq!(status(&answer), "503");
        assert!(answer.contains("has not answered within 5 s"), "{answer}");
        assert_eq!(status(&looked.join().unwrap()), "503");
        let batch = batch.join().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(60), "one timeout for all: {:?}", asked.elapsed());
        let outcomes: Vec<serde_json::Value> = serde_json::from_str(body(&batch)).unwrap();
        assert!(outcomes.len() == 300 && outcomes.iter().all(|outcome| outcome["status"] == 503), "{batch}");
        assert!(outcomes[299]["error"].as_str().unwrap().contains("it had no effect"), "{batch}");
    });
    let live = rig.client.get("/live");
    assert_eq!(status(&live), "503");
    assert!(body(&live).starts_with("shard 0 (CPU 10) has not ticked for"), "{live}");
    rig.handle.stop_now();
    assert_eq!(rig.join(), Summary { cut_connections: 0, undrained_shards: vec![0] });
}

#[test]
fn metrics_and_health_are_served() {
    let rig = Rig::new(&[Conduct::Deliver(1), Conduct::Deliver(1)], settings());
    let metrics = rig.client.get_until("/metrics", "corecast_fanout_seconds_bucket{le=\"0.0001\"} 2\n");
    assert_eq!(header(&metrics, "content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for (path, says) in [("/live", "live\n"), ("/ready", "ready\n")] {
        let answer = rig.client.get_until(path, says);
        assert_eq!((status(&answer), body(&answer)), ("200", says));
    }
    let page = rig.client.get("/");
    assert_eq!(header(&page, "content-type"), Some("text/html; charset=utf-8"));
    assert!(body(&page).starts_with("<!doctype html>") && body(&page).contains("POST   /pub/TOPIC"));
    rig.client.get_until("/status", "\"fanout_micros\":[[70,2]]");
    rig.end();
}

#[test]
fn a_drain_is_announced_and_a_second_signal_hastens_it() {
    let rig = Rig::new(&[Conduct::Deliver(1), Conduct::Deliver(1)], settings());
    rig.may_end.store(false, Relaxed);
    let told = || {
        let mut both = [rig.told.recv().unwrap(), rig.told.recv().unwrap()];
        both.sort_by_key(|(shard, _)| *shard);
        both
    };
    rig.handle.signal();
    assert_eq!(told(), [(0, Told::Drain(10_000)), (1, Told::Drain(10_000))]);
    let ready = rig.client.get("/ready");
    assert_eq!((status(&ready), body(&ready)), ("503", "draining\n"));
    assert!(rig.client.get("/metrics").contains("corecast_draining 1\n"));
    rig.handle.shutdown();
    rig.handle.signal();
    assert_eq!(told(), [(0, Told::Drain(0)), (1, Told::Drain(0))]);
    rig.may_end.store(true, Relaxed);
    assert_eq!(rig.join(), Summary { cut_connections: 2, undrained_shards: Vec::new() });
}

#[test]
fn silent_and_slow_connections_make_room_and_those_served_do_not() {
    preflight::raise_descriptor_limit().unwrap();
    let rig = Rig::new(&[Conduct::Silent], settings());
    let connect = |bytes: &str| {
        let mut stream = TcpStream::connect(rig.client.0).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    };
    let ask_again = |kept: &mut TcpStream| {
        kept.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        kept.read(&mut [0; 64 * 1024]).unwrap()
    };
    // Its answer takes the whole time that a shard has for one.
    let head = "POST /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    let mut served = connect(head);
    let mut kept = connect("");
    let mut silent: Vec<_> =
        (0..300).map(|n| connect(if n % 2 == 0 { "" } else { "GET /live HTTP/1.1\r\nHo" })).collect();
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(3) {
        assert_eq!(status(&rig.client.get("/metrics")), "200");
        silent.push(connect("G"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "newcomers wait for the silent: {:?}",
        asked.elapsed()
    );
    assert_eq!(silent[0].read(&mut [0; 1]).unwrap_or(0), 0, "the oldest is cut");
    let metrics = rig.client.get("/metrics");
    assert!(!metrics.contains("corecast_control_connections_cut_total 0\n"), "{metrics}");
    assert!(kept.write_all(b"GET").is_err() || kept.read(&mut [0; 1]).unwrap_or(0) == 0);

    // One that asks now and then is not the one that has waited longest.
    let mut kept = connect("");
    for _ in 0..5 {
        assert!(ask_again(&mut kept) > 0, "an active connection was cut");
        silent.extend((0..100).map(|_| connect("")));
    }
    let mut answer = String::new();
    served.read_to_string(&mut answer).unwrap();
    assert_eq!(status(&answer), "503", "{answer}");
    assert!(answer.contains("has not answered within 5 s"), "{answer}");
    rig.handle.stop_now();
    rig.join();
}

#[test]
fn bodies_that_are_held_back_make_room_and_a_slow_one_does_not() {
    preflight::raise_descriptor_limit().unwrap();
    let rig = Rig::new(&[Conduct::Deliver(1)], settings());
    let post = |length: usize| {
        let mut stream = TcpStream::connect(rig.client.0).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = "POST /pub/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes()).unwrap();
        stream
    };
    // The oldest, so that it would be the first to go.
    const PIECES: usize = 40;
    let mut slow = post(PIECES * 1024);
    let slow = std::thread::spawn(move || {
        for _ in 0..PIECES {
            slow.write_all(&[b'x'; 1024]).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        answer
    });
    let mut held_back: Vec<_> = (0..300).map(|_| post(1000)).collect();
    let asked = Instant::now();
    while !slow.is_finished() {
        // Single bytes are no progress. Who has been cut cannot send any more.
        held_back.iter_mut().for_each(|stream| drop(stream.write(b"x")));
        assert_eq!(status(&rig.client.get("/metrics")), "200");
        held_back.push(post(1000));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(asked.elapsed() < Duration::from_secs(25), "newcomers wait for bodies: {:?}", asked.elapsed());
    let answer = slow.join().unwrap();
    assert_eq!(status(&answer), "201", "{answer}");
    assert_eq!(
        held_back[0].read(&mut [0; 1]).unwrap_or(0),
        0,
        "the one that made no progress for longest is cut"
    );
    let metrics = rig.client.get("/metrics");
    assert!(!metrics.contains("corecast_control_connections_cut_total 0\n"), "{metrics}");
    rig.handle.stop_now();
    rig.join();
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let ends_promptly = || {
        let rig = Rig::new(&[Conduct::Deliver(1)], settings());
        let mut idle = TcpStream::connect(rig.client.0).unwrap();
        idle.write_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(idle.read(&mut [0; 4096]).unwrap() > 0);
        let began = Instant::now();
        rig.end();
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
        began.elapsed() < Duration::from_millis(900)
    };
    // A machine that stands still may need another try; one that is held up takes a second, each time.
    assert!((0..10).any(|_| ends_promptly()));
}
