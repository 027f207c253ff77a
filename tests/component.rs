//! The component API, in process: one test for each row of the comparison with Ratchet, named after it.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::time::Duration;

use corecast::{App, CloseReason, Component, Connection, Message, Notice, Outcome, Server, Start, WsServer};

use probe::{Events, Log, Probe, Running, app, log, tell};
use support::client::{Client, End, Upgrade};
use support::frame::{self, Frame};

/// A server with the probe at `/probe`, on two cores.
fn probe_server() -> (Running, Events) {
    let (log, events) = log();
    (Running::start(app().route("/probe", move || Probe::new(log.clone()))), events)
}

#[test]
fn on_open_on_message_on_close_and_on_error() {
    let (server, events) = probe_server();
    let mut client = Client::connect(server.address, "/probe?x=1");
    events.expect("open /probe?x=1 - - true");
    tell(&mut client, "echo hello");
    client.expect_text("hello");
    client.send(&Frame::binary(vec![1, 2, 3]));
    assert_eq!(client.message().payload, [1, 2, 3]);
    tell(&mut client, "error oh dear");
    events.expect("error oh dear");
    assert_eq!(client.expect_closed(1011), "internal error");
    events.expect("close 1011 \"internal error\" Fault");
    server.end();
    assert_eq!(events.rest(), Vec::<String>::new(), "on_close runs once");
}

#[test]
fn connection_send_and_close() {
    let (server, events) = probe_server();
    let mut client = Client::connect(server.address, "/probe");
    events.next();
    tell(&mut client, "close that is enough");
    events.expect("closing true");
    assert_eq!(client.expect_closed(4001), "that is enough");
    events.expect("close 4001 \"that is enough\" Component");

    let mut client = Client::connect(server.address, "/probe");
    tell(&mut client, "close-normal");
    assert_eq!(client.expect_closed(1000), "");
    server.end();
}

#[test]
fn a_kept_handle_is_harmless_when_the_connection_is_gone() {
    let (server, events) = {
        let (log, events) = log();
        (Running::start(app().cores(1).route("/probe", move || Hoarder::new(log.clone()))), events)
    };
    let gone = Client::connect(server.address, "/probe");
    events.expect("open");
    gone.reset();
    events.expect("close 1006");
    // The slot is used again, by a connection that must not be taken for the one before.
    let mut alive = Client::connect(server.address, "/probe");
    events.expect("open");
    tell(&mut alive, "hello");
    alive.expect_text("2 handles, 1 open");
    alive.expect_alive();
}

/// Keeps every handle it ever had, and uses all of them.
struct Hoarder {
    log: Log,
    handles: Vec<Connection>,
}

impl Hoarder {
    fn new(log: Log) -> Self {
        Self { log, handles: Vec::new() }
    }
}

impl Component for Hoarder {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        self.handles.push(connection.clone());
        self.log.write("open");
        Ok(())
    }

    fn on_message(&mut self, _: &Connection, _: Message<'_>) -> Outcome {
        let open = self.handles.iter().filter(|handle| !handle.is_closing()).count();
        let text = format!("{} handles, {open} open", self.handles.len());
        for handle in &self.handles {
            handle.send(&text);
        }
        for handle in self.handles.iter().filter(|handle| handle.is_closing()) {
            handle.subscribe("topic")?;
            handle.set_data(std::rc::Rc::new(1_u32));
            handle.close(corecast::CloseCode::default());
            assert!(handle.data::<u32>().is_none() && handle.remote_addr().is_none());
            assert!(handle.http_request().is_none() && handle.send_queue_bytes() == 0);
        }
        Ok(())
    }

    fn on_close(&mut self, _: &Connection, reason: &corecast::CloseReason) {
        self.log.write(format!("close {}", reason.code));
    }
}

#[test]
fn connection_http_request_for_the_opening_or_for_as_long_as_it_lives() {
    let (log, events) = log();
    let keeping = {
        let log = log.clone();
        move || Probe::new(log.clone()).keeping_requests()
    };
    let server =
        Running::start(app().route("/probe", move || Probe::new(log.clone())).route("/kept", keeping));
    for (path, later) in [("/probe?a=b", "no request"), ("/kept?a=b", "/kept?a=b value - true")] {
        let mut client = Upgrade::to(path).with("X-Test", "value").accepted(server.address);
        events.expect(&format!("open {path} value - true"));
        tell(&mut client, "request");
        client.expect_text(later);
        client.close(1000);
        events.expect("close 1000 \"\" Peer");
    }
    server.end();
}

