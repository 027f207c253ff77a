//! Foreign witnesses: tungstenite's client against our server, and tungstenite's server against our test client,
//! so that neither the server nor the witness of the other tests is right only by its own word.

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Bytes, Message, WebSocket};

use support::client::Client;
use support::frame::{self, Frame};
use support::server::Server;
use support::{PATIENCE, http, metrics::Metrics};

fn foreign_client(server: &Server, path: &str) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(server.data).expect("cannot connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set_read_timeout");
    let url = format!("ws://{}{path}", server.data);
    tungstenite::client(url, stream).expect("tungstenite refuses our handshake").0
}

#[test]
fn tungstenite_is_served_an_echo_a_ping_and_a_close() {
    let server = Server::start(&["--echo"]);
    let mut client = foreign_client(&server, "/echo");
    for size in [0, 1, 125, 126, 127, 4096, 60_000] {
        let text = Message::text("ä".repeat(size / 2));
        let binary = Message::binary(vec![0xA5; size]);
        client.send(text.clone()).expect("send");
        client.send(binary.clone()).expect("send");
        assert_eq!(client.read().expect("read"), text);
        assert_eq!(client.read().expect("read"), binary);
    }
    client.send(Message::Ping(Bytes::from_static(b"are you there"))).expect("send");
    assert_eq!(client.read().expect("read"), Message::Pong(Bytes::from_static(b"are you there")));

    let goodbye = CloseFrame { code: CloseCode::Library(4321), reason: "done".into() };
    client.close(Some(goodbye)).expect("close");
    match client.read().expect("read") {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Library(4321)),
        other => panic!("expected the close, got {other:?}"),
    }
    let end = client.read().expect_err("the connection must end");
    assert!(matches!(end, tungstenite::Error::ConnectionClosed), "an unclean end: {end}");
}

#[test]
fn tungstenite_subscribes_and_publishes() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut subscriber = foreign_client(&server, "/sub/news");
    let mut publisher = foreign_client(&server, "/pubsub/news");
    publisher.send(Message::text("first")).expect("send");
    assert_eq!(publisher.read().expect("read"), Message::text("first"), "the sender is included");
    server.publish("news", "second");
    assert_eq!(subscriber.read().expect("read"), Message::text("first"));
    assert_eq!(subscriber.read().expect("read"), Message::text("second"));
    assert_eq!(publisher.read().expect("read"), Message::text("second"));
}

/// A tungstenite server that echoes on one connection until it is closed.
fn foreign_server() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("local_addr");
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let mut socket =
            tungstenite::accept(stream).expect("tungstenite refuses the test client's handshake");
        while let Ok(message) = socket.read() {
            if message.is_text() || message.is_binary() {
                socket.send(message).expect("send");
            }
        }
    });
    (address, serving)
}

#[test]
fn the_test_client_agrees_with_tungstenites_server() {
    let (address, serving) = foreign_server();
    let mut client = Client::connect(address, "/");
    for size in [0, 125, 126, 65_535, 65_536] {
        client.send(&Frame::binary(vec![7; size]));
        client.expect_frame(&Frame::binary(vec![7; size]));
    }
    client.send(&Frame::text("Grü").unfinished());
    client.send(&Frame::new(frame::PING, "in between"));
    client.send(&Frame::new(frame::CONTINUATION, "ße"));
    client.expect_frame(&Frame::new(frame::PONG, "in between"));
    client.expect_text("Grüße");
    client.expect_alive();
    client.close(1000);
    serving.join().expect("the foreign server panicked");

    let (address, serving) = foreign_server();
    let mut client = Client::connect(address, "/");
    client.send_raw(&Frame::text("x").bytes(None, frame::LengthField::Minimal)).expect("send");
    client.expect_gone();
    serving.join().expect("the foreign server panicked");
}

#[test]
fn the_metrics_reader_reads_and_refuses() {
    let text = "# HELP a help\n# TYPE a counter\na{core=\"0\",t=\"x\\\"y\"} 3\na{core=\"1\"} 4.5\nb 1e3\nh{le=\"+Inf\"} 2\n";
    let metrics = Metrics::parse(text).expect("good text");
    assert_eq!(metrics.sum("a", &[]), 7.5);
    assert_eq!(metrics.sum("a", &[("t", "x\"y")]), 3.0);
    assert_eq!(metrics.sum("b", &[]), 1000.0);
    assert_eq!(metrics.types["a"], "counter");
    for bad in ["a", "a{core=0} 1", "a x", "1a 2", "# TYPE a counter\n# TYPE a counter"] {
        assert!(Metrics::parse(bad).is_err(), "accepted {bad:?}");
    }
}

#[test]
fn the_http_client_tells_a_server_that_does_not_speak_http() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("local_addr");
    let serving = thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().expect("accept");
        stream.write_all(b"SSH-2.0-nonsense\r\n\r\n").expect("write");
    });
    assert!(http::once(address, "GET", "/", &[], b"").is_err());
    serving.join().expect("the foreign server panicked");
}
