//! `GET /metrics` in the text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use hdrhistogram::Histogram;
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::dispatcher::Command;
use crate::log;
use crate::shard::stats::{CLOSE_LABELS, Cell, DropReason, ShardStats, TurnEnd};
use crate::ws::RejectReason;

/// Time for the shards' fan-out times; a shard that takes longer is counted as it was last seen.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(1);

/// Age up to which fan-out times are given out again, so that many scrapers cost the shards no more than one.
const SNAPSHOT_AGE: Duration = Duration::from_millis(250);

/// Upper bounds of the fan-out histogram, in microseconds and as the label says them in seconds.
const FANOUT_BUCKETS: [(u64, &str); 17] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
];

/// Labels of `publishes_total`.
const PUBLISH_SOURCES: [&str; 4] = ["http", "websocket", "component", "thread"];

/// Labels of `topics_refused_total`.
const TOPIC_REFUSALS: [&str; 2] = ["subscribe", "publish"];

/// Labels of `publishes_refused_total`.
const PUBLISH_REFUSALS: [&str; 2] = ["ring_full", "topics"];

/// Content type of the format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The shards' fan-out times in microseconds as last seen. Kept, because a counter that falls for one scrape looks
/// like a restart of the server.
#[derive(Default)]
pub(super) struct FanoutCache(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    taken: Option<Instant>,
    shards: Vec<Option<Box<Histogram<u64>>>>,
}

/// Fan-out times sorted into [`FANOUT_BUCKETS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fanout {
    buckets: [u64; FANOUT_BUCKETS.len()],
    count: u64,
    sum_micros: u64,
}

impl Fanout {
    fn new(histogram: &Histogram<u64>) -> Self {
        let mut fanout = Self { count: histogram.len(), ..Self::default() };
        for recorded in histogram.iter_recorded() {
            let (value, count) = (recorded.value_iterated_to(), recorded.count_at_value());
            // The histogram keeps a few digits: a value stands for its neighbours.
            let (low, middle) = (histogram.lowest_equivalent(value), histogram.median_equivalent(value));
            fanout.sum_micros = fanout.sum_micros.saturating_add(middle.saturating_mul(count));
            if let Some(bucket) = FANOUT_BUCKETS.iter().position(|(bound, _)| low <= *bound) {
                fanout.buckets[bucket] += count;
            }
        }
        fanout
    }
}

/// The handler.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let fanout = Fanout::new(&shared.fanout_micros().await);
    ([(CONTENT_TYPE, TEXT_FORMAT)], render(&shared, &fanout))
}

impl Shared {
    /// Fan-out times of all shards, in microseconds.
    pub(super) async fn fanout_micros(&self) -> Histogram<u64> {
        let mut cache = self.fanout.0.lock().await;
        let Seen { taken, shards } = &mut *cache;
        if taken.is_none_or(|taken| taken.elapsed() >= SNAPSHOT_AGE) {
            shards.resize(self.stats.len(), None);
            let deadline = Instant::now() + SNAPSHOT_TIMEOUT;
            let mut answers = Vec::with_capacity(shards.len());
            for shard in 0..shards.len() {
                let (reply, answer) = oneshot::channel();
                // A dispatcher that has ended drops the reply, which ends the wait below.
                let command = self.commands.send(Command::Snapshot { shard, reply });
                let _ = tokio::time::timeout_at(deadline, command).await;
                answers.push(answer);
            }
            for (seen, answer) in shards.iter_mut().zip(answers) {
                if let Ok(Ok(histogram)) = tokio::time::timeout_at(deadline, answer).await {
                    *seen = Some(histogram);
                }
            }
            *taken = Some(Instant::now());
        }
        merged(shards.iter().flatten())
    }
}

/// All of them in one, as exact as the shards' own.
fn merged<'a>(shards: impl Iterator<Item = &'a Box<Histogram<u64>>>) -> Histogram<u64> {
    let mut shards = shards.cloned();
    let mut all = shards.next().map_or_else(empty, |first| *first);
    all.auto(true);
    // One that grows as needed refuses no other.
    shards.for_each(|shard| all.add(&*shard).unwrap_or_default());
    all
}

fn empty() -> Histogram<u64> {
    Histogram::new(2).expect("two digits are possible")
}

/// The text under construction.
struct Exposition<'a> {
    text: String,
    stats: &'a [Arc<ShardStats>],
}

