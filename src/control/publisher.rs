//! Publishes of the program's other threads: a database listener, the consumer of a message queue, a task of another
//! runtime.
//!
//! Invariants:
//! 1. A publish takes the way of one by HTTP: it is encoded where it comes in, waits for a place in the dispatcher's
//!    queue, and is answered by the topic's owner. So all publishes to a topic are in one order, wherever they were made,
//!    and a limit refuses and counts all of them alike.
//! 2. No thread, timer or lock is for publishers alone: who waits is parked, or waits in a runtime of his own, and is
//!    woken by the answer. A server that nobody publishes to has no more to do than one without publishers.
//! 3. A publisher keeps nothing of a server that has ended.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Shared;
use super::dispatcher::Command;
use crate::clock;
use crate::component::Message;
use crate::frame::Frame;
use crate::shard::message::{Overloaded, Receipt, Source};
use crate::topic::{TopicError, TopicName};

/// Publishes to the topics of a server, from any thread. Cheap to clone; harmless before the server runs and once it
/// has ended.
///
/// It comes from [`crate::App::publisher`] or [`crate::RunningServer::publisher`], and works with and without a control
/// port. A publish is ordered, limited and counted as one by HTTP is (`publishes_total{source="thread"}`), and its
/// [`Receipt`] says the same: how many subscribers it was handed to, and its place in the topic.
///
/// What one thread publishes to a topic, one message after the other, is sent to the topic's subscribers in that order;
/// messages that are under way at a time are in any order, which is the same for all subscribers. Who needs more
/// throughput than one answer after the other allows has several messages under way: from several threads, or by
/// several futures of [`Publisher::publish_async`].
///
/// Callbacks of a [`crate::Component`] have [`crate::Connection::publish`] and [`crate::Core::publish`] instead:
/// [`Publisher::publish`] would hold up all connections of their core. Their tasks ([`crate::Core::spawn`]) may await
/// [`Publisher::publish_async`] where they need the receipt.
///
/// ```no_run
/// use std::thread;
/// use std::time::Duration;
///
/// use corecast::{App, Component, Connection, Outcome, PublishError};
///
/// struct News;
///
/// impl Component for News {
///     fn on_open(&mut self, connection: &Connection) -> Outcome {
///         connection.subscribe("news")?;
///         Ok(())
///     }
/// }
///
/// fn main() -> Result<(), corecast::StartError> {
///     let server = App::new("localhost", 8080).route("/news", || News).start()?;
///     let publisher = server.publisher();
///     thread::spawn(move || {
///         for line in std::io::stdin().lines().map_while(Result::ok) {
///             match publisher.publish("news", &line, Duration::from_secs(5)) {
///                 Ok(receipt) => println!("{} subscribers", receipt.subscribers),
///                 Err(PublishError::Ended) => return,
///                 Err(error) => eprintln!("{line:?} was not published: {error}"),
///             }
///         }
///     });
///     server.wait().map(drop)
/// }
/// ```
#[derive(Clone)]
pub struct Publisher(Arc<OnceLock<Weak<Shared>>>);

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("connected", &self.shared().is_ok()).finish()
    }
}

impl Publisher {
    /// One for a server that has yet to start.
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// The server starts. Done once: an app is used up by its start.
    pub(super) fn connect(&self, shared: &Arc<Shared>) {
        let _ = self.0.set(Arc::downgrade(shared));
    }

    /// The server will not start.
    pub(crate) fn give_up(&self) {
        let _ = self.0.set(Weak::new());
    }

    /// Publishes to the topic's subscribers on all cores, and blocks this thread until the answer is here or `timeout`
    /// is over. Answers come as fast as the topic's core takes messages in: well within a millisecond, unless it is busy.
    ///
    /// # Errors
    /// Any [`PublishError`]. But for [`PublishError::TimedOut`] and [`PublishError::Ended`], nobody gets the message.
    pub fn publish<'m, T>(
        &self,
        topic: T,
        message: impl Into<Message<'m>>,
        timeout: Duration,
    ) -> Result<Receipt, PublishError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        let publish = self.prepare(topic, message.into())?;
        wait(publish.run(), timeout).unwrap_or(Err(PublishError::TimedOut))
    }

    /// As [`Publisher::publish`], for async code of any runtime. It does nothing until it is awaited, and has no timeout
    /// of its own: dropped before its end, as by the timeout of a runtime, it may have published or not.
    ///
    /// # Errors
    /// As of [`Publisher::publish`], [`PublishError::TimedOut`] excepted.
    pub async fn publish_async<'m, T>(
        &self,
        topic: T,
        message: impl Into<Message<'m>>,
    ) -> Result<Receipt, PublishError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        let publish = self.prepare(topic, message.into())?;
        publish.run().await
    }

    fn prepare<T>(&self, topic: T, message: Message<'_>) -> Result<Publish, PublishError>
    where
        T: TryInto<TopicName>,
        TopicError: From<T::Error>,
    {
        let topic = topic.try_into().map_err(|error| PublishError::Topic(error.into()))?;
        let shared = self.shared()?;
        let limit = shared.settings.load().max_message_bytes;
        if message.as_bytes().len() > limit {
            return Err(PublishError::TooLarge { limit });
        }
        let frame = Frame::new(message.kind(), message.as_bytes(), clock::monotonic_nanos(), None);
        Ok(Publish { shared, topic, frame })
    }

    fn shared(&self) -> Result<Arc<Shared>, PublishError> {
        let shared = self.0.get().ok_or(PublishError::NotStarted)?;
        shared.upgrade().ok_or(PublishError::Ended)
    }
}

