//! The control thread: everything that is not the hot path, on well-kept libraries.
//!
//! | Module | Owns |
//! |---|---|
//! | `dispatcher` | the rings to and from the shards; requests that await an answer; the drain |
//! | `server`, `places`, `coalesce` | the HTTP connections; who makes room for whom; answers that leave together |
//! | `api` | the routes and `/pub/<topic>` |
//! | `batch` | `POST /pub` |
//! | `publisher` | publishes of the program's other threads |
//! | `metrics` | `GET /metrics` |
//! | `health` | `GET /live` and `GET /ready` |
//! | `reload` | the settings in force, and their change on SIGHUP |
//! | `live`, `status` | the live page, and its figures as JSON |
//!
//! Invariants:
//! 1. One task, the dispatcher, owns the rings. Handlers and publishers send it commands and wait for the answer,
//!    handlers for a bounded time: a dead shard costs a request its timeout and nothing else.
//! 2. A drain reaches every shard: what a full ring refuses is sent again until it is taken.
//! 3. The thread ends, and the shards with it, when every shard has drained, or when the time for it is over.
//!
//! This is the only module that names tokio.

mod api;
mod batch;
mod coalesce;
mod dispatcher;
mod health;
mod live;
mod metrics;
mod places;
mod publisher;
mod reload;
mod server;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use axum::http::HeaderValue;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::clock;
use crate::config::{Config, PublishToken};
use crate::shard::mesh::ControlLink;
use crate::shard::stats::ShardStats;
use dispatcher::{Command, Dispatcher};

pub use publisher::{PublishError, Publisher};
pub use reload::{Reload, Reloader};

/// Commands of handlers and publishers that the dispatcher has not taken yet; more wait where they come from.
const COMMAND_QUEUE: usize = 256;

/// What the control thread needs to know.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// Largest payload of a publish, in bytes.
    pub max_message_bytes: usize,
    /// Connections that the shards may have in sum.
    pub max_connections: u64,
    /// Bearer token that a publish must show.
    pub publish_token: Option<PublishToken>,
    /// Length of a drain in milliseconds.
    pub drain_window_millis: u64,
    /// The process is nothing but this server: it drains on SIGTERM and SIGINT, and tells a service manager.
    pub for_process: bool,
    /// Where WebSocket clients connect, for the live page.
    pub websocket_addresses: Vec<SocketAddr>,
}

impl ControlSettings {
    /// Settings for a server that is a process of its own.
    #[must_use]
    pub fn new(config: &Config, max_connections: u64) -> Self {
        Self {
            max_message_bytes: config.max_message_bytes,
            max_connections,
            publish_token: config.publish_token.clone(),
            drain_window_millis: config.drain_window_millis,
            for_process: true,
            websocket_addresses: config.listen.clone(),
        }
    }
}

/// How far the server is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    /// It serves.
    Not,
    /// It drains over the window.
    Drain,
    /// It ends at once.
    Now,
}

/// Stops the server, from any thread. Harmless once the server has ended.
#[derive(Clone, Debug)]
pub struct ControlHandle(Arc<watch::Sender<Stop>>);

impl ControlHandle {
    /// Drains: stops accepting, closes connections evenly over the drain window, ends.
    pub fn shutdown(&self) {
        self.raise(|stop| stop.max(Stop::Drain));
    }

    /// Closes all connections and ends at once.
    pub fn stop_now(&self) {
        self.raise(|_| Stop::Now);
    }

    /// What a signal does: the first drains, the second ends at once.
    fn signal(&self) {
        self.raise(|stop| if stop == Stop::Not { Stop::Drain } else { Stop::Now });
    }

    fn raise(&self, next: impl FnOnce(Stop) -> Stop) {
        self.0.send_if_modified(|stop| {
            let raised = next(*stop);
            std::mem::replace(stop, raised) != raised
        });
    }
}

/// How the server ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Connections that were still open when the time was up and were cut.
    pub cut_connections: u64,
    /// Shards that had not drained when the time was up: a peer did not answer, or they are stuck in a callback.
    pub undrained_shards: Vec<usize>,
}