impl Exposition<'_> {
    /// Begins a metric. Writing to a `String` cannot fail, so results are dropped here and below.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP corecast_{name} {help}\n# TYPE corecast_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.text, "corecast_{name} {value}"),
            _ => writeln!(self.text, "corecast_{name}{{{labels}}} {value}"),
        };
    }

    /// A metric with one value.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.sample(name, "", value);
    }

    /// A metric with one value for each shard.
    fn per_core<V: Display>(&mut self, name: &str, kind: &str, help: &str, of: impl Fn(&ShardStats) -> V) {
        self.begin(name, kind, help);
        for (shard, stats) in self.stats.iter().enumerate() {
            self.sample(name, &format!("core=\"{shard}\""), of(stats));
        }
    }

    /// A counter with one value for each of `labels`, summed over the shards.
    fn summed<'l>(
        &mut self,
        name: &str,
        label: &str,
        help: &str,
        values: impl IntoIterator<Item = &'l str>,
        of: impl Fn(&ShardStats, usize) -> u64,
    ) {
        self.begin(name, "counter", help);
        for (index, value) in values.into_iter().enumerate() {
            let sum = self.stats.iter().fold(0, |sum: u64, stats| sum.wrapping_add(of(stats, index)));
            self.sample(name, &format!("{label}=\"{value}\""), sum);
        }
    }

    fn sum(&self, of: impl Fn(&ShardStats) -> &Cell) -> u64 {
        self.stats.iter().fold(0, |sum, stats| sum.wrapping_add(of(stats).get()))
    }
}

fn render(shared: &Shared, fanout: &Fanout) -> String {
    let mut out = Exposition { text: String::with_capacity(16 * 1024), stats: &shared.stats };
    render_process(&mut out, shared);
    render_control(&mut out, shared);
    render_connections(&mut out);
    render_topics(&mut out);
    render_publishes(&mut out, shared);
    render_messages(&mut out);
    render_fanout(&mut out, fanout);
    render_shards(&mut out, shared);
    out.text
}

