//! CPU and memory of the server process, from `/proc`.

use std::collections::HashMap;
use std::{fs, io};

use serde::Serialize;

use crate::sys;

/// The process with this id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerProcess(pub(crate) u32);

/// CPU that the whole machine has used, from `/proc/stat`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Machine {
    busy_seconds: f64,
    steal_seconds: f64,
}

impl Machine {
    /// Looks at the machine.
    pub(crate) fn observe() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let sum = |fields: &[usize]| fields.iter().filter_map(|index| ticks.get(*index)).sum::<f64>();
        // user, nice, system, (idle, iowait), irq, softirq, steal
        let (busy, steal) = (sum(&[0, 1, 2, 5, 6]), sum(&[7]));
        Self { busy_seconds: busy / sys::ticks_per_second(), steal_seconds: steal / sys::ticks_per_second() }
    }

    /// CPU seconds used, and seconds that a hypervisor took away, since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> (f64, f64) {
        (self.busy_seconds - earlier.busy_seconds, self.steal_seconds - earlier.steal_seconds)
    }
}

/// One look at a process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observation {
    /// CPU nanoseconds of each living thread.
    threads: HashMap<u32, u64>,
    user_seconds: f64,
    system_seconds: f64,
    /// Resident memory in bytes.
    pub(crate) rss_bytes: u64,
    /// The anonymous part of it: heap and stacks.
    pub(crate) anonymous_bytes: u64,
}

/// CPU used between two observations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct CpuUse {
    /// All of it, as exact as `source` allows.
    pub(crate) seconds: f64,
    /// Part in user mode, sampled at clock ticks.
    pub(crate) user_seconds: f64,
    /// Part in the kernel, sampled at clock ticks.
    pub(crate) system_seconds: f64,
    /// `schedstat` (nanoseconds) or `stat` (clock ticks; used when a thread ended in between).
    pub(crate) source: &'static str,
}

impl ServerProcess {
    /// Looks at the process.
    pub(crate) fn observe(self) -> io::Result<Observation> {
        let path = |name: &str| format!("/proc/{}/{name}", self.0);
        let stat = fs::read_to_string(path("stat"))?;
        let (user_ticks, system_ticks) = parse_stat(&stat)
            .ok_or_else(|| io::Error::other(format!("{} is not understood", path("stat"))))?;
        let status = fs::read_to_string(path("status"))?;
        // The counters in `status` lag behind by some pages per CPU; `smaps_rollup` is exact but may be forbidden.
        let rollup = fs::read_to_string(path("smaps_rollup")).unwrap_or_default();
        let exact =
            |exact: &str, rough: &str| kib(&rollup, exact).or_else(|| kib(&status, rough)).unwrap_or(0);
        Ok(Observation {
            threads: self.thread_times(),
            user_seconds: user_ticks as f64 / sys::ticks_per_second(),
            system_seconds: system_ticks as f64 / sys::ticks_per_second(),
            rss_bytes: exact("Rss:", "VmRSS:") * 1024,
            anonymous_bytes: exact("Anonymous:", "RssAnon:") * 1024,
        })
    }

    /// Descriptors in its epoll sets. Error: `/proc` does not tell.
    pub(crate) fn epoll_watches(self) -> io::Result<usize> {
        let directory = format!("/proc/{}/fd", self.0);
        let named = |path: &str, error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        let descriptors = fs::read_dir(&directory).map_err(|error| named(&directory, error))?;
        let mut watches = 0;
        for descriptor in descriptors.flatten() {
            // One that was closed meanwhile has no target any more.
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            if target.as_os_str() == "anon_inode:[eventpoll]" {
                let number = descriptor.file_name();
                let path = format!("/proc/{}/fdinfo/{}", self.0, number.to_string_lossy());
                let text = fs::read_to_string(&path).map_err(|error| named(&path, error))?;
                watches += text.lines().filter(|line| line.starts_with("tfd:")).count();
            }
        }
        Ok(watches)
    }

