//! Owns the rings to and from the shards: forwards what handlers ask, gives them the answers, drains.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{COMMAND_QUEUE, Reloader, Shared, Stop, Summary};
use crate::frame::Frame;
use crate::service_manager;
use crate::shard::Settings;
use crate::shard::mesh::ControlLink;
use crate::shard::message::{Overloaded, Publisher, Receipt, Source, ToControl, ToShard, TopicStatus};
use crate::topic::TopicName;

/// Time beyond the drain window after which shards that have not drained are given up. Twice as long as a shard
/// takes that is not stuck, whatever clients do.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// The same when the server is to end at once: enough for the close frames to leave, not for the peers to
/// answer them.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Pause before a drain, or settings, that a full ring refused are sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How often a shard that takes nothing is told to end.
const END_TRIES: u32 = 20;

/// Interval at which answers that nobody waits for any more are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which the log tells how far a drain is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The pause when there is nothing to be done at any time.
const FAR: Duration = Duration::from_secs(3600);

/// Where the answer of a topic's owner goes. Dropped, it means that the owner has ended.
pub(super) type Answer<T> = oneshot::Sender<Result<T, Overloaded>>;

/// What a handler asks for, or a [`super::Publisher`].
pub(super) enum Command {
    /// Publish to the topic's owner.
    Publish { topic: TopicName, frame: Arc<Frame>, source: Source, reply: Answer<Receipt> },
    /// What the topic's owner knows of it.
    Inspect { topic: TopicName, reply: Answer<TopicStatus> },
    /// Close the topic's subscribers.
    Delete { topic: TopicName, reply: Answer<()> },
    /// Fan-out times of one shard. A dropped reply means that it cannot be asked now.
    Snapshot { shard: usize, reply: oneshot::Sender<Box<Histogram<u64>>> },
    /// Read the settings again.
    Reload,
}

enum Reply {
    Publish(Answer<Receipt>),
    Inspect(Answer<TopicStatus>),
    Delete(Answer<()>),
    Snapshot(oneshot::Sender<Box<Histogram<u64>>>),
}

impl Reply {
    fn is_awaited(&self) -> bool {
        match self {
            Self::Publish(reply) => !reply.is_closed(),
            Self::Inspect(reply) => !reply.is_closed(),
            Self::Delete(reply) => !reply.is_closed(),
            Self::Snapshot(reply) => !reply.is_closed(),
        }
    }

    /// Says that the shard could not be asked. A handler that has gone away needs no answer.
    fn refuse(self) {
        match self {
            Self::Publish(reply) => drop(reply.send(Err(Overloaded::Rings))),
            Self::Inspect(reply) => drop(reply.send(Err(Overloaded::Rings))),
            Self::Delete(reply) => drop(reply.send(Err(Overloaded::Rings))),
            // Dropped, which says the same.
            Self::Snapshot(_) => {}
        }
    }
}

/// What a shard has still to be told, or is yet to say, before the server may end. A shard that has drained goes
/// on ordering its topics for the others, until all have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ShardState {
    /// It serves, or drains as it was told.
    Alive,
    /// It is to drain over so many milliseconds and has not been told.
    Untold(u64),
    /// It has no connections any more.
    Drained,
}

pub(super) struct Dispatcher {
    link: ControlLink,
    shared: Arc<Shared>,
    /// An event descriptor: like the end of a pipe it is readable or not, and no other type of tokio's that
    /// needs no unsafe code takes one.
    bell: pipe::Receiver,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<Stop>,
    /// Keeps [`Dispatcher::stop`] open when the user has dropped every handle.
    _stopper: Arc<watch::Sender<Stop>>,
    pending: HashMap<u64, Reply>,
    next_request: u64,
    next_sweep: Instant,
    shards: Vec<ShardState>,
    reloader: Option<Reloader>,
    /// Settings that shards have yet to be told.
    untold_settings: Vec<Option<Arc<Settings>>>,
    next_progress: Option<Instant>,
    deadline: Option<Instant>,
    cut_connections: u64,
    /// The shards were told to end.
    ended: bool,
}

