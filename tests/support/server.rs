//! Runs the server binary as a user would: flags in, URLs on stdout, signals, an exit code.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::http::{self, Http, Response};
use super::metrics::Metrics;
use super::sys::{self, Cage, Frozen};
use super::{PATIENCE, wait_for};

/// Options of a server that is about to start.
#[derive(Default)]
pub struct Launch {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    cage: Cage,
    addresses_given: bool,
}

impl Launch {
    pub fn new(arguments: &[&str]) -> Self {
        Launch { arguments: arguments.iter().map(|&text| text.to_owned()).collect(), ..Launch::default() }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn cage(mut self, cage: Cage) -> Self {
        self.cage = cage;
        self
    }

    /// Hands sockets over as a service manager does, with these names.
    pub fn hand_over(mut self, sockets: &[&impl AsRawFd], names: &str) -> Self {
        self.cage.descriptors_from_3 = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
        self.env("LISTEN_FDS", &sockets.len().to_string()).env("LISTEN_FDNAMES", names)
    }

    /// The test names the addresses itself; without this, both ports are ephemeral ones on 127.0.0.1.
    pub fn own_addresses(mut self) -> Self {
        self.addresses_given = true;
        self
    }

    fn spawn(self) -> Process {
        let mut command = match self.cage.descriptors_from_3.as_slice() {
            [] => Command::new(env!("CARGO_BIN_EXE_corecast")),
            // The process must be named to itself, and its number is known only once it runs.
            _ => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_corecast")]);
                shell
            }
        };
        if !self.addresses_given {
            command.args(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]);
        }
        command.args(&self.arguments);
        // For a run of all tests another way, e.g. CORECAST_TEST_FLAGS="--wait executor".
        if let Ok(flags) = std::env::var("CORECAST_TEST_FLAGS") {
            command.args(flags.split_whitespace());
        }
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CORECAST_")) {
            command.env_remove(name);
        }
        command.envs(self.environment);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.cage.spawn(&mut command).expect("cannot start the server binary");
        let stdout = collect(child.stdout.take().expect("stdout is piped"));
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        Process { child, stdout, stderr, command: format!("corecast {}", self.arguments.join(" ")) }
    }

    /// Starts it and waits for the printed URLs.
    pub fn start(self) -> Server {
        let mut process = self.spawn();
        let start = Instant::now();
        loop {
            // The order matters: an exit seen now leaves no output unread below.
            let exited = process.child.try_wait().expect("try_wait");
            let printed = process.stdout.text();
            let control_expected = !process.command.contains("--control off");
            let control = url(&printed, "http://");
            if let Some(data) = url(&printed, "ws://").filter(|_| control.is_some() || !control_expected) {
                return Server { process, data, control };
            }
            if exited.is_some() || start.elapsed() > PATIENCE {
                thread::sleep(Duration::from_millis(50)); // the collecting threads finish
                panic!(
                    "{} printed no URLs; exit {exited:?}\nstdout:\n{printed}\nstderr:\n{}",
                    process.command,
                    process.stderr.text()
                );
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Starts what must end by itself, and waits for that.
    pub fn run_to_exit(self) -> Finished {
        self.spawn().wait_exit(PATIENCE)
    }
}

/// How a server process ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Panics unless it refused as a user would wish: this exit code, one readable line on stderr that says
    /// all of `words`, and no panic.
    #[track_caller]
    pub fn expect_refusal(&self, codes: &[i32], words: &[&str]) {
        let code = self.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"));
        assert!(codes.contains(&code), "exit code {code}, expected one of {codes:?}: {self:?}");
        for word in words {
            assert!(
                self.stderr.to_lowercase().contains(&word.to_lowercase()),
                "stderr does not say {word:?}: {self:?}"
            );
        }
        let lines = self.stderr.lines().filter(|line| !line.trim().is_empty()).count();
        assert_eq!(lines, 1, "not one readable line: {self:?}");
    }
}

/// Output of the server, collected by a thread of its own so that a full pipe never blocks the server.
#[derive(Clone, Default)]
struct Output {
    text: Arc<Mutex<String>>,
    ended: Arc<AtomicBool>,
}

impl Output {
    fn text(&self) -> String {
        self.text.lock().expect("a collecting thread panicked").clone()
    }

    /// All of it, from a process that has ended.
    fn whole(&self) -> String {
        wait_for("the end of the server's output", || self.ended.load(Ordering::Acquire).then(|| self.text()))
    }
}

fn collect(source: impl Read + Send + 'static) -> Output {
    let output = Output::default();
    let sink = output.clone();
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let mut text = sink.text.lock().expect("nothing panics with this lock");
            text.push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
        sink.ended.store(true, Ordering::Release);
    });
    output
}

