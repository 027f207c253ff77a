//! Run time of the kernel's threads that do a server's network work, from `/proc`.
//!
//! The kernel hands softirq work that lasts too long to the thread `ksoftirqd` of the CPU on which it came up. On loopback,
//! and where a network card's queue is bound to the CPU that serves it, that is the CPU of who sent: so the threads of the
//! CPUs that the server may run on count, and those of loadgen's CPUs do not, unless the server may run there as well. The
//! scheduler knows their time in nanoseconds. Other kernel threads (`kworker`, `rcu`) are left out: what they do for the
//! server is little, and what they do for the rest of the machine would be noise in its figure.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::process::ServerProcess;
use crate::units::CpuList;

/// `schedstat` of each `ksoftirqd` concerned.
#[derive(Debug, Clone)]
pub(crate) struct SoftirqThreads(Vec<PathBuf>);

impl SoftirqThreads {
    /// Those of the CPUs that the threads of `server` may run on now; nothing unless all of them are found, which is so
    /// in a container that does not see the kernel's threads.
    pub(crate) fn of(server: ServerProcess) -> Option<Self> {
        let cpus = allowed_cpus(server);
        let threads: Vec<PathBuf> = fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter(|entry| {
                // A name alone could be anybody's; the kernel's threads have no command line.
                let text = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
                let cpu = text("comm").and_then(|name| cpu_of(&name));
                cpu.is_some_and(|cpu| cpus.contains(&cpu))
                    && text("cmdline").is_some_and(|line| line.is_empty())
            })
            .map(|entry| entry.path().join("schedstat"))
            .collect();
        (!cpus.is_empty() && threads.len() == cpus.len()).then_some(Self(threads))
    }

    /// What they have run so far; nothing if that cannot be read.
    pub(crate) fn seconds(&self) -> Option<f64> {
        let nanoseconds = |path: &PathBuf| run_time(&fs::read_to_string(path).ok()?);
        Some(self.0.iter().map(nanoseconds).sum::<Option<u64>>()? as f64 / 1e9)
    }
}

/// CPUs that at least one thread of `server` may run on.
fn allowed_cpus(server: ServerProcess) -> BTreeSet<usize> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.0)).into_iter().flatten().flatten();
    let allowed = tasks.filter_map(|task| allowed_by(&fs::read_to_string(task.path().join("status")).ok()?));
    allowed.flat_map(|cpus| cpus.0).collect()
}

fn allowed_by(status: &str) -> Option<CpuList> {
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().parse().ok()
}

/// The CPU of the thread called `name`, if that is a `ksoftirqd`.
fn cpu_of(name: &str) -> Option<usize> {
    name.trim_end().strip_prefix("ksoftirqd/")?.parse().ok()
}

/// Nanoseconds of a `schedstat` line.
fn run_time(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_times_and_cpus_are_read() {
        assert_eq!(cpu_of("ksoftirqd/12\n"), Some(12));
        assert_eq!((cpu_of("kworker/0:1\n"), cpu_of("ksoftirqd/x")), (None, None));
        assert_eq!(run_time("52370983209 89179787899 387317\n"), Some(52_370_983_209));
        assert_eq!(run_time(""), None);
        assert_eq!(allowed_by("Name:\ta\nCpus_allowed_list:\t0-1,4\n").unwrap().0, [0, 1, 4]);
        assert_eq!(allowed_by("Name:\ta\n"), None);
    }

    #[test]
    fn the_threads_of_the_own_cpus_only_run_on() {
        let own = ServerProcess(std::process::id());
        assert_eq!(allowed_cpus(own).len(), crate::sys::allowed_cpus());
        // Where the kernel's threads are not to be seen there is nothing to compare.
        if let Some(threads) = SoftirqThreads::of(own) {
            let before = threads.seconds().unwrap();
            assert!(threads.seconds().unwrap() >= before && before >= 0.0);
        }
        assert!(SoftirqThreads::of(ServerProcess(u32::MAX)).is_none());
    }
}
