//! Messages of topics to all their subscribers on this core.
//!
//! A pass stages at most a part of a topic's subscribers ([`super::sweep`]); where all must have been served first,
//! before a close frame or a change of the list, [`Shard::fan_out`] and [`Shard::finish_sweep`] see to it.

use std::sync::Arc;

use super::Shard;
use super::batch::{Broadcast, Held, Payload};
use super::outbound::Piece;
use super::shared_pages::{Place, SharedPages};
use super::slab::{Slot, State};
use super::sweep::PART_SUBSCRIBERS;
use crate::clock;
use crate::compression::Encoding;
use crate::connection_id::ConnectionId;
use crate::frame::Frame;

/// Most bytes of one topic that are joined into one send; more leave in several.
const MAX_JOINED_BYTES: usize = 256 * 1024;

/// Subscribers from which on a pass serves no further part, unless it has taken in more than that: what comes in must
/// not keep from going out what there is.
pub(super) const SERVED_PER_PASS: usize = PART_SUBSCRIBERS;

/// Bytes of pending messages above which everybody is served before more is taken in: a round that goes on collects for
/// those who come last, and who shall not get more at once than a socket takes.
const SWEEP_BYTES: usize = 64 * 1024;

/// One encoding of a broadcast that is under way.
#[derive(Clone, Copy)]
struct Encoded {
    held: Held,
    /// Where it lies, if it goes out from shared pages.
    place: Option<Place>,
}

/// Subscribers of a topic that are served together.
struct Listed<'a> {
    topic: u32,
    /// The shard's stay in it.
    stay: u64,
    /// Position of the first of them in the topic's list.
    first: u32,
    slots: &'a [u32],
}

impl Listed<'_> {
    /// Whether the connection of a slot is among them.
    fn has(&self, slot: &Slot) -> bool {
        let positions = self.first..self.first + self.slots.len() as u32;
        let mut places = slot.subscriptions.as_slice().iter();
        places.any(|place| place.topic == self.topic && positions.contains(&place.position))
    }
}

impl Shard {
    /// Stages all that is pending in every topic.
    pub(super) fn fan_out(&mut self) {
        while let Some(topic) = self.local.next_dirty() {
            self.serve_all(topic);
        }
    }

    /// Stages what is pending, but for no more subscribers than one pass is to serve.
    pub(super) fn fan_out_some(&mut self, budget: &mut usize) {
        if self.pending_bytes > SWEEP_BYTES {
            return self.fan_out();
        }
        while *budget > 0 {
            let Some(topic) = self.local.next_dirty() else { return };
            if !self.local.get_mut(topic).arriving.is_empty() {
                self.serve_all(topic);
                continue;
            }
            *budget = budget.saturating_sub(self.serve_part(topic, false));
            if !self.local.get_mut(topic).sweep.is_empty() {
                self.local.mark_dirty(topic);
            }
        }
    }

    /// Serves all whom a sweep has not reached yet, if one is under way: before the list of subscribers changes.
    pub(super) fn finish_sweep(&mut self, topic: u32) {
        if self.local.get_mut(topic).sweep.is_under_way() {
            self.serve_all(topic);
        }
    }

    /// Stages all that is pending in a topic. Where nobody is left to get it, it counts as sent.
    pub(super) fn serve_all(&mut self, topic: u32) {
        while !self.local.get_mut(topic).sweep.is_empty() {
            self.serve_part(topic, true);
        }
    }

    /// Serves the subscribers of a topic whose turn it is, or `whole` all if it is everybody's. Returns how many.
    fn serve_part(&mut self, topic: u32, whole: bool) -> usize {
        let entry = self.local.get_mut(topic);
        let stay = entry.stay;
        let mut sweep = std::mem::take(&mut entry.sweep);
        let subscribers = std::mem::take(&mut entry.subscribers);
        let part = sweep.begin_turn(subscribers.len(), whole);
        let listed = Listed { topic, stay, first: part.start as u32, slots: &subscribers[part] };
        let served = listed.slots.len();
        if served > 0 {
            self.send_group_by_group(&listed, sweep.pending());
        }
        let entry = self.local.get_mut(topic);
        debug_assert!(entry.subscribers.is_empty());
        entry.subscribers = subscribers;
        for (id, skip) in std::mem::take(&mut entry.arriving) {
            self.welcome(topic, stay, id, &sweep.pending()[skip..]);
        }
        sweep.end_turn(|frame| {
            self.pending_bytes -= frame.memory_bytes();
            self.unflushed.push(frame);
        });
        self.local.get_mut(topic).sweep = sweep;
        served
    }

    /// Lists a subscriber that has caught up, and sends it what has come since.
    fn welcome(&mut self, topic: u32, stay: u64, id: ConnectionId, frames: &[Arc<Frame>]) {
        if self.slab.find(id).is_some() && self.local.list(topic, &mut self.slab, id.slot) {
            let first = self.local.get_mut(topic).subscribers.len() as u32 - 1;
            self.send_group_by_group(&Listed { topic, stay, first, slots: &[id.slot] }, frames);
        }
    }

    fn send_group_by_group(&mut self, listed: &Listed<'_>, mut frames: &[Arc<Frame>]) {
        while !frames.is_empty() {
            let (group, rest) = frames.split_at(joinable(frames));
            self.broadcast_group(listed, group);
            frames = rest;
        }
    }

