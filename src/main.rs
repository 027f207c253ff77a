//! The server binary: arguments, log, start, exit code.

mod beginnings;
mod push;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use corecast::RunningServer;
use corecast::config::{self, Action, Config, LogFormat, LogLevel};

/// Exit code when the server could not run to its end.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let invocation = match config::load(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(invocation) => invocation,
        Err(error) => {
            error.print();
            return ExitCode::from(error.exit_code());
        }
    };
    match invocation.action {
        Action::Check => ExitCode::SUCCESS,
        Action::Print => print_config(&invocation.config),
        Action::Run => run(invocation.config),
    }
}

fn print_config(config: &Config) -> ExitCode {
    let printed = config.to_toml().map_err(io::Error::other);
    match printed.and_then(|text| io::stdout().write_all(text.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, FAILURE),
    }
}

fn run(config: Config) -> ExitCode {
    start_log(config.log_format, config.log);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let server = match push::app(config).start_for_process() {
        Ok(server) => server,
        Err(error) => return fail(&error, error.exit_code()),
    };
    // Nobody may read standard output; that is no reason not to serve.
    let _ = announce(&server);
    match server.wait() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(error, FAILURE),
    }
}

fn fail(error: impl std::fmt::Display, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(code)
}

fn announce(server: &RunningServer) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for address in server.websocket_addresses() {
        writeln!(out, "WebSocket  ws://{address}")?;
    }
    match server.control_address() {
        Some(address) => writeln!(out, "Control    http://{address}")?,
        None => writeln!(out, "Control    off")?,
    }
    let cpus: Vec<String> = server.cpus().iter().map(usize::to_string).collect();
    writeln!(out, "Cores      {} (CPU {})", cpus.len(), cpus.join(", "))?;
    writeln!(out, "Limit      {} connections", server.max_connections())?;
    out.flush()
}

/// Logs to stderr. Libraries are heard from `warn` up only, so that `debug` shows this server's own events.
fn start_log(format: LogFormat, level: LogLevel) {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter =
        Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(env!("CARGO_PKG_NAME"), level);
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // A second subscriber is refused, and there is none before this one.
    let _ = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
}
