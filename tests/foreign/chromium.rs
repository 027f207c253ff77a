//! A headless Chromium as a process: started on a page with a fresh profile, ended with all it started.
#![allow(dead_code, unreachable_pub)] // as in tests/support

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::program;
use super::support::sys::{self, Cage};

/// How long the browser may take to end when it is asked to.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// Without a screen, without calls to anyone but this test, and without the sandbox, which root cannot have.
const FLAGS: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
];

/// A browser. Dropping it ends it.
pub struct Chromium {
    child: Child,
    /// Its fresh profile, which holds its log too.
    profile: PathBuf,
}

impl Chromium {
    /// Starts one with the page; `None` if there is no browser, which is said.
    #[track_caller]
    pub fn start(flags: &[&str], page: &str) -> Option<Chromium> {
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
        let Some(program) = program::find(&names) else {
            program::skip("there is no Chromium in the PATH (Debian's package chromium)");
            return None;
        };
        let profile = fresh_folder();
        let log = File::create(profile.join("log")).expect("cannot create the browser's log");
        let mut command = Command::new(program);
        command.args(FLAGS).args(flags).arg(format!("--user-data-dir={}", profile.display()));
        command.arg(page).env("HOME", &profile);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = Cage::default().spawn(&mut command).expect("cannot start the browser");
        Some(Chromium { child, profile })
    }

    pub fn profile(&self) -> &Path {
        &self.profile
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.profile.join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // A browser that is asked takes its helper processes along.
        let _ = sys::signal(self.child.id(), libc::SIGTERM);
        program::wait_or_kill(&mut self.child, EXIT_LIMIT);
        let _ = fs::remove_dir_all(&self.profile);
    }
}

fn fresh_folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("browser-{}-{number}", std::process::id());
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder); // a process of the same number, long ago
    fs::create_dir_all(&folder).expect("cannot create the browser's profile");
    folder
}