#[test]
fn on_request_refuses_with_a_status_of_its_choice() {
    let (server, events) = probe_server();
    let response = Upgrade::to("/probe?pay").refused(server.address);
    assert_eq!((response.status, response.header("Connection")), (402, Some("close")));
    assert_eq!(Upgrade::to("/probe?panic").refused(server.address).status, 500);
    server.end();
    assert_eq!(events.rest(), Vec::<String>::new(), "it never opened");
}

#[test]
fn ws_server_enable_keep_alive() {
    let (log, events) = log();
    let (quick, none) = (log.clone(), log.clone());
    let server = Running::start(
        app()
            .configure(|config| config.keepalive_millis = 3_600_000)
            .route(
                "/quick",
                WsServer::new(move || Probe::new(quick.clone())).enable_keep_alive(Duration::from_secs(4)),
            )
            .route("/none", WsServer::new(move || Probe::new(none.clone())))
            .route("/default", move || Probe::new(log.clone()))
            // Of routes without a word of their own, also of those that were added before.
            .configure(|config| config.keepalive_millis = 3_600_000),
    );
    let mut unpinged = Client::connect(server.address, "/none");
    let mut seldom = Client::connect(server.address, "/default");
    let mut silent = Client::connect(server.address, "/quick");
    let answering = Client::connect(server.address, "/quick").in_background();
    unpinged.shows_pings = true;
    silent.shows_pings = true;
    for _ in 0..4 {
        events.next();
    }
    assert_eq!(silent.frame().opcode, frame::PING);
    assert_eq!(silent.expect_close(1011), "keepalive ping timeout");
    events.expect("close 1011 \"keepalive ping timeout\" KeepAlive");
    // One whose first answer were not heard would be dropped instead of asked again.
    answering.end_after(2).expect_alive();
    // Whatever it was sent in all that time would come first.
    unpinged.expect_alive();
    seldom.expect_alive();
    server.end();
}

#[test]
fn ws_server_set_strict_sub_protocol_check() {
    let (log, events) = log();
    let lax = log.clone();
    let server =
        Running::start(app().route("/strict", move || Probe::new(log.clone())).route(
            "/lax",
            WsServer::new(move || Probe::new(lax.clone())).set_strict_sub_protocol_check(false),
        ));
    let offer = |path: &str, protocols: &str| Upgrade::to(path).with("Sec-WebSocket-Protocol", protocols);
    for path in ["/strict", "/lax"] {
        let (response, client) = offer(path, "best, better, good").send(server.address).expect("an answer");
        assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, Some("better")));
        events.expect(&format!("open {path} - better true"));
        client.close(1000);
        events.expect("close 1000 \"\" Peer");
    }
    assert_eq!(offer("/strict", "best").refused(server.address).status, 400);
    let (response, _client) = offer("/lax", "best").send(server.address).expect("an answer");
    assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, None));
    server.end();
}

