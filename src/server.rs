//! A server put together: listeners, shards, control thread.
//!
//! [`launch`] checks everything that can be checked before anything is started, and
//! undoes what it began when a later step fails.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::{Config, ConfigError, Switch, WaitMode, derived_max_connections};
use crate::control::{self, ControlHandle, ControlSettings, Summary};
use crate::position::Position;
use crate::preflight::{self, Unfit};
use crate::routes::Routes;
use crate::shard::listener::{ListenError, Lock, listen};
use crate::shard::stats::ShardStats;
use crate::shard::{self, HistoryLimits, Parts, ProcessCounts, Settings, Waiting, mesh};
use crate::ws_server::RouteSpec;

/// Connections to the control port that may wait to be accepted.
const CONTROL_BACKLOG: i32 = 128;

/// How long a shard that was told to end, with connections whose peers have not answered, may take for it.
const END_GRACE: Duration = Duration::from_secs(5);

/// Why a server did not start, or did not end well.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is wrong: the user's fault.
    Config(ConfigError),
    /// An address, a route, or what was said of one is wrong: the user's fault. Names it.
    Route(String),
    /// The machine, or what this process may do on it, is not enough.
    Unfit(Unfit),
    /// An address cannot be listened on.
    Listen(ListenError),
    /// The control port cannot be listened on.
    Control(SocketAddr, io::Error),
    /// A shard or the control thread could not be started, or failed.
    Thread(io::Error),
}

impl StartError {
    /// The exit code that tells the user's faults (2) from all others (1).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Route(_) => 2,
            Self::Unfit(_) | Self::Listen(_) | Self::Control(..) | Self::Thread(_) => 1,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Route(error) => f.write_str(error),
            Self::Unfit(error) => error.fmt(f),
            Self::Listen(error) => error.fmt(f),
            Self::Control(address, error) => {
                write!(f, "cannot listen on {address} for the control port: {error}")
            }
            Self::Thread(error) => write!(f, "cannot run: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<Unfit> for StartError {
    fn from(error: Unfit) -> Self {
        Self::Unfit(error)
    }
}

impl From<ListenError> for StartError {
    fn from(error: ListenError) -> Self {
        Self::Listen(error)
    }
}

/// A server that runs, until a [`ControlHandle`] ends it: when this is dropped it goes on, and nobody waits for it.
#[derive(Debug)]
#[must_use = "it runs on, and only its handle can end it"]
pub struct RunningServer {
    websocket_addresses: Vec<SocketAddr>,
    control_address: Option<SocketAddr>,
    cpus: Vec<usize>,
    max_connections: u64,
    control: ControlHandle,
    control_thread: JoinHandle<Summary>,
    shards: Vec<shard::Handle>,
    shard_failed: Arc<AtomicBool>,
    /// Keep other corecasts off our addresses.
    _locks: Vec<Lock>,
}

/// Starts a server and returns when all of its cores accept connections.
///
/// To be called on a thread that is not pinned to a CPU: its CPUs are those the shards may use. Nothing is left
/// running when it fails.
pub(crate) fn launch(
    config: &Config,
    routes: Vec<RouteSpec>,
    handle_signals: bool,
) -> Result<RunningServer, StartError> {
    // The end of an io_uring interrupts system calls of the thread that made it, and the caller's would not expect
    // that. So all of it happens on a thread that is gone by then.
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| launch_here(config, routes, handle_signals));
        starter.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn launch_here(
    config: &Config,
    routes: Vec<RouteSpec>,
    handle_signals: bool,
) -> Result<RunningServer, StartError> {
    config.validate()?;
    let cpus = config.shard_cpus()?;
    preflight::check()?;
    let descriptors = preflight::raise_descriptor_limit()?;
    let max_connections =
        config.max_connections.unwrap_or_else(|| derived_max_connections(descriptors, cpus.len()));

    let mut listeners: Vec<Vec<TcpListener>> = cpus.iter().map(|_| Vec::new()).collect();
    let (mut websocket_addresses, mut locks) = (Vec::new(), Vec::new());
    for &address in &config.listen {
        let listening = listen(address, cpus.len(), config.reuse_port)?;
        websocket_addresses.push(listening.address);
        locks.push(listening.lock);
        listeners.iter_mut().zip(listening.sockets).for_each(|(shard, socket)| shard.push(socket));
    }
    let control_listener = config.control.address().map(listen_control).transpose()?;
    let control_address = control_listener.as_ref().and_then(|listener| listener.local_addr().ok());

    let all_stats: Arc<[_]> = cpus.iter().map(|&cpu| Arc::new(ShardStats::new(cpu, cpus.len()))).collect();
    let (meshes, link) = mesh::connect(&all_stats).map_err(StartError::Thread)?;
    let control_settings =
        ControlSettings { handle_signals, ..ControlSettings::new(config, max_connections) };
    let (control, control_thread) =
        control::spawn(control_settings, link, control_listener).map_err(StartError::Thread)?;
    let mut server = RunningServer {
        websocket_addresses,
        control_address,
        cpus,
        max_connections,
        control,
        control_thread,
        shards: Vec::new(),
        shard_failed: Arc::new(AtomicBool::new(false)),
        _locks: locks,
    };
    let settings = settings(config, max_connections, server.cpus.len());
    let process = Arc::new(ProcessCounts::new(max_connections));
    let keep_alive = Duration::from_millis(config.keepalive_millis);
    let routes: Arc<dyn Fn() -> Routes + Send + Sync> = Arc::new(move || {
        let mut made = Routes::default();
        routes.iter().for_each(|route| made.add(route.make(keep_alive)));
        made
    });
    for (number, (mesh, listeners)) in meshes.into_iter().zip(listeners).enumerate() {
        let (stop, failed) = (server.control.clone(), server.shard_failed.clone());
        let on_failure = Arc::new(move || {
            failed.store(true, Ordering::Relaxed);
            stop.stop_now();
        });
        let (settings, routes, all_stats) = (settings.clone(), routes.clone(), all_stats.clone());
        let process = process.clone();
        let parts = Parts { settings, mesh, listeners, routes, all_stats, process, on_failure };
        match shard::spawn(server.cpus[number], parts) {
            Ok(shard) => server.shards.push(shard),
            Err(error) => {
                server.control.stop_now();
                let _ = server.wait();
                return Err(StartError::Thread(error));
            }
        }
    }
    Ok(server)
}

impl RunningServer {
    /// Addresses that accept WebSocket connections, with the ports that the system chose.
    #[must_use]
    pub fn websocket_addresses(&self) -> &[SocketAddr] {
        &self.websocket_addresses
    }

