//! A small relay of its own to test loadgen against, with faults to order. Blocking threads.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};

use crate::wire::{answer, frame, read_frame, read_head};

/// What the relay does wrong; to the client that connected first, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Nothing: every message to every client.
    Good,
    /// Nothing: every message back to its sender only.
    Echo,
    /// Like `Echo`, but message number `.0` does not come back.
    EchoLose(usize),
    /// Like `Echo`, but message number `.0` comes back twice.
    EchoRepeat(usize),
    /// Good, but every handshake and every message takes `.0` milliseconds.
    Slow(u64),
    /// Good, but in fragments with a ping between them, written byte by byte.
    Dribble,
    /// Message number `.0` is not delivered.
    Lose(usize),
    /// Message number `.0` is delivered twice.
    Repeat(usize),
    /// Like `Lose`, but to the client that connected last.
    LoseAtLast(usize),
    /// Like `Repeat`, but to the client that connected last.
    RepeatAtLast(usize),
    /// Message number `.0` is delivered after the next one.
    Swap(usize),
    /// The last byte of message number `.0` is another one.
    Damage(usize),
    /// A byte of the send time in message number `.0` is another one.
    DamageTime(usize),
    /// Message number `.0` is delivered as text.
    AsText(usize),
    /// Like `Echo`, but as text.
    EchoAsText,
    /// With message number `.0` the connection is closed with code 1008.
    Close(usize),
    /// With message number `.0` the connection ends without a close frame.
    Hang(usize),
    /// A ping stands right behind the answer to the handshake.
    PingAtOnce,
    /// A message of somebody else goes before message number `.0`.
    Intrude(usize),
    /// Every handshake is answered with 403.
    Refuse,
    /// Handshakes from number `.0` on, before number `.1`, are answered with 503.
    RefuseHandshakes(usize, usize),
    /// Good, with permessage-deflate for what is long enough.
    Deflate,
    /// Echo, compressed likewise.
    DeflateEcho,
    /// Like `Deflate`, but the compressed message number `.0` comes in fragments.
    DeflateFragments(usize),
    /// Like `Deflate`, but the payload of message number `.0` is not compressed although RSV1 says so.
    DeflateLie(usize),
    /// Like `Deflate`, but message number `.0` has RSV1 on a ping before it.
    DeflatePing(usize),
    /// The handshake's answer has a wrong parameter of permessage-deflate.
    DeflateMisnegotiated,
}

impl Behaviour {
    /// What accepts permessage-deflate in the answer.
    fn accepts(self) -> &'static str {
        match self {
            Self::Deflate
            | Self::DeflateEcho
            | Self::DeflateFragments(_)
            | Self::DeflateLie(_)
            | Self::DeflatePing(_) => {
                "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
            }
            Self::DeflateMisnegotiated => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
            _ => "",
        }
    }
}

const COMPRESSED_FROM_BYTES: usize = 256;

struct State {
    clients: Vec<TcpStream>,
    handshakes: usize,
    messages: usize,
    held: Option<Vec<u8>>,
}

/// Starts a relay on a free port; it lives as long as the test process.
pub(crate) fn start(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State { clients: Vec::new(), handshakes: 0, messages: 0, held: None }));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let state = state.clone();
            std::thread::spawn(move || serve(stream, &state, behaviour));
        }
    });
    address
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, behaviour: Behaviour) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let head = read_head(&mut stream)?;
    if behaviour == Behaviour::Refuse {
        return stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").ok();
    }
    if let Behaviour::RefuseHandshakes(from, to) = behaviour {
        let mut state = state.lock().unwrap();
        state.handshakes += 1;
        if (from + 1..=to).contains(&state.handshakes) {
            return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").ok();
        }
    }
    if let Behaviour::Slow(milliseconds) = behaviour {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
    let accepts = behaviour.accepts();
    let answer = answer(&head, accepts);
    {
        let mut state = state.lock().unwrap();
        let ping: &[u8] = if behaviour == Behaviour::PingAtOnce { &[0x89, 0] } else { &[] };
        stream.write_all(&[answer.as_bytes(), ping].concat()).ok()?;
        state.clients.push(stream.try_clone().ok()?);
    }
    loop {
        let (opcode, payload) = read_frame(&mut stream)?;
        match opcode {
            2 if matches!(behaviour, Behaviour::Echo | Behaviour::DeflateEcho) => {
                stream.write_all(&message(behaviour, &payload)).ok()?;
            }
            2 if behaviour == Behaviour::EchoAsText => stream.write_all(&frame(0x81, &payload)).ok()?,
            2 if matches!(behaviour, Behaviour::EchoLose(_) | Behaviour::EchoRepeat(_)) => {
                let mut state = state.lock().unwrap();
                let copies = match behaviour {
                    Behaviour::EchoLose(at) if at == state.messages => 0,
                    Behaviour::EchoRepeat(at) if at == state.messages => 2,
                    _ => 1,
                };
                state.messages += 1;
                stream.write_all(&frame(0x82, &payload).repeat(copies)).ok()?;
            }
            2 => relay(&mut state.lock().unwrap(), behaviour, payload),
            8 => return stream.write_all(&frame(0x88, &payload)).ok(),
            10 => assert_eq!(payload, b"still there?"),
            other => panic!("opcode {other} from loadgen"),
        }
    }
}

