//! The send queue of a connection whose socket takes less than there is to send.
//!
//! `cargo bench --bench send_queue` measures; `cargo test --benches` runs every body once. A queue exists only while a
//! connection is behind, so each turn begins with a new one. Filling it, and emptying the far end of the socket, is
//! measured only where the name says so.

use std::hint::black_box;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use corecast::MessageKind;
use corecast::frame::Frame;
use corecast::shard::bench_support::{SendQueue, SharedFrame, socket_pair};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Messages that are queued behind each other where they all go out.
const QUEUED: usize = 64;

/// Messages that wait for a connection when only the latest of each topic are kept.
const BEHIND: usize = 1_024;

fn shared_frame(payload_bytes: usize) -> SharedFrame {
    SharedFrame::new(Frame::new(MessageKind::Binary, &vec![0x55; payload_bytes], 0, None))
}

/// A queue of messages that belong to so many topics in turn.
fn filled(frame: &SharedFrame, messages: usize, topics: u64) -> SendQueue {
    let mut queue = SendQueue::default();
    (0..topics).cycle().take(messages).for_each(|topic| queue.push(frame, topic));
    queue
}

fn bench_push(c: &mut Criterion) {
    let frame = shared_frame(64);
    let mut group = c.benchmark_group("send queue push");
    group.throughput(Throughput::Elements(QUEUED as u64));
    group.bench_function("64 messages", |b| {
        b.iter(|| {
            let queue = filled(black_box(&frame), QUEUED, 1);
            assert_eq!(queue.queued_bytes(), QUEUED * (2 + 64));
            queue
        });
    });
}

fn bench_send(c: &mut Criterion) {
    let mut group = c.benchmark_group("send queue send");
    for (size, name) in [(64, "64 messages of 64 B"), (1_024, "64 messages of 1 KiB")] {
        let frame = shared_frame(size);
        let (near, mut far) = socket_pair().unwrap();
        group.throughput(Throughput::Bytes((QUEUED * size) as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| {
                        let mut queue = filled(&frame, QUEUED, 1);
                        let queued = queue.queued_bytes();
                        let begun = Instant::now();
                        assert!(queue.send(&near).unwrap(), "the socket takes it all");
                        let elapsed = begun.elapsed();
                        assert_eq!(read_all(&mut far), queued);
                        elapsed
                    })
                    .sum()
            });
        });
    }
    let frame = shared_frame(64);
    let (near, mut far) = socket_pair().unwrap();
    // As a connection is whose queue waits: until this fails, the socket has room.
    while filled(&frame, QUEUED, 1).send(&near).unwrap() {}
    group.throughput(Throughput::Elements(1));
    group.bench_function("a full socket", |b| {
        let mut queue = filled(&frame, QUEUED, 1);
        let queued = queue.queued_bytes();
        b.iter(|| assert!(!queue.send(&near).unwrap()));
        assert_eq!(queue.queued_bytes(), queued);
    });
    assert!(read_all(&mut far) > 0);
}

/// Reads what is there, and counts it.
fn read_all(socket: &mut TcpStream) -> usize {
    let mut buffer = [0; 64 * 1024];
    let mut total = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(bytes) => total += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return total,
            Err(error) => panic!("{error}"),
        }
    }
}

fn bench_keep_latest(c: &mut Criterion) {
    let frame = shared_frame(64);
    let mut group = c.benchmark_group("send queue keep_latest, 1,024 messages");
    group.throughput(Throughput::Elements(BEHIND as u64));
    // 128 is as many as `--max-subscriptions` allows a connection by default.
    for topics in [1, 16, 128] {
        group.bench_with_input(BenchmarkId::new("topics", topics), &topics, |b, &topics| {
            b.iter_custom(|iterations| {
                let turn = |_| {
                    let mut queue = filled(&frame, BEHIND, topics);
                    let begun = Instant::now();
                    let dropped = queue.keep_latest(0);
                    let elapsed = begun.elapsed();
                    assert_eq!(dropped as u64, BEHIND as u64 - (topics - 1));
                    elapsed
                };
                (0..iterations).map(turn).sum::<Duration>()
            });
        });
    }
}

criterion_group!(send_queue, bench_push, bench_send, bench_keep_latest);
criterion_main!(send_queue);
