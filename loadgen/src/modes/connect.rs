//! `connect`: opening handshakes, as fast as allowed or on a schedule.
//!
//! Without `--duration` each of N connections is opened once. With it, the oldest connection is closed when N are open,
//! with a closing handshake or by a reset, and another one opened, so that the rate can be sustained. After a handshake that
//! failed it waits for [`RETRY_PAUSE_NS`] then, unless a schedule says when to go on: there is no end of handshakes that are
//! refused at once.

use std::collections::VecDeque;

use crate::arguments::ConnectArguments;
use crate::conductor::{self, Outcome, Plan, Stage};
use crate::document::{Counts, Measurement};
use crate::latency::Latency;
use crate::links::{Links, Slot};
use crate::modes::{CHURN_ADDRESSES, PORTS_PER_ADDRESS};
use crate::received::Message;
use crate::schedule::{Lag, Schedule, check_rate};
use crate::settings::Settings;
use crate::sys;
use crate::timeline::Timeline;
use crate::worker::{Mode, Turn};

const RETRY_PAUSE_NS: u64 = 100_000_000;

struct Connect {
    /// Connections to hold open, or to open once.
    connections: usize,
    rate: Option<f64>,
    /// How connections end.
    reset: bool,
    schedule: Option<Schedule>,
    duration_ns: Option<u64>,
    /// Handshakes to begin; unknown while only the duration bounds it.
    total: u64,
    until_ns: u64,
    handshakes_max: usize,
    oldest: VecDeque<Slot>,
    begun: u64,
    /// Before this none is begun.
    retry_ns: u64,
    lag: Option<Lag>,
    latency: Latency,
    started_ns: u64,
    timeline: Timeline,
    messages: u64,
}

/// Runs the mode.
pub(crate) fn run(arguments: ConnectArguments) -> Result<Measurement, crate::Failure> {
    let mut settings = Settings::check(arguments.common).map_err(crate::Failure::Arguments)?;
    if let Some(rate) = arguments.rate {
        check_rate(rate).map_err(crate::Failure::Arguments)?;
        settings.wait_for_rate(rate);
    }
    let threads = settings.threads();
    let thread = |index: usize| {
        let share = settings.share(index);
        let mode = Connect {
            connections: share,
            rate: arguments.rate.map(|rate| rate * share as f64 / settings.connections as f64),
            reset: arguments.reset,
            schedule: None,
            duration_ns: settings.duration.map(|duration| duration.as_nanos() as u64),
            total: share as u64,
            until_ns: u64::MAX,
            handshakes_max: settings.handshakes.div_ceil(threads),
            oldest: VecDeque::new(),
            begun: 0,
            retry_ns: 0,
            lag: None,
            latency: Latency::new(),
            started_ns: 0,
            timeline: Timeline::new(),
            messages: 0,
        };
        (mode, Vec::new())
    };
    let plan = Plan {
        threads: (0..threads).map(thread).collect(),
        targets: settings.targets(),
        ports_per_address: match settings.duration {
            Some(_) if !arguments.reset => settings.connections.div_ceil(CHURN_ADDRESSES),
            _ => PORTS_PER_ADDRESS,
        },
        expects_progress: true,
        kernel_memory: None,
    };
    let outcome = conductor::conduct(&settings, plan).map_err(crate::Failure::Run)?;
    let lag = outcome.modes.iter().filter_map(|mode| mode.lag).max_by_key(|lag| lag.behind_ns);
    let mut measurement = summarise(settings, outcome);
    if let Some((rate, lag)) = arguments.rate.zip(lag) {
        measurement.schedule(rate, measurement.counts.sent, "handshakes", lag);
    }
    measurement.setting("rate_per_second", arguments.rate);
    measurement.setting("reset", arguments.reset);
    Ok(measurement)
}

impl Connect {
    fn begin_some(&mut self, links: &mut Links, now_ns: u64) {
        while self.begun < self.total && now_ns >= self.retry_ns && links.opening() < self.handshakes_max {
            let due_ns = self.schedule.map_or(now_ns, |schedule| schedule.due(self.begun));
            if due_ns > now_ns {
                break;
            }
            if links.opening() + links.open_count() >= self.connections {
                let Some(oldest) = self.oldest.pop_front() else {
                    break;
                };
                if self.reset {
                    links.reset(oldest);
                } else {
                    links.close(oldest, 1000);
                }
            }
            self.begun += 1;
            if links.begin(0, due_ns).is_none() {
                self.pause(now_ns);
            }
        }
    }

