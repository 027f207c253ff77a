//! The result of a run: what every mode reports, as JSON (`schema.json`) and as the text block at the end.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::conductor::{Outcome, Stage};
use crate::host::{self, Host};
use crate::kernel_memory::KernelMemory;
use crate::latency::{Latency, Summary};
use crate::links::Faults;
use crate::process::{CpuUse, Observation};
use crate::received::Received;
use crate::schedule::Lag;
use crate::settings::Settings;
use crate::timeline::Timeline;

/// Raised when a reader of older documents would misread a newer one.
const SCHEMA_VERSION: u32 = 1;

/// What was sent, and what became of it, in the measured part; losses and disorder in the whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Counts {
    /// Messages, handshakes or round trips that were begun.
    pub(crate) sent: u64,
    /// Deliveries that should have come of it.
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    /// What the publisher itself received while nothing was expected there.
    pub(crate) publisher_delivered: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) corrupted: u64,
    /// Messages that this run did not send.
    pub(crate) foreign: u64,
    /// Everything else that went wrong, by kind.
    pub(crate) errors: Faults,
}

/// CPU of this process in the measured part.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClientUse {
    pub(crate) cpu_seconds: f64,
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
}

/// Resident memory of the server at the borders of the phases.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    pub(crate) before_connect: u64,
    pub(crate) before_measure: u64,
    pub(crate) after_measure: u64,
}

/// The server process.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServerUse {
    pub(crate) pid: u32,
    pub(crate) cpu: CpuUse,
    pub(crate) rss_bytes: Memory,
    pub(crate) anonymous_bytes: Memory,
}

/// One fault of those that are named; the counts have all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    pub(crate) what: &'static str,
    pub(crate) topic: String,
    /// Subscribers are numbered over all threads; the publishers, who hear themselves, come after them.
    pub(crate) subscriber: usize,
    /// Offset, or sequence number where there are no ids; number of the topic for `misrouted`.
    pub(crate) expected: u64,
    pub(crate) got: u64,
}

/// One round of a storm; times in seconds since the first connection was dropped.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Round {
    /// All connections are dropped.
    pub(crate) dropped_seconds: f64,
    pub(crate) first_back_seconds: f64,
    pub(crate) last_back_seconds: f64,
    /// A message published after the last one was back has reached all; null if nothing was published.
    pub(crate) receiving_seconds: Option<f64>,
    /// From the drop to the last one back.
    pub(crate) handshakes_per_second: f64,
}

/// One finished run.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    schema_version: u32,
    tool: &'static str,
    version: &'static str,
    pub(crate) mode: &'static str,
    /// What CPU is divided by: a delivery, a handshake, a round trip.
    pub(crate) unit: &'static str,
    pub(crate) passed: bool,
    pub(crate) failures: Vec<String>,
    started_unix_ms: u64,
    pub(crate) host: Host,
    commit: Option<&'static str>,
    command: Vec<String>,
    labels: BTreeMap<String, String>,
    pub(crate) settings: Map<String, Value>,
    pub(crate) measured_seconds: f64,
    pub(crate) counts: Counts,
    pub(crate) received: Received,
    /// Connections open when the measurement began.
    pub(crate) connected: usize,
    pub(crate) pings_answered: u64,
    /// Figures of the mode; the name ends with the unit.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Nanoseconds.
    pub(crate) latency: BTreeMap<&'static str, Summary>,
    /// Of `storm`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rounds: Vec<Round>,
    /// Handshakes of `connect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeline: Option<Timeline>,
    /// The first ones of `verify`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) faults: Vec<Fault>,
    /// Of `idle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel_memory: Option<KernelMemory>,
    pub(crate) client: ClientUse,
    pub(crate) server: Option<ServerUse>,
    #[serde(skip)]
    pub(crate) json: Option<std::path::PathBuf>,
}

impl Measurement {
    /// What all modes report, with the failures that all modes can have.
    pub(crate) fn new<M>(
        mode: &'static str,
        unit: &'static str,
        settings: Settings,
        mut counts: Counts,
        outcome: Outcome<M>,
    ) -> Self {
        counts.errors = outcome.faults;
        let (user_seconds, system_seconds) = outcome.client_cpu;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = now.as_millis() as u64 - (outcome.seconds * 1e3) as u64;
        let mut measurement = Self {
            schema_version: SCHEMA_VERSION,
            tool: "loadgen",
            version: env!("CARGO_PKG_VERSION"),
            mode,
            unit,
            passed: true,
            failures: Vec::new(),
            started_unix_ms: started,
            host: Host::here(),
            commit: host::commit(),
            command: std::env::args().collect(),
            labels: settings.labels.iter().cloned().collect(),
            settings: Map::new(),
            measured_seconds: outcome.seconds,
            counts,
            received: Received::default(),
            connected: outcome.connected,
            pings_answered: outcome.pings,
            figures: BTreeMap::new(),
            latency: BTreeMap::new(),
            rounds: Vec::new(),
            timeline: None,
            faults: Vec::new(),
            kernel_memory: None,
            client: ClientUse { cpu_seconds: user_seconds + system_seconds, user_seconds, system_seconds },
            server: settings.pid.zip(outcome.server.as_ref()).map(|(pid, server)| server_use(pid, server)),
            json: settings.json.clone(),
        };
        measurement.setting("url", settings.url.text.as_str());
        measurement.setting("publish_url", settings.publish_url.as_ref().map(|url| url.text.as_str()));
        measurement.setting("connections", settings.connections);
        measurement.setting("threads", settings.threads());
        measurement.setting("payload_bytes", settings.payload);
        measurement.setting("compression", settings.compression.map(|offer| offer.value()));
        measurement.setting("duration_seconds", settings.duration.map(|duration| duration.as_secs_f64()));
        measurement.disturbance(outcome.machine_cpu, outcome.rival_cpu, outcome.softirq_cpu);
        measurement.common_failures(outcome.planned, outcome.timed_out, outcome.server_gone, &settings);
        measurement
    }

