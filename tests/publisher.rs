//! Publishing from threads of the program that are no cores of the server.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use corecast::{
    App, Component, Connection, Message, Outcome, PublishError, Publisher, Receipt, TopicError, TopicName,
};

use probe::{Probe, Running, app, log, tell};
use support::client::Client;
use support::frame::Frame;
use support::metrics::Metrics;
use support::{PATIENCE, http, wait_for};

/// A server with the probe at `/probe`, without a control port, and its publisher.
fn start(app: App) -> (Running, Publisher) {
    let (log, _events) = log();
    let server = Running::start(app.route("/probe", move || Probe::new(log.clone())));
    let publisher = server.server.as_ref().expect("it runs").publisher();
    (server, publisher)
}

fn subscriber(server: &Running, topic: &str) -> Client {
    Client::connect(server.address, &format!("/probe?topic={topic}"))
}

fn metrics(server: &Running) -> Metrics {
    let address = server.server.as_ref().and_then(|server| server.control_address()).expect("a control port");
    let answer = http::Http::connect(address).and_then(|mut http| http.get("/metrics")).expect("metrics");
    Metrics::parse(&answer.text()).expect("metrics")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_message_reaches_subscribers_on_every_core_and_the_receipt_says_so() {
    let (server, publisher) = start(app());
    // Several topics, so that each core owns some.
    for topic in ["a", "b", "c", "d", "e", "f"] {
        let mut clients: Vec<Client> = (0..5).map(|_| subscriber(&server, topic)).collect();
        let name = TopicName::new(topic).expect("a topic");
        let text = publisher.publish(&name, "hello", PATIENCE).expect("published");
        let binary = publisher.publish(topic, &[0, 255][..], PATIENCE).expect("published");
        assert_eq!((text.position.offset, binary.position.offset), (1, 2));
        assert_eq!(text.position.epoch, binary.position.epoch);
        for client in &mut clients {
            client.expect_text("hello");
            client.expect_frame(&Frame::binary([0, 255]));
        }
        // A core counts the second of its own a little after that one has been let in.
        wait_for("a receipt that counts all subscribers", || {
            let receipt = publisher.publish(topic, "again", PATIENCE).expect("published");
            (receipt.subscribers == 5).then_some(())
        });
    }
    let receipt = publisher.publish("nobody", "is here", PATIENCE).expect("published");
    assert_eq!((receipt.subscribers, receipt.position.offset), (0, 1));
    server.end();
}

#[test]
fn before_the_start_and_after_the_end_a_publish_is_an_error() {
    let app = app();
    let publisher = app.publisher();
    let publish =
        |publisher: &Publisher| publisher.publish("a", "x", PATIENCE).map(|receipt| receipt.position.offset);
    assert_eq!(publish(&publisher), Err(PublishError::NotStarted));
    let (server, of_running) = start(app);
    assert_eq!(
        (publish(&publisher), publish(&of_running), publish(&publisher.clone())),
        (Ok(1), Ok(2), Ok(3))
    );
    server.end();
    assert_eq!(
        (publish(&publisher), publish(&of_running)),
        (Err(PublishError::Ended), Err(PublishError::Ended))
    );
    let later = runtime().block_on(publisher.publish_async("a", "x"));
    assert_eq!(later, Err(PublishError::Ended));

    let without_routes = App::new("*", 0);
    let publisher = without_routes.publisher();
    without_routes.start().expect_err("it has no route");
    assert_eq!(publish(&publisher), Err(PublishError::Ended));
}

#[test]
fn a_thread_that_publishes_all_the_time_learns_of_the_end() {
    let (server, publisher) = start(app());
    let mut client = subscriber(&server, "news");
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let publisher = publisher.clone();
            thread::spawn(move || {
                loop {
                    if let Err(error) = publisher.publish("news", "x", PATIENCE) {
                        return error;
                    }
                }
            })
        })
        .collect();
    for _ in 0..100 {
        client.expect_text("x");
    }
    server.end();
    for thread in threads {
        assert_eq!(thread.join().expect("no panic"), PublishError::Ended);
    }
}

