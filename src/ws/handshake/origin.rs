//! Which pages may connect (RFC 6455 10.2, RFC 6454).
//!
//! A browser sends `Origin`, and pages cannot forge it. A request without it is not a browser's and passes:
//! this is no protection against programs.

use core::net::IpAddr;
use std::fmt;

use http::header::{HOST, ORIGIN};

use super::{Rejection, Request, only};

/// The origins whose pages may connect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum OriginPolicy {
    /// Pages from the host and port that the request itself names.
    #[default]
    SameHost,
    /// Those, and the live page: the same host at another port.
    SameHostOr(LivePage),
    /// Every page.
    Any,
    /// Pages from these origins: `https://example.com`, `http://localhost:3000`, `null`; or a host alone, with
    /// or without port, for any scheme: `example.com`. Entries that are none of these match nothing.
    List(Vec<String>),
}

/// Where this process serves its live page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivePage {
    /// Its port.
    pub port: u16,
    /// It is served on a loopback address only, so that a page of any other host is not it.
    pub loopback: bool,
}

/// A configured origin that is neither `*`, `null`, an origin nor a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidOrigin(pub String);

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: expected an origin like https://example.com, a host, `null` or `*`", self.0)
    }
}

impl std::error::Error for InvalidOrigin {}

impl OriginPolicy {
    /// The same, with the live page let in where nobody has said which pages may come.
    #[must_use]
    pub fn or_page(self, page: Option<LivePage>) -> Self {
        match (self, page) {
            (Self::SameHost, Some(page)) => Self::SameHostOr(page),
            (policy, _) => policy,
        }
    }

    /// The policy for the values of `--allowed-origin`: none is the same host, `*` among them is any.
    ///
    /// # Errors
    /// The first value that is neither `*`, `null`, an origin nor a host.
    pub fn parse(values: &[String]) -> Result<Self, InvalidOrigin> {
        let is_wrong = |value: &&String| *value != "*" && Pattern::parse(value).is_none();
        if let Some(wrong) = values.iter().find(is_wrong) {
            return Err(InvalidOrigin(wrong.clone()));
        }
        Ok(match values {
            [] => Self::SameHost,
            _ if values.iter().any(|value| value == "*") => Self::Any,
            _ => Self::List(values.to_vec()),
        })
    }

    /// Passes a request that has no origin or an allowed one.
    ///
    /// Schemes and hosts are compared without regard to case, ports with the scheme's default filled in.
    ///
    /// # Errors
    /// 403 for an origin that is not allowed, 400 for several.
    pub fn check(&self, request: &Request) -> Result<(), Rejection> {
        let Some(value) = only(request.headers(), ORIGIN)? else {
            return Ok(());
        };
        let is_allowed = match self {
            Self::Any => true,
            Self::SameHost => Origin::parse(value).is_some_and(|origin| origin.is_same_host(request)),
            Self::SameHostOr(page) => Origin::parse(value)
                .is_some_and(|origin| origin.is_same_host(request) || origin.is_page(*page, request)),
            Self::List(list) => {
                list.iter().filter_map(|entry| Pattern::parse(entry)).any(|p| p.matches(value))
            }
        };
        if is_allowed { Ok(()) } else { Err(Rejection::of_origin(value)) }
    }
}

/// The host, and the port if one is given, of `host[:port]`. `None` if it is not valid.
pub(super) fn parse_authority(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let host_bytes = match authority {
        [b'[', ..] => 1 + authority.iter().position(|&byte| byte == b']')?,
        _ => authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_bytes);
    if host.is_empty() || !host.iter().all(|&byte| is_host_byte(byte)) {
        return None;
    }
    match port {
        // RFC 3986 3.2.3: the port may be empty.
        [] | [b':'] => Some((host, None)),
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
            Some((host, Some(port)))
        }
        _ => None,
    }
}

/// True for the bytes of a host (RFC 3986 3.2.2). A pattern, and not a search in a list of them: every request has a host.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'%' | b'[' | b']' | b':')
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

/// Host and port that a request names. RFC 9112 3.2.2: those of an absolute-form target take precedence.
fn request_authority(request: &Request) -> Option<(&[u8], Option<u16>)> {
    let authority = match request.uri().authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => request.headers().get(HOST).map(|host| host.as_bytes()),
    };
    authority.and_then(parse_authority)
}

