//! `echo`: one message in flight on each connection, sent again when it has come back.

use crate::arguments::EchoArguments;
use crate::conductor::{self, Outcome, Plan, Stage};
use crate::document::{Counts, Measurement};
use crate::frame::opcode;
use crate::latency::Latency;
use crate::links::{Links, Slot};
use crate::modes::PORTS_PER_ADDRESS;
use crate::payload::{Check, Codec, Stamp};
use crate::received::{Message, Weight};
use crate::settings::Settings;
use crate::sys;
use crate::worker::{Mode, Opening, Turn};

/// Length of a measurement that is bounded by nothing else.
const DEFAULT_DURATION_NS: u64 = 10_000_000_000;

/// One connection's part.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Round trips that were begun.
    begun: u32,
    /// Round trips that the stage still allows.
    left: u32,
    waiting: bool,
}

struct Echo {
    codec: Codec,
    rounds: Vec<Round>,
    warmup: u32,
    limit: u32,
    duration_ns: u64,
    until_ns: u64,
    measuring: bool,
    /// Connections whose message is under way.
    waiting: usize,
    latency: Latency,
    sent: u64,
    delivered: u64,
    weight: Weight,
    duplicated: u64,
    corrupted: u64,
    foreign: u64,
    lost: u64,
}

/// Runs the mode.
pub(crate) fn run(arguments: EchoArguments) -> Result<Measurement, crate::Failure> {
    let settings = Settings::check(arguments.common).map_err(crate::Failure::Arguments)?;
    let bounded_by_time = settings.duration.map(|duration| duration.as_nanos() as u64);
    let duration_ns = match (bounded_by_time, arguments.rounds) {
        (Some(duration), _) => duration,
        (None, Some(_)) => u64::MAX / 2,
        (None, None) => DEFAULT_DURATION_NS,
    };
    let run = sys::now_ns() ^ (u64::from(std::process::id()) << 40);
    let thread = |index: usize| {
        let mode = Echo {
            codec: Codec::new(run.wrapping_add(index as u64), settings.payload, settings.filler()),
            rounds: vec![Round::default(); settings.share(index)],
            warmup: arguments.warmup as u32,
            limit: arguments.rounds.map_or(u32::MAX, |rounds| rounds as u32),
            duration_ns,
            until_ns: 0,
            measuring: false,
            waiting: 0,
            latency: Latency::new(),
            sent: 0,
            delivered: 0,
            weight: Weight::default(),
            duplicated: 0,
            corrupted: 0,
            foreign: 0,
            lost: 0,
        };
        (mode, vec![Opening { target: 0, count: settings.share(index) }])
    };
    let plan = Plan {
        threads: (0..settings.threads()).map(thread).collect(),
        targets: settings.targets(),
        ports_per_address: PORTS_PER_ADDRESS,
        expects_progress: true,
        kernel_memory: None,
    };
    let outcome = conductor::conduct(&settings, plan).map_err(crate::Failure::Run)?;
    let mut measurement = summarise(settings, outcome);
    measurement.setting("rounds", arguments.rounds);
    measurement.setting("warmup", arguments.warmup);
    Ok(measurement)
}

impl Echo {
    fn begin_round(&mut self, links: &mut Links, slot: Slot, now_ns: u64) {
        let round = &mut self.rounds[slot];
        if round.left == 0 || now_ns >= self.until_ns {
            return;
        }
        round.left -= 1;
        round.waiting = true;
        let sequence = (slot as u64) << 32 | u64::from(round.begun);
        round.begun += 1;
        self.waiting += 1;
        self.sent += u64::from(self.measuring);
        links.append(opcode::BINARY, self.codec.payload(Stamp { sequence, intended_ns: now_ns }));
        links.flush(slot);
    }

    fn on_stamp(&mut self, links: &mut Links, slot: Slot, stamp: Stamp, message: Message<'_>, now_ns: u64) {
        let round = &mut self.rounds[slot];
        let of_this_slot = stamp.sequence >> 32 == slot as u64;
        let number = stamp.sequence as u32;
        if !of_this_slot || number >= round.begun {
            self.corrupted += 1;
        } else if number + 1 == round.begun && round.waiting {
            round.waiting = false;
            self.waiting -= 1;
            if self.measuring {
                self.delivered += 1;
                self.weight.add(message);
                self.latency.record(now_ns.saturating_sub(stamp.intended_ns));
            }
            self.begin_round(links, slot, sys::now_ns());
        } else {
            self.duplicated += 1;
        }
    }
}

impl Mode for Echo {
    fn on_open(&mut self, links: &mut Links, slot: Slot, _latency_ns: u64) {
        links.send_at_once(slot);
    }

    #[inline]
    fn on_message(&mut self, links: &mut Links, slot: Slot, message: Message<'_>, now_ns: u64) {
        match self.codec.check(message.payload) {
            Check::Good(stamp) if !message.text => self.on_stamp(links, slot, stamp, message, now_ns),
            Check::Foreign => self.foreign += 1,
            // Nothing was sent as text.
            Check::Good(_) | Check::Corrupted => self.corrupted += 1,
        }
    }

    fn on_closed(&mut self, _links: &mut Links, slot: Slot, _asked: bool) {
        let round = &mut self.rounds[slot];
        if std::mem::take(&mut round.waiting) {
            self.waiting -= 1;
            self.lost += 1;
        }
        round.left = 0;
    }

    fn on_stage(&mut self, links: &mut Links, stage: Stage, now_ns: u64) {
        let rounds = match stage {
            Stage::WarmUp => self.warmup,
            Stage::Measure => self.limit,
            _ => return,
        };
        self.measuring = stage == Stage::Measure;
        self.until_ns = if self.measuring { now_ns.saturating_add(self.duration_ns) } else { u64::MAX };
        for slot in 0..self.rounds.len() {
            if links.socket(slot).is_some() {
                self.rounds[slot].left = rounds;
                self.begin_round(links, slot, sys::now_ns());
            }
        }
    }

    fn on_turn(&mut self, _links: &mut Links, _stage: Stage, _now_ns: u64) -> Turn {
        if self.waiting == 0 { Turn::Done } else { Turn::Wait }
    }

    fn progress(&self) -> u64 {
        self.delivered + self.rounds.first().map_or(0, |round| u64::from(round.begun))
    }
}

fn summarise(settings: Settings, outcome: Outcome<Echo>) -> Measurement {
    let sum = |value: fn(&Echo) -> u64| outcome.modes.iter().map(value).sum::<u64>();
    let counts = Counts {
        sent: sum(|mode| mode.sent),
        expected: sum(|mode| mode.sent),
        delivered: sum(|mode| mode.delivered),
        lost: sum(|mode| mode.lost + mode.waiting as u64),
        duplicated: sum(|mode| mode.duplicated),
        corrupted: sum(|mode| mode.corrupted),
        foreign: sum(|mode| mode.foreign),
        ..Counts::default()
    };
    let latency = Latency::merged(outcome.modes.iter().map(|mode| &mode.latency));
    let weight: Weight = outcome.modes.iter().map(|mode| mode.weight).sum();
    let received = weight.of(counts.delivered, settings.payload);
    let mut measurement = Measurement::new("echo", "round trip", settings, counts, outcome);
    measurement.per_unit(measurement.counts.delivered, "round trips");
    measurement.received(received);
    measurement.latency("round_trip", &latency);
    measurement
}
