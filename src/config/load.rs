//! From command line, environment and file to one [`Config`].
//!
//! The layers are applied in turn, the weakest first: default, file, environment, flags. File keys and
//! environment variables are turned into flags and go through the same parser, so that a bad value gets the
//! same sentence wherever it stands.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use toml::{Table, Value};

use super::environment::variable;
use super::{Config, ConfigError};

/// Closing remarks of `--help`.
const AFTER_HELP: &str = "\
Sizes take B, KiB or MiB; durations take ms, s, m or h, or 0.
Each setting may also come from the environment (--send-queue is CORECAST_SEND_QUEUE; lists are separated \
with commas; an empty variable counts as not set; one that is none of these is warned of) and from the TOML file of --config (--send-queue is the \
key send-queue; --listen, --allowed-origin, --deny-ip, --subprotocol and --trusted-proxy are lists). A flag beats \
the environment, the environment beats the file.
SIGHUP has a running server read all of it again; what it cannot take over then is named in its log.";

/// What the process was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve.
    Run,
    /// Print the effective configuration.
    Print,
    /// Say whether the configuration is valid.
    Check,
}

/// A valid configuration and what to do with it.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The settings, validated.
    pub config: Config,
    /// What to do.
    pub action: Action,
}

/// Why there is no [`Invocation`].
#[derive(Debug)]
pub enum LoadError {
    /// The command line is wrong, or asked for help or the version.
    CommandLine(clap::Error),
    /// A file or an environment variable is wrong. Names it.
    Source(String),
    /// The settings do not fit each other or this machine.
    Invalid(ConfigError),
}

