//! Clients behind trusted proxies: the PROXY protocol, `X-Forwarded-For`, and whom limits and lists see.

#[path = "component/probe.rs"]
mod probe;
mod support;

use std::thread;
use std::time::Duration;

use corecast::decorators::IpDenyList;
use corecast::{
    AddressRules, App, Component, Connection, Message, Outcome, PeerAddress, Rejection, Request, config,
};

use probe::{Running, app, tell};
use support::client::{Client, Upgrade};
use support::http;
use support::metrics::Metrics;
use support::server::{Launch, Server};
use support::wait_for;

/// Says what it takes for its client's address: by the request, and by the handle.
#[derive(Default)]
struct WhoAmI;

impl Component for WhoAmI {
    fn keeps_requests(&mut self) -> bool {
        true
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        match request.extensions().get::<PeerAddress>() {
            Some(_) => Ok(()),
            None => Err(Rejection::forbidden("no address")),
        }
    }

    fn on_message(&mut self, connection: &Connection, _message: Message<'_>) -> Outcome {
        let request = connection.http_request().ok_or("no request")?;
        let by_request = request.extensions().get::<PeerAddress>().ok_or("no address")?.0;
        assert_eq!(connection.remote_addr(), Some(by_request));
        connection.send(&by_request.to_string());
        Ok(())
    }
}

/// An app that trusts 127.0.0.1 and 10.0.0.0/8, with or without the PROXY protocol.
fn behind_proxy(proxy_protocol: config::Switch) -> App {
    app().control(([127, 0, 0, 1], 0).into()).configure(|config| {
        config.trusted_proxies =
            ["127.0.0.1/32", "10.0.0.0/8"].map(|text| text.parse().expect("a network")).to_vec();
        config.proxy_protocol = proxy_protocol;
    })
}

/// Waits until so many handshakes are counted as rejected for that reason.
#[track_caller]
fn expect_rejected(server: &Running, reason: &str, count: f64) {
    wait_for(&format!("{count} rejections by {reason}"), || {
        (rejected(server, reason) == count).then_some(())
    });
}

fn rejected(server: &Running, reason: &str) -> f64 {
    let control = server.server.as_ref().and_then(|server| server.control_address()).expect("a control port");
    let text = http::once(control, "GET", "/metrics", &[], b"").expect("metrics").text();
    let metrics = Metrics::parse(&text).expect("bad metrics text");
    metrics.sum("corecast_handshakes_rejected_total", &[("reason", reason)])
}

/// A header of version 2 for TCP over IPv4, or of another command and family.
fn version_2(command_and_family: [u8; 2], body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a short body").to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &command_and_family, &length, body].concat()
}

/// A client at that address and port, as version 2 says it.
fn version_2_of(address: [u8; 4], port: u16) -> Vec<u8> {
    version_2([0x21, 0x11], &[&address[..], &[127, 0, 0, 1], &port.to_be_bytes(), &[0, 80]].concat())
}

#[track_caller]
fn expect_address(client: &mut Client, address: &str) {
    tell(client, "who am I?");
    client.expect_text(address);
}

/// Sends bytes in these pieces, each on its own way.
fn send_in_pieces(server: &Running, pieces: &[&[u8]]) -> Client {
    let mut client = Client::open_socket(server.address).expect("connect");
    for piece in pieces {
        client.send_raw(piece).expect("send");
        thread::sleep(Duration::from_micros(500));
    }
    client
}

#[track_caller]
fn accepted(mut client: Client) -> Client {
    assert_eq!(client.read_response().expect("no answer").status, 101);
    client
}

