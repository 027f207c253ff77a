//! `peer-tungstenite [--echo] [--small-buffers] PORT`: a relay on tokio-tungstenite, with its default buffers or with
//! buffers of 4 KiB. One task per connection on a current-thread runtime.

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, Sender};
use tokio_tungstenite::tungstenite::{Error, Message, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};

/// Messages that a connection may lag behind before it is closed.
const LAG_MAX: usize = 1024;
const SMALL_BUFFER_BYTES: usize = 4096;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let port = arguments.last().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| std::io::Error::other("the last argument must be a port"))?;
    let mut config = WebSocketConfig::default();
    if has("--small-buffers") {
        config = config.read_buffer_size(SMALL_BUFFER_BYTES).write_buffer_size(SMALL_BUFFER_BYTES);
    }
    let group = (!has("--echo")).then(|| Sender::new(LAG_MAX));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, config, group.clone()));
    }
}

/// An error of one connection ends it, and nothing else.
async fn serve(stream: TcpStream, config: WebSocketConfig, group: Option<Sender<Message>>) {
    let _ = stream.set_nodelay(true);
    let Ok(mut socket) = accept_async_with_config(stream, Some(config)).await else {
        return;
    };
    let _ = match group {
        Some(group) => relay(&mut socket, &group).await,
        None => echo(&mut socket).await,
    };
}

async fn relay(socket: &mut WebSocketStream<TcpStream>, group: &Sender<Message>) -> Result<(), Error> {
    let mut inbox = group.subscribe();
    loop {
        tokio::select! {
            message = inbox.recv() => {
                let Ok(message) = message else {
                    return socket.close(None).await;
                };
                socket.feed(message).await?;
                loop {
                    match inbox.try_recv() {
                        Ok(message) => socket.feed(message).await?,
                        Err(broadcast::error::TryRecvError::Empty) => break,
                        Err(_) => return socket.close(None).await,
                    }
                }
                socket.flush().await?;
            }
            message = socket.next() => match message {
                Some(message) => {
                    let message = message?;
                    if message.is_text() || message.is_binary() {
                        let _ = group.send(message);
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

async fn echo(socket: &mut WebSocketStream<TcpStream>) -> Result<(), Error> {
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
