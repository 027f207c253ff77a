//! What a program begins with: [`App`] for several components, each on its path, [`Server`] for one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use crate::config::{Config, ControlAddress, KEEPALIVE_MILLIS};
use crate::control::{Publisher, Reload};
use crate::path_pattern::PathPattern;
use crate::routes::MAX_ROUTES;
use crate::server::{RunningServer, StartError, Surroundings, launch};
use crate::ws::OriginPolicy;
use crate::ws::handshake::is_host;
use crate::ws_server::{IntoWsServer, RouteSpec};

/// A server of several components, each on its path.
///
/// What is wrong with a route is said when the server starts. A request for another host or path is answered with
/// 404, one that is not GET with 405, a page of an origin that is not allowed with 403.
///
/// ```no_run
/// use corecast::{App, Component};
///
/// #[derive(Default)]
/// struct Chat;
/// impl Component for Chat {}
///
/// fn main() -> Result<(), corecast::StartError> {
///     App::new("localhost", 8080)
///         .route("/chat", Chat::default)
///         .route("/rooms/{room}", Chat::default)
///         .allowed_origins(["https://example.com"])
///         .run()
/// }
/// ```
#[derive(Debug)]
#[must_use = "it serves when it is run"]
pub struct App {
    config: Config,
    /// The host that requests must name, unless a route has another.
    host: Option<String>,
    routes: Vec<RouteSpec>,
    surroundings: Surroundings,
    /// The first thing that is wrong.
    fault: Option<String>,
}

