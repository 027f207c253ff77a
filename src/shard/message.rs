//! What crosses between cores: owned messages and nothing else.
//!
//! Every ordered pair of shards has one bounded ring, and so has the control thread with each shard in both
//! directions. A message is moved, never shared; the one thing several cores hold at once is an immutable
//! [`Frame`] behind its reference count.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use hdrhistogram::Histogram;

use super::Settings;
use crate::compression::Encodings;
pub use crate::connection_id::ConnectionId;
pub use crate::frame::Frame;
use crate::position::{Position, Start};
use crate::topic::TopicName;

/// Who published, and so who is told when the shards cannot take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publisher {
    /// A WebSocket connection: closed with 1013 (try again later) when refused. If it is not open any more, its component
    /// is told.
    Connection {
        /// The connection.
        id: ConnectionId,
        /// Its route.
        route: u8,
    },
    /// A component that publishes for itself: told so when refused.
    Core {
        /// Its shard.
        shard: u16,
        /// Its route.
        route: u8,
    },
    /// The control thread: answered with [`ToControl::Published`] in any case.
    Control {
        /// Number of its request.
        request: u64,
        /// For whom it asks.
        source: Source,
    },
}

/// For whom the control thread publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A request to the control port.
    Http,
    /// Another thread of this program.
    Thread,
}

const _: () = assert!(size_of::<Publisher>() <= 16, "it travels with every message");

/// To a shard, from another shard or from the control thread.
#[derive(Debug)]
pub enum ToShard {
    /// To the topic's owner: give it an offset and hand it to every shard with subscribers.
    Publish {
        /// The topic.
        topic: TopicName,
        /// The message.
        frame: Arc<Frame>,
        /// Whom to tell.
        publisher: Publisher,
    },
    /// From the owner to a shard with subscribers.
    Deliver {
        /// The topic.
        topic: TopicName,
        /// The message.
        frame: Arc<Frame>,
    },
    /// To the owner: how many subscribers this shard has now. The first count above zero is answered with
    /// [`ToShard::Joined`] or [`ToShard::JoinRefused`].
    Subscribers {
        /// The topic.
        topic: TopicName,
        /// The shard that reports.
        shard: u16,
        /// Its subscribers.
        count: u32,
        /// Compressed encodings that they use.
        encodings: Encodings,
        /// Number that the shard gave to this stay in the topic.
        stay: u64,
    },
    /// From the owner: every message published from now on reaches this shard.
    Joined {
        /// The topic.
        topic: TopicName,
        /// The stay that is confirmed; the shard may have left and come back since.
        stay: u64,
    },
    /// To the owner: send a subscriber of this shard what it has missed. Sent behind the report of the subscriber, so that
    /// whatever is not in the answer is delivered to the shard behind the answer.
    Replay(ReplayRequest),
    /// From the owner: what was asked for.
    Replayed(Box<Replayed>),
    /// From the owner: the topic is new and has no place; nothing published to it reaches this shard.
    JoinRefused {
        /// The topic.
        topic: TopicName,
        /// The stay that is refused.
        stay: u64,
    },
    /// From the owner to the publisher's shard: the message was not accepted and reached nobody.
    Refused {
        /// The publisher; never the control thread, which is answered directly.
        publisher: Publisher,
        /// The topic.
        topic: TopicName,
    },
    /// From a component to the instance of it on another shard.
    Sibling {
        /// The route of the component.
        route: u8,
        /// The shard that sends.
        from: u16,
        /// The value.
        value: Application,
    },
    /// From the control thread to the topic's owner: answer with [`ToControl::Inspected`]. The topic is not made
    /// by it.
    Inspect {
        /// The topic.
        topic: TopicName,
        /// Number of the request.
        request: u64,
    },
    /// From the control thread to the topic's owner: have the topic's subscribers closed on every shard, then
    /// answer with [`ToControl::Deleted`].
    Delete {
        /// The topic.
        topic: TopicName,
        /// Number of the request.
        request: u64,
    },
    /// From the owner to a shard with subscribers: close them with 1000. They get what was
    /// delivered before; those that are catching up do not get the rest of it.
    CloseSubscribers {
        /// The topic.
        topic: TopicName,
    },
    /// From the control thread: answer with [`ToControl::Snapshot`].
    Snapshot {
        /// Number of the request.
        request: u64,
    },
    /// From the control thread: stop accepting and close every connection with 1012, spread evenly over the
    /// window; then answer with [`ToControl::Drained`]. The shard still orders the topics that it owns.
    Drain {
        /// Length of the window in milliseconds; 0 closes all at once. Sent again, it shortens the window.
        window_millis: u64,
        /// The server is to end at once: nobody waits for a shard that does not answer.
        hurried: bool,
    },
    /// From a shard that has begun to drain to every other: whatever it accepted before that is ahead of this.
    DrainMarker,
    /// From the control thread: go on with these settings.
    Configure(Arc<Settings>),
    /// From the control thread: every shard has drained, or its time is up. Cut what is left and end.
    End,
}