#[test]
fn app_route_with_paths_hosts_and_allowed_origins() {
    let (log, events) = log();
    let probe = move || Probe::new(log.clone());
    let server = Running::start(
        App::new("push.example", 0)
            .route("/chat", probe.clone())
            .route("/rooms/{room}/x", probe.clone())
            .allowed_origins(["https://friend.example", "http://localhost:3000"])
            .route("/any", probe)
            .host("*")
            .allowed_origins(["*"]),
    );
    let status = |path: &str, host: &str, origin: Option<&str>| {
        let mut upgrade = Upgrade::to(path).without("Host").with("Host", host);
        if let Some(origin) = origin {
            upgrade = upgrade.with("Origin", origin);
        }
        upgrade.send(server.address).expect("an answer").0.status
    };
    let own = "push.example:8080";
    for (path, host, origin, expected) in [
        ("/chat", own, None, 101),
        ("/chat", "PUSH.example", Some("https://push.example"), 101),
        ("/chat", own, Some("http://push.example:8080"), 101),
        ("/chat", own, Some("https://friend.example"), 403),
        ("/chat", "other.example", None, 404),
        ("/chat/", own, None, 404),
        ("/elsewhere", own, None, 404),
        ("/rooms/a%20b/x", own, Some("https://friend.example"), 101),
        ("/rooms/a/x", own, Some("http://push.example:8080"), 403),
        ("/rooms/a", own, None, 404),
        ("/any", "other.example", Some("https://stranger.example"), 101),
    ] {
        assert_eq!(status(path, host, origin), expected, "{path} of {host} from {origin:?}");
    }
    let elsewhere = Upgrade::to("/chat").with("Host", "127.0.0.1").refused(server.address).text();
    assert!(elsewhere.contains("host push.example"), "{elsewhere}");
    let response = Upgrade::to("/").with("Host", own).request_line("PUT / HTTP/1.1").refused(server.address);
    assert_eq!((response.status, response.header("Allow")), (405, Some("GET")));
    server.end();
    let opened = events.rest().iter().filter(|line| line.starts_with("open")).count();
    assert_eq!(opened, 5);
}

#[test]
fn what_is_wrong_with_an_app_is_said_when_it_starts() {
    let nothing = || Probe::new(log().0);
    let message = |app: App| format!("{:?}", app.start().expect_err("it started")); // as `main` prints it
    assert!(message(app()).contains("no route"));
    assert!(message(app().route("chat", nothing)).contains("\"chat\""));
    assert!(message(app().allowed_origins(["*"]).route("/a", nothing)).contains("allowed_origins"));
    assert!(message(app().route("/a", nothing).allowed_origins(["https://*.x"])).contains("https://*.x"));
    for host in ["example.com:80", "http://example.com", "::1", ""] {
        assert!(message(App::new(host, 0).route("/a", nothing)).contains(&format!("{host:?}")), "{host}");
        assert!(message(app().route("/a", nothing).host(host)).contains(&format!("{host:?}")), "{host}");
    }
    let brief = WsServer::new(nothing).enable_keep_alive(Duration::from_millis(1));
    assert!(message(app().route("/a", brief)).contains("keep-alive 1ms"));
    let message = |server: Server| server.start(nothing).expect_err("it started").to_string();
    assert!(message(Server::bind("no such host:x")).contains("no such host:x"));
    let failing = || {
        assert!(std::thread::current().name().is_none(), "made on a core");
        Probe::new(log().0)
    };
    let error = app().route("/a", failing).start().expect_err("it started");
    assert!(error.to_string().contains("made on a core"), "{error}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn server_allowed_origins() {
    let status = |server: Server, origin: &str| {
        let (log, _events) = log();
        let server = server.cores(1).start(move || Probe::new(log.clone())).expect("it does not start");
        let upgrade = Upgrade::to("/").with("Origin", origin);
        let status = upgrade.send(server.websocket_addresses()[0]).expect("an answer").0.status;
        server.handle().stop_now();
        server.wait().expect("it does not end well");
        status
    };
    let server = || Server::bind("127.0.0.1:0");
    assert_eq!(status(server(), "https://friend.example"), 403);
    assert_eq!(status(server().allowed_origins(["https://friend.example"]), "https://friend.example"), 101);
    assert_eq!(status(server().allowed_origins(["https://friend.example"]), "https://other.example"), 403);
    assert_eq!(status(server().allowed_origins(["*"]), "null"), 101);
}

#[test]
fn server_bind_cores_and_run() {
    let (log, events) = log();
    let component = move || Probe::new(log.clone());
    let server = Server::bind("127.0.0.1:0").cores(1).start(component).expect("it does not start");
    assert_eq!(server.cpus().len(), 1);
    let address = server.websocket_addresses()[0];
    for path in ["/", "/any/path?at=all"] {
        let mut client = Client::connect(address, path);
        events.expect(&format!("open {path} - - true"));
        tell(&mut client, "core");
        client.expect_text("0 of 1");
        tell(&mut client, "close-normal");
        client.expect_closed(1000);
        events.next();
    }
    server.handle().shutdown();
    server.wait().expect("it does not end well");
}

#[test]
fn connection_publish_to_all_and_to_all_but_oneself() {
    let (server, _events) = probe_server();
    let mut clients: Vec<Client> =
        (0..8).map(|_| Client::connect(server.address, "/probe?topic=news")).collect();
    for publisher in 0..clients.len() {
        tell(&mut clients[publisher], "publish news");
        tell(&mut clients[publisher], "others news");
        tell(&mut clients[publisher], "publish news");
        for (at, client) in clients.iter_mut().enumerate() {
            client.expect_text("for all");
            if at != publisher {
                client.expect_text("for others");
            }
            client.expect_text("for all");
        }
    }
    tell(&mut clients[0], "unsubscribe news");
    tell(&mut clients[0], "others news");
    tell(&mut clients[0], "publish news");
    tell(&mut clients[0], "echo nothing of that");
    clients[0].expect_text("nothing of that");
    clients[1].expect_text("for others");
    clients[1].expect_text("for all");
    server.end();
}

#[test]
fn many_publish_to_the_others_at_once_and_each_misses_its_own_only() {
    const CLIENTS: usize = 12;
    let (server, _events) = probe_server();
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::connect(server.address, "/probe?topic=news")).collect();
    let all = Frame::text("others news").masked().repeat(50);
    clients.iter_mut().for_each(|client| client.send_raw(&all).expect("send"));
    for client in &mut clients {
        (0..50 * (CLIENTS - 1)).for_each(|_| client.expect_text("for others"));
        tell(client, "echo done");
        client.expect_text("done");
    }
    server.end();
}

