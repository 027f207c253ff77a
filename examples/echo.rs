//! Sends every message back. `cargo run --release --example echo`, then in a browser's console:
//! `ws = new WebSocket("ws://127.0.0.1:9000"); ws.onmessage = e => console.log(e.data)`, `ws.send("hello")`.

use corecast::{Component, Connection, Message, Outcome, Server, StartError};

struct Echo;

impl Component for Echo {
    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        connection.send(message);
        Ok(())
    }
}

fn main() -> Result<(), StartError> {
    // `*`: pages of any origin may connect, so that this can be tried from any tab.
    let server = Server::bind("127.0.0.1:9000").allowed_origins(["*"]);
    println!("ws://127.0.0.1:9000");
    server.run(|| Echo)
}
