//! The server binary's log, on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;

use corecast::config::{LogFormat, LogLevel};

/// The log under way.
#[derive(Debug)]
pub(crate) struct Log(Handle<Targets, Registry>);

/// Starts it.
pub(crate) fn start(format: LogFormat, level: LogLevel) -> Log {
    let (filter, handle) = reload::Layer::new(targets(level));
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // A second subscriber is refused, and there is none before this one.
    let _ = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
    Log(handle)
}

impl Log {
    /// Changes the least important level that is logged.
    pub(crate) fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(targets(level)) {
            tracing::error!(%error, "the log level stays as it was");
        }
    }
}

/// Libraries are heard from `warn` up only, so that `debug` shows this server's own events.
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
