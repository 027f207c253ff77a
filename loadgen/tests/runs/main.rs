//! Whole runs of the binary against servers with faults to order: what it measures, what it notices, and how it says
//! so.

mod broker;
mod relay;
mod storm;
mod threads;
mod verify;
mod wire;

use std::net::SocketAddr;
use std::process::Command;

use relay::Behaviour;
use serde_json::Value;

/// Exit code, text and JSON document of one run.
struct Run {
    code: i32,
    text: String,
    document: Value,
}

impl Run {
    fn count(&self, name: &str) -> u64 {
        self.document["counts"][name].as_u64().unwrap_or_else(|| panic!("{name}: {}", self.text))
    }

    fn received(&self, name: &str) -> u64 {
        self.document["received"][name].as_u64().unwrap_or_else(|| panic!("{name}: {}", self.text))
    }

    fn error(&self, kind: &str) -> u64 {
        self.document["counts"]["errors"][kind].as_u64().unwrap_or(0)
    }

    fn figure(&self, name: &str) -> f64 {
        self.document["figures"][name].as_f64().unwrap_or_else(|| panic!("{name}: {}", self.text))
    }

    fn handshakes_over_time(&self) -> Vec<u64> {
        let counts = self.document["timeline"]["counts"].as_array();
        counts.unwrap_or_else(|| panic!("{}", self.text)).iter().filter_map(Value::as_u64).collect()
    }

    fn assert_passed(&self) {
        assert_eq!(self.code, 0, "{}", self.text);
        assert!(self.text.ends_with("PASS\n"), "{}", self.text);
    }

    fn assert_failed(&self, reason: &str) {
        assert_eq!(self.code, 1, "{}", self.text);
        let last = self.text.lines().last().unwrap_or_default();
        assert!(last.starts_with("FAIL: ") && last.contains(reason), "{reason}: {}", self.text);
    }
}

fn loadgen(arguments: &str) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(arguments.split_whitespace()).output().unwrap()
}

/// Runs a mode against a relay of its own.
fn run(behaviour: Behaviour, mode: &str, arguments: &str) -> Run {
    // Threads that are pinned to a busy CPU may be silent for longer.
    run_for(if arguments.contains("--cpus") { "10s" } else { "1s" }, behaviour, mode, arguments)
}

/// The same where the run is to end by itself, and not by the silence that follows what is lost: a machine that stands
/// still for a while does not end it either. A run that hangs still fails, later.
fn run_patiently(behaviour: Behaviour, mode: &str, arguments: &str) -> Run {
    run_for("30s", behaviour, mode, arguments)
}

fn run_for(timeout: &str, behaviour: Behaviour, mode: &str, arguments: &str) -> Run {
    run_against(relay::start(behaviour), "topic", &format!("{mode} --timeout {timeout} {arguments}"))
}

/// Runs a mode against a server; the document must fit the schema whatever happened.
fn run_against(address: SocketAddr, path: &str, arguments: &str) -> Run {
    let file =
        std::env::temp_dir().join(format!("loadgen-test-{}-{}.json", std::process::id(), address.port()));
    let output = loadgen(&format!("{arguments} --url ws://{address}/{path} --json {}", file.display()));
    let text = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{error}: {text}{stderr}"));
    std::fs::remove_file(&file).unwrap();
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    let schema: Value = serde_json::from_str(include_str!("../../schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert_eq!(wrong, Vec::<String>::new(), "{document:#}");
    Run { code: output.status.code().unwrap(), text, document }
}

const FANOUT: &str = "--connections 10 --window 4 --rounds 50 --warmup 5";

#[test]
fn closed_loop_counts_every_delivery_and_the_publishers_own() {
    let run = run(Behaviour::Good, "fanout", FANOUT);
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("expected"), run.count("delivered")], [50, 550, 550]);
    assert_eq!(run.document["latency"]["delivery"]["count"], 550);
    assert_eq!(run.document["latency"]["last_subscriber"]["count"], 50);
    assert_eq!(run.document["connected"], 11);
}

#[test]
fn open_loop_keeps_its_schedule_on_several_threads() {
    let run =
        run(Behaviour::Good, "fanout", "--connections 5 --rate 200 --duration 500ms --cpus 0-0 --warmup 3");
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("delivered")], [100, 600]);
    let seconds = run.document["measured_seconds"].as_f64().unwrap();
    assert!((0.45..2.0).contains(&seconds), "{seconds}");
}