impl Dispatcher {
    /// Must be called inside the runtime.
    pub(super) fn new(
        link: ControlLink,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        stopper: Arc<watch::Sender<Stop>>,
        reloader: Option<Reloader>,
    ) -> io::Result<Self> {
        let bell = link.bell().try_clone_to_owned()?;
        socket2::SockRef::from(&bell).set_nonblocking(true)?;
        Ok(Self {
            bell: pipe::Receiver::from_owned_fd_unchecked(bell)?,
            commands,
            stop: stopper.subscribe(),
            _stopper: stopper,
            pending: HashMap::new(),
            next_request: 0,
            next_sweep: Instant::now(),
            shards: vec![ShardState::Alive; link.shards()],
            reloader,
            untold_settings: vec![None; link.shards()],
            next_progress: None,
            deadline: None,
            cut_connections: 0,
            ended: false,
            link,
            shared,
        })
    }

    /// Runs until every shard has drained, or until the time for it is over, and ends the shards.
    pub(super) async fn run(&mut self) -> Summary {
        // Whatever arrived before the bell was watched.
        self.receive_all();
        let (mut commands, mut open) = (Vec::with_capacity(COMMAND_QUEUE), true);
        while self.shards.iter().any(|shard| *shard != ShardState::Drained) {
            let wake = self.next_wake();
            tokio::select! {
                _ = self.bell.readable() => {
                    // The refused read at the end is what makes the next wait a wait.
                    while self.bell.try_read(&mut [0; 8]).is_ok() {}
                    self.receive_all();
                }
                // All that have come: the wait around them costs more than one of them.
                count = self.commands.recv_many(&mut commands, COMMAND_QUEUE), if open => {
                    open = count > 0;
                    commands.drain(..).for_each(|command| self.handle_command(command));
                }
                Ok(()) = self.stop.changed() => self.handle_stop(),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.send_settings();
            self.send_drains();
            let now = Instant::now();
            self.sweep(now);
            self.report_progress(now);
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                break;
            }
        }
        // Before the shards cut what is left, so that it can be counted.
        let summary = self.summary();
        self.end_shards().await;
        summary
    }

