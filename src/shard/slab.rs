//! The connections of one shard: small slots with generations.
//!
//! A slot holds all that an idle connection costs in user space. What a connection needs only for a while (a
//! partial message, a send queue) is boxed and goes away again.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::outbound::Outbound;
use crate::compression::Encoding;
use crate::connection_id::ConnectionId;
use crate::ws::Session;

/// Life of a connection. Every change of state is in [`super::connection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody's; in the free list.
    Free,
    /// Accepted; the request is not complete.
    Handshake,
    /// Open for messages.
    Open,
    /// We sent a close frame and wait for the peer's.
    Closing,
    /// All is said: what is queued goes out, then the write side ends; what comes in is thrown away until the
    /// peer ends too or the time is up.
    Linger,
    /// As `Linger`, but the connection ends as soon as what is queued has gone out.
    Finishing,
    /// Given up; waits for the kernel to end the watches.
    Dead,
}

/// The limit that a connection was accepted beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverLimit {
    /// Connections of the process.
    Process,
    /// Connections of one address.
    Address,
    /// New connections in a second.
    Rate,
}

/// Subscriptions of a connection: where it stands in the list of each topic.
#[derive(Debug, Default)]
pub(super) enum Subscriptions {
    /// None.
    #[default]
    None,
    /// One: nothing is boxed for it.
    One(Subscription),
    /// Several.
    #[allow(clippy::box_collection, reason = "a slot has room for one pointer, not for three words")]
    Many(Box<Vec<Subscription>>),
}

/// A place in a topic's list of subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    /// The topic's number on this shard.
    pub(super) topic: u32,
    /// Index in its list.
    pub(super) position: u32,
}

impl Subscriptions {
    pub(super) fn as_slice(&self) -> &[Subscription] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Subscription] {
        match self {
            Self::None => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => many,
        }
    }

    pub(super) fn push(&mut self, subscription: Subscription) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(subscription),
            Self::One(one) => Self::Many(Box::new(vec![one, subscription])),
            Self::Many(mut many) => {
                many.push(subscription);
                Self::Many(many)
            }
        };
    }

    pub(super) fn remove(&mut self, topic: u32) -> Option<Subscription> {
        match self {
            Self::One(one) if one.topic == topic => {
                let found = *one;
                *self = Self::None;
                Some(found)
            }
            Self::Many(many) => {
                let index = many.iter().position(|subscription| subscription.topic == topic)?;
                Some(many.swap_remove(index))
            }
            _ => None,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) socket: Option<TcpStream>,
    pub(super) generation: u32,
    /// Batch that holds an unsubmitted send of this connection, if it is the current one.
    pub(super) staged_in: u32,
    pub(super) state: State,
    /// How its messages are compressed.
    pub(super) encoding: Encoding,
    /// Messages of topics go to it with their ids.
    pub(super) with_ids: bool,
    /// It is told of its place in a topic when it has missed something.
    pub(super) wants_notices: bool,
    /// Index of the route that took the request.
    pub(super) route: u8,
    pub(super) watching_readable: bool,
    pub(super) watching_writable: bool,
    /// Passed by in the broadcast under way, whose publisher it is.
    pub(super) excluded: bool,
    /// Something came in since the keep-alive last looked.
    pub(super) heard: bool,
    /// It is in the shard's list of connections that are read from later.
    pub(super) unread: bool,
    /// A ping is unanswered.
    pub(super) pinged: bool,
    /// Accepted beyond a limit: its request is answered with 503.
    pub(super) over_limit: Option<OverLimit>,
    /// Of a trusted proxy, which has yet to say for whom it connects.
    pub(super) awaits_proxy_header: bool,
    /// The last word is queued: nothing may follow it.
    pub(super) sealed: bool,
    /// The write side has been shut down.
    pub(super) write_ended: bool,
    /// The peer has ended its side.
    pub(super) peer_ended: bool,
    pub(super) session: Session,
    pub(super) outbound: Option<Box<Outbound>>,
    pub(super) subscriptions: Subscriptions,
}

const _: () = assert!(size_of::<Slot>() <= 64, "an idle connection costs one cache line at most");

