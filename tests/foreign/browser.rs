//! A headless Chromium with one plain page, which runs the scripts that a test gives it.
#![allow(unreachable_pub)] // as in tests/support

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::chromium::Chromium;
use super::program;

/// How long the browser may take to start, or a script to end. Wide, because CI machines stall.
const LIMIT: Duration = Duration::from_secs(60);

/// The test's side of the page's requests.
struct Line {
    scripts: Mutex<Receiver<String>>,
    results: Mutex<Sender<Value>>,
}

/// A browser that shows the page. Dropping it ends it.
pub struct Browser {
    chromium: Chromium,
    /// The page's origin.
    pub origin: String,
    scripts: Sender<String>,
    results: Receiver<Value>,
}

impl Browser {
    /// Starts one and waits until it has loaded the page; `None` if there is no browser, which is said.
    #[track_caller]
    pub fn start() -> Option<Browser> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let origin = format!("http://{}", listener.local_addr().expect("local_addr"));
        let (scripts, coming_scripts) = mpsc::channel();
        let (coming_results, results) = mpsc::channel();
        let line = Line { scripts: Mutex::new(coming_scripts), results: Mutex::new(coming_results) };
        serve(listener, Arc::new(line));

        let chromium = Chromium::start(&[], &format!("{origin}/page.html"))?;
        let browser = Browser { chromium, origin, scripts, results };
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
                let log = self.chromium.log();
                panic!("no result within {LIMIT:?} of {what}\nthe browser says:\n{log}");
            }
        };
        assert_eq!(result["error"], Value::Null, "failed in the page: {what}");
        result["value"].take()
    }
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
