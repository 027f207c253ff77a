//! Settings that change while the server runs.
//!
//! The dispatcher reads them again on SIGHUP, puts the control thread's own in force, and hands the shards theirs.
//! Nothing changes unless everything that was read is right.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::{error, info, warn};

use super::{ControlSettings, Shared};
use crate::config::{Config, Reloaded};
use crate::service_manager;
use crate::shard::Settings;

/// What a program does for a reload.
pub struct Reload {
    /// Reads the settings, or says in one line why they cannot be.
    pub load: Box<dyn Fn() -> Result<Config, String> + Send>,
    /// Is told what is in force from now on.
    pub apply: Box<dyn Fn(&Config) + Send>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// A server's settings and how they are read again.
pub struct Reloader {
    reload: Reload,
    /// In force.
    config: Config,
    derived_max_connections: u64,
    /// Puts in the addresses of sockets that were handed over.
    addresses: Box<dyn Fn(&mut Config) + Send>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How often settings were read again.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) done: AtomicU64,
    pub(super) failed: AtomicU64,
}

impl Reloader {
    /// For a server that runs with `config`. `derived_max_connections` is the limit where no setting gives a lower
    /// one; `addresses` is applied to whatever is read.
    #[must_use]
    pub fn new(
        reload: Reload,
        config: Config,
        derived_max_connections: u64,
        addresses: Box<dyn Fn(&mut Config) + Send>,
    ) -> Self {
        Self { reload, config, derived_max_connections, addresses }
    }

    /// Reads the settings and puts them in force; gives those of the shards. With an error, all stays as it was.
    pub(super) fn reload(&mut self, shared: &Shared) -> Option<Arc<Settings>> {
        service_manager::reloading();
        let outcome = self.read(shared.stats.len());
        let settings = match outcome {
            Ok((reloaded, settings)) => {
                self.put_in_force(shared, reloaded, &settings);
                shared.reloads.done.fetch_add(1, Relaxed);
                Some(Arc::new(settings))
            }
            Err(reason) => {
                shared.reloads.failed.fetch_add(1, Relaxed);
                // Some reasons draw a picture of the file; a log line is one line.
                let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
                error!("the configuration was not reloaded, the old one stays: {reason}");
                None
            }
        };
        service_manager::ready();
        settings
    }

    fn read(&self, shards: usize) -> Result<(Reloaded, Settings), String> {
        let mut new = (self.reload.load)()?;
        (self.addresses)(&mut new);
        let reloaded = self.config.reloaded(new).map_err(|error| error.to_string())?;
        let settings = Settings::new(&reloaded.config, self.derived_max_connections, shards)
            .map_err(|error| format!("allowed origin {error}"))?;
        Ok((reloaded, settings))
    }

    fn put_in_force(&mut self, shared: &Shared, reloaded: Reloaded, settings: &Settings) {
        let Reloaded { config, changed, needs_restart } = reloaded;
        let old = shared.settings.load_full();
        shared.settings.store(Arc::new(ControlSettings {
            for_process: old.for_process,
            websocket_addresses: old.websocket_addresses.clone(),
            ..ControlSettings::new(&config, settings.max_connections)
        }));
        (self.reload.apply)(&config);
        self.config = config;
        let descriptors = self.config.descriptor_warning(self.derived_max_connections);
        for warning in self.config.warnings().into_iter().chain(descriptors) {
            warn!("{warning}");
        }
        if !needs_restart.is_empty() {
            warn!("changed, but only a restart puts it in force: {}", needs_restart.join(", "));
        }
        match changed.as_slice() {
            [] => info!("configuration reloaded, nothing changed"),
            changed => info!("configuration reloaded, changed: {}", changed.join(", ")),
        }
    }
}