#[test]
fn a_schedule_that_the_server_cannot_keep_is_a_failure() {
    let arguments = "--connections 3 --rate 100 --duration 500ms --warmup 1";
    let run = run(Behaviour::Slow(50), "fanout", arguments);
    run.assert_failed("the schedule was not kept: 100 messages/s were asked for and ");
    assert_eq!([run.count("sent"), run.count("delivered"), run.count("lost")], [50, 200, 0]);
    assert!(run.figure("behind_schedule_seconds") > 1.05, "{}", run.text);
    let arguments = "--connections 3 --rate 100 --duration 2s --handshakes 1";
    let run = self::run(Behaviour::Slow(50), "connect", arguments);
    run.assert_failed("the schedule was not kept: 100 handshakes/s were asked for and ");
    assert_eq!(run.count("lost"), 0);
}

#[test]
fn threads_complete_messages_together() {
    let cpus = std::thread::available_parallelism().unwrap().get().min(3);
    let arguments = format!("{FANOUT} --cpus 0-{}", cpus - 1);
    let run = run(Behaviour::Good, "fanout", &arguments);
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("delivered")], [50, 550]);
    assert_eq!(run.document["settings"]["threads"], cpus);
}

#[test]
fn publisher_on_its_own_url_is_counted_apart() {
    let address = relay::start(Behaviour::Good);
    let output = loadgen(&format!(
        "fanout --url ws://{address}/sub --publish-url ws://{address}/pubsub --connections 3 --window 1 --rounds 20"
    ));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("expected 60   delivered 60"), "{text}");
    assert!(text.contains("delivered to the publisher besides: 20"), "{text}");
}

#[test]
fn fragments_pings_and_single_bytes_are_taken() {
    let run =
        run(Behaviour::Dribble, "fanout", "--connections 3 --window 1 --rounds 20 --payload 1KiB --warmup 5");
    run.assert_passed();
    assert_eq!(run.count("delivered"), 80);
    assert_eq!(run.document["pings_answered"], 100);
}

#[test]
fn plain_messages_are_weighed_with_their_frames() {
    let run = run(Behaviour::Good, "fanout", "--connections 3 --window 1 --rounds 20 --warmup 5");
    assert_eq!([run.received("messages"), run.received("compressed_messages")], [80, 0]);
    assert_eq!([run.received("payload_bytes"), run.received("wire_bytes")], [80 * 64, 80 * 66]);
    assert_eq!(run.document["figures"]["wire_bytes_per_delivery"], 66.0);
    assert_eq!(run.document["settings"]["compression"], Value::Null);
    let fragmented =
        self::run(Behaviour::Dribble, "fanout", "--connections 1 --window 1 --rounds 4 --warmup 1");
    assert_eq!([fragmented.received("payload_bytes"), fragmented.received("wire_bytes")], [8 * 64, 8 * 68]);
}

const COMPRESSED: &str = "--connections 10 --window 4 --rounds 50 --warmup 5 --payload 1KiB --compression";

#[test]
fn compressed_messages_are_inflated_checked_and_weighed() {
    let cpus = std::thread::available_parallelism().unwrap().get().min(2);
    let run = run(Behaviour::Deflate, "fanout", &format!("{COMPRESSED} --cpus 0-{}", cpus - 1));
    run.assert_passed();
    assert_eq!([run.count("delivered"), run.received("messages")], [550, 550]);
    assert_eq!([run.received("compressed_messages"), run.received("payload_bytes")], [550, 550 * 1024]);
    let wire = run.received("wire_bytes");
    assert!((550 * 1024 / 4..550 * 1024 / 2).contains(&wire), "{wire}");
    assert!(run.text.contains("messages compressed 550 of 550"), "{}", run.text);
    let offer = run.document["settings"]["compression"].as_str().unwrap();
    assert_eq!(offer, "permessage-deflate; client_no_context_takeover; server_no_context_takeover");
}

