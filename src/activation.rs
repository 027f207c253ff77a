//! Sockets that a service manager has opened and hands over: `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`
//! (sd_listen_fds(3)).
//!
//! They stay open while one process of the service ends and the next begins, so that no client is refused.

use std::io;
use std::net::{SocketAddr, TcpListener};

use corecast::App;
use corecast::config::{Config, ControlAddress};
use listenfd::ListenFd;

/// Name of a socket for the control port.
const CONTROL_NAME: &str = "control";

/// Name of a socket that is a WebSocket port without doubt.
const DATA_NAME: &str = "data";

/// The sockets by what they are for.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    data: Vec<TcpListener>,
    control: Option<TcpListener>,
    /// Addresses of those in `data` that nothing says are WebSocket ports.
    unnamed: Vec<SocketAddr>,
}

/// Takes the sockets that were handed to this process. One is for the control port if it is named `control`, or if it
/// listens where the control port is to be.
pub(crate) fn sockets(config: &Config) -> io::Result<Sockets> {
    let control = config.control;
    // Read first: the names are no use without the sockets, and those are taken once.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut handed_over = ListenFd::from_env();
    let mut sockets = Sockets::default();
    for number in 0..handed_over.len() {
        let name = names.next().unwrap_or_default();
        let Some(socket) = handed_over.take_tcp_listener(number)? else { continue };
        let address = socket.local_addr()?;
        if name != CONTROL_NAME && control.address() != Some(address) {
            if name != DATA_NAME && !config.listen.iter().any(|listen| listen.port() == address.port()) {
                sockets.unnamed.push(address);
            }
            sockets.data.push(socket);
        } else if control == ControlAddress::Off {
            return Err(io::Error::other(format!("{address} is for the control port, but --control is off")));
        } else if sockets.control.replace(socket).is_some() {
            return Err(io::Error::other(format!("{address} is a second one for the control port")));
        }
    }
    Ok(sockets)
}

impl Sockets {
    /// What is not as it was meant, perhaps: a socket becomes a WebSocket port that was to be the control port, whose
    /// address has been changed in one place and not in the other.
    pub(crate) fn warning(&self, config: &Config) -> Option<String> {
        if self.control.is_some() || self.unnamed.is_empty() {
            return None;
        }
        let addresses: Vec<String> = self.unnamed.iter().map(ToString::to_string).collect();
        let control = match config.control {
            ControlAddress::Off => "--control is off".to_owned(),
            ControlAddress::At(address) => format!("--control is {address}, which is opened besides"),
        };
        Some(format!(
            "no socket that was handed over is for the control port, and {} becomes a WebSocket port, although no --listen \
             has that port: {control}. If it was to be the control port, give --control its address, or the socket the \
             name {CONTROL_NAME} (FileDescriptorName=); if not, give it the name {DATA_NAME}, or --listen its port",
            addresses.join(", ")
        ))
    }

    /// Has the app serve on them; ports without one are opened as usual.
    pub(crate) fn give_to(self, app: App) -> App {
        let app = app.listeners(self.data);
        match self.control {
            Some(control) => app.control_listener(control),
            None => app,
        }
    }
}