    /// Sends the frames of a group to all subscribers but, of each frame, its excepted one.
    fn broadcast_group(&mut self, listed: &Listed<'_>, group: &[Arc<Frame>]) {
        if group.iter().all(|frame| frame.except().is_none()) {
            return self.broadcast(listed.stay, group, listed.slots);
        }
        let mut excluded = Vec::new();
        for id in group.iter().filter_map(|frame| frame.except()) {
            if id.shard == self.context.shard() {
                if let Some(slot) = self.slab.find(id).filter(|slot| !slot.excluded) {
                    slot.excluded = true;
                    excluded.push(id);
                }
            }
        }
        self.broadcast(listed.stay, group, listed.slots);
        for id in excluded {
            let slot = &mut self.slab[id.slot];
            slot.excluded = false;
            // One that publishes to a topic without subscribing to it gets nothing at all.
            let is_listed = listed.has(slot);
            let others: Vec<_> = group.iter().filter(|frame| frame.except() != Some(id)).cloned().collect();
            if is_listed && !others.is_empty() {
                self.broadcast(listed.stay, &others, &[id.slot]);
            }
        }
    }

    /// Stages one send per subscriber with all the frames of a group.
    fn broadcast(&mut self, topic: u64, group: &[Arc<Frame>], subscribers: &[u32]) {
        // One payload per encoding in use, held when the first subscriber of that encoding comes.
        let mut encodings = [None; Encoding::COUNT];
        let (mut bytes, mut served) = (0, 0);
        for &index in subscribers {
            if self.ring.room() == 0 || self.is_staged(index) {
                self.flush_and_hold_again(&mut encodings);
            }
            let slot = &mut self.slab[index];
            if slot.state != State::Open || slot.excluded {
                continue;
            }
            let encoding = slot.form();
            let Encoded { held, place } = encodings[encoding.index()].get_or_insert_with(|| {
                let broadcast = Broadcast::new(topic, group.to_vec(), encoding);
                let is_large = SharedPages::serves(broadcast.bytes().len(), subscribers.len());
                let place = if is_large { self.pages.hold(broadcast.bytes()) } else { None };
                Encoded { held: self.batch.hold(Payload::Broadcast(broadcast)), place }
            });
            bytes += held.length();
            served += 1;
            if slot.outbound.is_some() {
                self.enqueue_broadcast(index, held.payload(), 0);
                continue;
            }
            if let Some(place) = place {
                self.send_from_pages(index, held.payload(), *place);
                continue;
            }
            slot.staged_in = self.batch.number();
            if let Some(socket) = slot.descriptor() {
                self.batch.stage(&mut self.ring, index, held, socket);
            }
        }
        self.pages.release();
        if !self.batch.is_staged() {
            // All of it went out from shared pages, and nothing is to be flushed that would let go of it.
            self.batch.release();
        }
        self.stats.deliveries.add(served * group.len() as u64);
        self.stats.delivery_bytes.add(bytes as u64);
    }

    /// Sends a large broadcast at once. Nothing is staged for the connection.
    fn send_from_pages(&mut self, index: u32, payload: u32, place: Place) {
        let Some(socket) = self.slab[index].descriptor() else { return };
        match self.pages.send(socket, place) {
            Ok(sent) if sent == place.length() => {}
            Ok(sent) => self.enqueue_broadcast(index, payload, sent),
            Err(_) => {
                let id = self.slab.id(index);
                self.broken.push(id);
            }
        }
    }

    /// Queues the frames of a broadcast of which the first `sent` bytes have gone out.
    pub(super) fn enqueue_broadcast(&mut self, index: u32, payload: u32, mut sent: usize) {
        let Payload::Broadcast(broadcast) = self.batch.payload_mut(payload) else { return };
        let encoding = broadcast.encoding();
        let (topic, frames) = (broadcast.topic(), broadcast.local().to_vec());
        for frame in frames {
            let length = frame.bytes(encoding).len();
            if sent >= length {
                sent -= length;
                continue;
            }
            // A frame that has begun is finished in any case: whatever is said last must stand behind it.
            if sent == 0 && self.slab[index].state != State::Open {
                return;
            }
            self.enqueue(index, Piece::Frame { frame, encoding, topic }, sent);
            sent = 0;
        }
    }

    /// As [`Shard::flush_batch`], in the middle of a broadcast: its payloads go on to the next batch.
    fn flush_and_hold_again(&mut self, encodings: &mut [Option<Encoded>]) {
        self.submit();
        self.queue_short_sends();
        self.batch.release_all_but(encodings.iter_mut().flatten().map(|encoded| &mut encoded.held));
    }

    /// Notes the fan-out time of the frames that are out, once the last shard has flushed each.
    pub(super) fn note_flushed(&mut self) {
        if self.unflushed.is_empty() {
            return;
        }
        let now = clock::monotonic_nanos();
        for frame in self.unflushed.drain(..) {
            if frame.flushed() {
                let micros = now.saturating_sub(frame.accepted_nanos()) / 1_000;
                self.fanout_micros.saturating_record(micros);
            }
        }
    }
}

/// How many of the first frames are sent as one: at least one, and no more than [`MAX_JOINED_BYTES`].
fn joinable(frames: &[Arc<Frame>]) -> usize {
    let mut bytes = 0;
    let fits = |frame: &&Arc<Frame>| {
        bytes += frame.bytes(Encoding::PLAIN).len();
        bytes <= MAX_JOINED_BYTES
    };
    frames.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::MessageKind;

    #[test]
    fn groups_are_bounded_and_never_empty() {
        let frame = |bytes| Frame::new(MessageKind::Binary, &vec![0; bytes], 0, None);
        let large = frame(MAX_JOINED_BYTES + 1);
        assert_eq!(joinable(&[large.clone(), large]), 1);
        let half = frame(MAX_JOINED_BYTES / 2 - 16);
        assert_eq!(joinable(&[half.clone(), half.clone(), half]), 2);
        assert_eq!(joinable(&[frame(1)]), 1);
    }
}
