//! One server process after another on one address: no client is refused or reset.

mod support;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use libc::{SIGHUP, SIGTERM};
use socket2::{Domain, Socket, Type};

use support::client::{Client, Upgrade};
use support::server::{Launch, Server};
use support::{PATIENCE, wait_for};

/// Connections that each client begins before it goes on with the first of them.
const BURST: usize = 12;

fn ask(mut client: Client) -> io::Result<Client> {
    client.finish_connecting()?;
    client.send_raw(&Upgrade::to("/sub/a").bytes())?;
    Ok(client)
}

fn status(mut client: Client) -> io::Result<u16> {
    let status = client.read_response()?.status;
    // A reset, so that the port is free again at once.
    client.reset();
    Ok(status)
}

/// Clients that connect without a pause.
#[derive(Default)]
struct Crowd {
    ended: AtomicBool,
    accepted: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Crowd {
    fn connect_on(&self, address: SocketAddr) {
        while !self.ended.load(Relaxed) {
            // Step by step for all, so that none waits for the answer to another: that may be the next process's.
            let begun: Vec<io::Result<Client>> = (0..BURST).map(|_| Client::begin(address)).collect();
            let asked: Vec<io::Result<Client>> =
                begun.into_iter().map(|client| client.and_then(ask)).collect();
            for client in asked {
                match client.and_then(status) {
                    Ok(101) => drop(self.accepted.fetch_add(1, Relaxed)),
                    Ok(status) => self.fail(format!("status {status}")),
                    Err(error) => self.fail(error.to_string()),
                }
            }
        }
    }

    fn fail(&self, failure: String) {
        self.failures.lock().expect("lock").push(failure);
    }

    /// Waits until so many more have been accepted.
    fn wait_more(&self, count: usize) {
        let enough = self.accepted.load(Relaxed) + count;
        wait_for("more connections", || {
            (self.accepted.load(Relaxed) >= enough || !self.failures.lock().expect("lock").is_empty())
                .then_some(())
        });
    }

    /// Runs `restart` while clients connect to the address, and panics if one of them is refused.
    #[track_caller]
    fn during<T>(address: SocketAddr, restart: impl FnOnce(&Crowd) -> T) -> T {
        let crowd = Crowd::default();
        let outcome = thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| crowd.connect_on(address))));
            // Even if it panics: the scope waits for the clients.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restart(&crowd)));
            crowd.ended.store(true, Relaxed);
            outcome
        });
        let failures = crowd.failures.lock().expect("lock");
        assert!(failures.is_empty(), "{} of {}: {failures:?}", failures.len(), crowd.accepted.load(Relaxed));
        drop(failures);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

const TWO_SHARDS: [&str; 3] = ["--cores", "2", "--oversubscribe"];

#[track_caller]
fn stop(server: Server) {
    server.signal(SIGTERM);
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
}

#[test]
fn a_new_process_takes_over_the_port_from_an_old_one() {
    let flags = [&TWO_SHARDS[..], &["--reuse-port", "--drain-window", "8s"]].concat();
    let old = Server::start(&flags);
    let address = old.data;
    let new = Crowd::during(address, |crowd| {
        crowd.wait_more(500);
        let text = address.to_string();
        let again = [&flags[..], &["--listen", &text, "--control", "127.0.0.1:0"]].concat();
        let new = Launch::new(&again).own_addresses().start();
        crowd.wait_more(500);
        stop(old);
        crowd.wait_more(500);
        new
    });
    assert!(new.metrics().sum("corecast_connections_opened_total", &[]) > 0.0);
    new.connect("/sub/a").expect_alive();
}

/// Listeners that share a port, as with `ReusePort=true` of systemd.
fn group(count: usize) -> Vec<TcpListener> {
    let mut address: SocketAddr = ([127, 0, 0, 1], 0).into();
    let open = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.bind(&address.into()).expect("bind");
        socket.listen(1024).expect("listen");
        let socket = TcpListener::from(socket);
        address = socket.local_addr().expect("local_addr");
        socket
    };
    (0..count).map(open).collect()
}