impl App {
    /// An app for requests to `host`, on `port` of 127.0.0.1, without a control port. `*` is any host.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        let config = Config {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)],
            control: ControlAddress::Off,
            ..Config::default()
        };
        let (host, fault) = checked_host(host.into());
        Self { host, ..Self::from_config(config) }.with_fault(fault)
    }

    /// An app for requests to any host, with these settings; those of the server binary's own routes (origins,
    /// sub-protocols, echo, publishing by clients) are not looked at.
    pub fn from_config(config: Config) -> Self {
        Self { config, host: None, routes: Vec::new(), surroundings: Surroundings::default(), fault: None }
    }

    /// The address to listen on instead of 127.0.0.1, such as 0.0.0.0 for all.
    pub fn address(self, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        self.configure(|config| config.listen.iter_mut().for_each(|listen| listen.set_ip(address)))
    }

    /// Number of cores; every one that this process may use if this is not called.
    pub fn cores(self, cores: usize) -> Self {
        self.configure(|config| config.cores = Some(cores))
    }

    /// Opens the control port (publish by HTTP, metrics, health) there.
    pub fn control(self, address: SocketAddr) -> Self {
        self.configure(|config| config.control = ControlAddress::At(address))
    }

    /// Serves on these sockets, which listen already, instead of opening those of the configuration: a service
    /// manager hands them over. One for an address is shared by all cores; of several for one address
    /// (SO_REUSEPORT) each core has its own. With none, nothing changes.
    ///
    /// A drain leaves alone who waits at them: whoever holds them open serves those next.
    pub fn listeners(mut self, listeners: impl IntoIterator<Item = TcpListener>) -> Self {
        self.surroundings.listeners.extend(listeners);
        self
    }

    /// The same for the control port.
    pub fn control_listener(mut self, listener: TcpListener) -> Self {
        self.surroundings.control_listener = Some(listener);
        self
    }

    /// Has SIGHUP change settings of the running server, if it is started by [`App::run`] or
    /// [`App::start_for_process`]. `load` reads them, or says in one line why not: then the old ones stay. `apply`
    /// is told of those that are in force from now on; what of them is the server's own business has been seen to.
    ///
    /// Both are called on the control thread.
    pub fn on_reload(
        mut self,
        load: impl Fn() -> Result<Config, String> + Send + 'static,
        apply: impl Fn(&Config) + Send + 'static,
    ) -> Self {
        self.surroundings.reload = Some(Reload { load: Box::new(load), apply: Box::new(apply) });
        self
    }

    /// Changes any setting; see [`Config`].
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Adds a route. The first route that fits a request takes it.
    ///
    /// In the path, `{name}` stands for one segment and `{*name}`, at the end, for all the rest; see
    /// [`crate::Connection::path_parameter`]. The component is a factory, called once on each core, or a
    /// [`crate::WsServer`].
    pub fn route(mut self, path: &str, component: impl IntoWsServer) -> Self {
        let server = component.into_ws_server();
        let pattern = match PathPattern::parse(path) {
            Ok(pattern) => pattern,
            Err(error) => return self.with_fault(Some(error.to_string())),
        };
        let (host, origins) = (self.host.clone(), Some(OriginPolicy::SameHost));
        self.routes.push(RouteSpec { pattern, host, origins, server });
        self
    }

    /// The origins whose pages may use the route that was added last: `https://example.com`, a host, or `*` for
    /// any. At first, and with an empty list, pages of the host that the request is for.
    pub fn allowed_origins<O: Into<String>>(mut self, origins: impl IntoIterator<Item = O>) -> Self {
        let origins: Vec<String> = origins.into_iter().map(Into::into).collect();
        match (OriginPolicy::parse(&origins), self.routes.last_mut()) {
            (Ok(policy), Some(route)) => route.origins = Some(policy),
            (Err(error), _) => return self.with_fault(Some(format!("allowed origin {error}"))),
            (Ok(_), None) => {
                return self
                    .with_fault(Some("allowed_origins must follow the route that it is for".to_owned()));
            }
        }
        self
    }

    /// Has the route that was added last allow the origins that the configuration names
    /// ([`Config::allowed_origins`]), also after a reload ([`App::on_reload`]).
    pub fn configured_origins(mut self) -> Self {
        match self.routes.last_mut() {
            Some(route) => route.origins = None,
            None => {
                let fault = "configured_origins must follow the route that it is for".to_owned();
                return self.with_fault(Some(fault));
            }
        }
        self
    }

    /// The host that requests for the route that was added last must name, instead of the app's; `*` is any.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        let (host, fault) = checked_host(host.into());
        match self.routes.last_mut() {
            Some(route) => route.host = host,
            None => return self.with_fault(Some("host must follow the route that it is for".to_owned())),
        }
        self.with_fault(fault)
    }

    /// A handle that publishes from any thread, once the server runs: to be taken before [`App::run`], which
    /// returns at the server's end only.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.surroundings.publisher.clone()
    }

    /// Serves until SIGTERM, SIGINT or a [`crate::ControlHandle`] ends it.
    ///
    /// # Errors
    /// [`StartError`], when it cannot start or a core fails.
    pub fn run(self) -> Result<(), StartError> {
        self.start_for_process()?.wait().map(drop)
    }

    /// Starts serving and returns; signals are left to the caller.
    ///
    /// # Errors
    /// [`StartError`], when it cannot start; nothing is left running then.
    pub fn start(self) -> Result<RunningServer, StartError> {
        self.launch(false)
    }

    /// As [`App::start`], for a program that is nothing but this server: SIGTERM and SIGINT end it, and a service
    /// manager (`NOTIFY_SOCKET`) is told when it is ready, reloads and stops.
    ///
    /// # Errors
    /// [`StartError`], when it cannot start; nothing is left running then.
    pub fn start_for_process(self) -> Result<RunningServer, StartError> {
        self.launch(true)
    }

    fn launch(self, for_process: bool) -> Result<RunningServer, StartError> {
        let wrong = |route: &&RouteSpec| {
            let (keep_alive, (least, most)) = (route.server.keep_alive(Duration::ZERO), KEEPALIVE_MILLIS);
            let range = Duration::from_millis(least)..=Duration::from_millis(most);
            !keep_alive.is_zero() && !range.contains(&keep_alive)
        };
        let publisher = self.publisher();
        let fault = match self.fault {
            None if self.routes.is_empty() => Some("the app has no route".to_owned()),
            None if self.routes.len() > MAX_ROUTES => Some(format!("more than {MAX_ROUTES} routes")),
            None => self.routes.iter().find(wrong).map(|route| {
                let keep_alive = route.server.keep_alive(Duration::ZERO);
                format!("keep-alive {keep_alive:?}: expected 0, or from 10 ms to 24 h")
            }),
            fault => fault,
        };
        let started = match fault {
            Some(fault) => Err(StartError::Route(fault)),
            None => launch(self.config, self.routes, Surroundings { for_process, ..self.surroundings }),
        };
        started.inspect_err(|_| publisher.give_up())
    }

    /// Notes what is wrong, unless something else was before.
    fn with_fault(mut self, fault: Option<String>) -> Self {
        self.fault = self.fault.or(fault);
        self
    }
}