#[test]
fn a_proxy_header_names_the_client_wherever_it_is_split() {
    let server = Running::start(behind_proxy(config::Switch::On).route("/", || WhoAmI));
    let with_tlv = [&[192, 0, 2, 7, 127, 0, 0, 1, 0x11, 0x70, 0, 80][..], &[4, 0, 2, 0, 0]].concat();
    for (header, address) in [
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 4464 80\r\n".to_vec(), "192.0.2.7:4464"),
        (b"PROXY TCP6 2001:db8::7 ::1 4464 80\r\n".to_vec(), "[2001:db8::7]:4464"),
        (version_2_of([192, 0, 2, 7], 4464), "192.0.2.7:4464"),
        (version_2([0x21, 0x11], &with_tlv), "192.0.2.7:4464"),
    ] {
        let bytes = [&header[..], &Upgrade::to("/").bytes()].concat();
        // At every byte of the header, and into the request.
        for at in 0..header.len() + 20 {
            let client = send_in_pieces(&server, &[&bytes[..at], &bytes[at..]]);
            expect_address(&mut accepted(client), address);
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        expect_address(&mut accepted(send_in_pieces(&server, &single)), address);
    }
    // With a message in the same packet as all that.
    let message = support::frame::Frame::text("who am I?").masked();
    let all = [&version_2_of([192, 0, 2, 9], 1), &Upgrade::to("/").bytes()[..], &message].concat();
    accepted(send_in_pieces(&server, &[&all])).expect_text("192.0.2.9:1");
    server.end();
}

#[test]
fn a_proxy_that_speaks_for_itself_is_its_own_client() {
    let server = Running::start(behind_proxy(config::Switch::On).route("/", || WhoAmI));
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        version_2([0x20, 0x00], b""),
        version_2([0x20, 0x11], &[192, 0, 2, 7, 127, 0, 0, 1, 0, 9, 0, 80]),
        version_2([0x21, 0x00], b""),
    ] {
        // Such a proxy does not look into requests: what stands there is the client's own word.
        let upgrade = Upgrade::to("/").with("X-Forwarded-For", "198.51.100.1");
        let client = send_in_pieces(&server, &[&header, &upgrade.bytes()]);
        let mut client = accepted(client);
        tell(&mut client, "who am I?");
        let frame = client.message();
        assert!(frame.payload.starts_with(b"127.0.0.1:"), "{frame:?}");
    }
    server.end();
}

#[test]
fn a_trusted_proxy_without_a_header_is_closed_and_counted() {
    let server = Running::start(behind_proxy(config::Switch::On).route("/", || WhoAmI));
    let request = Upgrade::to("/").bytes();
    let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
    let broken: [&[u8]; 5] = [
        &request,
        b"PROXY TCP4 192.0.2.7\r\n",
        &long,
        &version_2([0x2F, 0x11], &[0; 12]),
        &[version_2([0x21, 0x11], b""), request.clone()].concat(),
    ];
    for (at, bytes) in broken.into_iter().enumerate() {
        let mut client = Client::open_socket(server.address).expect("connect");
        client.send_raw(bytes).expect("send");
        client.expect_gone();
        expect_rejected(&server, "proxy_header", (at + 1) as f64);
    }
    server.end();
}

#[test]
fn a_proxy_header_that_does_not_end_is_bound_by_the_handshake_timeout() {
    let flags = ["--trusted-proxy", "127.0.0.1", "--proxy-protocol", "on", "--handshake-timeout", "300ms"];
    let server = Server::start_shards(2, &flags);
    let mut client = Client::open_socket(server.data).expect("connect");
    client.send_raw(b"PROXY TCP4 192.0.2.7 ").expect("send");
    client.expect_gone();
    server.wait_metric("corecast_handshakes_rejected_total", &[("reason", "timeout")], |cut| cut == 1.0);
}

