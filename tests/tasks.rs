//! Work beside the callbacks: futures, timers, blocking threads, and messages between the cores of a component.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corecast::{Component, Connection, Core, Message, Outcome};

use probe::{Log, Probe, Running, app, log, tell};
use support::client::Client;
use support::frame::Frame;
use support::{PATIENCE, QUIET};

#[test]
fn a_spawned_future_answers_later_and_others_are_served_meanwhile() {
    let (log, _events) = log();
    let server = Running::start(app().cores(1).route("/probe", move || Probe::new(log.clone())));
    let mut waiting = Client::connect(server.address, "/probe");
    let mut other = Client::connect(server.address, "/probe");
    for turn in 0..3 {
        tell(&mut waiting, "spawn");
        tell(&mut other, "echo meanwhile");
        other.expect_text("meanwhile");
        waiting.expect_text(&format!("later, after {turn} others"));
    }
    server.end();
}

#[test]
fn blocking_work_runs_beside_the_core() {
    let (log, _events) = log();
    let server = Running::start(app().route("/probe", move || Probe::new(log.clone())));
    let mut client = Client::connect(server.address, "/probe");
    for _ in 0..3 {
        tell(&mut client, "blocking");
        client.expect_text("beside the core");
    }
    server.end();
}

#[test]
fn tasks_may_use_handles_of_connections_that_have_gone() {
    let (log, events) = log();
    let server = Running::start(app().route("/probe", move || Probe::new(log.clone())));
    for what in ["send", "close", "error", "panic"] {
        let mut client = Client::connect(server.address, "/probe");
        tell(&mut client, &format!("spawn-beyond {what}"));
        tell(&mut client, "echo it runs");
        client.expect_text("it runs");
        client.reset();
        assert!(events.next().starts_with("open"));
        assert!(events.next().starts_with("close 1006"));
        events.expect(&format!("beyond its end: {what}"));
    }
    std::thread::sleep(QUIET);
    let mut client = Client::connect(server.address, "/probe");
    client.expect_alive();
    server.end();
    let rest = events.rest();
    assert_eq!(rest.len(), 2, "a failed task of a connection that has gone is nobody's fault: {rest:?}");
}

