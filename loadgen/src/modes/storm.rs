//! `storm`: all connections are dropped at once and opened again as fast as the server takes them.
//!
//! Invariants:
//! 1. Thread 0 leads: it announces a round, and every thread then drops what it has and opens its share again.
//! 2. Connections end with a reset, as after a power cut; no port stays in TIME_WAIT.
//! 3. A handshake that fails is counted and tried again after [`RETRY_PAUSE_NS`]; a round has no other end than that
//!    every connection is back, so that the silence of `--timeout` ends a storm that cannot be weathered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::arguments::StormArguments;
use crate::conductor::{self, Outcome, Plan, Stage};
use crate::document::{Counts, Measurement, Round};
use crate::frame::opcode;
use crate::latency::Latency;
use crate::links::{Links, Slot, State};
use crate::modes::PORTS_PER_ADDRESS;
use crate::payload::{Check, Codec, Stamp};
use crate::received::Message;
use crate::settings::Settings;
use crate::sys;
use crate::worker::{Mode, Opening, Turn, Wake};

const RETRY_PAUSE_NS: u64 = 100_000_000;

/// What the threads of a storm share; the leader alone sets it back between rounds.
struct Common {
    connections: u64,
    /// Counts from 1.
    round: AtomicU64,
    finished: AtomicBool,
    begun_ns: AtomicU64,
    dropped_ns: AtomicU64,
    /// Connections open again.
    back: AtomicU64,
    first_back_ns: AtomicU64,
    last_back_ns: AtomicU64,
    /// The message that must reach all is under way: a connection lost now is not opened again in this round.
    probing: AtomicBool,
    /// Connections that have the message, or are lost.
    settled: AtomicU64,
    last_received_ns: AtomicU64,
}

struct Leader {
    rounds_max: u64,
    duration_ns: Option<u64>,
    /// No round is begun any more from here on.
    until_ns: u64,
    /// Whether what is sent on a connection is published.
    publishes: bool,
    rounds: Vec<Round>,
}

struct Storm {
    common: Arc<Common>,
    leader: Option<Leader>,
    codec: Codec,
    share: usize,
    handshakes_max: usize,
    round: u64,
    /// Connections of this thread that are to be opened.
    owed: usize,
    retry_ns: u64,
    /// Round whose message came last, by slot.
    probed: Vec<u64>,
    wake: Wake,
    storming: bool,
    first: Latency,
    first_begun_ns: u64,
    first_done_ns: u64,
    handshake: Latency,
    back: Latency,
    begun: u64,
    retries: u64,
    probe_deliveries: u64,
    probe_lost: u64,
    duplicated: u64,
    corrupted: u64,
    foreign: u64,
}

/// Runs the mode.
pub(crate) fn run(arguments: StormArguments) -> Result<Measurement, crate::Failure> {
    let settings = Settings::check(arguments.common).map_err(crate::Failure::Arguments)?;
    let duration_ns = settings.duration.map(|duration| duration.as_nanos() as u64);
    let rounds_max = match (arguments.rounds, duration_ns) {
        (Some(rounds), _) => rounds as u64,
        (None, Some(_)) => u64::MAX,
        (None, None) => 1,
    };
    let common = Arc::new(Common {
        connections: settings.connections as u64,
        round: AtomicU64::new(0),
        finished: AtomicBool::new(false),
        begun_ns: AtomicU64::new(0),
        dropped_ns: AtomicU64::new(0),
        back: AtomicU64::new(0),
        first_back_ns: AtomicU64::new(0),
        last_back_ns: AtomicU64::new(0),
        probing: AtomicBool::new(false),
        settled: AtomicU64::new(0),
        last_received_ns: AtomicU64::new(0),
    });
    let publishes = settings.url.path.starts_with("/pubsub/");
    let threads = settings.threads();
    let run = sys::now_ns() ^ (u64::from(std::process::id()) << 40);
    let thread = |index: usize| {
        let share = settings.share(index);
        let leader = Leader { rounds_max, duration_ns, until_ns: u64::MAX, publishes, rounds: Vec::new() };
        let mode = Storm {
            common: common.clone(),
            leader: (index == 0).then_some(leader),
            codec: Codec::new(run, settings.payload, settings.filler()),
            share,
            handshakes_max: settings.handshakes.div_ceil(threads),
            round: 0,
            owed: 0,
            retry_ns: 0,
            probed: vec![0; share],
            wake: Wake::None,
            storming: false,
            first: Latency::new(),
            first_begun_ns: u64::MAX,
            first_done_ns: 0,
            handshake: Latency::new(),
            back: Latency::new(),
            begun: 0,
            retries: 0,
            probe_deliveries: 0,
            probe_lost: 0,
            duplicated: 0,
            corrupted: 0,
            foreign: 0,
        };
        (mode, vec![Opening { target: 0, count: share }])
    };
    let plan = Plan {
        threads: (0..threads).map(thread).collect(),
        targets: settings.targets(),
        ports_per_address: PORTS_PER_ADDRESS,
        expects_progress: true,
        kernel_memory: None,
    };
    let outcome = conductor::conduct(&settings, plan).map_err(crate::Failure::Run)?;
    let mut measurement = summarise(settings, outcome, &common);
    measurement.setting("rounds", arguments.rounds);
    measurement.setting("publishes", publishes);
    Ok(measurement)
}

