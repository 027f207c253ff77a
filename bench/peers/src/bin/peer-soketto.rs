//! `peer-soketto [--echo] PORT`: a relay on soketto. One task per connection on a current-thread runtime.

use std::sync::Arc;

use soketto::connection::Error;
use soketto::handshake::{Server, server::Response};
use soketto::{Data, Receiver, Sender};
use tokio::io::{BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, error::TryRecvError};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// Messages that a connection may lag behind before it is closed.
const LAG_MAX: usize = 1024;

/// soketto makes several small reads and writes for a frame and leaves it to its users to buffer them.
type Stream = Compat<BufReader<BufWriter<TcpStream>>>;
type Group = broadcast::Sender<Message>;

#[derive(Debug, Clone)]
enum Message {
    Text(Arc<str>),
    Binary(Arc<[u8]>),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let port = arguments.last().and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| std::io::Error::other("the last argument must be a port"))?;
    let group = (!arguments.iter().any(|argument| argument == "--echo")).then(|| Group::new(LAG_MAX));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let group = group.clone();
        tokio::spawn(async move {
            // An error of one connection ends it, and nothing else.
            let _ = serve(stream, group).await;
        });
    }
}

async fn serve(stream: TcpStream, group: Option<Group>) -> Result<(), soketto::BoxedError> {
    stream.set_nodelay(true)?;
    let mut server = Server::new(BufReader::new(BufWriter::new(stream)).compat());
    let key = server.receive_request().await?.key();
    server.send_response(&Response::Accept { key, protocol: None }).await?;
    let (sender, receiver) = server.into_builder().finish();
    match group {
        Some(group) => relay(sender, receiver, group).await?,
        None => echo(sender, receiver).await?,
    }
    Ok(())
}

async fn relay(
    mut sender: Sender<Stream>,
    mut receiver: Receiver<Stream>,
    group: Group,
) -> Result<(), Error> {
    let mut inbox = group.subscribe();
    let read = async {
        loop {
            let message = receive(&mut receiver).await?;
            let _ = group.send(message);
        }
    };
    let write = async {
        while let Ok(first) = inbox.recv().await {
            let mut next = Ok(first);
            while let Ok(message) = next {
                send(&mut sender, &message).await?;
                next = inbox.try_recv();
            }
            if !matches!(next, Err(TryRecvError::Empty)) {
                break;
            }
            sender.flush().await?;
        }
        sender.close().await
    };
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

async fn echo(mut sender: Sender<Stream>, mut receiver: Receiver<Stream>) -> Result<(), Error> {
    let mut payload = Vec::new();
    loop {
        payload.clear();
        match receiver.receive_data(&mut payload).await? {
            Data::Text(_) => sender.send_text(String::from_utf8_lossy(&payload)).await?,
            Data::Binary(_) => sender.send_binary_mut(&mut payload).await?,
        }
        sender.flush().await?;
    }
}

async fn receive(receiver: &mut Receiver<Stream>) -> Result<Message, Error> {
    let mut payload = Vec::new();
    Ok(match receiver.receive_data(&mut payload).await? {
        Data::Text(_) => Message::Text(String::from_utf8_lossy(&payload).into()),
        Data::Binary(_) => Message::Binary(payload.into()),
    })
}

async fn send(sender: &mut Sender<Stream>, message: &Message) -> Result<(), Error> {
    match message {
        Message::Text(text) => sender.send_text(text).await,
        Message::Binary(bytes) => sender.send_binary(bytes).await,
    }
}
