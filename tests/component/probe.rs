//! A component that does what its clients tell it to, and writes down what happened to it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::frame::Frame;
use corecast::{
    App, CloseCode, CloseReason, Component, Connection, Core, Fault, Message, Outcome, PeerAddress,
    PreparedMessage, Rejection, Request, RunningServer, SiblingMessage, StatusCode, SubProtocol,
};

/// What every instance on every core writes to.
#[derive(Clone)]
pub struct Log(Sender<String>);

/// What the test reads from.
pub struct Events(Receiver<String>);

pub fn log() -> (Log, Events) {
    let (sender, receiver) = channel();
    (Log(sender), Events(receiver))
}

impl Log {
    pub fn write(&self, line: impl Into<String>) {
        // The test may be over.
        let _ = self.0.send(line.into());
    }
}

impl Events {
    /// The next line.
    #[track_caller]
    pub fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("nothing more happened")
    }

    /// The next line must be this one.
    #[track_caller]
    pub fn expect(&self, line: &str) {
        assert_eq!(self.next(), line);
    }

    /// Everything that has happened by now.
    pub fn rest(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }
}

/// A running server that is shut down at the end of the test.
pub struct Running {
    pub server: Option<RunningServer>,
    pub address: SocketAddr,
}

impl Running {
    #[track_caller]
    pub fn start(app: App) -> Self {
        let app = app.configure(|config| {
            config.oversubscribe = true;
            config.drain_window_millis = 0;
            // A client that a test leaves unread for a while is not to be dropped on a slow machine.
            config.keepalive_millis = 3_600_000;
        });
        let server = app.start().expect("the server does not start");
        let address = server.websocket_addresses()[0];
        Self { server: Some(server), address }
    }

    /// Ends the server, without waiting for clients that do not answer, and waits for its end.
    #[track_caller]
    pub fn end(mut self) {
        let server = self.server.take().expect("it runs");
        server.handle().stop_now();
        server.wait().expect("the server did not end well");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.handle().stop_now();
            let _ = server.wait();
        }
    }
}

/// Sends a command to the probe.
#[track_caller]
pub fn tell(client: &mut Client, command: &str) {
    client.send(&Frame::text(command));
}

/// An app on a free port, on two cores, even on a machine with one CPU.
pub fn app() -> App {
    App::new("*", 0).cores(2).configure(|config| config.oversubscribe = true)
}

pub struct Probe {
    log: Log,
    keeps_requests: bool,
    known: HashSet<Connection>,
    data: Rc<RefCell<Vec<String>>>,
}

impl Probe {
    pub fn new(log: Log) -> Self {
        Self { log, keeps_requests: false, known: HashSet::new(), data: Rc::default() }
    }

    pub fn keeping_requests(self) -> Self {
        Self { keeps_requests: true, ..self }
    }

    fn request_line(connection: &Connection) -> String {
        let Some(request) = connection.http_request() else { return "no request".to_owned() };
        let header = request.headers().get("x-test").and_then(|value| value.to_str().ok()).unwrap_or("-");
        let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
        assert_eq!(peer, connection.remote_addr());
        let sub_protocol = request.extensions().get::<SubProtocol>().map_or("-", |chosen| &chosen.0);
        format!("{} {header} {sub_protocol} {}", request.uri(), peer.is_some_and(|peer| peer.port() > 0))
    }
}

impl Component for Probe {
    fn sub_protocols(&mut self) -> Vec<String> {
        vec!["good".to_owned(), "better".to_owned()]
    }

