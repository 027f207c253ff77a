//! Runs foreign programs: found or skipped, killed at a deadline, their printed result read as JSON.
#![allow(dead_code, unreachable_pub)] // as in tests/support

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::server::Server;
use super::support::sys::Cage;

/// How long a client's whole run may take. Wide: an interpreter starts slowly on a machine that tests in parallel.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// Set by `.ci/run`, where everything is installed: a skip is a failure.
const REQUIRE_ALL: &str = "CORECAST_TESTS_REQUIRE_ALL";

/// Where `tests/foreign/install.sh` puts what the clients need.
pub fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("foreign")
}

/// A file that belongs to these tests.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

/// Says that a test did not run. Not by `println!`, which the test runner keeps to itself when a test passes.
pub fn skip(why: &str) {
    assert!(std::env::var_os(REQUIRE_ALL).is_none(), "{REQUIRE_ALL} is set, and {why}");
    let line = format!("SKIPPED: {}: {why}\n", thread::current().name().unwrap_or_default());
    io::stderr().write_all(line.as_bytes()).expect("stderr");
}

/// The first of these programs that the PATH has.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

/// Runs one scenario of a client to its end and returns what it printed. The script is told where the server is.
#[track_caller]
pub fn play(mut command: Command, server: &Server, scenario: &str) -> Value {
    command.arg(scenario).arg(url("ws", server.data)).arg(url("http", server.control()));
    let name = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Cage::default().spawn(&mut command).unwrap_or_else(|error| panic!("{name}: {error}"));
    let stdout = read_all(child.stdout.take().expect("stdout is piped"));
    let stderr = read_all(child.stderr.take().expect("stderr is piped"));
    let exit = wait_or_kill(&mut child, RUN_LIMIT);
    let [stdout, stderr] = [stdout, stderr].map(|text| text.join().expect("a reading thread panicked"));
    let report = || format!("{name}\nstdout:\n{stdout}\nstderr:\n{stderr}");
    match exit {
        None => panic!("not done after {RUN_LIMIT:?}: {}", report()),
        Some(false) => panic!("failed: {}", report()),
        Some(true) => serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {}", report())),
    }
}

/// Waits for the end; true for success, `None` if it had to be killed.
pub fn wait_or_kill(child: &mut Child, limit: Duration) -> Option<bool> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().expect("try_wait") {
            return Some(status.success());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn url(scheme: &str, address: SocketAddr) -> String {
    format!("{scheme}://{address}")
}

fn read_all(mut source: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = source.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
