//! Who gets what is published: everybody who subscribed, once, in one order, whichever shard they are on.

mod support;

use std::collections::HashSet;
use std::thread;

use support::client::Client;
use support::frame::Frame;
use support::server::Server;
use support::swarm::{Member, Swarm};
use support::{QUIET, wait_for};

#[test]
fn text_and_binary_arrive_as_published() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut subscriber = server.connect("/sub/a");
    let mut publisher = server.connect("/pubsub/a");
    publisher.send_text("grüß");
    publisher.send(&Frame::binary([0, 0xFF, 0x80]));
    publisher.send_text("");
    for client in [&mut subscriber, &mut publisher] {
        client.expect_text("grüß"); // the sender is included
        assert_eq!(client.message(), Frame::binary([0, 0xFF, 0x80]));
        client.expect_text("");
    }
    let binary = [("Content-Type", "application/octet-stream")];
    server.http().request("POST", "/pub/a", &binary, b"\0\xFF\x80").expect("publish").expect(201);
    server.publish("a", "by HTTP");
    for client in [&mut subscriber, &mut publisher] {
        assert_eq!(client.message(), Frame::binary([0, 0xFF, 0x80]));
        client.expect_text("by HTTP");
    }
}

#[test]
fn a_fragmented_publish_arrives_as_one_message() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut subscriber = server.connect("/sub/a");
    let mut publisher = server.connect("/pubsub/a");
    publisher.send(&Frame::text("one ").unfinished());
    publisher.send(&Frame::new(support::frame::CONTINUATION, "message"));
    subscriber.expect_text("one message");
    publisher.expect_text("one message");
}

#[test]
fn only_subscribers_of_the_topic_get_a_message() {
    let server = Server::start_shards(2, &[]);
    let mut a = server.connect("/sub/a");
    let mut b = server.connect("/sub/b");
    let mut both = server.connect("/sub/a,b,c");
    assert_eq!(server.publish("a", "for a").json()["subscribers"], 2);
    assert_eq!(server.publish("b", "for b").json()["subscribers"], 2);
    assert_eq!(server.publish("c", "for c").json()["subscribers"], 1);
    assert_eq!(server.publish("nobody", "for nobody").expect(202).json()["subscribers"], 0);
    a.expect_text("for a");
    b.expect_text("for b");
    // Order is kept within a topic; between topics it may differ.
    let mut got: Vec<_> = (0..3).map(|_| both.message().payload).collect();
    got.sort();
    assert_eq!(got, [b"for a", b"for b", b"for c"]);
    for client in [&mut a, &mut b, &mut both] {
        client.expect_silence(QUIET);
    }
}

#[test]
fn a_topic_named_twice_is_subscribed_once() {
    let server = Server::start_shards(2, &[]);
    let mut twice = server.connect("/sub/a,a");
    assert_eq!(server.publish("a", "once").json()["subscribers"], 1);
    twice.expect_text("once");
    twice.expect_silence(QUIET);
}

#[test]
fn messages_of_every_length_form_reach_both_shards() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut subscribers: Vec<Client> = (0..6).map(|_| server.connect("/sub/a")).collect();
    let mut publisher = server.connect("/pubsub/a");
    for size in [0, 1, 125, 126, 65_535, 65_536] {
        let message = Frame::binary((0..size).map(|at| (at % 253) as u8).collect::<Vec<_>>());
        publisher.send(&message);
        for client in subscribers.iter_mut().chain([&mut publisher]) {
            assert_eq!(client.message(), message);
        }
    }
}

#[test]
fn one_thousand_subscribers_on_two_shards_see_one_order() {
    one_order(2, &[]);
}

#[test]
fn one_thousand_subscribers_on_four_shards_see_one_order() {
    one_order(4, &[]);
}

#[test]
fn one_thousand_subscribers_see_one_order_from_shards_that_wait_in_their_executor() {
    one_order(2, &["--wait", "executor"]);
}

