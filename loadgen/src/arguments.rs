//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::units::{self, CpuList, SourceRange, Url};

/// Load generator for WebSocket push servers.
///
/// Exit code: 0 if all went well, 1 if anything was lost or failed, 2 for bad arguments.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Values that may be any text: what looks like a flag there is one, and the value is missing.
const FREE_TEXTS: [&str; 5] = ["FILE", "NAME", "NAME=VALUE", "DIR|off", "URL"];

impl Arguments {
    /// Those of this process; it ends if they are wrong.
    pub(crate) fn read() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// A value that only looks like a flag, such as -1, is taken, and refused by what the flag accepts.
fn command() -> clap::Command {
    Arguments::command().mut_subcommands(|mode| {
        mode.mut_args(|arg| {
            let names = arg.get_value_names().unwrap_or_default();
            let is_free = names.iter().any(|name| FREE_TEXTS.contains(&name.as_str()));
            match arg.get_num_args() {
                _ if is_free || !arg.get_action().takes_values() => arg,
                // Without a value, a flag follows.
                Some(values) if values.min_values() == 0 => arg.allow_negative_numbers(true),
                _ => arg.allow_hyphen_values(true),
            }
        })
    })
}

/// The modes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One publisher, N subscribers: deliveries a second, latency, CPU per delivery.
    Fanout(FanoutArguments),
    /// Handshakes a second and their latency.
    Connect(ConnectArguments),
    /// Memory per connection, and CPU of a server with nothing to do but keepalive.
    Idle(IdleArguments),
    /// Round trips a second and their latency, one message in flight on each connection.
    Echo(EchoArguments),
    /// Drop all connections at once and reconnect: the time until everything is as it was.
    Storm(StormArguments),
    /// Check every offset and every byte at every subscriber while subscribers come and go.
    ///
    /// The last part of the path in --url, ws://HOST:PORT/pubsub/NAME, is the beginning of the topics' names: topic I
    /// is NAME-I. One publisher for each topic connects to /pubsub/NAME-I, the subscribers to /sub/NAME-I with the
    /// subprotocol ws+meta.nchan; one that comes back adds ?since=EPOCH:OFFSET, the last offset that it got. At the
    /// end everyone must have had everything, once, in order and unchanged; else the exit code is 1, and the first
    /// faults are named. Publishing ends after --duration; what is still missing then is waited for until nothing
    /// of it comes for --timeout.
    Verify(VerifyArguments),
    /// Markdown tables and SVG plots from JSON results.
    Report(ReportArguments),
}

/// Whether to draw a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressChoice {
    /// On a terminal.
    Auto,
    /// Never.
    Off,
}

/// Flags of every measuring mode.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where to connect, ws://HOST:PORT/PATH
    #[arg(long)]
    pub(crate) url: Url,
    /// Connections to open
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    pub(crate) connections: usize,
    /// CPUs to run on, one pinned thread on each, e.g. 0-3,8; one unpinned thread without it
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<CpuList>,
    /// Length of the measurement (units ms s m h)
    #[arg(long, value_name = "DUR", value_parser = units::positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// Payload of each message, at least 24 B (units B KiB MiB)
    #[arg(long, value_name = "SIZE", default_value = "64B", value_parser = units::size)]
    pub(crate) payload: usize,
    /// Offer permessage-deflate without context takeover on every connection and inflate what arrives; a server that
    /// declines is an error. The payload after its first 24 B is then compressible: JSON records with the same keys
    /// and varying numbers, about 3:1 at 1KiB. What loadgen itself sends is not compressed
    #[arg(long)]
    pub(crate) compression: bool,
    /// With --compression: largest window that the server may compress with, as a power of two, 8 to 15
    #[arg(long, value_name = "N", requires = "compression", value_parser = clap::value_parser!(u8).range(8..=15))]
    pub(crate) window_bits: Option<u8>,
    /// Give up when nothing arrives for this long
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = units::positive_duration)]
    pub(crate) timeout: Duration,
    /// Handshakes in progress at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub(crate) handshakes: usize,
    /// Server process whose CPU and memory to measure
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Process that keeps the server's CPU busy, so that the server never finds nothing to do: its CPU is told apart
    #[arg(long, value_name = "PID", requires = "pid")]
    pub(crate) rival: Option<u32>,
    /// Local IPv4 addresses to connect from; on loopback chosen by itself
    #[arg(long, value_name = "A-B")]
    pub(crate) source_ips: Option<SourceRange>,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Note to keep with the result, e.g. server=floor (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    pub(crate) label: Vec<(String, String)>,
    /// Progress bar
    #[arg(long, value_enum, default_value_t = ProgressChoice::Auto)]
    pub(crate) progress: ProgressChoice,
}

/// Flags of `fanout`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("pace").required(true).args(["rate", "window"]))]
pub(crate) struct FanoutArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Open loop: messages a second on a fixed schedule; latency counts from the scheduled time
    #[arg(long, value_name = "R", conflicts_with_all = ["window", "rounds"])]
    pub(crate) rate: Option<f64>,
    /// Closed loop: messages in flight; one is complete when every receiver has it
    #[arg(long, value_name = "W", value_parser = at_least_one)]
    pub(crate) window: Option<usize>,
    /// Closed loop: messages in all
    #[arg(long, value_name = "K", requires = "window", value_parser = at_least_one)]
    pub(crate) rounds: Option<usize>,
    /// Messages before the measurement [default: 100, or 10 windows]
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<usize>,
    /// Where the publisher connects if not to --url; what it receives there is counted but not expected
    #[arg(long, value_name = "URL")]
    pub(crate) publish_url: Option<Url>,
}