/// What the dispatcher and the handlers share. Nothing here is on a shard's path.
struct Shared {
    /// In force now; read once for each request, and replaced as a whole.
    settings: ArcSwap<ControlSettings>,
    stats: Vec<Arc<ShardStats>>,
    commands: mpsc::Sender<Command>,
    draining: AtomicBool,
    /// Which shards have drained.
    drained: Vec<AtomicBool>,
    /// How often the ring to each shard was full.
    ring_full: Vec<AtomicU64>,
    /// Publishes refused for that.
    ring_full_publishes: AtomicU64,
    /// Connections of the control port that were cut for others.
    connections_cut: AtomicU64,
    fanout: metrics::FanoutCache,
    reloads: reload::Counts,
    /// Start of the server, in nanoseconds of [`clock::monotonic_nanos`].
    started_nanos: u64,
    /// The same, in milliseconds of Unix time.
    started_unix_millis: u64,
    /// The live page's `Content-Security-Policy`.
    page_policy: HeaderValue,
}

/// Starts the control thread. Returns when it listens and handles signals. Without a listener there is no
/// HTTP; signals, the handle and the publisher still work.
///
/// A thread inherits the CPUs of the one that starts it: call this from a thread that is not pinned, or the
/// control thread shares that one CPU with a shard.
///
/// # Errors
/// When the thread, its runtime, the listener or the signal handlers cannot be set up.
pub fn spawn(
    settings: ControlSettings,
    link: ControlLink,
    listener: Option<TcpListener>,
    reloader: Option<Reloader>,
    publisher: Publisher,
) -> io::Result<(ControlHandle, JoinHandle<Summary>)> {
    let handle = ControlHandle(Arc::new(watch::channel(Stop::Not).0));
    let (started, start) = std::sync::mpsc::sync_channel(1);
    let thread_handle = handle.clone();
    let thread = std::thread::Builder::new().name("corecast-control".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = started.send(Err(error));
                return Summary::default();
            }
        };
        runtime.block_on(async {
            match setup(settings, link, listener, reloader, publisher, thread_handle) {
                Ok((dispatcher, server)) => {
                    let _ = started.send(Ok(()));
                    run(dispatcher, server).await
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                    Summary::default()
                }
            }
        })
    })?;
    start.recv().unwrap_or_else(|_| Err(io::Error::other("the control thread ended while it started")))?;
    Ok((handle, thread))
}

type Parts = (Dispatcher, Option<server::Server>);

/// Must be called inside the runtime.
fn setup(
    settings: ControlSettings,
    link: ControlLink,
    listener: Option<TcpListener>,
    reloader: Option<Reloader>,
    publisher: Publisher,
    handle: ControlHandle,
) -> io::Result<Parts> {
    let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
    let shards = link.shards();
    let for_process = settings.for_process;
    let page_policy = live::content_security_policy(&settings.websocket_addresses);
    let shared = Arc::new(Shared {
        settings: ArcSwap::from_pointee(settings),
        stats: link.stats().to_vec(),
        commands,
        draining: AtomicBool::new(false),
        drained: (0..shards).map(|_| AtomicBool::new(false)).collect(),
        ring_full: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        ring_full_publishes: AtomicU64::new(0),
        connections_cut: AtomicU64::new(0),
        fanout: metrics::FanoutCache::default(),
        reloads: reload::Counts::default(),
        started_nanos: clock::monotonic_nanos(),
        started_unix_millis: clock::unix_millis(),
        page_policy,
    });
    publisher.connect(&shared);
    let server = listener.map(|listener| server::Server::new(listener, shared.clone()));
    let reloads = reloader.is_some().then(|| shared.commands.clone());
    let dispatcher = Dispatcher::new(link, shared, receiver, handle.0.clone(), reloader)?;
    if for_process {
        watch_signals(handle)?;
        reloads.map(watch_reloads).transpose()?;
    }
    Ok((dispatcher, server.transpose()?))
}

async fn run(mut dispatcher: Dispatcher, server: Option<server::Server>) -> Summary {
    let Some(server) = server else {
        return dispatcher.run().await;
    };
    let (stop, stopped) = watch::channel(());
    let server = tokio::spawn(server.run(stopped));
    let summary = dispatcher.run().await;
    drop(stop);
    if server.await.is_err() {
        warn!("the control port's task ended in a panic");
    }
    summary
}

fn watch_signals(handle: ControlHandle) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                else => return,
            };
            info!("received {name}");
            handle.signal();
        }
    });
    Ok(())
}

fn watch_reloads(commands: mpsc::Sender<Command>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while let Some(()) = hangup.recv().await {
            info!("received SIGHUP");
            if commands.send(Command::Reload).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
