//! The driver: one task per shard that does one pass after another, and sleeps when there is nothing to do.
//!
//! A pass takes in everything that has arrived (completions, messages from other cores, what callbacks ask
//! for), then lets it go out together: to single connections all of it, to the subscribers of a large topic a part
//! ([`super::sweep`]), so that the next pass is never far. Sleep is a wait in the shard's own ring; while user tasks live
//! on the executor the driver parks there instead, so that they run. Either way a sleep ends at the next tick.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

use super::batch::Payload;
use super::fanout::SERVED_PER_PASS;
use super::message::Application;
use super::parking::{Parking, YieldNow};
use super::ring::Completion;
use super::tasks::BLOCKING_THREADS;
use super::{APPLY_AT_BYTES, Parts, Shard, Waiting};
use crate::clock;
use crate::component::{CloseCause, Command, drop_caught};
use crate::position::{Notice, Start};

/// How soon a shard looks again while a receiver has yet to make room for what overflowed.
const OVERFLOW_RETRY: Duration = Duration::from_millis(1);

/// Most operations that do not go to the kernel with a call of their own.
const FEW_STAGED: usize = 8;

/// glommio's own preemption timer. Below 100 ms its executor can park with runnable tasks, so it is set to
/// never matter, and the driver yields by itself after every pass while user tasks live.
const PREEMPT_TIMER: Duration = Duration::from_millis(100);

/// How long a shard that is never idle may keep its executor from timers and files of user tasks.
const REACTOR_INTERVAL: Duration = Duration::from_millis(1);

/// Shortest wait in which the executor looks after its reactor.
const REACTOR_VISIT: Duration = Duration::from_micros(1);

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// There was nothing to do.
    Idle,
    /// All that there was to do is done.
    Finished,
    /// There is more to do at once.
    Unfinished,
}

/// A running shard.
#[derive(Debug)]
pub struct Handle {
    executor: ExecutorJoinHandle<io::Result<()>>,
    /// Hangs up when the shard has ended.
    ended: mpsc::Receiver<()>,
}

