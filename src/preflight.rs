//! What must be so before a server can start, checked while it still can say so in one readable line.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::shard::ring;

/// Oldest kernel that has all that the shards use: `IORING_SETUP_DEFER_TASKRUN`.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Memory that glommio insists may be locked, in bytes.
const MEMLOCK_BYTES: u64 = 512 * 1024;

/// Why this machine, or what this process may do on it, is not enough.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unfit {
    /// The kernel is too old.
    Kernel(String),
    /// io_uring exists but may not be used.
    RingRefused(io::Error),
    /// io_uring does not exist here, or lacks something.
    RingMissing(io::Error),
    /// Too little memory may be locked, in bytes.
    Memlock(u64),
    /// Something else went wrong on the way.
    Other(io::Error),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = OLDEST_KERNEL;
        match self {
            Self::Kernel(release) => {
                write!(f, "Linux {major}.{minor} or newer is needed; this is Linux {release}")
            }
            Self::RingRefused(error) => write!(
                f,
                "io_uring is refused here ({error}): allow it in the container's seccomp profile, or set the \
                 sysctl kernel.io_uring_disabled to 0"
            ),
            Self::RingMissing(error) => {
                write!(f, "io_uring cannot be used ({error}): Linux {major}.{minor} or newer is needed")
            }
            Self::Memlock(bytes) => write!(
                f,
                "the limit on locked memory is {} KiB; at least {} KiB are needed (ulimit -l, or LimitMEMLOCK= of \
                 systemd)",
                bytes / 1024,
                MEMLOCK_BYTES / 1024
            ),
            Self::Other(error) => write!(f, "cannot check this machine: {error}"),
        }
    }
}

impl std::error::Error for Unfit {}

/// Checks kernel, io_uring and the limit on locked memory.
///
/// # Errors
/// The first thing that is not enough.
pub fn check() -> Result<(), Unfit> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    // A release that does not begin with two numbers says nothing; the probe of the ring decides then.
    if kernel_version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        return Err(Unfit::Kernel(release.into_owned()));
    }
    raise(Resource::Memlock).map_err(Unfit::Other)?;
    if let Some(bytes) = getrlimit(Resource::Memlock).current.filter(|&bytes| bytes < MEMLOCK_BYTES) {
        return Err(Unfit::Memlock(bytes));
    }
    ring::probe().map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Unfit::RingRefused(error),
        _ => Unfit::RingMissing(error),
    })
}

/// Raises the limit on open descriptors to its hard limit and returns it.
///
/// # Errors
/// When the system refuses what it should always allow.
pub fn raise_descriptor_limit() -> Result<u64, Unfit> {
    raise(Resource::Nofile).map_err(Unfit::Other)?;
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

fn raise(resource: Resource) -> io::Result<()> {
    let limit = getrlimit(resource);
    if limit.current == limit.maximum {
        return Ok(());
    }
    Ok(setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_understood() {
        assert_eq!(kernel_version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(kernel_version("5.15.0"), Some((5, 15)));
        assert_eq!(kernel_version("6.1"), Some((6, 1)));
        assert_eq!(kernel_version("unknown"), None);
        assert!((5, 19) < OLDEST_KERNEL && (10, 0) > OLDEST_KERNEL);
    }

    #[test]
    fn the_descriptor_limit_ends_at_the_hard_limit() {
        let raised = raise_descriptor_limit().unwrap();
        assert_eq!(Some(raised), getrlimit(Resource::Nofile).maximum);
    }

    #[test]
    fn every_reason_is_one_line() {
        let error = || io::Error::from_raw_os_error(libc::EPERM);
        let reasons = [
            Unfit::Kernel("5.4".into()),
            Unfit::RingRefused(error()),
            Unfit::RingMissing(error()),
            Unfit::Memlock(65_536),
            Unfit::Other(error()),
        ];
        for reason in reasons {
            let text = reason.to_string();
            assert!(!text.contains('\n') && text.len() > 20, "{text}");
        }
    }
}
