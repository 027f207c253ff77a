//! The live page in a headless Chromium, worked by keyboard alone.

#[path = "foreign/chromium.rs"]
mod chromium;
#[path = "foreign/devtools.rs"]
mod devtools;
#[path = "foreign/program.rs"]
mod program;
mod support;

use std::collections::HashSet;

use serde_json::json;

use devtools::Page;
use support::client::Upgrade;
use support::server::Server;
use support::wait_for;

#[track_caller]
fn open(server: &Server) -> Option<Page> {
    let mut page = Page::open(&format!("http://{}/", server.control()))?;
    page.wait_text("#state", "serving");
    Some(page)
}

/// The heights of a chart's first line, as the page draws it.
fn heights(page: &mut Page, chart: &str) -> Vec<String> {
    let drawn = page.eval(&format!("document.querySelector('#{chart} path')?.getAttribute('d') ?? ''"));
    let drawn = drawn.as_str().unwrap_or_default();
    let points = drawn.split(['M', 'L']).filter(|point| !point.is_empty());
    points.filter_map(|point| Some(point.split_once(' ')?.1.to_owned())).collect()
}

#[test]
fn what_is_typed_and_published_arrives_and_the_charts_move() {
    let server = Server::start(&["--cores", "1", "--drain-window", "2s"]);
    let Some(mut page) = open(&server) else { return };
    // Subscribe: the topic's field, Enter. Then on by Tab to the message: button, field.
    page.eval("document.getElementById('topic').focus()");
    page.press("a", true);
    page.type_text("a/ü 1");
    page.press("Enter", false);
    page.wait_text("#subscribe-says", "Subscribed to a/ü 1");
    page.press("Tab", false);
    page.press("Tab", false);
    page.press("a", true);
    let typed = "typed into the page: ü <img src=x> & more";
    page.type_text(typed);
    page.press("Enter", true);
    page.wait_text("#publish-says", "Published to a/ü 1: to 1 subscriber, offset 1.");
    page.wait_text("#messages", typed);
    assert_eq!(
        page.eval("document.querySelectorAll('#messages img').length"),
        0,
        "a text is shown as a text"
    );
    page.wait_text("#messages-count", "1");

    for number in 0..120 {
        server.publish("a%2F%C3%BC%201", &format!("number {number}"));
    }
    page.wait_text("#messages li:last-child", "number 119");
    assert_eq!(page.eval("document.querySelectorAll('#messages li').length"), 100, "the last hundred");
    page.wait_text("#messages-count", "121, the last 100 shown");
    wait_for("the charts to move", || {
        let deliveries: HashSet<String> = heights(&mut page, "chart-deliveries").into_iter().collect();
        let connections: HashSet<String> = heights(&mut page, "chart-connections").into_iter().collect();
        (deliveries.len() > 1 && connections.len() > 1).then_some(())
    });
    let latency = page.text("#p99");
    assert!(latency.contains("s") && latency != "–", "{latency}");
    assert_eq!(page.text("#connections"), "1");
    assert_eq!(
        page.eval("getComputedStyle(document.querySelector('.tiles')).display"),
        "grid",
        "its own style"
    );

    server.signal(libc::SIGTERM);
    page.wait_text("#subscribe-says", "Closed by the server: 1012");
}

#[test]
fn the_page_fits_a_phone_and_names_all_it_has() {
    let server = Server::start(&["--cores", "1"]);
    let Some(mut page) = open(&server) else { return };
    for (width, scheme) in [(390, "light"), (390, "dark"), (1280, "light")] {
        let metrics = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 800 });
        page.call("Emulation.setDeviceMetricsOverride", &metrics);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        page.call("Emulation.setEmulatedMedia", &media);
        let overflow = page.eval("document.documentElement.scrollWidth - innerWidth");
        assert!(overflow.as_f64() <= Some(0.0), "{width} px: {overflow} px too wide");
        let dark = page.eval("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128");
        assert_eq!(dark, scheme == "dark", "{scheme}");
    }
    let tree = page.call("Accessibility.getFullAXTree", &json!({}));
    let mut names = Vec::new();
    for node in tree["nodes"].as_array().expect("nodes") {
        let (role, name) = (&node["role"]["value"], &node["name"]["value"]);
        if ["textbox", "button", "link", "log", "image"].iter().any(|wanted| role == wanted) {
            assert!(name.as_str().is_some_and(|name| !name.is_empty()), "nameless: {node}");
            names.push(name.as_str().unwrap_or_default().to_owned());
        }
    }
    for name in ["Topic", "Message", "Subscribe", "Publish", "Messages received", "Clear", "Metrics"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
}

#[test]
fn with_a_token_the_page_asks_for_it() {
    let server = Server::start(&["--cores", "1", "--publish-token", "s3cret"]);
    let Some(mut page) = open(&server) else { return };
    page.eval("document.getElementById('message').focus()");
    page.press("Enter", true);
    page.wait_text("#publish-says", "Refused with 401");
    page.press("Tab", false);
    page.type_text("s3cret");
    page.press("Enter", false);
    page.wait_text("#publish-says", "Published to news: nobody is subscribed, offset 1.");
}

#[test]
fn only_the_live_page_shares_the_default_origins() {
    let server = Server::start(&["--cores", "1"]);
    let (data, control) = (server.data, server.control());
    let to = |host: String, origin: String| Upgrade::to("/sub/a").with("Host", &host).with("Origin", &origin);
    let local = |port: u16| format!("localhost:{port}");
    to(data.to_string(), format!("http://{control}")).accepted(data);
    to(local(data.port()), format!("http://{}", local(control.port()))).accepted(data);
    for (host, origin) in [
        (data.to_string(), format!("http://127.0.0.1:{}", control.port() ^ 1)),
        (data.to_string(), format!("https://{control}")),
        (data.to_string(), format!("http://{}", local(control.port()))),
        // The control port is on loopback: whatever is served at this port of another host is not the live page.
        (format!("example.com:{}", data.port()), format!("http://example.com:{}", control.port())),
    ] {
        let response = to(host.clone(), origin.clone()).refused(data);
        assert_eq!(response.status, 403, "{host} {origin}");
    }
    // Who names origins has named all of them.
    let listed = Server::start(&["--cores", "1", "--allowed-origin", "https://friend.example"]);
    let page = format!("http://{}", listed.control());
    assert_eq!(to(listed.data.to_string(), page).refused(listed.data).status, 403);
}
