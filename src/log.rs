//! The log of the server binary: lines on stderr, of which no kind drowns the others and none holds up a core.
//!
//! Any thread logs; nothing here is on the path of a message that is delivered. A program that uses this library
//! may as well install a `tracing` subscriber of its own, with its own rules.
//!
//! Invariants:
//! 1. A thread that logs never waits for whoever reads stderr: lines go to a writing thread through a bounded
//!    queue of `QUEUED_LINES`.
//! 2. A kind of line, which is a place in the source, has at most `--log-rate` lines a second.
//! 3. What is left out for either reason is counted (`log_lines_left_out_total`) and said, within a second or at
//!    the end.

use std::fmt::{Debug, Write};
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, debug, error, info, trace, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Config, LogFormat, LogLevel};

/// Lines that may wait for stderr; beyond it they are left out.
const QUEUED_LINES: usize = 1024;

/// Kinds of lines that are told apart; beyond it they share the last one's count.
const KINDS: usize = 256;

/// Time between two looks at what was left out.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The same while nothing is known to be left out.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// Lines left out because of their rate.
static OVER_RATE: AtomicU64 = AtomicU64::new(0);

/// Counts the lines that stderr was too slow for.
static UNWRITTEN: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines left out since the start: for their rate, and for want of someone to read them.
pub(crate) fn left_out() -> [(&'static str, u64); 2] {
    let unwritten = UNWRITTEN.get().map_or(0, |counter| counter.dropped_lines() as u64);
    [("rate", OVER_RATE.load(Relaxed)), ("slow_reader", unwritten)]
}

/// Keeps the log going. Dropped, it says what was left out and waits until all lines are written.
#[derive(Debug)]
#[must_use = "lines may be lost once it is dropped"]
pub struct Log {
    levels: Levels,
    stop: Arc<AtomicBool>,
    reporter: Option<JoinHandle<()>>,
    _writer: WorkerGuard,
}

/// Sends all that is logged through `tracing` to stderr, as `--log`, `--log-format` and `--log-rate` say. Of other
/// libraries only `warn` and `error` are heard, so that `debug` shows this server's own events. Without effect
/// where the program has a subscriber already.
pub fn start(config: &Config) -> Log {
    let (levels, handle) = reload::Layer::new(targets(config.log));
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINES)
        .thread_name("corecast-log")
        .finish(io::stderr());
    let unwritten = UNWRITTEN.get_or_init(|| writer.error_counter()).clone();
    let kinds = Arc::new(Kinds::new(config.log_lines_per_second as u64));
    let layer = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(writer);
    let registry = tracing_subscriber::registry().with(levels);
    let limit = RateLimit(kinds.clone());
    // One that was there before stays.
    let _ = match config.log_format {
        LogFormat::Text => registry.with(layer.with_filter(limit)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_filter(limit)).try_init(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let reporter = Reporter { kinds: kinds.clone(), unwritten, unwritten_told: 0, stop: stop.clone() };
    let thread = std::thread::Builder::new().name("corecast-log-rate".to_owned());
    // Without the thread all is counted and nothing is said of it, which is no reason not to serve.
    let reporter = thread.spawn(move || reporter.run()).ok();
    if let Some(thread) = &reporter {
        let _ = kinds.reporter.set(thread.thread().clone());
    }
    Log { levels: Levels(handle), stop, reporter, _writer: guard }
}

/// Which lines are logged; changes that of the log under way.
#[derive(Clone, Debug)]
pub struct Levels(Handle<Targets, Registry>);

impl Levels {
    /// Changes the least important level that is logged.
    pub fn set(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(targets(level)) {
            error!(%error, "the log level stays as it was");
        }
    }
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(env!("CARGO_PKG_NAME"), level)
}

impl Log {
    /// What changes its level.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.levels.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(reporter) = self.reporter.take() {
            reporter.thread().unpark();
            let _ = reporter.join();
        }
    }
}

/// Lets lines through up to their kind's rate.
struct RateLimit(Arc<Kinds>);

impl<S> Filter<S> for RateLimit {
    fn enabled(&self, _metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _context: &Context<'_, S>) -> bool {
        // What is said of lines left out is bounded by the number of kinds.
        event.metadata().target() == module_path!() || self.0.admits(event)
    }
}

/// All kinds seen so far. A table without a lock, because shards log as well.
struct Kinds {
    /// 0 is no limit.
    lines_per_second: u64,
    start: Instant,
    kinds: Box<[Kind]>,
    reporter: OnceLock<Thread>,
}

/// Lines from one place in the source.
#[derive(Default)]
struct Kind {
    /// Address of the place's description; 0 while the entry is free.
    key: AtomicUsize,
    /// The current second in the upper half, its lines in the lower.
    second_and_lines: AtomicU64,
    /// Lines left out and not yet told.
    left_out: AtomicU64,
    /// How the first line that was left out begins.
    name: OnceLock<(Level, String)>,
}