impl Handle {
    /// Waits for the shard's end, but no longer than this; false if it has not come.
    #[must_use]
    pub fn ends_within(&self, patience: Duration) -> bool {
        self.ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    /// Waits for the shard's end.
    ///
    /// # Errors
    /// When its ring failed, or its thread panicked.
    pub fn join(self) -> io::Result<()> {
        self.executor.join().map_err(|error| io::Error::other(error.to_string()))?
    }
}

/// Starts a shard on an executor pinned to `cpu`, and returns once it accepts connections.
///
/// # Errors
/// When the kernel refuses the thread, glommio's rings or the shard's own.
pub fn spawn(cpu: usize, parts: Parts) -> io::Result<Handle> {
    let (ready, started) = mpsc::sync_channel(1);
    let (alive, ended) = mpsc::sync_channel(0);
    let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{}", parts.mesh.shard()))
        .io_memory(0)
        .ring_depth(64)
        .preempt_timer(PREEMPT_TIMER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(BLOCKING_THREADS))
        .spawn(move || async move {
            let _alive: mpsc::SyncSender<()> = alive;
            let on_failure = parts.on_failure.clone();
            match Shard::new(parts) {
                Ok(mut shard) => {
                    if let Err(fault) = shard.start_components() {
                        shard.tasks.end().await;
                        let _ = ready.send(Err(io::Error::other(fault)));
                        return Ok(());
                    }
                    shard.arm_listeners();
                    let _ = ready.send(Ok(()));
                    let alarm = Alarm(on_failure);
                    let result = shard.run().await;
                    if result.is_ok() {
                        std::mem::forget(alarm);
                    }
                    // Components are dropped with it, and what they do then is no failure of the shard.
                    drop_caught(shard);
                    result
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    Ok(())
                }
            }
        })
        .map_err(|error| io::Error::other(error.to_string()))?;
    match started.recv() {
        Ok(Ok(())) => Ok(Handle { executor, ended }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the shard's thread ended before it was ready")),
    }
}

/// Tells the server when the shard ends otherwise than by a drain, be it in a panic.
struct Alarm(Arc<dyn Fn() + Send + Sync>);

impl Drop for Alarm {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Shard {
    async fn run(&mut self) -> io::Result<()> {
        let mut parking = Parking::new(&mut self.ring)?;
        let outcome = self.run_passes(&mut parking).await;
        self.tasks.end().await;
        parking.end().await;
        outcome
    }

    async fn run_passes(&mut self, parking: &mut Parking) -> io::Result<()> {
        let mut visited_nanos = self.now_nanos;
        while !self.ending_now {
            let pass = self.pass()?;
            let in_executor = match self.settings.waiting {
                Waiting::Automatic => self.tasks.any(),
                Waiting::Ring => false,
                Waiting::Executor => true,
            };
            if !in_executor && self.tasks.any() {
                YieldNow::default().await;
            }
            match (pass, in_executor) {
                (Pass::Unfinished, false) => {}
                // What comes in meanwhile ends the wait at once.
                (Pass::Finished | Pass::Idle, false) => self.wait_in_ring()?,
                (Pass::Idle, true) => {
                    self.wait_in_executor(parking).await?;
                    visited_nanos = self.now_nanos;
                }
                (_, true) if self.now_nanos - visited_nanos < REACTOR_INTERVAL.as_nanos() as u64 => {
                    YieldNow::default().await;
                }
                (_, true) => {
                    glommio::timer::sleep(REACTOR_VISIT).await;
                    visited_nanos = self.now_nanos;
                }
            }
        }
        self.cut_all();
        self.pass().map(drop)
    }

    /// One pass.
    fn pass(&mut self) -> io::Result<Pass> {
        self.ring.submit(&mut self.completions)?;
        self.after_submit();
        self.now_nanos = clock::monotonic_nanos();
        self.tell_refused();
        let mut budget = SERVED_PER_PASS.max(self.completions.events.len() + self.unread.len());
        let mut busy = self.handle_completions();
        busy |= self.read_on();
        busy |= self.receive_messages();
        self.tick();
        // What ends here calls back, and a callback may ask for more: until nobody does.
        loop {
            busy |= self.apply_commands();
            busy |= self.continue_catch_ups();
            self.fan_out_some(&mut budget);
            self.end_overflowed();
            self.end_broken();
            if self.context.mark() == 0 && !self.catch_ups.is_ready() {
                break;
            }
        }
        self.report_subscribers();
        self.report_drained();
        if self.mesh.has_overflow() {
            self.mesh.retry_overflow();
            self.renew_credits();
        }
        self.ring_doorbells();
        if !self.ending.is_empty() || (!self.unflushed.is_empty() && !self.may_go_with_sleep()) {
            self.flush_batch();
            self.note_flushed();
            self.end_flushed();
            self.end_broken();
        }
        self.note_flushed();
        if busy {
            let compressions = self.context.with_compressors(|compressors| compressors.compressions());
            self.stats.compressions.set(compressions);
            self.stats.subscriptions_refused.set(self.context.refused_subscriptions());
        }
        // A flush on the way may have collected what this pass came too late for.
        let left = !self.completions.events.is_empty() || !self.overflowed.is_empty();
        // And what ended with it has owners to be told of.
        let left = left || self.local.has_changed() || !self.refused.is_empty();
        let left = left || self.catch_ups.is_ready() || !self.unread.is_empty();
        let left = left || self.local.has_dirty();
        Ok(if left || self.context.mark() > 0 {
            Pass::Unfinished
        } else if busy {
            Pass::Finished
        } else {
            Pass::Idle
        })
    }

    /// Whether the little that is staged may wait for the call that sleeps, or that begins the next pass: either
    /// follows at once. A call less is felt where messages come one at a time; the fan-out time lacks these few sends.
    fn may_go_with_sleep(&mut self) -> bool {
        self.ring.staged() <= FEW_STAGED && !self.tasks.any()
    }

    /// What must come first after anything was submitted: sends that fell short are queued, so that nothing
    /// goes out behind a gap, and their memory is let go.
    fn after_submit(&mut self) {
        self.batch.submitted(&mut self.ring);
        self.queue_short_sends();
        self.batch.release();
        if self.batch.holds_arena() {
            self.batch.clear_arena();
        }
        self.end_overflowed();
        self.end_broken();
    }

    fn handle_completions(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.completions.events);
        let any = !events.is_empty();
        for event in events.drain(..) {
            match event {
                Completion::Readable { slot, generation, ended, more } => {
                    self.on_readable(slot, generation, ended, more);
                    self.apply_if_much();
                }
                Completion::Writable { slot, generation, more } => self.on_writable(slot, generation, more),
                Completion::Accepted { listener, result, more } => self.on_accepted(listener, result, more),
                Completion::UnwatchReadableFailed { slot, generation } => {
                    self.on_unwatch_readable_failed(slot, generation);
                }
                Completion::UnwatchWritableFailed { slot, generation } => {
                    self.on_unwatch_writable_failed(slot, generation);
                }
                Completion::Woken => {}
            }
        }
        // Completions that came in meanwhile, from a flush in between, wait for the next pass.
        if self.completions.events.is_empty() {
            self.completions.events = events;
        }
        any
    }

    /// Gives another turn to connections that had more than one.
    fn read_on(&mut self) -> bool {
        let mut unread = std::mem::take(&mut self.unread);
        let any = !unread.is_empty();
        for id in unread.drain(..) {
            let Some(slot) = self.slab.find(id) else { continue };
            slot.unread = false;
            if slot.state != super::slab::State::Dead {
                self.read_and_watch(id.slot, true);
                self.apply_if_much();
            }
        }
        if self.unread.is_empty() {
            self.unread = unread;
        }
        any
    }

    /// Bounds what the connections of one pass can make it hold.
    fn apply_if_much(&mut self) {
        if self.context.queued_bytes() > APPLY_AT_BYTES {
            self.apply_commands();
            // What everybody has got is let go of.
            self.flush_batch();
            self.note_flushed();
        }
    }

    /// Carries out what callbacks asked for; true if there was anything.
    pub(super) fn apply_commands(&mut self) -> bool {
        let mut any = false;
        loop {
            if self.context.mark() == 0 {
                return any;
            }
            if self.batch.holds_arena() {
                self.flush_batch();
                self.batch.clear_arena();
            }
            any = true;
            let mut commands = std::mem::take(&mut self.commands);
            let mut arena = std::mem::take(&mut self.spare_arena);
            self.context.take(&mut commands, &mut arena);
            self.batch.hold_arena(&mut arena);
            self.spare_arena = arena;
            for command in commands.drain(..) {
                self.apply(command);
            }
            self.commands = commands;
            self.end_overflowed();
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Send { connection, bytes } => self.send_direct(connection, Payload::Direct(bytes)),
            Command::SendShared { connection, bytes } => {
                self.send_direct(connection, Payload::Shared(bytes));
            }
            Command::Close { connection, reason } => {
                self.fan_out_before_leaving();
                if self.slab.find(connection).is_some() {
                    if reason.cause == CloseCause::RateLimit {
                        self.stats.rate_limited.add(1);
                    }
                    self.begin_close(connection.slot, reason);
                }
            }
            // Messages that the owner has ordered before it knew that ids are needed come without.
            Command::Subscribe { connection, topic }
                if self.slab.find(connection).is_some_and(|slot| slot.with_ids) =>
            {
                self.subscribe_from(connection, &topic, Start::Now, Notice::Never);
            }
            Command::Subscribe { connection, topic } => self.subscribe(connection, &topic),
            Command::SubscribeFrom { connection, topic, start, notice } => {
                self.subscribe_from(connection, &topic, start, notice);
            }
            Command::ShowIds { connection } => self.show_ids(connection),
            Command::Unsubscribe { connection, topic } => {
                self.fan_out_before_leaving();
                self.unsubscribe_from(connection, &topic);
            }
            Command::Publish { origin, topic, frame } => self.publish(origin, topic, frame),
            Command::ToSibling { route, shard, value } => {
                self.send_to_sibling(route, shard, Application(value));
            }
            Command::Fault { route, connection, fault } => self.on_task_fault(route, connection, fault),
            Command::Release { connection } => self.release_hold(connection),
        }
    }

    /// What was published before a connection leaves its topics still reaches it, as far as it is on this core.
    pub(super) fn fan_out_before_leaving(&mut self) {
        if self.local.has_dirty() {
            self.fan_out();
        }
    }

    fn ring_doorbells(&mut self) {
        let ring = &mut self.ring;
        self.mesh.ring_doorbells(|ring_fd| ring.knock(ring_fd));
    }

    // ---- sleep ----

    fn wait_in_ring(&mut self) -> io::Result<()> {
        let until_due = Duration::from_nanos(self.until_due());
        self.mesh.doorbell().fall_asleep();
        // A message that came before the doorbell was set has nobody to knock for it.
        let result = if self.receive_messages() {
            Ok(())
        } else if self.mesh.has_overflow() {
            self.ring.wait_at_most(OVERFLOW_RETRY.min(until_due), &mut self.completions)
        } else {
            self.ring.wait(until_due, &mut self.completions)
        };
        self.mesh.doorbell().wake_up();
        result
    }

    async fn wait_in_executor(&mut self, parking: &mut Parking) -> io::Result<()> {
        if self.mesh.has_overflow() {
            glommio::timer::sleep(OVERFLOW_RETRY).await;
            return Ok(());
        }
        self.mesh.doorbell().fall_asleep();
        if !self.receive_messages() {
            if self.ring.park(Duration::from_nanos(self.until_due()))? {
                parking.wait(&self.context).await?;
            }
            self.ring.unpark();
        }
        self.mesh.doorbell().wake_up();
        Ok(())
    }
}