fn render_process(out: &mut Exposition<'_>, shared: &Shared) {
    out.begin("build_info", "gauge", "Always 1; the labels name the build.");
    out.sample("build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    let draining = u8::from(shared.draining.load(Relaxed));
    out.single("draining", "gauge", "1 while the server drains, else 0.", draining);
    let limit = shared.settings.load().max_connections;
    out.single("max_connections", "gauge", "Connections that the process may have.", limit);
    let help = "Times SIGHUP had the configuration read again, by whether it could be.";
    out.begin("config_reloads_total", "counter", help);
    out.sample("config_reloads_total", "outcome=\"done\"", shared.reloads.done.load(Relaxed));
    out.sample("config_reloads_total", "outcome=\"failed\"", shared.reloads.failed.load(Relaxed));
}

fn render_control(out: &mut Exposition<'_>, shared: &Shared) {
    let help =
        "Connections of the control port cut for others: they kept it waiting longest, and all were taken.";
    let cut = shared.connections_cut.load(Relaxed);
    out.single("control_connections_cut_total", "counter", help, cut);
}

fn render_connections(out: &mut Exposition<'_>) {
    out.per_core("connections", "gauge", "WebSocket connections open now.", |s| s.connections.get());
    out.per_core("sockets", "gauge", "Sockets of clients in any state: handshaking, open, closing.", |s| {
        s.sockets.get()
    });
    out.per_core("connections_opened_total", "counter", "WebSocket connections opened.", |s| s.opened.get());
    let help =
        "WebSocket connections closed, by close code; 1006 is a connection lost without a close frame.";
    out.summed("connections_closed_total", "code", help, CLOSE_LABELS, |s, code| s.closed[code].get());
    let reasons = RejectReason::ALL.iter().map(|reason| reason.as_str());
    out.summed("handshakes_rejected_total", "reason", "Handshakes refused.", reasons, |s, index| {
        s.rejected[RejectReason::ALL[index].index()].get()
    });
    let value = out.sum(|s| &s.keepalive_timeouts);
    let help = "Connections dropped because no ping was answered.";
    out.single("keepalive_timeouts_total", "counter", help, value);
}

fn render_topics(out: &mut Exposition<'_>) {
    out.per_core("subscriptions", "gauge", "Subscriptions now; one connection may have several.", |s| {
        s.subscriptions.get()
    });
    let value = out.sum(|s| &s.topics);
    out.single("topics", "gauge", "Topics that there are now.", value);
    let help =
        "Subscriptions and publishes to a new topic, refused because there are as many as there may be.";
    out.summed("topics_refused_total", "by", help, TOPIC_REFUSALS, |s, by| match by {
        0 => s.topics_refused_subscribers.get(),
        _ => s.topics_refused_publishes.get(),
    });
    let value = out.sum(|s| &s.subscriptions_refused);
    let help = "Subscriptions refused to components because the connection has as many as it may have.";
    out.single("subscriptions_refused_total", "counter", help, value);
}

fn render_publishes(out: &mut Exposition<'_>, shared: &Shared) {
    let help = "Messages accepted, by where they came from.";
    out.summed("publishes_total", "source", help, PUBLISH_SOURCES, |s, source| match source {
        0 => s.publishes_http.get(),
        1 => s.publishes_websocket.get(),
        2 => s.publishes_component.get(),
        _ => s.publishes_thread.get(),
    });
    let help = "Messages refused as a whole, and their publishers told, by what there was no room in.";
    out.begin("publishes_refused_total", "counter", help);
    let on_control = shared.ring_full_publishes.load(Relaxed);
    let refused = [
        out.sum(|s| &s.ring_full_publishes).wrapping_add(on_control),
        out.sum(|s| &s.topics_refused_publishes),
    ];
    for (reason, publishes) in PUBLISH_REFUSALS.into_iter().zip(refused) {
        out.sample("publishes_refused_total", &format!("reason=\"{reason}\""), publishes);
    }
}

fn render_messages(out: &mut Exposition<'_>) {
    let help = "Messages handed to the kernel or to a connection's send queue.";
    out.per_core("deliveries_total", "counter", help, |s| s.deliveries.get());
    let help = "Bytes of deliveries, frame headers included.";
    out.per_core("delivery_bytes_total", "counter", help, |s| s.delivery_bytes.get());
    out.per_core("history_messages", "gauge", "Messages kept for those who come later.", |s| {
        s.history_messages.get()
    });
    let help = "Memory of the kept messages, in bytes.";
    out.per_core("history_bytes", "gauge", help, |s| s.history_bytes.get());
    let help = "Messages let go before their time because of --history-size.";
    out.per_core("history_evicted_total", "counter", help, |s| s.history_evicted.get());
    let help = "Subscriptions that asked to go on where they had been, by whether they could.";
    out.summed("resumes_total", "recovered", help, ["false", "true"], |s, outcome| s.resumes[outcome].get());
    let help = "Messages compressed: once per publish and window size, however many subscribers there are.";
    out.per_core("compressions_total", "counter", help, |s| s.compressions.get());
    let help = "Messages that did not reach a subscriber, each counted once for each of them. Of refused publishes, those \
                that came as far as the core which knows the subscribers.";
    let reasons = DropReason::ALL.map(DropReason::as_str);
    out.summed("deliveries_dropped_total", "reason", help, reasons, |s, reason| s.dropped[reason].get());
    let value = out.sum(|s| &s.slow_consumers);
    out.single(
        "slow_consumers_total",
        "counter",
        "Connections that met the limit of their send queue.",
        value,
    );
    let value = out.sum(|s| &s.pongs_left_out);
    let help = "Pings of clients with a full send queue that the answer to a later one stands for.";
    out.single("pongs_left_out_total", "counter", help, value);
    out.per_core("send_queue_bytes", "gauge", "Bytes that wait in send queues now.", |s| {
        s.send_queue_bytes.get()
    });
}

fn render_fanout(out: &mut Exposition<'_>, fanout: &Fanout) {
    let help = "Time from a publish being accepted to its last core having flushed it.";
    out.begin("fanout_seconds", "histogram", help);
    let mut below = 0;
    for ((_, bound), count) in FANOUT_BUCKETS.iter().zip(fanout.buckets) {
        below += count;
        out.sample("fanout_seconds_bucket", &format!("le=\"{bound}\""), below);
    }
    out.sample("fanout_seconds_bucket", "le=\"+Inf\"", fanout.count);
    out.sample("fanout_seconds_sum", "", fanout.sum_micros as f64 / 1e6);
    out.sample("fanout_seconds_count", "", fanout.count);
}

fn render_shards(out: &mut Exposition<'_>, shared: &Shared) {
    out.begin("ring_full_total", "counter", "Times a message found the ring between two cores full.");
    for (from, stats) in shared.stats.iter().enumerate() {
        for (to, full) in stats.ring_full.iter().enumerate().filter(|(to, _)| *to != from) {
            out.sample("ring_full_total", &format!("from=\"{from}\",to=\"{to}\""), full.get());
        }
    }
    for (to, full) in shared.ring_full.iter().enumerate() {
        out.sample("ring_full_total", &format!("from=\"control\",to=\"{to}\""), full.load(Relaxed));
    }
    out.per_core("loop_stall_seconds_total", "counter", "Time by which ticks came late.", |s| {
        s.loop_stall_nanos.get() as f64 / 1e9
    });
    let help = "Turns of connections that ended early for the sake of others, by what there was too much of.";
    let ends = TurnEnd::ALL.map(TurnEnd::as_str);
    out.summed("turns_ended_early_total", "reason", help, ends, |s, end| s.turns_ended[end].get());
    let value = out.sum(|s| &s.drain_markers_missed);
    let help = "Shards that a drain did not wait for any longer before it closed connections.";
    out.single("drain_markers_missed_total", "counter", help, value);
    let value = out.sum(|s| &s.callback_panics);
    let help = "Panics caught in callbacks of components and in their tasks.";
    out.single("callback_panics_total", "counter", help, value);
    let value = out.sum(|s| &s.callback_errors);
    let help = "Errors returned by callbacks of components and by their tasks.";
    out.single("callback_errors_total", "counter", help, value);
    let value = out.sum(|s| &s.rate_limited);
    let help = "Connections closed because they sent more messages than a rate limit lets pass.";
    out.single("rate_limited_connections_total", "counter", help, value);
    let help =
        "Log lines left out: more of a kind than --log-rate lets pass, or nobody reads them fast enough.";
    out.begin("log_lines_left_out_total", "counter", help);
    for (reason, lines) in log::left_out() {
        out.sample("log_lines_left_out_total", &format!("reason=\"{reason}\""), lines);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::super::testing::shared;
    use super::*;

    /// Reads the text as strictly as Prometheus does, and gives the samples by name and labels.
    fn parse(text: &str) -> HashMap<String, f64> {
        let (mut samples, mut types, mut helps) = (HashMap::new(), HashMap::new(), HashSet::new());
        let mut current = String::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words.as_slice() {
                ["#", "HELP", name, help] => {
                    assert!(helps.insert(name.to_string()) && !help.is_empty(), "{line}");
                    current = name.to_string();
                }
                ["#", "TYPE", name, kind] => {
                    assert_eq!(*name, current, "{line}");
                    assert!(["counter", "gauge", "histogram"].contains(kind), "{line}");
                    assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
                    assert!(types.insert(name.to_string(), kind.to_string()).is_none(), "{line}");
                }
                _ => {
                    let (series, value) = line.rsplit_once(' ').unwrap();
                    let name = series.split('{').next().unwrap();
                    let family = match types.get(&current).map(String::as_str) {
                        Some("histogram") => {
                            name.rsplit_once('_')
                                .filter(|(_, end)| ["bucket", "sum", "count"].contains(end))
                                .unwrap()
                                .0
                        }
                        _ => name,
                    };
                    assert_eq!(family, current, "{line}");
                    assert!(name.starts_with("corecast_"), "{line}");
                    let labels = series.strip_prefix(name).unwrap();
                    if !labels.is_empty() {
                        let labels = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
                        for label in labels.split(',') {
                            let (_, value) = label.split_once('=').unwrap();
                            assert!(
                                value.len() > 2 && value.starts_with('"') && value.ends_with('"'),
                                "{line}"
                            );
                        }
                    }
                    let duplicate = samples.insert(series.to_string(), value.parse::<f64>().unwrap());
                    assert_eq!(duplicate, None, "{line}");
                }
            }
        }
        assert_eq!(helps.len(), types.len());
        samples
    }

    #[test]
    fn every_metric_of_the_contract_is_there() {
        let samples = parse(&render(&shared(2), &Fanout::default()));
        let contract = "connections{core} connections_opened_total{core} connections_closed_total{code} \
            handshakes_rejected_total{reason} subscriptions{core} topics publishes_total{source} \
            deliveries_total{core} delivery_bytes_total{core} deliveries_dropped_total{reason} \
            slow_consumers_total fanout_seconds_bucket{le} fanout_seconds_sum fanout_seconds_count \
            ring_full_total{from,to} keepalive_timeouts_total send_queue_bytes{core} \
            loop_stall_seconds_total{core} draining build_info{version}";
        let without_values = |series: &String| {
            let mut parts = series.split('"');
            let mut shape = String::new();
            while let Some(part) = parts.next() {
                shape += part.trim_end_matches('=');
                parts.next();
            }
            shape
        };
        let shapes: HashSet<String> = samples.keys().map(without_values).collect();
        for metric in contract.split_whitespace() {
            assert!(shapes.contains(&format!("corecast_{metric}")), "{metric}: {shapes:?}");
        }
    }

    #[test]
    fn shards_are_told_apart_or_summed() {
        let shared = shared(2);
        for (shard, stats) in shared.stats.iter().enumerate() {
            let n = shard as u64 + 1;
            stats.connections.set(n);
            stats.closed[8].set(n);
            stats.rejected[0].set(n);
            stats.publishes_http.set(n);
            stats.publishes_thread.set(10 * n);
            stats.topics.set(n);
            stats.ring_full_publishes.set(n);
            stats.topics_refused_publishes.set(2 * n);
            stats.ring_full[1 - shard].set(n);
            stats.loop_stall_nanos.set(n * 1_500_000_000);
        }
        shared.draining.store(true, Relaxed);
        shared.ring_full[1].store(9, Relaxed);
        shared.ring_full_publishes.store(4, Relaxed);
        let samples = parse(&render(&shared, &Fanout::default()));
        let reason = format!("handshakes_rejected_total{{reason=\"{}\"}}", RejectReason::ALL[0].as_str());
        let expected = [
            ("connections{core=\"0\"}", 1.0),
            ("connections{core=\"1\"}", 2.0),
            ("connections_closed_total{code=\"1008\"}", 3.0),
            (reason.as_str(), 3.0),
            ("publishes_total{source=\"http\"}", 3.0),
            ("publishes_total{source=\"websocket\"}", 0.0),
            ("publishes_total{source=\"thread\"}", 30.0),
            ("topics", 3.0),
            ("publishes_refused_total{reason=\"ring_full\"}", 7.0),
            ("publishes_refused_total{reason=\"topics\"}", 6.0),
            ("ring_full_total{from=\"0\",to=\"1\"}", 1.0),
            ("ring_full_total{from=\"1\",to=\"0\"}", 2.0),
            ("ring_full_total{from=\"control\",to=\"1\"}", 9.0),
            ("loop_stall_seconds_total{core=\"1\"}", 3.0),
            ("draining", 1.0),
            ("max_connections", 100.0),
        ];
        for (series, value) in expected {
            assert_eq!(samples.get(&format!("corecast_{series}")), Some(&value), "{series}");
        }
        assert!(!samples.contains_key("corecast_ring_full_total{from=\"0\",to=\"0\"}"));
    }

    #[test]
    fn fanout_times_fall_into_their_buckets() {
        let mut one = Box::new(Histogram::new(3).unwrap());
        one.record_n(50, 2).unwrap();
        one.record(51).unwrap();
        let mut two = Box::new(Histogram::new(3).unwrap());
        two.record(10_000_000).unwrap();
        two.record(60_000_000).unwrap();
        let fanout = Fanout::new(&merged([&one, &two].into_iter()));
        let samples = parse(&render(&shared(1), &fanout));
        let bucket = |le: &str| samples[&format!("corecast_fanout_seconds_bucket{{le=\"{le}\"}}")];
        assert_eq!([bucket("0.00005"), bucket("0.0001"), bucket("5")], [2.0, 3.0, 3.0]);
        assert_eq!([bucket("10"), bucket("+Inf")], [4.0, 5.0]);
        assert_eq!(samples["corecast_fanout_seconds_count"], 5.0);
        let sum = samples["corecast_fanout_seconds_sum"];
        assert!((69.9..70.1).contains(&sum), "{sum}");
        for (micros, seconds) in FANOUT_BUCKETS {
            assert_eq!(seconds.parse::<f64>().unwrap() * 1e6, micros as f64);
        }
    }
}
