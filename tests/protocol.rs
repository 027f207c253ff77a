//! RFC 6455 after the handshake: what the server answers, and with which code it closes what is wrong.

mod support;

use std::thread;
use std::time::Duration;

use support::QUIET;
use support::client::{Client, End};
use support::frame::{self, CONTINUATION, Frame, LengthField, PING, PONG, TEXT};
use support::server::Server;

const MASK: Option<[u8; 4]> = Some([0xDE, 0xAD, 0xBE, 0xEF]);

/// A server with `/echo`, a bystander whom no other client's fault may touch, and a tally of close codes.
struct Arena {
    server: Server,
    bystander: Client,
    closed: Vec<u16>,
}

impl Arena {
    fn new(arguments: &[&str]) -> Arena {
        let server = Server::start_shards(2, &[&["--echo"], arguments].concat());
        let bystander = server.connect("/echo");
        Arena { server, bystander, closed: Vec::new() }
    }

    /// These bytes, sent by a client of their own, must end its connection with this code.
    #[track_caller]
    fn fails(&mut self, what: &str, code: u16, bytes: &[u8]) {
        println!("{what} → {code}"); // names the case when a panic below does not
        let mut client = self.server.connect("/echo");
        client.send_raw(bytes).expect("send");
        client.expect_failed(code);
        self.closed.push(code);
    }

    /// The bystander lives, every close was counted under its code, and nothing stays behind.
    fn finish(mut self) {
        self.bystander.send_text("still here");
        self.bystander.expect_text("still here");
        self.closed.sort_unstable();
        for same in self.closed.chunk_by(|a, b| a == b) {
            let code = same[0].to_string();
            self.server.wait_metric("corecast_connections_closed_total", &[("code", &code)], |count| {
                count == same.len() as f64
            });
        }
        self.server.wait_connections(1);
    }
}

#[test]
fn framing_faults_close_with_1002() {
    let mut arena = Arena::new(&[]);
    let text = Frame::text("hello");
    arena.fails("unmasked", 1002, &text.bytes(None, LengthField::Minimal));
    arena.fails("unmasked close", 1002, &Frame::close(1000, "").bytes(None, LengthField::Minimal));
    for opcode in [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        arena.fails(&format!("reserved opcode {opcode}"), 1002, &Frame::new(opcode, "x").masked());
        arena.fails(&format!("empty reserved opcode {opcode}"), 1002, &Frame::new(opcode, "").masked());
    }
    for bits in 1..8 {
        arena.fails(&format!("reserved bits {bits}"), 1002, &text.clone().with_rsv(bits).masked());
        arena.fails(&format!("ping with bits {bits}"), 1002, &Frame::new(PING, "").with_rsv(bits).masked());
    }
    arena.finish();
}

#[test]
fn wrong_length_fields_close_with_1002_or_1009() {
    let mut arena = Arena::new(&[]);
    let of = |size: usize, form| Frame::binary(vec![1; size]).bytes(MASK, form);
    for size in [0, 1, 125] {
        arena.fails(&format!("{size} in 16 bits"), 1002, &of(size, LengthField::Sixteen));
        arena.fails(&format!("{size} in 64 bits"), 1002, &of(size, LengthField::SixtyFour));
    }
    arena.fails("126 in 64 bits", 1002, &of(126, LengthField::SixtyFour));
    arena.fails("65535 in 64 bits", 1002, &of(65_535, LengthField::SixtyFour));
    for claimed in [1 << 63, u64::MAX] {
        arena.fails("the highest bit set", 1002, &of(0, LengthField::Claimed(claimed)));
    }
    for claimed in [65_537, 1 << 32, (1 << 63) - 1] {
        arena.fails(&format!("{claimed} claimed"), 1009, &of(0, LengthField::Claimed(claimed)));
    }
    arena.finish();
}