impl LoadError {
    /// Exit code of the process: 2, but 0 for help and version.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::CommandLine(error) if error.exit_code() == 0 => 0,
            _ => 2,
        }
    }

    /// Writes it where it belongs: help and version on stdout, errors on stderr.
    pub fn print(&self) {
        // A closed stream leaves nobody to tell.
        match self {
            Self::CommandLine(error) => drop(error.print()),
            _ => drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {self}\n"))),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(error) => error.fmt(f),
            Self::Source(message) => f.write_str(message),
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

/// Flags that say what to do, not how to serve.
#[derive(Args)]
#[group(skip)]
struct Operation {
    /// TOML file with settings; its keys are the flags' names. An unknown key is an error
    #[arg(help_heading = "Configuration", long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the effective configuration as TOML that --config takes, without the publish token, and exit
    #[arg(help_heading = "Configuration", long, conflicts_with = "check_config")]
    print_config: bool,

    /// Check the configuration and exit: 0 when it is valid, 2 when not
    #[arg(help_heading = "Configuration", long)]
    check_config: bool,
}

/// Reads the command line (program name first), the environment and the file, and validates the result.
///
/// # Errors
/// [`LoadError`], also when help or the version was asked for.
pub fn load(
    command_line: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Invocation, LoadError> {
    let command = documented(Operation::augment_args(settings_command()));
    let flags = command.try_get_matches_from(command_line).map_err(LoadError::CommandLine)?;
    let operation = Operation::from_arg_matches(&flags).map_err(LoadError::CommandLine)?;
    let lookup = |long: &str| environment(&variable(long)).filter(|value| !value.is_empty());

    let mut config = Config::default();
    if let Some(path) = operation.config.or_else(|| lookup("config").map(PathBuf::from)) {
        apply_file(&mut config, &path)?;
    }
    if lookup("cores").is_some() && lookup("cpus").is_none() {
        config.cpus = None;
    }
    for (long, value) in settings().filter_map(|long| lookup(&long).map(|value| (long, value))) {
        let mut argument = OsString::from(format!("--{long}="));
        argument.push(value);
        apply(&mut config, [argument]).map_err(|error| {
            LoadError::Source(format!("environment variable {}: {error}", variable(&long)))
        })?;
    }
    // Where both are given, --cpus overrides --cores; but not from a weaker layer.
    if flags.contains_id("cores") && !flags.contains_id("cpus") {
        config.cpus = None;
    }
    config.update_from_arg_matches(&flags).map_err(LoadError::CommandLine)?;
    config.validate().map_err(LoadError::Invalid)?;
    let action = match (operation.print_config, operation.check_config) {
        (true, _) => Action::Print,
        (_, true) => Action::Check,
        _ => Action::Run,
    };
    Ok(Invocation { config, action })
}

impl Config {
    /// The settings as TOML that `--config` takes. The publish token is left out: what is printed ends up in
    /// logs and tickets.
    ///
    /// # Errors
    /// When a number is larger than TOML can hold, which [`Config::validate`] rules out.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let settings = toml::to_string(self)?;
        let mut text = format!("# Effective configuration of corecast {}\n", env!("CARGO_PKG_VERSION"));
        if self.publish_token.is_some() {
            text += "# publish-token: set, and not printed; give it with CORECAST_PUBLISH_TOKEN\n";
        }
        if self.cores.is_none() && self.cpus.is_none() {
            text += "# cores: every CPU this process may run on\n";
        }
        if self.max_connections.is_none() {
            text += "# max-connections: derived from the limit on open files\n";
        }
        for (key, limit) in [
            ("max-connections-per-ip", self.max_connections_per_ip),
            ("accept-rate", self.accept_rate),
            ("message-rate", self.message_rate),
        ] {
            if limit.is_none() {
                text += &format!("# {key}: off\n");
            }
        }
        Ok(text + &settings)
    }
}

/// Values that may be any text: what looks like a flag there is one, and the value is missing.
const FREE_TEXTS: [&str; 3] = ["NAME", "ORIGIN", "TOKEN"];

/// A value that only looks like a flag, such as -1s, is taken, and refused by what the setting accepts.
fn settings_command() -> Command {
    Config::augment_args_for_update(Command::new("corecast")).mut_args(|arg| {
        let is_free =
            arg.get_value_names().into_iter().flatten().any(|name| FREE_TEXTS.contains(&name.as_str()));
        let hyphens = !is_free && !arg.is_require_equals_set();
        arg.allow_hyphen_values(hyphens)
    })
}

/// Whether a setting may have several values.
fn is_list(command: &Command, long: &str) -> bool {
    let mut arguments = command.get_arguments();
    arguments.any(|arg| arg.get_long() == Some(long) && matches!(arg.get_action(), ArgAction::Append))
}

/// Names of all settings, as flags without the dashes.
pub(super) fn settings() -> impl Iterator<Item = String> {
    let command = settings_command();
    let longs: Vec<_> = command.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect();
    longs.into_iter()
}

/// Completes `--help`; each setting's default is taken from where it is defined.
fn documented(command: Command) -> Command {
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    let command = command
        .version(env!("CARGO_PKG_VERSION"))
        .about("Thread-per-core WebSocket broadcast server")
        .long_about("Thread-per-core WebSocket broadcast server for Linux")
        .after_help(AFTER_HELP);
    command.mut_args(|arg| {
        let default = arg.get_long().and_then(|long| defaults.get(long)).map(flag_values).unwrap_or_default();
        match (arg.get_help(), default.unwrap_or_default().join(",")) {
            (Some(help), default) if !default.is_empty() => {
                let help = format!("{help} [default: {default}]");
                arg.help(help)
            }
            _ => arg,
        }
    })
}

/// Applies settings that stand as flags; the error is the parser's sentence without its frame.
fn apply(config: &mut Config, arguments: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    settings_command()
        .no_binary_name(true)
        .disable_help_flag(true)
        .try_get_matches_from(arguments)
        .and_then(|matches| config.update_from_arg_matches(&matches))
        .map_err(|error| {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            text.split("\n\nFor more information").next().unwrap_or(text).trim_end().to_owned()
        })
}

fn apply_file(config: &mut Config, path: &Path) -> Result<(), LoadError> {
    let name = path.display();
    let fail = |message: String| LoadError::Source(format!("configuration file {name}: {message}"));
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| fail(error.to_string()))?;
    let (known, command): (Vec<String>, _) = (settings().collect(), settings_command());
    for (key, value) in table {
        if !known.contains(&key) {
            return Err(fail(format!("unknown key '{key}'; the keys are the names of the flags in --help")));
        }
        let values = flag_values(&value).ok_or_else(|| {
            fail(format!("key '{key}': expected a text, a whole number, true or false, or a list of texts"))
        })?;
        if value.is_array() && !is_list(&command, &key) {
            let form = if key == "cpus" { "a text such as \"0-3,8\"" } else { "a single value" };
            return Err(fail(format!("key '{key}': expected {form}, not a list")));
        }
        let arguments = values.into_iter().map(|value| OsString::from(format!("--{key}={value}")));
        apply(config, arguments).map_err(fail)?;
    }
    Ok(())
}

/// A file's value as a flag's values; `None` for what no flag can hold.
fn flag_values(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Boolean(switch) => Some(vec![switch.to_string()]),
        Value::Array(items) => items.iter().map(|item| Some(flag_values(item)?.concat())).collect(),
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{
        ControlAddress, CpuList, LogFormat, LogLevel, PublishToken, SlowConsumer, Switch, WaitMode,
    };
    use super::*;

    fn try_load(flags: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, LoadError> {
        let line = std::iter::once("corecast").chain(flags.iter().copied()).map(OsString::from);
        let lookup =
            |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        load(line, lookup)
    }

    fn loaded(flags: &[&str], environment: &[(&str, &str)]) -> Config {
        try_load(flags, environment).unwrap().config
    }

    fn error(flags: &[&str], environment: &[(&str, &str)]) -> String {
        let error = try_load(flags, environment).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    /// A file that is gone when the value is.
    struct TemporaryFile(PathBuf);

    impl TemporaryFile {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("corecast-{}-{name}.toml", std::process::id()));
            std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            Self(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for TemporaryFile {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(loaded(&[], &[]), Config::default());
        assert_eq!(
            loaded(&[], &[("CORECAST_CORES", ""), ("CORECAST_PORT", "tcp://10.0.0.1")]),
            Config::default()
        );
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let file = TemporaryFile::new(
            "precedence",
            "send-queue = '1KiB'\nkeepalive = '1s'\ndrain-window = '1s'\n\
             listen = ['127.0.0.1:1']\necho = true",
        );
        let environment = [
            ("CORECAST_KEEPALIVE", "2s"),
            ("CORECAST_DRAIN_WINDOW", "2s"),
            ("CORECAST_LISTEN", "127.0.0.1:2,127.0.0.1:3"),
            ("CORECAST_CONFIG", file.path()),
        ];
        let config = loaded(&["--drain-window", "3s", "--echo=false"], &environment);
        assert_eq!(config.max_handshake_bytes, Config::default().max_handshake_bytes);
        assert_eq!(config.send_queue_bytes, 1024);
        assert_eq!(config.keepalive_millis, 2_000);
        assert_eq!(config.drain_window_millis, 3_000);
        assert_eq!(config.listen.iter().map(|a| a.port()).collect::<Vec<_>>(), [2, 3]);
        assert!(!config.echo);
    }

    #[test]
    fn every_flag_works() {
        const FLAGS: &str = "--listen 127.0.0.1:1 --listen [::1]:2 --control off --cores 1 --oversubscribe \
            --keepalive 0 --echo --client-publish --allowed-origin https://a --allowed-origin https://b \
            --deny-ip 192.0.2.0/24,2001:db8::1 --subprotocol x,y --strict-subprotocols false --max-connections 5 \
            --max-message-size 1KiB \
            --max-connections-per-ip 6 --accept-rate 7 --trusted-proxy 10.0.0.0/8 --trusted-proxy ::1 \
            --proxy-protocol on --message-rate 8 --max-subscriptions 9 --max-topics 10 \
            --max-handshake-size 2KiB --handshake-timeout 3s --send-queue 4KiB --slow-consumer latest --publish-token t \
            --compression off --compression-min 1KiB --drain-window 5s --reuse-port --log-format json --log trace --log-rate 0 --wait ring \
            --history 7 --history-ttl 2m --history-size 1MiB";
        // Two shards on a CPU that there is, whichever it is.
        let cpu = Config::default().shard_cpus().unwrap()[0];
        let flags = format!("--cpus {cpu},{cpu} {FLAGS}");
        let config = loaded(&flags.split_whitespace().collect::<Vec<_>>(), &[]);
        let expected = Config {
            listen: vec!["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()],
            control: ControlAddress::Off,
            reuse_port: true,
            cores: Some(1),
            cpus: Some(CpuList(vec![cpu, cpu])),
            oversubscribe: true,
            wait: WaitMode::Ring,
            max_connections: Some(5),
            max_connections_per_ip: Some(6),
            accept_rate: Some(7),
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            proxy_protocol: Switch::On,
            keepalive_millis: 0,
            max_handshake_bytes: 2048,
            handshake_timeout_millis: 3000,
            allowed_origins: vec!["https://a".into(), "https://b".into()],
            deny_ip: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::1/128".parse().unwrap()],
            subprotocols: vec!["x".into(), "y".into()],
            strict_subprotocols: false,
            max_message_bytes: 1024,
            message_rate: Some(8),
            max_subscriptions: 9,
            max_topics: 10,
            send_queue_bytes: 4096,
            slow_consumer: SlowConsumer::Latest,
            compression: Switch::Off,
            compression_min_bytes: 1024,
            history: 7,
            history_ttl_millis: 120_000,
            history_bytes: 1024 * 1024,
            echo: true,
            client_publish: true,
            publish_token: Some(PublishToken::new("t")),
            drain_window_millis: 5000,
            log_format: LogFormat::Json,
            log_lines_per_second: 0,
            log: LogLevel::Trace,
        };
        assert_eq!(config, expected);
        let file = TemporaryFile::new("every-flag", &config.to_toml().unwrap());
        assert_eq!(loaded(&["--config", file.path()], &[("CORECAST_PUBLISH_TOKEN", "t")]), expected);
        assert!(!config.to_toml().unwrap().contains("'t'"));
    }

    #[test]
    fn the_default_survives_print_and_read() {
        let text = Config::default().to_toml().unwrap();
        assert!(
            text.contains("\nkeepalive = \"30s\"\n") && text.contains("\nsend-queue = \"1MiB\"\n"),
            "{text}"
        );
        let file = TemporaryFile::new("default", &text);
        assert_eq!(loaded(&["--config", file.path()], &[]), Config::default());
        assert_eq!(try_load(&["--print-config"], &[]).unwrap().action, Action::Print);
        assert_eq!(try_load(&["--check-config"], &[]).unwrap().action, Action::Check);
    }

    #[test]
    fn a_bad_value_names_flag_value_and_what_is_accepted() {
        let sentence = "invalid value '1GB' for '--send-queue <SIZE>': \
            expected a whole number of bytes with B, KiB or MiB, such as 64KiB";
        assert!(error(&["--send-queue", "1GB"], &[]).starts_with(&format!("error: {sentence}")));
        assert_eq!(
            error(&[], &[("CORECAST_SEND_QUEUE", "1GB")]),
            format!("environment variable CORECAST_SEND_QUEUE: {sentence}")
        );
        let file = TemporaryFile::new("bad-value", "send-queue = '1GB'");
        assert_eq!(
            error(&["--config", file.path()], &[]),
            format!("configuration file {}: {sentence}", file.path())
        );
        let cases = [
            ("--cores", "0", "expected a whole number of at least 1"),
            ("--keepalive", "30", "expected a whole number with ms, s, m or h"),
            ("--listen", "localhost", "expected IP:PORT"),
            ("--control", "on", "expected IP:PORT, such as 127.0.0.1:8080 or [::1]:8080, or off"),
            ("--strict-subprotocols", "maybe", "expected true or false"),
            ("--deny-ip", "10.0.0.0/40", "a network such as 192.0.2.0/24"),
            ("--log", "loud", "[possible values: off, error, warn, info, debug, trace]"),
            ("--control", "0.0.0.0:1", "needs --publish-token"),
            ("--keepalive", "-1s", "expected a whole number with ms, s, m or h"),
            ("--history", "-1", "expected a whole number"),
            ("--max-message-size", "-1KiB", "expected a whole number of bytes"),
            ("--cpus", "-1", "expected CPU numbers and ranges"),
            ("--strict-subprotocols", "-1", "expected true or false"),
            ("--compression", "-1", "[possible values: on, off]"),
        ];
        for (flag, value, accepted) in cases {
            let text = error(&[flag, value], &[]);
            assert!(text.contains(flag) && text.contains(value) && text.contains(accepted), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_missing_is_not_the_next_flag() {
        assert!(error(&["--publish-token", "--echo"], &[]).contains("a value is required"));
        assert!(error(&["--config", "--echo"], &[]).contains("a value is required"));
    }

    #[test]
    fn cores_beat_cpus_of_a_weaker_layer_and_of_no_other() {
        let cpu = Config::default().shard_cpus().unwrap()[0].to_string();
        let file = TemporaryFile::new("cores-and-cpus", &format!("cpus = '{cpu}'"));
        let both = TemporaryFile::new("cores-with-cpus", &format!("cpus = '{cpu}'\ncores = 1"));
        let cpus = |flags: &[&str], environment: &[(&str, &str)]| {
            let config = loaded(flags, environment);
            config.cpus.map(|list| list.to_string())
        };
        let in_file = ["--config", file.path()];
        assert_eq!(cpus(&in_file, &[]), Some(cpu.clone()));
        assert_eq!(cpus(&[in_file[0], in_file[1], "--cores", "1"], &[]), None);
        assert_eq!(cpus(&["--cores", "1"], &[("CORECAST_CPUS", &cpu)]), None);
        assert_eq!(cpus(&in_file, &[("CORECAST_CORES", "1")]), None);
        assert_eq!(cpus(&in_file, &[("CORECAST_CORES", "")]), Some(cpu.clone()));
        assert_eq!(cpus(&["--config", both.path()], &[]), Some(cpu.clone()));
        assert_eq!(cpus(&["--cores", "1", "--cpus", &cpu], &[]), Some(cpu.clone()));
        assert_eq!(cpus(&["--cpus", &cpu], &[("CORECAST_CORES", "1")]), Some(cpu.clone()));
    }

    #[test]
    fn a_bad_file_says_what_is_wrong() {
        let cases = [
            ("send-que = '1KiB'", "unknown key 'send-que'"),
            ("config = 'x'", "unknown key 'config'"),
            ("[cores]\nn = 1", "key 'cores': expected a text"),
            ("cores = 1.5", "key 'cores': expected a text"),
            ("listen = [['127.0.0.1:1'], {}]", "key 'listen': expected"),
            ("cores = [1, 2]", "key 'cores': expected a single value, not a list"),
            ("cpus = [0, 1]", "key 'cpus': expected a text such as \"0-3,8\", not a list"),
            ("cores 1", "line 1"),
        ];
        for (n, (text, expected)) in cases.into_iter().enumerate() {
            let file = TemporaryFile::new(&format!("bad-file-{n}"), text);
            let message = error(&["--config", file.path()], &[]);
            assert!(message.contains(file.path()) && message.contains(expected), "{message}");
        }
        assert!(error(&["--config", "/no/such/file"], &[]).contains("/no/such/file: No such file"));
    }

    #[test]
    fn help_tells_every_default_and_ends_well() {
        let help = try_load(&["--help"], &[]).unwrap_err();
        assert_eq!(help.exit_code(), 0);
        let text = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        for default in
            ["127.0.0.1:8080", "127.0.0.1:8081", "30s", "64KiB", "8KiB", "10s", "1MiB", "text", "info"]
        {
            assert!(text.contains(&format!("[default: {default}]")), "{default}: {text}");
        }
        assert!(text.starts_with("Thread-per-core") && !text.contains("--wait"), "{text}");
        assert_eq!(try_load(&["--version"], &[]).unwrap_err().exit_code(), 0);
        assert_eq!(try_load(&["--no-such-flag"], &[]).unwrap_err().exit_code(), 2);
    }
}