#[test]
fn the_servers_end_does_not_wait_for_tasks() {
    let (log, _events) = log();
    let server = Running::start(app().route("/probe", move || Probe::new(log.clone())));
    let mut client = Client::connect(server.address, "/probe");
    tell(&mut client, "spawn forever");
    tell(&mut client, "echo it runs");
    client.expect_text("it runs");
    drop(client);
    let start = Instant::now();
    server.end();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn components_on_different_cores_send_each_other_values() {
    let (log, events) = log();
    let server = Running::start(app().cores(3).route("/probe", move || Probe::new(log.clone())));
    // One connection on each core at least: the kernel chooses, so until it has.
    let mut clients: Vec<Option<Client>> = vec![None, None, None];
    for _ in 0..200 {
        let mut client = Client::connect(server.address, "/probe");
        tell(&mut client, "core");
        let text = String::from_utf8(client.message().payload).expect("text");
        let (core, shards) = text.split_once(" of ").expect("a number of cores");
        assert_eq!(shards, "3");
        clients[core.parse::<usize>().expect("a number")] = Some(client);
        if clients.iter().all(Option::is_some) {
            break;
        }
    }
    let mut clients: Vec<Client> =
        clients.into_iter().map(|client| client.expect("a core without client")).collect();
    for from in 0..3 {
        for n in 0..100 {
            tell(&mut clients[from], &format!("siblings {from}-{n}"));
        }
        for (at, client) in clients.iter_mut().enumerate().filter(|(at, _)| *at != from) {
            for n in 0..100 {
                client.expect_text(&format!("{from}-{n}"));
            }
            assert_ne!(at, from);
        }
    }
    server.end();
    let told = events.rest().iter().filter(|line| line.starts_with("sibling")).count();
    assert_eq!(told, 600);
}

/// Sends more to its siblings than they can take while this core is busy, and counts what is refused.
struct Flood {
    log: Log,
    received: u64,
}

impl Component for Flood {
    fn on_message(&mut self, connection: &Connection, _: Message<'_>) -> Outcome {
        let core = connection.core();
        let accepted = (0..100_000_u64).take_while(|n| core.send_to_siblings(n).is_ok()).count();
        self.log.write(format!("accepted {accepted}"));
        let again = core.send_to_siblings(&0_u64);
        assert!(again.is_err(), "room again within one callback");
        Ok(())
    }

    fn on_sibling(&mut self, _: &Core, message: corecast::SiblingMessage) -> Outcome {
        let number: u64 = message.downcast()?;
        assert_eq!(number, self.received, "out of order");
        self.received += 1;
        if self.received == 16 * 1024 {
            self.received = 0;
            self.log.write("all received");
        }
        Ok(())
    }
}

#[test]
fn what_siblings_cannot_take_is_refused_and_there_is_room_again_afterwards() {
    let (log, events) = log();
    let server = Running::start(app().route("/", move || Flood { log: log.clone(), received: 0 }));
    let mut client = Client::connect(server.address, "/");
    for _ in 0..3 {
        tell(&mut client, "go");
        let mut lines = [events.next(), events.next()];
        lines.sort();
        assert_eq!(lines, ["accepted 16384", "all received"]);
    }
    server.end();
}

/// Publishes from a timer to a topic that its connections subscribe to.
struct Ticker(Rc<Cell<u32>>);

impl Component for Ticker {
    fn on_start(&mut self, core: &Core) -> Outcome {
        let (core, ticks) = (core.clone(), self.0.clone());
        core.clone().spawn(async move {
            loop {
                core.sleep(Duration::from_millis(5)).await;
                ticks.set(ticks.get() + 1);
                core.publish("ticks", &format!("{} {}", core.shard(), ticks.get()))?;
            }
        });
        Ok(())
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        Ok(connection.subscribe("ticks")?)
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        connection.send(message);
        Ok(())
    }
}

#[test]
fn a_timer_publishes_to_subscribers_on_every_core() {
    let server = Running::start(app().route("/", || Ticker(Rc::default())));
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(server.address, "/")).collect();
    for client in &mut clients {
        let mut next = [None, None];
        let mut seen = [0, 0];
        // As long as it takes: one core may stand still for a while.
        while seen.iter().any(|&seen| seen < 20) {
            let text = String::from_utf8(client.message().payload).expect("text");
            let (core, tick) = text.split_once(' ').expect("two numbers");
            let (core, tick): (usize, u32) = (core.parse().expect("a core"), tick.parse().expect("a tick"));
            assert!(next[core].is_none_or(|next| next == tick), "a tick is missing or out of order");
            next[core] = Some(tick + 1);
            seen[core] += 1;
        }
    }
    server.end();
}

#[test]
fn timers_are_not_starved_by_a_core_that_is_never_idle() {
    let server = Running::start(app().cores(1).route("/", || Ticker(Rc::default())));
    let mut reader = Client::connect(server.address, "/");
    let address = server.address;
    // Echoes without end, in chunks: the shard has work in every pass.
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let flood = std::thread::spawn(move || {
        let mut client = Client::connect(address, "/");
        let chunk = Frame::binary(vec![0; 100]).masked().repeat(200);
        while !ended.load(Ordering::Relaxed) {
            client.send_raw(&chunk).expect("send");
            (0..200).for_each(|_| while client.message().payload.len() != 100 {});
        }
    });
    // A hundred ticks of 5 ms; at one for each turn of the executor's own 100 ms they take 10 s at least. A machine
    // that stands still may need another try.
    let quickest = (0..5).find_map(|_| {
        let start = Instant::now();
        (0..100).for_each(|_| drop(reader.message()));
        Some(start.elapsed()).filter(|&took| took < Duration::from_secs(6))
    });
    over.store(true, Ordering::Relaxed);
    flood.join().expect("the flood");
    assert!(quickest.is_some(), "timers wait for the executor's own turns");
    server.end();
}

