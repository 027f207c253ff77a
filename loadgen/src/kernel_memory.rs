//! What connections cost the kernel: slab objects by cache and pages of TCP buffers, before and after connecting.
//!
//! Loadgen and server share one kernel, so each connection has two sockets in these figures. The share of the server
//! follows from what the caches hold ([`KNOWN`]):
//!
//! 1. Both ends have a socket, so half of the `TCP` and `sock_inode_cache` objects, of `filp`, of `dentry` and of what a
//!    security module keeps for each of them is the server's.
//! 2. `eventpoll_epi`, `eventpoll_pwq` and `ep_head`: as many as the server's epoll sets watch descriptors, which
//!    `/proc/PID/fdinfo` tells; none of an io_uring server. The rest is loadgen's, which has an epoll set, and a local port
//!    for each connection (`tcp_bind_bucket` and `tcp_bind2_bucket`, often merged with `eventpoll_epi`).
//! 3. `io_kiocb` and what else io_uring has caches for is the server's; loadgen has no ring.
//! 4. Any other cache belongs to nobody in particular: buffers of both ends, and what other processes did
//!    meanwhile. It is in the total and in nobody's share.
//!
//! Connections that other processes open or close meanwhile are in all of it, so figures per connection are given only if
//! the number of TCP sockets has grown by two for each connection, within [`SOCKETS_TOLERANCE`].
//!
//! A kernel that merges caches of equal size counts several under one name; `/sys/kernel/slab` tells which. Numbers of
//! objects are approximate by a slab or so per CPU: with fewer than 1,000 connections they say little.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fmt, fs, io};

use serde::Serialize;

use crate::process::ServerProcess;
use crate::sys;

/// Whose the objects of a cache are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// Half of them are the server's.
    Both,
    /// As many as it watches by epoll are the server's, the rest is loadgen's.
    Epoll,
    Server,
    /// Not told apart.
    Nobody,
}

/// Caches whose use of a connection is known.
const KNOWN: [(&str, End); 13] = [
    ("TCP", End::Both),
    ("TCPv6", End::Both),
    ("sock_inode_cache", End::Both),
    ("filp", End::Both),
    ("dentry", End::Both),
    ("lsm_file_cache", End::Both),
    ("lsm_inode_cache", End::Both),
    ("eventpoll_epi", End::Epoll),
    ("eventpoll_pwq", End::Epoll),
    ("ep_head", End::Epoll),
    ("io_kiocb", End::Server),
    ("io_buffer", End::Server),
    ("io_uring", End::Server),
];
/// Part of the sockets that may be too many or too few.
const SOCKETS_TOLERANCE: f64 = 0.05;
/// A cache that belongs to nobody is listed from this many bytes per connection on.
const LISTED_FROM_BYTES: f64 = 16.0;

/// One cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slab {
    objects: i64,
    object_bytes: i64,
}

/// One look at the kernel's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KernelObservation {
    slabs: BTreeMap<String, Slab>,
    /// Pages in buffers of TCP sockets.
    tcp_pages: i64,
    slab_kib: i64,
    unreclaimable_kib: i64,
    /// Descriptors in the server's epoll sets.
    server_watches: i64,
}

/// How a cache grew.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Cache {
    name: String,
    /// The known cache that the kernel has merged into this one, if it has another name.
    merged: Option<&'static str>,
    end: End,
    objects: i64,
    object_bytes: i64,
    server_bytes: i64,
}

/// How the kernel's memory grew while the connections were opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct KernelGrowth {
    pub(crate) connections: usize,
    /// How many TCP sockets more there are, and whether these are the two ends of the connections and no others.
    pub(crate) sockets: i64,
    pub(crate) sockets_as_expected: bool,
    pub(crate) caches: Vec<Cache>,
    /// Over all caches, listed or not.
    pub(crate) objects_bytes: i64,
    /// Pages of all caches, from `/proc/meminfo`, and those of them that cannot be reclaimed.
    pub(crate) slab_bytes: i64,
    pub(crate) slab_unreclaimable_bytes: i64,
    pub(crate) tcp_buffer_bytes: i64,
    /// By the rule of this module.
    pub(crate) server_bytes: i64,
}

