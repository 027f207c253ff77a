//! Tasks of users on the shard's executor: what handles spawn, waits and blocking work.
//!
//! A task that is still pending when its executor ends would leak what it holds, so [`Tasks::end`] cancels all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use glommio::Task;

use crate::component::{Executor, LocalFuture};

/// Threads beside the core that run what blocks.
pub(super) const BLOCKING_THREADS: usize = 1;

/// The tasks alive on one shard.
#[derive(Default)]
pub(super) struct Tasks {
    next: Cell<u64>,
    alive: RefCell<HashMap<u64, Task<()>>>,
}

impl Tasks {
    /// Whether any task is alive: then the driver must let the executor run.
    pub(super) fn any(&self) -> bool {
        !self.alive.borrow().is_empty()
    }

    /// Cancels all tasks, and those that they spawn while they end.
    pub(super) async fn end(&self) {
        loop {
            let Some(number) = self.alive.borrow().keys().next().copied() else { return };
            let task = self.alive.borrow_mut().remove(&number);
            if let Some(task) = task {
                task.cancel().await;
            }
        }
    }
}

/// What handles see of the executor.
pub(super) struct ShardExecutor(pub(super) Rc<Tasks>);

impl Executor for ShardExecutor {
    fn spawn(&self, task: LocalFuture) {
        let tasks = self.0.clone();
        let number = tasks.next.get();
        tasks.next.set(number + 1);
        let task = glommio::spawn_local(async move {
            task.await;
            let own = tasks.alive.borrow_mut().remove(&number);
            if let Some(own) = own {
                own.detach();
            }
        });
        // A spawned task first runs when this one yields, so it cannot have ended before it is listed.
        self.0.alive.borrow_mut().insert(number, task);
    }

    fn sleep(&self, duration: Duration) -> LocalFuture {
        Box::pin(async move {
            // A sleep of nothing must let others run as any other does; glommio's would not.
            glommio::timer::sleep(duration.max(Duration::from_micros(1))).await;
        })
    }

    fn run_blocking(&self, work: Box<dyn FnOnce() + Send>) -> LocalFuture {
        Box::pin(async move { glommio::executor().spawn_blocking(work).await })
    }
}
