//! `fanout`: one publisher, N subscribers.
//!
//! Invariants:
//! 1. The publisher is the last connection of thread 0. If it uses `--url` like the others it is one receiver more,
//!    checked like any; with `--publish-url` what it receives is counted and nothing is expected.
//! 2. Sequence numbers run on from the warm-up into the measurement; only messages from `measured_from` on are
//!    recorded.
//! 3. A message is complete when every receiver of every thread that is still connected has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arguments::FanoutArguments;
use crate::completion::{Completions, Countdown};
use crate::conductor::{self, Outcome, Plan, Stage};
use crate::document::{Counts, Measurement};
use crate::frame::opcode;
use crate::latency::Latency;
use crate::links::{Links, Slot};
use crate::modes::PORTS_PER_ADDRESS;
use crate::payload::{Check, Codec, Stamp};
use crate::received::{Message, Weight};
use crate::schedule::{Lag, Schedule, check_rate};
use crate::sequence::{Arrival, Tracker};
use crate::settings::Settings;
use crate::sys;
use crate::worker::{Mode, Opening, Turn, Wake};

/// Length of a measurement that is bounded by nothing else.
const DEFAULT_DURATION_NS: u64 = 10_000_000_000;
/// A publisher with more than this unsent waits; the schedule is caught up with later.
const BACKLOG_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Messages sent before deliveries are looked at again.
const BATCH_MAX: u64 = 256;

/// How messages are paced.
#[derive(Debug, Clone, Copy)]
enum Pace {
    Rate(f64),
    Window(u64),
}

impl Pace {
    /// A second's worth at most, so that the warm-up stays short.
    fn default_warmup(self) -> u64 {
        match self {
            Self::Rate(rate) => rate.clamp(1.0, 100.0) as u64,
            Self::Window(window) => 100.max(10 * window),
        }
    }
}

/// What the threads of a fan-out share.
struct Common {
    sent: AtomicU64,
    completions: Completions,
    /// Receivers that are connected.
    live: AtomicU64,
    /// Scheduled messages that the publisher could not send within the duration.
    unsent: AtomicU64,
}

struct Publisher {
    slot: Slot,
    pace: Pace,
    warmup: u64,
    rounds: Option<u64>,
    duration_ns: Option<u64>,
    schedule: Schedule,
    /// Sequence number of the stage's first message.
    first: u64,
    /// Messages of the stage; unknown while only the duration bounds it.
    total: Option<u64>,
    until_ns: u64,
    /// When every receiver had every message of the stage.
    finished_ns: Option<u64>,
    alive: bool,
}

struct Fanout {
    common: Arc<Common>,
    codec: Codec,
    tracker: Tracker,
    countdown: Countdown,
    /// Receivers of this thread that are checked; slots below it.
    receivers: usize,
    live: u32,
    measured_from: u64,
    latency: Latency,
    last_subscriber: Latency,
    delivered: u64,
    publisher_delivered: u64,
    /// Of the messages of both.
    weight: Weight,
    arrivals: u64,
    corrupted: u64,
    foreign: u64,
    completed_in_turn: bool,
    publisher: Option<Publisher>,
}

/// Runs the mode.
pub(crate) fn run(arguments: FanoutArguments) -> Result<Measurement, crate::Failure> {
    let mut settings = Settings::check(arguments.common).map_err(crate::Failure::Arguments)?;
    settings.publish_url = arguments.publish_url;
    let pace = match (arguments.rate, arguments.window) {
        (Some(rate), _) => Pace::Rate(check_rate(rate).map_err(crate::Failure::Arguments)?),
        (None, window) => Pace::Window(window.unwrap_or(1) as u64),
    };
    if let Pace::Rate(rate) = pace {
        settings.wait_for_rate(rate);
    }
    let unbounded = arguments.rounds.is_none();
    let publisher = Publisher {
        slot: 0,
        pace,
        warmup: arguments.warmup.map_or_else(|| pace.default_warmup(), |warmup| warmup as u64),
        rounds: arguments.rounds.map(|rounds| rounds as u64),
        duration_ns: settings
            .duration
            .map(|duration| duration.as_nanos() as u64)
            .or(unbounded.then_some(DEFAULT_DURATION_NS)),
        schedule: Schedule::new(0, 1.0),
        first: 0,
        total: None,
        until_ns: u64::MAX,
        finished_ns: None,
        alive: true,
    };
    let warmup = publisher.warmup;
    let plan = plan(&settings, publisher).map_err(crate::Failure::Run)?;
    let common = plan.threads[0].0.common.clone();
    let outcome = conductor::conduct(&settings, plan).map_err(crate::Failure::Run)?;
    let mut measurement = summarise(settings, outcome, &common);
    match pace {
        Pace::Rate(rate) => measurement.setting("rate_per_second", rate),
        Pace::Window(window) => measurement.setting("window", window),
    }
    measurement.setting("warmup", warmup);
    Ok(measurement)
}