#[test]
fn connections_of_a_collection_are_sent_to_plain_and_prepared() {
    let (log, events) = log();
    let server = Running::start(app().cores(1).route("/probe", move || Probe::new(log.clone())));
    let mut plain = Client::connect(server.address, "/probe");
    let upgrade = Upgrade::to("/probe").with("Sec-WebSocket-Extensions", "permessage-deflate");
    let mut compressed = upgrade.accepted(server.address);
    let long = "again and ".repeat(100);
    for command in ["all", "shout"] {
        tell(&mut plain, &format!("{command} {long}"));
        for client in [&mut plain, &mut compressed] {
            client.expect_text(&long);
        }
    }
    events.next();
    server.end();
}

#[test]
fn connection_data_is_the_components_own() {
    let (server, _events) = probe_server();
    let mut client = Client::connect(server.address, "/probe");
    let mut other = Client::connect(server.address, "/probe");
    tell(&mut client, "data first");
    client.expect_text("none");
    tell(&mut client, "data second");
    client.expect_text("first");
    tell(&mut other, "data");
    other.expect_text("none");
    server.end();
}

#[test]
fn a_panic_or_an_error_costs_that_connection_only() {
    let (server, events) = probe_server();
    let mut bystander = Client::connect(server.address, "/probe");
    events.next();
    for (path, command, told) in [
        ("/probe", "panic by message", "panic by message"),
        ("/probe", "error by message", "error by message"),
        ("/probe?open-panic", "", "panic in on_open"),
        ("/probe?open-error", "", "error in on_open"),
        ("/probe", "spawn panic", "panic in a task"),
        ("/probe", "spawn error", "error in a task"),
        ("/probe", "blocking-panic", "panic on a blocking thread"),
    ] {
        let mut client = Client::connect(server.address, path);
        assert!(events.next().starts_with("open"));
        if !command.is_empty() {
            tell(&mut client, command);
        }
        events.expect(told);
        assert_eq!(client.expect_closed(1011), "internal error", "{command}");
        events.expect("close 1011 \"internal error\" Fault");
        bystander.expect_alive();
    }
    let mut client = Client::connect(server.address, "/probe");
    events.next();
    client.send(&Frame::close(4000, "panic in on_close"));
    events.expect("close 4000 \"panic in on_close\" Peer");
    events.expect("panic in on_close");
    client.expect_close(4000);
    bystander.expect_alive();
    server.end();
}

