//! A stream whose writes leave together: answers to pipelined requests cost one system call for all of them.
//!
//! Invariants:
//! 1. What was written is handed to the kernel before the next read from the socket, and before its end. An HTTP/1
//!    server reads as soon as it has nothing else to do, so no answer waits for anything but a request that the same
//!    client had already sent behind it.
//! 2. At most [`HELD_BYTES`] are held. A client that does not read its answers is not read from.
//! 3. The connection's [`Place`] is told that it waits for the client only when nothing is left to be written.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::places::Place;

/// Bytes of answers that may be held back.
const HELD_BYTES: usize = 16 * 1024;

/// What a client that says `Expect: 100-continue` waits for.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A stream, and what is yet to be written to it.
pub(super) struct Coalesced<S> {
    stream: S,
    held: Vec<u8>,
    /// How many of the first bytes held have been written.
    written: usize,
    /// The writer has bytes that were not taken.
    is_full: bool,
    place: Arc<Place>,
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    pub(super) fn new(stream: S, place: Arc<Place>) -> Self {
        Self { stream, held: Vec::new(), written: 0, is_full: false, place }
    }

    fn poll_release(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.held.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_hold(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() + bytes.len() > HELD_BYTES {
            ready!(self.poll_release(context))?;
        }
        if bytes.len() > HELD_BYTES {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_release(context))?;
        if !self.is_full {
            self.place.wait_for_client();
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_hold(context, bytes);
        self.is_full = written.is_pending();
        written
    }

    /// Nothing leaves yet: see the module. But for the word that a client waits for before it sends its body: it is
    /// written after the read that found no body yet, and nothing is read again until the body comes.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.held.ends_with(CONTINUE) {
            true => self.poll_release(context),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::super::places::Places;
    use super::super::testing;
    use super::*;

    async fn place() -> Arc<Place> {
        Places::new(1).take(|| ()).await.place().clone()
    }

    #[test]
    fn what_is_written_leaves_before_a_read_and_before_the_end() {
        testing::runtime().block_on(async {
            let (mut peer, stream) = duplex(1024);
            let mut stream = Coalesced::new(stream, place().await);
            stream.write_all(b"one").await.unwrap();
            stream.write_all(b"two").await.unwrap();
            stream.flush().await.unwrap();
            let mut seen = [0; 6];
            let early = std::future::poll_fn(|context| {
                let mut buffer = ReadBuf::new(&mut seen);
                Poll::Ready(Pin::new(&mut peer).poll_read(context, &mut buffer).is_ready())
            });
            assert!(!early.await, "nothing left before the read");
            peer.write_all(b"x").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
            peer.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"onetwo");
            stream.write_all(b"last").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"last");
        });
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_read_from() {
        testing::runtime().block_on(async {
            let (mut peer, stream) = duplex(64);
            let mut stream = Coalesced::new(stream, place().await);
            let bytes = vec![7; 3 * HELD_BYTES];
            peer.write_all(b"x").await.unwrap();
            stream.write_all(&bytes[..HELD_BYTES]).await.unwrap();
            let patience = std::time::Duration::from_millis(20);
            assert!(
                tokio::time::timeout(patience, stream.read_u8()).await.is_err(),
                "read ahead of its answers"
            );
            let writer = async {
                stream.write_all(&bytes[HELD_BYTES..]).await.unwrap();
                stream.read_u8().await.unwrap()
            };
            let mut seen = vec![0; bytes.len()];
            let (read, said) = tokio::join!(peer.read_exact(&mut seen), writer);
            assert_eq!((read.unwrap(), said), (bytes.len(), b'x'));
            assert_eq!(seen, bytes);
        });
    }
}