fn plan(settings: &Settings, mut publisher: Publisher) -> std::io::Result<Plan<Fanout>> {
    let threads = settings.threads();
    let common = Arc::new(Common {
        sent: AtomicU64::new(0),
        completions: Completions::new(threads),
        live: AtomicU64::new((settings.connections + usize::from(settings.publish_url.is_none())) as u64),
        unsent: AtomicU64::new(0),
    });
    let run = sys::now_ns() ^ (u64::from(std::process::id()) << 40);
    let codec = Codec::new(run, settings.payload, settings.filler());
    publisher.slot = settings.share(0);
    let publisher_warmup = publisher.warmup;
    let mut publisher = Some(publisher);
    let mut plan = Vec::new();
    for index in 0..threads {
        let share = settings.share(index);
        let mut openings = vec![Opening { target: 0, count: share }];
        let mut receivers = share;
        if index == 0 {
            openings.push(Opening { target: usize::from(settings.publish_url.is_some()), count: 1 });
            receivers += usize::from(settings.publish_url.is_none());
        }
        let mode = Fanout {
            common: common.clone(),
            codec: codec.clone(),
            tracker: Tracker::new(receivers),
            countdown: Countdown::default(),
            receivers,
            live: receivers as u32,
            measured_from: publisher_warmup,
            latency: Latency::new(),
            last_subscriber: Latency::new(),
            delivered: 0,
            publisher_delivered: 0,
            weight: Weight::default(),
            arrivals: 0,
            corrupted: 0,
            foreign: 0,
            completed_in_turn: false,
            publisher: publisher.take(),
        };
        plan.push((mode, openings));
    }
    Ok(Plan {
        threads: plan,
        targets: settings.targets(),
        ports_per_address: PORTS_PER_ADDRESS,
        expects_progress: true,
        kernel_memory: None,
    })
}

impl Fanout {
    #[inline]
    fn on_stamp(&mut self, slot: Slot, stamp: Stamp, message: Message<'_>, now_ns: u64) {
        let measured = stamp.sequence >= self.measured_from;
        if slot >= self.receivers {
            if measured {
                self.publisher_delivered += 1;
                self.weight.add(message);
            }
            return;
        }
        let sent = || self.common.sent.load(Ordering::Acquire);
        match self.tracker.arrive(slot, stamp.sequence, sent) {
            Some(Arrival::New | Arrival::Late) => {}
            Some(Arrival::Duplicate) => return,
            None => {
                self.corrupted += 1;
                return;
            }
        }
        let latency = now_ns.saturating_sub(stamp.intended_ns);
        if measured {
            self.delivered += 1;
            self.weight.add(message);
            self.latency.record(latency);
        }
        if self.countdown.delivered(stamp.sequence, self.live)
            && self.common.completions.thread_complete(stamp.sequence)
        {
            self.completed_in_turn = true;
            if measured {
                self.last_subscriber.record(latency);
            }
        }
    }
}

impl Mode for Fanout {
    fn on_open(&mut self, links: &mut Links, slot: Slot, _latency_ns: u64) {
        if self.publisher.as_ref().is_some_and(|publisher| publisher.slot == slot) {
            links.send_at_once(slot);
        }
    }

