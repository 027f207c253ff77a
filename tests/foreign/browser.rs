//! A headless Chromium with one plain page, which runs the scripts that a test gives it.
#![allow(unreachable_pub)] // as in tests/support

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::program;
use super::support::sys::{self, Cage};

/// How long the browser may take to start, or a script to end. Wide, because CI machines stall.
const LIMIT: Duration = Duration::from_secs(60);

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

/// The test's side of the page's requests.
struct Line {
    scripts: Mutex<Receiver<String>>,
    results: Mutex<Sender<Value>>,
}

/// A browser that shows the page. Dropping it ends it.
pub struct Browser {
    child: Child,
    /// Its fresh profile, which holds its log too.
    profile: PathBuf,
    /// The page's origin.
    pub origin: String,
    scripts: Sender<String>,
    results: Receiver<Value>,
}

impl Browser {
    /// Starts one and waits until it has loaded the page; `None` if there is no browser, which is said.
    #[track_caller]
    pub fn start() -> Option<Browser> {
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
        let Some(program) = program::find(&names) else {
            program::skip("there is no Chromium in the PATH (Debian's package chromium)");
            return None;
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let origin = format!("http://{}", listener.local_addr().expect("local_addr"));
        let (scripts, coming_scripts) = mpsc::channel();
        let (coming_results, results) = mpsc::channel();
        let line = Line { scripts: Mutex::new(coming_scripts), results: Mutex::new(coming_results) };
        serve(listener, Arc::new(line));

        let profile = fresh_folder();
        let log = File::create(profile.join("log")).expect("cannot create the browser's log");
        let mut command = Command::new(program);
        command.args(FLAGS).arg(format!("--user-data-dir={}", profile.display()));
        command.arg(format!("{origin}/page.html")).env("HOME", &profile);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = Cage::default().spawn(&mut command).expect("cannot start the browser");
        let browser = Browser { child, profile, origin, scripts, results };
        assert_eq!(browser.result("loading the page"), "loaded");
        Some(browser)
    }

    /// Runs the body of an asynchronous function in the page and returns what it returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.scripts.send(script.to_owned()).expect("the page's server is gone");
        self.result(script)
    }

    #[track_caller]
    fn result(&self, what: &str) -> Value {
        let mut result = match self.results.recv_timeout(LIMIT) {
            Ok(result) => result,
            Err(_) => {
                let log = fs::read_to_string(self.profile.join("log")).unwrap_or_default();
                panic!("no result within {LIMIT:?} of {what}\nthe browser says:\n{log}");
            }
        };
        assert_eq!(result["error"], Value::Null, "failed in the page: {what}");
        result["value"].take()
    }
}

impl Drop for Browser {
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

/// Serves the page and its long polls. One thread per connection: browsers open some that they do not use.
fn serve(listener: TcpListener, line: Arc<Line>) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let line = Arc::clone(&line);
            thread::spawn(move || {
                // The browser may be gone; the test then hears nothing and says so.
                let _ = answer(stream, &line);
            });
        }
    });
}

fn answer(mut stream: TcpStream, line: &Line) -> io::Result<()> {
    let (request, body) = read_request(&mut stream)?;
    let (status, kind, content) = match request.as_str() {
        "GET /page.html" => ("200 OK", "text/html", fs::read_to_string(program::source("page.html"))?),
        "POST /next" => {
            let result = serde_json::from_str(&body)?;
            line.results.lock().expect("no panic with this lock").send(result).map_err(io::Error::other)?;
            // The page has one request at a time, so that nobody else waits for the lock.
            match line.scripts.lock().expect("no panic with this lock").recv() {
                Ok(script) => ("200 OK", "text/plain", script),
                Err(_) => ("410 Gone", "text/plain", String::new()),
            }
        }
        _ => ("404 Not Found", "text/plain", String::new()),
    };
    let length = content.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n{content}").as_bytes())
}

/// Method and path, and the body.
fn read_request(stream: &mut TcpStream) -> io::Result<(String, String)> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = header.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let target = first.rsplit_once(' ').map(|(target, _)| target).unwrap_or_default();
    Ok((target.to_owned(), String::from_utf8_lossy(&body).into_owned()))
}
