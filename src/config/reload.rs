//! What a running server takes over from a configuration that was read again.
//!
//! [`Config::reloaded`] names each setting that can change at run time; whatever it does not name needs a
//! restart, so a new setting does until it is added there.

use toml::Table;

use super::{Config, ConfigError};

/// What a reload comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// The settings to go on with, validated.
    pub config: Config,
    /// Names of the settings that change now.
    pub changed: Vec<String>,
    /// Names of those that differ and stay as they were until a restart.
    pub needs_restart: Vec<String>,
}

impl Config {
    /// The settings of a server that runs with `self` and is given `new`.
    ///
    /// # Errors
    /// [`ConfigError`] when what changes does not fit what stays: without a token, for instance, a control port
    /// that is reachable by others.
    pub fn reloaded(&self, new: Self) -> Result<Reloaded, ConfigError> {
        let wanted = new.clone();
        let config = Self {
            max_connections: new.max_connections,
            accept_rate: new.accept_rate,
            message_rate: new.message_rate,
            max_subscriptions: new.max_subscriptions,
            max_topics: new.max_topics,
            max_handshake_bytes: new.max_handshake_bytes,
            handshake_timeout_millis: new.handshake_timeout_millis,
            allowed_origins: new.allowed_origins,
            deny_ip: new.deny_ip,
            max_message_bytes: new.max_message_bytes,
            send_queue_bytes: new.send_queue_bytes,
            slow_consumer: new.slow_consumer,
            compression: new.compression,
            compression_min_bytes: new.compression_min_bytes,
            publish_token: new.publish_token,
            drain_window_millis: new.drain_window_millis,
            log: new.log,
            ..self.clone()
        };
        config.validate()?;
        let (changed, needs_restart) = (self.differences(&config), config.differences(&wanted));
        Ok(Reloaded { config, changed, needs_restart })
    }

    /// Names of the settings in which two configurations differ.
    fn differences(&self, other: &Self) -> Vec<String> {
        let table = |config: &Self| Table::try_from(config).unwrap_or_default();
        let (ours, theirs) = (table(self), table(other));
        // One that is not set is in neither table, so both are gone through.
        let mut names: Vec<String> = ours
            .keys()
            .chain(theirs.keys())
            .filter(|name| ours.get(*name) != theirs.get(*name))
            .cloned()
            .collect();
        // It is in no table.
        if self.publish_token != other.publish_token {
            names.push("publish-token".to_owned());
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ControlAddress, LogLevel, PublishToken};
    use super::*;

    #[test]
    fn what_can_change_does_and_the_rest_is_named() {
        let running = Config::default();
        let new = Config {
            publish_token: Some(PublishToken::new("t")),
            max_connections: Some(7),
            log: LogLevel::Debug,
            deny_ip: vec!["192.0.2.0/24".parse().unwrap()],
            listen: vec!["127.0.0.1:1".parse().unwrap()],
            echo: true,
            ..running.clone()
        };
        let reloaded = running.reloaded(new.clone()).unwrap();
        assert_eq!(reloaded.changed, ["deny-ip", "log", "max-connections", "publish-token"]);
        assert_eq!(reloaded.needs_restart, ["echo", "listen"]);
        assert_eq!(reloaded.config, Config { listen: running.listen.clone(), echo: false, ..new.clone() });
        let again = reloaded.config.reloaded(new).unwrap();
        assert_eq!((again.changed.len(), again.needs_restart), (0, reloaded.needs_restart));
        let back = reloaded.config.reloaded(running.clone()).unwrap();
        assert_eq!((back.config, back.needs_restart.len()), (running, 0));
    }

    #[test]
    fn a_control_port_that_stays_open_to_others_keeps_its_token() {
        let running = Config {
            control: ControlAddress::At("0.0.0.0:1".parse().unwrap()),
            publish_token: Some(PublishToken::new("t")),
            ..Config::default()
        };
        assert!(running.reloaded(Config::default()).unwrap_err().to_string().contains("--publish-token"));
    }
}