    #[inline]
    fn on_message(&mut self, _links: &mut Links, slot: Slot, message: Message<'_>, now_ns: u64) {
        self.arrivals += 1;
        match self.codec.check(message.payload) {
            Check::Good(stamp) if !message.text => self.on_stamp(slot, stamp, message, now_ns),
            Check::Foreign => self.foreign += 1,
            // Nothing was sent as text.
            Check::Good(_) | Check::Corrupted => self.corrupted += 1,
        }
    }

    fn on_closed(&mut self, _links: &mut Links, slot: Slot, _asked: bool) {
        if let Some(publisher) = self.publisher.as_mut().filter(|publisher| publisher.slot == slot) {
            publisher.alive = false;
        }
        if slot < self.receivers {
            self.common.live.fetch_sub(1, Ordering::Relaxed);
            self.live = self.live.saturating_sub(1);
            let completions = &self.common.completions;
            self.countdown.receiver_gone(self.tracker.next(slot), |sequence| {
                completions.thread_complete(sequence);
            });
            self.completed_in_turn = true;
        }
    }

    fn on_stage(&mut self, _links: &mut Links, stage: Stage, now_ns: u64) {
        let Some(publisher) = &mut self.publisher else {
            return;
        };
        let sent = self.common.sent.load(Ordering::Relaxed);
        match stage {
            Stage::WarmUp => publisher.begin(sent, now_ns, Some(publisher.warmup), None),
            Stage::Measure => publisher.begin(sent, now_ns, publisher.rounds, publisher.duration_ns),
            _ => {}
        }
    }

    fn on_turn(&mut self, links: &mut Links, stage: Stage, now_ns: u64) -> Turn {
        match &mut self.publisher {
            Some(publisher) if stage != Stage::Linger && self.common.live.load(Ordering::Relaxed) > 0 => {
                publisher.publish(links, &self.common, &mut self.codec, now_ns)
            }
            _ => Turn::Done,
        }
    }

    fn take_wake(&mut self) -> Wake {
        if std::mem::take(&mut self.completed_in_turn) && self.publisher.is_none() {
            Wake::Leader
        } else {
            Wake::None
        }
    }

    fn progress(&self) -> u64 {
        self.arrivals
    }
}

impl Publisher {
    /// Starts a stage of `total` messages, or as many as fit into `duration_ns`.
    fn begin(&mut self, sent: u64, now_ns: u64, total: Option<u64>, duration_ns: Option<u64>) {
        self.first = sent;
        self.finished_ns = None;
        self.total = total;
        self.until_ns = duration_ns.map_or(u64::MAX, |duration| now_ns.saturating_add(duration));
        if let Pace::Rate(rate) = self.pace {
            self.schedule = Schedule::new(now_ns, rate);
            self.total = total.or(duration_ns.map(|duration| self.schedule.count_within(duration)));
        }
    }

    /// Sends what is due, and tells when there will be more.
    fn publish(&mut self, links: &mut Links, common: &Common, codec: &mut Codec, now_ns: u64) -> Turn {
        if !self.alive {
            return Turn::Done;
        }
        let mut sent = common.sent.load(Ordering::Relaxed) - self.first;
        let completed = common.completions.count().saturating_sub(self.first);
        let blocked = links.unsent_bytes(self.slot) > BACKLOG_MAX_BYTES;
        if now_ns >= self.until_ns {
            self.end_at_deadline(common, sent, blocked);
        }
        let total = self.total.unwrap_or(u64::MAX);
        let due = |index: u64| match self.pace {
            Pace::Window(window) => index < completed + window,
            Pace::Rate(_) => self.schedule.due(index) <= now_ns,
        };
        // Each message in a `send` of its own, as independent publishers would: what is coalesced is up to the server.
        let last = sent.saturating_add(BATCH_MAX).min(total);
        while !blocked && sent < last && due(sent) {
            let intended_ns = match self.pace {
                Pace::Window(_) => sys::now_ns(),
                Pace::Rate(_) => self.schedule.due(sent),
            };
            links.append(opcode::BINARY, codec.payload(Stamp { sequence: self.first + sent, intended_ns }));
            sent += 1;
            common.sent.store(self.first + sent, Ordering::Release);
            links.flush(self.slot);
        }
        match self.pace {
            _ if sent >= total && completed >= sent => {
                self.finished_ns.get_or_insert(now_ns);
                Turn::Done
            }
            _ if sent >= total || blocked => Turn::Wait,
            Pace::Window(_) if due(sent) => Turn::WaitUntil(now_ns),
            Pace::Window(_) => Turn::Wait,
            Pace::Rate(_) => Turn::WaitUntil(self.schedule.due(sent)),
        }
    }

