//! Foreign witness: headless Chromium with a plain page, `tests/foreign/page.html`.

#[path = "foreign/browser.rs"]
mod browser;
#[path = "foreign/chromium.rs"]
mod chromium;
#[path = "foreign/program.rs"]
mod program;
mod support;

use serde_json::json;

use browser::Browser;
use support::http;
use support::server::Server;

/// A server with two shards whose one allowed origin is the page's.
#[track_caller]
fn server_for(browser: &Browser, flags: &[&str]) -> Server {
    let allowed = ["--allowed-origin", &browser.origin];
    Server::start_shards(2, &[&allowed, flags].concat())
}

#[test]
fn a_page_gets_its_echoes_compressed() {
    let Some(browser) = Browser::start() else { return };
    let server = server_for(&browser, &["--echo"]);
    let seen = browser.run(&format!(
        "const peer = await open('ws://{}/echo');
         const echoed = [];
         for (const bytes of [0, 1, 125, 126, 65535]) {{
             const sent = binary(bytes);
             peer.socket.send(text(bytes));
             peer.socket.send(sent);
             const [words, buffer] = [await peer.next('message'), await peer.next('message')];
             const numbers = new Uint8Array(buffer);
             const same = numbers.length === bytes && numbers.every((byte, at) => byte === sent[at]);
             if (words === text(bytes) && same) echoed.push(bytes);
         }}
         return {{ echoed, extensions: peer.socket.extensions, protocol: peer.socket.protocol }};",
        server.data
    ));
    assert_eq!(seen["echoed"], json!([0, 1, 125, 126, 65_535]), "{seen}");
    assert_eq!(seen["protocol"], "", "{seen}");
    let extensions = seen["extensions"].as_str().expect("a text");
    assert!(extensions.starts_with("permessage-deflate"), "{seen}");
    server.expect_metric("corecast_compressions_total", &[], 2.0);

    let plain = server_for(&browser, &["--echo", "--compression", "off"]);
    let seen = browser.run(&format!(
        "const peer = await open('ws://{}/echo');
         peer.socket.send(text(65535));
         return [await peer.next('message') === text(65535), peer.socket.extensions];",
        plain.data
    ));
    assert_eq!(seen, json!([true, ""]));
}

#[test]
fn a_page_sees_sub_protocols_close_codes_and_reasons() {
    let Some(browser) = Browser::start() else { return };
    let flags = ["--echo", "--subprotocol", "first", "--subprotocol", "second", "--drain-window", "100ms"];
    let server = server_for(&browser, &flags);
    let seen = browser.run(&format!(
        "const url = 'ws://{}';
         const echo = await open(url + '/echo', ['unknown', 'second', 'first']);
         const large = await open(url + '/echo');
         const subscriber = await open(url + '/sub/a', 'second');
         window.lasting = await open(url + '/sub/a');
         echo.socket.close(4321, 'done');
         large.socket.send(text(100_000));
         subscriber.socket.send('data');
         return {{
             chosen: [echo.socket.protocol, subscriber.socket.protocol, lasting.socket.protocol],
             ours: await echo.next('close'),
             tooLarge: await large.next('close'),
             dataOnSub: await subscriber.next('close'),
             unknown: await refused(url + '/echo', ['unknown']),
         }};",
        server.data
    ));
    assert_eq!(seen["chosen"], json!(["second", "second", ""]), "{seen}");
    assert_eq!(seen["ours"], json!([4321, "", true]), "{seen}");
    for (name, code) in [("tooLarge", 1009), ("dataOnSub", 1008)] {
        let [seen_code, reason, clean] = [&seen[name][0], &seen[name][1], &seen[name][2]];
        assert_eq!((seen_code, clean), (&json!(code), &json!(true)), "{seen}");
        assert_ne!(reason, "", "{name} without a reason: {seen}");
    }
    assert_eq!(seen["unknown"]["opened"], false, "{seen}");

    server.signal(libc::SIGTERM);
    let last = browser.run("return await lasting.next('close');");
    assert_eq!((&last[0], &last[2]), (&json!(1012), &json!(true)), "{last}");
}

