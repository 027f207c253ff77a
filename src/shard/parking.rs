//! Sleep in the executor: the bridge between the shard's ring and glommio, while user tasks are alive.
//!
//! An event descriptor that completions of the ring signal is read by a small task of its own, which then wakes
//! the driver; so does a handle that is used by a user's task. The descriptor is read by that one task only,
//! because glommio adds a waker to a read at each poll and keeps all of them until the read is done.

use std::cell::Cell;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};

use glommio::Task;
use glommio::io::BufferedFile;

use super::ring::Ring;
use crate::component::Context;

/// The bridge.
pub(super) struct Parking {
    /// The event descriptor, to end its reader.
    event: File,
    signal: Rc<Signal>,
    /// What the reader is to read, until it is begun: when the driver first sleeps here.
    unread: Option<BufferedFile>,
    reader: Option<Task<()>>,
}

/// What the reader tells the driver.
#[derive(Default)]
struct Signal {
    raised: Cell<bool>,
    failed: Cell<Option<io::Error>>,
    driver: Cell<Option<Waker>>,
    ending: Cell<bool>,
}

impl Parking {
    /// Makes the bridge for `ring`. Must be called on an executor.
    pub(super) fn new(ring: &mut Ring) -> io::Result<Self> {
        let (event, file) = ring.register_event()?;
        Ok(Self { event, signal: Rc::default(), unread: Some(file), reader: None })
    }

    /// Waits for a completion of the ring, or for a command of a user's task.
    ///
    /// # Errors
    /// When the event descriptor cannot be read.
    pub(super) async fn wait(&mut self, context: &Context) -> io::Result<()> {
        if let Some(file) = self.unread.take() {
            self.reader = Some(glommio::spawn_local(read(file, self.signal.clone())));
        }
        let signal = &self.signal;
        poll_fn(|task| {
            signal.driver.set(Some(task.waker().clone()));
            if signal.raised.take() || !context.wake_on_command(task.waker()) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        signal.driver.set(None);
        context.awake();
        signal.failed.take().map_or(Ok(()), Err)
    }

    /// Lets the reader come to its end: one that were cancelled in a read would keep the descriptor for ever.
    pub(super) async fn end(mut self) {
        self.signal.ending.set(true);
        if let Some(file) = self.unread {
            let _ = file.close().await;
        }
        if let Some(reader) = self.reader {
            match self.event.write_all(&1_u64.to_ne_bytes()) {
                Ok(()) => reader.await,
                Err(_) => drop(reader.cancel().await),
            }
        }
    }
}

async fn read(file: BufferedFile, signal: Rc<Signal>) {
    loop {
        let outcome = file.read_at(0, 8).await;
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            signal.failed.set(Some(error.into()));
        }
        signal.raised.set(true);
        if let Some(driver) = signal.driver.take() {
            driver.wake();
        }
        if failed || signal.ending.get() {
            break;
        }
    }
    // What cannot be closed is gone already.
    let _ = file.close().await;
}

/// Lets the executor's other tasks run once. A timer of zero does not yield in glommio.
#[derive(Default)]
pub(super) struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