#[test]
fn messages_of_several_threads_have_one_order() {
    const THREADS: usize = 4;
    const EACH: usize = 250;
    let topics = ["first", "second"];
    let (server, publisher) = start(app());
    let mut clients = topics.map(|topic| [(); 4].map(|()| subscriber(&server, topic)));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let publisher = publisher.clone();
            thread::spawn(move || {
                let publish = |topic: &str, n: usize| {
                    let text = format!("{thread}-{n}");
                    let receipt = publisher.publish(topic, &text, PATIENCE).expect("published");
                    ((topic.to_owned(), receipt.position.offset), text)
                };
                (0..EACH).flat_map(|n| topics.map(|topic| publish(topic, n))).collect::<Vec<_>>()
            })
        })
        .collect();
    let published: HashMap<_, _> =
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    assert_eq!(published.len(), THREADS * EACH * topics.len(), "every message has a place of its own");
    for (topic, clients) in topics.iter().zip(&mut clients) {
        for client in clients {
            let mut next = [0; THREADS];
            for offset in 1..=(THREADS * EACH) as u64 {
                let text = &published[&((*topic).to_owned(), offset)];
                client.expect_text(text);
                let (thread, n) = text.split_once('-').expect("two numbers");
                let next = &mut next[thread.parse::<usize>().expect("a number")];
                assert_eq!(n.parse(), Ok(*next), "a thread's own messages are in its order");
                *next += 1;
            }
        }
    }
    server.end();
}

#[test]
fn what_no_server_takes_is_refused_with_the_reason() {
    let (server, publisher) = start(app().configure(|config| config.max_message_bytes = 10));
    let refused =
        |topic: &str, message: &str| publisher.publish(topic, message, PATIENCE).expect_err("refused");
    assert_eq!(refused("", "x"), PublishError::Topic(TopicError::Empty));
    assert_eq!(refused("a,b", "x"), PublishError::Topic(TopicError::Character));
    assert_eq!(refused(&"a".repeat(129), "x"), PublishError::Topic(TopicError::TooLong));
    assert_eq!(refused("a", "0123456789a"), PublishError::TooLarge { limit: 10 });
    assert!(refused("a", "0123456789a").to_string().contains("10 bytes"));
    let receipt = publisher.publish("a", "0123456789", PATIENCE).expect("as long as it may be");
    assert_eq!(receipt.position.offset, 1, "nothing was published before");
    server.end();
}

#[test]
fn a_topic_above_the_limit_is_refused_and_counted() {
    let control = "127.0.0.1:0".parse().expect("an address");
    let app = app().cores(1).control(control).configure(|config| config.max_topics = 1);
    let (server, publisher) = start(app);
    publisher.publish("one", "x", PATIENCE).expect("there is room for one");
    assert_eq!(publisher.publish("two", "x", PATIENCE), Err(PublishError::TopicLimit));
    let metrics = metrics(&server);
    assert_eq!(metrics.sum("corecast_topics_refused_total", &[("by", "publish")]), 1.0);
    assert_eq!(metrics.sum("corecast_publishes_total", &[("source", "thread")]), 1.0);
    assert_eq!(metrics.sum("corecast_publishes_total", &[]), 1.0);
    server.end();
}

/// Subscribes its connections to a topic, and stands still at each message until it is let go.
struct Standstill {
    entered: Sender<()>,
    leave: Arc<Mutex<Receiver<()>>>,
}

impl Component for Standstill {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        Ok(connection.subscribe("news")?)
    }

    fn on_message(&mut self, _: &Connection, _: Message<'_>) -> Outcome {
        self.entered.send(())?;
        self.leave.lock().expect("the other one has not panicked").recv()?;
        Ok(())
    }
}

