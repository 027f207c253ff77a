//! Did every receiver get every message of its topic once, in order, unchanged and under the right id, over all its
//! connections? No socket, no clock.
//!
//! Invariants:
//! 1. Receivers are apart: each has one topic, and its sequence runs on from connection to connection.
//! 2. In a topic, offset less sequence number is the same for all messages; what it is, the first message tells.
//! 3. What is wrong is counted without end and named up to [`FAULTS_NAMED_MAX`] times.

use std::collections::BTreeMap;

use crate::meta::{self, Content, Framed, Id, Notice};
use crate::record::{self, Check, Record};
use crate::sequence::{Arrival, Disorder, Tracker};

/// Faults that are described one by one; the others are only counted.
pub(crate) const FAULTS_NAMED_MAX: usize = 10;

/// One thing that was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    pub(crate) receiver: usize,
    /// Offset, or sequence number where there are no ids; number of the topic for `misrouted`.
    pub(crate) expected: u64,
    pub(crate) got: u64,
}

/// Where a topic's ids begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) epoch: u64,
    /// Offset of the message before the first one of this run.
    pub(crate) base: u64,
}

impl Origin {
    fn id(self, sequence: u64) -> Id {
        Id { epoch: self.epoch, offset: self.base.wrapping_add(sequence) }
    }
}

/// The receivers of one thread.
#[derive(Debug)]
pub(crate) struct Checker {
    run: u32,
    names: Vec<String>,
    /// Topic of each receiver.
    topics: Vec<u16>,
    /// Receivers below this get their messages in the subprotocol, the others plain.
    framed: usize,
    tracker: Tracker,
    origins: Vec<Option<Origin>>,
    /// Jumps over messages, whether they came later or not.
    pub(crate) gaps: u64,
    pub(crate) corrupted: u64,
    pub(crate) foreign: u64,
    /// Everything else that was wrong, by kind.
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) findings: Vec<Finding>,
}