#[test]
fn on_close_says_what_brought_the_end_about() {
    let (server, events) = probe_server();
    let expect = |end: &str| {
        assert!(events.next().starts_with("open"));
        events.expect(end);
    };
    let connect = || Client::connect(server.address, "/probe");
    let mut client = connect();
    client.send(&Frame::close(3000, "bye"));
    expect("close 3000 \"bye\" Peer");
    let mut client = connect();
    client.send(&Frame::new(frame::CLOSE, vec![]));
    expect("close 1005 \"\" Peer");
    let mut client = connect();
    client.send(&Frame::new(3, vec![]));
    let line = (events.next(), events.next()).1;
    assert!(line.starts_with("close 1002") && line.ends_with("Protocol"), "{line}");
    connect().reset();
    expect("close 1006 \"\" Transport");
    let mut draining = connect();
    events.next();
    server.server.as_ref().expect("it runs").handle().shutdown();
    assert_eq!(draining.expect_closed(1012), "server is restarting");
    events.expect("close 1012 \"server is restarting\" Drain");
    server.end();
}

#[test]
fn the_servers_end_waits_for_on_close_of_clients_that_do_not_answer() {
    struct Slow(Log);
    impl Component for Slow {
        fn on_close(&mut self, _connection: &Connection, reason: &CloseReason) {
            std::thread::sleep(Duration::from_millis(300));
            self.0.write(format!("{:?}", reason.cause));
        }
    }
    let (log, events) = log();
    let server = Running::start(app().cores(1).route("/slow", move || Slow(log.clone())));
    let clients = [Client::connect(server.address, "/slow"), Client::connect(server.address, "/slow")];
    server.end();
    assert_eq!(events.rest(), ["Drain", "Drain"]);
    drop(clients);
}

/// Subscribes as its path says; what it gets is published by its clients.
struct Late;

impl Component for Late {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        match connection.path_parameter("how").as_deref() {
            Some("last") => connection.subscribe_from("late", Start::Latest(2), Notice::Always)?,
            Some("ids") => {
                connection.show_message_ids();
                connection.subscribe_from("late", Start::Latest(1), Notice::Never)?;
            }
            Some("ids-live") => {
                connection.show_message_ids();
                connection.subscribe("late")?;
            }
            _ => connection.subscribe("late")?,
        }
        Ok(())
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        match message.as_bytes() {
            // A second subscription changes nothing, nor does it from another place.
            b"again" => connection.subscribe_from("late", Start::Latest(99), Notice::Always)?,
            b"leave and come" => {
                connection.unsubscribe("late")?;
                connection.subscribe_from("late", Start::Latest(1), Notice::Never)?;
                connection.subscribe_from("late", Start::Latest(3), Notice::Always)?;
            }
            _ => connection.publish("late", message)?,
        }
        Ok(())
    }
}

#[test]
fn connection_subscribe_from_begins_in_the_past() {
    let app = app().cores(3).configure(|config| config.history = 10);
    let server = Running::start(app.route("/{how}", || Late));
    let mut live = Client::connect(server.address, "/live");
    for n in 1..=5 {
        tell(&mut live, &n.to_string());
        live.expect_text(&n.to_string());
    }
    // Connections on all cores, the topic's owner among them.
    for _ in 0..12 {
        let mut late = Client::connect(server.address, "/last");
        let notice = String::from_utf8(late.message().payload).expect("text");
        assert!(notice.starts_with("{\"recovered\":true,\"topic\":\"late\",\"epoch\":\""), "{notice}");
        assert!(notice.ends_with("\",\"offset\":3}"), "{notice}");
        late.expect_text("4");
        late.expect_text("5");
        tell(&mut late, "again");
        late.expect_alive();
        tell(&mut late, "leave and come");
        late.expect_text("5");
        late.expect_alive();
        let mut ids = Client::connect(server.address, "/ids");
        let message = String::from_utf8(ids.message().payload).expect("text");
        assert!(
            message.starts_with("id: ") && message.ends_with(":5\ncontent-type: text/plain\n\n5"),
            "{message}"
        );
    }
    let mut ids: Vec<Client> = (0..12).map(|_| Client::connect(server.address, "/ids-live")).collect();
    tell(&mut live, "6");
    for client in &mut ids {
        let message = String::from_utf8(client.message().payload).expect("text");
        assert!(message.ends_with(":6\ncontent-type: text/plain\n\n6"), "{message}");
    }
    server.end();
}

