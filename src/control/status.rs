//! `GET /status`: the figures of the live page, as JSON. All counts are since the start; who wants rates takes the
//! difference of two answers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::Json;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::Shared;
use crate::clock;
use crate::shard::stats::ShardStats;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    /// Start of the server, in milliseconds of Unix time: totals count from 0 again when it changes.
    started_unix_millis: u64,
    uptime_micros: u64,
    draining: bool,
    /// Why new connections are not welcome; null if they are.
    not_ready: Option<String>,
    max_connections: u64,
    /// Addresses of the data port.
    websocket: Vec<String>,
    /// Whether a publish needs a token.
    publish_token: bool,
    cores: Vec<Core>,
    topics: u64,
    publishes: u64,
    deliveries_dropped: u64,
    slow_consumers: u64,
    keepalive_timeouts: u64,
    /// Fan-out times that occurred: the largest of those that are not told apart, and how many there were.
    fanout_micros: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct Core {
    core: usize,
    cpu: usize,
    connections: u64,
    subscriptions: u64,
    deliveries: u64,
    delivery_bytes: u64,
    send_queue_bytes: u64,
    loop_stall_micros: u64,
}

impl Core {
    fn new(core: usize, stats: &ShardStats) -> Self {
        Self {
            core,
            cpu: stats.cpu,
            connections: stats.connections.get(),
            subscriptions: stats.subscriptions.get(),
            deliveries: stats.deliveries.get(),
            delivery_bytes: stats.delivery_bytes.get(),
            send_queue_bytes: stats.send_queue_bytes.get(),
            loop_stall_micros: stats.loop_stall_nanos.get() / 1_000,
        }
    }
}

/// The handler.
pub(super) async fn status(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let fanout = shared.fanout_micros().await;
    ([(CACHE_CONTROL, "no-store")], Json(Status::new(&shared, &fanout, clock::monotonic_nanos())))
}

impl Status {
    fn new(shared: &Shared, fanout: &Histogram<u64>, now_nanos: u64) -> Self {
        let sum = |of: fn(&ShardStats) -> u64| {
            shared.stats.iter().fold(0, |sum: u64, stats| sum.wrapping_add(of(stats)))
        };
        let settings = shared.settings.load();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            started_unix_millis: shared.started_unix_millis,
            uptime_micros: now_nanos.saturating_sub(shared.started_nanos) / 1_000,
            draining: shared.draining.load(Relaxed),
            not_ready: shared.why_not_ready(now_nanos),
            max_connections: settings.max_connections,
            websocket: settings.websocket_addresses.iter().map(ToString::to_string).collect(),
            publish_token: settings.publish_token.is_some(),
            cores: shared.stats.iter().enumerate().map(|(core, stats)| Core::new(core, stats)).collect(),
            topics: sum(|stats| stats.topics.get()),
            publishes: sum(|stats| {
                let own = stats.publishes_component.get() + stats.publishes_thread.get();
                stats.publishes_http.get() + stats.publishes_websocket.get() + own
            }),
            deliveries_dropped: sum(|stats| stats.dropped.iter().map(|dropped| dropped.get()).sum()),
            slow_consumers: sum(|stats| stats.slow_consumers.get()),
            keepalive_timeouts: sum(|stats| stats.keepalive_timeouts.get()),
            fanout_micros: fanout
                .iter_recorded()
                .map(|recorded| (recorded.value_iterated_to(), recorded.count_at_value()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::shared;
    use super::*;

    #[test]
    fn the_figures_of_all_cores_are_told() {
        let shared = shared(2);
        for (shard, stats) in shared.stats.iter().enumerate() {
            let n = shard as u64 + 1;
            stats.connections.set(n);
            stats.deliveries.set(10 * n);
            stats.publishes_http.set(n);
            stats.publishes_websocket.set(n);
            stats.publishes_component.set(n);
            stats.dropped[0].set(n);
            stats.dropped[1].set(n);
            stats.last_tick_nanos.set(9_000_000);
        }
        let mut fanout = Histogram::new(2).unwrap();
        fanout.record_n(70, 3).unwrap();
        fanout.record(9_000).unwrap();
        let status = Status::new(&shared, &fanout, shared.started_nanos + 9_000_000);
        let told = serde_json::to_value(&status).unwrap();
        assert_eq!(told["cores"][1]["connections"], 2);
        assert_eq!((&told["cores"][1]["deliveries"], &told["cores"][1]["cpu"]), (&20.into(), &11.into()));
        assert_eq!((&told["publishes"], &told["deliveries_dropped"]), (&9.into(), &6.into()));
        assert_eq!((&told["uptime_micros"], &told["not_ready"]), (&9_000.into(), &().into()));
        assert_eq!(told["websocket"], serde_json::json!(["127.0.0.1:8080"]));
        assert_eq!(told["fanout_micros"][0], serde_json::json!([70, 3]));
        let [_, value] = [0, 1].map(|at| told["fanout_micros"][1][at].as_u64().unwrap());
        assert_eq!((value, told["fanout_micros"].as_array().unwrap().len()), (1, 2));
        shared.draining.store(true, Relaxed);
        let told = serde_json::to_value(Status::new(&shared, &fanout, 0)).unwrap();
        assert_eq!((&told["draining"], &told["not_ready"]), (&true.into(), &"draining".into()));
    }
}
