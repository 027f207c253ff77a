//! A small relay of its own to test loadgen against, with faults to order. Blocking threads.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use flate2::{Compress, Compression, FlushCompress};

/// What the relay does wrong; to the client that connected first, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Nothing: every message to every client.
    Good,
    /// Nothing: every message back to its sender only.
    Echo,
    /// Good, but in fragments with a ping between them, written byte by byte.
    Dribble,
    /// Message number `.0` is not delivered.
    Lose(usize),
    /// Message number `.0` is delivered twice.
    Repeat(usize),
    /// Message number `.0` is delivered after the next one.
    Swap(usize),
    /// The last byte of message number `.0` is another one.
    Damage(usize),
    /// With message number `.0` the connection is closed with code 1008.
    Close(usize),
    /// With message number `.0` the connection ends without a close frame.
    Hang(usize),
    /// A message of somebody else goes before message number `.0`.
    Intrude(usize),
    /// Every handshake is answered with 403.
    Refuse,
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
    messages: usize,
    held: Option<Vec<u8>>,
}

/// Starts a relay on a free port; it lives as long as the test process.
pub(crate) fn start(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State { clients: Vec::new(), messages: 0, held: None }));
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
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    if behaviour == Behaviour::Refuse {
        return stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").ok();
    }
    let accepts = behaviour.accepts();
    assert!(head.windows(24).any(|window| window == b"dGhlIHNhbXBsZSBub25jZQ=="));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accepts}\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    {
        let mut state = state.lock().unwrap();
        stream.write_all(answer.as_bytes()).ok()?;
        state.clients.push(stream.try_clone().ok()?);
    }
    loop {
        let (opcode, payload) = read_frame(&mut stream)?;
        match opcode {
            2 if matches!(behaviour, Behaviour::Echo | Behaviour::DeflateEcho) => {
                stream.write_all(&message(behaviour, &payload)).ok()?;
            }
            2 => relay(&mut state.lock().unwrap(), behaviour, payload),
            8 => return stream.write_all(&frame(0x88, &payload)).ok(),
            10 => assert_eq!(payload, b"still there?"),
            other => panic!("opcode {other} from loadgen"),
        }
    }
}

fn relay(state: &mut State, behaviour: Behaviour, payload: Vec<u8>) {
    let number = state.messages;
    state.messages += 1;
    let whole = message(behaviour, &payload);
    for (index, client) in state.clients.iter_mut().enumerate() {
        let bytes = if index == 0 {
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
        Behaviour::Lose(at) if at == number => Vec::new(),
        Behaviour::Repeat(at) if at == number => [whole, whole].concat(),
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

fn read_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    assert_eq!(head[0] & 0xF0, 0x80, "loadgen sends whole messages");
    assert_eq!(head[1] & 0x80, 0x80, "client frames are masked");
    let length = match head[1] & 0x7F {
        126 => {
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes).ok()?;
            u64::from(u16::from_be_bytes(bytes))
        }
        127 => {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes).ok()?;
            u64::from_be_bytes(bytes)
        }
        short => u64::from(short),
    };
    let mut key = [0; 4];
    stream.read_exact(&mut key).ok()?;
    let mut payload = vec![0; usize::try_from(length).ok()?];
    stream.read_exact(&mut payload).ok()?;
    payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    Some((head[0] & 0x0F, payload))
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(length as u8),
        length @ 126..=0xFFFF => {
            bytes.push(126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}