#[test]
fn stop_now_closes_orderly_on_the_cores_that_are_not_stuck() {
    struct Stuck(Log);
    impl Component for Stuck {
        fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
            match message.as_bytes() {
                b"core" => connection.send(&connection.core().shard().to_string()),
                _ => {
                    self.0.write("stuck");
                    std::thread::sleep(Duration::from_secs(4));
                }
            }
            Ok(())
        }
    }
    let (log, events) = log();
    let server = Running::start(app().cores(2).route("/", move || Stuck(log.clone())));
    let mut clients: [Option<Client>; 2] = [None, None];
    while clients.iter().any(Option::is_none) {
        let mut client = Client::connect(server.address, "/");
        tell(&mut client, "core");
        let core = String::from_utf8(client.message().payload).expect("text");
        clients[core.parse::<usize>().expect("a number")] = Some(client);
    }
    let [stuck, free] = &mut clients;
    tell(stuck.as_mut().expect("a client"), "sleep");
    events.expect("stuck");
    server.server.as_ref().expect("it runs").handle().stop_now();
    assert_eq!(free.as_mut().expect("a client").expect_closed(1012), "server is restarting");
    server.end();
}

#[test]
fn on_drain_tells_that_a_full_queue_has_emptied() {
    let (log, events) = log();
    let app = app().configure(|config| {
        config.send_queue_bytes = 64 * 1024 * 1024;
        config.max_message_bytes = 16 * 1024 * 1024;
    });
    let server = Running::start(app.route("/probe", move || Probe::new(log.clone())));
    let mut slow = Client::connect_narrow(server.address, "/probe");
    events.next();
    slow.send(&Frame::binary(vec![7; 8 * 1024 * 1024]));
    assert_eq!(slow.message().payload.len(), 8 * 1024 * 1024);
    events.expect("drain 0");
    server.end();
}

#[test]
fn a_slow_consumer_is_closed_with_its_reason() {
    let (log, events) = log();
    let app = app().configure(|config| config.send_queue_bytes = 16 * 1024);
    let server = Running::start(app.route("/probe", move || Probe::new(log.clone())));
    let mut slow = Client::connect_narrow(server.address, "/probe");
    events.next();
    let chunk: Vec<u8> = (0..64).flat_map(|_| Frame::binary(vec![1; 16_000]).masked()).collect();
    // Until the server has closed it and, as it does not end by itself, given it up.
    while slow.send_raw(&chunk).is_ok() {}
    // It may have caught up at first.
    let end = std::iter::repeat_with(|| events.next()).find(|line| !line.starts_with("drain"));
    assert_eq!(end.as_deref(), Some("close 1008 \"slow consumer\" SlowConsumer"));
    server.end();
}

#[test]
fn the_end_of_a_client_is_orderly_when_the_server_closes() {
    let (server, _events) = probe_server();
    let mut client = Client::connect(server.address, "/probe");
    tell(&mut client, "close now");
    client.expect_close(4001);
    client.send(&Frame::close(4001, ""));
    assert_eq!(client.expect_gone(), End::Orderly);
    server.end();
}

/// Publishes, and leaves or is closed in the same callback.
struct Leaves;

impl Component for Leaves {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        connection.subscribe("a")?;
        connection.subscribe("b")?;
        Ok(())
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        connection.publish("a", "first")?;
        connection.publish("b", "second")?;
        match message.as_text() {
            Some("unsubscribe") => {
                connection.unsubscribe("a")?;
                connection.publish("a", "not for it any more")?;
                connection.unsubscribe("b")?;
            }
            _ => connection.close(corecast::CloseCode::Normal),
        }
        Ok(())
    }
}

#[test]
fn what_was_published_before_one_leaves_still_reaches_it_on_its_core_in_order() {
    let server = Running::start(app().cores(1).route("/", || Leaves));
    let mut client = Client::connect(server.address, "/");
    tell(&mut client, "unsubscribe");
    client.expect_text("first");
    client.expect_text("second");
    client.expect_alive();
    let mut client = Client::connect(server.address, "/");
    tell(&mut client, "close");
    client.expect_text("first");
    client.expect_text("second");
    client.expect_closed(1000);
    server.end();
}