    /// CPU nanoseconds by thread; empty where the kernel does not tell.
    fn thread_times(self) -> HashMap<u32, u64> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.0)) else {
            return HashMap::new();
        };
        let read = |task: io::Result<fs::DirEntry>| {
            let task = task.ok()?;
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            Some((task.file_name().to_str()?.parse().ok()?, text.split_whitespace().next()?.parse().ok()?))
        };
        tasks.filter_map(read).collect()
    }
}

impl Observation {
    /// CPU used since `earlier`.
    pub(crate) fn cpu_since(&self, earlier: &Self) -> CpuUse {
        let user_seconds = self.user_seconds - earlier.user_seconds;
        let system_seconds = self.system_seconds - earlier.system_seconds;
        let all_alive = earlier.threads.keys().all(|thread| self.threads.contains_key(thread));
        if self.threads.is_empty() || !all_alive {
            return CpuUse {
                seconds: user_seconds + system_seconds,
                user_seconds,
                system_seconds,
                source: "stat",
            };
        }
        let used =
            |(thread, time): (&u32, &u64)| time.saturating_sub(*earlier.threads.get(thread).unwrap_or(&0));
        let nanoseconds: u64 = self.threads.iter().map(used).sum();
        CpuUse { seconds: nanoseconds as f64 / 1e9, user_seconds, system_seconds, source: "schedstat" }
    }
}

/// User and system ticks of a `/proc/PID/stat` line; the name in it may contain spaces and parentheses.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Value of the line that begins with `name`, in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_an_awkward_name_is_read() {
        let line = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20 0";
        assert_eq!(parse_stat(line), Some((111, 222)));
        assert_eq!(parse_stat("12"), None);
        assert_eq!(kib("VmHWM: 3 kB\nVmRSS:\t   812 kB\n", "VmRSS:"), Some(812));
    }

    #[test]
    fn machine_line_is_read() {
        let machine = Machine::parse("cpu  100 200 300 5000 6000 10 20 70 0 0\ncpu0 1 2 3\n");
        let (busy, steal) = machine.since(Machine::default());
        assert_eq!((busy * sys::ticks_per_second(), steal * sys::ticks_per_second()), (630.0, 70.0));
        assert_eq!(Machine::parse("").since(Machine::default()), (0.0, 0.0));
    }

    #[test]
    fn own_process_is_observed() {
        let own = ServerProcess(std::process::id());
        let before = own.observe().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        let used = own.observe().unwrap().cpu_since(&before);
        assert!(before.rss_bytes > 100_000 && before.anonymous_bytes <= before.rss_bytes);
        assert!(used.source == "stat" || used.seconds > 0.01, "{used:?}");
    }

    #[test]
    fn watches_of_epoll_sets_are_counted() {
        let own = ServerProcess(std::process::id());
        let before = own.epoll_watches().unwrap();
        let epoll = sys::Epoll::new().unwrap();
        let wakers: Vec<sys::Waker> = (0..100).map(|_| sys::Waker::new().unwrap()).collect();
        for waker in &wakers {
            epoll.add(waker.descriptor(), sys::READABLE, 0).unwrap();
        }
        // Other tests of this process may open and close a few at the same time.
        assert!(own.epoll_watches().unwrap() >= before + 90, "{before}");
    }

    #[test]
    fn an_ended_thread_falls_back_to_ticks_and_a_new_one_counts_in_full() {
        let observation = |threads: &[(u32, u64)], user_seconds| Observation {
            threads: threads.iter().copied().collect(),
            user_seconds,
            ..Observation::default()
        };
        let before = observation(&[(1, 1_000_000_000), (2, 5)], 1.0);
        let ended = observation(&[(1, 2_000_000_000)], 3.0).cpu_since(&before);
        assert_eq!((ended.source, ended.seconds), ("stat", 2.0));
        let begun = observation(&[(1, 2_000_000_000), (2, 5), (3, 500_000_000)], 3.0).cpu_since(&before);
        assert_eq!((begun.source, begun.seconds), ("schedstat", 1.5));
    }
}