#[test]
fn control_frames_may_not_be_long_or_fragmented() {
    let mut arena = Arena::new(&[]);
    for opcode in [frame::CLOSE, PING, PONG] {
        arena.fails(&format!("{opcode:#x} of 126 bytes"), 1002, &Frame::new(opcode, vec![3; 126]).masked());
        let long = Frame::new(opcode, "").bytes(MASK, LengthField::Claimed(70_000));
        arena.fails(&format!("{opcode:#x} of 70,000 bytes"), 1002, &long);
        arena.fails(&format!("{opcode:#x} without FIN"), 1002, &Frame::new(opcode, "").unfinished().masked());
    }
    arena.finish();
}

#[test]
fn fragments_out_of_order_close_with_1002() {
    let mut arena = Arena::new(&[]);
    arena.fails("a continuation of nothing", 1002, &Frame::new(CONTINUATION, "x").masked());
    arena.fails(
        "an open continuation of nothing",
        1002,
        &Frame::new(CONTINUATION, "x").unfinished().masked(),
    );
    for second in [Frame::text("b"), Frame::binary("b"), Frame::text("b").unfinished()] {
        let bytes = [Frame::text("a").unfinished().masked(), second.masked()].concat();
        arena.fails("a message inside a message", 1002, &bytes);
    }
    let bytes = [Frame::text("a").unfinished(), Frame::new(CONTINUATION, "b"), Frame::new(CONTINUATION, "c")];
    let bytes: Vec<u8> = bytes.iter().flat_map(Frame::masked).collect();
    let mut client = arena.server.connect("/echo");
    client.send_raw(&bytes).expect("send");
    client.expect_text("ab"); // the message before the fault counts
    client.expect_failed(1002);
    arena.closed.push(1002);
    arena.finish();
}

#[test]
fn invalid_utf8_closes_with_1007_at_every_position() {
    let mut arena = Arena::new(&[]);
    let wrong: [&[u8]; 9] = [
        b"\xFF",
        b"\x80",
        b"\xC0\x80",         // overlong
        b"\xE0\x80\x80",     // overlong
        b"\xED\xA0\x80",     // a surrogate
        b"\xF4\x90\x80\x80", // beyond U+10FFFF
        b"\xF8\x88\x80\x80\x80",
        b"\xC3(",
        b"\xE2\x82", // cut short at the message's end
    ];
    for bytes in wrong {
        arena.fails(&format!("{}", bytes.escape_ascii()), 1007, &Frame::new(TEXT, bytes).masked());
    }
    for at in [0, 1, 6, 7, 8, 15, 16, 31, 32, 33, 63, 64, 124, 200] {
        let mut payload = "ä€😀x".repeat(30).into_bytes();
        let length = payload.len();
        // The byte FF is wrong anywhere, inside a letter too.
        payload[at] = 0xFF;
        arena.fails(&format!("FF at {at} of {length}"), 1007, &Frame::new(TEXT, payload.clone()).masked());
        // The same in two fragments, cut right before the fault, and right after it.
        for cut in [at, at + 1] {
            let first = Frame::new(TEXT, &payload[..cut]).unfinished();
            let bytes = [first.masked(), Frame::new(CONTINUATION, &payload[cut..]).masked()].concat();
            arena.fails(&format!("FF at {at}, cut at {cut}"), 1007, &bytes);
        }
    }
    arena.finish();
}

#[test]
fn invalid_utf8_fails_fast_without_waiting_for_the_rest() {
    let mut arena = Arena::new(&[]);
    // In an unfinished message …
    let bytes = Frame::new(TEXT, b"good \xFF bad").unfinished().masked();
    arena.fails("an unfinished message", 1007, &bytes);
    // … and in an unfinished frame, as Autobahn 6.4.3 asks.
    let bytes = Frame::new(TEXT, [b"good \xF4\x90", &[b'x'; 100][..]].concat()).masked();
    arena.fails("an unfinished frame", 1007, &bytes[..bytes.len() - 80]);
    arena.finish();
}

