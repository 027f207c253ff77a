//! The sockets that accept: one per shard and address, sharing the port by SO_REUSEPORT; or those that a service
//! manager has opened and hands over, however many there are.
//!
//! SO_REUSEPORT lets any second program of the same user share a port without a word, and take half of its
//! clients. So, unless that is asked for, an address is first locked and then tried without SO_REUSEPORT.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};

/// Connections that may wait to be accepted, per listener; the kernel's `net.core.somaxconn` bounds it too.
pub const BACKLOG: i32 = 4096;

/// Who else accepts from a listener's queue, now or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: it is a member of a group (SO_REUSEPORT), and its queue ends with it.
    Group,
    /// It was handed over, and whoever handed it over keeps it open.
    Successor,
    /// The same, and other shards accept from it at the same time.
    Shards,
}

/// A listener of one shard.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Who else has it.
    pub sharing: Sharing,
}

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
    pub sockets: Vec<Listener>,
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
    let own = |socket: Socket| Listener { socket: socket.into(), sharing: Sharing::Group };
    let sockets = sockets.into_iter().map(own).collect();
    Ok(Listeners { address: bound, sockets, lock })
}

/// Gives listeners that were handed over to the shards, by address: of several for one address each is for one
/// shard; where there are fewer than shards, shards share them; where there are more, a shard has several.
///
/// # Errors
/// When a socket does not listen, or cannot be set up.
pub fn distribute(sockets: Vec<TcpListener>, shards: usize) -> io::Result<Vec<Vec<Listener>>> {
    let mut of_shard: Vec<Vec<Listener>> = (0..shards).map(|_| Vec::new()).collect();
    for (address, group) in by_address(sockets)? {
        for socket in &group {
            let options = SockRef::from(socket);
            if !options.is_listener()? {
                let reason = format!("the socket that was handed over for {address} does not listen");
                return Err(io::Error::other(reason));
            }
            // Accepted connections inherit it.
            options.set_tcp_nodelay(true)?;
            // The ring waits by itself; on a socket that never waits it would not.
            socket.set_nonblocking(false)?;
        }
        for number in 0..group.len().max(shards) {
            let socket = group[number % group.len()].try_clone()?;
            let is_shared = number + group.len() < shards || number >= group.len();
            let sharing = if is_shared { Sharing::Shards } else { Sharing::Successor };
            of_shard[number % shards].push(Listener { socket, sharing });
        }
    }
    Ok(of_shard)
}

/// The addresses of listeners in the order of their first ones, each with its listeners.
fn by_address(sockets: Vec<TcpListener>) -> io::Result<Vec<(SocketAddr, Vec<TcpListener>)>> {
    let mut groups: Vec<(SocketAddr, Vec<TcpListener>)> = Vec::new();
    for socket in sockets {
        let address = socket.local_addr()?;
        match groups.iter_mut().find(|(known, _)| *known == address) {
            Some((_, group)) => group.push(socket),
            None => groups.push((address, vec![socket])),
        }
    }
    Ok(groups)
}

/// Has a listener take no notice of clients that begin to connect, while those that it has answered can go on:
/// their next packet is for this very socket.
///
/// # Errors
/// When the kernel refuses the filter.
pub fn ignore_new_clients(socket: &TcpListener) -> io::Result<()> {
    // A classic BPF program, which sees packets from the TCP header on: flags are in byte 13, SYN is 2, ACK is 16.
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const SKIP_UNLESS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, skip, operand| SockFilter::new(code, 0, skip, operand);
    SockRef::from(socket).attach_filter(&[
        step(LOAD_BYTE, 0, 13),
        step(AND, 0, 0x12),
        step(SKIP_UNLESS_EQUAL, 1, 0x02),
        step(RETURN, 0, 0),
        step(RETURN, 0, u32::MAX),
    ])
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
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn shards_share_a_port_and_others_are_refused() {
        let first = listen("127.0.0.1:0".parse().unwrap(), 3, false).unwrap();
        assert_eq!(first.sockets.len(), 3);
        assert!(first.sockets.iter().all(|own| own.socket.local_addr().unwrap() == first.address));
        assert_eq!(listen(first.address, 1, true).unwrap().address, first.address);
        let Listeners { address, sockets, lock } = first;
        drop(lock);
        assert!(matches!(listen(address, 1, false), Err(ListenError::InUse(other)) if other == address));
        drop(sockets);
    }

    #[test]
    fn a_second_corecast_is_told_apart_from_another_program() {
        // Not 127.0.0.1, where another program could take the port in between.
        let held = listen("127.77.0.2:0".parse().unwrap(), 2, false).unwrap();
        let address = held.address;
        assert!(matches!(listen(address, 1, false), Err(ListenError::AnotherCorecast(_))));
        drop(held);
        assert!(listen(address, 1, false).is_ok(), "the lock ends with its holder");
    }

    #[test]
    fn what_is_handed_over_is_spread_over_the_shards() {
        let open = |count| {
            let listening = listen("127.0.0.1:0".parse().unwrap(), count, true).unwrap();
            listening.sockets.into_iter().map(|own| own.socket).collect::<Vec<_>>()
        };
        let spread = |count, shards| -> Vec<Vec<Sharing>> {
            let sockets = distribute(open(count), shards).unwrap();
            sockets.iter().map(|shard| shard.iter().map(|listener| listener.sharing).collect()).collect()
        };
        use Sharing::{Shards, Successor};
        assert_eq!(spread(2, 2), [[Successor], [Successor]]);
        assert_eq!(spread(1, 3), [[Shards], [Shards], [Shards]]);
        assert_eq!(spread(2, 3), [[Shards], [Successor], [Shards]]);
        assert_eq!(spread(3, 2), [vec![Successor, Successor], vec![Successor]]);
        let both = distribute(open(1).into_iter().chain(open(2)).collect(), 2).unwrap();
        assert!(both.iter().all(|shard| shard.len() == 2), "every shard serves every address: {both:?}");

        let socket = socket("127.0.0.1:0".parse().unwrap(), true).unwrap();
        bind(&socket, "127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(distribute(vec![socket.into()], 1).unwrap_err().to_string().contains("does not listen"));
    }

    #[test]
    fn a_listener_can_ignore_those_who_begin_to_connect() {
        let one = listen("127.0.0.1:0".parse().unwrap(), 1, true).unwrap();
        let (waiting, patience) = (TcpStream::connect(one.address).unwrap(), Duration::from_millis(200));
        ignore_new_clients(&one.sockets[0].socket).unwrap();
        let error = TcpStream::connect_timeout(&one.address, patience).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "ignored, not refused");
        let (accepted, peer) = one.sockets[0].socket.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        (&waiting).write_all(b"still here").unwrap();
        let mut text = [0; 10];
        { &accepted }.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"still here");
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let address = "192.0.2.1:80".parse().unwrap();
        let error = listen(address, 1, false).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:80"), "{error}");
    }
}