impl Checker {
    /// A checker for one receiver of each of `topics`, of which the first `framed` use the subprotocol; topics are
    /// indices into `names`.
    pub(crate) fn new(run: u32, names: Vec<String>, topics: Vec<u16>, framed: usize) -> Self {
        Self {
            run,
            tracker: Tracker::new(topics.len()),
            origins: vec![None; names.len()],
            names,
            topics,
            framed,
            gaps: 0,
            corrupted: 0,
            foreign: 0,
            errors: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    /// Topic of `receiver`.
    pub(crate) fn topic(&self, receiver: usize) -> usize {
        usize::from(self.topics[receiver])
    }

    /// Messages of its topic that `receiver` has got to.
    pub(crate) fn position(&self, receiver: usize) -> u64 {
        self.tracker.next(receiver)
    }

    /// Where `receiver` goes on after a new connection; nothing before its first message.
    pub(crate) fn resume_id(&self, receiver: usize) -> Option<Id> {
        let position = self.position(receiver);
        let origin = self.origins[self.topic(receiver)].filter(|_| position > 0)?;
        Some(origin.id(position))
    }

    /// Where the ids of `topic` begin, if that is known.
    pub(crate) fn origin(&self, topic: usize) -> Option<Origin> {
        self.origins.get(topic).copied().flatten()
    }

    /// The balance when `sent(topic)` messages were sent.
    pub(crate) fn disorder(&self, sent: impl Fn(usize) -> u64) -> Disorder {
        self.tracker.disorder(self.topics.len(), |receiver| sent(self.topic(receiver)))
    }

    /// `receiver` got `message`, as `text` or binary data, when `sent(topic)` messages were sent; true if it is one
    /// that it had not got before.
    pub(crate) fn arrive(
        &mut self,
        receiver: usize,
        text: bool,
        message: &[u8],
        sent: impl Fn(usize) -> u64,
    ) -> bool {
        let (id, payload) = if receiver < self.framed {
            let Some(framed) = meta::split(message) else {
                self.error("malformed_message", receiver, self.next_offset(receiver), 0);
                return false;
            };
            if let Some(notice) = meta::notice(&framed) {
                self.on_notice(receiver, framed, notice, sent);
                return false;
            }
            if framed.content.is_some_and(|content| (content == Content::Text) != text) {
                self.error("wrong_content_type", receiver, self.next_offset(receiver), framed.id.offset);
            }
            (Some(framed.id), framed.payload)
        } else {
            (None, message)
        };
        let sequence = match record::check(self.run, payload) {
            Check::Good(record) => self.on_record(receiver, text, record, id),
            Check::Corrupted => {
                self.corrupted += 1;
                self.damaged("corrupted", receiver, id)
            }
            Check::Foreign => {
                self.foreign += 1;
                self.damaged("foreign", receiver, id)
            }
        };
        sequence.is_some_and(|sequence| self.place(receiver, sequence, sent))
    }

    /// A subscriber has not got to `sent` in the time it had.
    pub(crate) fn incomplete(&mut self, receiver: usize, sent: u64) {
        let offset = self.offset(receiver, sent);
        self.note("incomplete", receiver, offset, self.offset(receiver, self.position(receiver)));
    }

    /// Checks kind, topic and id of an undamaged message; its sequence number if it belongs here.
    fn on_record(&mut self, receiver: usize, text: bool, record: Record, id: Option<Id>) -> Option<u64> {
        let topic = self.topics[receiver];
        if record.topic != topic {
            self.error("misrouted", receiver, u64::from(topic), u64::from(record.topic));
            return None;
        }
        if text != record.is_text() {
            self.error("wrong_kind", receiver, self.offset(receiver, record.sequence), 0);
        }
        let Some(id) = id else {
            return Some(record.sequence);
        };
        let origin = self.origins[usize::from(topic)]
            .get_or_insert(Origin { epoch: id.epoch, base: id.offset.wrapping_sub(record.sequence) });
        let expected = origin.id(record.sequence);
        if id.epoch != expected.epoch {
            self.error("wrong_epoch", receiver, expected.epoch, id.epoch);
        } else if id != expected {
            self.error("wrong_offset", receiver, expected.offset, id.offset);
        }
        Some(record.sequence)
    }

    /// Notes a message whose content cannot be trusted; where its id puts it, so that it does not count as lost too.
    fn damaged(&mut self, what: &'static str, receiver: usize, id: Option<Id>) -> Option<u64> {
        let expected = self.next_offset(receiver);
        self.note(what, receiver, expected, id.map_or(expected, |id| id.offset));
        let origin = self.origins[self.topic(receiver)]?;
        id.filter(|id| id.epoch == origin.epoch)?.offset.checked_sub(origin.base)
    }

    #[inline]
    fn place(&mut self, receiver: usize, sequence: u64, sent: impl Fn(usize) -> u64) -> bool {
        let topic = self.topic(receiver);
        let next = self.tracker.next(receiver) + 1;
        let arrival =
            sequence.checked_sub(1).and_then(|index| self.tracker.arrive(receiver, index, || sent(topic)));
        if sequence == next {
            return arrival.is_some();
        }
        let (expected, got) = (self.offset(receiver, next), self.offset(receiver, sequence));
        match arrival {
            Some(Arrival::New) => {
                self.gaps += 1;
                self.note("gap", receiver, expected, got);
            }
            Some(Arrival::Late) => self.note("reordered", receiver, expected, got),
            Some(Arrival::Duplicate) => self.note("repeat", receiver, expected, got),
            None => self.error("never_sent", receiver, expected, got),
        }
        matches!(arrival, Some(Arrival::New | Arrival::Late))
    }

    fn on_notice(
        &mut self,
        receiver: usize,
        framed: Framed<'_>,
        notice: Notice,
        sent: impl Fn(usize) -> u64,
    ) {
        match notice {
            Notice::Recovered => {}
            Notice::Malformed => {
                self.error("malformed_notice", receiver, self.next_offset(receiver), framed.id.offset);
            }
            Notice::NotRecovered { topic: name, id } => {
                let topic = self.topic(receiver);
                let expected = self.next_offset(receiver);
                self.error("failed_recovery", receiver, expected, id.offset.saturating_add(1));
                if id != framed.id || name != self.names[topic] {
                    self.error("wrong_notice", receiver, id.offset, framed.id.offset);
                }
                match self.origins[topic] {
                    Some(origin) if origin.epoch == id.epoch => {
                        let sequence = id.offset.saturating_sub(origin.base).min(sent(topic));
                        self.tracker.skip_to(receiver, u32::try_from(sequence).unwrap_or(u32::MAX));
                    }
                    // A server that began anew: its next message tells where its ids begin.
                    _ => self.origins[topic] = None,
                }
            }
        }
    }

    /// Offset of message `sequence` to `receiver`, or the sequence number where there are no ids.
    fn offset(&self, receiver: usize, sequence: u64) -> u64 {
        match self.origins[self.topic(receiver)].filter(|_| receiver < self.framed) {
            Some(origin) => origin.id(sequence).offset,
            None => sequence,
        }
    }

    fn next_offset(&self, receiver: usize) -> u64 {
        self.offset(receiver, self.tracker.next(receiver) + 1)
    }

    #[cold]
    fn error(&mut self, what: &'static str, receiver: usize, expected: u64, got: u64) {
        *self.errors.entry(what).or_default() += 1;
        self.note(what, receiver, expected, got);
    }

    #[cold]
    fn note(&mut self, what: &'static str, receiver: usize, expected: u64, got: u64) {
        if self.findings.len() < FAULTS_NAMED_MAX {
            self.findings.push(Finding { what, receiver, expected, got });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u32 = 5;
    const EPOCH: u64 = 0xab;
    const BASE: u64 = 100;

    fn payload(topic: u16, sequence: u64) -> Vec<u8> {
        let mut payload = Vec::new();
        Record { topic, sequence }.write(RUN, 40, &mut payload);
        payload
    }

    fn framed(id: Id, payload: &[u8]) -> Vec<u8> {
        [format!("id: {id}\n\n").as_bytes(), payload].concat()
    }

    fn message(topic: u16, sequence: u64) -> Vec<u8> {
        framed(Id { epoch: EPOCH, offset: BASE + sequence }, &payload(topic, sequence))
    }

    struct Play {
        checker: Checker,
    }

    impl Play {
        /// Receivers 0 and 1 of topic 0, receiver 2 of topic 1, receiver 3 plain of topic 0.
        fn new() -> Self {
            let names = vec!["t".to_owned(), "u".to_owned()];
            Self { checker: Checker::new(RUN, names, vec![0, 0, 1, 0], 3) }
        }

        fn give(&mut self, receiver: usize, sequence: u64) -> bool {
            self.raw(receiver, sequence % 2 == 1, &message(0, sequence))
        }

        fn raw(&mut self, receiver: usize, text: bool, message: &[u8]) -> bool {
            self.checker.arrive(receiver, text, message, |_| 9)
        }

        fn lost(&self, receiver: usize) -> u64 {
            let others: u64 =
                (0..4).filter(|other| *other != receiver).map(|other| 9 - self.checker.position(other)).sum();
            self.checker.disorder(|_| 9).lost - others
        }

        fn finding(&self) -> (&'static str, u64, u64) {
            let finding = self.checker.findings.last().unwrap();
            (finding.what, finding.expected, finding.got)
        }

        fn error(&self, kind: &str) -> u64 {
            self.checker.errors.get(kind).copied().unwrap_or(0)
        }
    }

    #[test]
    fn offsets_that_go_up_by_one_are_clean_whatever_they_begin_with() {
        let mut play = Play::new();
        assert_eq!(play.checker.resume_id(0), None);
        assert!((1..=9).all(|sequence| play.give(0, sequence)));
        assert!((1..=9).all(|sequence| play.raw(3, sequence % 2 == 1, &payload(0, sequence))));
        assert_eq!(play.lost(0), 0);
        assert_eq!((play.checker.findings.len(), play.checker.errors.len()), (0, 0));
        assert_eq!(play.checker.resume_id(0), Some(Id { epoch: EPOCH, offset: BASE + 9 }));
        assert_eq!(play.checker.origin(0), Some(Origin { epoch: EPOCH, base: BASE }));
    }

    #[test]
    fn a_gap_is_told_by_offset_and_lost() {
        let mut play = Play::new();
        play.give(0, 1);
        assert!(play.give(0, 4));
        assert_eq!(play.finding(), ("gap", BASE + 2, BASE + 4));
        (5..=9).for_each(|sequence| assert!(play.give(0, sequence)));
        assert_eq!((play.checker.gaps, play.lost(0)), (1, 2));
    }

    #[test]
    fn the_first_message_is_expected_too() {
        let mut play = Play::new();
        play.give(1, 1);
        play.give(0, 2);
        assert_eq!(play.finding(), ("gap", BASE + 1, BASE + 2));
        play.raw(3, false, &payload(0, 2));
        assert_eq!(play.finding(), ("gap", 1, 2));
    }

    #[test]
    fn repeats_and_reorderings_are_told_apart() {
        let mut play = Play::new();
        (1..=3).for_each(|sequence| assert!(play.give(0, sequence)));
        assert!(!play.give(0, 3));
        assert_eq!(play.finding(), ("repeat", BASE + 4, BASE + 3));
        assert!(play.give(0, 5) && play.give(0, 4));
        assert_eq!(play.finding(), ("reordered", BASE + 6, BASE + 4));
        let disorder = play.checker.disorder(|_| 9);
        assert_eq!((disorder.duplicated, disorder.reordered, play.lost(0)), (1, 1, 4));
    }

    #[test]
    fn damage_is_no_loss_besides_where_the_id_tells_the_place() {
        let mut play = Play::new();
        play.give(0, 1);
        let mut damaged = message(0, 2);
        *damaged.last_mut().unwrap() ^= 1;
        assert!(play.raw(0, false, &damaged));
        assert_eq!(play.finding(), ("corrupted", BASE + 2, BASE + 2));
        let foreign = framed(Id { epoch: EPOCH, offset: BASE + 3 }, b"hello");
        assert!(play.raw(0, true, &foreign) && play.give(0, 4));
        assert_eq!((play.checker.corrupted, play.checker.foreign, play.checker.gaps), (1, 1, 0));
        assert!(!play.raw(3, false, b"hello"));
    }

    #[test]
    fn wrong_topics_kinds_and_ids_are_errors() {
        let mut play = Play::new();
        play.give(0, 1);
        assert!(!play.raw(0, true, &message(1, 2)));
        assert_eq!((play.error("misrouted"), play.finding()), (1, ("misrouted", 0, 1)));
        assert!(play.raw(0, true, &message(0, 2)));
        assert_eq!(play.error("wrong_kind"), 1);
        assert!(play.raw(0, true, &framed(Id { epoch: EPOCH, offset: BASE + 4 }, &payload(0, 3))));
        assert_eq!((play.error("wrong_offset"), play.finding()), (1, ("wrong_offset", BASE + 3, BASE + 4)));
        assert!(play.raw(0, false, &framed(Id { epoch: 1, offset: BASE + 4 }, &payload(0, 4))));
        assert_eq!(play.error("wrong_epoch"), 1);
        let id = Id { epoch: EPOCH, offset: BASE + 5 };
        let typed =
            [format!("id: {id}\ncontent-type: application/octet-stream\n\n").as_bytes(), &payload(0, 5)]
                .concat();
        assert!(play.raw(0, true, &typed));
        assert_eq!(play.error("wrong_content_type"), 1);
        assert!(!play.raw(0, true, &payload(0, 6)));
        assert_eq!(play.error("malformed_message"), 1);
        assert!(!play.give(0, 77));
        assert_eq!(play.error("never_sent"), 1);
        assert_eq!(play.checker.gaps, 0);
    }

    #[test]
    fn a_failed_recovery_is_an_error_and_what_it_skips_is_lost() {
        let mut play = Play::new();
        play.give(0, 1);
        let notice = |epoch: u64, offset: u64| {
            let text =
                format!(r#"{{"recovered":false,"topic":"t","epoch":"{epoch:016x}","offset":{offset}}}"#);
            framed(Id { epoch, offset }, text.as_bytes())
        };
        assert!(!play.raw(0, true, &notice(EPOCH, BASE + 4)));
        assert_eq!(play.finding(), ("failed_recovery", BASE + 2, BASE + 5));
        assert_eq!(play.checker.resume_id(0), Some(Id { epoch: EPOCH, offset: BASE + 4 }));
        (5..=9).for_each(|sequence| assert!(play.give(0, sequence)));
        assert_eq!((play.error("failed_recovery"), play.lost(0), play.checker.gaps), (1, 3, 0));

        // Nor does a notice that makes no sense lead beyond what was sent.
        play.raw(0, true, &notice(EPOCH, u64::MAX));
        assert_eq!(play.checker.position(0), 9);
        let elsewhere = framed(
            Id { epoch: EPOCH, offset: 1 },
            br#"{"recovered":false,"topic":"u","epoch":"00000000000000ab","offset":1}"#,
        );
        play.raw(0, true, &elsewhere);
        assert_eq!(play.error("wrong_notice"), 1);

        // A server that was started anew counts from its own beginning.
        play.raw(0, true, &notice(1, 0));
        assert_eq!(play.checker.resume_id(0), None);
        play.raw(1, true, &framed(Id { epoch: 1, offset: 1 }, &payload(0, 1)));
        assert_eq!(play.checker.resume_id(1), Some(Id { epoch: 1, offset: 1 }));
        let unreadable = framed(Id { epoch: 1, offset: 1 }, br#"{"recovered":false}"#);
        play.raw(1, true, &unreadable);
        assert_eq!(play.error("malformed_notice"), 1);
    }

    #[test]
    fn few_faults_are_named_and_all_are_counted() {
        let mut play = Play::new();
        play.give(0, 1);
        (0..100).for_each(|_| assert!(!play.give(0, 1)));
        assert_eq!(play.checker.findings.len(), FAULTS_NAMED_MAX);
        assert_eq!(play.checker.disorder(|_| 9).duplicated, 100);
        play.checker.incomplete(2, 9);
        assert_eq!(play.checker.findings.len(), FAULTS_NAMED_MAX);
    }
}
