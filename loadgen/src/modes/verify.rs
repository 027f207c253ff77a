//! `verify`: subscribers come and go, and none may miss, repeat or reorder a message.
//!
//! Invariants:
//! 1. A receiver is a subscriber or, after them on thread 0, a publisher, who hears itself and never leaves. It is the
//!    same over all its connections; `owners` says whose connection a slot is.
//! 2. What arrives after we began to close a connection is not looked at: the resume must bring it again.
//! 3. A receiver has one connection at most; who closed one comes back when the server has ended it.
//! 4. All connect before the first message and none leaves before its own first one, so that everyone is owed
//!    everything.

mod publisher;
mod summary;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arguments::VerifyArguments;
use crate::checker::Checker;
use crate::conductor::{self, Plan, Stage};
use crate::document::Measurement;
use crate::latency::Latency;
use crate::links::{Links, Slot, State, Target};
use crate::meta;
use crate::modes::CHURN_ADDRESSES;
use crate::received::{Message, Weight};
use crate::record;
use crate::schedule::{Schedule, check_rate};
use crate::settings::Settings;
use crate::sys;
use crate::units::Url;
use crate::worker::{Mode, Opening, Turn, Wake};

use publisher::Publisher;

const DEFAULT_DURATION_NS: u64 = 10_000_000_000;
const TOPICS_DEFAULT: usize = 10;
const TOPICS_MAX: usize = 1000;
const CHURN_DEFAULT_PERCENT: f64 = 10.0;
/// Longest time that a subscriber stays away.
const PAUSE_MAX_NS: u64 = 500_000_000;
/// Time after which a handshake that failed is tried again.
const RETRY_PAUSE_NS: u64 = 500_000_000;
/// Subscribers that are asked in turn whether they can go, for each that should.
const CHURN_TRIES: usize = 16;
/// Subscribers that go in one turn.
const CHURN_BATCH: usize = 64;
const NOBODY: u32 = u32::MAX;

/// What was asked for, beyond what all modes have.
#[derive(Debug, Clone)]
struct Options {
    topics: Vec<String>,
    rate: f64,
    churn_percent: f64,
    plain: bool,
    seed: u32,
    duration_ns: u64,
    patience_ns: u64,
}

/// What the threads share.
struct Common {
    /// Messages sent, by topic.
    sent: Vec<AtomicU64>,
    /// When the last message was sent; 0 before.
    published_ns: AtomicU64,
}

impl Common {
    fn sent(&self, topic: usize) -> u64 {
        self.sent[topic].load(Ordering::Acquire)
    }
}

struct Verify {
    common: Arc<Common>,
    checker: Checker,
    /// Number of this thread's first subscriber among those of all threads.
    first_subscriber: usize,
    subscribers: usize,
    receivers: usize,
    /// Connection of each receiver; `Slot::MAX` while it has none.
    slots: Vec<Slot>,
    /// Receiver of each slot; `NOBODY` if it has none.
    owners: Vec<u32>,
    random: fastrand::Rng,
    churn_rate: f64,
    churn: Option<Schedule>,
    churned: u64,
    /// When who comes back.
    away: BinaryHeap<Reverse<(u64, u32)>>,
    closing: usize,
    handshakes_max: usize,
    patience_ns: u64,
    /// When the last message came that its receiver had not got before.
    delivered_ns: u64,
    /// Receivers below this have everything.
    complete: usize,
    stage: Stage,
    resets: u64,
    closes: u64,
    reconnects: u64,
    reconnect: Latency,
    delivered: u64,
    publisher_delivered: u64,
    weight: Weight,
    arrivals: u64,
    publisher: Option<Publisher>,
    wake: Wake,
}

/// Runs the mode.
pub(crate) fn run(arguments: VerifyArguments) -> Result<Measurement, crate::Failure> {
    let (settings, options) = check(arguments).map_err(crate::Failure::Arguments)?;
    let common = Arc::new(Common {
        sent: options.topics.iter().map(|_| AtomicU64::new(0)).collect(),
        published_ns: AtomicU64::new(0),
    });
    let plan = Plan {
        threads: threads(&settings, &options, &common),
        targets: targets(&settings.url, &options).map_err(crate::Failure::Arguments)?,
        ports_per_address: settings.connections.div_ceil(CHURN_ADDRESSES),
        expects_progress: true,
        kernel_memory: None,
    };
    let outcome = conductor::conduct(&settings, plan).map_err(crate::Failure::Run)?;
    Ok(summary::summarise(settings, &options, outcome, &common))
}