#[test]
fn a_server_may_leave_messages_plain_where_compression_was_negotiated() {
    let run = run(
        Behaviour::Deflate,
        "fanout",
        "--connections 2 --window 1 --rounds 10 --payload 100B --compression",
    );
    run.assert_passed();
    assert_eq!([run.received("compressed_messages"), run.received("wire_bytes")], [0, 30 * 102]);
}

#[test]
fn echoes_may_be_compressed() {
    let arguments = "--connections 4 --rounds 25 --payload 2KiB --compression";
    let run = run(Behaviour::DeflateEcho, "echo", arguments);
    run.assert_passed();
    assert_eq!([run.count("delivered"), run.received("compressed_messages")], [100, 100]);
    assert!(run.document["figures"]["wire_bytes_per_round_trip"].as_f64().unwrap() < 1024.0);
}

#[test]
fn compressed_fragments_are_an_error_and_the_others_go_on() {
    let run = run_patiently(Behaviour::DeflateFragments(20), "fanout", COMPRESSED);
    run.assert_failed("1 × compressed_fragment");
    assert_eq!([run.count("lost"), run.count("sent")], [35, 50]);
}

#[test]
fn what_cannot_be_inflated_is_an_error() {
    let run = run_patiently(Behaviour::DeflateLie(20), "fanout", COMPRESSED);
    run.assert_failed("1 × protocol_bad_deflate");
    assert_eq!([run.count("lost"), run.count("corrupted")], [35, 0]);
}

#[test]
fn rsv1_where_no_message_begins_is_an_error() {
    run_patiently(Behaviour::DeflatePing(20), "fanout", COMPRESSED)
        .assert_failed("1 × protocol_reserved_bits");
}

#[test]
fn compression_is_negotiated_as_offered_or_the_handshake_fails() {
    for (behaviour, arguments, kind) in [
        (Behaviour::Good, COMPRESSED, "handshake_invalid_compression_declined"),
        (Behaviour::DeflateMisnegotiated, COMPRESSED, "handshake_invalid_compression_parameters"),
        (Behaviour::Deflate, FANOUT, "handshake_invalid_extension_not_offered"),
    ] {
        let run = run(behaviour, "fanout", arguments);
        run.assert_failed("only 0 of 11 connections were opened");
        assert_eq!(run.error(kind), 11, "{}", run.text);
    }
    let window = format!("{COMPRESSED} --window-bits 10");
    let run = run(Behaviour::Deflate, "fanout", &window);
    assert_eq!(run.error("handshake_invalid_compression_parameters"), 11, "the window was not answered");
}

#[test]
fn a_lost_message_is_noticed_and_ends_the_closed_loop() {
    let run = run(Behaviour::Lose(20), "fanout", FANOUT);
    run.assert_failed("1 messages lost");
    run.assert_failed("nothing arrived for 1 s during the measurement");
    assert_eq!(run.count("lost"), 1);
}

#[test]
fn a_repeated_message_is_noticed() {
    let run = run(Behaviour::Repeat(54), "fanout", FANOUT);
    run.assert_failed("1 messages duplicated");
    assert_eq!([run.count("duplicated"), run.count("lost"), run.count("delivered")], [1, 0, 550]);
}

#[test]
fn reordering_is_noticed_and_is_no_loss() {
    let run = run(Behaviour::Swap(20), "fanout", FANOUT);
    run.assert_failed("1 messages reordered");
    assert_eq!([run.count("reordered"), run.count("lost"), run.count("delivered")], [1, 0, 550]);
}

#[test]
fn damage_is_noticed() {
    for behaviour in [Behaviour::Damage(20), Behaviour::DamageTime(20), Behaviour::AsText(20)] {
        let run = run(behaviour, "fanout", FANOUT);
        run.assert_failed("1 messages corrupted");
        assert_eq!(run.count("lost"), 1, "{behaviour:?}");
    }
}