#[test]
fn letters_cut_at_every_byte_are_one_letter() {
    let server = Server::start(&["--echo"]);
    let mut client = server.connect("/echo");
    let text = "κόσμε 😀 €";
    for cut in 0..=text.len() {
        let (first, second) = text.as_bytes().split_at(cut);
        client.send(&Frame::new(TEXT, first).unfinished());
        client.send(&Frame::new(CONTINUATION, second));
        client.expect_text(text);
    }
    for (at, byte) in text.bytes().enumerate() {
        let opcode = if at == 0 { TEXT } else { CONTINUATION };
        client.send(&Frame::new(opcode, [byte]).unfinished());
    }
    client.send(&Frame::new(CONTINUATION, ""));
    client.expect_text(text);
}

#[test]
fn a_close_is_echoed_with_its_code() {
    let server = Server::start_shards(2, &["--echo"]);
    for path in ["/echo", "/sub/a"] {
        for code in
            [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
        {
            let mut client = server.connect(path);
            client.send(&Frame::close(code, "Auf Wiedersehen, schöne Grüße"));
            client.expect_failed(code);
        }
        let mut client = server.connect(path);
        client.send(&Frame::close(1000, &"x".repeat(123)));
        client.expect_failed(1000);

        let mut client = server.connect(path);
        client.send(&Frame::new(frame::CLOSE, ""));
        let answer = client.frame().close_code();
        assert!(answer.is_none() || answer.as_ref().is_some_and(|(code, _)| *code == 1000), "{answer:?}");
        client.expect_gone();
    }
    server.wait_connections(0);
}

#[test]
fn a_wrong_close_frame_closes_with_1002_or_1007() {
    let mut arena = Arena::new(&[]);
    arena.fails("one byte", 1002, &Frame::new(frame::CLOSE, [3]).masked());
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        arena.fails(&format!("code {code}"), 1002, &Frame::close(code, "").masked());
    }
    let reason = Frame::new(frame::CLOSE, b"\x03\xE8 not \xFF text").masked();
    arena.fails("a reason that is not UTF-8", 1007, &reason);
    arena.finish();
}

#[test]
fn nothing_is_answered_after_a_close() {
    let server = Server::start(&["--echo"]);
    let mut client = server.connect("/echo");
    let bytes = [
        Frame::text("before").masked(),
        Frame::close(1000, "").masked(),
        Frame::text("after").masked(),
        Frame::new(PING, "after").masked(),
    ];
    client.send_raw(&bytes.concat()).expect("send");
    client.expect_text("before");
    client.expect_failed(1000);
}

#[test]
fn a_message_over_the_limit_closes_with_1009() {
    let mut arena = Arena::new(&["--max-message-size", "1000B"]);
    let mut client = arena.server.connect("/echo");
    client.send(&Frame::binary(vec![9; 1000]));
    client.expect_frame(&Frame::binary(vec![9; 1000]));
    arena.fails("one frame", 1009, &Frame::binary(vec![9; 1001]).masked());
    let header_only = &Frame::binary(vec![9; 1001]).masked()[..8];
    arena.fails("seen in the header already", 1009, header_only);
    let fragments =
        [Frame::binary(vec![9; 600]).unfinished().masked(), Frame::new(CONTINUATION, vec![9; 401]).masked()];
    arena.fails("fragments together", 1009, &fragments.concat());
    let endless = Frame::binary("x").unfinished().masked();
    let drops: Vec<u8> =
        (0..1000).flat_map(|_| Frame::new(CONTINUATION, "x").unfinished().masked()).collect();
    arena.fails("1001 fragments of a byte", 1009, &[endless, drops].concat());
    client.close(1000);
    arena.closed.push(1000);
    arena.finish();
}

#[test]
fn the_close_reaches_a_client_that_is_still_sending() {
    let mut arena = Arena::new(&["--max-message-size", "1KiB"]);
    for _ in 0..5 {
        let mut client = arena.server.connect("/echo");
        let message = Frame::binary(vec![9; 1024 * 1024]).masked();
        // To close the socket on unread bytes would be a reset: an error here, and for many clients the loss
        // of the close frame.
        for part in message.chunks(message.len() / 8) {
            client.send_raw(part).expect("reset while sending");
            thread::sleep(Duration::from_millis(20));
        }
        client.expect_close(1009);
        assert_eq!(client.expect_gone(), End::Orderly);
        arena.closed.push(1009);
    }
    arena.finish();
}