fn check(arguments: VerifyArguments) -> Result<(Settings, Options), String> {
    let mut settings = Settings::check(arguments.common)?;
    let name = settings
        .url
        .path
        .strip_prefix("/pubsub/")
        .filter(|name| !name.is_empty() && !name.contains(['?', ',']));
    let name =
        name.ok_or_else(|| format!("--url {}: expected ws://HOST:PORT/pubsub/NAME", settings.url.text))?;
    if settings.payload < record::MIN_BYTES {
        return Err(format!("--payload {}B: verify needs at least {}B", settings.payload, record::MIN_BYTES));
    }
    let most = TOPICS_MAX.min(settings.connections);
    let topics = arguments.topics.unwrap_or(TOPICS_DEFAULT.min(most));
    if topics > most {
        return Err(format!(
            "--topics {topics}: expected 1 to {TOPICS_MAX}, and no more than --connections {}",
            settings.connections
        ));
    }
    let default_churn = if arguments.plain { 0.0 } else { CHURN_DEFAULT_PERCENT };
    let churn_percent = arguments.churn.unwrap_or(default_churn);
    if !(0.0..=100.0).contains(&churn_percent) {
        return Err(format!("--churn {churn_percent}: expected 0 to 100 percent a second"));
    }
    if arguments.plain && churn_percent > 0.0 {
        return Err(format!("--churn {churn_percent}: with --plain nobody can resume, expected 0"));
    }
    let options = Options {
        topics: (0..topics).map(|index| format!("{name}-{index}")).collect(),
        rate: check_rate(arguments.rate)?,
        churn_percent,
        plain: arguments.plain,
        seed: arguments.seed.unwrap_or(sys::now_ns() as u32),
        duration_ns: settings.duration.map_or(DEFAULT_DURATION_NS, |duration| duration.as_nanos() as u64),
        patience_ns: settings.timeout.as_nanos() as u64,
    };
    settings.wait_for_rate(options.rate);
    Ok((settings, options))
}

/// The subscribers' targets by topic, then the publishers'.
fn targets(url: &Url, options: &Options) -> Result<Vec<Target>, String> {
    let target = |route: &str, topic: &String, subprotocol| -> Result<Target, String> {
        let url = format!("ws://{}/{route}/{topic}", url.authority).parse()?;
        Ok(Target { url, subprotocol })
    };
    let subprotocol = (!options.plain).then_some(meta::SUBPROTOCOL);
    let subscribers = options.topics.iter().map(|topic| target("sub", topic, subprotocol));
    subscribers.chain(options.topics.iter().map(|topic| target("pubsub", topic, None))).collect()
}

fn threads(settings: &Settings, options: &Options, common: &Arc<Common>) -> Vec<(Verify, Vec<Opening>)> {
    let topics = options.topics.len();
    let run = (sys::now_ns() >> 10) as u32 ^ std::process::id();
    let mut first_subscriber = 0;
    let thread = |index: usize| {
        let share = settings.share(index);
        let first = first_subscriber;
        first_subscriber += share;
        // Subscriber `first + i` has topic `(first + i) % topics`; here they stand in the order of topics.
        let of_topic =
            |topic: usize| (first..first + share).filter(|number| number % topics == topic).count();
        let mut openings: Vec<Opening> =
            (0..topics).map(|topic| Opening { target: topic, count: of_topic(topic) }).collect();
        if index == 0 {
            openings.extend((0..topics).map(|topic| Opening { target: topics + topic, count: 1 }));
        }
        let of_opening = |opening: &Opening| vec![(opening.target % topics) as u16; opening.count];
        let receivers: Vec<u16> = openings.iter().flat_map(of_opening).collect();
        let count = receivers.len();
        let framed = if options.plain { 0 } else { share };
        let mode = Verify {
            common: common.clone(),
            checker: Checker::new(run, options.topics.clone(), receivers, framed),
            first_subscriber: first,
            subscribers: share,
            receivers: count,
            slots: (0..count).collect(),
            owners: (0..count as u32).collect(),
            random: fastrand::Rng::with_seed(u64::from(options.seed) << 16 | index as u64),
            churn_rate: share as f64 * options.churn_percent / 100.0,
            churn: None,
            churned: 0,
            away: BinaryHeap::new(),
            closing: 0,
            handshakes_max: settings.handshakes.div_ceil(settings.threads()),
            patience_ns: options.patience_ns,
            delivered_ns: 0,
            complete: 0,
            stage: Stage::Connect,
            resets: 0,
            closes: 0,
            reconnects: 0,
            reconnect: Latency::new(),
            delivered: 0,
            publisher_delivered: 0,
            weight: Weight::default(),
            arrivals: 0,
            publisher: (index == 0).then(|| Publisher::new(run, options, settings.payload, share)),
            wake: Wake::None,
        };
        (mode, openings)
    };
    (0..settings.threads()).map(thread).collect()
}

