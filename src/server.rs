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

use crate::config::{Config, ConfigError, ControlAddress, derived_max_connections};
use crate::control::{self, ControlHandle, ControlSettings, Publisher, Reload, Reloader, Summary};
use crate::preflight::{self, Unfit};
use crate::routes::Routes;
use crate::service_manager;
use crate::shard::listener::{ListenError, Listener, Lock, distribute, listen};
use crate::shard::mesh::Mesh;
use crate::shard::stats::ShardStats;
use crate::shard::{self, Parts, ProcessCounts, Settings, mesh};
use crate::ws::LivePage;
use crate::ws_server::RouteSpec;

/// Connections to the control port that may wait to be accepted.
const CONTROL_BACKLOG: i32 = 128;

/// How long a shard that was told to end, with connections whose peers have not answered, may take for it.
const END_GRACE: Duration = Duration::from_secs(5);

/// Why a server did not start, or did not end well.
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
    /// A socket that was handed over cannot be used.
    HandedOver(io::Error),
    /// A shard or the control thread could not be started, or failed.
    Thread(io::Error),
}

impl StartError {
    /// The exit code that tells the user's faults (2) from all others (1).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Route(_) => 2,
            Self::Unfit(_) | Self::Listen(_) | Self::Control(..) | Self::HandedOver(_) | Self::Thread(_) => 1,
        }
    }
}

/// As [`Display`](fmt::Display): a `main` that returns a [`Result`] prints its error in this way, to someone who is to
/// read it.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Route(error) => f.write_str(error),
            Self::Unfit(error) => error.fmt(f),
            Self::Listen(ListenError::Refused(address, error)) => {
                write!(f, "cannot listen on {address}: {error}{}", Advice { flag: "--listen", error })
            }
            Self::Listen(error) => error.fmt(f),
            Self::Control(address, error) => {
                let advice = Advice { flag: "--control", error };
                write!(f, "cannot listen on {address} for the control port: {error}{advice}")
            }
            Self::HandedOver(error) => write!(f, "cannot use a socket that was handed over: {error}"),
            Self::Thread(error) => write!(f, "cannot run: {error}"),
        }
    }
}

/// What to do about an address that cannot be listened on.
struct Advice<'a> {
    flag: &'a str,
    error: &'a io::Error,
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = self.flag;
        match self.error.kind() {
            io::ErrorKind::AddrInUse => write!(f, ": stop whoever has it, or choose another {flag}"),
            io::ErrorKind::PermissionDenied => write!(
                f,
                ": choose another {flag}; ports below 1024 need the capability CAP_NET_BIND_SERVICE, or a socket of \
                 systemd"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(f, ": {flag} needs an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all")
            }
            _ => Ok(()),
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
    publisher: Publisher,
    control_thread: JoinHandle<Summary>,
    shards: Vec<shard::Handle>,
    shard_failed: Arc<AtomicBool>,
    /// Keep other corecasts off our addresses.
    _locks: Vec<Lock>,
}

/// What a server is started with beside its settings and routes.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Listeners that are open already, instead of the data port's; none: open those.
    pub(crate) listeners: Vec<TcpListener>,
    /// The same for the control port.
    pub(crate) control_listener: Option<TcpListener>,
    /// The process is nothing but this server: signals are for it, and so is the service manager.
    pub(crate) for_process: bool,
    /// What SIGHUP does.
    pub(crate) reload: Option<Reload>,
    /// Publishes to the server once it runs.
    pub(crate) publisher: Publisher,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            control_listener: None,
            for_process: false,
            reload: None,
            publisher: Publisher::new(),
        }
    }
}

impl Surroundings {
    /// Puts the addresses that were handed over in place of those that were asked for.
    fn addresses(&self) -> io::Result<impl Fn(&mut Config) + Send + 'static> {
        let mut listen = Vec::new();
        for listener in &self.listeners {
            let address = listener.local_addr()?;
            if !listen.contains(&address) {
                listen.push(address);
            }
        }
        let control = self.control_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(move |config: &mut Config| {
            if !listen.is_empty() {
                config.listen.clone_from(&listen);
            }
            if let Some(control) = control {
                config.control = ControlAddress::At(control);
            }
        })
    }
}