#[test]
fn a_page_gets_what_is_published_but_cannot_publish_by_http() {
    let Some(browser) = Browser::start() else { return };
    let server = server_for(&browser, &["--client-publish"]);
    let seen = browser.run(&format!(
        "window.peers = [await open('ws://{0}/sub/news'), await open('ws://{0}/pubsub/news')];
         // This needs no permission from the other origin, and must have no effect all the same.
         const evil = {{ method: 'POST', mode: 'no-cors', body: 'from another origin' }};
         await fetch('http://{1}/pub/news', evil);
         peers[1].socket.send('from the page');
         return await Promise.all(peers.map(peer => peer.next('message')));",
        server.data,
        server.control()
    ));
    assert_eq!(seen, json!(["from the page", "from the page"]));

    let published = server.publish("news", &"äöü".repeat(5000));
    assert_eq!(published.json()["subscribers"], 2);
    let binary = [("Content-Type", "application/octet-stream")];
    let published = http::once(server.control(), "POST", "/pub/news", &binary, &[0, 127, 255]);
    published.expect("publishing").expect(201);
    let seen = browser.run(
        "const received = [];
         for (const peer of peers) {
             const [words, numbers] = [await peer.next('message'), await peer.next('message')];
             received.push([words === 'äöü'.repeat(5000), [...new Uint8Array(numbers)]]);
         }
         return received;",
    );
    assert_eq!(seen, json!([[true, [0, 127, 255]], [true, [0, 127, 255]]]));
    server.expect_metric("corecast_compressions_total", &[], 1.0);
}

#[test]
fn a_page_of_another_origin_is_refused() {
    let Some(browser) = Browser::start() else { return };
    let refused = json!({ "opened": false, "failed": true, "code": 1006, "reason": "", "wasClean": false });
    let open = |server: &Server, path: &str| {
        browser.run(&format!("return await refused('ws://{}{path}');", server.data))
    };
    // By default only pages of the server's own host and port; else those of the list.
    for flags in [&["--echo"][..], &["--echo", "--allowed-origin", "http://127.0.0.1"]] {
        let server = Server::start(flags);
        assert_eq!(open(&server, "/echo"), refused, "{flags:?}");
        server
            .wait_metric("corecast_handshakes_rejected_total", &[("reason", "origin")], |count| count == 1.0);
    }
    let server = server_for(&browser, &[]);
    for path in ["/echo", "/pubsub/a", "/nowhere"] {
        assert_eq!(open(&server, path), refused, "{path}");
    }
    let any = Server::start(&["--echo", "--allowed-origin", "*"]);
    let seen = browser.run(&format!("return (await open('ws://{}/echo')).socket.readyState;", any.data));
    assert_eq!(seen, 1);
}

#[test]
fn the_page_of_the_readme_comes_back_to_where_it_was() {
    let Some(browser) = Browser::start() else { return };
    let server = server_for(&browser, &["--history", "10"]);
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```js\nlet last").expect("the README shows how to resume");
    let (script, _) = rest.split_once("```").expect("the end of the script");
    let script = format!("let last{script}").replace("ws://localhost:8080", &format!("ws://{}", server.data));
    assert!(script.contains("setTimeout(connect, wait"), "{script}");
    let script = script.replace("setTimeout(connect, wait", "setTimeout(connect, 1");
    browser.run(&format!(
        "window.seen = [];
         const console = {{ log: line => seen.push(line) }};
         const WebSocket = class extends window.WebSocket {{
             constructor(...of) {{ super(...of); window.latest = this; }}
         }};
         {script}
         await new Promise(resolve => latest.addEventListener('open', resolve));"
    ));
    server.publish("news", "one");
    let seen =
        "while (seen.length < count) await new Promise(resolve => setTimeout(resolve, 5)); return seen;";
    assert_eq!(browser.run(&format!("const count = 1; {seen}")), json!(["one"]));
    let binary = [("content-type", "application/octet-stream")];
    http::once(server.control(), "POST", "/pub/news", &binary, b"\xff\n\n").expect("an answer").expect(201);
    let bytes = browser.run(&format!(
        "const count = 2; {}",
        seen.replace("return seen", "return [...new Uint8Array(seen.pop())]")
    ));
    assert_eq!(bytes, json!([255, 10, 10]));
    // What is published while it is away, it gets when it is back.
    browser.run("latest.close();");
    server.publish("news", "two");
    server.publish("news", "three");
    assert_eq!(browser.run(&format!("const count = 3; {seen}")), json!(["one", "two", "three"]));
    // What is not kept any more, it is told of.
    http::once(server.control(), "DELETE", "/pub/news", &[], &[]).expect("an answer").expect(204);
    server.publish("news", "four");
    http::once(server.control(), "DELETE", "/pub/news", &[], &[]).expect("an answer").expect(204);
    support::wait_for("the page to be back", || {
        (server.get("/pub/news").json()["subscribers"] == 1).then_some(())
    });
    server.publish("news", "five");
    let seen = browser.run(
        "while (seen.at(-1) !== 'five') await new Promise(resolve => setTimeout(resolve, 5)); return seen;",
    );
    let seen: Vec<&str> = seen.as_array().expect("a list").iter().filter_map(|line| line.as_str()).collect();
    assert_eq!((seen[..3].to_vec(), seen.last()), (vec!["one", "two", "three"], Some(&"five")));
    // The page may have been back for `four`, or not.
    assert!(seen.contains(&"four") || seen.contains(&"some messages were lost"), "{seen:?}");
}