impl Kind {
    /// Counts a line in the given second; true if it is within the limit.
    fn count(&self, second: u32, limit: u64) -> bool {
        let counted = self.second_and_lines.fetch_update(Relaxed, Relaxed, |value| {
            let (last, lines) = ((value >> 32) as u32, value as u32);
            let lines = if last == second { lines.saturating_add(1) } else { 1 };
            Some(u64::from(second) << 32 | u64::from(lines))
        });
        let before = counted.unwrap_or_else(|value| value);
        let lines = if (before >> 32) as u32 == second { u64::from(before as u32) + 1 } else { 1 };
        lines <= limit
    }
}

impl Kinds {
    fn new(lines_per_second: u64) -> Self {
        let kinds = (0..KINDS).map(|_| Kind::default()).collect();
        Self { lines_per_second, start: Instant::now(), kinds, reporter: OnceLock::new() }
    }

    fn admits(&self, event: &Event<'_>) -> bool {
        if self.lines_per_second == 0 {
            return true;
        }
        let metadata = event.metadata();
        let kind = self.kind(std::ptr::from_ref(metadata).addr());
        // Begins at 1, as no kind has a line in second 0.
        let second = self.start.elapsed().as_secs() as u32 + 1;
        if kind.count(second, self.lines_per_second) {
            return true;
        }
        OVER_RATE.fetch_add(1, Relaxed);
        kind.name.get_or_init(|| {
            let mut name = Name(String::new());
            event.record(&mut name);
            (*metadata.level(), name.0)
        });
        if kind.left_out.fetch_add(1, Relaxed) == 0 {
            if let Some(reporter) = self.reporter.get() {
                reporter.unpark();
            }
        }
        false
    }

    fn kind(&self, key: usize) -> &Kind {
        let first = (key >> 4) % KINDS;
        let mut entries = (0..KINDS).map(|step| &self.kinds[(first + step) % KINDS]);
        let found = entries.find(|kind| {
            let taken = kind.key.compare_exchange(0, key, Relaxed, Relaxed);
            taken.is_ok() || taken == Err(key)
        });
        found.unwrap_or(&self.kinds[KINDS - 1])
    }
}

/// The message of an event.
struct Name(String);

impl Visit for Name {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a `String` cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// Says, on its own thread, what was left out.
struct Reporter {
    kinds: Arc<Kinds>,
    unwritten: ErrorCounter,
    unwritten_told: usize,
    stop: Arc<AtomicBool>,
}

impl Reporter {
    fn run(mut self) {
        let mut busy = false;
        while !self.stop.load(Relaxed) {
            if !busy {
                std::thread::park_timeout(IDLE_INTERVAL);
            }
            let until = Instant::now() + REPORT_INTERVAL;
            // Woken early by one more kind, or by the end.
            while !self.stop.load(Relaxed) && Instant::now() < until {
                std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
            busy = self.report();
        }
        self.report();
    }

    /// True if there was anything to say.
    fn report(&mut self) -> bool {
        let mut busy = false;
        for kind in &self.kinds.kinds {
            let left_out = kind.left_out.swap(0, Relaxed);
            if let (Some((level, name)), true) = (kind.name.get(), left_out > 0) {
                busy = true;
                say(*level, name, left_out);
            }
        }
        let unwritten = self.unwritten.dropped_lines();
        let new = unwritten - std::mem::replace(&mut self.unwritten_told, unwritten);
        if new > 0 {
            busy = true;
            warn!(left_out = new, "log lines left out: stderr is read too slowly");
        }
        busy
    }
}

fn say(level: Level, kind: &str, left_out: u64) {
    macro_rules! say {
        ($level:ident) => {
            $level!(left_out, kind, "log lines left out: more of a kind than --log-rate lets pass")
        };
    }
    match level {
        Level::ERROR => say!(error),
        Level::WARN => say!(warn),
        Level::INFO => say!(info),
        Level::DEBUG => say!(debug),
        _ => say!(trace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_its_lines_in_every_second() {
        let kind = Kind::default();
        let admitted = |second| (0..5).filter(|_| kind.count(second, 3)).count();
        assert_eq!([admitted(1), admitted(1), admitted(2), admitted(9)], [3, 0, 3, 3]);
    }

    #[test]
    fn kinds_are_told_apart_until_there_are_too_many() {
        let kinds = Kinds::new(1);
        let place = |key| std::ptr::from_ref(kinds.kind(key)).addr();
        let keys: Vec<usize> = (1..=KINDS).map(|n| n * 64).collect();
        let mut places: Vec<usize> = keys.iter().map(|&key| place(key)).collect();
        assert_eq!(places, keys.iter().map(|&key| place(key)).collect::<Vec<_>>(), "found again");
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), KINDS);
        assert_eq!(place(1), place(3), "those beyond share one");
    }
}
