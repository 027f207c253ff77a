//! loadgen: a load generator for WebSocket push servers. It shares no code with the server that it measures.
//!
//! A run is led through its stages by the [`conductor`]; each thread is a [`worker`] with one epoll set, one receive
//! buffer and its [`links`]; what happens on them is decided by one of the [`modes`]. Latencies go into one HDR
//! histogram per thread. The result is a [`document`], printed as [`text`] and written as JSON.
//!
//! [`frame`], [`handshake`], [`compression`], [`payload`], [`sequence`], [`completion`], [`schedule`], [`meta`],
//! [`record`], [`timeline`] and [`checker`] touch no socket and no clock.

mod arguments;
mod checker;
mod completion;
mod compression;
mod conductor;
mod document;
mod frame;
mod handshake;
mod host;
mod kernel_memory;
mod latency;
mod links;
mod meta;
mod modes;
mod payload;
mod process;
mod progress;
mod received;
mod record;
mod report;
mod schedule;
mod sequence;
mod settings;
mod softirq;
mod sys;
mod text;
mod timeline;
mod units;
mod worker;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use document::Measurement;

/// Why there is no result.
#[derive(Debug)]
enum Failure {
    /// What was asked for makes no sense.
    Arguments(String),
    /// The run could not be carried out.
    Run(std::io::Error),
}

fn main() -> ExitCode {
    let result = match Arguments::read().command {
        Command::Fanout(arguments) => modes::fanout::run(arguments),
        Command::Connect(arguments) => modes::connect::run(arguments),
        Command::Idle(arguments) => modes::idle::run(arguments),
        Command::Echo(arguments) => modes::echo::run(arguments),
        Command::Storm(arguments) => modes::storm::run(arguments),
        Command::Verify(arguments) => modes::verify::run(arguments),
        Command::Report(arguments) => return exit(report::run(&arguments).map(|()| ExitCode::SUCCESS)),
    };
    exit(result.map(|measurement| conclude(&measurement)))
}

fn exit(result: Result<ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(Failure::Arguments(message)) => {
            eprintln!("loadgen: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Run(error)) => {
            eprintln!("loadgen: {error}");
            ExitCode::from(1)
        }
    }
}

/// Prints and writes a result; the exit code says whether the run passed.
fn conclude(measurement: &Measurement) -> ExitCode {
    print!("{}", text::block(measurement));
    if let Some(path) = &measurement.json {
        let written = serde_json::to_vec_pretty(measurement)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(path, bytes));
        if let Err(error) = written {
            eprintln!("loadgen: --json {}: {error}", path.display());
            return ExitCode::from(1);
        }
    }
    ExitCode::from(u8::from(!measurement.passed))
}