    /// How much others disturbed the measurement, how much a rival was meant to, and what the kernel's threads did of the
    /// server's work; told only if the server's own share is known.
    ///
    /// The whole machine is known by clock ticks only, the parts taken from it in nanoseconds: on a quiet machine the
    /// others' share is noise around zero, and stays so below it, since a median of what is cut off on one side is biased.
    fn disturbance(
        &mut self,
        (busy_seconds, steal_seconds): (f64, f64),
        rival_seconds: Option<f64>,
        softirq_seconds: Option<f64>,
    ) {
        if let Some(server) = &self.server {
            let known = server.cpu.seconds + self.client.cpu_seconds + rival_seconds.unwrap_or(0.0);
            let percent = 100.0 / self.measured_seconds;
            self.figure("other_cpu_percent", (busy_seconds - known) * percent);
            self.figure("stolen_cpu_percent", steal_seconds * percent);
            for (name, seconds) in
                [("rival_cpu_percent", rival_seconds), ("ksoftirqd_cpu_percent", softirq_seconds)]
            {
                if let Some(seconds) = seconds {
                    self.figure(name, seconds * percent);
                }
            }
        }
    }

    fn common_failures(
        &mut self,
        planned: usize,
        timed_out: Option<Stage>,
        server_gone: bool,
        settings: &Settings,
    ) {
        if self.connected < planned {
            self.fail(format!(
                "only {} of {planned} connections were opened; nothing was measured",
                self.connected
            ));
        }
        if let Some(stage) = timed_out {
            let stage = match stage {
                Stage::Connect => "connecting",
                Stage::WarmUp => "the warm-up",
                _ => "the measurement",
            };
            self.fail(format!("nothing arrived for {} s during {stage}", settings.timeout.as_secs_f64()));
        }
        if server_gone {
            self.fail("the server process ended".to_owned());
        }
        let counts = self.counts.clone();
        let wrong = [
            ("lost", counts.lost),
            ("duplicated", counts.duplicated),
            ("reordered", counts.reordered),
            ("corrupted", counts.corrupted),
            ("foreign", counts.foreign),
        ];
        for (what, count) in wrong.into_iter().filter(|(_, count)| *count > 0) {
            match (what, self.unit) {
                ("lost", "handshake") => self.fail(format!("{count} handshakes failed")),
                _ => self.fail(format!("{count} messages {what}")),
            }
        }
        for (kind, count) in counts.errors {
            self.fail(format!("{count} × {kind}"));
        }
    }

    /// Marks the run as failed.
    pub(crate) fn fail(&mut self, reason: String) {
        self.passed = false;
        self.failures.push(reason);
    }

    /// Notes a setting of the mode.
    pub(crate) fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Notes a figure of the mode.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.figures.insert(name.into(), value);
        }
    }

    /// Notes `count` a second of the measured time.
    pub(crate) fn figure_rate(&mut self, name: impl Into<String>, count: u64) {
        self.figure(name, count as f64 / self.measured_seconds);
    }

    /// Notes the rate of `count` units, called `plural`, and both sides' CPU for one.
    pub(crate) fn per_unit(&mut self, count: u64, plural: &str) {
        let unit = self.unit.replace(' ', "_");
        self.figure_rate(format!("{}_per_second", plural.replace(' ', "_")), count);
        self.figure(format!("client_cpu_us_per_{unit}"), self.client.cpu_seconds * 1e6 / count as f64);
        if let Some(seconds) = self.server.as_ref().map(|server| server.cpu.seconds) {
            self.figure(format!("server_cpu_us_per_{unit}"), seconds * 1e6 / count as f64);
        }
    }

    /// Notes what arrived in the units counted.
    pub(crate) fn received(&mut self, received: Received) {
        let unit = self.unit.replace(' ', "_");
        self.figure(format!("wire_bytes_per_{unit}"), received.wire_bytes as f64 / received.messages as f64);
        self.received = received;
    }

    /// Notes how far the schedule of `rate` units a second, called `plural`, was kept; it is a failure if it was not.
    pub(crate) fn schedule(&mut self, rate: f64, count: u64, plural: &str, lag: Lag) {
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        self.figure("behind_schedule_seconds", seconds(lag.behind_ns));
        if !lag.is_allowed() {
            self.fail(format!(
                "the schedule was not kept: {rate} {plural}/s were asked for and {:.1} reached, {:.1} s behind at the end \
                 ({:.1} s are allowed)",
                count as f64 / self.measured_seconds,
                seconds(lag.behind_ns),
                seconds(lag.allowed_ns)
            ));
        }
    }

    /// Notes latencies; none at all are left out.
    pub(crate) fn latency(&mut self, name: &'static str, latency: &Latency) {
        if latency.count() > 0 {
            self.latency.insert(name, latency.summary());
        }
    }
}

fn server_use(pid: u32, [before, ready, after]: &[Observation; 3]) -> ServerUse {
    let memory = |bytes: fn(&Observation) -> u64| Memory {
        before_connect: bytes(before),
        before_measure: bytes(ready),
        after_measure: bytes(after),
    };
    ServerUse {
        pid,
        cpu: after.cpu_since(ready),
        rss_bytes: memory(|observation| observation.rss_bytes),
        anonymous_bytes: memory(|observation| observation.anonymous_bytes),
    }
}