impl Verify {
    fn owner(&self, slot: Slot) -> Option<usize> {
        self.owners.get(slot).filter(|owner| **owner != NOBODY).map(|owner| *owner as usize)
    }

    /// Takes the connection in `slot` from its receiver.
    fn disown(&mut self, slot: Slot) -> Option<usize> {
        let receiver = self.owner(slot)?;
        self.owners[slot] = NOBODY;
        self.slots[receiver] = Slot::MAX;
        Some(receiver)
    }

    /// Lets as many subscribers go as should have gone by now.
    fn churn_some(&mut self, links: &mut Links, now_ns: u64) {
        let Some(schedule) = self.churn else {
            return;
        };
        for _ in 0..CHURN_BATCH {
            if schedule.due(self.churned) > now_ns {
                break;
            }
            self.churned += 1;
            let first = self.random.usize(..self.subscribers);
            let in_turn = (0..CHURN_TRIES).map(|step| (first + step) % self.subscribers);
            let can_go = |receiver: &usize| {
                let slot = self.slots[*receiver];
                slot != Slot::MAX
                    && links.connection(slot).state == State::Open
                    && self.checker.resume_id(*receiver).is_some()
            };
            if let Some(receiver) = in_turn.into_iter().find(can_go) {
                self.leave(links, receiver, now_ns);
            }
        }
    }

    fn leave(&mut self, links: &mut Links, receiver: usize, now_ns: u64) {
        let slot = self.slots[receiver];
        if self.churned % 2 == 0 {
            self.resets += 1;
            self.disown(slot);
            links.reset(slot);
            self.return_later(receiver, now_ns, PAUSE_MAX_NS);
        } else {
            self.closes += 1;
            self.closing += 1;
            links.close(slot, 1000);
        }
    }

    fn return_later(&mut self, receiver: usize, now_ns: u64, pause_max_ns: u64) {
        let pause = self.random.u64(pause_max_ns / 10..=pause_max_ns);
        self.away.push(Reverse((now_ns + pause, receiver as u32)));
    }

    /// Brings those back whose pause is over.
    fn return_some(&mut self, links: &mut Links, now_ns: u64) {
        while links.opening() < self.handshakes_max {
            let Some(Reverse((_, receiver))) =
                self.away.peek().copied().filter(|Reverse((due, _))| *due <= now_ns)
            else {
                break;
            };
            self.away.pop();
            let receiver = receiver as usize;
            let query = self.checker.resume_id(receiver).map(|id| format!("since={id}"));
            let topic = self.checker.topic(receiver);
            match links.begin_with(topic, query.as_deref(), now_ns) {
                Some(slot) => {
                    if slot >= self.owners.len() {
                        self.owners.resize(slot + 1, NOBODY);
                    }
                    self.owners[slot] = receiver as u32;
                    self.slots[receiver] = slot;
                }
                None => self.return_later(receiver, now_ns, RETRY_PAUSE_NS),
            }
        }
    }

    fn is_complete(&mut self) -> bool {
        while self.complete < self.receivers {
            let sent = self.common.sent(self.checker.topic(self.complete));
            if self.checker.position(self.complete) < sent {
                return false;
            }
            self.complete += 1;
        }
        true
    }

