//! Components that wrap components: those of the library, and one of a user.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::io::Read;
use std::net::TcpStream;

use corecast::decorators::{IpDenyList, Logger, OriginCheck, RateLimit};
use corecast::{AddressRules, Component, Connection, Message, Outcome};

use probe::{Probe, Running, app, log, tell};
use support::client::{Client, Upgrade};
use support::frame::Frame;

#[test]
fn origin_check_refuses_pages_of_other_origins() {
    let (log, events) = log();
    let component = move || OriginCheck::new(Probe::new(log.clone()), ["https://friend.example"]);
    let server = Running::start(app().route("/", component).allowed_origins(["*"]));
    let from = |origin: &str| Upgrade::to("/?pay").with("Origin", origin).refused(server.address).status;
    assert_eq!(from("https://stranger.example"), 403);
    assert_eq!(from("https://friend.example"), 402, "the wrapped component is asked next");
    let _client = Upgrade::to("/").with("Origin", "https://friend.example").accepted(server.address);
    assert!(events.next().starts_with("open"));
    server.end();
}

#[test]
fn an_origin_that_is_none_ends_the_start() {
    let component = || OriginCheck::new(Probe::new(log().0), ["https://*.example"]);
    let error = app().route("/", component).start().expect_err("it started");
    assert!(error.to_string().contains("https://*.example"), "{error}");
}

#[test]
fn ip_deny_list_changes_at_run_time_and_cuts_at_accept() {
    let (log, events) = log();
    let rules = AddressRules::default();
    let denied = rules.clone();
    let control = ([127, 0, 0, 1], 0).into();
    let server = Running::start(
        app().control(control).route("/", move || IpDenyList::new(Probe::new(log.clone()), denied.clone())),
    );
    let mut open = Client::connect(server.address, "/");
    events.next();
    rules.deny("127.0.0.0/8").expect("a network");
    // Cut before a request is read: nothing is answered.
    let mut stream = TcpStream::connect(server.address).expect("accepted by the kernel");
    assert!(!matches!(stream.read(&mut [0; 64]), Ok(1..)), "a refused address was answered");
    open.expect_alive();
    rules.allow("127.0.0.0/8").expect("a network");
    Client::connect(server.address, "/").expect_alive();
    let control = server.server.as_ref().and_then(|server| server.control_address()).expect("a control port");
    support::wait_for("the refusal to be counted", || {
        let mut http = support::http::Http::connect(control).expect("connect");
        let metrics = http.get("/metrics").expect("metrics").text();
        metrics.contains("handshakes_rejected_total{reason=\"address\"} 1").then_some(())
    });
    server.end();
}

#[test]
fn ip_deny_list_of_one_route_of_two_answers_403_there() {
    let (log, _events) = log();
    let (rules, other) = (AddressRules::default(), log.clone());
    rules.deny("127.0.0.1").expect("an address");
    let server = Running::start(
        app()
            .route("/denied", move || IpDenyList::new(Probe::new(log.clone()), rules.clone()))
            .route("/open", move || Probe::new(other.clone())),
    );
    assert_eq!(Upgrade::to("/denied").refused(server.address).status, 403);
    Client::connect(server.address, "/open").expect_alive();
    server.end();
}

#[test]
fn rate_limit_closes_who_sends_too_much_and_nobody_else() {
    let (log, events) = log();
    let component = move || RateLimit::new(Probe::new(log.clone()), 1, 5);
    let server = Running::start(app().route("/", component));
    let mut calm = Client::connect(server.address, "/");
    let mut loud = Client::connect(server.address, "/");
    let flood = loud.flood("echo x", "x");
    assert_eq!(flood.close, Some((1008, "too many messages".to_owned())));
    // Five at once, and one for each second that it took.
    let most = 5 + flood.took.as_secs() + 1;
    assert!((5..=most).contains(&flood.answers), "{flood:?}, of which {most} should pass at most");
    tell(&mut calm, "echo y");
    calm.expect_text("y");
    server.end();
    assert!(events.rest().contains(&"close 1008 \"too many messages\" RateLimit".to_owned()));
}

#[test]
fn logger_lets_everything_through() {
    let (log, events) = log();
    let server = Running::start(app().route("/", move || Logger::new(Probe::new(log.clone()))));
    let offer = Upgrade::to("/").with("Sec-WebSocket-Protocol", "good");
    let (response, mut client) = offer.send(server.address).expect("an answer");
    assert_eq!(response.header("Sec-WebSocket-Protocol"), Some("good"));
    events.expect("open / - good true");
    tell(&mut client, "error through the logger");
    events.expect("error through the logger");
    events.expect("close 1011 \"internal error\" Fault");
    server.end();
}

/// Counts in front of whatever it wraps.
struct Numbered<C>(C, u64);

impl<C: Component> Component for Numbered<C> {
    fn inner(&mut self) -> Option<&mut dyn Component> {
        Some(&mut self.0)
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        self.1 += 1;
        let text = format!("echo {}: {}", self.1, message.as_text().unwrap_or("bytes"));
        self.0.on_message(connection, Message::from(&text))
    }
}

#[test]
fn a_users_own_decorator_wraps_and_is_wrapped() {
    let (log, _events) = log();
    let component = move || {
        let inner = Numbered(Logger::new(Numbered(Probe::new(log.clone()), 10)), 0);
        IpDenyList::new(RateLimit::new(inner, 100, 100), AddressRules::default())
    };
    let server = Running::start(app().cores(1).route("/", component));
    let mut client = Client::connect(server.address, "/");
    tell(&mut client, "hello");
    client.expect_text("11: echo 1: hello");
    client.send(&Frame::binary(vec![0]));
    client.expect_text("12: echo 2: bytes");
    server.end();
}