/// A message that is ready to go.
struct Publish {
    shared: Arc<Shared>,
    topic: TopicName,
    frame: Arc<Frame>,
}

impl Publish {
    async fn run(self) -> Result<Receipt, PublishError> {
        let Self { shared, topic, frame } = self;
        let (reply, answer) = oneshot::channel();
        let command = Command::Publish { topic, frame, source: Source::Thread, reply };
        shared.commands.send(command).await.map_err(|_| PublishError::Ended)?;
        drop(shared);
        match answer.await {
            Ok(outcome) => outcome.map_err(PublishError::from),
            Err(_) => Err(PublishError::Ended),
        }
    }
}

/// Why a publish was refused, or why it is not known what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// The text is no [`TopicName`].
    Topic(TopicError),
    /// The payload is longer than [`crate::Config::max_message_bytes`].
    TooLarge {
        /// That limit, in bytes.
        limit: usize,
    },
    /// The shards cannot take more now. They catch up within milliseconds, so try again a little later.
    Overloaded,
    /// The topic is new, and there are as many as there may be: [`crate::Config::max_topics`].
    TopicLimit,
    /// The server does not run yet.
    NotStarted,
    /// The server has ended, or never came to run. A message that was under way at its end may have reached subscribers.
    Ended,
    /// The answer did not come in time. The message may be published all the same.
    TimedOut,
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(error) => error.fmt(f),
            Self::TooLarge { limit } => write!(f, "the message is longer than the limit of {limit} bytes"),
            Self::Overloaded => f.write_str("the shards cannot take more now"),
            Self::TopicLimit => f.write_str("there is no room for another topic"),
            Self::NotStarted => f.write_str("the server does not run yet"),
            Self::Ended => f.write_str("the server has ended"),
            Self::TimedOut => f.write_str("no answer in time; the message may be published all the same"),
        }
    }
}

impl Error for PublishError {}

impl From<Overloaded> for PublishError {
    fn from(overloaded: Overloaded) -> Self {
        match overloaded {
            Overloaded::Rings => Self::Overloaded,
            Overloaded::Topics => Self::TopicLimit,
        }
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks this thread until the future is done; `None` when the time is over. One that is done at once needs no time.
fn wait<F: Future>(future: F, timeout: Duration) -> Option<F::Output> {
    // A time that no clock reaches is none.
    let deadline = Instant::now().checked_add(timeout);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Conduct, EPOCH_TEXT, Rig, Told, settings};
    use super::*;

    /// Longer than a machine stands still.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Any thread may have one, and share it.
    const _: fn() = || {
        fn is_shared<T: Send + Sync + Clone + 'static>() {}
        is_shared::<Publisher>();
    };

    #[test]
    fn a_message_is_sent_to_its_owner_as_it_is() {
        let rig = Rig::new(&[Conduct::Deliver(7), Conduct::Deliver(7)], settings());
        let receipt = rig.publisher.publish("a b", "hello", PATIENCE).unwrap();
        assert_eq!((receipt.subscribers, receipt.position.to_string()), (7, format!("{EPOCH_TEXT}:1")));
        let owner = TopicName::new("a b").unwrap().owner(2);
        assert_eq!(rig.told.recv().unwrap(), (owner, Told::Publish("a b".into(), b"\x81\x05hello".to_vec())));
        rig.publisher.publish("b", &[0xff][..], PATIENCE).unwrap();
        assert_eq!(rig.told.recv().unwrap().1, Told::Publish("b".into(), b"\x82\x01\xff".to_vec()));
        rig.end();
    }

    #[test]
    fn a_shard_that_refuses_or_is_silent_is_an_error() {
        let rig = Rig::new(&[Conduct::Refuse], settings());
        assert_eq!(rig.publisher.publish("a", "x", PATIENCE), Err(PublishError::Overloaded));
        rig.end();
        let rig = Rig::new(&[Conduct::Silent], settings());
        let timeout = Duration::from_millis(20);
        assert_eq!(rig.publisher.publish("a", "x", timeout), Err(PublishError::TimedOut));
        assert_eq!(rig.publisher.publish("a", "x", Duration::ZERO), Err(PublishError::TimedOut));
        let publisher = rig.publisher.clone();
        let waiting = thread::spawn(move || publisher.publish("a", "x", Duration::MAX));
        assert_eq!(rig.told.iter().take(3).count(), 3, "the third is under way");
        rig.handle.stop_now();
        assert_eq!(waiting.join().unwrap(), Err(PublishError::Ended));
        rig.join();
    }

    #[test]
    fn nobody_waits_for_a_server_that_ends_before_it_takes_the_message() {
        // Nobody takes commands out of the queue of this one.
        let (commands, receiver) = tokio::sync::mpsc::channel(1);
        let shared = Arc::new(Shared { commands, ..super::super::testing::shared(1) });
        let publisher = Publisher::new();
        publisher.connect(&shared);
        for _ in 0..2 {
            assert_eq!(publisher.publish("a", "x", Duration::ZERO), Err(PublishError::TimedOut));
        }
        let blocked = thread::spawn({
            let publisher = publisher.clone();
            move || publisher.publish("a", "x", Duration::MAX)
        });
        drop(receiver);
        assert_eq!(blocked.join().unwrap(), Err(PublishError::Ended));
        assert_eq!(Arc::strong_count(&shared), 1, "who has been answered keeps nothing");
        drop(shared);
        assert_eq!(publisher.publish("a", "x", PATIENCE), Err(PublishError::Ended));
    }
}