    /// Waits for what is missing after the last message was sent: as long as it comes, however slowly.
    fn finish(&mut self, links: &Links, now_ns: u64, published_ns: u64) -> Turn {
        self.churn = None;
        let everyone_is_there = self.away.is_empty() && self.closing == 0 && links.opening() == 0;
        let until_ns = published_ns.max(self.delivered_ns).saturating_add(self.patience_ns);
        if (everyone_is_there && self.is_complete()) || now_ns >= until_ns {
            return Turn::Done;
        }
        let next = self.away.peek().map(|Reverse((due, _))| *due).filter(|due| *due > now_ns);
        Turn::WaitUntil(next.unwrap_or(until_ns).min(until_ns))
    }
}

impl Mode for Verify {
    fn on_open(&mut self, links: &mut Links, slot: Slot, latency_ns: u64) {
        if self.owner(slot).is_some_and(|receiver| receiver >= self.subscribers) {
            links.send_at_once(slot);
        }
        if self.stage == Stage::Measure {
            self.reconnects += 1;
            self.reconnect.record(latency_ns);
        }
    }

    fn on_refused(&mut self, _links: &mut Links, slot: Slot) {
        if let Some(receiver) = self.disown(slot).filter(|receiver| *receiver < self.subscribers) {
            self.return_later(receiver, sys::now_ns(), RETRY_PAUSE_NS);
        }
    }

    #[inline]
    fn on_message(&mut self, links: &mut Links, slot: Slot, message: Message<'_>, now_ns: u64) {
        self.arrivals += 1;
        let Some(receiver) = self.owner(slot) else {
            return;
        };
        if links.connection(slot).state == State::Closing {
            return;
        }
        let common = &self.common;
        if self.checker.arrive(receiver, message.text, message.payload, |topic| common.sent(topic)) {
            self.weight.add(message);
            self.delivered_ns = now_ns;
            if receiver < self.subscribers {
                self.delivered += 1;
            } else {
                self.publisher_delivered += 1;
            }
        }
    }

    fn on_closed(&mut self, _links: &mut Links, slot: Slot, asked: bool) {
        let Some(receiver) = self.disown(slot) else {
            return;
        };
        self.closing -= usize::from(asked);
        if receiver < self.subscribers {
            self.return_later(receiver, sys::now_ns(), PAUSE_MAX_NS);
        } else if let Some(publisher) = &mut self.publisher {
            publisher.alive = false;
        }
    }

    fn on_stage(&mut self, _links: &mut Links, stage: Stage, now_ns: u64) {
        self.stage = stage;
        if stage == Stage::Measure {
            self.churn = (self.churn_rate > 0.0).then(|| Schedule::new(now_ns, self.churn_rate));
            if let Some(publisher) = &mut self.publisher {
                publisher.begin(now_ns);
            }
        }
    }

    fn on_turn(&mut self, links: &mut Links, stage: Stage, now_ns: u64) -> Turn {
        if stage != Stage::Measure {
            return Turn::Done;
        }
        let mut next_ns = u64::MAX;
        if let Some(publisher) = &mut self.publisher {
            match publisher.publish(links, &self.common, &self.slots, now_ns) {
                Some(due_ns) => next_ns = due_ns,
                None if self.common.published_ns.load(Ordering::Relaxed) == 0 => {
                    self.common.published_ns.store(now_ns, Ordering::Release);
                    self.wake = Wake::All;
                }
                None => {}
            }
        }
        let published_ns = self.common.published_ns.load(Ordering::Acquire);
        if published_ns == 0 {
            self.churn_some(links, now_ns);
        }
        self.return_some(links, now_ns);
        if published_ns > 0 {
            return self.finish(links, now_ns, published_ns);
        }
        if let Some(schedule) = self.churn {
            next_ns = next_ns.min(schedule.due(self.churned));
        }
        if let Some(Reverse((due_ns, _))) = self.away.peek().filter(|Reverse((due, _))| *due > now_ns) {
            next_ns = next_ns.min(*due_ns);
        }
        Turn::WaitUntil(next_ns)
    }

    fn take_wake(&mut self) -> Wake {
        std::mem::take(&mut self.wake)
    }

    fn progress(&self) -> u64 {
        self.arrivals
    }
}