#[test]
fn nobody_else_may_say_who_he_is() {
    let server = Running::start(behind_proxy(config::Switch::On).route("/", || WhoAmI));
    let source = "127.0.0.2";
    for header in [b"PROXY TCP4 192.0.2.7 127.0.0.1 9 80\r\n".to_vec(), version_2_of([192, 0, 2, 7], 9)] {
        let mut client = Client::open_socket_from(source.parse().unwrap(), server.address).expect("connect");
        client.send_raw(&[header, Upgrade::to("/").bytes()].concat()).expect("send");
        assert_eq!(client.read_response().expect("no answer").status, 400);
        client.expect_gone();
    }
    expect_rejected(&server, "bad_request", 2.0);
    // Without a header they come as ever, and what they say of themselves is not looked at.
    for upgrade in [Upgrade::to("/"), Upgrade::to("/").header("X-Forwarded-For", "192.0.2.7")] {
        let (response, mut client) = upgrade.send_from(source, server.address).expect("no answer");
        assert_eq!(response.status, 101);
        tell(&mut client, "who am I?");
        assert!(client.message().payload.starts_with(b"127.0.0.2:"));
    }
    let malformed = Upgrade::to("/").header("X-Forwarded-For", "nonsense");
    assert_eq!(malformed.send_from(source, server.address).expect("no answer").0.status, 101);
    server.end();
}

#[test]
fn x_forwarded_for_of_a_trusted_proxy_names_the_client() {
    let server = Running::start(behind_proxy(config::Switch::Off).route("/", || WhoAmI));
    let from = |lines: &[&str]| {
        lines.iter().fold(Upgrade::to("/"), |upgrade, line| upgrade.header("X-Forwarded-For", line))
    };
    for (lines, address) in [
        (&["192.0.2.7"][..], "192.0.2.7:0"),
        (&["203.0.113.1, 192.0.2.7"], "192.0.2.7:0"),
        (&["203.0.113.1, 192.0.2.7, 10.0.0.5"], "192.0.2.7:0"),
        (&["192.0.2.7", "10.0.0.5, 10.0.0.6"], "192.0.2.7:0"),
        (&["10.0.0.5"], "10.0.0.5:0"),
        (&["2001:db8::7"], "[2001:db8::7]:0"),
        (&["[2001:db8::7]:4464"], "[2001:db8::7]:4464"),
        (&["192.0.2.7:4464"], "192.0.2.7:4464"),
    ] {
        expect_address(&mut from(lines).accepted(server.address), address);
    }
    for lines in [&["nonsense"][..], &[""], &["192.0.2.7,"], &["192.0.2.7", "x"], &["192.0.2.777"]] {
        assert_eq!(from(lines).refused(server.address).status, 400, "{lines:?}");
    }
    expect_rejected(&server, "bad_request", 5.0);
    let mut own = Client::connect(server.address, "/");
    tell(&mut own, "who am I?");
    assert!(own.message().payload.starts_with(b"127.0.0.1:"));
    server.end();
}

#[test]
fn a_proxy_behind_a_proxy_may_name_its_client_too() {
    let server = Running::start(behind_proxy(config::Switch::On).route("/", || WhoAmI));
    let request = Upgrade::to("/").header("X-Forwarded-For", "192.0.2.7").bytes();
    let through = |client: [u8; 4]| {
        let bytes = [version_2_of(client, 5), request.clone()].concat();
        accepted(send_in_pieces(&server, &[&bytes]))
    };
    expect_address(&mut through([10, 0, 0, 5]), "192.0.2.7:0");
    expect_address(&mut through([203, 0, 113, 1]), "203.0.113.1:5");
    server.end();
}

