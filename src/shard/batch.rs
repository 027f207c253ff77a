//! Sends on their way to the kernel, and the bytes they refer to.
//!
//! Sends of one pass are staged on the [`Ring`] and go to the kernel together. A [`Batch`] owns their bytes
//! from [`Batch::stage`] until [`Batch::release`], which asserts that the kernel has taken everything.
//!
//! A connection has at most one unsubmitted send at a time (the shard asks [`Batch::number`]): if the first of
//! two were taken in part only, the second would follow behind a gap.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;

use super::outbound::LocalFrame;
use super::ring::Ring;
use crate::arena::{Arena, Span};
use crate::compression::Encoding;
use crate::frame::Frame;

/// Payloads that one batch may hold: the number travels in 24 bits of a completion.
const MAX_PAYLOADS: usize = 1 << 20;

/// Frames of one topic that leave together, in one encoding.
#[derive(Debug)]
pub(super) struct Broadcast {
    frames: Vec<Arc<Frame>>,
    encoding: Encoding,
    /// The shard's stay in the topic: a name that no later topic gets.
    topic: u64,
    /// All frames end to end; empty when there is one frame only, which then is sent as it is.
    joined: Vec<u8>,
    /// The frames as slow connections of this core share them, made when the first one asks.
    local: Vec<LocalFrame>,
}

impl Broadcast {
    pub(super) fn new(topic: u64, frames: Vec<Arc<Frame>>, encoding: Encoding) -> Self {
        if encoding == Encoding::WITH_ID {
            // The owner has seen to it, unless it did not know yet that ids are used here.
            for frame in &frames {
                let _ = frame.ensure_id();
            }
        }
        let mut joined = Vec::new();
        if frames.len() > 1 {
            joined.reserve_exact(frames.iter().map(|frame| frame.bytes(encoding).len()).sum());
            frames.iter().for_each(|frame| joined.extend_from_slice(frame.bytes(encoding)));
        }
        Self { frames, encoding, topic, joined, local: Vec::new() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.frames[..] {
            [single] => single.bytes(self.encoding),
            _ => &self.joined,
        }
    }

    /// The encoding.
    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The shard's stay in the topic.
    pub(super) fn topic(&self) -> u64 {
        self.topic
    }

    /// The frames for a send queue of this core: one more count, no atomic instruction per connection.
    pub(super) fn local(&mut self) -> &[LocalFrame] {
        if self.local.is_empty() {
            self.local = self.frames.iter().map(|frame| Rc::new(frame.clone())).collect();
        }
        &self.local
    }
}

/// What a staged send refers to.
#[derive(Debug)]
pub(super) enum Payload {
    /// Bytes of the batch's arena.
    Direct(Span),
    /// Bytes that were encoded before, shared by all connections that get them.
    Shared(Rc<[u8]>),
    /// Frames of a topic.
    Broadcast(Broadcast),
}

/// A payload that a batch holds, and where its bytes lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    payload: u32,
    /// Number of the batch, in which alone the bytes are sure to be there.
    batch: u32,
    bytes: *const [u8],
}

impl Held {
    /// The payload's number in the batch.
    pub(super) fn payload(&self) -> u32 {
        self.payload
    }

    /// Bytes of the payload.
    pub(super) fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// The sends of one pass.
#[derive(Debug, Default)]
pub(super) struct Batch {
    number: u32,
    staged: bool,
    payloads: Vec<Payload>,
    arena: Arena,
}

impl Batch {
    /// Number of this batch. A connection that remembers it has an unsubmitted send.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether sends were staged since the last release.
    pub(super) fn is_staged(&self) -> bool {
        self.staged
    }

    /// Whether the batch must be flushed before it holds more.
    pub(super) fn is_full(&self) -> bool {
        self.payloads.len() >= MAX_PAYLOADS
    }

    /// Takes over an arena, for [`Payload::Direct`]. The batch must hold none.
    pub(super) fn hold_arena(&mut self, arena: &mut Arena) {
        debug_assert!(self.arena.is_empty());
        std::mem::swap(&mut self.arena, arena);
    }

    /// Whether an arena with bytes is held.
    pub(super) fn holds_arena(&self) -> bool {
        !self.arena.is_empty()
    }

    /// Takes over a payload until the next release.
    #[inline]
    pub(super) fn hold(&mut self, payload: Payload) -> Held {
        let bytes: *const [u8] = match &payload {
            Payload::Direct(span) => self.arena.bytes(*span),
            Payload::Shared(bytes) => &**bytes,
            Payload::Broadcast(broadcast) => broadcast.bytes(),
        };
        self.payloads.push(payload);
        Held { payload: (self.payloads.len() - 1) as u32, batch: self.number, bytes }
    }

    /// A payload by number.
    pub(super) fn payload(&self, payload: u32) -> &Payload {
        &self.payloads[payload as usize]
    }