    /// A shard empties its ring in every pass: one that takes nothing for so long is stuck or dead.
    async fn end_shards(&mut self) {
        self.ended = true;
        self.pending.clear();
        // Who asks now, or has asked, is told at once: the port's last answers may take a while.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        for shard in 0..self.shards.len() {
            for _ in 0..END_TRIES {
                if self.link.try_send(shard, ToShard::End).is_ok() {
                    break;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let untold = self.shards.iter().any(|shard| matches!(shard, ShardState::Untold(_)))
            || self.untold_settings.iter().any(Option::is_some);
        let retry = untold.then_some(now + RETRY_PAUSE);
        let sweep = (!self.pending.is_empty()).then_some(self.next_sweep);
        [retry, sweep, self.next_progress, self.deadline].into_iter().flatten().min().unwrap_or(now + FAR)
    }

    fn handle_command(&mut self, command: Command) {
        let request = self.next_request;
        self.next_request += 1;
        let owner = |topic: &TopicName| topic.owner(self.shards.len());
        let (shard, message, reply) = match command {
            Command::Publish { topic, frame, source, reply } => {
                let publisher = Publisher::Control { request, source };
                (owner(&topic), ToShard::Publish { topic, frame, publisher }, Reply::Publish(reply))
            }
            Command::Inspect { topic, reply } => {
                (owner(&topic), ToShard::Inspect { topic, request }, Reply::Inspect(reply))
            }
            Command::Delete { topic, reply } => {
                (owner(&topic), ToShard::Delete { topic, request }, Reply::Delete(reply))
            }
            Command::Snapshot { shard, reply } => {
                (shard, ToShard::Snapshot { request }, Reply::Snapshot(reply))
            }
            Command::Reload => return self.reload(),
        };
        if self.ended {
            return;
        }
        match (self.link.try_send(shard, message), reply) {
            (Ok(()), reply) => drop(self.pending.insert(request, reply)),
            (Err(_), reply) => {
                self.shared.ring_full[shard].fetch_add(1, Relaxed);
                if let Reply::Publish(_) = reply {
                    self.shared.ring_full_publishes.fetch_add(1, Relaxed);
                }
                reply.refuse();
            }
        }
    }

    fn receive_all(&mut self) {
        self.link.listen();
        while let Some(message) = self.link.try_receive() {
            match message {
                ToControl::Published { request, outcome } => {
                    if let Some(Reply::Publish(reply)) = self.pending.remove(&request) {
                        let _ = reply.send(outcome);
                    }
                }
                ToControl::Inspected { request, status } => {
                    if let Some(Reply::Inspect(reply)) = self.pending.remove(&request) {
                        let _ = reply.send(Ok(status));
                    }
                }
                ToControl::Deleted { request, outcome } => {
                    if let Some(Reply::Delete(reply)) = self.pending.remove(&request) {
                        let _ = reply.send(outcome);
                    }
                }
                ToControl::Snapshot { request, fanout_micros } => {
                    if let Some(Reply::Snapshot(reply)) = self.pending.remove(&request) {
                        let _ = reply.send(fanout_micros);
                    }
                }
                ToControl::Drained { shard, cut } => self.handle_drained(usize::from(shard), cut),
            }
        }
    }

    fn handle_drained(&mut self, shard: usize, cut: u64) {
        self.cut_connections += cut;
        self.shards[shard] = ShardState::Drained;
        self.shared.drained[shard].store(true, Relaxed);
        let left = self.shards.iter().filter(|shard| **shard != ShardState::Drained).count();
        info!(shard, cut, shards_left = left, "shard drained");
    }

    fn handle_stop(&mut self) {
        let stop = *self.stop.borrow_and_update();
        let (window_millis, grace) = match stop {
            Stop::Not => return,
            Stop::Drain => (self.shared.settings.load().drain_window_millis, DRAIN_GRACE),
            Stop::Now => (0, STOP_GRACE),
        };
        self.shared.draining.store(true, Relaxed);
        self.deadline = Some(Instant::now() + Duration::from_millis(window_millis) + grace);
        for shard in &mut self.shards {
            if *shard != ShardState::Drained {
                *shard = ShardState::Untold(window_millis);
            }
        }
        let connections = self.connections();
        if self.shared.settings.load().for_process {
            service_manager::stopping(connections);
        }
        self.next_progress = Some(Instant::now() + PROGRESS_INTERVAL);
        match stop {
            Stop::Now => info!(connections, "ending at once"),
            _ => info!(connections, window_millis, "draining"),
        }
    }

    fn connections(&self) -> u64 {
        self.shared.stats.iter().map(|stats| stats.connections.get()).sum()
    }

    fn report_progress(&mut self, now: Instant) {
        if self.next_progress.is_none_or(|next| now < next) {
            return;
        }
        self.next_progress = Some(now + PROGRESS_INTERVAL);
        let connections_left = self.connections();
        info!(connections_left, "draining");
        if self.shared.settings.load().for_process {
            service_manager::draining(connections_left);
        }
    }

    fn reload(&mut self) {
        let Some(reloader) = &mut self.reloader else { return };
        if self.shared.draining.load(Relaxed) {
            return warn!("the configuration is not reloaded: the server drains");
        }
        if let Some(settings) = reloader.reload(&self.shared) {
            self.untold_settings.fill(Some(settings));
        }
    }

    /// Tells shards their new settings; a shard that could not be told the last ones gets these alone.
    fn send_settings(&mut self) {
        for (shard, untold) in self.untold_settings.iter_mut().enumerate() {
            if let Some(settings) = untold.take() {
                if self.link.try_send(shard, ToShard::Configure(settings.clone())).is_err() {
                    *untold = Some(settings);
                }
            }
        }
    }

    fn send_drains(&mut self) {
        let hurried = *self.stop.borrow() == Stop::Now;
        for (shard, state) in self.shards.iter_mut().enumerate() {
            if let ShardState::Untold(window_millis) = *state {
                if self.link.try_send(shard, ToShard::Drain { window_millis, hurried }).is_ok() {
                    *state = ShardState::Alive;
                }
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.pending.retain(|_, reply| reply.is_awaited());
        }
    }

    fn summary(&self) -> Summary {
        let states = self.shards.iter().enumerate();
        let undrained_shards: Vec<usize> =
            states.filter(|(_, state)| **state != ShardState::Drained).map(|(shard, _)| shard).collect();
        let left = undrained_shards.iter().map(|shard| self.shared.stats[*shard].connections.get());
        let cut_connections = self.cut_connections + left.sum::<u64>();
        if undrained_shards.is_empty() {
            info!(cut_connections, "all shards drained");
        } else {
            warn!(cut_connections, ?undrained_shards, "ending although shards have not drained");
        }
        Summary { cut_connections, undrained_shards }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::shard::mesh::RING_MESSAGES;
    use crate::ws::MessageKind;

    fn publish() -> (Command, oneshot::Receiver<Result<Receipt, Overloaded>>) {
        let (reply, answer) = oneshot::channel();
        let topic = TopicName::new("a").unwrap();
        let (frame, source) = (Frame::new(MessageKind::Text, b"x", 0, None), Source::Http);
        (Command::Publish { topic, frame, source, reply }, answer)
    }

    #[test]
    fn a_full_ring_refuses_publishes_and_only_delays_the_drain() {
        testing::runtime().block_on(async {
            let (mut meshes, link) = testing::rings(1);
            let (_commands, commands) = mpsc::channel(1);
            let stopper = Arc::new(watch::channel(Stop::Not).0);
            let shared = Arc::new(testing::shared(1));
            let mut dispatcher =
                Dispatcher::new(link, shared.clone(), commands, stopper.clone(), None).unwrap();
            let mut answers = Vec::new();
            let refused = loop {
                let (command, mut answer) = publish();
                dispatcher.handle_command(command);
                match answer.try_recv() {
                    Ok(outcome) => break outcome,
                    Err(_) => answers.push(answer),
                }
            };
            assert_eq!((refused, answers.len()), (Err(Overloaded::Rings), RING_MESSAGES));
            let topic = || TopicName::new("a").unwrap();
            let (reply, mut answer) = oneshot::channel();
            dispatcher.handle_command(Command::Inspect { topic: topic(), reply });
            assert_eq!(answer.try_recv(), Ok(Err(Overloaded::Rings)));
            let (reply, mut answer) = oneshot::channel();
            dispatcher.handle_command(Command::Delete { topic: topic(), reply });
            assert_eq!(answer.try_recv(), Ok(Err(Overloaded::Rings)));
            assert_eq!(shared.ring_full[0].load(Relaxed), 3);
            assert_eq!(shared.ring_full_publishes.load(Relaxed), 1, "the others are no publishes");

            stopper.send_replace(Stop::Drain);
            let shard = std::thread::spawn(move || {
                let mut mesh = meshes.remove(0);
                std::thread::sleep(3 * RETRY_PAUSE);
                let mut published = 0;
                loop {
                    match mesh.receive(&mut Default::default()) {
                        Some(ToShard::Publish { .. }) => published += 1,
                        Some(ToShard::Drain { window_millis, .. }) => {
                            mesh.send_to_control(ToControl::Drained { shard: 0, cut: 4 });
                            mesh.ring_doorbells(|_| ());
                            return (published, window_millis);
                        }
                        _ => std::thread::yield_now(),
                    }
                }
            });
            let summary = dispatcher.run().await;
            assert_eq!(summary, Summary { cut_connections: 4, undrained_shards: Vec::new() });
            assert_eq!(shard.join().unwrap(), (RING_MESSAGES, shared.settings.load().drain_window_millis));
            assert!(
                answers
                    .iter_mut()
                    .all(|answer| answer.try_recv() == Err(oneshot::error::TryRecvError::Closed))
            );
            let (command, answer) = publish();
            dispatcher.handle_command(command);
            assert!(answer.await.is_err(), "a server that has ended takes no publish");
        });
    }

    #[test]
    fn an_answer_that_nobody_awaits_is_forgotten() {
        testing::runtime().block_on(async {
            let (_meshes, link) = testing::rings(1);
            let (_commands, commands) = mpsc::channel(1);
            let stopper = Arc::new(watch::channel(Stop::Not).0);
            let shared = Arc::new(testing::shared(1));
            let mut dispatcher = Dispatcher::new(link, shared, commands, stopper, None).unwrap();
            let ((first, gone), (second, _awaited)) = (publish(), publish());
            dispatcher.handle_command(first);
            dispatcher.handle_command(second);
            drop(gone);
            dispatcher.sweep(Instant::now() + SWEEP_INTERVAL);
            assert_eq!(dispatcher.pending.len(), 1);
        });
    }
}
