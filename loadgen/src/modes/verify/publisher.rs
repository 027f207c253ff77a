//! The publishers of `verify`, one connection for each topic, all on thread 0: an open loop over the topics in turn.

use std::sync::atomic::Ordering;

use super::{Common, Options};
use crate::frame::opcode;
use crate::links::{Links, Slot};
use crate::record::Record;
use crate::schedule::Schedule;

/// A connection with more than this unsent holds all publishers up; the schedule is caught up with later.
const BACKLOG_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Messages sent before deliveries are looked at again.
const BATCH_MAX: u64 = 256;
/// Time between two looks at a connection that is held up.
const BLOCKED_PAUSE_NS: u64 = 1_000_000;

pub(super) struct Publisher {
    run: u32,
    rate: f64,
    payload_bytes: usize,
    duration_ns: u64,
    /// Receiver number of the publisher of topic 0.
    first_receiver: usize,
    topics: usize,
    schedule: Schedule,
    until_ns: u64,
    sent: u64,
    total: u64,
    buffer: Vec<u8>,
    /// False when one of the connections is gone: nothing more is sent then.
    pub(super) alive: bool,
    /// Scheduled messages that could not be sent.
    pub(super) unsent: u64,
}

impl Publisher {
    pub(super) fn new(run: u32, options: &Options, payload_bytes: usize, first_receiver: usize) -> Self {
        Self {
            run,
            rate: options.rate,
            payload_bytes,
            duration_ns: options.duration_ns,
            first_receiver,
            topics: options.topics.len(),
            schedule: Schedule::new(0, options.rate),
            until_ns: 0,
            sent: 0,
            total: 0,
            buffer: Vec::new(),
            alive: true,
            unsent: 0,
        }
    }

    pub(super) fn begin(&mut self, now_ns: u64) {
        self.schedule = Schedule::new(now_ns, self.rate);
        self.until_ns = now_ns.saturating_add(self.duration_ns);
        self.total = self.schedule.count_within(self.duration_ns);
    }

    /// Sends what is due and says when there is more; `None` when all is sent.
    pub(super) fn publish(
        &mut self,
        links: &mut Links,
        common: &Common,
        slots: &[Slot],
        now_ns: u64,
    ) -> Option<u64> {
        let last = self.sent.saturating_add(BATCH_MAX).min(self.total);
        while self.alive && self.sent < last && self.schedule.due(self.sent) <= now_ns {
            let topic = (self.sent % self.topics as u64) as usize;
            let slot = slots[self.first_receiver + topic];
            if links.unsent_bytes(slot) > BACKLOG_MAX_BYTES {
                if now_ns < self.until_ns {
                    return Some(now_ns + BLOCKED_PAUSE_NS);
                }
                self.give_up();
                break;
            }
            let record = Record { topic: topic as u16, sequence: common.sent(topic) + 1 };
            record.write(self.run, self.payload_bytes, &mut self.buffer);
            links.append(if record.is_text() { opcode::TEXT } else { opcode::BINARY }, &self.buffer);
            self.sent += 1;
            common.sent[topic].store(record.sequence, Ordering::Release);
            links.flush(slot);
        }
        if !self.alive {
            self.give_up();
        }
        (self.sent < self.total).then(|| self.schedule.due(self.sent))
    }

    fn give_up(&mut self) {
        self.unsent += self.total - self.sent;
        self.total = self.sent;
    }
}
