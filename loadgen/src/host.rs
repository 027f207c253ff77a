//! Where a measurement was taken: machine, kernel, commit.

use std::fs;

use serde::Serialize;

use crate::sys;

/// The machine.
#[derive(Debug, Serialize)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) kernel: String,
    pub(crate) cpu_model: String,
    /// CPUs of the machine.
    pub(crate) cores: usize,
    /// CPUs that this process may use.
    pub(crate) cores_allowed: usize,
    pub(crate) memory_bytes: u64,
}

impl Host {
    /// This machine.
    pub(crate) fn here() -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpus = line("/proc/cpuinfo");
        let value = |name: &str| {
            let line = cpus.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let memory = line("/proc/meminfo");
        let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        Self {
            name: line("/proc/sys/kernel/hostname"),
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu_model: value("model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count().max(1),
            cores_allowed: sys::allowed_cpus(),
            memory_bytes: kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024,
        }
    }
}

/// Commit that this program was built from, with `+` if its sources had changes; nothing if they were of no repository.
pub(crate) fn commit() -> Option<&'static str> {
    Some(env!("LOADGEN_COMMIT")).filter(|commit| !commit.is_empty())
}
