//! `peer-fastwebsockets [--echo] PORT`: a relay on fastwebsockets behind hyper. One task per connection on a
//! current-thread runtime.

use bytes::Bytes;
use fastwebsockets::upgrade::{self, UpgradeFut};
use fastwebsockets::{FragmentCollector, FragmentCollectorRead, Frame, OpCode, Payload, WebSocketError};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::BufWriter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::sync::broadcast::{Sender, error::TryRecvError};

/// Messages that a connection may lag behind before it is closed.
const LAG_MAX: usize = 1024;

type Group = Sender<(OpCode, Bytes)>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let port = arguments.last().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| std::io::Error::other("the last argument must be a port"))?;
    let group = (!arguments.iter().any(|argument| argument == "--echo")).then(|| Group::new(LAG_MAX));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, group.clone()));
    }
}

/// An error of one connection ends it, and nothing else.
async fn serve(stream: TcpStream, group: Option<Group>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| accept(request, group.clone()));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

async fn accept(
    mut request: Request<Incoming>,
    group: Option<Group>,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgrade) = upgrade::upgrade(&mut request)?;
    tokio::spawn(async move {
        let _ = match group {
            Some(group) => relay(upgrade, group).await,
            None => echo(upgrade).await,
        };
    });
    Ok(response)
}

async fn relay(upgrade: UpgradeFut, group: Group) -> Result<(), WebSocketError> {
    // Without a buffer every frame is a write of its own, also when several are waiting.
    let (reader, writer) = upgrade.await?.split(|stream| {
        let (reader, writer) = tokio::io::split(stream);
        (reader, BufWriter::new(writer))
    });
    let mut reader = FragmentCollectorRead::new(reader);
    let writer = Mutex::new(writer);
    let mut inbox = group.subscribe();
    // Pongs, and the answer to a close frame.
    let mut answer = |frame| async {
        let mut writer = writer.lock().await;
        writer.write_frame(frame).await?;
        writer.flush().await
    };
    let read = async {
        loop {
            let frame = reader.read_frame(&mut answer).await?;
            match frame.opcode {
                OpCode::Close => return Ok(()),
                OpCode::Text | OpCode::Binary => {
                    let _ = group.send((frame.opcode, Bytes::copy_from_slice(&frame.payload)));
                }
                _ => {}
            }
        }
    };
    let write = async {
        while let Ok(first) = inbox.recv().await {
            let mut writer = writer.lock().await;
            let mut next = Ok(first);
            while let Ok((opcode, payload)) = next {
                writer.write_frame(Frame::new(true, opcode, None, Payload::Borrowed(&payload))).await?;
                next = inbox.try_recv();
            }
            if !matches!(next, Err(TryRecvError::Empty)) {
                break;
            }
            writer.flush().await?;
        }
        Ok(())
    };
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

async fn echo(upgrade: UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = FragmentCollector::new(upgrade.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}
