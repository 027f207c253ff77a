//! A page in a headless Chromium, seen and worked as its user does, through the browser's DevTools protocol: what
//! scripts of another page cannot do to a page with a strict content security policy.
#![allow(dead_code, unreachable_pub)] // as in tests/support

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::chromium::Chromium;
use super::support::client::Client;
use super::support::{http, wait_at_most};

/// How long the browser may take to start. Wide, because CI machines stall.
const START_LIMIT: Duration = Duration::from_secs(60);

/// An open page.
pub struct Page {
    client: Client,
    last_call: u64,
    _chromium: Chromium,
}

impl Page {
    /// Opens one; `None` if there is no browser, which is said.
    #[track_caller]
    pub fn open(url: &str) -> Option<Page> {
        let chromium = Chromium::start(&["--remote-debugging-port=0"], url)?;
        let port_file = chromium.profile().join("DevToolsActivePort");
        let port: u16 = wait_at_most(START_LIMIT, "the browser to start", || {
            fs::read_to_string(&port_file).ok()?.lines().next()?.parse().ok()
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let path = wait_at_most(START_LIMIT, "the page to open", || {
            let pages = http::once(address, "GET", "/json/list", &[], b"").ok()?.json();
            let page = pages.as_array()?.iter().find(|page| page["url"].as_str() == Some(url))?;
            let socket = page["webSocketDebuggerUrl"].as_str()?;
            Some(socket[socket.find("/devtools/")?..].to_owned())
        });
        Some(Page { client: Client::connect(address, &path), last_call: 0, _chromium: chromium })
    }

    /// Calls a method of the protocol and returns its result.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last_call += 1;
        let call = json!({ "id": self.last_call, "method": method, "params": parameters });
        self.client.send_text(&call.to_string());
        loop {
            let message = self.client.message();
            let mut answer: Value = serde_json::from_slice(&message.payload).expect("JSON of the browser");
            if answer["id"] == self.last_call {
                assert_eq!(answer["error"], Value::Null, "{method} {parameters}");
                return answer["result"].take();
            }
        }
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut result = self.call("Runtime.evaluate", &parameters);
        assert_eq!(result["exceptionDetails"], Value::Null, "{expression}");
        result["result"]["value"].take()
    }

    /// The text of the element that a selector finds.
    #[track_caller]
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({})?.textContent ?? ''", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of an element has that in it.
    #[track_caller]
    pub fn wait_text(&mut self, selector: &str, part: &str) {
        let mut seen = String::new();
        wait_at_most(START_LIMIT, &format!("{part:?} in {selector}"), || {
            seen = self.text(selector);
            seen.contains(part).then_some(())
        });
    }

    /// Types a text, in place of what is selected.
    #[track_caller]
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    /// Presses a key, with Ctrl held or not.
    #[track_caller]
    pub fn press(&mut self, key: &str, with_control: bool) {
        // As the protocol names them: Enter brings a character, others do not.
        let (code, text) = match key {
            "Enter" => (13, Some("\r")),
            "Tab" => (9, None),
            "a" => (65, None),
            _ => panic!("the test has no code for key {key}"),
        };
        let mut event = json!({
            "type": "keyDown", "key": key, "windowsVirtualKeyCode": code,
            "modifiers": if with_control { 2 } else { 0 },
        });
        if let Some(text) = text {
            event["text"] = json!(text);
        }
        if key == "a" && with_control {
            event["commands"] = json!(["selectAll"]);
        }
        self.call("Input.dispatchKeyEvent", &event);
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", &event);
    }
}