/// Starts a server and returns when all of its cores accept connections.
///
/// To be called on a thread that is not pinned to a CPU: its CPUs are those the shards may use. Nothing is left
/// running when it fails.
pub(crate) fn launch(
    config: Config,
    routes: Vec<RouteSpec>,
    surroundings: Surroundings,
) -> Result<RunningServer, StartError> {
    // The end of an io_uring interrupts system calls of the thread that made it, and the caller's would not expect
    // that. So all of it happens on a thread that is gone by then.
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| launch_here(config, routes, surroundings));
        starter.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn launch_here(
    mut config: Config,
    routes: Vec<RouteSpec>,
    mut surroundings: Surroundings,
) -> Result<RunningServer, StartError> {
    let addresses = surroundings.addresses().map_err(StartError::HandedOver)?;
    addresses(&mut config);
    config.validate()?;
    let cpus = config.shard_cpus()?;
    preflight::check()?;
    let descriptors = preflight::raise_descriptor_limit()?;
    let derived_max_connections = derived_max_connections(descriptors, cpus.len());
    let settings = Settings::new(&config, derived_max_connections, cpus.len())
        .map_err(|error| StartError::Route(format!("allowed origin {error}")))?;
    let max_connections = settings.max_connections;
    if let Some(warning) = config.descriptor_warning(derived_max_connections) {
        tracing::warn!("{warning}");
    }

    let handed_over = std::mem::take(&mut surroundings.listeners);
    let Opened { listeners, websocket_addresses, locks } = open(&config, handed_over, cpus.len())?;
    let control_listener = match surroundings.control_listener.take() {
        Some(listener) => Some(listener),
        None => config.control.address().map(listen_control).transpose()?,
    };
    let control_address = control_listener.as_ref().and_then(|listener| listener.local_addr().ok());

    let all_stats: Arc<[_]> = cpus.iter().map(|&cpu| Arc::new(ShardStats::new(cpu, cpus.len()))).collect();
    let (meshes, link) = mesh::connect(&all_stats).map_err(StartError::Thread)?;
    let (for_process, publisher) = (surroundings.for_process, surroundings.publisher);
    let control_settings = ControlSettings {
        for_process,
        websocket_addresses: websocket_addresses.clone(),
        ..ControlSettings::new(&config, max_connections)
    };
    let keep_alive = Duration::from_millis(config.keepalive_millis);
    let reloader = surroundings
        .reload
        .map(|reload| Reloader::new(reload, config, derived_max_connections, Box::new(addresses)));
    let (control, control_thread) =
        control::spawn(control_settings, link, control_listener, reloader, publisher.clone())
            .map_err(StartError::Thread)?;
    let mut server = RunningServer {
        websocket_addresses,
        control_address,
        cpus,
        max_connections,
        control,
        publisher,
        control_thread,
        shards: Vec::new(),
        shard_failed: Arc::new(AtomicBool::new(false)),
        _locks: locks,
    };
    if let Err(error) = server.start_shards(&settings, routes, keep_alive, meshes, listeners, &all_stats) {
        server.control.stop_now();
        let _ = server.wait();
        return Err(error);
    }
    if for_process {
        service_manager::ready();
    }
    Ok(server)
}

/// The data port.
struct Opened {
    /// By shard.
    listeners: Vec<Vec<Listener>>,
    websocket_addresses: Vec<SocketAddr>,
    locks: Vec<Lock>,
}

fn open(config: &Config, handed_over: Vec<TcpListener>, shards: usize) -> Result<Opened, StartError> {
    if !handed_over.is_empty() {
        let listeners = distribute(handed_over, shards).map_err(StartError::HandedOver)?;
        return Ok(Opened { listeners, websocket_addresses: config.listen.clone(), locks: Vec::new() });
    }
    let mut listeners: Vec<Vec<Listener>> = (0..shards).map(|_| Vec::new()).collect();
    let (mut websocket_addresses, mut locks) = (Vec::new(), Vec::new());
    for &address in &config.listen {
        let listening = listen(address, shards, config.reuse_port)?;
        websocket_addresses.push(listening.address);
        locks.push(listening.lock);
        listeners.iter_mut().zip(listening.sockets).for_each(|(shard, socket)| shard.push(socket));
    }
    Ok(Opened { listeners, websocket_addresses, locks })
}

impl RunningServer {
    /// Starts the shards, until one cannot be started.
    fn start_shards(
        &mut self,
        settings: &Settings,
        routes: Vec<RouteSpec>,
        keep_alive: Duration,
        meshes: Vec<Mesh>,
        listeners: Vec<Vec<Listener>>,
        all_stats: &Arc<[Arc<ShardStats>]>,
    ) -> Result<(), StartError> {
        let origins = settings.allowed_origins.clone();
        let process = Arc::new(ProcessCounts::new(settings.max_connections));
        let live_page = self.control_address.map(|address| LivePage {
            port: address.port(),
            loopback: address.ip().to_canonical().is_loopback(),
        });
        let routes: Arc<dyn Fn() -> Routes + Send + Sync> = Arc::new(move || {
            let mut made = Routes::new(live_page);
            routes.iter().for_each(|route| made.add(route.make(keep_alive, &origins)));
            made
        });
        for (number, (mesh, listeners)) in meshes.into_iter().zip(listeners).enumerate() {
            let (stop, failed) = (self.control.clone(), self.shard_failed.clone());
            let on_failure = Arc::new(move || {
                failed.store(true, Ordering::Relaxed);
                stop.stop_now();
            });
            let (settings, routes, all_stats) = (settings.clone(), routes.clone(), all_stats.clone());
            let process = process.clone();
            let parts = Parts { settings, mesh, listeners, routes, all_stats, process, on_failure };
            let shard = shard::spawn(self.cpus[number], parts).map_err(StartError::Thread)?;
            self.shards.push(shard);
        }
        Ok(())
    }

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

    /// A handle that publishes from any thread.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
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
