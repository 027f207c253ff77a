//! The server binary: arguments, log, start, exit code.

mod activation;
mod beginnings;
mod push;

use std::io::{self, Write};
use std::process::ExitCode;

use corecast::config::{self, Action, Config, Invocation, LoadError};
use corecast::log::{self, Levels};
use corecast::{AddressRules, App, RunningServer};

/// Exit code when the server could not run to its end.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let invocation = match load() {
        Ok(invocation) => invocation,
        Err(error) => {
            error.print();
            return ExitCode::from(error.exit_code());
        }
    };
    match invocation.action {
        Action::Check => check_config(&invocation.config),
        Action::Print => print_config(&invocation.config),
        Action::Run => run(invocation.config),
    }
}

fn load() -> Result<Invocation, LoadError> {
    config::load(std::env::args_os(), |name| std::env::var_os(name))
}

/// What is read here is valid; a start would warn of this.
fn check_config(config: &Config) -> ExitCode {
    for warning in warnings(config) {
        // Nobody may read it.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    ExitCode::SUCCESS
}

fn warnings(config: &Config) -> impl Iterator<Item = String> {
    config.warnings().into_iter().chain(config::environment_warnings(std::env::vars_os()))
}

fn print_config(config: &Config) -> ExitCode {
    let printed = config.to_toml().map_err(io::Error::other);
    match printed.and_then(|text| io::stdout().write_all(text.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, FAILURE),
    }
}

fn run(config: Config) -> ExitCode {
    let log = log::start(&config);
    for warning in warnings(&config) {
        tracing::warn!("{warning}");
    }
    let sockets = match activation::sockets(&config) {
        Ok(sockets) => sockets,
        Err(error) => return fail(format!("cannot use a socket that was handed over: {error}"), FAILURE),
    };
    if let Some(warning) = sockets.warning(&config) {
        tracing::warn!("{warning}");
    }
    let app = reloadable(config, log.levels());
    let server = match sockets.give_to(app).start_for_process() {
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

/// The app, with what of its settings SIGHUP changes beside the server's own: who is denied, and the log's level.
fn reloadable(config: Config, levels: Levels) -> App {
    let denied = AddressRules::default();
    deny(&denied, &config);
    let app = push::app(config, &denied);
    let load = || load().map(|invocation| invocation.config).map_err(|error| error.to_string());
    app.on_reload(load, move |config| {
        deny(&denied, config);
        levels.set(config.log);
    })
}

fn deny(rules: &AddressRules, config: &Config) {
    let networks: Vec<String> = config.deny_ip.iter().map(ToString::to_string).collect();
    if let Err(error) = rules.replace(networks.iter().map(String::as_str)) {
        // What was read as a network is written as one.
        tracing::error!(%error, "the deny list stays as it was");
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
