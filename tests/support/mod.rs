//! The independent witness of every behaviour test: a WebSocket client, an HTTP client, a metrics reader and a
//! way to run the server binary. Nothing here imports corecast, so that a mistake in `src/` cannot hide itself.
#![allow(dead_code, unreachable_pub)] // every test file uses its own part

use std::time::{Duration, Instant};

pub mod client;
pub mod frame;
pub mod http;
pub mod inflate;
pub mod metrics;
pub mod server;
pub mod swarm;
pub mod sys;

/// How long a test waits for what must happen. Wide, because CI machines stall; nothing waits for it in vain
/// unless the test is about to fail.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long a test watches for what must *not* happen. Never the end of what must: a stalled machine is quiet, too.
pub const QUIET: Duration = Duration::from_millis(300);

/// Polls `probe` until it answers; panics, naming `what`, when [`PATIENCE`] is over.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_at_most(PATIENCE, what, probe)
}

/// Polls `probe` until it answers; panics, naming `what`, when `limit` is over.
pub fn wait_at_most<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
