//! What the handles of one core share with its shard: what they may see of connections, and the queue of what
//! they ask for.
//!
//! Invariants:
//! 1. No borrow of anything here outlives a call, and no code of a user runs within one: values of the user's
//!    are dropped outside.
//! 2. A connection costs 12 bytes here; attached values and kept requests cost those who use them.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::core::{CatchPanic, Executor, Overloaded};
use super::{CloseReason, Fault, Message, Outcome, PreparedMessage};
use crate::arena::{Arena, Span};
use crate::by_slot::BySlot;
use crate::compression::{Compressors, Encoding};
use crate::connection_id::ConnectionId;
use crate::frame::Frame;
use crate::position::{Notice, Start};
use crate::topic::{TopicError, TopicName};
use crate::ws::{MessageKind, Request, ServerHeader};

/// Who publishes, on this core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A connection: closed with 1013 when the publish is refused; if it is not open any more, as for `Core`.
    Connection {
        /// The connection.
        id: ConnectionId,
        /// Its route.
        route: u8,
    },
    /// The component of a route: its `on_refused` is called.
    Core {
        /// The route.
        route: u8,
    },
}

/// What handles asked for, in order.
#[derive(Debug)]
pub(crate) enum Command {
    Send {
        connection: ConnectionId,
        bytes: Span,
    },
    SendShared {
        connection: ConnectionId,
        bytes: Rc<[u8]>,
    },
    Close {
        connection: ConnectionId,
        reason: CloseReason,
    },
    Subscribe {
        connection: ConnectionId,
        topic: TopicName,
    },
    SubscribeFrom {
        connection: ConnectionId,
        topic: TopicName,
        start: Start,
        notice: Notice,
    },
    /// Messages of topics are to come with their ids.
    ShowIds {
        connection: ConnectionId,
    },
    Unsubscribe {
        connection: ConnectionId,
        topic: TopicName,
    },
    Publish {
        origin: Origin,
        topic: TopicName,
        frame: Arc<Frame>,
    },
    ToSibling {
        route: u8,
        shard: usize,
        value: Box<dyn Any + Send>,
    },
    /// A task failed.
    Fault {
        route: u8,
        connection: Option<ConnectionId>,
        fault: Fault,
    },
    /// From the shard itself: the opening callback is over, its subscriptions stand before this.
    Release {
        connection: ConnectionId,
    },
}

/// What handles can see of a connection.
#[derive(Clone, Copy, Default)]
struct Visible {
    generation: u32,
    /// The peer's address if it is one of IPv4; unspecified for any other, which stands in a table of its own.
    ip: [u8; 4],
    port: u16,
    encoding: Encoding,
    /// [`CLOSING`] and [`SUBSCRIBED`].
    marks: u8,
}

/// Mark of a connection that is closing.
const CLOSING: u8 = 1;

/// Mark of a connection with one subscription; a number other than none or one stands in a table of its own.
const SUBSCRIBED: u8 = 2;

const _: () = assert!(size_of::<Visible>() == 12, "what every connection costs for the sake of handles");

/// What the handles of one core share with its shard.
pub(crate) struct Context {
    shard: u16,
    executor: Box<dyn Executor>,
    compressors: RefCell<Compressors>,
    visible: RefCell<Vec<Visible>>,
    /// Peers whose address is not of IPv4, by slot.
    long_peers: RefCell<BySlot<SocketAddr>>,
    /// Subscriptions of connections that have not none or one of them, by slot.
    subscriptions: RefCell<BySlot<i32>>,
    /// Subscriptions that a connection may have.
    max_subscriptions: Cell<usize>,
    /// Subscriptions that were refused for that.
    refused_subscriptions: Cell<u64>,
    /// Attached values, by slot; as long as the last slot that has one.
    data: RefCell<Vec<Option<Rc<dyn Any>>>>,
    /// Requests of components that keep them, by slot.
    requests: RefCell<BySlot<Rc<Request>>>,
    /// Bytes that wait for connections that read too slowly, by slot.
    queued: RefCell<BySlot<Rc<Cell<usize>>>>,
    commands: RefCell<Vec<Command>>,
    arena: RefCell<Arena>,
    /// Bytes of the frames among the commands.
    publish_bytes: Cell<usize>,
    /// Messages to the siblings on each shard that are sure to have a place.
    credits: Vec<Cell<usize>>,
    /// Wakes the shard's driver, while it waits in the executor.
    parked: Cell<Option<Waker>>,
}