impl Common {
    fn announce(&self, round: u64) {
        for (value, start) in [
            (&self.begun_ns, sys::now_ns()),
            (&self.dropped_ns, 0),
            (&self.back, 0),
            (&self.first_back_ns, u64::MAX),
            (&self.last_back_ns, 0),
            (&self.settled, 0),
            (&self.last_received_ns, 0),
        ] {
            value.store(start, Ordering::Relaxed);
        }
        self.probing.store(false, Ordering::Relaxed);
        self.round.store(round, Ordering::Release);
    }

    fn result(&self) -> Round {
        let begun = self.begun_ns.load(Ordering::Relaxed);
        let since = |time: &AtomicU64| time.load(Ordering::Relaxed).saturating_sub(begun) as f64 / 1e9;
        let last_back_seconds = since(&self.last_back_ns);
        Round {
            dropped_seconds: since(&self.dropped_ns),
            first_back_seconds: since(&self.first_back_ns),
            last_back_seconds,
            receiving_seconds: self.probing.load(Ordering::Relaxed).then(|| since(&self.last_received_ns)),
            handshakes_per_second: self.connections as f64 / last_back_seconds.max(1e-9),
        }
    }
}

impl Storm {
    /// Takes the round on when all threads have done their part.
    fn lead(&mut self, links: &mut Links) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        let common = &self.common;
        let round = common.round.load(Ordering::Relaxed);
        if common.finished.load(Ordering::Relaxed) || self.round != round {
            return;
        }
        let probing = common.probing.load(Ordering::Relaxed);
        // A connection that ends while a round is announced may take the count below zero for a moment.
        let everyone = |count: &AtomicU64| count.load(Ordering::Acquire) as i64 >= common.connections as i64;
        if round > 0 && !probing && leader.publishes && everyone(&common.back) {
            if let Some(slot) = links.first_open() {
                common.probing.store(true, Ordering::Release);
                let stamp = Stamp { sequence: round, intended_ns: sys::now_ns() };
                links.append(opcode::BINARY, self.codec.payload(stamp));
                links.flush(slot);
            }
            return;
        }
        let over =
            if leader.publishes { probing && everyone(&common.settled) } else { everyone(&common.back) };
        if round > 0 && !over {
            return;
        }
        if round > 0 {
            leader.rounds.push(common.result());
        }
        if round == leader.rounds_max || (round > 0 && sys::now_ns() >= leader.until_ns) {
            common.finished.store(true, Ordering::Release);
        } else {
            common.announce(round + 1);
        }
        self.wake = Wake::All;
    }

    fn drop_all(&mut self, links: &mut Links, round: u64) {
        self.round = round;
        links.reset_all();
        self.common.dropped_ns.fetch_max(sys::now_ns(), Ordering::Relaxed);
        (self.owed, self.retry_ns) = (self.share, 0);
    }

    fn begin_some(&mut self, links: &mut Links, now_ns: u64) {
        while self.owed > 0 && now_ns >= self.retry_ns && links.opening() < self.handshakes_max {
            self.begun += 1;
            match links.begin(0, sys::now_ns()) {
                Some(_) => self.owed -= 1,
                None => self.retry(now_ns),
            }
        }
    }

    fn retry(&mut self, now_ns: u64) {
        self.retries += 1;
        self.retry_ns = now_ns + RETRY_PAUSE_NS;
    }

    /// Notes that nothing more is to be expected of one connection in this round.
    fn settle(&mut self, slot: Slot) -> bool {
        if slot >= self.probed.len() {
            self.probed.resize(slot + 1, 0);
        }
        let is_first = self.probed[slot] != self.round;
        if is_first {
            self.probed[slot] = self.round;
            if self.common.settled.fetch_add(1, Ordering::AcqRel) + 1 == self.common.connections {
                self.wake = Wake::Leader;
            }
        }
        is_first
    }
}

