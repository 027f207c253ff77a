//! `GET /`: the live page, one file that loads nothing from anywhere.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::Shared;

/// The page.
const PAGE: &str = include_str!("live.html");

/// The handler.
pub(super) async fn live_page(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (CONTENT_SECURITY_POLICY, shared.page_policy.clone()),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, PAGE)
}

/// What the page may do: run its own script in its own style, ask this port, and connect to the data ports. The
/// host of those is open, as a server that listens on all addresses does not know by which name it was reached.
pub(super) fn content_security_policy(websocket_addresses: &[SocketAddr]) -> HeaderValue {
    let mut ports: Vec<u16> = websocket_addresses.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let connect: String = ports.iter().map(|port| format!(" ws://*:{port} wss://*:{port}")).collect();
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'{connect}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source_hash("script"),
        source_hash("style"),
    );
    // Base64, digits and the letters above: always a header. Without one a page of this kind may do nothing.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// The hash of the text of the page's one element of this name.
fn source_hash(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let text = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map(|(text, _)| text);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_covers_the_page_and_nothing_else() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "one {element}, without attributes");
            assert!(PAGE.contains(&format!("<{element}>")), "{element}");
            assert_ne!(source_hash(element), source_hash("nothing"), "{element}");
        }
        for outside in ["src=", "url(", "@import", " style=", "onclick"] {
            assert!(!PAGE.contains(outside), "the policy forbids {outside}");
        }
        let addresses = ["127.0.0.1:8080", "[::1]:8080", "0.0.0.0:9000"].map(|text| text.parse().unwrap());
        let policy = content_security_policy(&addresses);
        let policy = policy.to_str().unwrap();
        let connect = "connect-src 'self' ws://*:8080 wss://*:8080 ws://*:9000 wss://*:9000;";
        assert!(policy.contains(connect) && policy.starts_with("default-src 'none';"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
