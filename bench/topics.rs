//! Topics on one shard: subscriptions, and the owner's part of a publish.
//!
//! `cargo bench --bench topics` measures; `cargo test --benches` runs every body once. Times are for one subscription or
//! message of the [`PASS`] that a pass has of them, and include the end of a pass for subscriptions: the report to the
//! owner, and the forgetting of a topic without subscribers. What a pass sends, and the making of frames, is not
//! measured here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::frame::Frame;
use corecast::shard::bench_support::{ELSEWHERE, HERE, StillShard, topic_of};
use corecast::{MessageKind, TopicName};
use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};

/// Subscriptions, or messages, in one pass.
const PASS: u32 = 64;

/// Subscribers that a busy topic has already.
const CROWD: u32 = 1_000;

/// Messages that are kept of a topic where any are.
const HISTORY: usize = 1_000;

/// What is measured of a connection's stay in a topic.
#[derive(Clone, Copy)]
enum Half {
    Subscribe,
    Unsubscribe,
}

fn bench_subscriptions(c: &mut Criterion) {
    for (half, name) in [(Half::Subscribe, "subscribe"), (Half::Unsubscribe, "unsubscribe")] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        group.bench_function("only subscriber", |b| {
            let topics: Vec<TopicName> =
                (0..PASS).map(|connection| topic_of(HERE, &format!("own-{connection}"))).collect();
            stay(b, half, 0, |connection| &topics[connection as usize]);
        });
        let topic = topic_of(HERE, "crowd");
        group.bench_function("among 1,000", |b| stay(b, half, CROWD, |_| &topic));
        let topic = topic_of(ELSEWHERE, "crowd");
        group.bench_function("among 1,000, owner elsewhere", |b| stay(b, half, CROWD, |_| &topic));
    }
}

/// [`PASS`] connections enter topics in one pass and leave them in the next, beside a crowd that stays.
fn stay<'t>(b: &mut Bencher<'_>, half: Half, crowd: u32, topic_for: impl Fn(u32) -> &'t TopicName) {
    let mut shard = StillShard::new(PASS + crowd, 0).unwrap();
    for connection in PASS..PASS + crowd {
        shard.subscribe(connection, topic_for(connection - PASS));
    }
    shard.report_subscribers();
    shard.settle();
    b.iter_custom(|iterations| {
        in_passes(iterations, |count| {
            let begun = Instant::now();
            for connection in 0..count {
                shard.subscribe(connection, topic_for(connection));
            }
            shard.report_subscribers();
            let subscribing = begun.elapsed();
            shard.settle();
            assert_eq!(shard.subscriptions(), u64::from(crowd + count));
            let begun = Instant::now();
            for connection in 0..count {
                shard.unsubscribe(connection, topic_for(connection));
            }
            shard.report_subscribers();
            let unsubscribing = begun.elapsed();
            shard.settle();
            assert_eq!(shard.subscriptions(), u64::from(crowd));
            match half {
                Half::Subscribe => subscribing,
                Half::Unsubscribe => unsubscribing,
            }
        })
    });
}

/// Where a topic has subscribers.
#[derive(Clone, Copy)]
enum Audience {
    Nobody,
    Here,
    Everywhere,
}

fn bench_publish(c: &mut Criterion) {
    for (history, name) in [(0, "publish"), (HISTORY, "publish with history")] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        group.bench_function("no subscribers", |b| publish(b, history, Audience::Nobody));
        group.bench_function("subscribers here", |b| publish(b, history, Audience::Here));
        group.bench_function("subscribers on both shards", |b| publish(b, history, Audience::Everywhere));
    }
}

/// The owner takes messages; where it keeps some, it has as many already as it keeps.
fn publish(b: &mut Bencher<'_>, history: usize, audience: Audience) {
    let topic = topic_of(HERE, "published");
    let mut shard = StillShard::new(CROWD, history).unwrap();
    if !matches!(audience, Audience::Nobody) {
        (0..CROWD).for_each(|connection| shard.subscribe(connection, &topic));
    }
    if matches!(audience, Audience::Everywhere) {
        shard.set_subscribers_elsewhere(&topic, CROWD);
    }
    let mut published = 0;
    let mut pass = |count: u32| {
        let frames: Vec<Arc<Frame>> =
            (0..count).map(|_| Frame::new(MessageKind::Binary, &[0x55; 64], 0, None)).collect();
        let begun = Instant::now();
        for frame in frames {
            shard.publish(topic.clone(), frame);
        }
        let elapsed = begun.elapsed();
        published += u64::from(count);
        let sent = if matches!(audience, Audience::Everywhere) { count } else { 0 };
        assert_eq!(shard.settle(), sent as usize);
        let (offset, kept) = shard.published(&topic);
        assert_eq!(offset, published);
        assert_eq!(kept as u64, published.min(history as u64));
        elapsed
    };
    in_passes(history as u64, &mut pass);
    b.iter_custom(|iterations| in_passes(iterations, &mut pass));
}

/// The time that so many take, [`PASS`] at a time; `pass` does some and says how long that took.
fn in_passes(mut left: u64, mut pass: impl FnMut(u32) -> Duration) -> Duration {
    let mut elapsed = Duration::ZERO;
    while left > 0 {
        let count = left.min(u64::from(PASS));
        elapsed += pass(count as u32);
        left -= count;
    }
    elapsed
}

criterion_group!(topics, bench_subscriptions, bench_publish);
criterion_main!(topics);
