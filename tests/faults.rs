//! A hostile world: clients that vanish, resets, no descriptors left, storms of connections, shards without CPU.
//! After each of them the server holds what it held before, and clients beside the fault noticed nothing.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::client::{Client, Upgrade};
use support::frame::Frame;
use support::server::{Launch, Server};
use support::swarm::{Member, Swarm};
use support::sys::{self, Cage};
use support::{PATIENCE, wait_for};

/// How a client goes away.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Close,
    Reset,
    HalfClose,
}

/// A client in some state of its life, ready to vanish.
fn client_in_state(server: &Server, state: usize) -> Client {
    let mut client = Client::open_socket(server.data).expect("connect");
    let upgrade = Upgrade::to("/echo").bytes();
    let mut send = |bytes: &[u8]| client.send_raw(bytes).expect("send");
    let text = Frame::text("some text").masked();
    match state {
        0 => {}                                                                        // nothing said
        1 => send(&upgrade[..30]), // in the middle of the request
        2 => send(&upgrade),       // the answer not read
        3 => send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"), // a refusal not read
        4 => send(&[&upgrade[..], &text[..1]].concat()), // in a frame's header
        5 => send(&[&upgrade[..], &text[..9]].concat()), // in a frame's payload
        6 => send(&[&upgrade[..], &Frame::text("x").unfinished().masked()].concat()), // in a message
        7 => send(&[&upgrade[..], &Frame::close(1000, "").masked()].concat()), // the close's echo not read
        8 => send(&[&upgrade[..], &Frame::text("x").with_rsv(7).masked()].concat()), // failed by the server
        9 => send(&[&upgrade[..], &Frame::binary(vec![1; 60_000]).masked()].concat()), // an echo not read
        10 => {
            client = server.connect("/sub/a"); // subscribed
        }
        11 => {
            client = server.connect("/sub/a");
            client.send_text("not allowed here"); // closed with 1008, not answered
            client.expect_close(1008);
        }
        _ => unreachable!("states are counted by STATES"),
    }
    client
}

const STATES: usize = 12;

#[test]
fn clients_that_vanish_in_any_state_leave_nothing_behind() {
    let server = Server::start_shards(2, &["--echo", "--handshake-timeout", "3s"]);
    let before = server.holdings();
    let mut bystander = server.connect("/sub/a");
    for round in 0..4 {
        let mut half_closed = Vec::new();
        for state in 0..STATES {
            for leave in [Leave::Close, Leave::Reset, Leave::HalfClose] {
                let client = client_in_state(&server, state);
                if round % 2 == 1 {
                    thread::sleep(Duration::from_millis(2)); // let the server get to that state first
                }
                match leave {
                    Leave::Close => drop(client),
                    Leave::Reset => client.reset(),
                    Leave::HalfClose => {
                        client.end_sending();
                        half_closed.push((state, client));
                    }
                }
            }
        }
        // The server must end a connection whose client will send no more, whatever it was about to say.
        for (state, mut client) in half_closed {
            let start = Instant::now();
            let ended = client.drain(PATIENCE);
            assert!(ended, "half-closed in state {state}, and not ended after {:?}", start.elapsed());
        }
        server.publish("a", &format!("round {round}"));
        bystander.expect_text(&format!("round {round}"));
    }
    drop(bystander);
    server.expect_holdings(&before);
}

#[test]
fn resets_in_the_middle_of_a_fanout_touch_nobody_else() {
    const MESSAGES: usize = 300;
    let server = Server::start_shards(2, &[]);
    let before = server.holdings();
    let mut stable = Swarm::connect(server.data, "/sub/a", 100);
    let mut doomed: Vec<Client> = (0..150).map(|_| server.connect("/sub/a")).collect();
    let mut http = server.http();
    for n in 0..MESSAGES {
        http.post("/pub/a", n.to_string().as_bytes()).expect("publish").expect(201);
        let leaving = if n % 2 == 1 { doomed.pop() } else { None };
        if let Some(client) = leaving {
            client.reset(); // unread messages wait in its receive buffer
        }
        stable.pump(Duration::ZERO);
    }
    stable.read_messages(MESSAGES);
    expect_sequence(&stable.members, MESSAGES);
    server.wait_connections(100);
    drop((stable, http));
    server.expect_holdings(&before);
}

