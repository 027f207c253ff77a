//! The control port's connections. HTTP/1.1 only, and every wait on a client has an end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::{debug, warn};

use super::coalesce::Coalesced;

/// Connections at a time; more wait in the listener's backlog.
const MAX_CONTROL_CONNECTIONS: u32 = 256;

/// Time for a complete request head, from the end of the request before it: it ends idle connections too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for which a client may leave an answer unread.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request head; over it: 431.
const HEAD_BYTES: usize = 16 * 1024;

/// Pause after a failed accept, for instance when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time that running requests have left when the server ends.
const END_GRACE: Duration = Duration::from_secs(1);

/// The control port.
pub(super) struct Server {
    listener: TcpListener,
    router: Router,
    slots: Arc<Semaphore>,
}

impl Server {
    /// Must be called inside the runtime.
    pub(super) fn new(listener: std::net::TcpListener, router: Router) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let slots = Arc::new(Semaphore::new(MAX_CONTROL_CONNECTIONS as usize));
        Ok(Self { listener: TcpListener::from_std(listener)?, router, slots })
    }

    /// Serves until the sender of `stopped` is dropped; then finishes the requests that are running.
    pub(super) async fn run(self, mut stopped: watch::Receiver<()>) {
        let stop = stopped.clone();
        tokio::select! {
            () = self.accept_all(stop) => {}
            _ = stopped.changed() => {}
        }
        let ended = self.slots.acquire_many(MAX_CONTROL_CONNECTIONS);
        if tokio::time::timeout(END_GRACE, ended).await.is_err() {
            debug!("control connections were cut");
        }
    }

    async fn accept_all(&self, stopped: watch::Receiver<()>) {
        let mut failing = false;
        while let Ok(slot) = self.slots.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    failing = false;
                    tokio::spawn(serve(stream, self.router.clone(), slot, stopped.clone()));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "the control port cannot accept connections");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether accept failed because the connection had already gone, as opposed to a lack of something.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn serve(
    stream: TcpStream,
    router: Router,
    slot: OwnedSemaphorePermit,
    mut stopped: watch::Receiver<()>,
) {
    // Neither option is needed to be right; a socket that refuses them has already failed.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(Coalesced::new(stream)), TowerToHyperService::new(router))
    );
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "control connection failed");
    }
    drop(slot);
}
