//! Rooms: a path parameter, a topic per room, and a count of members over all cores.
//! `cargo run --release --example rooms`, then `new WebSocket("ws://127.0.0.1:8080/rooms/kitchen")`.
//!
//! Each core counts its own members and tells the others, so that any of them knows the sum.

use std::collections::HashMap;
use std::rc::Rc;

use corecast::{App, CloseReason, Component, Connection, Core, Message, Outcome, SiblingMessage, StartError};

/// How many members a room has on the core that says so.
#[derive(Clone)]
struct Count(String, usize);

#[derive(Default)]
struct Rooms {
    members: HashMap<(String, usize), usize>,
}

impl Rooms {
    fn count(&mut self, connection: &Connection, change: isize) -> Result<usize, Box<dyn std::error::Error>> {
        let room = connection.data::<String>().ok_or("no room")?;
        let core = connection.core();
        let own = self.members.entry((room.to_string(), core.shard())).or_default();
        *own = own.saturating_add_signed(change);
        core.send_to_siblings(&Count(room.to_string(), *own))?;
        Ok(self.members.iter().filter(|((name, _), _)| *name == *room).map(|(_, count)| count).sum())
    }
}

impl Component for Rooms {
    fn on_open(&mut self, connection: &Connection) -> Outcome {
        let room = connection.path_parameter("room").ok_or("no room")?;
        connection.set_data(Rc::new(room.clone()));
        connection.subscribe(&room)?;
        let members = self.count(connection, 1)?;
        connection.publish(&room, &format!("someone came: {members} here"))?;
        Ok(())
    }

    fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
        let room = connection.data::<String>().ok_or("no room")?;
        connection.publish(&*room, message)?;
        Ok(())
    }

    fn on_sibling(&mut self, _core: &Core, message: SiblingMessage) -> Outcome {
        let from = message.from();
        let Count(room, members) = message.downcast()?;
        self.members.insert((room, from), members);
        Ok(())
    }

    fn on_close(&mut self, connection: &Connection, _reason: &CloseReason) {
        // While too much waits for another core, its count is late.
        let _ = self.count(connection, -1);
    }
}

fn main() -> Result<(), StartError> {
    App::new("*", 8080).route("/rooms/{room}", Rooms::default).allowed_origins(["*"]).run()
}