/// Each member got the numbers 0..count, once and in order.
#[track_caller]
fn expect_sequence(members: &[Member], count: usize) {
    for member in members {
        let numbers: Vec<usize> =
            member.messages.iter().map(|message| message.text().parse().expect("a number")).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn at_the_limit_derived_from_descriptors_newcomers_get_503_until_others_leave() {
    let server = Launch::new(&[]).cage(Cage { descriptors: Some(300), ..Cage::default() }).start();
    let before = server.holdings();
    for _ in 0..3 {
        let mut held = Vec::new();
        let refused = loop {
            assert!(held.len() < 300, "more connections than descriptors");
            match Upgrade::to("/sub/a").send(server.data).expect("neither accepted nor refused") {
                (response, client) if response.status == 101 => held.push(client),
                (response, _) => break response,
            }
        };
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.header("Retry-After").is_some(), "{refused:?}");
        assert!(held.len() >= 64, "room for {} connections only", held.len());
        // There is still room for the control port: that is what the derived limit leaves.
        server.publish("a", "full house");
        for client in &mut held {
            client.expect_text("full house");
        }
        drop(held);
        server.expect_holdings(&before);
    }
}

#[test]
fn without_descriptors_the_others_are_served_and_newcomers_wait_or_are_refused() {
    let server = Server::start_shards(2, &["--max-connections", "1000"]);
    let before = server.holdings();
    let mut stable = Swarm::connect(server.data, "/sub/a", 20);
    let mut http = server.http();
    http.post("/pub/a", b"0").expect("publish").expect(201);

    let (soft, _) = sys::descriptor_limits(server.pid()).expect("limits");
    let room = 8;
    sys::set_soft_descriptors(server.pid(), (server.descriptors() + room) as u64).expect("prlimit");
    let mut newcomers: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = Client::open_socket(server.data).expect("connect");
            let _ = client.send_raw(&Upgrade::to("/sub/a").bytes()); // it may have been refused already
            client
        })
        .collect();
    let cpu_before = server.cpu_time();
    let start = Instant::now();
    for n in 1..40 {
        http.post("/pub/a", n.to_string().as_bytes()).expect("publish").expect(201);
        stable.read_messages(n + 1);
        thread::sleep(Duration::from_millis(25));
    }
    let busy = (server.cpu_time() - cpu_before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(busy < 0.6, "the server spins without descriptors: {busy:.2} of a core");
    expect_sequence(&stable.members, 40);

    // Half of the newcomers give up; with the limit lifted, the others are answered or were refused before.
    newcomers.truncate(50);
    sys::set_soft_descriptors(server.pid(), soft).expect("prlimit");
    for mut client in newcomers {
        match client.read_response() {
            Ok(response) => assert!(matches!(response.status, 101 | 503), "{response:?}"),
            Err(error) => assert!(
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
                "a newcomer was forgotten"
            ),
        }
    }
    server.connect("/sub/a").expect_alive();
    drop((stable, http));
    server.expect_holdings(&before);
}