#[test]
fn an_echo_of_another_kind_is_damaged() {
    let run = run(Behaviour::EchoAsText, "echo", "--connections 2 --rounds 5 --warmup 0");
    run.assert_failed("2 messages corrupted");
    assert_eq!([run.count("delivered"), run.count("lost")], [0, 2]);
}

#[test]
fn messages_of_others_are_noticed() {
    let run = run(Behaviour::Intrude(20), "fanout", FANOUT);
    run.assert_failed("1 messages foreign");
    assert_eq!([run.count("foreign"), run.count("delivered")], [1, 550]);
}

#[test]
fn a_closed_subscriber_is_told_by_its_code_and_the_others_go_on() {
    let run = run_patiently(Behaviour::Close(20), "fanout", FANOUT);
    run.assert_failed("1 × close_1008");
    assert_eq!([run.error("close_1008"), run.count("lost"), run.count("sent")], [1, 35, 50]);
}

#[test]
fn an_end_without_close_frame_is_told() {
    let run = run_patiently(Behaviour::Hang(20), "fanout", FANOUT);
    run.assert_failed("ended_without_close");
    assert_eq!([run.count("lost"), run.count("sent")], [35, 50]);
}

#[test]
fn refused_handshakes_are_told_by_status() {
    let run = run(Behaviour::Refuse, "fanout", FANOUT);
    run.assert_failed("only 0 of 11 connections were opened");
    assert_eq!(run.error("handshake_status_403"), 11);
}

#[test]
fn echo_counts_round_trips() {
    let run = run(Behaviour::Echo, "echo", "--connections 4 --rounds 25");
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("delivered")], [100, 100]);
    assert_eq!(run.document["latency"]["round_trip"]["count"], 100);
}

#[test]
fn echo_stops_with_its_duration() {
    let run = run(Behaviour::Echo, "echo", "--connections 2 --duration 300ms");
    run.assert_passed();
    assert!(run.count("delivered") > 10);
}

#[test]
fn echo_of_a_relay_is_foreign() {
    let run = run(Behaviour::Good, "echo", "--connections 2 --rounds 5");
    assert_eq!(run.code, 1, "{}", run.text);
    assert!(run.count("corrupted") > 0, "{}", run.text);
}

#[test]
fn connect_opens_each_connection_once() {
    let run = run(Behaviour::Good, "connect", "--connections 30");
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("delivered"), run.count("lost")], [30, 30, 0]);
    assert_eq!(run.handshakes_over_time().iter().sum::<u64>(), 30);
}

#[test]
fn connect_closes_and_opens_at_a_rate() {
    let run = run(Behaviour::Good, "connect", "--connections 5 --rate 100 --duration 500ms");
    run.assert_passed();
    assert_eq!(run.count("delivered"), 50);
    let counts = run.handshakes_over_time();
    assert_eq!(counts.iter().sum::<u64>(), 50);
    // The last one was due after 490 ms.
    let interval = run.document["timeline"]["interval_seconds"].as_f64().unwrap();
    assert!(counts.len() as f64 * interval >= 0.49, "{counts:?}");
}

#[test]
fn connect_ends_connections_by_reset() {
    let pid = std::process::id();
    let arguments = format!("--connections 5 --rate 100 --duration 300ms --reset --pid {pid}");
    let run = run(Behaviour::Good, "connect", &arguments);
    run.assert_passed();
    assert_eq!([run.count("sent"), run.count("delivered")], [30, 30]);
    assert_eq!(run.document["settings"]["reset"], true);
    let (each, in_a_second) =
        (run.figure("server_cpu_us_per_handshake"), run.figure("handshakes_per_server_cpu_second"));
    assert!((each * in_a_second - 1e6).abs() < 1.0, "{}", run.text);
}

/// Whether a process or thread of the kernel with this name is to be seen.
fn visible(name: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let names = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.into_iter().any(|comm| comm.trim_end() == name)
}

