//! From the command line to the exit code: configuration, start-up, refusals, draining.

mod support;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libc::{ENOSYS, EPERM, SIGINT, SIGTERM};

use support::client::{Client, Upgrade};
use support::server::{Launch, Server};
use support::swarm::Swarm;
use support::sys::{self, Cage};
use support::{PATIENCE, wait_for};

#[test]
fn start_up_prints_both_urls_the_cores_and_the_connection_limit() {
    let server = Server::start_shards(2, &["--max-connections", "1234"]);
    let printed = server.stdout();
    assert!(printed.contains(&format!("ws://{}", server.data)), "{printed}");
    assert!(printed.contains(&format!("http://{}", server.control())), "{printed}");
    assert!(printed.contains('2') && printed.to_lowercase().contains("core"), "no cores: {printed}");
    let plain = printed.replace([',', '_', ' '], "");
    assert!(plain.contains("1234"), "no connection limit: {printed}");
    assert!(!server.stderr().to_lowercase().contains("error"), "{}", server.stderr());
}

#[test]
fn without_flags_every_allowed_cpu_is_used() {
    let allowed = sys::allowed_cpus();
    for cpus in [allowed.clone(), vec![allowed[allowed.len() - 1]]] {
        let count = cpus.len();
        let server = Launch::new(&[]).cage(Cage { cpus: Some(cpus), ..Cage::default() }).start();
        let metrics = server.metrics();
        assert_eq!(metrics.matching("corecast_connections", &[]).count(), count, "one sample per core");
    }
}

#[test]
fn named_cpus_are_the_ones_that_are_used() {
    let last = *sys::allowed_cpus().last().expect("at least one CPU");
    let server = Server::start(&["--cpus", &last.to_string(), "--echo"]);
    server.connect("/echo").expect_alive();
    let pinned = server.pinned_threads();
    assert!(
        !pinned.is_empty() && pinned.iter().all(|(cpu, _)| *cpu == last),
        "CPU {last}, but pinned: {pinned:?}"
    );
}

#[test]
fn more_cores_than_cpus_is_an_error_unless_oversubscribed() {
    let refused = Launch::new(&["--cores", "999"]).run_to_exit();
    refused.expect_refusal(&[2], &["--cores", "999", "--oversubscribe"]);
    let one = Cage { cpus: Some(vec![sys::allowed_cpus()[0]]), ..Cage::default() };
    Launch::new(&["--cores", "2"]).cage(one.clone()).run_to_exit().expect_refusal(&[2], &["--cores", "2"]);
    let server = Launch::new(&["--cores", "3", "--oversubscribe", "--echo"]).cage(one).start();
    for _ in 0..10 {
        server.connect("/echo").expect_alive();
    }
}

