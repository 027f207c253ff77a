//! A mesh hop: one message from one shard to another, through the SPSC ring between them, with the doorbell.
//!
//! `cargo bench --bench mesh` measures; `cargo test --benches` runs every body once. On one thread both ends take turns,
//! which is what a hop costs in instructions; across two threads a message goes there and back, and the time is that of
//! the two hops. The message is a delivery, and is moved all the way.

use std::sync::mpsc;
use std::thread;

use corecast::MessageKind;
use corecast::frame::Frame;
use corecast::shard::bench_support::{HERE, HopEnd, connect, topic_of};
use corecast::shard::mesh::Mesh;
use corecast::shard::message::ToShard;
use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};

/// Messages that leave together in one pass.
const PASS: usize = 64;

/// Looks at an empty ring before the thread lets others run.
const LOOKS: u32 = 100;

fn delivery() -> ToShard {
    let frame = Frame::new(MessageKind::Binary, &[0x55; 64], 0, None);
    ToShard::Deliver { topic: topic_of(HERE, "hop"), frame }
}

fn meshes() -> [Mesh; 2] {
    connect().unwrap().0
}

fn bench_one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh hop, one thread");
    let [near, far] = meshes();
    let (mut near, mut far) = (HopEnd::new(near).unwrap(), HopEnd::new(far).unwrap());
    group.throughput(Throughput::Elements(1));
    group.bench_function("to a shard that is awake", |b| {
        let mut message = Some(delivery());
        b.iter(|| {
            near.send(message.take().unwrap());
            assert!(!near.ring_doorbells());
            message = far.try_receive();
        });
        assert!(message.is_some());
    });
    group.bench_function("to a shard that sleeps", |b| {
        let mut message = Some(delivery());
        b.iter(|| {
            far.fall_asleep();
            near.send(message.take().unwrap());
            assert!(near.ring_doorbells());
            near.submit().unwrap();
            far.submit().unwrap();
            far.wake_up();
            message = far.try_receive();
        });
        assert!(message.is_some());
    });
    group.throughput(Throughput::Elements(PASS as u64));
    group.bench_function("64 messages, to a shard that is awake", |b| {
        let mut messages: Vec<ToShard> = (0..PASS).map(|_| delivery()).collect();
        b.iter(|| {
            messages.drain(..).for_each(|message| near.send(message));
            assert!(!near.ring_doorbells());
            messages.extend(std::iter::from_fn(|| far.try_receive()));
            assert_eq!(messages.len(), PASS);
        });
    });
}

/// How a thread waits for a message.
#[derive(Clone, Copy)]
enum Wait {
    /// It looks again and again.
    Busy,
    /// It sleeps in its ring, and is knocked at.
    Asleep,
}

impl Wait {
    fn receive(self, end: &mut HopEnd) -> ToShard {
        if matches!(self, Self::Asleep) {
            return end.receive().unwrap();
        }
        let mut looks = 0;
        loop {
            if let Some(message) = end.try_receive() {
                return message;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                // Where both threads share a CPU, the other one has to come to its turn.
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

fn bench_two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh hops there and back, two threads");
    group.throughput(Throughput::Elements(1));
    group.bench_function("both awake", |b| there_and_back(b, Wait::Busy));
    group.bench_function("each sleeps in between", |b| there_and_back(b, Wait::Asleep));
}

fn there_and_back(b: &mut Bencher<'_>, wait: Wait) {
    let [near, far] = meshes();
    let (ready, started) = mpsc::channel();
    let other = thread::spawn(move || {
        let mut far = HopEnd::new(far).unwrap();
        ready.send(()).unwrap();
        let mut returned = 0_u64;
        loop {
            match wait.receive(&mut far) {
                ToShard::End => return returned,
                message => far.send(message),
            }
            far.ring_doorbells();
            returned += 1;
        }
    });
    // A knock before the other end is installed would be lost, and cost a tick.
    started.recv().unwrap();
    let mut near = HopEnd::new(near).unwrap();
    let mut message = Some(delivery());
    let mut sent = 0_u64;
    b.iter(|| {
        near.send(message.take().unwrap());
        near.ring_doorbells();
        sent += 1;
        message = Some(wait.receive(&mut near));
    });
    near.send(ToShard::End);
    near.ring_doorbells();
    near.submit().unwrap();
    assert_eq!(other.join().unwrap(), sent);
}

criterion_group!(mesh, bench_one_thread, bench_two_threads);
criterion_main!(mesh);