#[test]
fn a_subscriber_that_sends_data_is_closed_with_1008() {
    let server = Server::start_shards(2, &["--client-publish"]);
    let mut others = [server.connect("/sub/a"), server.connect("/pubsub/a")];
    for frame in [Frame::text("x"), Frame::binary("x"), Frame::text(""), Frame::text("open").unfinished()] {
        let mut client = server.connect("/sub/a");
        client.expect_alive(); // a ping is not data
        client.send(&Frame::new(PONG, "unasked"));
        client.send(&frame);
        assert_eq!(client.expect_closed(1008), "no messages are taken here");
    }
    server.wait_metric("corecast_connections_closed_total", &[("code", "1008")], |count| count == 4.0);
    for other in &mut others {
        other.expect_silence(QUIET);
        other.expect_alive();
    }
}

#[test]
fn pings_are_answered_with_their_payload_even_between_fragments() {
    let server = Server::start(&["--echo"]);
    let mut client = server.connect("/echo");
    for payload in [vec![], b"x".to_vec(), vec![0xFF; 125]] {
        client.send(&Frame::new(PING, payload.clone()));
        client.expect_frame(&Frame::new(PONG, payload));
    }
    client.send(&Frame::new(PONG, "unasked")); // ignored
    client.send(&Frame::text("one ").unfinished());
    client.send(&Frame::new(PING, "first"));
    client.send(&Frame::new(CONTINUATION, "two ").unfinished());
    client.send(&Frame::new(PING, "second"));
    client.send(&Frame::new(CONTINUATION, "three"));
    client.expect_frame(&Frame::new(PONG, "first"));
    client.expect_frame(&Frame::new(PONG, "second"));
    client.expect_text("one two three");

    // Ten pings in one packet get an answer each, in order.
    let pings: Vec<u8> = (0..10u8).flat_map(|n| Frame::new(PING, [n]).masked()).collect();
    client.send_raw(&pings).expect("send");
    for n in 0..10u8 {
        client.expect_frame(&Frame::new(PONG, [n]));
    }
}

#[test]
fn messages_of_every_length_form_are_echoed_whole_and_fragmented() {
    let server = Server::start(&["--echo"]);
    let mut client = server.connect("/echo");
    for size in [0, 1, 124, 125, 126, 127, 1000, 65_535, 65_536] {
        let payload: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        client.send(&Frame::binary(payload.clone()));
        client.expect_frame(&Frame::binary(payload.clone()));

        client.send(&Frame::binary(&payload[..size / 3]).unfinished());
        client.send(&Frame::new(CONTINUATION, "").unfinished());
        client.send(&Frame::new(CONTINUATION, &payload[size / 3..]));
        client.expect_frame(&Frame::binary(payload));
    }
}

#[test]
fn frames_in_single_bytes_are_as_good_as_whole_ones() {
    let server = Server::start(&["--echo", "--keepalive", "0"]);
    let mut client = server.connect("/echo");
    let frames = [
        Frame::text("ä").unfinished().masked(),
        Frame::new(PING, "p").masked(),
        Frame::new(CONTINUATION, "x".repeat(130)).masked(),
        Frame::text("next").masked(),
    ];
    for byte in frames.concat() {
        client.send_raw(&[byte]).expect("send");
        thread::sleep(Duration::from_micros(200));
    }
    client.expect_frame(&Frame::new(PONG, "p"));
    client.expect_text(&format!("ä{}", "x".repeat(130)));
    client.expect_text("next");
}

#[test]
fn a_thousand_messages_in_one_write_are_all_echoed() {
    let server = Server::start(&["--echo"]);
    let mut client = server.connect("/echo");
    let bytes: Vec<u8> = (0..1000).flat_map(|n| Frame::text(&format!("message {n}")).masked()).collect();
    client.send_raw(&bytes).expect("send");
    for n in 0..1000 {
        client.expect_text(&format!("message {n}"));
    }
}