/// What a run tells about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum KernelMemory {
    Growth(KernelGrowth),
    /// Why it is left out.
    Unavailable {
        unavailable: String,
    },
}

impl fmt::Display for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {:+} × {} B",
            self.merged.unwrap_or(&self.name),
            self.objects,
            self.object_bytes
        )
    }
}

impl KernelObservation {
    /// Looks at the kernel; `/proc/slabinfo` may be read by root only.
    pub(crate) fn take(server: Option<ServerProcess>) -> io::Result<Self> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
        };
        let observation =
            Self::parse(&read("/proc/slabinfo")?, &read("/proc/net/sockstat")?, &read("/proc/meminfo")?)
                .ok_or_else(|| io::Error::other("/proc/slabinfo, sockstat or meminfo is not understood"))?;
        let server_watches = server.map(ServerProcess::epoll_watches).transpose()?.unwrap_or_default();
        Ok(Self { server_watches: server_watches as i64, ..observation })
    }

    fn parse(slabinfo: &str, sockstat: &str, meminfo: &str) -> Option<Self> {
        let slab = |line: &str| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?.to_owned();
            let objects = fields.next()?.parse().ok()?;
            let object_bytes = fields.nth(1)?.parse().ok()?;
            Some((name, Slab { objects, object_bytes }))
        };
        let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
        let kib = |name: &str| {
            meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        };
        let slabs: BTreeMap<String, Slab> = slabinfo.lines().skip(2).filter_map(slab).collect();
        (!slabs.is_empty()).then_some(())?;
        Some(Self {
            slabs,
            tcp_pages: tcp.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()?,
            slab_kib: kib("Slab:")?,
            unreclaimable_kib: kib("SUnreclaim:")?,
            server_watches: 0,
        })
    }

    /// Growth since `earlier`, in which `connections` were opened; `identity` gives the caches that the kernel has merged
    /// one name.
    fn since(&self, earlier: &Self, connections: usize, identity: impl Fn(&str) -> String) -> KernelGrowth {
        let known: Vec<(String, &'static str, End)> =
            KNOWN.iter().map(|(name, end)| (identity(name), *name, *end)).collect();
        let mut objects_bytes = 0;
        let mut sockets = 0;
        let mut caches = Vec::new();
        for (name, slab) in &self.slabs {
            let objects = slab.objects - earlier.slabs.get(name).map_or(0, |slab| slab.objects);
            let bytes = objects * slab.object_bytes;
            objects_bytes += bytes;
            if matches!(name.as_str(), "TCP" | "TCPv6") {
                sockets += objects;
            }
            let own = identity(name);
            let found = known
                .iter()
                .find(|(_, known, _)| known == name)
                .or_else(|| known.iter().find(|(identity, ..)| *identity == own));
            let end = found.map_or(End::Nobody, |(.., end)| *end);
            let small = bytes.unsigned_abs() as f64 <= LISTED_FROM_BYTES * connections as f64;
            if objects == 0 || (end == End::Nobody && small) {
                continue;
            }
            let of_server = match end {
                End::Both => objects / 2,
                End::Epoll => self.server_watches - earlier.server_watches,
                End::Server => objects,
                End::Nobody => 0,
            };
            caches.push(Cache {
                name: name.clone(),
                merged: found.map(|(_, known, _)| *known).filter(|known| known != name),
                end,
                objects,
                object_bytes: slab.object_bytes,
                server_bytes: of_server * slab.object_bytes,
            });
        }
        KernelGrowth {
            connections,
            sockets,
            sockets_as_expected: (sockets as f64 / (2 * connections) as f64 - 1.0).abs() < SOCKETS_TOLERANCE,
            objects_bytes,
            slab_bytes: (self.slab_kib - earlier.slab_kib) * 1024,
            slab_unreclaimable_bytes: (self.unreclaimable_kib - earlier.unreclaimable_kib) * 1024,
            tcp_buffer_bytes: (self.tcp_pages - earlier.tcp_pages) * sys::page_bytes(),
            server_bytes: caches.iter().map(|cache| cache.server_bytes).sum(),
            caches,
        }
    }
}

