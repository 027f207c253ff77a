//! Every mode finds on several threads what it finds on one: what threads count is put together at the end.

use crate::broker::{self, Fault};
use crate::relay::{self, Behaviour};
use crate::{FANOUT, Run, run_against};

fn threads() -> usize {
    std::thread::available_parallelism().unwrap().get().min(2)
}

/// Runs a mode on as many CPUs as there are, at most two.
fn run(behaviour: Behaviour, arguments: &str) -> Run {
    // Silence ends a run in which something is lost. In others, pinned threads of a busy machine may be silent for longer.
    let lossy = matches!(behaviour, Behaviour::Lose(_) | Behaviour::LoseAtLast(_) | Behaviour::EchoLose(_));
    let timeout = if lossy { "--timeout 8s" } else { "" };
    on_threads(relay::start(behaviour), "pubsub/topic", &format!("{arguments} {timeout}"))
}

fn on_threads(address: std::net::SocketAddr, path: &str, arguments: &str) -> Run {
    let run = run_against(address, path, &format!("{arguments} --cpus 0-{}", threads() - 1));
    assert_eq!(run.document["settings"]["threads"], threads());
    run
}

#[test]
fn fanout_finds_what_is_repeated_reordered_and_damaged() {
    let fanout = |behaviour| run(behaviour, &format!("fanout {FANOUT}"));
    for (behaviour, reason, name) in [
        (Behaviour::Repeat(54), "1 messages duplicated", "duplicated"),
        (Behaviour::RepeatAtLast(54), "1 messages duplicated", "duplicated"),
        (Behaviour::Swap(20), "1 messages reordered", "reordered"),
        (Behaviour::Damage(20), "1 messages corrupted", "corrupted"),
        (Behaviour::Intrude(20), "1 messages foreign", "foreign"),
    ] {
        let run = fanout(behaviour);
        run.assert_failed(reason);
        assert_eq!(run.count(name), 1, "{}", run.text);
    }
    let run = fanout(Behaviour::Close(20));
    assert_eq!([run.error("close_1008"), run.count("lost"), run.count("sent")], [1, 35, 50]);
}

#[test]
fn fanout_finds_what_is_lost_at_the_first_and_at_the_last() {
    for behaviour in [Behaviour::Lose(20), Behaviour::LoseAtLast(20)] {
        let run = self::run(behaviour, &format!("fanout {FANOUT}"));
        run.assert_failed("1 messages lost");
        assert_eq!(run.count("lost"), 1, "{}", run.text);
    }
}

#[test]
fn fanout_in_an_open_loop_finds_them_too() {
    let open_loop = "fanout --connections 10 --rate 200 --duration 250ms --warmup 5";
    let run = self::run(Behaviour::Lose(20), open_loop);
    run.assert_failed("1 messages lost");
    assert_eq!([run.count("sent"), run.count("delivered")], [50, 549]);
    self::run(Behaviour::Swap(20), open_loop).assert_failed("1 messages reordered");
}

#[test]
fn echo_finds_what_is_lost_and_repeated() {
    let echo = "echo --connections 6 --rounds 20 --warmup 2";
    let run = self::run(Behaviour::Echo, echo);
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("delivered")], [120, 120]);
    let run = self::run(Behaviour::EchoLose(60), echo);
    run.assert_failed("1 messages lost");
    let run = self::run(Behaviour::EchoRepeat(60), echo);
    run.assert_failed("1 messages duplicated");
    assert_eq!([run.count("delivered"), run.count("lost")], [120, 0]);
}

#[test]
fn handshakes_that_fail_are_found_in_connect_idle_and_storm() {
    let refused = Behaviour::RefuseHandshakes(3, 5);
    let run = self::run(refused, "connect --connections 20");
    run.assert_failed("2 × handshake_status_503");
    assert_eq!([run.count("sent"), run.count("delivered"), run.count("lost")], [20, 18, 2]);
    assert_eq!(run.handshakes_over_time().iter().sum::<u64>(), 18);
    let run = self::run(refused, "idle --connections 20 --settle 50ms --duration 50ms");
    run.assert_failed("only 18 of 20 connections were opened");
    let run = self::run(Behaviour::RefuseHandshakes(20, 22), "storm --connections 20");
    run.assert_failed("2 × handshake_status_503");
    assert_eq!([run.count("sent"), run.count("delivered")], [22, 20]);
}

#[test]
fn storm_finds_what_is_lost_and_repeated_after_it() {
    let storm = "storm --connections 20";
    self::run(Behaviour::LoseAtLast(0), storm).assert_failed("nothing arrived for 8 s");
    self::run(Behaviour::RepeatAtLast(0), storm).assert_failed("1 messages duplicated");
}

#[test]
fn verify_finds_every_fault_of_a_resume_and_of_the_order() {
    let steady = "--churn 0 --connections 6 --topics 2 --rate 400 --duration 200ms";
    let verify = |fault, arguments: &str| {
        on_threads(broker::start(fault), "pubsub/t", &format!("verify --seed 7 {arguments}"))
    };
    for (fault, reason) in [
        (Fault::Lose(10), "1 messages lost"),
        (Fault::Repeat(10), "1 messages duplicated"),
        (Fault::Swap(10), "1 messages reordered"),
        (Fault::Damage(10), "1 messages corrupted"),
        (Fault::Misroute(10), "1 × misrouted"),
    ] {
        verify(fault, steady).assert_failed(reason);
    }
    let churn = "--churn 100 --connections 20 --topics 3 --rate 300 --duration 2s";
    verify(Fault::ResumeSkips, churn).assert_failed("messages lost");
    verify(Fault::ResumeRepeats, churn).assert_failed("messages duplicated");
}