/// Flags of `connect`.
#[derive(Debug, Args)]
pub(crate) struct ConnectArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Handshakes a second on a fixed schedule; as fast as --handshakes allows without it
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
    /// With --duration: end connections by a reset instead of a closing handshake, so that opening handshakes are all
    /// that is measured
    #[arg(long, requires = "duration")]
    pub(crate) reset: bool,
}

/// Flags of `idle`.
#[derive(Debug, Args)]
pub(crate) struct IdleArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Time between the last handshake and the measurement, and before the first look at the kernel's memory
    #[arg(long, value_name = "DUR", default_value = "2s", value_parser = units::duration)]
    pub(crate) settle: Duration,
}

/// Flags of `echo`.
#[derive(Debug, Args)]
pub(crate) struct EchoArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Round trips on each connection [default: as many as --duration allows]
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    pub(crate) rounds: Option<usize>,
    /// Round trips on each connection before the measurement
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) warmup: usize,
}

/// Flags of `storm`.
#[derive(Debug, Args)]
pub(crate) struct StormArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How often to drop everything; after --duration no round is begun, but the first. With --url
    /// ws://HOST:PORT/pubsub/TOPIC a round ends when a message published after it has reached every connection, else
    /// when every connection is open [default: 1, or as many as --duration allows]
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    pub(crate) rounds: Option<usize>,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Topics, over which subscribers and messages are spread evenly [default: 10, or as many as --connections]
    #[arg(long, value_name = "T", value_parser = at_least_one)]
    pub(crate) topics: Option<usize>,
    /// Messages a second over all topics, text and binary in turn
    #[arg(long, value_name = "R", default_value_t = 100.0)]
    pub(crate) rate: f64,
    /// Share of the subscribers that disconnect in a second, by reset and by closing handshake in turn; each comes
    /// back after a random pause of up to half a second. Without a value: 10 [default: 10, or 0 with --plain]
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "10")]
    pub(crate) churn: Option<f64>,
    /// Do without message ids, for a server that knows no ws+meta.nchan: nobody can resume, so only with --churn 0
    #[arg(long)]
    pub(crate) plain: bool,
    /// Seed of what is random: who goes and how long [default: from the clock; every run prints its own]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u32>,
}

/// Flags of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// Results written by --json
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Server (label `server`) that ratios refer to
    #[arg(long, value_name = "NAME", default_value = "floor")]
    pub(crate) baseline: String,
    /// Directory for the plots, made if it is not there; the tables refer to them by it. Without plots: off
    #[arg(long, value_name = "DIR|off", default_value = "plots")]
    pub(crate) plots: PlotsChoice,
    /// One table with a line for each comparison instead of all figures, and no plots
    #[arg(long, conflicts_with = "plots")]
    pub(crate) summary: bool,
}

/// Where `report` writes its plots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PlotsChoice {
    /// Nowhere.
    Off,
    /// Into this directory.
    Directory(PathBuf),
}

impl std::str::FromStr for PlotsChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("expected a directory, or off".into()),
            "off" => Ok(Self::Off),
            directory => Ok(Self::Directory(directory.into())),
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 && number < u32::MAX as usize => Ok(number),
        _ => Err("expected a whole number from 1".into()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        command().try_get_matches_from(line.split_whitespace()).unwrap_err().to_string()
    }

    #[test]
    fn definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn bad_values_name_flag_value_and_what_is_accepted() {
        let text = refused("loadgen echo --url ws://127.0.0.1:9/ --duration 10");
        assert!(
            text.contains("--duration") && text.contains("'10'") && text.contains("ms, s, m or h"),
            "{text}"
        );
        let text = refused("loadgen echo --url ws://127.0.0.1:9/ --connections -1");
        assert!(text.contains("--connections") && text.contains("'-1'") && text.contains("from 1"), "{text}");
        assert!(refused("loadgen echo --url ws://127.0.0.1:9/ --timeout -1s").contains("ms, s, m or h"));
        assert!(
            refused("loadgen echo --url ws://127.0.0.1:9/ --json --progress off")
                .contains("a value is required")
        );
        assert!(refused("loadgen echo --url http://a/").contains("ws://HOST:PORT/PATH"));
        let text = refused("loadgen fanout --url ws://127.0.0.1:9/");
        assert!(text.contains("--rate") && text.contains("--window"), "{text}");
        assert!(
            refused("loadgen fanout --url ws://127.0.0.1:9/ --rate 1 --window 1").contains("cannot be used")
        );
        assert!(refused("loadgen idle --url ws://127.0.0.1:9/ --connections 0").contains("from 1"));
        assert!(refused("loadgen echo --url ws://127.0.0.1:9/ --window-bits 9").contains("--compression"));
        let text = refused("loadgen echo --url ws://127.0.0.1:9/ --compression --window-bits 16");
        assert!(text.contains("'16'") && text.contains("8..=15"), "{text}");
    }
}