impl KernelMemory {
    /// What there is to tell of two looks at the kernel, in that order.
    pub(crate) fn between(observations: &[io::Result<KernelObservation>; 2], connections: usize) -> Self {
        match observations {
            [Ok(before), Ok(after)] => Self::Growth(after.since(before, connections, identity)),
            [Err(error), _] | [_, Err(error)] => Self::Unavailable { unavailable: error.to_string() },
        }
    }
}

/// Name of the cache behind the name `cache`.
fn identity(cache: &str) -> String {
    let target = fs::read_link(Path::new("/sys/kernel/slab").join(cache));
    target.map_or_else(|_| cache.to_owned(), |target| target.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(slabs: &[(&str, i64, i64)], tcp_pages: i64) -> KernelObservation {
        let mut slabinfo =
            "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> …\n".to_owned();
        for (name, objects, bytes) in slabs {
            slabinfo +=
                &format!("{name} {objects} {} {bytes} 21 1 : tunables 0 0 0 : slabdata 2 2 0\n", objects + 9);
        }
        let sockstat = format!(
            "sockets: used 21\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem {tcp_pages}\nUDP: inuse 0 mem 7\n"
        );
        KernelObservation::parse(&slabinfo, &sockstat, "MemTotal: 9 kB\nSlab: 50 kB\nSUnreclaim: 30 kB\n")
            .unwrap()
    }

    #[test]
    fn each_end_has_its_share() {
        let before =
            observation(&[("TCP", 10, 2368), ("eventpoll_epi", 5, 128), ("eventpoll_other", 0, 64)], 3);
        let mut after = observation(
            &[
                ("TCP", 2010, 2368),
                ("eventpoll_epi", 1005, 128),
                ("eventpoll_other", 2000, 64),
                ("io_kiocb", 1000, 256),
                ("kmalloc-96", 3000, 96),
                ("kmalloc-8", 10, 8),
            ],
            5,
        );
        let merged = |name: &str| match name {
            "eventpoll_pwq" | "eventpoll_other" => ":A-0000064".to_owned(),
            name => name.to_owned(),
        };
        after.server_watches = 990;
        let growth = after.since(&before, 1000, merged);
        let caches: Vec<_> = growth
            .caches
            .iter()
            .map(|cache| (cache.name.as_str(), cache.merged, cache.end, cache.objects, cache.server_bytes))
            .collect();
        assert_eq!(
            caches,
            [
                ("TCP", None, End::Both, 2000, 1000 * 2368),
                ("eventpoll_epi", None, End::Epoll, 1000, 990 * 128),
                ("eventpoll_other", Some("eventpoll_pwq"), End::Epoll, 2000, 990 * 64),
                ("io_kiocb", None, End::Server, 1000, 1000 * 256),
                ("kmalloc-96", None, End::Nobody, 3000, 0),
            ]
        );
        assert_eq!((growth.sockets, growth.sockets_as_expected), (2000, true));
        assert!(!after.since(&before, 900, merged).sockets_as_expected);
        assert_eq!(growth.server_bytes, 1000 * (2368 + 256) + 990 * (128 + 64));
        let all = 2000 * 2368 + 1000 * 128 + 2000 * 64 + 1000 * 256 + 3000 * 96 + 80;
        assert_eq!([growth.objects_bytes, growth.tcp_buffer_bytes], [all, 2 * sys::page_bytes()]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let denied = || Err(io::Error::new(io::ErrorKind::PermissionDenied, "/proc/slabinfo: no"));
        let memory = KernelMemory::between(&[denied(), denied()], 5);
        assert_eq!(memory, KernelMemory::Unavailable { unavailable: "/proc/slabinfo: no".into() });
        assert_eq!(KernelObservation::parse("", "", ""), None);
    }
}
