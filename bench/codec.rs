//! The protocol layer beside tungstenite and fastwebsockets on the same bytes.
//!
//! `cargo bench --bench codec` measures; `cargo test --benches` runs every body once.
//! A whole message is read as a server reads it: `read` copies a batch of frames into the reader's own
//! buffer, as `recv` would, and the reader hands out every message in it.

use std::hint::black_box;
use std::io::{self, Cursor, Read, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use corecast::ws::frame::ClientHeader;
use corecast::ws::mask::unmask;
use corecast::ws::{Deflater, Event, Inflater, Limits, ServerHeader, Session, frame, utf8};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::{Message, Role, WebSocketContext};

const SIZES: [(usize, &str); 3] = [(64, "64 B"), (1024, "1 KiB"), (64 * 1024, "64 KiB")];
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Small frames are read in batches of about this many bytes.
const BATCH_BYTES: usize = 32 * 1024;
const LIMITS: Limits = Limits::new(1 << 20);

fn bench_unmask(c: &mut Criterion) {
    for (size, name) in SIZES {
        let mut group = c.benchmark_group(format!("unmask {name}"));
        group.throughput(Throughput::Bytes(size as u64));
        let mut payload = vec![0x55; size];
        group.bench_function("corecast", |b| b.iter(|| unmask(black_box(&mut payload), black_box(KEY), 0)));
        group.bench_function("fastwebsockets", |b| {
            b.iter(|| fastwebsockets::unmask(black_box(&mut payload), black_box(KEY)));
        });
        // tungstenite's function is private.
    }
}

fn bench_utf8(c: &mut Criterion) {
    for (size, name) in SIZES {
        for (script, unit) in [("ascii", "abcdefg "), ("mixed", "Ünïcödé €")] {
            let mut group = c.benchmark_group(format!("utf8 {script} {name}"));
            let text = unit.repeat(size / unit.len());
            let bytes = text.as_bytes();
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            group.bench_function("corecast", |b| b.iter(|| utf8::check(black_box(bytes)).is_ok()));
            group.bench_function("corecast streamed", |b| {
                b.iter(|| {
                    utf8::Utf8Stream::default()
                        .feed(black_box(bytes), |part| assert!(black_box(part).len() <= size))
                        .is_ok()
                });
            });
            group.bench_function("std", |b| b.iter(|| std::str::from_utf8(black_box(bytes)).is_ok()));
        }
    }
}

fn bench_header(c: &mut Criterion) {
    for (size, name) in SIZES {
        let frame = client_frame(0x82, &vec![0; size]);
        let head = &frame[..14];
        let mut group = c.benchmark_group(format!("header in {name}"));
        group.bench_function("corecast", |b| {
            b.iter(|| {
                let header = ClientHeader::parse(black_box(head), false).ok().flatten().unwrap();
                (header.opcode, header.fin, header.payload_bytes, header.mask)
            });
        });
        group.bench_function("tungstenite", |b| {
            b.iter(|| {
                let (header, bytes) =
                    FrameHeader::parse(&mut Cursor::new(black_box(head))).ok().flatten().unwrap();
                (header.opcode, header.is_final, bytes, header.mask)
            });
        });
        group.finish();
        let mut group = c.benchmark_group(format!("header out {name}"));
        group.bench_function("corecast", |b| {
            b.iter(|| ServerHeader::new(frame::BINARY, false, black_box(size)));
        });
        group.bench_function("tungstenite", |b| {
            b.iter(|| {
                let mut out = [0; 10];
                let header = FrameHeader { opcode: frame::BINARY, ..FrameHeader::default() };
                header.format(black_box(size) as u64, &mut &mut out[..]).is_ok().then_some(out)
            });
        });
    }
}

fn bench_message_in(c: &mut Criterion) {
    for (first, kind) in [(0x81, "text"), (0x82, "binary")] {
        for (size, name) in SIZES {
            let source = || Source::new(&client_frame(first, &vec![b'x'; size]));
            let messages = source().frames;
            let mut group = c.benchmark_group(format!("message in {kind} {name}"));
            group.throughput(Throughput::Elements(messages as u64));
            group.bench_function("corecast", |b| {
                let mut reader = CorecastReader::new(source());
                b.iter(|| assert_eq!(reader.read_batch(size), messages));
            });
            group.bench_function("tungstenite", |b| {
                let mut context = WebSocketContext::new(Role::Server, None);
                let mut source = source();
                b.iter(|| {
                    for _ in 0..messages {
                        match context.read(&mut source).unwrap() {
                            Message::Text(text) => assert_eq!(black_box(text).len(), size),
                            other => assert_eq!(black_box(other).len(), size),
                        }
                    }
                });
            });
            group.bench_function("fastwebsockets", |b| {
                let socket =
                    fastwebsockets::WebSocket::after_handshake(source(), fastwebsockets::Role::Server);
                let mut socket = fastwebsockets::FragmentCollector::new(socket);
                b.iter(|| {
                    for _ in 0..messages {
                        let message = ready(socket.read_frame()).unwrap();
                        assert_eq!(black_box(message.payload).len(), size);
                    }
                });
            });
        }
    }
}

fn bench_deflate(c: &mut Criterion) {
    for (size, name) in SIZES {
        let line = r#"{"symbol":"ACME","price":101.25,"size":300,"side":"buy","time":1700000000},"#;
        let message: Vec<u8> = line.bytes().cycle().take(size).collect();
        let mut group = c.benchmark_group(format!("deflate {name}"));
        group.throughput(Throughput::Bytes(size as u64));
        let mut deflater = Deflater::new(15);
        let mut out = Vec::new();
        group.bench_function("deflate", |b| {
            b.iter(|| {
                out.clear();
                deflater.deflate(black_box(&message), &mut out);
            });
        });
        out.clear();
        deflater.deflate(&message, &mut out);
        let mut inflater = Inflater::new();
        group.bench_function("inflate", |b| {
            b.iter(|| inflater.inflate(black_box(&out), size).map(<[u8]>::len).unwrap());
        });
    }
}

/// A masked frame with `first` as its first byte.
fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0xff);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&KEY);
    bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// An endless stream of one frame, read in batches of whole frames if the reader's buffer allows it.