    /// Address of the control port, if there is one.
    #[must_use]
    pub fn control_address(&self) -> Option<SocketAddr> {
        self.control_address
    }

    /// The CPU of each shard.
    #[must_use]
    pub fn cpus(&self) -> &[usize] {
        &self.cpus
    }

    /// WebSocket connections that are served at a time.
    #[must_use]
    pub fn max_connections(&self) -> u64 {
        self.max_connections
    }

    /// A handle that stops the server from any thread.
    #[must_use]
    pub fn handle(&self) -> ControlHandle {
        self.control.clone()
    }

    /// Waits for the server's end: a signal, or [`ControlHandle::shutdown`].
    ///
    /// # Errors
    /// When a shard failed.
    pub fn wait(self) -> Result<Summary, StartError> {
        let summary = self.control_thread.join();
        let summary =
            summary.map_err(|_| StartError::Thread(io::Error::other("the control thread panicked")))?;
        if self.shard_failed.load(Ordering::Relaxed) {
            // The others have been stopped as well: half a server would lose messages without a word.
            return Err(StartError::Thread(io::Error::other("a shard failed; see its message above")));
        }
        for (number, shard) in self.shards.into_iter().enumerate() {
            // One that has not drained cuts its connections and ends, unless it is stuck.
            let stuck = summary.undrained_shards.contains(&number) && !shard.ends_within(END_GRACE);
            if stuck {
                // Its thread ends with the process.
                tracing::warn!(shard = number, "a shard is stuck in a callback; not waiting for it");
            } else {
                shard.join().map_err(StartError::Thread)?;
            }
        }
        Ok(summary)
    }
}

fn listen_control(address: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(CONTROL_BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|error| StartError::Control(address, error))
}

fn settings(config: &Config, max_connections: u64, shards: usize) -> Settings {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Settings {
        max_connections,
        max_connections_per_ip: config
            .max_connections_per_ip
            .map(|limit| u16::try_from(limit).unwrap_or(u16::MAX)),
        accept_rate: config.accept_rate,
        trusted_proxies: config.trusted_proxies.as_slice().into(),
        proxy_protocol: config.proxy_protocol == Switch::On,
        message_rate: config.message_rate,
        max_subscriptions: count(config.max_subscriptions),
        max_topics: count(config.max_topics),
        max_message_bytes: config.max_message_bytes,
        max_handshake_bytes: config.max_handshake_bytes,
        handshake_timeout: Duration::from_millis(config.handshake_timeout_millis),
        send_queue_bytes: config.send_queue_bytes,
        slow_consumer: config.slow_consumer,
        compression: config.compression == Switch::On,
        compression_min_bytes: config.compression_min_bytes,
        history: HistoryLimits {
            messages: config.history,
            age_nanos: config.history_ttl_millis.saturating_mul(1_000_000),
            bytes: config.history_bytes / shards,
        },
        epoch: Position::random_epoch(),
        waiting: match config.wait {
            WaitMode::Auto => Waiting::Automatic,
            WaitMode::Ring => Waiting::Ring,
            WaitMode::Executor => Waiting::Executor,
        },
    }
}