    /// How far the schedule was kept; nothing without one, and if it did not come to its end.
    fn lag(&self) -> Option<(f64, Lag)> {
        let (Pace::Rate(rate), Some(total), Some(finished_ns)) = (self.pace, self.total, self.finished_ns)
        else {
            return None;
        };
        Some((rate, self.schedule.lag(total, total.saturating_sub(1), finished_ns)))
    }

    /// Nothing is sent after the deadline, except what an open loop owes and can send at once.
    fn end_at_deadline(&mut self, common: &Common, sent: u64, blocked: bool) {
        match (self.pace, self.total) {
            (Pace::Rate(_), Some(total)) if blocked => {
                common.unsent.fetch_add(total - sent, Ordering::Relaxed);
                self.total = Some(sent);
            }
            (Pace::Rate(_), _) => {}
            (Pace::Window(_), _) => self.total = Some(sent),
        }
    }
}

fn summarise(settings: Settings, outcome: Outcome<Fanout>, common: &Common) -> Measurement {
    let modes = &outcome.modes;
    let sum = |value: fn(&Fanout) -> u64| modes.iter().map(value).sum::<u64>();
    let sent = common.sent.load(Ordering::Acquire);
    let warmup = modes[0].measured_from;
    let receivers = sum(|mode| mode.receivers as u64);
    let mut counts = Counts { sent: sent.saturating_sub(warmup), ..Counts::default() };
    counts.expected = counts.sent * receivers;
    counts.delivered = sum(|mode| mode.delivered);
    counts.publisher_delivered = sum(|mode| mode.publisher_delivered);
    counts.corrupted = sum(|mode| mode.corrupted);
    counts.foreign = sum(|mode| mode.foreign);
    for mode in modes {
        let disorder = mode.tracker.disorder(mode.receivers, |_| sent);
        counts.lost += disorder.lost;
        counts.duplicated += disorder.duplicated;
        counts.reordered += disorder.reordered;
    }
    let latency = Latency::merged(modes.iter().map(|mode| &mode.latency));
    let last_subscriber = Latency::merged(modes.iter().map(|mode| &mode.last_subscriber));
    let weight: Weight = modes.iter().map(|mode| mode.weight).sum();
    let received = weight.of(counts.delivered + counts.publisher_delivered, settings.payload);
    let (messages, unsent) = (counts.sent, common.unsent.load(Ordering::Relaxed));
    let publisher_gone = modes[0].publisher.as_ref().is_some_and(|publisher| !publisher.alive);
    let lag = modes[0].publisher.as_ref().and_then(Publisher::lag);
    let mut measurement = Measurement::new("fanout", "delivery", settings, counts, outcome);
    measurement.per_unit(measurement.counts.delivered + measurement.counts.publisher_delivered, "deliveries");
    measurement.received(received);
    measurement.figure_rate("messages_per_second", messages);
    measurement.latency("delivery", &latency);
    measurement.latency("last_subscriber", &last_subscriber);
    measurement.setting("receivers", receivers);
    if let Some((rate, lag)) = lag {
        measurement.schedule(rate, messages, "messages", lag);
    }
    if unsent > 0 {
        measurement.fail(format!("{unsent} scheduled messages could not be sent within the duration"));
    }
    if publisher_gone {
        measurement.fail("the publisher's connection ended".to_owned());
    }
    measurement
}