/// The first address printed with that scheme.
fn url(printed: &str, scheme: &str) -> Option<SocketAddr> {
    // Only whole lines: a URL may have been printed halfway.
    let whole = &printed[..=printed.rfind('\n')?];
    let address = &whole[whole.find(scheme)? + scheme.len()..];
    let end = address.find(|letter: char| !(letter.is_ascii_hexdigit() || "[]:.".contains(letter)))?;
    address[..end].trim_end_matches('.').parse().ok()
}

struct Process {
    child: Child,
    stdout: Output,
    stderr: Output,
    command: String,
}

impl Process {
    fn wait_exit(mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("try_wait") {
                break status;
            }
            if start.elapsed() > limit {
                let state =
                    fs::read_to_string(format!("/proc/{}/wchan", self.child.id())).unwrap_or_default();
                panic!(
                    "{} still runs after {limit:?} ({state})\nstderr:\n{}",
                    self.command,
                    self.stderr.text()
                );
            }
            thread::sleep(Duration::from_millis(2));
        };
        Finished { status, stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = self.stderr.text();
        if thread::panicking() {
            eprintln!("--- {} ---\n{}\n{stderr}", self.command, self.stdout.text());
        } else {
            assert!(!stderr.contains("panicked at"), "{} panicked:\n{stderr}", self.command);
        }
    }
}

/// A running server. Dropping it kills it, and fails the test if the server ever panicked.
pub struct Server {
    process: Process,
    /// Where WebSocket clients connect.
    pub data: SocketAddr,
    control: Option<SocketAddr>,
}

impl Server {
    /// Starts one with these flags on ephemeral ports. Nobody is asked whether he lives, unless the flags say so: a
    /// client that a test leaves unread for a while is not to be dropped on a slow machine.
    pub fn start(arguments: &[&str]) -> Server {
        let seldom: &[&str] = if arguments.contains(&"--keepalive") { &[] } else { &["--keepalive", "1h"] };
        Launch::new(&[arguments, seldom].concat()).start()
    }

    /// Starts one with that many shards, even on a machine with fewer CPUs.
    pub fn start_shards(shards: usize, arguments: &[&str]) -> Server {
        let cores = shards.to_string();
        let mut all = vec!["--cores", &cores];
        if shards > sys::allowed_cpus().len() {
            all.push("--oversubscribe");
        }
        all.extend(arguments);
        Server::start(&all)
    }

    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub fn control(&self) -> SocketAddr {
        self.control.expect("this server has no control port")
    }

    pub fn stdout(&self) -> String {
        self.process.stdout.text()
    }

    pub fn stderr(&self) -> String {
        self.process.stderr.text()
    }

    pub fn signal(&self, signal: i32) {
        sys::signal(self.pid(), signal).expect("cannot signal the server");
    }

    /// Waits for the end of a server that was told to stop.
    pub fn wait_exit(self, limit: Duration) -> Finished {
        self.process.wait_exit(limit)
    }

    /// A WebSocket client connected to that path.
    #[track_caller]
    pub fn connect(&self, path: &str) -> Client {
        Client::connect(self.data, path)
    }

    /// A keep-alive connection to the control port.
    pub fn http(&self) -> Http {
        Http::connect(self.control()).expect("cannot connect to the control port")
    }

