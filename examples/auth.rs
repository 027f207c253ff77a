//! Refuses the upgrade without a valid token. `cargo run --release --example auth`; then
//! `new WebSocket("ws://127.0.0.1:8080/inbox?token=alice-secret")` opens, and any other token fails with 401.
//!
//! The look-up of what waits for a user blocks, as many database clients do, so it runs beside the core.

use std::thread::sleep;
use std::time::Duration;

use corecast::{App, Component, Connection, Outcome, Rejection, Request, StartError, StatusCode};

const TOKENS: [(&str, &str); 2] = [("alice-secret", "alice"), ("bob-secret", "bob")];

/// The user that a request's token stands for.
fn user(request: &Request) -> Option<&'static str> {
    let parameters = request.uri().query().unwrap_or_default().split('&');
    let token = parameters.filter_map(|parameter| parameter.strip_prefix("token=")).next()?;
    TOKENS.iter().find(|(known, _)| *known == token).map(|(_, user)| *user)
}

struct Inbox;

impl Component for Inbox {
    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        match user(request) {
            Some(_) => Ok(()),
            None => Err(Rejection::with_status(StatusCode::UNAUTHORIZED, "a valid token is required")),
        }
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let user = connection.http_request().and_then(|request| user(&request)).ok_or("no user")?;
        let connection = connection.clone();
        connection.clone().spawn(async move {
            let waiting = connection.core().run_blocking(move || slow_database(user)).await;
            connection.send(&format!("{user}, {waiting} messages wait for you"));
            Ok(())
        });
        Ok(())
    }
}

fn slow_database(user: &str) -> usize {
    sleep(Duration::from_millis(50));
    user.len()
}

fn main() -> Result<(), StartError> {
    let app = App::new("*", 8080).route("/inbox", || Inbox).allowed_origins(["*"]);
    let server = app.start_for_process()?;
    println!("ws://{}/inbox?token=alice-secret", server.websocket_addresses()[0]);
    server.wait().map(drop)
}