/// A server for one component, whatever the path: Ratchet's `IoServer::factory(new HttpServer($ws))`. For several
/// components see [`App`].
///
/// ```no_run
/// use corecast::{Component, Connection, Message, Outcome, Server};
///
/// struct Echo;
///
/// impl Component for Echo {
///     fn on_message(&mut self, connection: &Connection, message: Message<'_>) -> Outcome {
///         connection.send(message);
///         Ok(())
///     }
/// }
///
/// fn main() -> Result<(), corecast::StartError> {
///     Server::bind("127.0.0.1:9000").cores(2).run(|| Echo)
/// }
/// ```
#[derive(Debug)]
#[must_use = "it serves when it is run"]
pub struct Server {
    app: App,
    origins: Vec<String>,
}

impl Server {
    /// A server on this address, without a control port. Names are looked up; their first address counts.
    pub fn bind(address: impl ToSocketAddrs + fmt::Debug) -> Self {
        let found = address.to_socket_addrs().map(|mut found| found.next());
        let mut config = Config { control: ControlAddress::Off, ..Config::default() };
        let fault = match found {
            Ok(Some(address)) => {
                config.listen = vec![address];
                None
            }
            Ok(None) => Some(format!("{address:?} is no address")),
            Err(error) => Some(format!("{address:?} is no address: {error}")),
        };
        Self { app: App::from_config(config).with_fault(fault), origins: Vec::new() }
    }

    /// Number of cores; every one that this process may use if this is not called.
    pub fn cores(self, cores: usize) -> Self {
        self.configure(|config| config.cores = Some(cores))
    }

    /// Changes any setting; see [`Config`].
    pub fn configure(self, change: impl FnOnce(&mut Config)) -> Self {
        Self { app: self.app.configure(change), ..self }
    }

    /// The origins whose pages may connect: `https://example.com`, a host, or `*` for any. At first, and with an empty
    /// list, pages of the host that the request is for.
    pub fn allowed_origins<O: Into<String>>(self, origins: impl IntoIterator<Item = O>) -> Self {
        Self { origins: origins.into_iter().map(Into::into).collect(), ..self }
    }

    /// A handle that publishes from any thread, once the server runs.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.app.publisher()
    }

    /// Serves until SIGTERM, SIGINT or a [`crate::ControlHandle`] ends it. The factory makes one component per core.
    ///
    /// # Errors
    /// [`StartError`], when it cannot start or a core fails.
    pub fn run(self, component: impl IntoWsServer) -> Result<(), StartError> {
        self.with_component(component).run()
    }

    /// Starts serving and returns; signals are left to the caller.
    ///
    /// # Errors
    /// [`StartError`], when it cannot start; nothing is left running then.
    pub fn start(self, component: impl IntoWsServer) -> Result<RunningServer, StartError> {
        self.with_component(component).start()
    }

    fn with_component(self, component: impl IntoWsServer) -> App {
        self.app.route("/{*path}", component).allowed_origins(self.origins)
    }
}

/// The host to look for, `None` for any; and what is wrong with it.
fn checked_host(host: String) -> (Option<String>, Option<String>) {
    if host == "*" {
        return (None, None);
    }
    let fault = (!is_host(&host)).then(|| {
        format!("host {host:?}: expected a host without scheme and port, such as example.com, or *")
    });
    (Some(host), fault)
}
