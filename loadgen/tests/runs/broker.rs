//! A small server of topics with history and ids, to test `verify` against, with faults to order. Blocking threads.
//!
//! It speaks what `verify` needs: `/pubsub/TOPIC`, `/sub/TOPIC` plain or in ws+meta.nchan, `?since=EPOCH:OFFSET`.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::wire::{answer, frame, read_frame, read_head};

const EPOCH: u64 = 0x0123_4567_89ab_cdef;
/// As if others had published before.
const BASE: u64 = 500;

/// What the broker does wrong. Faults with a number concern that message of topic `t-0` at its first subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It is not delivered.
    Lose(u64),
    /// It is delivered twice.
    Repeat(u64),
    /// It is delivered after the next one.
    Swap(u64),
    /// Its last byte is another one.
    Damage(u64),
    /// Its text is delivered as binary data, or the other way round.
    Kind(u64),
    /// A message of somebody else takes its place.
    Intrude(u64),
    /// It is delivered to a subscriber of another topic as well.
    Misroute(u64),
    /// From it on, the offsets of all subscribers are too high by one.
    Renumber(u64),
    /// It has another epoch.
    Epoch(u64),
    /// It comes without its header.
    Headless(u64),
    /// With it the connection is closed with code 1008.
    Close(u64),
    /// A resume leaves the first message out.
    ResumeSkips,
    /// A resume begins with the message that the subscriber had last.
    ResumeRepeats,
    /// A resume is refused: `recovered:false`, and then live messages.
    ResumeForgets,
    /// A resume is taken for a new subscription without a word.
    ResumeIgnored,
    /// A resume is answered with 503.
    ResumeRefused,
    /// The subprotocol is not chosen.
    Declines,
    /// Closing handshakes are not answered.
    Deaf,
}

struct Subscriber {
    stream: TcpStream,
    framed: bool,
    held: Option<Vec<u8>>,
}

#[derive(Default)]
struct Topic {
    /// First byte of the frame, and payload.
    messages: Vec<(u8, Vec<u8>)>,
    subscribers: Vec<Subscriber>,
}

impl Topic {
    fn last_offset(&self) -> u64 {
        BASE + self.messages.len() as u64
    }
}

struct Broker {
    fault: Fault,
    topics: Mutex<HashMap<String, Topic>>,
}

/// Starts a broker on a free port; it lives as long as the test process.
pub(crate) fn start(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let broker = Arc::new(Broker { fault, topics: Mutex::default() });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, broker) = (stream.unwrap(), broker.clone());
            std::thread::spawn(move || broker.serve(stream));
        }
    });
    address
}