#[test]
fn sockets_that_are_handed_over_outlive_each_process() {
    for count in [1, 2, 3] {
        let (data, control) = (group(count), TcpListener::bind(("127.0.0.1", 0)).expect("bind"));
        let sockets: Vec<&TcpListener> = data.iter().chain([&control]).collect();
        let names = format!("{}control", "data:".repeat(count));
        let start = || {
            let flags = [&TWO_SHARDS[..], &["--drain-window", "8s"]].concat();
            Launch::new(&flags).hand_over(&sockets, &names).start()
        };
        let address = data[0].local_addr().expect("local_addr");
        let first = start();
        assert_eq!((first.data, first.control()), (address, control.local_addr().expect("local_addr")));
        let second = Crowd::during(address, |crowd| {
            crowd.wait_more(500);
            stop(first);
            let second = start();
            crowd.wait_more(500);
            second
        });
        // However many sockets there are, both cores have their share of the clients.
        let mut clients: Vec<Client> = Vec::new();
        wait_for("connections on both cores", || {
            clients.extend((0..10).map(|_| second.connect("/sub/a")));
            let open = |core| second.metrics().sum("corecast_connections", &[("core", core)]);
            (open("0") >= 3.0 && open("1") >= 3.0).then_some(())
        });
        second.publish("a", "to both");
        clients.iter_mut().for_each(|client| client.expect_text("to both"));
    }
}

#[test]
fn a_control_socket_is_known_by_its_address_and_needs_a_token_beyond_loopback() {
    let bind = |address: &str| TcpListener::bind((address, 0)).expect("bind");
    let (data, control) = (bind("127.0.0.1"), bind("127.0.0.1"));
    let at = control.local_addr().expect("local_addr").to_string();
    let launch = || Launch::new(&["--cores", "1", "--control", &at]).own_addresses();
    let server = launch().hand_over(&[&control, &data], "corecast.socket:corecast.socket").start();
    assert_eq!(server.control().to_string(), at);
    server.wait_status("/live", 200);
    server.connect("/sub/a").expect_alive();
    drop(server);

    let open = bind("0.0.0.0");
    let ended = launch().hand_over(&[&data, &open], "data:control").run_to_exit();
    ended.expect_refusal(&[2], &["0.0.0.0", "--publish-token"]);
    let off = Launch::new(&["--control", "off"]).own_addresses().hand_over(&[&control], "control");
    off.run_to_exit().expect_refusal(&[1], &["--control is off"]);
    let file = std::fs::File::open("/dev/null").expect("open");
    let wrong = Launch::new(&[]).hand_over(&[&file], "");
    wrong.run_to_exit().expect_refusal(&[1], &["handed over", "not a socket"]);
}

#[test]
fn a_socket_that_may_have_been_meant_for_the_control_port_is_told_of() {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let (data, other) = (bind(), bind());
    let [listen, moved] = [&data, &other].map(|socket| socket.local_addr().expect("local_addr").to_string());
    let warned = |flags: &[&str], names: &str| {
        let flags = [&["--cores", "1", "--drain-window", "0", "--listen", &listen], flags].concat();
        let server = Launch::new(&flags).own_addresses().hand_over(&[&data, &other], names).start();
        server.signal(SIGTERM);
        let ended = server.wait_exit(PATIENCE);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        let told: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("handed over")).collect();
        let names_it =
            |line: &&str| line.contains("WARN") && line.contains(&moved) && line.contains("--control");
        assert!(told.len() <= 1 && told.iter().all(names_it), "{ended:?}");
        !told.is_empty()
    };
    let unit = "corecast.socket:corecast.socket";
    assert!(warned(&["--control", "127.0.0.1:0"], unit));
    assert!(warned(&["--control", "off"], unit));
    assert!(!warned(&["--control", &moved], unit));
    assert!(!warned(&["--control", "127.0.0.1:0"], "corecast.socket:control"));
    assert!(!warned(&["--control", "127.0.0.1:0"], "corecast.socket:data"));
    assert!(!warned(&["--control", "127.0.0.1:0", "--listen", &moved], unit));
}

#[test]
fn the_service_manager_is_told() {
    let path = std::env::temp_dir().join(format!("corecast-{}-notify.socket", std::process::id()));
    let manager = UnixDatagram::bind(&path).expect("bind");
    manager.set_read_timeout(Some(PATIENCE)).expect("set_read_timeout");
    let told = |wanted: &str| {
        let (start, mut buffer) = (Instant::now(), [0; 1024]);
        while start.elapsed() < PATIENCE {
            let length = match manager.recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome.unwrap_or_else(|error| panic!("{wanted}: {error}")),
            };
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return;
            }
        }
        panic!("was never told {wanted}");
    };
    let server = Launch::new(&["--drain-window", "1500ms"])
        .env("NOTIFY_SOCKET", path.to_str().expect("a path that is text"))
        .start();
    told("READY=1");
    let mut client = server.connect("/sub/a");
    server.signal(SIGHUP);
    told("RELOADING=1");
    told("READY=1");
    server.signal(SIGTERM);
    told("STOPPING=1");
    client.expect_closed(1012);
    assert_eq!(server.wait_exit(PATIENCE).code(), Some(0));
    std::fs::remove_file(&path).expect("remove");
}
