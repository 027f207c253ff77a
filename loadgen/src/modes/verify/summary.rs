//! What `verify` reports.

use super::{Common, Options, Verify};
use crate::checker::{FAULTS_NAMED_MAX, Finding};
use crate::conductor::Outcome;
use crate::document::{Counts, Fault, Measurement};
use crate::latency::Latency;
use crate::received::Weight;
use crate::settings::Settings;

/// Balances what was sent against what every receiver got.
pub(super) fn summarise(
    settings: Settings,
    options: &Options,
    mut outcome: Outcome<Verify>,
    common: &Common,
) -> Measurement {
    let mut counts = Counts::default();
    for mode in &mut outcome.modes {
        for receiver in 0..mode.receivers {
            let sent = common.sent(mode.checker.topic(receiver));
            counts.expected += if receiver < mode.subscribers { sent } else { 0 };
            if mode.checker.position(receiver) < sent {
                mode.checker.incomplete(receiver, sent);
            }
        }
        let disorder = mode.checker.disorder(|topic| common.sent(topic));
        counts.lost += disorder.lost;
        counts.duplicated += disorder.duplicated;
        counts.reordered += disorder.reordered;
        for (kind, count) in &mode.checker.errors {
            *outcome.faults.entry((*kind).into()).or_default() += count;
        }
        if mode.closing > 0 {
            *outcome.faults.entry("close_not_answered".into()).or_default() += mode.closing as u64;
        }
    }
    let modes = &outcome.modes;
    let sum = |value: fn(&Verify) -> u64| modes.iter().map(value).sum::<u64>();
    counts.sent = (0..options.topics.len()).map(|topic| common.sent(topic)).sum();
    counts.delivered = sum(|mode| mode.delivered);
    counts.publisher_delivered = sum(|mode| mode.publisher_delivered);
    counts.corrupted = sum(|mode| mode.checker.corrupted);
    counts.foreign = sum(|mode| mode.checker.foreign);
    let (sent, deliveries) = (counts.sent, counts.delivered + counts.publisher_delivered);
    let weight: Weight = modes.iter().map(|mode| mode.weight).sum();
    let received = weight.of(deliveries, settings.payload);
    let reconnect = Latency::merged(modes.iter().map(|mode| &mode.reconnect));
    let figures = [
        ("gaps", sum(|mode| mode.checker.gaps)),
        ("failed_recoveries", outcome.faults.get("failed_recovery").copied().unwrap_or(0)),
        ("reconnects", sum(|mode| mode.reconnects)),
        ("left_by_reset", sum(|mode| mode.resets)),
        ("left_by_close", sum(|mode| mode.closes)),
    ];
    let faults = named_faults(&outcome, options, settings.connections);
    let disagreements = disagreements(&outcome, options);
    let unsent = modes[0].publisher.as_ref().map_or(0, |publisher| publisher.unsent);
    let mut measurement = Measurement::new("verify", "delivery", settings, counts, outcome);
    measurement.per_unit(deliveries, "deliveries");
    measurement.received(received);
    measurement.figure_rate("messages_per_second", sent);
    figures.into_iter().for_each(|(name, count)| measurement.figure(name, count as f64));
    measurement.latency("reconnect", &reconnect);
    measurement.faults = faults;
    for (name, value) in [("rate_per_second", options.rate), ("churn_percent", options.churn_percent)] {
        measurement.setting(name, value);
    }
    measurement.setting("topics", options.topics.len());
    measurement.setting("plain", options.plain);
    measurement.setting("seed", options.seed);
    disagreements.into_iter().for_each(|reason| measurement.fail(reason));
    if unsent > 0 {
        measurement.fail(format!("{unsent} scheduled messages could not be sent"));
    }
    measurement
}

/// The first findings of all threads, under the names that a reader knows.
fn named_faults(outcome: &Outcome<Verify>, options: &Options, connections: usize) -> Vec<Fault> {
    let of_thread = |mode: &Verify| {
        let name = |finding: &Finding| Fault {
            what: finding.what,
            topic: options.topics[mode.checker.topic(finding.receiver)].clone(),
            subscriber: if finding.receiver < mode.subscribers {
                mode.first_subscriber + finding.receiver
            } else {
                connections + finding.receiver - mode.subscribers
            },
            expected: finding.expected,
            got: finding.got,
        };
        mode.checker.findings.iter().map(name).collect::<Vec<_>>()
    };
    outcome.modes.iter().flat_map(of_thread).take(FAULTS_NAMED_MAX).collect()
}

/// Topics whose ids begin elsewhere in one thread than in another.
fn disagreements(outcome: &Outcome<Verify>, options: &Options) -> Vec<String> {
    let differs = |topic: &usize| {
        let mut origins = outcome.modes.iter().filter_map(|mode| mode.checker.origin(*topic));
        origins.next().is_some_and(|first| origins.any(|other| other != first))
    };
    let reason = |topic: usize| format!("ids of {} differ between subscribers", options.topics[topic]);
    (0..options.topics.len()).filter(differs).map(reason).collect()
}
