//! Why a handshake fails, and the HTTP response that says so.

use std::borrow::Cow;

use http::StatusCode;

use super::VERSION;

/// Bytes of an `Origin` that the log shows at most: the longest host has room. Escaped, each may take four.
const SHOWN_ORIGIN_BYTES: usize = 300;

/// The cause of a rejection; the label of `handshakes_rejected_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum RejectReason {
    /// Not HTTP, or a bad upgrade.
    BadRequest,
    /// A method other than GET.
    Method,
    /// A path that is no route.
    NotFound,
    /// A request without upgrade.
    UpgradeRequired,
    /// A version of WebSocket other than 13.
    Version,
    /// A version of HTTP other than 1.
    HttpVersion,
    /// The page's origin is not allowed.
    Origin,
    /// None of the offered subprotocols is served.
    Subprotocol,
    /// A topic that is not valid.
    Topic,
    /// Not allowed by the server's configuration.
    Forbidden,
    /// No valid token.
    Unauthorized,
    /// The request head is too large.
    TooLarge,
    /// The server has all the connections it may have.
    Capacity,
    /// This address has all the connections it may have.
    PerIp,
    /// The process has taken all the new connections that it takes in a second.
    AcceptRate,
    /// A trusted proxy's connection did not begin with a header of the PROXY protocol.
    ProxyHeader,
    /// More topics than one connection may subscribe to.
    Subscriptions,
    /// A new topic, where the server has all the topics that it may have.
    Topics,
    /// The process is out of file descriptors.
    Descriptors,
    /// The server is draining or not ready.
    Unavailable,
    /// The handshake took too long.
    Timeout,
    /// The server's own fault.
    Internal,
    /// Connections from this address are refused.
    Address,
    /// Refused by the component, which chose the status.
    Component,
}

impl RejectReason {
    /// Every reason, in the order of [`index`](Self::index).
    pub const ALL: [Self; 24] = [
        Self::BadRequest,
        Self::Method,
        Self::NotFound,
        Self::UpgradeRequired,
        Self::Version,
        Self::HttpVersion,
        Self::Origin,
        Self::Subprotocol,
        Self::Topic,
        Self::Forbidden,
        Self::Unauthorized,
        Self::TooLarge,
        Self::Capacity,
        Self::PerIp,
        Self::AcceptRate,
        Self::ProxyHeader,
        Self::Subscriptions,
        Self::Topics,
        Self::Descriptors,
        Self::Unavailable,
        Self::Timeout,
        Self::Internal,
        Self::Address,
        Self::Component,
    ];

    /// The place in [`ALL`](Self::ALL), for an array of counters.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Method => "method",
            Self::NotFound => "not_found",
            Self::UpgradeRequired => "upgrade_required",
            Self::Version => "version",
            Self::HttpVersion => "http_version",
            Self::Origin => "origin",
            Self::Subprotocol => "subprotocol",
            Self::Topic => "topic",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::TooLarge => "too_large",
            Self::Capacity => "capacity",
            Self::PerIp => "per_ip",
            Self::AcceptRate => "accept_rate",
            Self::ProxyHeader => "proxy_header",
            Self::Subscriptions => "subscriptions",
            Self::Topics => "topics",
            Self::Descriptors => "descriptors",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
            Self::Address => "address",
            Self::Component => "component",
        }
    }

    /// The HTTP status that answers it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::Subprotocol | Self::Topic | Self::ProxyHeader | Self::Subscriptions => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Origin | Self::Forbidden | Self::Address | Self::Component => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::UpgradeRequired | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Capacity
            | Self::PerIp
            | Self::AcceptRate
            | Self::Topics
            | Self::Descriptors
            | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::HttpVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

/// A refused handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The cause; it decides the status, unless that was chosen.
    pub reason: RejectReason,
    /// One line for the reader of the response; holds nothing the peer sent.
    pub message: Cow<'static, str>,
    /// The `Origin` that was refused, for the log and not for the response: escaped, and cut where it is long.
    pub refused_origin: Option<Box<str>>,
    /// The value of `Retry-After`, in seconds.
    pub retry_after_seconds: Option<u32>,
    /// The status, where it is not the one of the cause.
    chosen_status: Option<StatusCode>,
}