impl Context {
    /// For shard `shard` of `shards`; `credit` messages may wait for each of the others.
    pub(crate) fn new(
        shard: u16,
        shards: usize,
        credit: usize,
        compressors: Compressors,
        executor: Box<dyn Executor>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard,
            executor,
            compressors: RefCell::new(compressors),
            visible: RefCell::default(),
            long_peers: RefCell::default(),
            subscriptions: RefCell::default(),
            max_subscriptions: Cell::new(usize::MAX),
            refused_subscriptions: Cell::new(0),
            data: RefCell::default(),
            requests: RefCell::default(),
            queued: RefCell::default(),
            commands: RefCell::default(),
            arena: RefCell::default(),
            publish_bytes: Cell::new(0),
            credits: (0..shards).map(|_| Cell::new(credit)).collect(),
            parked: Cell::new(None),
        })
    }

    /// Calls `work` with the core's compressors.
    pub(crate) fn with_compressors<R>(&self, work: impl FnOnce(&mut Compressors) -> R) -> R {
        work(&mut self.compressors.borrow_mut())
    }

    pub(crate) fn shard(&self) -> u16 {
        self.shard
    }

    pub(super) fn shards(&self) -> usize {
        self.credits.len()
    }

    pub(super) fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    // ---- connections, as handles see them ----

    /// Makes a connection visible to handles; with a request to keep, or none.
    pub(crate) fn opened(
        &self,
        id: ConnectionId,
        encoding: Encoding,
        peer: Option<SocketAddr>,
        request: Option<Rc<Request>>,
    ) {
        let (ip, port) = match peer {
            Some(SocketAddr::V4(peer)) => (peer.ip().octets(), peer.port()),
            Some(peer) => {
                self.long_peers.borrow_mut().insert(id.slot, peer);
                <_>::default()
            }
            None => <_>::default(),
        };
        let mut visible = self.visible.borrow_mut();
        let slot = id.slot as usize;
        if visible.len() <= slot {
            visible.resize_with(slot + 1, Visible::default);
        }
        visible[slot] = Visible { generation: id.generation, ip, port, encoding, marks: 0 };
        if let Some(request) = request {
            self.requests.borrow_mut().insert(id.slot, request);
        }
    }

    /// Marks a connection as closing; false if it is already, or gone.
    pub(crate) fn begin_closing(&self, id: ConnectionId) -> bool {
        self.with_visible(id, |visible| {
            let first = visible.marks & CLOSING == 0;
            visible.marks |= CLOSING;
            first
        })
        .unwrap_or(false)
    }

    /// Forgets a connection; its handles do nothing from now on.
    pub(crate) fn gone(&self, id: ConnectionId) {
        let known = self.with_visible(id, |visible| {
            visible.marks = CLOSING;
            visible.generation = visible.generation.wrapping_add(1);
        });
        if known.is_none() {
            return;
        }
        self.long_peers.borrow_mut().remove(&id.slot);
        self.subscriptions.borrow_mut().remove(&id.slot);
        let request = self.requests.borrow_mut().remove(&id.slot);
        let data = self.data.borrow_mut().get_mut(id.slot as usize).and_then(Option::take);
        // Dropped only here, outside of the borrows: the values' own drop may use handles.
        drop((request, data));
    }

    fn with_visible<R>(&self, id: ConnectionId, look: impl FnOnce(&mut Visible) -> R) -> Option<R> {
        let mut visible = self.visible.borrow_mut();
        visible.get_mut(id.slot as usize).filter(|visible| visible.generation == id.generation).map(look)
    }

    pub(super) fn is_known(&self, id: ConnectionId) -> bool {
        self.with_visible(id, |_| ()).is_some()
    }

    pub(super) fn is_closing(&self, id: ConnectionId) -> bool {
        self.with_visible(id, |visible| visible.marks & CLOSING != 0).unwrap_or(true)
    }

    pub(super) fn peer(&self, id: ConnectionId) -> Option<SocketAddr> {
        let (ip, port) = self.with_visible(id, |visible| (visible.ip, visible.port))?;
        if (ip, port) == <_>::default() {
            return self.long_peers.borrow().get(&id.slot).copied();
        }
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
    }

    pub(super) fn request(&self, id: ConnectionId) -> Option<Rc<Request>> {
        self.is_known(id).then(|| self.requests.borrow().get(&id.slot).cloned()).flatten()
    }

    pub(super) fn data(&self, id: ConnectionId) -> Option<Rc<dyn Any>> {
        self.is_known(id).then(|| self.data.borrow().get(id.slot as usize).cloned().flatten()).flatten()
    }

    pub(super) fn set_data(&self, id: ConnectionId, data: Rc<dyn Any>) {
        if !self.is_known(id) {
            return;
        }
        let slot = id.slot as usize;
        let mut all = self.data.borrow_mut();
        if all.len() <= slot {
            all.resize_with(slot + 1, || None);
        }
        let earlier = all[slot].replace(data);
        // The earlier value is dropped outside of the borrow: its own drop may use handles.
        drop(all);
        drop(earlier);
    }

    /// Lets handles see a send queue's length, until [`Context::unshow_queue`].
    pub(crate) fn show_queue(&self, id: ConnectionId, bytes: Rc<Cell<usize>>) {
        self.queued.borrow_mut().insert(id.slot, bytes);
    }

    /// The connection has no send queue any more.
    pub(crate) fn unshow_queue(&self, slot: u32) {
        self.queued.borrow_mut().remove(&slot);
    }

    pub(super) fn send_queue_bytes(&self, id: ConnectionId) -> usize {
        if !self.is_known(id) {
            return 0;
        }
        self.queued.borrow().get(&id.slot).map_or(0, |bytes| bytes.get())
    }

    // ---- what handles ask for ----

    /// Encodes a message for a connection and queues it, unless it is closing.
    pub(super) fn send(&self, id: ConnectionId, message: Message<'_>) {
        let Some(encoding) = self.encoding_of_open(id) else { return };
        let (kind, payload): (MessageKind, _) = (message.kind(), message.as_bytes());
        let mut compressors = self.compressors.borrow_mut();
        match compressors.compress(encoding, kind, payload) {
            Some((header, compressed)) => self.send_bytes(id, header.as_bytes(), compressed),
            None => {
                let header = ServerHeader::new(kind.opcode(), false, payload.len());
                self.send_bytes(id, header.as_bytes(), payload);
            }
        }
    }

    pub(super) fn send_prepared(&self, id: ConnectionId, message: &PreparedMessage) {
        if let Some(encoding) = self.encoding_of_open(id) {
            let bytes = message.bytes(encoding, &mut self.compressors.borrow_mut());
            self.push(Command::SendShared { connection: id, bytes });
        }
    }

    fn encoding_of_open(&self, id: ConnectionId) -> Option<Encoding> {
        self.with_visible(id, |visible| (visible.marks & CLOSING == 0).then_some(visible.encoding)).flatten()
    }

    /// Queues encoded bytes for a connection.
    pub(crate) fn send_bytes(&self, connection: ConnectionId, head: &[u8], tail: &[u8]) {
        let span = self.arena.borrow_mut().append(head, tail);
        if let Some(Command::Send { connection: last, bytes }) = self.commands.borrow_mut().last_mut() {
            if *last == connection && bytes.extend(span) {
                return;
            }
        }
        self.push(Command::Send { connection, bytes: span });
    }

    /// Asks for a subscription with a command of that kind, unless the connection is gone.
    pub(super) fn subscribe(&self, connection: ConnectionId, command: Command) -> Result<(), TopicError> {
        let Some(marks) = self.with_visible(connection, |visible| visible.marks) else {
            return Ok(());
        };
        if usize::try_from(self.subscriptions(connection, marks)).unwrap_or(0) >= self.max_subscriptions.get()
        {
            self.refused_subscriptions.set(self.refused_subscriptions.get() + 1);
            return Err(TopicError::TooMany);
        }
        self.count_subscription(connection, 1);
        self.push(command);
        Ok(())
    }

    pub(super) fn unsubscribe(&self, connection: ConnectionId, topic: TopicName) {
        self.count_subscription(connection, -1);
        self.push(Command::Unsubscribe { connection, topic });
    }

    fn subscriptions(&self, id: ConnectionId, marks: u8) -> i32 {
        match marks & SUBSCRIBED {
            0 => self.subscriptions.borrow().get(&id.slot).copied().unwrap_or(0),
            _ => 1,
        }
    }

    /// Counts a subscription more or less. Handles count what they ask for; the shard counts back what has no
    /// effect, such as a second subscription to a topic. In between the number may be off, even below zero.
    pub(crate) fn count_subscription(&self, id: ConnectionId, by: i32) {
        let Some(marks) = self.with_visible(id, |visible| visible.marks) else { return };
        let number = self.subscriptions(id, marks).saturating_add(by);
        match number {
            0 | 1 => drop(self.subscriptions.borrow_mut().remove(&id.slot)),
            _ => drop(self.subscriptions.borrow_mut().insert(id.slot, number)),
        }
        self.with_visible(id, |visible| {
            visible.marks = visible.marks & !SUBSCRIBED | if number == 1 { SUBSCRIBED } else { 0 };
        });
    }

    /// Says how many subscriptions a connection may have.
    pub(crate) fn set_max_subscriptions(&self, most: usize) {
        self.max_subscriptions.set(most);
    }

    /// Subscriptions that have been refused.
    pub(crate) fn refused_subscriptions(&self) -> u64 {
        self.refused_subscriptions.get()
    }

    pub(super) fn publish(&self, topic: TopicName, frame: Arc<Frame>, origin: Origin) {
        self.publish_bytes.set(self.publish_bytes.get() + frame.memory_bytes());
        self.push(Command::Publish { origin, topic, frame });
    }

    pub(super) fn has_credit(&self, shard: usize) -> bool {
        self.credits.get(shard).is_some_and(|credit| credit.get() > 0)
    }

    /// Says how many more messages to the siblings on a shard are sure to have a place.
    pub(crate) fn set_credit(&self, shard: usize, messages: usize) {
        self.credits[shard].set(messages);
    }

    pub(super) fn send_to_sibling(
        &self,
        route: u8,
        shard: usize,
        value: Box<dyn Any + Send>,
    ) -> Result<(), Overloaded> {
        let Some(credit) = self.credits.get(shard).filter(|_| shard != usize::from(self.shard)) else {
            return Ok(());
        };
        credit.set(credit.get().checked_sub(1).ok_or(Overloaded)?);
        self.push(Command::ToSibling { route, shard, value });
        Ok(())
    }

    /// Runs a task for a component, and for one of its connections; its failure becomes a [`Command::Fault`].
    pub(super) fn spawn(
        self: &Rc<Self>,
        route: u8,
        connection: Option<ConnectionId>,
        task: impl Future<Output = Outcome> + 'static,
    ) {
        let context = self.clone();
        let task = CatchPanic::new(task);
        self.executor.spawn(Box::pin(async move {
            let fault = match task.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => Fault::Error(error),
                Err(panic) => Fault::of_panic(panic),
            };
            context.push(Command::Fault { route, connection, fault });
        }));
    }

    pub(crate) fn push(&self, command: Command) {
        self.commands.borrow_mut().push(command);
        if let Some(driver) = self.parked.take() {
            driver.wake();
        }
    }

    // ---- the shard's side of the queue ----

    /// Place in the queue, for [`Context::any_since`].
    pub(crate) fn mark(&self) -> usize {
        self.commands.borrow().len()
    }

    /// Whether a command queued since the mark is of a kind. Commands that joined an older one do not count.
    pub(crate) fn any_since(&self, mark: usize, is: impl FnMut(&Command) -> bool) -> bool {
        self.commands.borrow().get(mark..).is_some_and(|queued| queued.iter().any(is))
    }

    /// Bytes queued and not yet taken by the shard: messages, and the commands themselves.
    pub(crate) fn queued_bytes(&self) -> usize {
        let commands = self.commands.borrow().len() * size_of::<Command>();
        self.arena.borrow().len() + self.publish_bytes.get() + commands
    }

    /// Swaps the queue for empty ones: afterwards the caller's hold what was asked for so far. False when
    /// there was nothing.
    pub(crate) fn take(&self, commands: &mut Vec<Command>, arena: &mut Arena) -> bool {
        debug_assert!(commands.is_empty() && arena.is_empty());
        if self.commands.borrow().is_empty() {
            return false;
        }
        std::mem::swap(commands, &mut self.commands.borrow_mut());
        std::mem::swap(arena, &mut self.arena.borrow_mut());
        self.publish_bytes.set(0);
        true
    }

    /// Has the driver woken by the next command. False when one is waiting already.
    pub(crate) fn wake_on_command(&self, driver: &Waker) -> bool {
        if self.mark() > 0 {
            return false;
        }
        self.parked.set(Some(driver.clone()));
        true
    }

    /// The driver is awake.
    pub(crate) fn awake(&self) {
        self.parked.set(None);
    }
}