/// Six concurrent publishers, three by HTTP and three by WebSocket; all subscribers must see one sequence with
/// every message exactly once, and each publisher's messages in the order in which it sent them.
fn one_order(shards: usize, flags: &[&str]) {
    const SUBSCRIBERS: usize = 1000;
    const PUBLISHERS: usize = 6;
    const EACH: usize = 40;
    let server = Server::start_shards(shards, &[&["--client-publish"], flags].concat());
    let mut swarm = Swarm::connect(server.data, "/sub/order", SUBSCRIBERS);
    wait_for("1,000 connections to be spread over all shards", || {
        let spread = server.metrics();
        let used = spread.matching("corecast_connections", &[]).filter(|sample| sample.value > 0.0).count();
        (used == shards).then_some(())
    });

    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let server = &server;
            scope.spawn(move || {
                if publisher % 2 == 0 {
                    let mut http = server.http();
                    for n in 0..EACH {
                        let text = format!("{publisher}:{n}");
                        http.post("/pub/order", text.as_bytes()).expect("publish").expect(201);
                    }
                } else {
                    let mut client = server.connect("/pubsub/order");
                    for n in 0..EACH {
                        client.send_text(&format!("{publisher}:{n}"));
                    }
                    // Keep reading until all has come back: nobody here may become a slow consumer.
                    let last = format!("{publisher}:{}", EACH - 1);
                    while client.message() != Frame::text(&last) {}
                }
            });
        }
        swarm.read_messages(PUBLISHERS * EACH);
    });
    swarm.read_for(QUIET); // a message sent twice would show now

    let reference: Vec<&str> = texts(&swarm.members[0]);
    assert_eq!(reference.iter().collect::<HashSet<_>>().len(), PUBLISHERS * EACH, "a message came twice");
    for publisher in 0..PUBLISHERS {
        let prefix = format!("{publisher}:");
        let own: Vec<_> = reference.iter().filter_map(|text| text.strip_prefix(&prefix)).collect();
        assert_eq!(
            own,
            (0..EACH).map(|n| n.to_string()).collect::<Vec<_>>(),
            "publisher {publisher} out of order"
        );
    }
    for (at, member) in swarm.members.iter().enumerate() {
        assert_eq!(texts(member), reference, "subscriber {at} saw another sequence");
    }
    let least = (SUBSCRIBERS * PUBLISHERS * EACH) as f64;
    server.wait_metric("corecast_deliveries_total", &[], |deliveries| deliveries >= least);
}

fn texts(member: &Member) -> Vec<&str> {
    member.messages.iter().map(|message| message.text()).collect()
}

#[test]
fn large_messages_reach_all_subscribers_whole() {
    let server = Server::start_shards(2, &["--client-publish", "--send-queue", "8MiB"]);
    let mut swarm = Swarm::connect(server.data, "/sub/large", 50);
    let mut publisher = server.connect("/pubsub/large");
    for n in 0..20u8 {
        publisher.send(&Frame::binary([vec![n; 64], vec![0xAA; 64 * 1024 - 64]].concat()));
    }
    swarm.read_messages(20);
    for member in &swarm.members {
        for (n, message) in member.messages.iter().enumerate() {
            assert_eq!((message.len, message.head[0]), (64 * 1024, n as u8));
        }
    }
}

#[test]
fn whoever_got_101_gets_every_message_published_after() {
    for shards in [1, 2, 4] {
        let server = Server::start_shards(shards, &["--client-publish"]);
        let mut http = server.http();
        let mut publisher = server.connect("/pubsub/shared");
        for round in 0..150 {
            let text = format!("round {round}");
            // A topic nobody knew: its first subscriber must count at once.
            let mut client = server.connect(&format!("/sub/own-{round}"));
            let answer = http.post(&format!("/pub/own-{round}"), text.as_bytes()).expect("publish");
            assert_eq!(answer.expect(201).json()["subscribers"], 1, "round {round} on {shards} shards");
            client.expect_text(&text);

            // A topic in use, published to by HTTP and by another client.
            let mut client = server.connect("/sub/shared");
            match round % 2 {
                0 => drop(http.post("/pub/shared", text.as_bytes()).expect("publish").expect(201)),
                _ => publisher.send_text(&text),
            }
            client.expect_text(&text);
            publisher.expect_text(&text);
        }
    }
}

#[test]
fn whoever_left_is_no_subscriber_any_more() {
    let server = Server::start_shards(2, &[]);
    for round in 0..50 {
        let topic = format!("t{}", round % 5);
        let path = format!("/sub/{topic}");
        let mut stays = server.connect(&path);
        let leaves = server.connect(&path);
        match round % 3 {
            0 => leaves.close(1000),
            1 => leaves.reset(),
            _ => drop(leaves),
        }
        // The topic's owner may sit on another shard and hear of it a moment later.
        let published = publish_until(&server, &topic, 1);
        for _ in 0..published {
            stays.expect_text("x");
        }
        drop(stays);
        publish_until(&server, &topic, 0);
    }
    server.wait_metric("corecast_subscriptions", &[], |count| count == 0.0);
}

/// Publishes until it is said to reach that many subscribers; how often it was published.
fn publish_until(server: &Server, topic: &str, subscribers: usize) -> usize {
    let mut published = 0;
    wait_for("the number of subscribers", || {
        published += 1;
        let answer = server.publish(topic, "x");
        let status = if subscribers == 0 { 202 } else { 201 };
        (answer.json()["subscribers"] == subscribers).then(|| answer.expect(status))
    });
    published
}

#[test]
fn a_burst_from_one_publisher_arrives_whole_and_in_order() {
    let server = Server::start_shards(4, &["--client-publish"]);
    let mut swarm = Swarm::connect(server.data, "/sub/burst", 40);
    let mut publisher = server.connect("/pubsub/burst");
    const COUNT: usize = 5000;
    let bytes: Vec<u8> = (0..COUNT).flat_map(|n| Frame::text(&n.to_string()).masked()).collect();
    publisher.send_raw(&bytes).expect("send");
    swarm.read_messages(COUNT);
    swarm.members.push(Member::from(publisher));
    swarm.read_messages(COUNT);
    for member in &swarm.members {
        assert!(texts(member).iter().enumerate().all(|(n, text)| *text == n.to_string()), "not in order");
    }
}