    /// One request to the control port.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        http::once(self.control(), "GET", target, &[], b"")
            .unwrap_or_else(|error| panic!("GET {target} on the control port: {error}"))
    }

    /// Publishes a text; panics unless the server accepted it.
    #[track_caller]
    pub fn publish(&self, topic: &str, text: &str) -> Response {
        let response = http::once(self.control(), "POST", &format!("/pub/{topic}"), &[], text.as_bytes())
            .unwrap_or_else(|error| panic!("publishing to {topic}: {error}"));
        assert!(matches!(response.status, 201 | 202), "publish refused: {response:?} {}", response.text());
        response
    }

    /// One scrape of `/metrics`.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").expect(200).text()).expect("bad metrics text")
    }

    /// Waits until the metric, summed over all samples with these labels, is as the test wants it.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) -> f64 {
        let mut seen = f64::NAN;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            seen = self.metrics().sum(name, labels);
            if wanted(seen) {
                return seen;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{name}{labels:?} stays at {seen}");
    }

    /// Waits until the metric has that value: a shard may count a little after the client has seen what is counted.
    #[track_caller]
    pub fn expect_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.wait_metric(name, labels, |seen| seen == value);
    }

    /// Waits until a route of the control port answers with that status: `/live` says for a moment after a
    /// standstill of the whole machine that the shards stand still.
    #[track_caller]
    pub fn wait_status(&self, target: &str, status: u16) -> Response {
        let start = Instant::now();
        loop {
            let response = self.get(target);
            if response.status == status {
                return response;
            }
            assert!(start.elapsed() < PATIENCE, "{target} does not turn {status}: {response:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until that many connections are open.
    #[track_caller]
    pub fn wait_connections(&self, count: usize) {
        self.wait_metric("corecast_connections", &[], |open| open == count as f64);
    }

    /// Open descriptors of the server process.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the server is gone").count()
    }

    /// The shards' threads that may run on one CPU only, by CPU. By name, too: on a machine with one CPU, all threads
    /// may run on one only. A shard's helper for blocking work has its name, and is the younger one.
    pub fn pinned_threads(&self) -> Vec<(usize, u32)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the server is gone");
        let pinned = tasks.filter_map(|task| {
            let path = task.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let status = fs::read_to_string(path.join("status")).ok()?;
            let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            let thread: u32 = path.file_name()?.to_str()?.parse().ok()?;
            name.starts_with("shard-").then_some((name, thread, cpus.trim().parse().ok()?))
        });
        let mut pinned: Vec<(String, u32, usize)> = pinned.collect();
        pinned.sort_unstable();
        pinned.dedup_by(|next, first| next.0 == first.0);
        let mut pinned: Vec<(usize, u32)> =
            pinned.into_iter().map(|(_, thread, cpu)| (cpu, thread)).collect();
        pinned.sort_unstable();
        pinned
    }

    /// Stops one shard of a server with two or more. `None`, said aloud, where a test may not trace.
    pub fn freeze_a_shard(&self) -> Option<Frozen> {
        let pinned = self.pinned_threads();
        assert!(pinned.len() >= 2, "expected two pinned threads, found {pinned:?}");
        let (_, thread) = pinned[pinned.len() - 1];
        match Frozen::stop(thread) {
            Ok(frozen) => Some(frozen),
            Err(error) => {
                assert!(
                    std::env::var_os("CORECAST_TESTS_REQUIRE_ALL").is_none(),
                    "cannot trace here: {error}"
                );
                println!("skipped: cannot stop a single thread here ({error})");
                None
            }
        }
    }

    /// A topic whose owner runs while another shard is frozen: one whose publish is answered. What was tried may be
    /// published all the same, once the other shard runs again.
    #[track_caller]
    pub fn answered_topic<'a>(&self, topics: &'a [impl AsRef<str>], text: &[u8]) -> &'a str {
        // One after another, each time with more patience: an owner that runs may be slow.
        for seconds in [1, 4, 10] {
            for topic in topics.iter().map(AsRef::as_ref) {
                let mut http = self.http();
                http.limit = Duration::from_secs(seconds);
                let answer = http.post(&format!("/pub/{topic}"), text);
                if answer.is_ok_and(|answer| answer.status == 201) {
                    return topic;
                }
            }
        }
        panic!("no topic is owned by the shard that runs");
    }

    /// CPU time the server has used, user and system.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server is gone");
        // Fields are counted after the name, which may hold spaces; the kernel's tick for this file is 10 ms.
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..].split(' ').collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// Resident memory of the server process in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server is gone");
        let kibibytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        kibibytes.map(|kibibytes: u64| kibibytes * 1024).expect("no VmRSS in /proc/PID/status")
    }

    /// What the server holds now; taken before a disturbance.
    pub fn holdings(&self) -> Holdings {
        self.metrics(); // the control thread opens what it keeps open
        Holdings {
            descriptors: self.descriptors(),
            connections: self.metrics().sum("corecast_connections", &[]),
            subscriptions: self.metrics().sum("corecast_subscriptions", &[]),
            queued_bytes: self.metrics().sum("corecast_send_queue_bytes", &[]),
        }
    }

    /// Waits until the server holds what it held: no descriptor, slot or subscription leaked.
    #[track_caller]
    pub fn expect_holdings(&self, before: &Holdings) {
        for (name, held) in [
            ("corecast_connections", before.connections),
            ("corecast_subscriptions", before.subscriptions),
            ("corecast_send_queue_bytes", before.queued_bytes),
        ] {
            self.wait_metric(name, &[], |now| now == held);
        }
        wait_for(&format!("{} descriptors, now {}", before.descriptors, self.descriptors()), || {
            (self.descriptors() <= before.descriptors).then_some(())
        });
    }
}

/// What a server holds for its clients at one moment.
#[derive(Debug, PartialEq)]
pub struct Holdings {
    descriptors: usize,
    connections: f64,
    subscriptions: f64,
    queued_bytes: f64,
}