/// True for a host alone, as [`names_host`] compares it: without scheme and port.
pub fn is_host(text: &str) -> bool {
    parse_authority(text.as_bytes()) == Some((text.as_bytes(), None))
}

/// True if a request names this host, whatever the port. Hosts are compared without regard to case.
pub fn names_host(request: &Request, host: &str) -> bool {
    request_authority(request).is_some_and(|(named, _)| named.eq_ignore_ascii_case(host.as_bytes()))
}

/// The port that a scheme means when none is given. `None`: not a scheme that leads to a WebSocket or a page.
pub(super) fn default_port(scheme: &[u8]) -> Option<u16> {
    if scheme.eq_ignore_ascii_case(b"http") || scheme.eq_ignore_ascii_case(b"ws") {
        Some(80)
    } else if scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"wss") {
        Some(443)
    } else {
        None
    }
}

/// A page's origin: `scheme://host[:port]`.
struct Origin<'a> {
    scheme: &'a [u8],
    host: &'a [u8],
    /// As given, or the scheme's default; `None` for a scheme without one.
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    fn parse(value: &'a [u8]) -> Option<Self> {
        let colon = value.iter().position(|&byte| byte == b':')?;
        let (scheme, rest) = value.split_at(colon);
        let is_scheme_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        if !scheme.first()?.is_ascii_alphabetic() || !scheme.iter().all(is_scheme_byte) {
            return None;
        }
        let (host, port) = parse_authority(rest.strip_prefix(b"://")?)?;
        Some(Self { scheme, host, port: port.or(default_port(scheme)) })
    }

    /// True for the live page on the host that the request names.
    fn is_page(&self, page: LivePage, request: &Request) -> bool {
        let host = request_authority(request).map(|(host, _)| host);
        host.is_some_and(|host| self.host.eq_ignore_ascii_case(host))
            && self.scheme.eq_ignore_ascii_case(b"http")
            && self.port == Some(page.port)
            && (!page.loopback || is_loopback(self.host))
    }

    /// True if the request went to the host and port of this origin.
    ///
    /// A host without port has the default port of the page's scheme, whichever that is: behind a proxy
    /// that ends TLS the server cannot know it.
    fn is_same_host(&self, request: &Request) -> bool {
        let Some((host, port)) = request_authority(request) else {
            return false;
        };
        let Some(default_port) = default_port(self.scheme) else {
            return false;
        };
        self.host.eq_ignore_ascii_case(host) && self.port == Some(port.unwrap_or(default_port))
    }
}

/// True if an authority, such as the header `Host`, names this machine alone, whatever the port.
pub fn names_loopback(authority: &[u8]) -> bool {
    parse_authority(authority).is_some_and(|(host, _)| is_loopback(host))
}

