//! The lock-free rings between cores: one bounded SPSC ring per ordered pair of shards, and one each way
//! between the control thread and every shard.
//!
//! Invariants:
//! 1. A sender never blocks and never spins. What a full ring cannot take waits in the sender's own overflow
//!    queue and follows, in order, as the receiver makes room.
//! 2. [`Mesh::has_room`] is asked before a publish is accepted, so that an accepted message always has a
//!    place. Messages that keep books (joins, refusals, counts) may exceed the bound: there are at most as
//!    many of them as there are topics and connections.
//! 3. A sleeping receiver is woken at most once per sleep: [`Doorbell`].
//!
//! A [`Mesh`] lives on its shard, a [`ControlLink`] on the control thread.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

use glommio::channels::spsc_queue::{self, Consumer, Producer};

use super::message::{ToControl, ToShard};
use super::ring::{self, Knocker};
use super::stats::ShardStats;

/// Messages that one ring holds.
pub const RING_MESSAGES: usize = 1024;

/// Messages that may wait in one sender's overflow behind a full ring; beyond it a publish is refused.
pub const OVERFLOW_MESSAGES: usize = 16 * 1024;

/// Payload bytes that may wait in one sender's overflow; beyond it a publish is refused.
pub const OVERFLOW_BYTES: usize = 32 * 1024 * 1024;

/// What other cores need to wake a shard.
#[derive(Debug)]
pub struct Doorbell {
    ring_fd: AtomicI32,
    asleep: AtomicBool,
}

impl Doorbell {
    fn new() -> Self {
        Self { ring_fd: AtomicI32::new(-1), asleep: AtomicBool::new(false) }
    }

    /// Makes the shard reachable. Called once, on the shard, before it first sleeps.
    pub(super) fn install(&self, ring_fd: RawFd) {
        self.ring_fd.store(ring_fd, Ordering::Release);
    }

    /// Announces sleep. The caller must look at its rings once more after this and before it sleeps: the
    /// fence here pairs with the one in [`Doorbell::must_knock`], so either the sender sees the sleeper or
    /// the sleeper sees the message.
    pub(super) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub(super) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// After messages were pushed: the ring to knock at, if its shard sleeps and nobody else has knocked.
    fn must_knock(&self) -> Option<RawFd> {
        fence(Ordering::SeqCst);
        let asleep = self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::SeqCst);
        let ring_fd = self.ring_fd.load(Ordering::Acquire);
        (asleep && ring_fd >= 0).then_some(ring_fd)
    }
}

/// Wakes the control thread: an event descriptor that it polls, written at most once per look.
#[derive(Debug)]
struct ControlBell {
    event: File,
    rung: AtomicBool,
}

struct Outgoing {
    ring: Producer<ToShard>,
    overflow: VecDeque<ToShard>,
    overflow_bytes: usize,
    /// Messages in the overflow that had to be asked for a place.
    overflow_places: usize,
    pushed: bool,
}

/// How far a pass has come through the rings to a shard.
#[derive(Debug, Default)]
pub struct Cursor {
    sender: usize,
    taken: usize,
}

/// One shard's ends of all its rings.
pub struct Mesh {
    shard: usize,
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Consumer<ToShard>>,
    to_control: Producer<ToControl>,
    control_overflow: VecDeque<ToControl>,
    control_pushed: bool,
    doorbells: Arc<[Doorbell]>,
    control_bell: Arc<ControlBell>,
    stats: Arc<ShardStats>,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Number of this shard.
    #[must_use]
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.outgoing.len()
    }

    /// This shard's doorbell.
    #[must_use]
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbells[self.shard]
    }

    /// Whether one more message of a publish to shard `to` has an assured place.
    #[must_use]
    pub fn has_room(&self, to: usize) -> bool {
        self.outgoing[to].as_ref().is_none_or(|outgoing| {
            outgoing.overflow_places < OVERFLOW_MESSAGES && outgoing.overflow_bytes < OVERFLOW_BYTES
        })
    }

    /// Messages to shard `to` that may still wait in the overflow behind its ring.
    #[must_use]
    pub fn room(&self, to: usize) -> usize {
        match (&self.outgoing[to], self.has_room(to)) {
            (Some(outgoing), true) => OVERFLOW_MESSAGES - outgoing.overflow_places,
            _ => 0,
        }
    }

    /// Sends to another shard; in order with all that was sent to it before.
    pub fn send(&mut self, to: usize, message: ToShard) {
        let Some(outgoing) = self.outgoing[to].as_mut() else {
            debug_assert!(false, "a shard does not send to itself");
            return;
        };
        outgoing.pushed = true;
        let refused = match outgoing.overflow.is_empty() {
            true => outgoing.ring.try_push(message),
            false => Some(message),
        };
        if let Some(message) = refused {
            self.stats.ring_full[to].add(1);
            outgoing.overflow_bytes += message.payload_bytes();
            outgoing.overflow_places += usize::from(message.takes_place());
            outgoing.overflow.push_back(message);
        }
    }

    /// Sends to the control thread.
    pub fn send_to_control(&mut self, message: ToControl) {
        self.control_pushed = true;
        let refused = match self.control_overflow.is_empty() {
            true => self.to_control.try_push(message),
            false => Some(message),
        };
        self.control_overflow.extend(refused);
    }

    /// Takes the next message that has arrived from anyone. `cursor` begins at its default in each pass, which
    /// takes each sender's messages in a row and at most a ring full of them, however fast it sends.
    pub fn receive(&mut self, cursor: &mut Cursor) -> Option<ToShard> {
        while let Some(incoming) = self.incoming.get(cursor.sender) {
            if cursor.taken < RING_MESSAGES {
                if let Some(message) = incoming.try_pop() {
                    cursor.taken += 1;
                    return Some(message);
                }
            }
            *cursor = Cursor { sender: cursor.sender + 1, taken: 0 };
        }
        None
    }

    /// Moves what waits in overflow queues into rings that have room again.
    pub fn retry_overflow(&mut self) {
        for outgoing in self.outgoing.iter_mut().flatten() {
            while let Some(message) = outgoing.overflow.pop_front() {
                let (bytes, place) = (message.payload_bytes(), message.takes_place());
                if let Some(message) = outgoing.ring.try_push(message) {
                    outgoing.overflow.push_front(message);
                    break;
                }
                outgoing.overflow_bytes -= bytes;
                outgoing.overflow_places -= usize::from(place);
                outgoing.pushed = true;
            }
        }
        while let Some(message) = self.control_overflow.pop_front() {
            if let Some(message) = self.to_control.try_push(message) {
                self.control_overflow.push_front(message);
                break;
            }
            self.control_pushed = true;
        }
    }

    /// Whether something waits for a receiver to make room.
    #[must_use]
    pub fn has_overflow(&self) -> bool {
        !self.control_overflow.is_empty() || self.outgoing.iter().flatten().any(|o| !o.overflow.is_empty())
    }

    /// Calls `knock` with the ring of each sleeping shard that was sent something since the last call, and
    /// wakes the control thread if it was.
    pub fn ring_doorbells(&mut self, mut knock: impl FnMut(RawFd)) {
        for (to, outgoing) in self.outgoing.iter_mut().enumerate() {
            let Some(outgoing) = outgoing else { continue };
            if std::mem::take(&mut outgoing.pushed) {
                if let Some(ring_fd) = self.doorbells[to].must_knock() {
                    knock(ring_fd);
                }
            }
        }
        if std::mem::take(&mut self.control_pushed) && !self.control_bell.rung.swap(true, Ordering::SeqCst) {
            // The counter of an event descriptor cannot overflow by single steps: nothing to handle.
            let _ = (&self.control_bell.event).write(&1_u64.to_ne_bytes());
        }
    }
}

