//! The handle to one core: tasks, timers, blocking work, and the instances of a component on other cores.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context as TaskContext, Poll};
use std::thread::Result as ThreadResult;
use std::time::Duration;

use super::context::{Context, Origin};
use super::{Message, Outcome, drop_caught};
use crate::clock;
use crate::frame::Frame;
use crate::topic::{TopicError, TopicName};

/// A future that stays on its core.
pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What a shard lends to its component's handles: its executor.
pub(crate) trait Executor {
    /// Runs a future to its end, or to the shard's.
    fn spawn(&self, task: LocalFuture);
    /// Waits.
    fn sleep(&self, duration: Duration) -> LocalFuture;
    /// Runs something on a thread that may block.
    fn run_blocking(&self, work: Box<dyn FnOnce() + Send>) -> LocalFuture;
}

/// A shard has too much waiting for it: nothing was sent. Try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

impl fmt::Display for Overloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a core has too much waiting for it")
    }
}

impl Error for Overloaded {}

/// A handle to the core that a component lives on. Cheap to clone; stays there.
#[derive(Clone)]
pub struct Core {
    route: u8,
    context: Rc<Context>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("shard", &self.shard()).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(route: u8, context: &Rc<Context>) -> Self {
        Self { route, context: context.clone() }
    }

    /// Number of this core's shard, from 0.
    #[must_use]
    pub fn shard(&self) -> usize {
        usize::from(self.context.shard())
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.context.shards()
    }

    /// Publishes to the topic's subscribers on all cores. When they cannot take it, nobody gets it and
    /// [`super::Component::on_refused`] is called.
    ///
    /// # Errors
    /// When a text is no [`TopicName`]; with a `TopicName` never.
    pub fn publish<'m, T>(&self, topic: T, message: impl Into<Message<'m>>) -> Result<(), TopicError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        let (topic, message) = (topic.try_into()?, message.into());
        let frame = Frame::new(message.kind(), message.as_bytes(), clock::monotonic_nanos(), None);
        self.context.publish(topic, frame, Origin::Core { route: self.route });
        Ok(())
    }

    /// Runs a future on this core; it ends with the server. An `Err` or a panic is logged and counted. For work on
    /// behalf of a connection see [`super::Connection::spawn`].
    pub fn spawn(&self, task: impl Future<Output = Outcome> + 'static) {
        self.context.spawn(self.route, None, task);
    }

    /// Waits, without holding up anything else on this core.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static + use<> {
        self.context.executor().sleep(duration)
    }

    /// Runs something that blocks (a file, a database client without futures) on a thread beside the core, which
    /// goes on meanwhile. One such thread serves a core: what is asked for runs in turn. The server's end does not wait
    /// for it.
    pub fn run_blocking<R, W>(&self, work: W) -> BlockingWork<R>
    where
        R: Send + 'static,
        W: FnOnce() -> R + Send + 'static,
    {
        let (result, receiver) = mpsc::sync_channel(1);
        let caught = move || {
            // A caller that has gone away needs no result.
            drop_caught(result.send(catch_unwind(AssertUnwindSafe(work))));
        };
        BlockingWork { done: self.context.executor().run_blocking(Box::new(caught)), result: receiver }
    }

    /// Sends a value to the instance of this component on another core, which gets it in
    /// [`super::Component::on_sibling`]. Values from one core to another arrive in the order in which they were
    /// sent. To this core itself, or to one that there is not, it does nothing.
    ///
    /// # Errors
    /// [`Overloaded`] when that core has not taken what was sent before (16 Ki messages).
    pub fn send_to_sibling<T: Any + Send>(&self, shard: usize, value: T) -> Result<(), Overloaded> {
        self.context.send_to_sibling(self.route, shard, Box::new(value))
    }

    /// As [`Core::send_to_sibling`], to all other cores: to every one of them, or to none.
    ///
    /// # Errors
    /// [`Overloaded`] when one of them has not taken what was sent before.
    pub fn send_to_siblings<T: Any + Send + Clone>(&self, value: &T) -> Result<(), Overloaded> {
        let others = || (0..self.shards()).filter(|&shard| shard != self.shard());
        if !others().all(|shard| self.context.has_credit(shard)) {
            return Err(Overloaded);
        }
        others().try_for_each(|shard| self.send_to_sibling(shard, value.clone()))
    }
}

/// Work under way on a blocking thread. Await it for the result; a panic of the work goes on where it is awaited.
#[must_use = "the result comes when this is awaited"]
pub struct BlockingWork<R> {
    done: LocalFuture,
    result: mpsc::Receiver<ThreadResult<R>>,
}

impl<R> fmt::Debug for BlockingWork<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingWork").finish_non_exhaustive()
    }
}

impl<R> Future for BlockingWork<R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<R> {
        std::task::ready!(self.done.as_mut().poll(context));
        match self.result.recv() {
            Ok(Ok(result)) => Poll::Ready(result),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => panic!("the blocking thread has ended"),
        }
    }
}

/// A future whose panics are results, also when it is dropped unfinished.
pub(super) struct CatchPanic<F>(Option<Pin<Box<F>>>);

impl<F> CatchPanic<F> {
    pub(super) fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F> Drop for CatchPanic<F> {
    fn drop(&mut self) {
        drop_caught(self.0.take());
    }
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = ThreadResult<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}