/// True for names and addresses that mean this machine alone, as the host of an origin.
fn is_loopback(host: &[u8]) -> bool {
    if host.eq_ignore_ascii_case(b"localhost") {
        return true;
    }
    let text = std::str::from_utf8(host).unwrap_or_default();
    text.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// An entry of the list.
enum Pattern<'a> {
    Null,
    Origin(Origin<'a>),
    Host(&'a [u8], Option<u16>),
}

impl<'a> Pattern<'a> {
    fn parse(entry: &'a str) -> Option<Self> {
        let entry = entry.as_bytes();
        if entry == b"null" {
            return Some(Self::Null);
        }
        // `*` is legal in a host name's syntax and would be taken for one, but would match no browser's.
        if entry.contains(&b'*') {
            return None;
        }
        if let Some(origin) = Origin::parse(entry) {
            return Some(Self::Origin(origin));
        }
        parse_authority(entry).map(|(host, port)| Self::Host(host, port))
    }

    fn matches(&self, value: &[u8]) -> bool {
        let Some(origin) = Origin::parse(value) else {
            return matches!(self, Self::Null) && value == b"null";
        };
        match self {
            Self::Null => false,
            Self::Origin(allowed) => {
                allowed.scheme.eq_ignore_ascii_case(origin.scheme)
                    && allowed.host.eq_ignore_ascii_case(origin.host)
                    && allowed.port == origin.port
            }
            Self::Host(host, port) => {
                host.eq_ignore_ascii_case(origin.host) && (port.is_none() || *port == origin.port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RejectReason;
    use super::*;

    fn check(
        policy: &OriginPolicy,
        target: &str,
        host: &str,
        origin: Option<&[u8]>,
    ) -> Result<(), RejectReason> {
        let mut request = Request::new(());
        *request.uri_mut() = target.parse().unwrap();
        request.headers_mut().insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            request.headers_mut().insert(ORIGIN, http::HeaderValue::from_bytes(origin).unwrap());
        }
        policy.check(&request).map_err(|rejection| rejection.reason)
    }

    #[test]
    fn the_same_host_is_host_and_port_with_defaults() {
        let allowed = [
            ("example.com", "http://example.com"),
            ("example.com", "https://example.com"),
            ("EXAMPLE.com", "HTTPS://Example.COM"),
            ("example.com:443", "https://example.com"),
            ("example.com", "https://example.com:443"),
            ("example.com:80", "http://example.com"),
            ("example.com:", "http://example.com"),
            ("localhost:8080", "http://localhost:8080"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("[::1]", "http://[::1]"),
        ];
        for (host, origin) in allowed {
            assert_eq!(
                check(&OriginPolicy::SameHost, "/", host, Some(origin.as_bytes())),
                Ok(()),
                "{host} {origin}"
            );
        }
        let refused: [(&str, &[u8]); 16] = [
            ("example.com", b"http://example.org"),
            ("example.com", b"http://sub.example.com"),
            ("example.com", b"http://example.com.evil.org"),
            ("example.com", b"http://example.com:8080"),
            ("example.com:8080", b"http://example.com"),
            ("example.com:80", b"https://example.com"),
            ("example.com", b"null"),
            ("null", b"null"),
            ("example.com", b""),
            ("example.com", b"example.com"),
            ("example.com", b"http://example.com http://example.com"),
            ("example.com", b"http://user@example.com"),
            ("example.com", b"http://example.com/"),
            ("example.com", b"chrome-extension://example.com"),
            ("example.com", b"http://example.com:99999"),
            ("example.com", b"http://ex\xe4mple.com"),
        ];
        for (host, origin) in refused {
            let outcome = check(&OriginPolicy::SameHost, "/", host, Some(origin));
            assert_eq!(outcome, Err(RejectReason::Origin), "{host} {}", origin.escape_ascii());
        }
        // An absolute target counts, not Host.
        let origin = Some(&b"http://a.org"[..]);
        assert_eq!(check(&OriginPolicy::SameHost, "http://a.org/x", "b.org", origin), Ok(()));
        let outcome = check(&OriginPolicy::SameHost, "http://b.org/x", "a.org", origin);
        assert_eq!(outcome, Err(RejectReason::Origin));
    }

    #[test]
    fn the_live_page_is_let_in_and_no_other_port() {
        let policy = |loopback| OriginPolicy::SameHostOr(LivePage { port: 8081, loopback });
        let origin = |policy, host: &str, origin: &str| check(&policy, "/", host, Some(origin.as_bytes()));
        let loopback = ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"];
        for host in loopback {
            let (data, page) = (format!("{host}:8080"), format!("http://{host}:8081"));
            assert_eq!(origin(policy(true), &data, &page), Ok(()), "{host}");
            assert_eq!(origin(policy(true), &data, &format!("http://{data}")), Ok(()), "{host}");
            for other in ["http", "http:8082", "https:8081"] {
                let (scheme, port) = other.split_once(':').unwrap_or((other, "80"));
                let outcome = origin(policy(true), &data, &format!("{scheme}://{host}:{port}"));
                assert_eq!(outcome, Err(RejectReason::Origin), "{host} {other}");
            }
            assert_eq!(
                check(&OriginPolicy::SameHost, "/", &data, Some(page.as_bytes())),
                Err(RejectReason::Origin)
            );
        }
        // Of a page on loopback nobody else's is a part, whatever name the request went to.
        for (data, page) in [("a.org:8080", "http://a.org:8081"), ("192.0.2.1:8080", "http://192.0.2.1:8081")]
        {
            assert_eq!(origin(policy(true), data, page), Err(RejectReason::Origin), "{page}");
            assert_eq!(origin(policy(false), data, page), Ok(()), "{page}");
        }
        let outcome = origin(policy(false), "a.org:8080", "http://b.org:8081");
        assert_eq!(outcome, Err(RejectReason::Origin));
        assert_eq!(
            origin(policy(true), "127.0.0.1:8080", "http://localhost:8081"),
            Err(RejectReason::Origin)
        );
    }

    #[test]
    fn without_origin_every_policy_passes_and_any_passes_everything() {
        for policy in [OriginPolicy::SameHost, OriginPolicy::Any, OriginPolicy::List(Vec::new())] {
            assert_eq!(check(&policy, "/", "example.com", None), Ok(()));
        }
        for origin in [&b"null"[..], b"http://evil.org", b"\xff", b""] {
            assert_eq!(check(&OriginPolicy::Any, "/", "example.com", Some(origin)), Ok(()));
        }
    }

    #[test]
    fn the_list_is_compared_by_its_parts() {
        let list =
            ["https://Example.com", "http://localhost:3000", "intranet", "box:8443", "null", "app://x"];
        let policy = OriginPolicy::parse(&list.map(str::to_owned)).unwrap();
        let allowed = [
            "https://example.com",
            "https://example.com:443",
            "http://localhost:3000",
            "http://intranet",
            "https://INTRANET:9000",
            "https://box:8443",
            "null",
            "app://x",
        ];
        for origin in allowed {
            assert_eq!(check(&policy, "/", "other", Some(origin.as_bytes())), Ok(()), "{origin}");
        }
        let refused = [
            "http://example.com",
            "https://example.com:444",
            "http://localhost",
            "https://localhost:3000",
            "http://box",
            "http://other",
            "app://y",
            "file://",
            "NULL",
            "",
        ];
        for origin in refused {
            let outcome = check(&policy, "/", "other", Some(origin.as_bytes()));
            assert_eq!(outcome, Err(RejectReason::Origin), "{origin}");
        }
    }

    #[test]
    fn flag_values_are_validated() {
        let parse =
            |values: &[&str]| OriginPolicy::parse(&values.iter().map(|v| v.to_string()).collect::<Vec<_>>());
        assert_eq!(parse(&[]), Ok(OriginPolicy::SameHost));
        assert_eq!(parse(&["*"]), Ok(OriginPolicy::Any));
        assert_eq!(parse(&["http://a", "*"]), Ok(OriginPolicy::Any));
        assert_eq!(parse(&["http://a"]), Ok(OriginPolicy::List(vec!["http://a".to_owned()])));
        for wrong in
            ["", "http://", "http://a/", "http://a/b", "https://*.a.org", "a b", "http://a:x", "http:a:b"]
        {
            assert_eq!(parse(&["http://a", wrong]), Err(InvalidOrigin(wrong.to_owned())), "{wrong}");
        }
    }

    #[test]
    fn a_refused_origin_is_kept_for_the_log_escaped_and_cut() {
        let kept = |origin: &[u8]| {
            let mut request = Request::new(());
            request.headers_mut().insert(ORIGIN, http::HeaderValue::from_bytes(origin).unwrap());
            let rejection = OriginPolicy::default().check(&request).unwrap_err();
            assert_eq!(rejection.message, Rejection::origin().message);
            rejection.refused_origin.unwrap()
        };
        assert_eq!(&*kept(b"https://evil.example"), "https://evil.example");
        assert_eq!(&*kept(b"a\"\xff\tb"), r#"a\"\xff\tb"#);
        let long = kept(&[0xff; 5000]);
        assert_eq!(long.len(), 4 * 300 + 3);
        assert!(long.ends_with(r"\xff..."), "{long}");
    }

    #[test]
    fn several_origins_are_a_bad_request() {
        let mut request = Request::new(());
        for origin in ["http://a", "http://a"] {
            request.headers_mut().append(ORIGIN, origin.parse().unwrap());
        }
        for policy in [OriginPolicy::Any, OriginPolicy::SameHost] {
            assert_eq!(policy.check(&request).unwrap_err().reason, RejectReason::BadRequest);
        }
    }
}
