//! Calls into components. A fault in one costs a connection at most, and never the shard.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::Shard;
use super::slab::State;
use crate::component::{CloseCause, Component, Connection, Core, Fault, Outcome, drop_caught};
use crate::connection_id::ConnectionId;
use crate::ws::Request;

impl Shard {
    /// Calls the component for a connection. A fault is told to `on_error` and closes this connection with 1011.
    pub(super) fn call(
        &mut self,
        id: ConnectionId,
        route: u8,
        request: Option<Rc<Request>>,
        callback: impl FnOnce(&mut dyn Component, &Connection) -> Outcome,
    ) {
        let connection = Connection::new(id, route, &self.context, request);
        let component = self.routes.component(route);
        match catch_unwind(AssertUnwindSafe(|| callback(component, &connection))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.tell_fault(&connection, route, Fault::Error(error)),
            Err(panic) => self.tell_fault(&connection, route, Fault::of_panic(panic)),
        }
    }

    /// Calls the component for nobody in particular. A fault is logged and counted.
    pub(super) fn call_for_core(
        &mut self,
        route: u8,
        callback: impl FnOnce(&mut dyn Component, &Core) -> Outcome,
    ) {
        let core = Core::new(route, &self.context);
        let component = self.routes.component(route);
        match catch_unwind(AssertUnwindSafe(|| callback(component, &core))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.log_fault(Fault::Error(error)),
            Err(panic) => self.log_fault(Fault::of_panic(panic)),
        }
    }

    /// A task failed.
    pub(super) fn on_task_fault(&mut self, route: u8, connection: Option<ConnectionId>, fault: Fault) {
        match connection {
            Some(id) if self.slab.find(id).is_some_and(|slot| slot.state == State::Open) => {
                let connection = Connection::new(id, route, &self.context, None);
                self.tell_fault(&connection, route, fault);
            }
            _ => self.log_fault(fault),
        }
    }

    fn tell_fault(&mut self, connection: &Connection, route: u8, fault: Fault) {
        self.count_fault(&fault);
        let component = self.routes.component(route);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| component.on_error(connection, &fault))) {
            self.stats.callback_panics.add(1);
            drop_caught(panic);
        }
        drop_caught(fault);
        // Queued like everything a callback asks for, behind what it asked for before it failed.
        connection.close_for(CloseCause::Fault, 1011, "internal error");
    }

    fn log_fault(&self, fault: Fault) {
        self.count_fault(&fault);
        // Its words are a user's code as well.
        let words = catch_unwind(AssertUnwindSafe(|| fault.to_string()));
        let words = words.unwrap_or_else(|panic| Fault::of_panic(panic).to_string());
        drop_caught(fault);
        tracing::warn!(shard = self.mesh.shard(), error = words, "a component failed");
    }

    fn count_fault(&self, fault: &Fault) {
        match fault {
            Fault::Panic(_) => self.stats.callback_panics.add(1),
            _ => self.stats.callback_errors.add(1),
        }
    }

    /// Tells every component that its core is set up.
    ///
    /// # Errors
    /// The first one that fails, in words.
    pub(super) fn start_components(&mut self) -> Result<(), String> {
        for route in 0..self.routes.len() {
            let core = Core::new(route as u8, &self.context);
            let component = self.routes.component(route as u8);
            let fault = match catch_unwind(AssertUnwindSafe(|| component.on_start(&core))) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => Fault::Error(error),
                Err(panic) => Fault::of_panic(panic),
            };
            return Err(format!("on_start of route {route}: {fault}"));
        }
        Ok(())
    }
}

/// The words of a panic in code that makes components.
pub(super) fn factory_fault(panic: Box<dyn Any + Send>) -> String {
    format!("a route's factory {}", Fault::of_panic(panic))
}
