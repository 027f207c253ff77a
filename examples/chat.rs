//! The chat of Ratchet's README: what one says, all others hear. `cargo run --release --example chat`, then in two
//! browser tabs: `ws = new WebSocket("ws://localhost:8080/chat"); ws.onmessage = e => console.log(e.data)`.
//!
//! Ratchet keeps the clients in an `SplObjectStorage` and loops over them. Here a component sees the clients of its
//! own core only, so the loop is a topic, which reaches those of all cores.

use corecast::{App, CloseReason, Component, Connection, Fault, Message, Outcome, StartError};

struct Chat;

impl Component for Chat {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        connection.subscribe("chat")?;
        println!("new connection {} from {:?}", connection.id(), connection.remote_addr());
        Ok(())
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        connection.publish_to_others("chat", message)?;
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, reason: &CloseReason) {
        println!("connection {} has gone: {} {}", connection.id(), reason.code, reason.text);
    }

    fn on_error(&mut self, connection: &Connection, fault: &Fault) {
        println!("connection {} failed: {fault}", connection.id());
    }
}

fn main() -> Result<(), StartError> {
    // `*`: pages of any origin may connect, so that this can be tried from any tab.
    let server = App::new("*", 8080).route("/chat", || Chat).allowed_origins(["*"]).start_for_process()?;
    println!("ws://{}/chat", server.websocket_addresses()[0]);
    server.wait().map(drop)
}