struct FailsToStart(&'static str);

impl Component for FailsToStart {
    fn on_start(&mut self, core: &Core) -> Outcome {
        let core = core.clone();
        core.clone().spawn(async move {
            core.sleep(Duration::from_secs(3600)).await;
            Ok(())
        });
        match self.0 {
            "panic" => panic!("on purpose"),
            text => Err(text)?,
        }
    }
}

#[test]
fn a_component_that_fails_to_start_ends_the_start_and_says_why() {
    for text in ["no database", "panic"] {
        let error = app().route("/", move || FailsToStart(text)).start().expect_err("it started").to_string();
        assert!(
            error.contains("on_start") && (error.contains(text) || error.contains("on purpose")),
            "{error}"
        );
    }
}

/// Panics when it is dropped, as a task's value and as the component itself.
struct PanicsAtTheEnd;

impl Drop for PanicsAtTheEnd {
    fn drop(&mut self) {
        panic!("at the end");
    }
}

struct Ends(#[allow(dead_code, reason = "held for its drop")] PanicsAtTheEnd);

impl Component for Ends {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let core = connection.core();
        connection.spawn(async move {
            let _value = PanicsAtTheEnd;
            core.sleep(Duration::from_secs(3600)).await;
            Ok(())
        });
        connection.set_data(Rc::new(PanicsAtTheEnd));
        Ok(())
    }
}

#[test]
fn what_panics_when_it_is_dropped_does_not_fail_the_shard() {
    let server = Running::start(app().cores(1).route("/", || Ends(PanicsAtTheEnd)));
    let client = Client::connect(server.address, "/");
    client.reset();
    Client::connect(server.address, "/").expect_alive();
    server.end();
}

/// Publishes without end to a core that is busy, and again whenever it is refused.
struct Stubborn {
    log: Log,
    was_refused: bool,
    /// Until then the cores that were told to block do.
    released: Arc<AtomicBool>,
}

impl Component for Stubborn {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        Ok(connection.subscribe("all")?)
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let core = connection.core();
        match message.as_text() {
            Some("block") => {
                self.log.write("blocked");
                while !self.released.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Some("publish") => (0..40_000).try_for_each(|_| core.publish("all", "x"))?,
            Some("core") => connection.send(&core.shard().to_string()),
            _ => connection.send(message),
        }
        Ok(())
    }

    fn on_refused(&mut self, core: &Core, topic: &corecast::TopicName) {
        if !std::mem::replace(&mut self.was_refused, true) {
            self.log.write("refused");
        }
        // Retried at once, as it must not be: the core must survive it.
        let _ = core.publish(topic, "again");
    }
}

#[test]
fn publishing_again_when_refused_does_not_hang_the_core() {
    let (log, events) = log();
    let released = Arc::new(AtomicBool::new(false));
    let release = released.clone();
    let stubborn = move || Stubborn { log: log.clone(), was_refused: false, released: released.clone() };
    let server = Running::start(app().route("/", stubborn));
    let mut clients: Vec<Option<Client>> = vec![None, None];
    while clients.iter().any(Option::is_none) {
        let mut client = Client::connect(server.address, "/");
        tell(&mut client, "core");
        let core: usize = String::from_utf8(client.message().payload).expect("text").parse().expect("a core");
        clients[core] = Some(client);
    }
    let mut clients: Vec<Client> = clients.into_iter().flatten().collect();
    // Whichever core owns the topic, the other one is behind.
    for (blocked, publishing) in [(0, 1), (1, 0)] {
        release.store(false, Ordering::Relaxed);
        tell(&mut clients[blocked], "block");
        while events.next() != "blocked" {}
        tell(&mut clients[publishing], "publish");
        tell(&mut clients[publishing], "it lives");
        let start = Instant::now();
        while clients[publishing].message() != Frame::text("it lives") {
            assert!(start.elapsed() < PATIENCE, "messages without end");
        }
        events.expect("refused");
        release.store(true, Ordering::Relaxed);
        tell(&mut clients[blocked], "it lives again");
        while clients[blocked].message() != Frame::text("it lives again") {}
    }
    server.end();
}
