//! The sockets that accept: one per shard and address, sharing the port by SO_REUSEPORT.
//!
//! SO_REUSEPORT lets any second program of the same user share a port without a word, and take half of its
//! clients. So, unless that is asked for, an address is first locked and then tried without SO_REUSEPORT.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that may wait to be accepted, per listener; the kernel's `net.core.somaxconn` bounds it too.
pub const BACKLOG: i32 = 4096;

/// Why an address cannot be listened on.
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// Another corecast serves the address.
    AnotherCorecast(SocketAddr),
    /// Another program serves the address.
    InUse(SocketAddr),
    /// Anything else, such as an address that this machine does not have.
    Refused(SocketAddr, io::Error),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnotherCorecast(address) => write!(
                f,
                "another corecast already serves {address}: stop it, or choose another --listen \
                 (--reuse-port lets both share it)"
            ),
            Self::InUse(address) => {
                write!(
                    f,
                    "another program already listens on {address}: stop it, or choose another --listen \
                     (--reuse-port shares it, if that program does too)"
                )
            }
            Self::Refused(address, error) => write!(f, "cannot listen on {address}: {error}"),
        }
    }
}

impl std::error::Error for ListenError {}

/// An address that this process alone serves, for as long as this lives.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held for its drop")] Option<Socket>);

/// Listeners of all shards on one address.
#[derive(Debug)]
pub struct Listeners {
    /// The address, with the port that the system chose if 0 was asked for.
    pub address: SocketAddr,
    /// One listener per shard.
    pub sockets: Vec<TcpListener>,
    /// Keeps other corecasts off the address.
    pub lock: Lock,
}

/// Opens a listener per shard on `address`. With `share`, other processes may listen there too.
///
/// # Errors
/// [`ListenError`], which names the address.
pub fn listen(address: SocketAddr, shards: usize, share: bool) -> Result<Listeners, ListenError> {
    let refused = |error| ListenError::Refused(address, error);
    let fixed = address.port() != 0;
    let mut lock = if fixed && !share { lock(address)? } else { Lock(None) };
    if fixed && !share {
        // Fails where anyone listens, also with SO_REUSEPORT; where a connection is only fading away it does not.
        let probe = socket(address, false).map_err(refused)?;
        bind(&probe, address)?;
    }
    let mut bound = address;
    let mut sockets = Vec::with_capacity(shards);
    for _ in 0..shards {
        let socket = socket(address, true).map_err(refused)?;
        bind(&socket, bound)?;
        let local = socket.local_addr().map_err(refused)?;
        bound = local.as_socket().unwrap_or(bound);
        sockets.push(socket);
    }
    if !fixed && !share {
        lock = self::lock(bound)?;
    }
    // Bound first and all together, so that a client finds either every shard or none.
    for socket in &sockets {
        socket.listen(BACKLOG).map_err(refused)?;
    }
    let sockets = sockets.into_iter().map(TcpListener::from).collect();
    Ok(Listeners { address: bound, sockets, lock })
}

fn socket(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind(socket: &Socket, address: SocketAddr) -> Result<(), ListenError> {
    socket.bind(&SockAddr::from(address)).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        _ => ListenError::Refused(address, error),
    })
}

/// Takes the name of the address in the abstract namespace of Unix sockets: it is free again when the process
/// ends, however it ends, and leaves no file behind.
fn lock(address: SocketAddr) -> Result<Lock, ListenError> {
    let refused = |error| ListenError::Refused(address, error);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(refused)?;
    let name = SockAddr::unix(format!("\0corecast-listens-on-{address}")).map_err(refused)?;
    match socket.bind(&name) {
        Ok(()) => Ok(Lock(Some(socket))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::AnotherCorecast(address)),
        Err(error) => Err(refused(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_a_port_and_others_are_refused() {
        let first = listen("127.0.0.1:0".parse().unwrap(), 3, false).unwrap();
        assert_eq!(first.sockets.len(), 3);
        assert!(first.sockets.iter().all(|socket| socket.local_addr().unwrap() == first.address));
        assert_eq!(listen(first.address, 1, true).unwrap().address, first.address);
        let Listeners { address, sockets, lock } = first;
        drop(lock);
        assert!(matches!(listen(address, 1, false), Err(ListenError::InUse(other)) if other == address));
        drop(sockets);
    }

    #[test]
    fn a_second_corecast_is_told_apart_from_another_program() {
        let held = listen("127.0.0.1:0".parse().unwrap(), 2, false).unwrap();
        let address = held.address;
        assert!(matches!(listen(address, 1, false), Err(ListenError::AnotherCorecast(_))));
        drop(held);
        assert!(listen(address, 1, false).is_ok(), "the lock ends with its holder");
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let address = "192.0.2.1:80".parse().unwrap();
        let error = listen(address, 1, false).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:80"), "{error}");
    }
}
