//! Prices from a timer: a task that belongs to no connection publishes to a topic ten times a second.
//! `cargo run --release --example ticker`, then `new WebSocket("ws://127.0.0.1:8080/prices/ACME")`.

use std::time::Duration;

use corecast::{App, Component, Connection, Core, Outcome, StartError};

const SYMBOLS: [&str; 3] = ["ACME", "INITECH", "UMBRELLA"];

struct Prices;

impl Component for Prices {
    fn on_start(&mut self, core: &Core) -> Outcome {
        // There is one `Prices` on each core, and one ticker is enough.
        if core.shard() == 0 {
            core.spawn(tick(core.clone()));
        }
        Ok(())
    }

    fn takes_messages(&mut self) -> bool {
        false
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let symbol = connection.path_parameter("symbol").unwrap_or_default();
        connection.subscribe(symbol)?;
        Ok(())
    }
}

async fn tick(core: Core) -> Outcome {
    let mut prices = SYMBOLS.map(|symbol| (symbol, 10_000_u64));
    for turn in 1.. {
        core.sleep(Duration::from_millis(100)).await;
        for (symbol, price) in &mut prices {
            // A walk that looks random enough: up or down by up to 8 cents.
            *price = *price + (turn * 2_654_435_761 + *price) % 17 - 8;
            let text = format!(r#"{{"symbol":"{symbol}","price":{}.{:02}}}"#, *price / 100, *price % 100);
            core.publish(*symbol, &text)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), StartError> {
    let app = App::new("*", 8080).route("/prices/{symbol}", || Prices).allowed_origins(["*"]);
    let server = app.start_for_process()?;
    println!("ws://{}/prices/ACME", server.websocket_addresses()[0]);
    server.wait().map(drop)
}
