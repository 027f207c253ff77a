//! `GET /live` and `GET /ready`: one line that says yes, or why not.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;
use crate::clock;
use crate::shard::stats::places_taken;

/// A shard that has not ticked for so long counts as dead.
const TICK_LIMIT: Duration = Duration::from_secs(2);

/// Whether every shard ticks.
pub(super) async fn live(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    answer("live", shared.why_not_live(clock::monotonic_nanos()))
}

/// Whether new connections are welcome.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    answer("ready", shared.why_not_ready(clock::monotonic_nanos()))
}

fn answer(yes: &str, why_not: Option<String>) -> (StatusCode, String) {
    match why_not {
        None => (StatusCode::OK, format!("{yes}\n")),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

impl Shared {
    fn why_not_live(&self, now_nanos: u64) -> Option<String> {
        let draining = self.draining.load(Relaxed);
        let reasons =
            self.stats.iter().zip(&self.drained).enumerate().filter_map(|(shard, (stats, drained))| {
                if drained.load(Relaxed) {
                    // At the end of a drain this is what a shard should do.
                    return (!draining).then(|| format!("shard {shard} (CPU {}) has ended", stats.cpu));
                }
                let silence = Duration::from_nanos(now_nanos.saturating_sub(stats.last_tick_nanos.get()));
                (silence >= TICK_LIMIT).then(|| {
                    format!(
                        "shard {shard} (CPU {}) has not ticked for {:.1} s",
                        stats.cpu,
                        silence.as_secs_f64()
                    )
                })
            });
        let reasons: Vec<String> = reasons.collect();
        (!reasons.is_empty()).then(|| reasons.join("\n"))
    }

    /// Why new connections are not welcome, if they are not.
    pub(super) fn why_not_ready(&self, now_nanos: u64) -> Option<String> {
        if self.draining.load(Relaxed) {
            return Some("draining".to_owned());
        }
        // What shards decide by, too: newcomers would be refused.
        let taken = places_taken(&self.stats);
        let limit = self.settings.load().max_connections;
        if taken >= limit {
            return Some(format!("full: {taken} connections of at most {limit}"));
        }
        self.why_not_live(now_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::shared;
    use super::*;

    #[test]
    fn a_silent_shard_is_named() {
        let shared = shared(2);
        let second = 1_000_000_000;
        shared.stats[0].last_tick_nanos.set(9 * second);
        shared.stats[1].last_tick_nanos.set(7 * second + 1);
        assert_eq!(shared.why_not_live(9 * second), None);
        assert_eq!(shared.why_not_live(0), None);
        let reason = "shard 1 (CPU 11) has not ticked for 2.5 s";
        assert_eq!(shared.why_not_live(9 * second + second / 2).as_deref(), Some(reason));
        assert_eq!(shared.why_not_ready(9 * second + second / 2).as_deref(), Some(reason));
    }

    #[test]
    fn an_ended_shard_is_dead_unless_it_drained() {
        let shared = shared(1);
        shared.drained[0].store(true, Relaxed);
        assert_eq!(shared.why_not_live(0).as_deref(), Some("shard 0 (CPU 10) has ended"));
        shared.draining.store(true, Relaxed);
        assert_eq!(shared.why_not_live(u64::MAX), None);
    }

    #[test]
    fn full_and_draining_are_not_ready_but_live() {
        let shared = shared(2);
        let limit = shared.settings.load().max_connections;
        shared.stats[0].sockets.set(limit - 1);
        shared.stats[0].places.set(limit - 1);
        shared.stats[1].sockets.set(1);
        assert_eq!(shared.why_not_ready(0), None);
        shared.stats[1].sockets.set(2);
        shared.stats[1].places.set(1);
        let reason = format!("full: {limit} connections of at most {limit}");
        assert_eq!(shared.why_not_ready(0), Some(reason));
        shared.draining.store(true, Relaxed);
        assert_eq!(shared.why_not_ready(0).as_deref(), Some("draining"));
        assert_eq!(shared.why_not_live(0), None);
    }
}