impl Slot {
    /// Whether its request has yet to be answered. An open connection whose 101 is still held back has not been either.
    pub(super) fn is_unanswered(&self) -> bool {
        let held = self.outbound.as_ref().is_some_and(|outbound| outbound.holds > 0);
        self.state == State::Handshake || (self.state == State::Open && held)
    }

    fn vacant() -> Self {
        Self {
            socket: None,
            generation: 0,
            staged_in: u32::MAX,
            state: State::Free,
            encoding: Encoding::PLAIN,
            with_ids: false,
            wants_notices: false,
            route: 0,
            watching_readable: false,
            watching_writable: false,
            excluded: false,
            heard: false,
            unread: false,
            pinged: false,
            over_limit: None,
            awaits_proxy_header: false,
            sealed: false,
            write_ended: false,
            peer_ended: false,
            session: Session::default(),
            outbound: None,
            subscriptions: Subscriptions::None,
        }
    }

    /// The form in which messages of topics go to it.
    pub(super) fn form(&self) -> Encoding {
        if self.with_ids { Encoding::WITH_ID } else { self.encoding }
    }

    /// Address of the other end, for the log: asked of the kernel.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.socket.as_ref().and_then(|socket| socket.peer_addr().ok())
    }

    /// The socket, as long as there is one.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}

/// All slots of a shard.
#[derive(Debug)]
pub(super) struct Slab {
    shard: u16,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slab {
    pub(super) fn new(shard: u16) -> Self {
        Self { shard, slots: Vec::new(), free: Vec::new() }
    }

    /// Slots ever used; the valid indices are below.
    pub(super) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Slots in use.
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a socket into a free slot, in state [`State::Handshake`].
    pub(super) fn insert(&mut self, socket: TcpStream) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::vacant());
            self.len() - 1
        });
        let generation = self[index].generation;
        self[index] = Slot { socket: Some(socket), generation, state: State::Handshake, ..Slot::vacant() };
        index
    }

    /// Frees a slot and gives its socket back; late names of the connection are void from now on.
    pub(super) fn remove(&mut self, index: u32) -> Option<TcpStream> {
        let slot = &mut self[index];
        debug_assert!(!slot.watching_readable && !slot.watching_writable);
        let generation = slot.generation.wrapping_add(1);
        let socket = slot.socket.take();
        *slot = Slot { generation, ..Slot::vacant() };
        self.free.push(index);
        socket
    }

    /// Full name of the connection in a slot.
    pub(super) fn id(&self, index: u32) -> ConnectionId {
        ConnectionId { shard: self.shard, slot: index, generation: self[index].generation }
    }

    /// The slot of a connection that still is the one of that name.
    pub(super) fn find(&mut self, id: ConnectionId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        (slot.generation == id.generation && slot.state != State::Free).then_some(slot)
    }
}

impl std::ops::Index<u32> for Slab {
    type Output = Slot;

    fn index(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Slab {
    fn index_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn socket() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn a_late_name_finds_nothing() {
        let mut slab = Slab::new(3);
        let first = slab.insert(socket());
        let id = slab.id(first);
        assert!(slab.find(id).is_some());
        assert!(slab.remove(first).is_some());
        assert!(slab.find(id).is_none());
        let second = slab.insert(socket());
        assert_eq!(second, first, "a free slot is used again");
        assert!(slab.find(id).is_none());
        assert_ne!(slab.id(second), id);
        assert_eq!((slab.len(), slab.in_use()), (1, 1));
    }

    #[test]
    fn subscriptions_are_found_again() {
        let mut subscriptions = Subscriptions::default();
        for topic in 0..3 {
            subscriptions.push(Subscription { topic, position: topic * 10 });
        }
        assert_eq!(subscriptions.as_slice().len(), 3);
        assert_eq!(subscriptions.remove(1), Some(Subscription { topic: 1, position: 10 }));
        assert_eq!(subscriptions.remove(1), None);
        subscriptions.as_mut_slice().iter_mut().for_each(|subscription| subscription.position += 1);
        assert_eq!(subscriptions.remove(2).unwrap().position, 21);
        assert_eq!(subscriptions.remove(0).unwrap().position, 1);
        assert!(subscriptions.as_slice().is_empty());
    }
}