impl Broker {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let head = read_head(&mut stream)?;
        let target = head.split(' ').nth(1)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let publishes = path.starts_with("/pubsub/");
        let name = path.rsplit('/').next()?.to_owned();
        let offered = head.contains("Sec-WebSocket-Protocol: ws+meta.nchan\r\n");
        let framed = offered && self.fault != Fault::Declines;
        let since = query.strip_prefix("since=").map(|id| id.split_once(':').unwrap());
        if let Some((epoch, _)) = since {
            assert_eq!(epoch, format!("{EPOCH:016x}"), "loadgen resumes with the epoch that it was told");
            if self.fault == Fault::ResumeRefused {
                return stream
                    .write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                    .ok();
            }
        }
        {
            let mut topics = self.topics.lock().unwrap();
            let topic = topics.entry(name.clone()).or_default();
            let chosen = if framed { "Sec-WebSocket-Protocol: ws+meta.nchan\r\n" } else { "" };
            stream.write_all(answer(&head, chosen).as_bytes()).ok()?;
            if let Some((_, offset)) = since {
                stream.write_all(&self.missed(&name, topic, offset.parse().unwrap())).ok()?;
            }
            topic.subscribers.push(Subscriber { stream: stream.try_clone().ok()?, framed, held: None });
        }
        loop {
            match read_frame(&mut stream)? {
                (opcode @ (1 | 2), payload) if publishes => self.publish(&name, 0x80 | opcode, payload),
                (8, _) if self.fault == Fault::Deaf => {}
                (8, payload) => {
                    // No message may follow the close frame.
                    let mut topics = self.topics.lock().unwrap();
                    let own = stream.peer_addr().ok()?;
                    let topic = topics.get_mut(&name)?;
                    topic.subscribers.retain(|other| other.stream.peer_addr().is_ok_and(|peer| peer != own));
                    stream.write_all(&frame(0x88, &payload)).ok()?;
                    return stream.shutdown(Shutdown::Both).ok();
                }
                (opcode, _) => panic!("opcode {opcode} from loadgen on {path}"),
            }
        }
    }

    /// What a subscriber gets that had everything up to `offset`.
    fn missed(&self, name: &str, topic: &Topic, offset: u64) -> Vec<u8> {
        let from = match self.fault {
            Fault::ResumeSkips => offset + 2,
            Fault::ResumeRepeats => offset,
            Fault::ResumeIgnored => return Vec::new(),
            Fault::ResumeForgets => {
                let last = topic.last_offset();
                let notice = format!(
                    r#"{{"recovered":false,"topic":"{name}","epoch":"{EPOCH:016x}","offset":{last}}}"#
                );
                let header = "content-type: application/vnd.corecast.notice+json";
                let message = format!("id: {EPOCH:016x}:{last}\n{header}\n\n{notice}");
                return frame(0x81, message.as_bytes());
            }
            _ => offset + 1,
        };
        let messages = topic.messages.iter().zip(BASE + 1..).filter(|(_, offset)| *offset >= from);
        messages.flat_map(|((first, payload), offset)| framed(*first, EPOCH, offset, payload)).collect()
    }

    fn publish(&self, name: &str, first: u8, payload: Vec<u8>) {
        let mut topics = self.topics.lock().unwrap();
        let topic = topics.entry(name.to_owned()).or_default();
        topic.messages.push((first, payload.clone()));
        let number = topic.messages.len() as u64;
        // The publisher is among the subscribers: the first of those who are not is meant.
        let first_framed = topic.subscribers.iter().position(|subscriber| subscriber.framed);
        let fault = if name.ends_with("-0") { self.fault } else { Fault::None };
        for (index, subscriber) in topic.subscribers.iter_mut().enumerate() {
            let shift = u64::from(matches!(fault, Fault::Renumber(from) if number >= from));
            let whole = if subscriber.framed {
                framed(first, EPOCH, BASE + number + shift, &payload)
            } else {
                frame(first, &payload)
            };
            let bytes = if Some(index) == first_framed {
                faulty(fault, number, first, &payload, whole, &mut subscriber.held)
            } else {
                whole
            };
            // One that is gone is found out by its own thread.
            let _ = subscriber.stream.write_all(&bytes);
            if Some(index) == first_framed && fault == Fault::Close(number) {
                let _ = subscriber.stream.shutdown(Shutdown::Write);
            }
        }
        if fault == Fault::Misroute(number) {
            let other = topics.get_mut("t-1").unwrap();
            let offset = other.last_offset();
            let subscriber = other.subscribers.iter_mut().find(|subscriber| subscriber.framed).unwrap();
            subscriber.stream.write_all(&framed(first, EPOCH, offset, &payload)).unwrap();
        }
    }
}

fn faulty(
    fault: Fault,
    number: u64,
    first: u8,
    payload: &[u8],
    whole: Vec<u8>,
    held: &mut Option<Vec<u8>>,
) -> Vec<u8> {
    let offset = BASE + number;
    match fault {
        Fault::Lose(at) if at == number => Vec::new(),
        Fault::Repeat(at) if at == number => [whole.clone(), whole].concat(),
        Fault::Swap(at) if at == number => {
            *held = Some(whole);
            Vec::new()
        }
        Fault::Swap(_) => [whole, held.take().unwrap_or_default()].concat(),
        Fault::Damage(at) if at == number => {
            let mut damaged = payload.to_vec();
            *damaged.last_mut().unwrap() ^= 1;
            framed(first, EPOCH, offset, &damaged)
        }
        Fault::Kind(at) if at == number => framed(first ^ 3, EPOCH, offset, payload),
        Fault::Intrude(at) if at == number => framed(first, EPOCH, offset, b"hello"),
        Fault::Epoch(at) if at == number => framed(first, EPOCH + 1, offset, payload),
        Fault::Headless(at) if at == number => frame(first, payload),
        Fault::Close(at) if at == number => {
            frame(0x88, &[&1008_u16.to_be_bytes()[..], b"slow consumer"].concat())
        }
        _ => whole,
    }
}

/// A message in ws+meta.nchan; text says its type, binary data leaves that out.
fn framed(first: u8, epoch: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let content_type = if first == 0x81 { "content-type: text/plain\n" } else { "" };
    frame(first, &[format!("id: {epoch:016x}:{offset}\n{content_type}\n").as_bytes(), payload].concat())
}