impl Mode for Storm {
    fn on_open(&mut self, links: &mut Links, slot: Slot, latency_ns: u64) {
        let begun_ns = links.connection(slot).started_ns;
        let now_ns = begun_ns + latency_ns;
        if !self.storming {
            self.first.record(latency_ns);
            self.first_begun_ns = self.first_begun_ns.min(begun_ns);
            self.first_done_ns = self.first_done_ns.max(now_ns);
            return;
        }
        let common = &self.common;
        self.handshake.record(latency_ns);
        self.back.record(now_ns.saturating_sub(common.begun_ns.load(Ordering::Relaxed)));
        common.first_back_ns.fetch_min(now_ns, Ordering::Relaxed);
        common.last_back_ns.fetch_max(now_ns, Ordering::Relaxed);
        if common.back.fetch_add(1, Ordering::AcqRel) + 1 == common.connections {
            self.wake = Wake::Leader;
        }
    }

    fn on_refused(&mut self, _links: &mut Links, _slot: Slot) {
        if self.storming {
            self.owed += 1;
            self.retry(sys::now_ns());
        }
    }

    fn on_message(&mut self, links: &mut Links, slot: Slot, message: Message<'_>, now_ns: u64) {
        if links.connection(slot).state != State::Open {
            return;
        }
        match self.codec.check(message.payload) {
            // Nothing was sent as text.
            Check::Good(_) if message.text => self.corrupted += 1,
            Check::Good(stamp) if stamp.sequence == self.round && self.storming => {
                self.common.last_received_ns.fetch_max(now_ns, Ordering::Relaxed);
                if self.settle(slot) {
                    self.probe_deliveries += 1;
                } else {
                    self.duplicated += 1;
                }
            }
            Check::Good(_) | Check::Foreign => self.foreign += 1,
            Check::Corrupted => self.corrupted += 1,
        }
    }

    fn on_closed(&mut self, _links: &mut Links, slot: Slot, _asked: bool) {
        // What ended before this thread has begun the round is dropped and opened again with the others.
        if !self.storming || self.round != self.common.round.load(Ordering::Acquire) {
            return;
        }
        if self.common.probing.load(Ordering::Acquire) {
            self.probe_lost += u64::from(self.settle(slot));
        } else {
            self.common.back.fetch_sub(1, Ordering::AcqRel);
            self.owed += 1;
            self.retry(sys::now_ns());
        }
    }

    fn on_stage(&mut self, _links: &mut Links, stage: Stage, now_ns: u64) {
        self.storming = stage == Stage::Measure;
        if let Some(leader) = self.leader.as_mut().filter(|_| stage == Stage::Measure) {
            leader.until_ns = leader.duration_ns.map_or(u64::MAX, |duration| now_ns.saturating_add(duration));
        }
    }

    fn on_turn(&mut self, links: &mut Links, stage: Stage, now_ns: u64) -> Turn {
        if stage != Stage::Measure {
            return Turn::Done;
        }
        self.lead(links);
        if self.common.finished.load(Ordering::Acquire) {
            return Turn::Done;
        }
        let round = self.common.round.load(Ordering::Acquire);
        if round != self.round {
            self.drop_all(links, round);
        }
        self.begin_some(links, now_ns);
        if self.owed > 0 && self.retry_ns > now_ns { Turn::WaitUntil(self.retry_ns) } else { Turn::Wait }
    }