/// Names a subscriber that is catching up, and the request of it that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The subscriber.
    pub connection: ConnectionId,
    /// Number of the request on its shard: an answer to an earlier one is not taken for this one's.
    pub number: u64,
}

/// Asks for what a subscriber has missed.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// The topic.
    pub topic: TopicName,
    /// Who asks; its shard gets the answer.
    pub ticket: Ticket,
    /// Where to begin.
    pub start: Start,
    /// Most bytes of the answer, but for one message; more is asked for again. With 0 there is no room for any now.
    pub bytes: usize,
    /// Whether the messages need their twins with the ids.
    pub with_ids: bool,
}

/// What a subscriber has missed, or a part of it.
#[derive(Debug)]
pub struct Replayed {
    /// The topic.
    pub topic: TopicName,
    /// Who asked.
    pub ticket: Ticket,
    /// Whether it begins where it was to.
    pub recovered: bool,
    /// The place behind which it begins.
    pub from: Position,
    /// The messages, without a gap.
    pub frames: Vec<Arc<Frame>>,
    /// Whether these are all: what is published later is delivered to the shard behind this.
    pub complete: bool,
}

/// What became of a message that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Subscribers on all cores that it was handed to. The count may miss one who has just come and is sent the message
    /// all the same, or have one who has just gone.
    pub subscribers: u64,
    /// Its place in the topic, the first message's offset being 1.
    pub position: Position,
}

/// What the owner knows of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicStatus {
    /// Subscribers on all cores.
    pub subscribers: u64,
    /// Messages that are kept for those who come later.
    pub messages: u64,
    /// Place of the last message; offset 0 before the first.
    pub position: Position,
}

/// Why the shards cannot take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overloaded {
    /// A receiver's ring and its overflow are full.
    Rings,
    /// The topic is new, and its owner has all that it may have.
    Topics,
}

/// To the control thread, from a shard.
#[derive(Debug)]
pub enum ToControl {
    /// Outcome of a publish that the control thread asked for.
    Published {
        /// Number of the request.
        request: u64,
        /// Receipt, or the reason why nobody got the message.
        outcome: Result<Receipt, Overloaded>,
    },
    /// Answer to [`ToShard::Inspect`].
    Inspected {
        /// Number of the request.
        request: u64,
        /// What the owner knows.
        status: TopicStatus,
    },
    /// Answer to [`ToShard::Delete`]. Every shard with subscribers is told by then, and closes them in its next
    /// pass.
    Deleted {
        /// Number of the request.
        request: u64,
        /// Whether the shards could be told; if not, no subscriber was closed.
        outcome: Result<(), Overloaded>,
    },
    /// Answer to [`ToShard::Snapshot`].
    Snapshot {
        /// Number of the request.
        request: u64,
        /// Fan-out times that this shard recorded, in microseconds.
        fanout_micros: Box<Histogram<u64>>,
    },
    /// All connections of the shard are closed.
    Drained {
        /// The shard.
        shard: u16,
        /// Connections that were still open when the time was up and were cut.
        cut: u64,
    },
}

/// A value of an application's own type.
pub struct Application(pub Box<dyn Any + Send>);

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Application")
    }
}

impl ToShard {
    /// Bytes of the payload that this message keeps alive.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Publish { frame, .. } | Self::Deliver { frame, .. } => frame.memory_bytes(),
            _ => 0,
        }
    }

    /// Whether a sender asks for a place before it sends this. What subscribers bring about is sent in any case, and
    /// must not take the places of messages: a crowd that comes back would have publishers refused.
    #[must_use]
    pub fn takes_place(&self) -> bool {
        !matches!(
            self,
            Self::Subscribers { .. }
                | Self::Joined { .. }
                | Self::JoinRefused { .. }
                | Self::Replay(_)
                | Self::Replayed(_)
        )
    }
}