#[test]
fn the_limit_of_an_address_counts_clients_and_not_their_proxy() {
    let flags = ["--trusted-proxy", "127.0.0.1", "--max-connections-per-ip", "2"];
    let forwarded = Server::start_shards(2, &flags);
    let by_header = |client: &str| {
        let upgrade = Upgrade::to("/sub/a").header("X-Forwarded-For", client);
        upgrade.send(forwarded.data).expect("no answer")
    };
    let proxied = Server::start_shards(2, &[&flags[..], &["--proxy-protocol", "on"]].concat());
    let by_protocol = |client: &str| {
        let mut connection = Client::open_socket(proxied.data).expect("connect");
        let header = format!("PROXY TCP4 {client} 127.0.0.1 9 80\r\n").into_bytes();
        connection.send_raw(&[header, Upgrade::to("/sub/a").bytes()].concat()).expect("send");
        (connection.read_response().expect("no answer"), connection)
    };
    type Connect<'a> = &'a dyn Fn(&str) -> (http::Response, Client);
    let ways: [(&Server, Connect<'_>); 2] = [(&forwarded, &by_header), (&proxied, &by_protocol)];
    for (server, connect) in ways {
        let mut held = Vec::new();
        for client in ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            let (response, connection) = connect(client);
            assert_eq!(response.status, 101, "{client}");
            held.push(connection);
        }
        let (response, _) = connect("192.0.2.1");
        assert_eq!((response.status, response.header("Retry-After").is_some()), (503, true));
        server.expect_metric("corecast_handshakes_rejected_total", &[("reason", "per_ip")], 1.0);
        held.iter_mut().for_each(Client::expect_alive);
        drop(held);
        server.wait_metric("corecast_sockets", &[], |sockets| sockets == 0.0);
        let again: Vec<_> = (0..3).map(|_| connect("192.0.2.1")).collect();
        assert_eq!(again.iter().filter(|(response, _)| response.status == 101).count(), 2);
    }
}

#[test]
fn a_deny_list_sees_the_client_and_not_its_proxy() {
    let rules = AddressRules::default();
    rules.deny("192.0.2.0/24").expect("a network");
    rules.deny("127.0.0.0/8").expect("a network");
    let denied = rules.clone();
    let route = move || IpDenyList::new(WhoAmI, denied.clone());

    let server = Running::start(behind_proxy(config::Switch::On).route("/", route.clone()));
    let from =
        |client: [u8; 4]| send_in_pieces(&server, &[&version_2_of(client, 5), &Upgrade::to("/").bytes()]);
    expect_address(&mut accepted(from([203, 0, 113, 1])), "203.0.113.1:5");
    // Cut with the header: nothing is answered.
    let mut client = Client::open_socket(server.address).expect("connect");
    client.send_raw(&version_2_of([192, 0, 2, 7], 5)).expect("send");
    client.expect_gone();
    expect_rejected(&server, "address", 1.0);
    // A direct peer is cut at once, as ever.
    let direct = Client::open_socket_from("127.0.0.2".parse().unwrap(), server.address);
    direct.expect("accepted by the kernel").expect_gone();
    expect_rejected(&server, "address", 2.0);
    server.end();

    let server = Running::start(behind_proxy(config::Switch::Off).route("/", route));
    let from = |client: &str| Upgrade::to("/").header("X-Forwarded-For", client);
    expect_address(&mut from("203.0.113.1").accepted(server.address), "203.0.113.1:0");
    assert_eq!(from("192.0.2.7").refused(server.address).status, 403);
    expect_rejected(&server, "address", 1.0);
    server.end();
}

#[test]
fn settings_that_cannot_be_are_refused() {
    for (flags, words) in [
        (&["--proxy-protocol", "on"][..], &["--proxy-protocol", "needs --trusted-proxy"][..]),
        (&["--trusted-proxy", "10.0.0.0/33"], &["--trusted-proxy", "10.0.0.0/33", "192.0.2.0/24"]),
        (&["--max-connections-per-ip", "0"], &["--max-connections-per-ip", "'0'", "at least 1"]),
        (&["--max-connections-per-ip", "70000"], &["--max-connections-per-ip", "70000", "1 to 65535"]),
        (&["--accept-rate", "fast"], &["--accept-rate", "fast", "at least 1"]),
        (&["--message-rate=-1"], &["--message-rate", "-1", "at least 1"]),
        (&["--max-subscriptions", "5000"], &["--max-subscriptions", "5000", "1 to 4096"]),
        (&["--max-topics", "0"], &["--max-topics", "'0'"]),
    ] {
        let ended = Launch::new(flags).run_to_exit();
        assert_eq!(ended.code(), Some(2), "{flags:?}: {ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "{flags:?} does not say {word:?}: {}", ended.stderr);
        }
    }
}
