//! `peer-tungstenite [--echo] [--small-buffers] PORT`: a relay on tokio-tungstenite, with its default buffers or with
//! buffers of 4 KiB. Two tasks per connection, one that reads and one that writes, on a current-thread runtime.

use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::broadcast::{Receiver, Sender};
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
    let Ok(socket) = accept_async_with_config(stream, Some(config)).await else {
        return;
    };
    let _ = match group {
        Some(group) => relay(socket, group).await,
        None => echo(socket).await,
    };
}

/// Reads in a task of its own: each poll of the reading side costs tungstenite a look at the socket and a read buffer made
/// ready, which one task for both directions pays with every message that it sends.
async fn relay(socket: WebSocketStream<TcpStream>, group: Sender<Message>) -> Result<(), Error> {
    let mut inbox = group.subscribe();
    let (mut sink, mut messages) = socket.split();
    let mut reader = tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if message.is_text() || message.is_binary() {
                let _ = group.send(message);
            }
        }
    });
    let result = tokio::select! {
        result = write_all(&mut sink, &mut inbox) => result,
        _ = &mut reader => Ok(()),
    };
    reader.abort();
    result
}

/// Sends what comes, and with one flush all that has come, until the client has fallen too far behind.
async fn write_all(
    sink: &mut SplitSink<WebSocketStream<TcpStream>, Message>,
    inbox: &mut Receiver<Message>,
) -> Result<(), Error> {
    while let Ok(message) = inbox.recv().await {
        sink.feed(message).await?;
        loop {
            match inbox.try_recv() {
                Ok(message) => sink.feed(message).await?,
                Err(TryRecvError::Empty) => break,
                Err(_) => return sink.close().await,
            }
        }
        sink.flush().await?;
    }
    sink.close().await
}

async fn echo(mut socket: WebSocketStream<TcpStream>) -> Result<(), Error> {
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