#[test]
fn a_rival_is_told_apart_from_others() {
    let mut rival = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let arguments = format!(
        "--connections 5 --rate 100 --duration 1s --reset --pid {} --rival {}",
        std::process::id(),
        rival.id()
    );
    let run = run(Behaviour::Good, "connect", &arguments);
    rival.kill().unwrap();
    rival.wait().unwrap();
    run.assert_passed();
    // On a busy machine it gets little, but never nothing.
    assert!(run.figure("rival_cpu_percent") > 0.1, "{}", run.text);
    // Ticks of the machine less nanoseconds of its parts: below zero by no more than the ticks are off.
    assert!(run.figure("other_cpu_percent") > -100.0, "{}", run.text);
    // Where the kernel's threads are not to be seen the figure is left out.
    if let Some(percent) = run.document["figures"].get("ksoftirqd_cpu_percent") {
        assert!(percent.as_f64().unwrap() >= 0.0, "{}", run.text);
        assert!(run.text.contains("  ksoftirqd cpu percent "), "{}", run.text);
    } else {
        assert!(!visible("ksoftirqd/0"), "{}", run.text);
    }
}

#[test]
fn connect_tells_refusals() {
    let run = run(Behaviour::Refuse, "connect", "--connections 5");
    run.assert_failed("5 handshakes failed; 5 × handshake_status_403");
}

#[test]
fn connect_does_not_run_against_a_closed_door() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = run_against(address, "", "connect --connections 20 --duration 1s");
    run.assert_failed("handshakes failed");
    assert_eq!(run.count("lost"), run.count("sent"), "{}", run.text);
    // One in 100 ms, and another one where the clock says so.
    assert!((2..=20).contains(&run.count("sent")), "{}", run.text);
    assert!(!run.text.contains("messages lost"), "{}", run.text);
}

#[test]
fn idle_measures_the_process() {
    let pid = std::process::id();
    let arguments = format!("--connections 20 --settle 100ms --duration 300ms --pid {pid}");
    let run = run(Behaviour::Good, "idle", &arguments);
    run.assert_passed();
    assert!(run.document["server"]["rss_bytes"]["before_measure"].as_u64().unwrap() > 0);
    assert!(run.document["figures"]["server_cpu_percent"].is_number(), "{:#}", run.document);
    let kernel = &run.document["kernel_memory"];
    match kernel["unavailable"].as_str() {
        Some(reason) => {
            assert!(run.text.contains(&format!("kernel memory left out: {reason}")), "{}", run.text)
        }
        None => {
            assert_eq!(kernel["connections"], 20, "{kernel:#}");
            assert!(run.text.contains("  kernel objects by cache: "), "{}", run.text);
            // Other tests open and close connections at the same time.
            let figure = run.document["figures"].get("server_kernel_bytes_per_connection");
            assert_eq!(figure.is_some(), kernel["sockets_as_expected"].as_bool().unwrap(), "{}", run.text);
        }
    }
}

#[test]
fn idle_counts_the_pings_of_its_measurement_only() {
    let run = run(Behaviour::PingAtOnce, "idle", "--connections 20 --settle 1s --duration 300ms");
    run.assert_passed();
    assert_eq!(run.document["pings_answered"], 20);
    assert_eq!(run.figure("pings_per_second"), 0.0, "all came before");
}

#[test]
fn kernel_memory_is_of_idle_alone() {
    let run = run(Behaviour::Echo, "echo", "--connections 4 --rounds 5");
    assert!(run.document.get("kernel_memory").is_none() && !run.text.contains("kernel"), "{}", run.text);
}

#[test]
fn nobody_listening_is_an_error_not_a_hang() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = loadgen(&format!("fanout --url ws://{address}/ {FANOUT}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error connect_refused: 11"), "{text}");
}

