//! What a run was asked to do, checked against what this machine allows.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arguments::{Common, ProgressChoice};
use crate::compression::Offer;
use crate::links::Target;
use crate::payload::Filler;
use crate::units::{CpuList, SourceRange, Url};
use crate::{payload, sys};

/// Descriptors that are not connections: epoll sets, wakers, files.
const OTHER_DESCRIPTORS: u64 = 64;
/// Largest payload; what a publisher holds twice must fit into memory.
const PAYLOAD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Settings that all measuring modes share.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) url: Url,
    pub(crate) publish_url: Option<Url>,
    pub(crate) connections: usize,
    pub(crate) cpus: Option<CpuList>,
    pub(crate) duration: Option<Duration>,
    pub(crate) payload: usize,
    /// Offered on every connection.
    pub(crate) compression: Option<Offer>,
    pub(crate) timeout: Duration,
    pub(crate) handshakes: usize,
    pub(crate) pid: Option<u32>,
    pub(crate) rival: Option<u32>,
    pub(crate) source_ips: Option<SourceRange>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) progress: bool,
}

impl Settings {
    /// Checks `common`; a refusal names the flag, its value and what is accepted.
    pub(crate) fn check(common: Common) -> Result<Self, String> {
        let payload = common.payload;
        if !(payload::MIN_BYTES..=PAYLOAD_MAX_BYTES).contains(&payload) {
            return Err(format!("--payload {payload}B: expected {}B to 16MiB", payload::MIN_BYTES));
        }
        let limit = sys::raise_descriptor_limit().map_err(|error| format!("descriptor limit: {error}"))?;
        let most = limit.saturating_sub(OTHER_DESCRIPTORS);
        if common.connections as u64 > most {
            return Err(format!(
                "--connections {}: this process may open {limit} descriptors, so at most {most} connections",
                common.connections
            ));
        }
        for (flag, pid) in [("--pid", common.pid), ("--rival", common.rival)] {
            if let Some(pid) = pid.filter(|pid| !Path::new(&format!("/proc/{pid}/stat")).exists()) {
                return Err(format!("{flag} {pid}: no such process"));
            }
        }
        if common.source_ips.is_some() && !common.url.address.is_ipv4() {
            return Err(format!("--source-ips: {} is not an IPv4 address", common.url.address.ip()));
        }
        if let Some(path) = &common.json {
            check_writable(path).map_err(|error| format!("--json {}: {error}", path.display()))?;
        }
        let threads = common.cpus.as_ref().map_or(1, |cpus| cpus.0.len());
        if threads > common.connections {
            return Err(format!("--cpus: {threads} threads for {} connections", common.connections));
        }
        if let Some(cpus) = &common.cpus {
            check_cpus(cpus)?;
        }
        Ok(Self {
            url: common.url,
            publish_url: None,
            connections: common.connections,
            cpus: common.cpus,
            duration: common.duration,
            payload,
            compression: common.compression.then_some(Offer { server_window_bits: common.window_bits }),
            timeout: common.timeout,
            handshakes: common.handshakes,
            pid: common.pid,
            rival: common.rival,
            source_ips: common.source_ips,
            json: common.json,
            labels: common.label,
            progress: common.progress == ProgressChoice::Auto && std::io::stderr().is_terminal(),
        })
    }

    /// Makes the timeout long enough for `rate` events a second.
    pub(crate) fn wait_for_rate(&mut self, rate: f64) {
        let interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        self.timeout = self.timeout.max(interval.saturating_mul(3));
    }

    /// What fills the payloads.
    pub(crate) fn filler(&self) -> Filler {
        if self.compression.is_some() { Filler::Json } else { Filler::Bytes }
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.cpus.as_ref().map_or(1, |cpus| cpus.0.len())
    }

    /// Connections of thread `index`: all threads have the same number, or one more.
    pub(crate) fn share(&self, index: usize) -> usize {
        share(self.connections, self.threads(), index)
    }

    /// Servers to connect to; number 0 is `--url`, the last one is the publisher's.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let urls = std::iter::once(&self.url).chain(&self.publish_url);
        urls.map(|url| Target { url: url.clone(), subprotocol: None }).collect()
    }
}

/// Whether a file can be written, so that it is not after the run that its result has no place. Nothing is left behind,
/// and nothing that is there changes.
fn check_writable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_file() || there.is_dir() => {
            OpenOptions::new().append(true).open(path).map(drop)
        }
        // Opening a pipe would wait for its reader.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).create_new(true).open(path)?;
            fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn share(total: usize, parts: usize, index: usize) -> usize {
    total / parts + usize::from(index < total % parts)
}

/// Whether a thread can be tied to each of `cpus`: a set of CPUs that this process is confined to counts as well as what
/// the machine has.
fn check_cpus(cpus: &CpuList) -> Result<(), String> {
    for cpu in &cpus.0 {
        // The thread ends with the CPU that it is tied to.
        let pinned = std::thread::scope(|scope| scope.spawn(|| sys::pin(*cpu)).join());
        if let Ok(Err(error)) = pinned {
            let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
            let reason = match error.kind() {
                std::io::ErrorKind::InvalidInput => {
                    "this CPU is not there, or not for this process".to_owned()
                }
                _ => error.to_string(),
            };
            let online = if online.is_empty() { "?" } else { online.trim() };
            return Err(format!("--cpus {cpu}: {reason}; CPUs of this machine: {online}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_add_up() {
        for (total, parts) in [(10, 3), (3, 3), (10_000, 7)] {
            assert_eq!((0..parts).map(|index| share(total, parts, index)).sum::<usize>(), total);
        }
    }
}