#[test]
fn a_bad_value_names_the_flag_the_value_and_what_is_accepted() {
    for (flag, value, accepted) in [
        ("--listen", "nonsense", ":"),
        ("--listen", "127.0.0.1:99999", ":"),
        ("--control", "elsewhere", "off"),
        ("--cores", "0", "1"),
        ("--cores", "many", "1"),
        ("--cpus", "3-1", "0-3"),
        ("--cpus", "a,b", "0-3"),
        ("--keepalive", "30", "s"),
        ("--keepalive", "soon", "ms"),
        ("--max-connections", "-5", ""),
        ("--max-connections", "lots", ""),
        ("--max-message-size", "1XB", "KiB"),
        ("--max-handshake-size", "x", "KiB"),
        ("--handshake-timeout", "10 parsecs", "ms"),
        ("--send-queue", "1GB?", "MiB"),
        ("--compression", "maybe", "off"),
        ("--strict-subprotocols", "perhaps", "false"),
        ("--deny-ip", "10.0.0.0/99", "192.0.2.0/24"),
        ("--drain-window", "forever", "s"),
        ("--log-format", "xml", "json"),
        ("--log", "shout", "info"),
    ] {
        let ended = Launch::new(&[&format!("{flag}={value}")]).own_addresses().run_to_exit();
        assert_eq!(ended.code(), Some(2), "{flag}={value}: {ended:?}");
        for word in [flag, value, accepted] {
            assert!(ended.stderr.contains(word), "{flag}={value} does not say {word:?}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
    let unknown = Launch::new(&["--no-such-flag"]).run_to_exit();
    assert_eq!(unknown.code(), Some(2));
    assert!(unknown.stderr.contains("--no-such-flag"), "{}", unknown.stderr);
}

#[test]
fn help_and_version_are_printed() {
    let help = Launch::new(&["--help"]).run_to_exit();
    assert_eq!(help.code(), Some(0));
    for flag in [
        "--listen",
        "--control",
        "--cores",
        "--cpus",
        "--oversubscribe",
        "--keepalive",
        "--echo",
        "--client-publish",
        "--allowed-origin",
        "--deny-ip",
        "--subprotocol",
        "--strict-subprotocols",
        "--max-connections",
        "--max-connections-per-ip",
        "--accept-rate",
        "--trusted-proxy",
        "--proxy-protocol",
        "--message-rate",
        "--max-subscriptions",
        "--max-topics",
        "--max-message-size",
        "--max-handshake-size",
        "--compression",
        "--compression-min",
        "--handshake-timeout",
        "--send-queue",
        "--publish-token",
        "--drain-window",
        "--log-format",
        "--log",
        "--config",
        "--print-config",
        "--check-config",
        "--reuse-port",
    ] {
        assert!(help.stdout.contains(flag), "--help does not tell of {flag}");
    }
    let version = Launch::new(&["--version"]).run_to_exit();
    assert_eq!(version.code(), Some(0));
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{}", version.stdout);
}

#[test]
fn a_port_that_is_taken_is_an_error_in_one_line() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let address = taken.local_addr().expect("local_addr").to_string();
    let ended =
        Launch::new(&["--listen", &address, "--control", "127.0.0.1:0"]).own_addresses().run_to_exit();
    ended.expect_refusal(&[1, 2], &[&address, "listen"]);
    let ended =
        Launch::new(&["--listen", "127.0.0.1:0", "--control", &address]).own_addresses().run_to_exit();
    ended.expect_refusal(&[1, 2], &[&address, "control", "choose another --control"]);
    // TEST-NET-1, which this machine does not have.
    for flags in [
        ["--listen", "192.0.2.1:8080", "--control", "off"],
        ["--listen", "127.0.0.1:0", "--control", "192.0.2.1:1"],
    ] {
        let token = ["--publish-token", "t"];
        let ended = Launch::new(&[&flags[..], &token].concat()).own_addresses().run_to_exit();
        ended.expect_refusal(&[1], &["192.0.2.1", "needs an address of this machine"]);
    }
}

#[test]
fn a_second_corecast_on_one_port_needs_reuse_port() {
    let first = Server::start(&["--echo"]);
    let address = first.data.to_string();
    let again = ["--listen", &address, "--control", "127.0.0.1:0"];
    let ended = Launch::new(&again).own_addresses().run_to_exit();
    ended.expect_refusal(&[1, 2], &[&address, "--reuse-port"]);
    first.connect("/echo").expect_alive();

    let second = Launch::new(&[&again[..], &["--reuse-port", "--echo"]].concat()).own_addresses().start();
    assert_eq!(second.data, first.data);
    // The kernel spreads new connections over both.
    let clients: Vec<Client> = wait_for("connections on both servers", || {
        let clients: Vec<Client> = (0..64).map(|_| first.connect("/echo")).collect();
        let open = |server: &Server| server.metrics().sum("corecast_connections", &[]);
        (open(&first) > 0.0 && open(&second) > 0.0).then_some(clients)
    });
    drop(clients);
    drop(first);
    // A killed process's ring is taken down a little after its end, and with it the last of its listeners.
    let mut survivor = wait_for("the second server to have the port to itself", || {
        let (response, client) = Upgrade::to("/echo").send(second.data).ok()?;
        (response.status == 101).then_some(client)
    });
    survivor.expect_alive();
}

#[test]
fn a_port_is_free_again_at_once() {
    // An address of its own: on 127.0.0.1 another program could take the port in between.
    let own = format!("127.77.{}.{}:0", std::process::id() / 250 % 250, std::process::id() % 250 + 1);
    let first = ["--drain-window", "0s", "--listen", &own, "--control", &own];
    let server = Launch::new(&first).own_addresses().start();
    let (data, control) = (server.data.to_string(), server.control().to_string());
    let client = server.connect("/sub/a");
    server.signal(SIGTERM);
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
    let again = Launch::new(&["--listen", &data, "--control", &control]).own_addresses().start();
    again.connect("/sub/a").expect_alive();
    drop(client);
}

#[test]
fn several_addresses_are_all_served() {
    let more = ["--listen", "127.0.0.2:0", "--listen", "[::1]:0", "--echo"];
    let server = Launch::new(&more).start();
    let printed = server.stdout();
    let urls: Vec<_> = printed.split("ws://").skip(1).collect();
    assert_eq!(urls.len(), 3, "three addresses, but printed: {printed}");
    for url in urls {
        let end = url.find(|letter: char| !(letter.is_ascii_hexdigit() || "[]:.".contains(letter)));
        let address = &url[..end.unwrap_or(url.len())];
        Client::connect(address.parse().expect("an address"), "/echo").expect_alive();
    }
}

#[test]
fn sigterm_and_sigint_close_with_1012_and_exit_0() {
    for (signal, wait) in [(SIGTERM, "auto"), (SIGINT, "auto"), (SIGTERM, "executor")] {
        let server = Server::start_shards(2, &["--drain-window", "500ms", "--wait", wait]);
        let mut swarm = Swarm::connect(server.data, "/sub/a", 50);
        server.signal(signal);
        swarm.read_until("the closes", |members| members.iter().all(|member| member.gone));
        for member in &swarm.members {
            assert_eq!(
                member.close.as_ref().map(|(code, _)| *code),
                Some(1012),
                "closed with {:?}",
                member.close
            );
        }
        let ended = server.wait_exit(PATIENCE);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

#[test]
fn draining_spreads_the_closes_over_the_window() {
    const CLIENTS: usize = 100;
    // Long enough for what is asked below to hold with a standstill of 2 s in it.
    let window = Duration::from_secs(8);
    let server = Server::start_shards(2, &["--drain-window", "8s", "--client-publish"]);
    let mut swarm = Swarm::connect(server.data, "/sub/a", CLIENTS);
    server.wait_status("/ready", 200);
    let start = Instant::now();
    server.signal(SIGTERM);
    wait_for("/ready to turn 503", || (server.get("/ready").status == 503).then_some(()));
    server.wait_status("/live", 200); // draining is not dead
    server.expect_metric("corecast_draining", &[], 1.0);
    // Those who still are connected still are served.
    server.publish("a", "still served");
    swarm.read_until("the closes", |members| members.iter().all(|member| member.gone));
    let served = swarm.members.iter().filter(|member| !member.messages.is_empty()).count();
    assert!(served > CLIENTS / 4, "only {served} got what was published early in the window");

    let mut at: Vec<Duration> =
        swarm.members.iter().filter_map(|member| Some(member.closed_at? - start)).collect();
    at.sort();
    assert!(swarm.members.iter().all(|member| matches!(member.close, Some((1012, _)))));
    let median = at[CLIENTS / 2];
    assert!(median > window / 5 && median < window, "half of the connections were closed after {median:?}");
    assert!(at[CLIENTS - 1] > window / 2, "the last was closed after only {:?}", at[CLIENTS - 1]);
    for tenth in at.windows(CLIENTS / 2) {
        let span = tenth[tenth.len() - 1] - tenth[0];
        assert!(span > window / 6, "half of all connections were closed within {span:?}");
    }
    let ended = server.wait_exit(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
}

#[test]
fn a_draining_server_takes_no_new_connections() {
    let server = Server::start_shards(2, &["--drain-window", "1h"]);
    let _held: Vec<Client> = (0..20).map(|_| server.connect("/sub/a")).collect();
    server.signal(SIGTERM);
    wait_for("/ready to turn 503", || (server.get("/ready").status == 503).then_some(()));
    wait_for("new connections to be refused", || match Upgrade::to("/sub/a").send(server.data) {
        Err(_) => Some(()),
        Ok((response, _)) => (response.status == 503).then_some(()),
    });
    // A second signal ends it at once, whatever the window.
    server.signal(SIGTERM);
    server.wait_exit(PATIENCE);
}

#[test]
fn clients_that_do_not_answer_the_close_do_not_hold_the_exit() {
    let server = Server::start_shards(2, &["--drain-window", "200ms"]);
    let _mute: Vec<Client> = (0..10).map(|_| server.connect("/sub/a")).collect();
    let _before_handshake = Client::open_socket(server.data).expect("connect");
    server.signal(SIGTERM);
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn an_idle_server_stops_at_once() {
    let server = Server::start(&["--drain-window", "1h"]);
    server.signal(SIGTERM);
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn refused_io_uring_is_said_in_one_line() {
    for errno in [EPERM, ENOSYS] {
        let cage = Cage { io_uring_errno: Some(errno), ..Cage::default() };
        Launch::new(&[]).cage(cage).run_to_exit().expect_refusal(&[1], &["io_uring"]);
    }
}

#[test]
fn too_little_locked_memory_is_said_in_one_line_or_is_no_matter() {
    let cage = Cage { memlock: Some(0), ..Cage::default() };
    Launch::new(&[]).cage(cage).run_to_exit().expect_refusal(&[1], &["memlock", "512"]);
}

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let server = Server::start(&[]);
    let (soft, hard) = sys::descriptor_limits(server.pid()).expect("limits");
    assert_eq!(soft, hard);
}

/// A configuration file that is removed again.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(name: &str, text: &str) -> ConfigFile {
        let path = std::env::temp_dir().join(format!("corecast-{}-{name}.toml", std::process::id()));
        fs::write(&path, text).expect("cannot write the configuration file");
        ConfigFile(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path that is text")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What `--print-config` prints.
fn printed(launch: Launch) -> toml::Table {
    let ended = launch.run_to_exit();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended.stdout.parse().unwrap_or_else(|error| panic!("not TOML: {error}\n{}", ended.stdout))
}

/// A value as text, whatever its TOML type.
fn value(table: &toml::Table, key: &str) -> String {
    let value = table.get(key).unwrap_or_else(|| panic!("no {key} in {table}"));
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = ConfigFile::new("precedence", "send-queue = \"3MiB\"\nkeepalive = \"11s\"\necho = true\n");
    let with_file = ["--print-config", "--config", file.path()];

    let defaults = printed(Launch::new(&["--print-config"]).own_addresses());
    assert_eq!(value(&defaults, "send-queue"), "1MiB");
    assert_eq!(value(&defaults, "keepalive"), "30s");
    assert_eq!(value(&defaults, "echo"), "false");
    assert!(value(&defaults, "listen").contains("127.0.0.1:8080"));
    assert!(value(&defaults, "control").contains("127.0.0.1:8081"));

    let from_file = printed(Launch::new(&with_file));
    assert_eq!(value(&from_file, "send-queue"), "3MiB");
    assert_eq!(value(&from_file, "echo"), "true");

    let environment = || Launch::new(&with_file).env("CORECAST_SEND_QUEUE", "5MiB");
    assert_eq!(value(&printed(environment()), "send-queue"), "5MiB");
    assert_eq!(value(&printed(environment()), "keepalive"), "11s");

    let all = [&with_file[..], &["--send-queue", "7MiB"]].concat();
    let all = printed(Launch::new(&all).env("CORECAST_SEND_QUEUE", "5MiB"));
    assert_eq!(value(&all, "send-queue"), "7MiB");
}

#[test]
fn a_printed_configuration_can_be_read_again() {
    let ended = Launch::new(&["--print-config", "--echo", "--max-message-size", "5KiB"]).run_to_exit();
    let file = ConfigFile::new("again", &ended.stdout);
    let again = Launch::new(&["--print-config", "--config", file.path()]).run_to_exit();
    assert_eq!(again.code(), Some(0), "{again:?}");
    assert_eq!(again.stdout, ended.stdout);
}

#[test]
fn the_environment_alone_configures_a_server() {
    let server =
        Launch::new(&[]).env("CORECAST_ECHO", "true").env("CORECAST_MAX_MESSAGE_SIZE", "100B").start();
    let mut client = server.connect("/echo");
    client.send_text(&"x".repeat(100));
    client.expect_text(&"x".repeat(100));
    client.send_text(&"x".repeat(101));
    client.expect_failed(1009);
}

#[test]
fn check_config_tells_good_from_bad() {
    let good = ConfigFile::new("good", "echo = true\nkeepalive = \"1m\"\n");
    let checked = Launch::new(&["--check-config", "--config", good.path()]).run_to_exit();
    assert_eq!((checked.code(), &checked.stderr[..]), (Some(0), ""));
    let misspelled = Launch::new(&["--check-config"]).env("CORECAST_LISTN", "127.0.0.1:1");
    let misspelled = misspelled.env("CORECAST_PORT_8080_TCP", "tcp://10.0.0.1:8080").run_to_exit();
    assert_eq!((misspelled.code(), misspelled.stderr.lines().count()), (Some(0), 1), "{misspelled:?}");
    assert!(
        misspelled.stderr.starts_with("warning: the environment variable CORECAST_LISTN"),
        "{misspelled:?}"
    );
    let doubtful = Launch::new(&["--check-config", "--send-queue", "1KiB"]).run_to_exit();
    assert_eq!(doubtful.code(), Some(0));
    assert!(doubtful.stderr.starts_with("warning: --send-queue 1KiB is smaller"), "{doubtful:?}");
    for (name, text, words) in [
        ("unknown", "eccho = true\n", &["eccho"][..]),
        ("value", "keepalive = \"often\"\n", &["keepalive", "often"]),
        ("type", "cores = \"all of them\"\n", &["cores"]),
        ("syntax", "echo = \n", &[]),
    ] {
        let file = ConfigFile::new(name, text);
        for arguments in [&["--check-config", "--config", file.path()][..], &["--config", file.path()]] {
            let ended = Launch::new(arguments).run_to_exit();
            assert_eq!(ended.code(), Some(2), "{name}: {ended:?}");
            for word in words.iter().chain([&file.path()]) {
                assert!(ended.stderr.contains(word), "{name}: does not say {word:?}: {}", ended.stderr);
            }
        }
    }
    let missing = Launch::new(&["--config", "/no/such/file.toml"]).run_to_exit();
    missing.expect_refusal(&[2], &["/no/such/file.toml"]);
}

#[test]
fn a_publish_api_beyond_loopback_needs_a_token() {
    let open = ["--listen", "127.0.0.1:0", "--control", "0.0.0.0:0"];
    Launch::new(&open).own_addresses().run_to_exit().expect_refusal(&[2], &["--publish-token", "--control"]);
    let with_token = [&open[..], &["--publish-token", "secret"]].concat();
    Launch::new(&with_token).own_addresses().start();
}