#[test]
fn what_a_core_that_stands_still_cannot_take_is_refused_and_counted() {
    // More than fit into the ring to a core.
    const MESSAGES: usize = 2_000;
    let (entered, has_entered) = channel();
    let (let_go, leave) = channel();
    let leave = Arc::new(Mutex::new(leave));
    let control = "127.0.0.1:0".parse().expect("an address");
    let component = move || Standstill { entered: entered.clone(), leave: leave.clone() };
    let app = app().cores(1).control(control).route("/", component);
    let publisher = app.publisher();
    let server = Running::start(app);
    let mut client = Client::connect(server.address, "/");
    tell(&mut client, "stand still");
    has_entered.recv_timeout(PATIENCE).expect("it stands still");

    let outcomes: Vec<(usize, Result<Receipt, PublishError>)> = runtime().block_on(async {
        let (report, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..MESSAGES {
            let (publisher, report) = (publisher.clone(), report.clone());
            tokio::spawn(async move {
                let outcome = publisher.publish_async("news", &n.to_string()).await;
                report.send((n, outcome)).expect("it is awaited");
            });
        }
        drop(report);
        let mut seen = vec![outcomes.recv().await.expect("an outcome")];
        assert_eq!(seen[0].1, Err(PublishError::Overloaded), "nothing is accepted meanwhile");
        let_go.send(()).expect("it waits");
        while let Some(outcome) = outcomes.recv().await {
            seen.push(outcome);
        }
        seen
    });
    assert_eq!(outcomes.len(), MESSAGES, "none is left without an answer");
    let mut accepted = HashMap::new();
    let mut refused = 0;
    for (n, outcome) in outcomes {
        match outcome {
            Ok(receipt) => assert_eq!(accepted.insert(receipt.position.offset, n), None),
            Err(PublishError::Overloaded) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    for offset in 1..=accepted.len() as u64 {
        client.expect_text(&accepted[&offset].to_string());
    }
    let metrics = metrics(&server);
    let to_the_core = [("from", "control"), ("to", "0")];
    assert_eq!(metrics.sum("corecast_ring_full_total", &to_the_core), f64::from(refused));
    assert_eq!(metrics.sum("corecast_publishes_total", &[("source", "thread")]), accepted.len() as f64);
    let again = publisher.publish("news", "room again", PATIENCE).expect("there is room again");
    assert_eq!(again.position.offset, accepted.len() as u64 + 1);
    client.expect_text("room again");
    server.end();
}

#[test]
fn a_message_that_was_not_answered_in_time_may_be_published_all_the_same() {
    let (entered, has_entered) = channel();
    let (let_go, leave) = channel();
    let leave = Arc::new(Mutex::new(leave));
    let component = move || Standstill { entered: entered.clone(), leave: leave.clone() };
    let app = app().cores(1).route("/", component);
    let publisher = app.publisher();
    let server = Running::start(app);
    let mut client = Client::connect(server.address, "/");
    tell(&mut client, "stand still");
    has_entered.recv_timeout(PATIENCE).expect("it stands still");
    let late = publisher.publish("news", "late", Duration::from_millis(1));
    assert_eq!(late, Err(PublishError::TimedOut));
    let_go.send(()).expect("it waits");
    client.expect_text("late");
    let receipt = publisher.publish("news", "in time", PATIENCE).expect("published");
    assert_eq!(receipt.position.offset, 2);
    client.expect_text("in time");
    server.end();
}

/// Publishes what a client sends from a task on its core, and tells the client its place.
struct FromTask(Publisher);

impl Component for FromTask {
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let Message::Text(text) = message else { return Ok(()) };
        let (connection, publisher, text) = (connection.clone(), self.0.clone(), text.to_owned());
        connection.clone().spawn(async move {
            let receipt = publisher.publish_async("news", &text).await?;
            connection.send(&receipt.position.offset.to_string());
            Ok(())
        });
        Ok(())
    }
}

#[test]
fn tasks_of_a_core_get_receipts_too() {
    let app = app();
    let publisher = app.publisher();
    let (server, _) = start(app.route("/", move || FromTask(publisher.clone())));
    let mut subscriber = subscriber(&server, "news");
    let mut client = Client::connect(server.address, "/");
    for offset in 1..=20 {
        tell(&mut client, &format!("message {offset}"));
        client.expect_text(&offset.to_string());
        subscriber.expect_text(&format!("message {offset}"));
    }
    server.end();
}