/// Sockets that stay readable, or ended, with nothing to be read from them.
#[test]
fn nobody_is_waited_for_with_a_busy_cpu() {
    let server = Server::start_shards(1, &["--echo", "--send-queue", "1MiB"]);
    let mut ended = Client::connect_narrow(server.data, "/sub/feed");
    let mut published = 0;
    while server.metrics().sum("corecast_send_queue_bytes", &[]) < 100_000.0 {
        server.publish("feed", &"x".repeat(50_000));
        published += 1;
    }
    // The answer to its close has to wait for the rest, while its end can be read all the time.
    ended.send(&Frame::close(1000, ""));
    ended.end_sending();
    let mut urgent: Vec<Client> =
        ["/echo", "/sub/other"].into_iter().map(|path| server.connect(path)).collect();
    urgent[0].send_text("in band");
    urgent[0].expect_text("in band");
    urgent.iter().for_each(Client::send_urgent);

    let (cpu_before, start) = (server.cpu_time(), Instant::now());
    thread::sleep(Duration::from_secs(1));
    let busy = (server.cpu_time() - cpu_before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(busy < 0.5, "the server spins: {busy:.2} of a core");
    for _ in 0..published {
        assert_eq!(ended.message().payload.len(), 50_000);
    }
    assert_eq!(ended.expect_failed(1000), "");
    urgent.iter_mut().for_each(Client::expect_alive);
}

#[test]
fn a_thousand_connects_a_second_do_not_disturb_a_fanout() {
    const CONNECTS: usize = 3000;
    let server = Server::start_shards(2, &["--echo", "--client-publish"]);
    let before = server.holdings();
    let mut stable = Swarm::connect(server.data, "/sub/feed", 100);
    let over = AtomicBool::new(false);
    let published = thread::scope(|scope| {
        let churn = scope.spawn(|| {
            let start = Instant::now();
            for n in 0..CONNECTS {
                match n % 5 {
                    0 => drop(server.connect("/sub/feed")),
                    1 => server.connect("/sub/feed,other").reset(),
                    2 => drop(client_in_state(&server, n % 10)),
                    3 => server.connect("/echo").close(1000),
                    _ => client_in_state(&server, n % 10).reset(),
                }
                let due = Duration::from_millis(n as u64); // 1,000 a second
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            over.store(true, Ordering::Relaxed);
            start.elapsed()
        });
        let mut http = server.http();
        let mut published = 0;
        while !over.load(Ordering::Relaxed) {
            http.post("/pub/feed", published.to_string().as_bytes()).expect("publish").expect(201);
            published += 1;
            stable.pump(Duration::from_millis(5));
        }
        println!("{CONNECTS} connects in {:?}", churn.join().expect("the churn panicked"));
        published
    });
    stable.read_messages(published);
    expect_sequence(&stable.members, published);
    server.wait_connections(100);
    drop(stable);
    server.expect_holdings(&before);
    let metrics = server.metrics();
    let opened = metrics.sum("corecast_connections_opened_total", &[]);
    let closed = metrics.sum("corecast_connections_closed_total", &[]);
    assert_eq!(opened, closed, "every connection that was opened is counted as closed");
}

#[test]
fn shards_that_share_their_cpus_with_busy_threads_never_stall() {
    starve("auto");
}

#[test]
fn starved_shards_that_wait_in_their_executor_never_stall_either() {
    starve("executor"); // glommio's lost wake-ups showed as stalls of 20 s
}

/// Four shards beside two busy threads per CPU: no delivery may take as long as a lost wake-up would.
fn starve(wait: &str) {
    let server = Server::start_shards(4, &["--wait", wait]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", 40);
    let mut http = server.http();
    let over = AtomicBool::new(false);
    let mut longest = Duration::ZERO;
    thread::scope(|scope| {
        for cpu in sys::allowed_cpus() {
            for _ in 0..2 {
                let over = &over;
                scope.spawn(move || {
                    sys::pin(&[cpu]).expect("sched_setaffinity");
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
        }
        let stop_at_the_end = StopAtDrop(&over);
        let start = Instant::now();
        let mut published = 0;
        while start.elapsed() < Duration::from_secs(6) {
            let sent = Instant::now();
            http.post("/pub/a", published.to_string().as_bytes()).expect("publish").expect(201);
            published += 1;
            swarm.read_messages(published);
            longest = longest.max(sent.elapsed());
            // Pauses of changing length, so that shards are met parked, parking and awake.
            thread::sleep(Duration::from_micros((published as u64 * 7919) % 30_000));
        }
        drop(stop_at_the_end);
        expect_sequence(&swarm.members, published);
    });
    println!("the longest delivery took {longest:?}");
    assert!(longest < Duration::from_secs(10), "a delivery took {longest:?}");
}

/// Ends the busy threads even when the test fails.
struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_shard_that_stands_still_is_told_by_live_and_loses_nothing() {
    let server = Server::start(&["--cores", "2", "--oversubscribe"]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", 20);
    server.wait_status("/live", 200);
    let Some(frozen) = server.freeze_a_shard() else {
        return;
    };
    wait_for("/live to tell of a shard that stands still", || {
        let live = server.get("/live");
        (live.status == 503 && !live.body.is_empty()).then_some(())
    });
    drop(frozen);
    server.wait_status("/live", 200);
    server.publish("a", "awake again");
    swarm.read_messages(1);
    server.wait_metric("corecast_loop_stall_seconds_total", &[], |seconds| seconds > 1.0);
}

#[test]
fn a_full_ring_is_429_to_the_publisher_and_nothing_accepted_is_lost() {
    let server = Server::start(&["--cores", "2", "--oversubscribe", "--send-queue", "256MiB"]);
    let topics = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut swarm = Swarm::connect(server.data, &format!("/sub/{}", topics.join(",")), 20);
    let Some(frozen) = server.freeze_a_shard() else {
        return;
    };

    let topic = server.answered_topic(&topics, b"tried");
    let mut http = server.http();
    let mut accepted = Vec::new();
    let start = Instant::now();
    // Large messages meet the bound on bytes, after a fraction of the publishes that the bound on messages takes.
    let padding = " ".repeat(60 * 1024);
    let refused = loop {
        assert!(start.elapsed() < PATIENCE, "{} publishes, and none was ever refused", accepted.len());
        let text = format!("{topic} {}", accepted.len());
        let answer =
            http.post(&format!("/pub/{topic}"), format!("{text}{padding}").as_bytes()).expect("publish");
        match answer.status {
            201 => accepted.push(text),
            _ => break answer,
        }
        if accepted.len() % 64 == 0 {
            swarm.pump(Duration::ZERO);
        }
    };
    println!("refused after {} publishes", accepted.len());
    assert_eq!(refused.status, 429, "{refused:?} {}", refused.text());
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    drop(frozen);

    let prefix = format!("{topic} ");
    let of_topic = |member: &Member| -> Vec<String> {
        let texts = member.messages.iter().map(|message| message.text().trim_end().to_owned());
        texts.filter(|text| text.starts_with(&prefix)).collect()
    };
    let end = format!("{topic} end");
    wait_for("publishes to be accepted again", || {
        let answer = server.http().post(&format!("/pub/{topic}"), end.as_bytes()).ok()?;
        (answer.status == 201).then_some(())
    });
    swarm.read_until("the end of the topic", |members| {
        members.iter().all(|member| member.messages.iter().any(|message| message.text() == end))
    });
    accepted.push(end);
    for member in &swarm.members {
        assert_eq!(of_topic(member), accepted, "what was accepted is not what arrived");
    }
    let metrics = server.metrics();
    assert!(metrics.sum("corecast_ring_full_total", &[]) > 0.0, "a full ring was not counted");
    let refused = metrics.sum("corecast_publishes_refused_total", &[("reason", "ring_full")]);
    let dropped = metrics.sum("corecast_deliveries_dropped_total", &[("reason", "ring_full")]);
    assert!(refused > 0.0, "a refused publish was not counted");
    assert_eq!(dropped, 20.0 * refused, "each refused publish had 20 subscribers");
}