impl Rejection {
    /// A rejection for `reason`, told by `message`.
    pub fn new(reason: RejectReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            refused_origin: None,
            retry_after_seconds: None,
            chosen_status: None,
        }
    }

    /// A component's refusal with a status of its choice; one that is not an error (4xx, 5xx) becomes 500.
    pub fn with_status(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        let is_error = status.is_client_error() || status.is_server_error();
        let status = if is_error { status } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self { chosen_status: Some(status), ..Self::new(RejectReason::Component, message) }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.chosen_status.unwrap_or_else(|| self.reason.status())
    }

    /// 400: not HTTP, or a bad upgrade.
    pub fn bad_request(message: &'static str) -> Self {
        Self::new(RejectReason::BadRequest, message)
    }

    /// 405: a method other than GET.
    pub fn method() -> Self {
        Self::new(
            RejectReason::Method,
            "only GET is allowed on the WebSocket port; POST /pub/TOPIC is for the control port",
        )
    }

    /// 404: no such route.
    pub fn not_found() -> Self {
        Self::new(RejectReason::NotFound, "no such path")
    }

    /// 404: there is such a route, for requests that name this host.
    pub fn other_host(host: &str) -> Self {
        Self::new(RejectReason::NotFound, format!("this path is only there under the host {host}"))
    }

    /// 426: a request without upgrade.
    pub fn upgrade_required() -> Self {
        Self::new(RejectReason::UpgradeRequired, "this is a WebSocket server: connect with ws://")
    }

    /// 426: another version of WebSocket.
    pub fn version() -> Self {
        Self::new(RejectReason::Version, "Sec-WebSocket-Version must be 13")
    }

    /// 505: another version of HTTP.
    pub fn http_version() -> Self {
        Self::new(RejectReason::HttpVersion, "only HTTP/1.1 is spoken here")
    }

    /// 403: the page's origin is not allowed.
    pub fn origin() -> Self {
        Self::new(
            RejectReason::Origin,
            "pages of this Origin may not connect: --allowed-origin, or allowed_origins, would let them",
        )
    }

    /// The same for this value of `Origin`.
    pub fn of_origin(origin: &[u8]) -> Self {
        let shown = &origin[..origin.len().min(SHOWN_ORIGIN_BYTES)];
        let more = if shown.len() < origin.len() { "..." } else { "" };
        Self { refused_origin: Some(format!("{}{more}", shown.escape_ascii()).into()), ..Self::origin() }
    }

    /// 400: none of the offered subprotocols is served.
    pub fn subprotocol() -> Self {
        Self::new(RejectReason::Subprotocol, "none of the offered subprotocols is supported")
    }

    /// 400: a topic that is not valid.
    pub fn topic(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RejectReason::Topic, message)
    }

    /// 403: not allowed by the server's configuration.
    pub fn forbidden(message: &'static str) -> Self {
        Self::new(RejectReason::Forbidden, message)
    }

    /// 401: no valid token.
    pub fn unauthorized() -> Self {
        Self::new(RejectReason::Unauthorized, "a valid token is required")
    }

    /// 431: the request head is larger than the server reads.
    pub fn too_large() -> Self {
        Self::new(RejectReason::TooLarge, "the request head is too large")
    }

    /// 503: the server has all the connections it may have.
    pub fn capacity(retry_after_seconds: u32) -> Self {
        Self::retry(RejectReason::Capacity, "the server is full", retry_after_seconds)
    }

    /// 503: this address has all the connections it may have.
    pub fn per_ip(retry_after_seconds: u32) -> Self {
        Self::retry(RejectReason::PerIp, "too many connections from this address", retry_after_seconds)
    }

    /// 503: the server has taken all the new connections that it takes in a second.
    pub fn accept_rate(retry_after_seconds: u32) -> Self {
        Self::retry(RejectReason::AcceptRate, "too many new connections", retry_after_seconds)
    }

    /// 503: a new topic, where the server has all the topics that it may have.
    pub fn topics(retry_after_seconds: u32) -> Self {
        Self::retry(RejectReason::Topics, "the server has no room for another topic", retry_after_seconds)
    }

    /// 400: more topics than one connection may subscribe to.
    pub fn subscriptions() -> Self {
        Self::new(RejectReason::Subscriptions, "more topics than one connection may subscribe to")
    }

    /// 503: the process is out of file descriptors.
    pub fn descriptors(retry_after_seconds: u32) -> Self {
        Self::retry(RejectReason::Descriptors, "the server is out of descriptors", retry_after_seconds)
    }

    /// 503: draining, or not ready.
    pub fn unavailable(message: &'static str, retry_after_seconds: u32) -> Self {
        Self::retry(RejectReason::Unavailable, message, retry_after_seconds)
    }

    /// 408: the handshake took too long.
    pub fn timeout() -> Self {
        Self::new(RejectReason::Timeout, "the handshake took too long")
    }

    /// 500: the server's own fault.
    pub fn internal() -> Self {
        Self::new(RejectReason::Internal, "internal error")
    }

    fn retry(reason: RejectReason, message: &'static str, retry_after_seconds: u32) -> Self {
        Self { retry_after_seconds: Some(retry_after_seconds), ..Self::new(reason, message) }
    }
}

/// Appends the whole HTTP/1.1 response to `out`: head and a body of one line of text. Cannot fail.
pub fn write_rejection(rejection: &Rejection, out: &mut Vec<u8>) {
    let status = rejection.status();
    let mut text =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("Error"));
    // RFC 9110 7.8 wants `upgrade` among the connection options wherever there is an Upgrade header.
    text += match status {
        StatusCode::UPGRADE_REQUIRED => "Connection: close, Upgrade\r\nUpgrade: websocket\r\n",
        _ => "Connection: close\r\n",
    };
    match status {
        StatusCode::UPGRADE_REQUIRED => text += &format!("Sec-WebSocket-Version: {VERSION}\r\n"),
        StatusCode::METHOD_NOT_ALLOWED => text += "Allow: GET\r\n",
        StatusCode::UNAUTHORIZED => text += "WWW-Authenticate: Bearer\r\n",
        _ => {}
    }
    if let Some(seconds) = rejection.retry_after_seconds {
        text += &format!("Retry-After: {seconds}\r\n");
    }
    let body = &rejection.message;
    text += &format!("Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
    text += body;
    text += "\n";
    out.extend_from_slice(text.as_bytes());
}