/// The control thread's ends of its rings.
pub struct ControlLink {
    to_shards: Vec<Producer<ToShard>>,
    from_shards: Vec<Consumer<ToControl>>,
    doorbells: Arc<[Doorbell]>,
    knocker: Knocker,
    bell: Arc<ControlBell>,
    stats: Vec<Arc<ShardStats>>,
}

impl fmt::Debug for ControlLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlLink").field("shards", &self.to_shards.len()).finish_non_exhaustive()
    }
}

impl ControlLink {
    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.to_shards.len()
    }

    /// Counters of all shards.
    #[must_use]
    pub fn stats(&self) -> &[Arc<ShardStats>] {
        &self.stats
    }

    /// Sends to a shard and wakes it if it sleeps.
    ///
    /// # Errors
    /// Gives the message back when the shard's ring is full: it cannot take more now.
    pub fn try_send(&mut self, shard: usize, message: ToShard) -> Result<(), ToShard> {
        match self.to_shards[shard].try_push(message) {
            Some(message) => Err(message),
            None => {
                if let Some(ring_fd) = self.doorbells[shard].must_knock() {
                    self.knocker.knock(ring_fd);
                }
                Ok(())
            }
        }
    }

    /// Takes the next message from any shard.
    pub fn try_receive(&mut self) -> Option<ToControl> {
        self.from_shards.iter().find_map(Consumer::try_pop)
    }

    /// Readable when a shard has sent something since [`ControlLink::listen`] was last called. Its eight bytes
    /// must be read before the next wait.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.event.as_fd()
    }

    /// Asks shards to ring again. To be called after the bell was heard and read, and before
    /// [`ControlLink::try_receive`].
    pub fn listen(&self) {
        self.bell.rung.store(false, Ordering::SeqCst);
    }
}

/// Makes all rings for the given shards.
///
/// # Errors
/// When the kernel refuses an event descriptor or an io_uring instance.
pub fn connect(stats: &[Arc<ShardStats>]) -> io::Result<(Vec<Mesh>, ControlLink)> {
    let shards = stats.len();
    let doorbells: Arc<[Doorbell]> = (0..shards).map(|_| Doorbell::new()).collect();
    let bell = Arc::new(ControlBell { event: File::from(ring::event_fd()?), rung: AtomicBool::new(false) });
    let mut incoming: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
    let (mut to_shards, mut from_shards) = (Vec::new(), Vec::new());
    let mut meshes = Vec::new();
    for shard in 0..shards {
        let outgoing = (0..shards).map(|to| {
            (to != shard).then(|| {
                let (ring, consumer) = spsc_queue::make(RING_MESSAGES);
                incoming[to].push(consumer);
                Outgoing {
                    ring,
                    overflow: VecDeque::new(),
                    overflow_bytes: 0,
                    overflow_places: 0,
                    pushed: false,
                }
            })
        });
        let outgoing = outgoing.collect();
        let (to_control, consumer) = spsc_queue::make(RING_MESSAGES);
        from_shards.push(consumer);
        let (producer, from_control) = spsc_queue::make(RING_MESSAGES);
        to_shards.push(producer);
        incoming[shard].push(from_control);
        meshes.push(Mesh {
            shard,
            outgoing,
            incoming: Vec::new(),
            to_control,
            control_overflow: VecDeque::new(),
            control_pushed: false,
            doorbells: doorbells.clone(),
            control_bell: bell.clone(),
            stats: stats[shard].clone(),
        });
    }
    for (mesh, incoming) in meshes.iter_mut().zip(incoming) {
        mesh.incoming = incoming;
    }
    let stats = stats.to_vec();
    Ok((meshes, ControlLink { to_shards, from_shards, doorbells, knocker: Knocker::new()?, bell, stats }))
}