    /// A payload by number.
    pub(super) fn payload_mut(&mut self, payload: u32) -> &mut Payload {
        &mut self.payloads[payload as usize]
    }

    /// Bytes of a span in the held arena.
    pub(super) fn arena_bytes(&self, span: Span) -> &[u8] {
        self.arena.bytes(span)
    }

    /// Stages a send of a whole payload.
    ///
    /// # Panics
    /// When the payload is held by another batch.
    #[inline]
    pub(super) fn stage(&mut self, ring: &mut Ring, slot: u32, held: &Held, socket: BorrowedFd<'_>) {
        assert_eq!(held.batch, self.number, "a payload is staged in the batch that holds it");
        self.staged = true;
        // SAFETY: the bytes lie on the heap, in a block of the held arena, a shared slice, a frame or a joined buffer. The
        // batch has held them since it made `held`, and none of these is changed or dropped before `submitted` has
        // insisted that nothing is staged any more; moving the payload or the arena does not move them.
        unsafe { ring.stage_send(slot, held.payload, socket.as_raw_fd(), held.bytes) }
    }

    /// Notes that the kernel has taken all sends. The payloads stay, for those that it took in part only.
    ///
    /// # Panics
    /// When something is still staged: the bytes must not go away then.
    pub(super) fn submitted(&mut self, ring: &mut Ring) {
        assert!(!self.staged || ring.is_submitted(), "sends are done only when nothing is staged");
        self.staged = false;
    }

    /// Lets go of the payloads and begins the next batch. The caller has handled all short sends. The arena
    /// stays: commands that are not staged yet may refer to it.
    ///
    /// # Panics
    /// When sends are staged that may refer to the payloads.
    pub(super) fn release(&mut self) {
        self.release_all_but([]);
    }

    /// As [`Batch::release`], but the next batch goes on to hold those payloads.
    ///
    /// # Panics
    /// When sends are staged that may refer to the payloads.
    pub(super) fn release_all_but<'a>(&mut self, kept: impl IntoIterator<Item = &'a mut Held>) {
        assert!(!self.staged, "a batch is released only after it was submitted");
        let mut payloads = std::mem::take(&mut self.payloads);
        self.number = self.number.wrapping_add(1);
        for held in kept {
            let stand_in = Payload::Direct(Span::default());
            *held = self.hold(std::mem::replace(&mut payloads[held.payload as usize], stand_in));
        }
        if self.payloads.is_empty() {
            payloads.clear();
            self.payloads = payloads;
        }
    }

    /// Lets go of the arena's bytes.
    ///
    /// # Panics
    /// When payloads are held that may refer to them.
    pub(super) fn clear_arena(&mut self) {
        assert!(!self.staged && self.payloads.is_empty(), "the arena is cleared only between batches");
        self.arena.clear();
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // The ring may outlive the batch with sends still staged only when the shard is abandoned in a panic.
        // Leaking is then the one safe thing to do.
        if self.staged {
            std::mem::forget(std::mem::take(&mut self.payloads));
            std::mem::forget(std::mem::take(&mut self.arena));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::ring::Completions;
    use super::*;

    #[test]
    fn what_the_next_batch_goes_on_to_hold_is_sent_from_it() {
        let (mut ring, mut batch) = (Ring::new().unwrap(), Batch::default());
        let (near, mut far) = UnixStream::pair().unwrap();
        batch.hold(Payload::Shared(Rc::from(&b"gone"[..])));
        let mut kept = batch.hold(Payload::Shared(Rc::from(&b"kept"[..])));
        let number = batch.number();
        batch.release_all_but([&mut kept]);
        assert_ne!(batch.number(), number);
        assert_eq!(kept.length(), 4);
        assert!(matches!(batch.payload(kept.payload()), Payload::Shared(bytes) if **bytes == *b"kept"));
        batch.stage(&mut ring, 0, &kept, near.as_fd());
        assert!(batch.is_staged());
        ring.submit(&mut Completions::default()).unwrap();
        batch.submitted(&mut ring);
        batch.release();
        drop(near);
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).unwrap();
        assert_eq!(sent, b"kept");
    }

    #[test]
    #[should_panic(expected = "a payload is staged in the batch that holds it")]
    fn what_has_been_let_go_of_is_not_staged() {
        let (mut ring, mut batch) = (Ring::new().unwrap(), Batch::default());
        let (near, _far) = UnixStream::pair().unwrap();
        let held = batch.hold(Payload::Shared(Rc::from(&b"gone"[..])));
        batch.release();
        batch.stage(&mut ring, 0, &held, near.as_fd());
    }

    #[test]
    #[should_panic(expected = "the arena is cleared only between batches")]
    fn bytes_that_a_payload_refers_to_are_not_cleared() {
        let (mut batch, mut arena) = (Batch::default(), Arena::default());
        let span = arena.append(b"still ", b"held");
        batch.hold_arena(&mut arena);
        batch.hold(Payload::Direct(span));
        batch.clear_arena();
    }
}