struct Source {
    batch: Vec<u8>,
    frames: usize,
    at: usize,
}

impl Source {
    fn new(frame: &[u8]) -> Self {
        let frames = (BATCH_BYTES / frame.len()).max(1);
        Self { batch: frame.repeat(frames), frames, at: 0 }
    }

    fn read_into(&mut self, buf: &mut [u8]) -> usize {
        let bytes = buf.len().min(self.batch.len() - self.at);
        buf[..bytes].copy_from_slice(&self.batch[self.at..self.at + bytes]);
        self.at = (self.at + bytes) % self.batch.len();
        bytes
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_into(buf))
    }
}

impl Write for Source {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = self.read_into(buf.initialize_unfilled());
        buf.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Source {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The output of a future that never waits.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a source always has bytes"),
    }
}

/// Reads as a shard does: one buffer for all connections, one session for each.
struct CorecastReader {
    source: Source,
    buffer: Vec<u8>,
    session: Session,
}

impl CorecastReader {
    fn new(source: Source) -> Self {
        // tungstenite's default, so that both read alike.
        Self { source, buffer: vec![0; 128 * 1024], session: Session::default() }
    }

    /// The messages of one `recv`, each of which must have `size` bytes.
    fn read_batch(&mut self, size: usize) -> usize {
        let bytes = self.source.read_into(&mut self.buffer);
        let mut input = &mut self.buffer[..bytes];
        let mut messages = 0;
        while let Some(event) = self.session.next_event(&mut input, &LIMITS, None).unwrap() {
            let Event::Message(payload) = event else { panic!("{event:?}") };
            assert_eq!(black_box(payload).as_bytes().len(), size);
            messages += 1;
        }
        messages
    }
}

criterion_group!(codec, bench_unmask, bench_utf8, bench_header, bench_message_in, bench_deflate);
criterion_main!(codec);