fn relay(state: &mut State, behaviour: Behaviour, payload: Vec<u8>) {
    if let Behaviour::Slow(milliseconds) = behaviour {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
    let number = state.messages;
    state.messages += 1;
    let whole = message(behaviour, &payload);
    let at_last = matches!(behaviour, Behaviour::LoseAtLast(_) | Behaviour::RepeatAtLast(_));
    let concerned = if at_last { state.clients.len() - 1 } else { 0 };
    for (index, client) in state.clients.iter_mut().enumerate() {
        let bytes = if index == concerned {
            faulty(behaviour, number, &payload, &whole, &mut state.held)
        } else {
            whole.clone()
        };
        if behaviour == Behaviour::Dribble {
            let (first, second) = payload.split_at(payload.len() / 2);
            let parts = [frame(0x02, first), frame(0x89, b"still there?"), frame(0x80, second)].concat();
            parts.iter().for_each(|byte| drop(client.write_all(&[*byte])));
        } else {
            let _ = client.write_all(&bytes);
        }
        let ends = matches!(behaviour, Behaviour::Close(at) | Behaviour::Hang(at) if at == number);
        if index == 0 && ends {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

fn faulty(
    behaviour: Behaviour,
    number: usize,
    payload: &[u8],
    whole: &[u8],
    held: &mut Option<Vec<u8>>,
) -> Vec<u8> {
    match behaviour {
        Behaviour::Lose(at) | Behaviour::LoseAtLast(at) if at == number => Vec::new(),
        Behaviour::Repeat(at) | Behaviour::RepeatAtLast(at) if at == number => [whole, whole].concat(),
        Behaviour::Swap(at) if at == number => {
            *held = Some(whole.to_vec());
            Vec::new()
        }
        Behaviour::Swap(_) => [whole.to_vec(), held.take().unwrap_or_default()].concat(),
        Behaviour::Damage(at) if at == number => {
            let mut damaged = payload.to_vec();
            *damaged.last_mut().unwrap() ^= 1;
            frame(0x82, &damaged)
        }
        Behaviour::DamageTime(at) if at == number => {
            let mut damaged = payload.to_vec();
            damaged[18] ^= 0x10;
            frame(0x82, &damaged)
        }
        Behaviour::AsText(at) if at == number => frame(0x81, payload),
        Behaviour::Close(at) if at == number => {
            frame(0x88, &[&1008_u16.to_be_bytes()[..], b"slow consumer"].concat())
        }
        Behaviour::Hang(at) if at == number => Vec::new(),
        Behaviour::DeflateFragments(at) if at == number => {
            let compressed = deflate(payload);
            let (first, second) = compressed.split_at(compressed.len() / 2);
            [frame(0x42, first), frame(0x80, second)].concat()
        }
        Behaviour::DeflateLie(at) if at == number => frame(0xC2, payload),
        Behaviour::DeflatePing(at) if at == number => [&frame(0xC9, b""), whole].concat(),
        Behaviour::Intrude(at) if at == number => [&frame(0x81, b"hello"), whole].concat(),
        _ => whole.to_vec(),
    }
}

/// The frame of a whole message; compressed if the handshake said so and it is long enough.
fn message(behaviour: Behaviour, payload: &[u8]) -> Vec<u8> {
    if behaviour.accepts().is_empty() || payload.len() < COMPRESSED_FROM_BYTES {
        frame(0x82, payload)
    } else {
        frame(0xC2, &deflate(payload))
    }
}

fn deflate(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 1024);
    Compress::new(Compression::default(), false)
        .compress_vec(payload, &mut out, FlushCompress::Sync)
        .unwrap();
    out.truncate(out.len() - 4);
    out
}
