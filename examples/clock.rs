//! A clock: a thread of the program's own publishes the time each second, as one that listens to a database or a message
//! queue would publish what it hears. `cargo run --release --example clock`, then
//! `new WebSocket("ws://127.0.0.1:8080/clock")`.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use corecast::{App, Component, Connection, Outcome, PublishError, Publisher, StartError};

const SECOND: Duration = Duration::from_secs(1);

struct Clock;

impl Component for Clock {
    fn takes_messages(&mut self) -> bool {
        false
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        connection.subscribe("clock")?;
        Ok(())
    }
}

/// Publishes until the server ends.
fn tick(publisher: &Publisher) {
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        thread::sleep(SECOND - Duration::from_nanos(now.subsec_nanos().into()));
        let seconds = now.as_secs() + 1;
        let text = format!("{:02}:{:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        match publisher.publish("clock", &text, SECOND) {
            Ok(receipt) => println!("{text} for {} subscribers", receipt.subscribers),
            Err(PublishError::Ended) => return,
            // The next tick says more than this one would if it was tried again.
            Err(error) => eprintln!("{text} was not published: {error}"),
        }
    }
}

fn main() -> Result<(), StartError> {
    let app = App::new("*", 8080).route("/clock", || Clock).allowed_origins(["*"]);
    let server = app.start_for_process()?;
    println!("ws://{}/clock", server.websocket_addresses()[0]);
    let publisher = server.publisher();
    thread::spawn(move || tick(&publisher));
    server.wait().map(drop)
}