    /// Holds back what could go on for ever.
    fn pause(&mut self, now_ns: u64) {
        if self.duration_ns.is_some() && self.schedule.is_none() {
            self.retry_ns = now_ns + RETRY_PAUSE_NS;
        }
    }

    /// Notes, once, how far the schedule was kept whose event `last` is the latest one.
    fn note_lag(&mut self, last: u64, now_ns: u64) {
        if let Some(schedule) = self.schedule.filter(|_| self.lag.is_none()) {
            self.lag = Some(schedule.lag(self.total, last, now_ns));
        }
    }
}

impl Mode for Connect {
    fn on_open(&mut self, links: &mut Links, slot: Slot, latency_ns: u64) {
        self.latency.record(latency_ns);
        let done_ns = links.connection(slot).started_ns + latency_ns;
        self.timeline.record(done_ns.saturating_sub(self.started_ns));
        self.oldest.push_back(slot);
    }

    fn on_refused(&mut self, _links: &mut Links, _slot: Slot) {
        self.pause(sys::now_ns());
    }

    fn on_message(&mut self, _links: &mut Links, _slot: Slot, _message: Message<'_>, _now_ns: u64) {
        self.messages += 1;
    }

    fn on_closed(&mut self, _links: &mut Links, slot: Slot, asked: bool) {
        if !asked {
            self.oldest.retain(|other| *other != slot);
        }
    }

    fn on_stage(&mut self, _links: &mut Links, stage: Stage, now_ns: u64) {
        if stage == Stage::Measure {
            self.started_ns = now_ns;
            self.schedule = self.rate.map(|rate| Schedule::new(now_ns, rate));
            if let Some(duration) = self.duration_ns {
                self.until_ns = now_ns + duration;
                self.total = self.schedule.map_or(u64::MAX, |schedule| schedule.count_within(duration));
            }
        }
    }

    fn on_turn(&mut self, links: &mut Links, stage: Stage, now_ns: u64) -> Turn {
        if stage != Stage::Measure {
            return Turn::Done;
        }
        if now_ns >= self.until_ns && self.begun < self.total {
            // What should have been begun by now and was not is what the schedule is behind.
            self.note_lag(self.begun, now_ns);
            self.total = self.begun;
        }
        self.begin_some(links, now_ns);
        let next_ns = self.schedule.map_or(self.retry_ns, |schedule| schedule.due(self.begun));
        if self.begun >= self.total {
            if links.opening() > 0 {
                return Turn::Wait;
            }
            self.note_lag(self.total.saturating_sub(1), now_ns);
            Turn::Done
        } else if next_ns > now_ns {
            Turn::WaitUntil(next_ns.min(self.until_ns))
        } else {
            // Something must complete before more can be begun.
            Turn::WaitUntil(self.until_ns)
        }
    }

    fn progress(&self) -> u64 {
        self.latency.count()
    }
}

fn summarise(settings: Settings, outcome: Outcome<Connect>) -> Measurement {
    let begun = outcome.modes.iter().map(|mode| mode.begun).sum();
    let latency = Latency::merged(outcome.modes.iter().map(|mode| &mode.latency));
    let timeline = Timeline::merged(outcome.modes.iter().map(|mode| &mode.timeline));
    let delivered = latency.count();
    let counts = Counts {
        sent: begun,
        expected: begun,
        delivered,
        lost: begun.saturating_sub(delivered),
        foreign: outcome.modes.iter().map(|mode| mode.messages).sum(),
        ..Counts::default()
    };
    let mut measurement = Measurement::new("connect", "handshake", settings, counts, outcome);
    measurement.connected = delivered as usize;
    measurement.per_unit(delivered, "handshakes");
    if let Some(seconds) = measurement.server.as_ref().map(|server| server.cpu.seconds) {
        measurement.figure("handshakes_per_server_cpu_second", delivered as f64 / seconds);
    }
    measurement.latency("handshake", &latency);
    measurement.timeline = Some(timeline);
    measurement
}
