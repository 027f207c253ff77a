//! The control port's connections. HTTP/1.1 only, and every wait on a client has an end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::coalesce::Coalesced;
use super::places::{Places, Taken};
use super::{Shared, api};

/// Connections at a time. For one more, the one that has waited longest for its client is cut; where none does, the
/// newcomer waits.
const MAX_CONTROL_CONNECTIONS: usize = 256;

/// Interval at which the log tells how many connections were cut for others.
const CUT_REPORT_INTERVAL: Duration = Duration::from_secs(60);

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
    places: Arc<Places>,
    shared: Arc<Shared>,
}

impl Server {
    /// Must be called inside the runtime.
    pub(super) fn new(listener: std::net::TcpListener, shared: Arc<Shared>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let places = Places::new(MAX_CONTROL_CONNECTIONS);
        let (listener, router) = (TcpListener::from_std(listener)?, api::router(shared.clone()));
        Ok(Self { listener, router, places, shared })
    }

    /// Serves until the sender of `stopped` is dropped; then finishes the requests that are running.
    pub(super) async fn run(self, mut stopped: watch::Receiver<()>) {
        let stop = stopped.clone();
        tokio::select! {
            () = self.accept_all(stop) => {}
            _ = stopped.changed() => {}
        }
        if tokio::time::timeout(END_GRACE, self.places.all_free()).await.is_err() {
            debug!("control connections were cut");
        }
    }

    async fn accept_all(&self, stopped: watch::Receiver<()>) {
        let (mut failing, mut cuts) = (false, Cuts::default());
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    failing = false;
                    let on_cut = || {
                        self.shared.connections_cut.fetch_add(1, Relaxed);
                        cuts.count();
                    };
                    let taken = self.places.take(on_cut).await;
                    tokio::spawn(serve(stream, self.router.clone(), taken, stopped.clone()));
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

/// Connections that were cut for others, and what the log has been told of them.
#[derive(Default)]
struct Cuts {
    unreported: u64,
    reported: Option<Instant>,
}

impl Cuts {
    fn count(&mut self) {
        self.unreported += 1;
        if self.reported.is_none_or(|at| at.elapsed() >= CUT_REPORT_INTERVAL) {
            self.reported = Some(Instant::now());
            let cut = std::mem::take(&mut self.unreported);
            warn!(
                cut,
                "all {MAX_CONTROL_CONNECTIONS} connections of the control port are taken; those that have kept it \
                 waiting longest for a request, or for the rest of one, are cut for newcomers"
            );
        }
    }
}

/// Whether accept failed because the connection had already gone, as opposed to a lack of something.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn serve(stream: TcpStream, router: Router, taken: Taken, mut stopped: watch::Receiver<()>) {
    // Neither option is needed to be right; a socket that refuses them has already failed.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
    let (place, handlers) = (taken.place(), TowerToHyperService::new(router));
    let service = service_fn(|mut request: hyper::Request<_>| {
        place.begin_answer();
        request.extensions_mut().insert(place.clone());
        let (place, answer) = (place.clone(), handlers.call(request));
        async move {
            let answer = answer.await;
            place.end_answer();
            answer
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(Coalesced::new(stream, place.clone())), service)
    );
    let outcome = tokio::select! {
        // First: between the choice of this connection and its end, no request may be taken up.
        biased;
        () = place.cut_for_another() => Ok(()),
        outcome = connection.as_mut() => outcome,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%error, "control connection failed");
    }
}
