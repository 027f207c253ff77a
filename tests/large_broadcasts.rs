//! Large messages to many: sent from pages that all sockets share, whatever the subscribers do meanwhile.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use support::client::Client;
use support::frame::{Frame, TEXT};
use support::server::{Launch, Server};
use support::sys::Cage;
use support::wait_for;

/// Above what is copied, and not a whole number of pages.
const MESSAGE_BYTES: usize = 50_001;

const MESSAGES: u32 = 60;

/// Bytes that say which message they are of, and where.
fn message(number: u32) -> Vec<u8> {
    let line = |at: u32| format!("message {number:>4}, line {at:>6}\n").into_bytes();
    (0..).flat_map(line).take(MESSAGE_BYTES).collect()
}

/// Reads all messages of the series and fails with the first that is not as it was published.
fn expect_all(client: &mut Client) {
    for number in 0..MESSAGES {
        let frame = client.message();
        assert!(frame.payload == message(number), "message {number} came otherwise than it was sent");
    }
}

fn publish_all(server: &Server) {
    let mut http = server.http();
    for number in 0..MESSAGES {
        http.post("/pub/feed", &message(number)).expect("publish").expect(201);
    }
}

/// Size of the file of pages of each shard that has made one.
fn page_files(server: &Server) -> Vec<u64> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("descriptors");
    let paths = descriptors.map(|entry| entry.expect("a descriptor").path());
    let is_ours = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:corecast-broadcast"))
    };
    paths.filter(is_ours).map(|path| fs::metadata(path).expect("a file").size()).collect()
}

#[test]
fn everyone_gets_every_byte_however_late_they_read() {
    let server = Server::start_shards(2, &["--send-queue", "8MiB"]);
    let prompt: Vec<_> = (0..48).map(|_| server.connect("/sub/feed")).collect();
    let late: Vec<_> = (0..8).map(|_| Client::connect_narrow(server.data, "/sub/feed")).collect();
    assert!(page_files(&server).is_empty(), "no shard has needed one yet");
    let readers: Vec<_> =
        prompt.into_iter().map(|mut client| std::thread::spawn(move || expect_all(&mut client))).collect();
    publish_all(&server);
    readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
    // All pages have been written many times over before these read what they were sent first.
    for mut client in late {
        expect_all(&mut client);
    }
    let files = page_files(&server);
    assert!(!files.is_empty(), "nothing was sent from shared pages");
    assert!(files.iter().all(|&bytes| bytes == 0), "pages are kept: {files:?}");
    server.expect_metric("corecast_slow_consumers_total", &[], 0.0);
}

#[test]
fn every_encoding_has_its_own_pages() {
    let server = Server::start_shards(1, &["--client-publish", "--compression", "off"]);
    let plain: Vec<_> = (0..20).map(|_| server.connect("/pubsub/feed")).collect();
    let with_ids = support::client::Upgrade::to("/sub/feed").with("Sec-WebSocket-Protocol", "ws+meta.nchan");
    let with_ids: Vec<_> = (0..20).map(|_| with_ids.accepted(server.data)).collect();
    let text = String::from_utf8(message(1)).expect("text");
    server.publish("feed", &text);
    for mut client in plain {
        assert_eq!(client.message(), Frame::text(&text));
    }
    for mut client in with_ids {
        let frame = client.message();
        assert_eq!(frame.opcode, TEXT);
        let payload = String::from_utf8(frame.payload).expect("text");
        assert!(payload.starts_with("id: ") && payload.ends_with(&text), "{}", &payload[..60]);
    }
}

#[test]
fn those_who_are_gone_cost_themselves_only() {
    let server = Server::start_shards(1, &[]);
    let mut leaving: Vec<_> = (0..40).map(|_| server.connect("/sub/feed")).collect();
    let mut staying: Vec<_> = (0..16).map(|_| server.connect("/sub/feed")).collect();
    let mut http = server.http();
    for number in 0..MESSAGES {
        if let Some(client) = leaving.pop() {
            client.reset();
        }
        http.post("/pub/feed", &message(number)).expect("publish").expect(201);
        for client in &mut staying {
            assert!(client.message().payload == message(number));
        }
    }
    server.wait_connections(staying.len());
}

/// A limit for files holds for the file of pages too, and whoever writes beyond it is sent a signal that ends a program.
#[test]
fn where_files_are_limited_everything_is_copied() {
    let limited = Cage { file_bytes: Some(1024), ..Cage::default() };
    let server = Launch::new(&["--cores", "1", "--send-queue", "8MiB"]).cage(limited).start();
    let mut clients: Vec<_> = (0..20).map(|_| server.connect("/sub/feed")).collect();
    publish_all(&server);
    clients.iter_mut().for_each(expect_all);
    assert_eq!(page_files(&server), [0], "nothing could be written to it");
    let warned = || server.stderr().contains("a large broadcast is copied").then_some(());
    wait_for("the warning", warned);
}

/// `sendfile` raises SIGPIPE where `send` can be told not to, and the program that a server is part of may not ignore it.
#[test]
fn shards_are_deaf_to_sigpipe() {
    let server = Server::start_shards(2, &[]);
    let shards = server.pinned_threads();
    assert_eq!(shards.len(), 2);
    for (_, thread) in shards {
        let blocked = wait_for("the status of a thread", || {
            let status = fs::read_to_string(format!("/proc/{}/task/{thread}/status", server.pid())).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        });
        assert_ne!(blocked & 1 << (libc::SIGPIPE - 1), 0, "thread {thread} can be ended by it");
    }
}
