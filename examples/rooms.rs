//! Rooms: a path parameter, a topic per room, and a count of members over all cores.
//! `cargo run --release --example rooms`, then `new WebSocket("ws://127.0.0.1:8080/rooms/kitchen")`.
//!
//! Each core counts its own members and tells the others, so that any of them knows the sum.

use std::collections::HashMap;

use corecast::{
    App, CloseReason, Component, Connection, Core, Message, Outcome, PathParameters, Rejection, Request,
    SiblingMessage, StartError, TopicName,
};

/// The members of each room, by core.
#[derive(Default)]
struct Rooms(HashMap<String, Vec<usize>>);

impl Rooms {
    /// Notes the members of a room on one core; returns those on all.
    fn note(&mut self, room: &str, core: usize, members: impl FnOnce(usize) -> usize) -> (usize, usize) {
        let cores = self.0.entry(room.to_owned()).or_default();
        cores.resize(cores.len().max(core + 1), 0);
        cores[core] = members(cores[core]);
        let (here, sum) = (cores[core], cores.iter().sum());
        if sum == 0 {
            self.0.remove(room);
        }
        (here, sum)
    }
}

impl Component for Rooms {
    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        let room = PathParameters::of(request).get("room").unwrap_or_default();
        TopicName::new(room).map(drop).map_err(|error| Rejection::topic(error.to_string()))
    }

    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let (core, room) = (connection.core(), connection.path_parameter("room").ok_or("no room")?);
        connection.subscribe(&room)?;
        let (here, sum) = self.note(&room, core.shard(), |members| members + 1);
        connection.publish(&room, &format!("someone came: {sum} here"))?;
        connection.set_data(std::rc::Rc::new(room.clone()));
        Ok(core.send_to_siblings(&(room, here))?)
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        Ok(connection.publish(&*connection.data::<String>().ok_or("no room")?, message)?)
    }

    fn on_sibling(&mut self, _core: &Core, message: SiblingMessage) -> Outcome {
        let from = message.from();
        let (room, members): (String, usize) = message.downcast()?;
        self.note(&room, from, |_| members);
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, _reason: &CloseReason) {
        let (core, Some(room)) = (connection.core(), connection.data::<String>()) else { return };
        let (here, _) = self.note(&room, core.shard(), |members| members.saturating_sub(1));
        // While too much waits for another core, its count is late.
        let _ = core.send_to_siblings(&(room.to_string(), here));
    }
}

fn main() -> Result<(), StartError> {
    let app = App::new("*", 8080).route("/rooms/{room}", Rooms::default).allowed_origins(["*"]);
    let server = app.start_for_process()?;
    println!("ws://{}/rooms/kitchen", server.websocket_addresses()[0]);
    server.wait().map(drop)
}