#[test]
fn bad_arguments_end_with_2_and_say_why() {
    for (arguments, reason) in [
        ("fanout --url ws://127.0.0.1:9/ --window 1 --payload 10B", "--payload 10B: expected 24B to 16MiB"),
        ("echo --url ws://127.0.0.1:9/ --connections 1000000000", "descriptors"),
        ("echo --url ws://127.0.0.1:9/ --pid 4194305", "--pid 4194305: no such process"),
        ("echo --url ws://127.0.0.1:9/ --pid 1 --rival 4194305", "--rival 4194305: no such process"),
        ("echo --url ws://127.0.0.1:9/ --rival 1", "--pid <PID>"),
        ("echo --url ws://127.0.0.1:9/ --connections 1 --cpus 0-1", "--cpus: 2 threads for 1 connections"),
        ("echo --url ws://127.0.0.1:9/ --cpus 4000", "--cpus 4000: this CPU is not there"),
        ("echo --url ws://127.0.0.1:9/ --cpus 0,0", "CPU 0 is named twice"),
        ("echo --url ws://127.0.0.1:9/ --duration 0s", "'0s' for '--duration <DUR>': expected more than 0"),
        ("fanout --url ws://127.0.0.1:9/ --rate 0", "--rate 0"),
        ("fanout --url ws://127.0.0.1:9/ --rate -1", "--rate -1: expected"),
        ("verify --url ws://127.0.0.1:9/pubsub/a --churn -1", "--churn -1: expected 0 to 100"),
        ("fanout --url wss://127.0.0.1:9/ --rate 1", "TLS is not supported"),
        ("report /dev/null", "/dev/null"),
        ("verify --url ws://127.0.0.1:9/sub/a", "expected ws://HOST:PORT/pubsub/NAME"),
        ("verify --url ws://127.0.0.1:9/pubsub/a?b", "expected ws://HOST:PORT/pubsub/NAME"),
        ("verify --url ws://127.0.0.1:9/pubsub/a --payload 35B", "--payload 35B: verify needs at least 36B"),
        (
            "verify --url ws://127.0.0.1:9/pubsub/a --connections 5 --topics 6",
            "--topics 6: expected 1 to 1000",
        ),
        ("verify --url ws://127.0.0.1:9/pubsub/a --churn 101", "--churn 101: expected 0 to 100"),
        (
            "verify --url ws://127.0.0.1:9/pubsub/a --churn 1 --plain",
            "--churn 1: with --plain nobody can resume",
        ),
        (
            "verify --url ws://127.0.0.1:9/pubsub/a --churn --plain",
            "--churn 10: with --plain nobody can resume",
        ),
        ("verify --url ws://127.0.0.1:9/pubsub/a --rate 0", "--rate 0"),
        (
            "echo --url ws://127.0.0.1:9/ --json /nowhere/result.json",
            "--json /nowhere/result.json: No such file",
        ),
        ("echo --url ws://127.0.0.1:9/ --json /", "--json /: Is a directory"),
    ] {
        let output = loadgen(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {text}");
        assert!(text.contains(reason), "{arguments}: {text}");
    }
}

#[test]
fn what_is_there_survives_a_run_that_does_not_begin() {
    let directory = std::env::temp_dir().join(format!("loadgen-test-{}-json", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let [old, new] = ["old.json", "new.json"].map(|name| directory.join(name));
    std::fs::write(&old, "old").unwrap();
    for file in [&old, &new] {
        let arguments = format!("--json {} --connections 1 --cpus 0-1", file.display());
        assert_eq!(loadgen(&format!("echo --url ws://127.0.0.1:9/ {arguments}")).status.code(), Some(2));
    }
    assert_eq!((std::fs::read_to_string(&old).unwrap().as_str(), new.exists()), ("old", false));
    std::fs::remove_dir_all(&directory).unwrap();
}

/// What git says of the directory that loadgen is built in.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn the_commit_is_that_of_the_build_wherever_it_runs() {
    let built_from =
        git(&["ls-files", "--error-unmatch", "build.rs"]).and_then(|_| git(&["rev-parse", "HEAD"]));
    let file = std::env::temp_dir().join(format!("loadgen-test-{}-commit.json", std::process::id()));
    let address = relay::start(Behaviour::Good);
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .current_dir("/")
        .args(["connect", "--connections", "1", "--url", &format!("ws://{address}/a"), "--json"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(document["commit"].as_str().map(|commit| commit.trim_end_matches('+')), built_from.as_deref());
}