    fn take_wake(&mut self) -> Wake {
        std::mem::take(&mut self.wake)
    }

    fn progress(&self) -> u64 {
        self.handshake.count() + self.probe_deliveries
    }
}

/// The round whose figures stand for all, so that times and rate are of the same one: the middle one by the time until the
/// last connection was back, of the two in the middle the slower one.
fn middle(rounds: &[Round]) -> Option<&Round> {
    let mut rounds: Vec<&Round> = rounds.iter().collect();
    rounds.sort_by(|a, b| a.last_back_seconds.total_cmp(&b.last_back_seconds));
    rounds.get(rounds.len() / 2).copied()
}

fn summarise(settings: Settings, outcome: Outcome<Storm>, common: &Common) -> Measurement {
    let modes = &outcome.modes;
    let sum = |value: fn(&Storm) -> u64| modes.iter().map(value).sum::<u64>();
    let handshake = Latency::merged(modes.iter().map(|mode| &mode.handshake));
    let first = Latency::merged(modes.iter().map(|mode| &mode.first));
    let back = Latency::merged(modes.iter().map(|mode| &mode.back));
    let rounds = modes[0].leader.as_ref().map(|leader| leader.rounds.clone()).unwrap_or_default();
    let announced = common.round.load(Ordering::Relaxed);
    let expected = announced * common.connections;
    let counts = Counts {
        sent: sum(|mode| mode.begun),
        expected,
        delivered: handshake.count(),
        lost: expected.saturating_sub(handshake.count()),
        duplicated: sum(|mode| mode.duplicated),
        corrupted: sum(|mode| mode.corrupted),
        foreign: sum(|mode| mode.foreign),
        ..Counts::default()
    };
    let first_begun_ns = modes.iter().map(|mode| mode.first_begun_ns).min().unwrap_or(0);
    let first_done_ns = modes.iter().map(|mode| mode.first_done_ns).max().unwrap_or(0);
    let first_seconds = first_done_ns.saturating_sub(first_begun_ns) as f64 / 1e9;
    let (probes, retries) = (sum(|mode| mode.probe_deliveries), sum(|mode| mode.retries));
    let finished = rounds.iter().filter(|round| round.receiving_seconds.is_some()).count() as u64;
    let reached = finished * common.connections;
    let probe_lost = sum(|mode| mode.probe_lost);
    let mut measurement = Measurement::new("storm", "handshake", settings, counts, outcome);
    measurement.per_unit(handshake.count(), "handshakes");
    measurement.figure("retries", retries as f64);
    measurement.figure("deliveries_after_storm", probes as f64);
    measurement.figure("first_connect_handshakes_per_second", first.count() as f64 / first_seconds);
    if let Some(round) = middle(&rounds) {
        measurement.figure("first_back_seconds", round.first_back_seconds);
        measurement.figure("last_back_seconds", round.last_back_seconds);
        measurement.figure("handshakes_per_second", round.handshakes_per_second);
        if let Some(seconds) = round.receiving_seconds {
            measurement.figure("receiving_seconds", seconds);
        }
    }
    measurement.rounds = rounds;
    measurement.latency("first_connect", &first);
    measurement.latency("handshake", &handshake);
    measurement.latency("back", &back);
    if probe_lost > 0 {
        measurement
            .fail(format!("{probe_lost} of {reached} connections ended before the message reached them"));
    }
    measurement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_one_round() {
        let round = |last_back_seconds: f64| Round {
            dropped_seconds: 0.0,
            first_back_seconds: 0.1,
            last_back_seconds,
            receiving_seconds: None,
            handshakes_per_second: 10.0 / last_back_seconds,
        };
        let of = |times: &[f64]| {
            let rounds: Vec<Round> = times.iter().map(|time| round(*time)).collect();
            middle(&rounds).map(|round| (round.last_back_seconds, round.handshakes_per_second))
        };
        assert_eq!(of(&[2.0, 1.0]), Some((2.0, 5.0)), "the slower one of two");
        assert_eq!(of(&[4.0, 1.0, 2.0]), Some((2.0, 5.0)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 8.0]), Some((4.0, 2.5)));
        assert_eq!(of(&[]), None);
    }
}