    fn keeps_requests(&mut self) -> bool {
        self.keeps_requests
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        match request.uri().query() {
            Some("pay") => Err(Rejection::with_status(StatusCode::PAYMENT_REQUIRED, "pay first")),
            Some("panic") => panic!("in on_request"),
            _ => Ok(()),
        }
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        self.known.insert(connection.clone());
        self.log.write(format!("open {}", Self::request_line(connection)));
        match connection
            .http_request()
            .and_then(|request| request.uri().query().map(str::to_owned))
            .as_deref()
        {
            Some("open-panic") => panic!("in on_open"),
            Some("open-error") => Err("in on_open")?,
            Some(topic) if topic.starts_with("topic=") => connection.subscribe(&topic["topic=".len()..])?,
            _ => {}
        }
        Ok(())
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let Message::Text(text) = message else {
            connection.send(message);
            return Ok(());
        };
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        match command {
            "echo" => connection.send(rest),
            "request" => connection.send(&Self::request_line(connection)),
            "panic" => panic!("{rest}"),
            "error" => Err(rest)?,
            "close" => {
                connection.close_with_reason(CloseCode::from(4001), rest);
                connection.send("after the close");
                connection.close(CloseCode::Normal);
                self.log.write(format!("closing {}", connection.is_closing()));
            }
            "close-normal" => connection.close(CloseCode::Normal),
            "subscribe" => connection.subscribe(rest)?,
            "unsubscribe" => connection.unsubscribe(rest)?,
            "publish" => connection.publish(rest, "for all")?,
            "others" => connection.publish_to_others(rest, "for others")?,
            "shout" => {
                let shout = PreparedMessage::new(rest);
                self.known.iter().for_each(|connection| connection.send_prepared(&shout));
            }
            "all" => self.known.iter().for_each(|connection| connection.send(rest)),
            "data" => {
                let earlier = connection.data::<String>().map_or("none".to_owned(), |data| data.to_string());
                connection.set_data(Rc::new(rest.to_owned()));
                assert!(connection.data::<u32>().is_none(), "another type");
                connection.send(&earlier);
            }
            "spawn" => spawn(connection.clone(), 20, rest.to_owned(), self.data.clone()),
            "spawn-beyond" => spawn_beyond(connection.clone(), rest.to_owned(), self.log.clone()),
            "blocking" => {
                let connection = connection.clone();
                connection.clone().spawn(async move {
                    let name =
                        connection.core().run_blocking(|| std::thread::current().name().map(str::to_owned));
                    let name = name.await.unwrap_or_default();
                    connection.send(if name.starts_with("shard-") {
                        "on the core"
                    } else {
                        "beside the core"
                    });
                    Ok(())
                });
            }
            "blocking-panic" => {
                let core = connection.core();
                connection.spawn(async move {
                    core.run_blocking(|| panic!("on a blocking thread")).await;
                    Ok(())
                });
            }
            "siblings" => connection.core().send_to_siblings(&rest.to_owned())?,
            "core" => {
                connection.send(&format!("{} of {}", connection.core().shard(), connection.core().shards()))
            }
            _ => Err(format!("unknown command {text}"))?,
        }
        Ok(())
    }

    fn on_sibling(&mut self, core: &Core, message: SiblingMessage) -> Outcome {
        let from = message.from();
        let text: String = message.downcast()?;
        self.log.write(format!("sibling {from} to {}: {text}", core.shard()));
        self.known.iter().for_each(|connection| connection.send(&text));
        Ok(())
    }

    fn on_drain(&mut self, connection: &Connection) -> Outcome {
        self.log.write(format!("drain {}", connection.send_queue_bytes()));
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        assert!(self.known.remove(connection), "on_close without on_open, or twice");
        assert!(connection.is_closing());
        self.log.write(format!("close {} {:?} {:?}", reason.code, reason.text, reason.cause));
        if reason.text == "panic in on_close" {
            panic!("in on_close");
        }
    }

    fn on_error(&mut self, _connection: &Connection, fault: &Fault) {
        self.log.write(match fault {
            Fault::Panic(text) => format!("panic {text}"),
            fault => format!("error {fault}"),
        });
    }
}

fn spawn(connection: Connection, millis: u64, what: String, data: Rc<RefCell<Vec<String>>>) {
    connection.clone().spawn(async move {
        connection.core().sleep(Duration::from_millis(millis)).await;
        match what.as_str() {
            "panic" => panic!("in a task"),
            "error" => Err("in a task")?,
            "close" => connection.close(CloseCode::Away),
            "forever" => connection.core().sleep(Duration::from_secs(3600)).await,
            _ => {}
        }
        data.borrow_mut().push(what);
        connection.send(&format!("later, after {} others", data.borrow().len() - 1));
        Ok(())
    });
}

/// Does it when the connection has gone, and says so before.
fn spawn_beyond(connection: Connection, what: String, log: Log) {
    connection.clone().spawn(async move {
        while !connection.is_closing() {
            connection.core().sleep(Duration::from_millis(5)).await;
        }
        log.write(format!("beyond its end: {what}"));
        match what.as_str() {
            "panic" => panic!("in a task"),
            "error" => Err("in a task")?,
            "close" => connection.close(CloseCode::Away),
            _ => connection.send(&what),
        }
        Ok(())
    });
}
