//! Servers one after another in one process.

#[path = "component/probe.rs"]
mod probe;
mod support;

use probe::{Probe, Running, app, log, tell};
use support::client::Client;
use support::frame::Frame;
use support::wait_for;

/// The only test of its file: others beside it would come and go with descriptors of their own.
#[test]
fn servers_one_after_another_leak_nothing() {
    const ROUNDS: usize = 6;
    let holdings = || {
        let count = |folder: &str| std::fs::read_dir(folder).expect("procfs").count();
        (count("/proc/self/fd"), count("/proc/self/task"))
    };
    let (log, _events) = log();
    let round = |turn: usize| {
        let log = log.clone();
        let server = Running::start(
            app().control(([127, 0, 0, 1], 0).into()).route("/probe", move || Probe::new(log.clone())),
        );
        let mut client = Client::connect(server.address, "/probe?topic=a");
        for command in ["spawn forever", "spawn", "blocking", "publish a", "siblings x"] {
            tell(&mut client, command);
        }
        while client.message() != Frame::text("for all") {}
        // With its tasks, its connection or neither alive, whatever the turn.
        if turn % 2 == 0 {
            drop(client);
        }
        server.end();
    };
    round(0);
    round(1);
    let before = holdings();
    (0..ROUNDS).for_each(round);
    // glommio 0.9.0 keeps one event descriptor of each executor that has ended; nothing else may stay.
    let (descriptors, threads) = (before.0 + 2 * ROUNDS, before.1);
    wait_for("descriptors and threads to go back to where they were", || {
        let now = holdings();
        (now.0 <= descriptors && now.1 <= threads).then_some(())
    });
}
