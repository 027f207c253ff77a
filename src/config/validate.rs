//! Which settings can be, and the sentence for those that cannot.

use std::fmt;
use std::net::SocketAddr;

use super::values::{format_duration, format_size};
use super::{
    Config, HANDSHAKE_BYTES, HANDSHAKE_TIMEOUT_MILLIS, HISTORY_BYTES, HISTORY_TTL_MILLIS, KEEPALIVE_MILLIS,
    MAX_CONNECTIONS, MAX_CONNECTIONS_PER_IP, MAX_DRAIN_WINDOW_MILLIS, MAX_HISTORY, MAX_QUEUE_BYTES, MAX_RATE,
    MAX_SUBSCRIPTIONS, MAX_TOPICS, Switch,
};

/// A setting that cannot be. Names the flag, the value and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn new(flag: &str, value: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self(format!("invalid value '{value}' for '--{flag}': {reason}"))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Checks every setting, and that the shards' CPUs are ones the calling thread may run on.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_addresses()?;
        self.validate_limits()?;
        self.validate_counts()?;
        self.validate_proxies()?;
        self.validate_origins()?;
        self.validate_subprotocols()?;
        self.validate_token()?;
        self.shard_cpus().map(drop)
    }

    /// Settings that are valid and yet surprise; one sentence each, to be logged at start.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.send_queue_bytes < self.max_message_bytes {
            warnings.push(format!(
                "--send-queue {} is smaller than --max-message-size {}: a subscriber for whom such a message \
                 must wait is closed as a slow consumer",
                format_size(self.send_queue_bytes),
                format_size(self.max_message_bytes)
            ));
        }
        warnings
    }

    /// The same of a number of connections that the limit on open files does not allow, of which `room` is left for
    /// connections.
    #[must_use]
    pub fn descriptor_warning(&self, room: u64) -> Option<String> {
        let wanted = self.max_connections.filter(|&wanted| wanted > room)?;
        Some(format!(
            "--max-connections {wanted} does not fit the limit on open files, which leaves room for {room}: {room} is \
             the limit. Raise the hard limit on open files (ulimit -Hn, or LimitNOFILE= of systemd) and start again"
        ))
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        if self.listen.is_empty() {
            return Err(ConfigError::new("listen", "", "expected at least one address"));
        }
        let fixed = |address: &SocketAddr| address.port() != 0;
        for (n, address) in self.listen.iter().enumerate() {
            if fixed(address) && self.listen[..n].contains(address) {
                return Err(ConfigError::new("listen", address, "the address is given twice"));
            }
        }
        match self.control.address() {
            Some(control) if fixed(&control) => match self.listen.iter().find(|&&on| overlap(on, control)) {
                Some(listen) => {
                    let reason = format!("expected an address that --listen {listen} does not use");
                    Err(ConfigError::new("control", control, reason))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        size_between("max-handshake-size", self.max_handshake_bytes, HANDSHAKE_BYTES)?;
        size_between("max-message-size", self.max_message_bytes, (1, MAX_QUEUE_BYTES))?;
        size_between("send-queue", self.send_queue_bytes, (1024, MAX_QUEUE_BYTES))?;
        duration_between("handshake-timeout", self.handshake_timeout_millis, HANDSHAKE_TIMEOUT_MILLIS)?;
        duration_between("drain-window", self.drain_window_millis, (0, MAX_DRAIN_WINDOW_MILLIS))?;
        size_between("history-size", self.history_bytes, HISTORY_BYTES)?;
        duration_between("history-ttl", self.history_ttl_millis, HISTORY_TTL_MILLIS)?;
        if self.history > MAX_HISTORY {
            return Err(ConfigError::new("history", self.history, format!("expected 0 to {MAX_HISTORY}")));
        }
        if self.keepalive_millis != 0 {
            duration_between("keepalive", self.keepalive_millis, KEEPALIVE_MILLIS)?;
        }
        Ok(())
    }

    fn validate_counts(&self) -> Result<(), ConfigError> {
        for (flag, value, most) in [
            ("max-connections", self.max_connections, MAX_CONNECTIONS),
            ("max-connections-per-ip", self.max_connections_per_ip, MAX_CONNECTIONS_PER_IP),
            ("accept-rate", self.accept_rate, MAX_RATE),
            ("message-rate", self.message_rate, MAX_RATE),
            ("max-subscriptions", Some(self.max_subscriptions), MAX_SUBSCRIPTIONS),
            ("max-topics", Some(self.max_topics), MAX_TOPICS),
        ] {
            if let Some(value) = value.filter(|value| !(1..=most).contains(value)) {
                return Err(ConfigError::new(flag, value, format!("expected 1 to {most}")));
            }
        }
        Ok(())
    }

    fn validate_proxies(&self) -> Result<(), ConfigError> {
        match self.proxy_protocol {
            Switch::On if self.trusted_proxies.is_empty() => {
                let reason = "needs --trusted-proxy, else there is nobody whose header would be believed";
                Err(ConfigError::new("proxy-protocol", "on", reason))
            }
            _ => Ok(()),
        }
    }

    fn validate_origins(&self) -> Result<(), ConfigError> {
        for origin in &self.allowed_origins {
            let serialized = origin.split_once("://").is_some_and(|(scheme, host)| {
                !scheme.is_empty()
                    && !host.is_empty()
                    && origin.bytes().all(|byte| byte.is_ascii_graphic())
                    && !host.contains(['/', '?', '#', '@', ','])
            });
            if origin != "*" && !serialized {
                let accepted =
                    "expected SCHEME://HOST[:PORT] without a path, such as https://example.com, or *";
                return Err(ConfigError::new("allowed-origin", origin, accepted));
            }
        }
        Ok(())
    }

    fn validate_subprotocols(&self) -> Result<(), ConfigError> {
        // RFC 6455 section 4.1: a subprotocol is a token of RFC 9110 section 5.6.2.
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        for (n, name) in self.subprotocols.iter().enumerate() {
            if name.is_empty() || !name.bytes().all(token) {
                let accepted = "expected letters, digits and !#$%&'*+-.^_`|~ only";
                return Err(ConfigError::new("subprotocol", name, accepted));
            }
            if self.subprotocols[..n].contains(name) {
                return Err(ConfigError::new("subprotocol", name, "the name is given twice"));
            }
        }
        Ok(())
    }

    fn validate_token(&self) -> Result<(), ConfigError> {
        match (&self.publish_token, self.control.address()) {
            (Some(token), _) => {
                let token = token.expose();
                if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let accepted = "expected one or more visible ASCII characters without spaces";
                    return Err(ConfigError::new("publish-token", "(hidden)", accepted));
                }
                Ok(())
            }
            (None, Some(address)) if !address.ip().to_canonical().is_loopback() => Err(ConfigError::new(
                "control",
                address,
                "an address beyond loopback needs --publish-token, else anyone who reaches it may publish",
            )),
            _ => Ok(()),
        }
    }
}

fn size_between(flag: &str, bytes: usize, (least, most): (usize, usize)) -> Result<(), ConfigError> {
    let text = format_size;
    match (least..=most).contains(&bytes) {
        true => Ok(()),
        false => {
            Err(ConfigError::new(flag, text(bytes), format!("expected {} to {}", text(least), text(most))))
        }
    }
}

fn duration_between(flag: &str, millis: u64, (least, most): (u64, u64)) -> Result<(), ConfigError> {
    let text = format_duration;
    match (least..=most).contains(&millis) {
        true => Ok(()),
        false => {
            Err(ConfigError::new(flag, text(millis), format!("expected {} to {}", text(least), text(most))))
        }
    }
}

/// Whether the data port and the control port would meet. `[::]` is all addresses of IPv6 to the one, and those of IPv4,
/// too, to the other.
fn overlap(listen: SocketAddr, control: SocketAddr) -> bool {
    let (ours, theirs) = (listen.ip().to_canonical(), control.ip().to_canonical());
    let same_family = ours.is_ipv4() == theirs.is_ipv4();
    let meet = ours == theirs
        || (ours.is_unspecified() && same_family)
        || (theirs.is_unspecified() && (same_family || theirs.is_ipv6()));
    listen.port() == control.port() && meet
}

#[cfg(test)]
mod tests {
    use super::super::{ControlAddress, PublishToken};
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_valid_and_does_not_surprise() {
        assert_eq!(Config::default().validate(), Ok(()));
        assert_eq!(Config::default().warnings(), Vec::<String>::new());
        let config = Config { send_queue_bytes: 1024, ..Config::default() };
        assert!(config.warnings()[0].contains("--send-queue 1KiB"));
    }

    #[test]
    fn limits_name_flag_value_and_range() {
        assert_eq!(
            refused(|c| c.max_handshake_bytes = 16),
            "invalid value '16B' for '--max-handshake-size': expected 512B to 1MiB"
        );
        assert_eq!(
            refused(|c| c.handshake_timeout_millis = 0),
            "invalid value '0' for '--handshake-timeout': expected 10ms to 10m"
        );
        assert!(refused(|c| c.keepalive_millis = 1).contains("expected 10ms to 24h"));
        assert!(refused(|c| c.max_message_bytes = 0).contains("expected 1B to 256MiB"));
        assert!(refused(|c| c.send_queue_bytes = 1).contains("'--send-queue'"));
        assert!(refused(|c| c.drain_window_millis = u64::MAX).contains("'--drain-window'"));
        assert!(refused(|c| c.max_connections = Some(0)).contains("'--max-connections'"));
        assert!(refused(|c| c.max_connections_per_ip = Some(65_536)).contains("expected 1 to 65535"));
        assert!(refused(|c| c.accept_rate = Some(0)).contains("'0' for '--accept-rate': expected 1 to"));
        assert!(refused(|c| c.message_rate = Some(u64::MAX)).contains("'--message-rate'"));
        assert!(refused(|c| c.max_subscriptions = 4097).contains("expected 1 to 4096"));
        assert!(refused(|c| c.max_topics = 0).contains("'--max-topics'"));
        assert!(refused(|c| c.proxy_protocol = Switch::On).contains("needs --trusted-proxy"));
        let off = Config { keepalive_millis: 0, drain_window_millis: 0, ..Config::default() };
        assert_eq!(off.validate(), Ok(()));
    }

    #[test]
    fn addresses_must_differ() {
        assert!(refused(|c| c.listen.clear()).contains("at least one address"));
        assert!(refused(|c| c.listen.push(c.listen[0])).contains("given twice"));
        assert!(refused(|c| c.control = ControlAddress::At(c.listen[0])).contains("'--control'"));
        let any_port = "127.0.0.1:0".parse().unwrap();
        let control = ControlAddress::At(any_port);
        let config = Config { listen: vec![any_port, any_port], control, ..Config::default() };
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn addresses_that_cover_each_other_are_found() {
        let meet = |listen: &str, control: &str| {
            let [listen, control] = [listen, control].map(|ip| SocketAddr::new(ip.parse().unwrap(), 9));
            overlap(listen, control)
        };
        for (listen, control) in [
            ("0.0.0.0", "127.0.0.1"),
            ("127.0.0.1", "0.0.0.0"),
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::1"),
            ("::1", "::"),
            ("0.0.0.0", "::"),
            ("127.0.0.1", "::"),
            ("127.0.0.1", "::ffff:127.0.0.1"),
        ] {
            assert!(meet(listen, control), "{listen} {control}");
        }
        for (listen, control) in
            [("127.0.0.1", "127.0.0.2"), ("::", "127.0.0.1"), ("::1", "0.0.0.0"), ("0.0.0.0", "::1")]
        {
            assert!(!meet(listen, control), "{listen} {control}");
        }
        let everywhere = "0.0.0.0:9".parse().unwrap();
        let text = refused(|c| (c.listen, c.control) = (vec![everywhere], "127.0.0.1:9".parse().unwrap()));
        assert!(
            text.contains("'127.0.0.1:9' for '--control'") && text.contains("--listen 0.0.0.0:9"),
            "{text}"
        );
        let control = "127.0.0.1:10".parse().unwrap();
        assert_eq!(Config { listen: vec![everywhere], control, ..Config::default() }.validate(), Ok(()));
    }

    #[test]
    fn control_beyond_loopback_needs_a_token() {
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let control: ControlAddress = address.parse().unwrap();
            assert!(refused(|c| c.control = control).contains("needs --publish-token"), "{address}");
            let publish_token = Some(PublishToken::new("s3cret"));
            assert_eq!(Config { control, publish_token, ..Config::default() }.validate(), Ok(()));
        }
        for address in ["127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "off"] {
            let config = Config { control: address.parse().unwrap(), ..Config::default() };
            assert_eq!(config.validate(), Ok(()), "{address}");
        }
        for token in ["", "two words", "é"] {
            let error = refused(|c| c.publish_token = Some(PublishToken::new(token)));
            assert!(error.contains("'(hidden)' for '--publish-token'"), "{error}");
        }
    }

    #[test]
    fn origins_and_subprotocols_are_checked() {
        for origin in ["*", "https://example.com", "http://localhost:3000", "chrome-extension://abc"] {
            let config = Config { allowed_origins: vec![origin.into()], ..Config::default() };
            assert_eq!(config.validate(), Ok(()), "{origin}");
        }
        for origin in ["", "example.com", "https://", "https://a/", "https://a b", "://a"] {
            let error = refused(|c| c.allowed_origins = vec![origin.into()]);
            assert!(error.contains("expected SCHEME://HOST"), "{error}");
        }
        assert!(refused(|c| c.subprotocols = vec!["a b".into()]).contains("'a b' for '--subprotocol'"));
        assert!(refused(|c| c.subprotocols = vec!["a".into(), "a".into()]).contains("given twice"));
    }
}
