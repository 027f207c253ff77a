//! The system calls of the load generator, each in a safe function. The only file with `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Events taken from the kernel at once.
const EVENTS: usize = 512;

/// Interest in input.
pub(crate) const READABLE: u32 = libc::EPOLLIN as u32;
/// Interest in room for output.
pub(crate) const WRITABLE: u32 = libc::EPOLLOUT as u32;

/// Monotonic clock in nanoseconds, the same for all processes of the machine.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call; CLOCK_MONOTONIC always exists, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An epoll set and the events of its last wait.
pub(crate) struct Epoll {
    set: OwnedFd,
    events: Box<[libc::epoll_event; EVENTS]>,
    count: usize,
}

impl Epoll {
    /// A new, empty set.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the returned descriptor is new and owned by nobody else.
        let set = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self { set, events: Box::new([libc::epoll_event { events: 0, u64: 0 }; EVENTS]), count: 0 })
    }

    /// Watches `descriptor` for `interest`; its events carry `token`.
    pub(crate) fn add(&self, descriptor: &OwnedFd, interest: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor, interest, token)
    }

    /// Changes what a watched descriptor is watched for.
    pub(crate) fn modify(&self, descriptor: &OwnedFd, interest: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, descriptor, interest, token)
    }

    fn control(&self, operation: i32, descriptor: &OwnedFd, interest: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: both descriptors are open and `event` is valid for the call.
        let result =
            unsafe { libc::epoll_ctl(self.set.as_raw_fd(), operation, descriptor.as_raw_fd(), &mut event) };
        check(result).map(drop)
    }

    /// Waits for events, at most `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> io::Result<()> {
        let exact =
            libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        self.count = 0;
        // SAFETY: the kernel writes at most EVENTS events to the array; a null signal mask is allowed.
        let result = check(unsafe {
            let events = self.events.as_mut_ptr();
            libc::epoll_pwait2(self.set.as_raw_fd(), events, EVENTS as i32, &exact, std::ptr::null())
        });
        let result = match result {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => self.wait_roughly(limit),
            result => result,
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => {
                self.count = result? as usize;
                Ok(())
            }
        }
    }

    /// Waits for events, at most `limit` rounded up to a millisecond: what kernels before 5.11 offer, and valgrind.
    #[cold]
    fn wait_roughly(&mut self, limit: Duration) -> io::Result<i32> {
        static TOLD: std::sync::Once = std::sync::Once::new();
        TOLD.call_once(|| {
            eprintln!(
                "loadgen: the kernel does not offer epoll_pwait2: waits are rounded up to milliseconds, and what is sent by \
                 a schedule may be late by as much"
            );
        });
        let limit = limit.as_micros().div_ceil(1000) as i32;
        // SAFETY: the kernel writes at most EVENTS events to the array.
        check(unsafe {
            libc::epoll_wait(self.set.as_raw_fd(), self.events.as_mut_ptr(), EVENTS as i32, limit)
        })
    }

    /// Number of events of the last wait.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Token of event `index` and whether it has something besides room for output.
    pub(crate) fn event(&self, index: usize) -> (u64, bool) {
        let event = self.events[index];
        (event.u64, event.events & !WRITABLE != 0)
    }
}

/// A descriptor by which one thread wakes another.
pub(crate) struct Waker(OwnedFd);

impl Waker {
    /// A new one, not signalled.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the returned descriptor is new and owned by nobody else.
        unsafe {
            Ok(Self(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?)))
        }
    }

    /// Wakes the thread that watches it.
    pub(crate) fn wake(&self) {
        let one = 1_u64;
        // SAFETY: the kernel reads eight bytes from `one`. A full counter means that it is signalled already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Takes the signal back.
    pub(crate) fn drain(&self) {
        let mut count = 0_u64;
        // SAFETY: the kernel writes eight bytes to `count`, or nothing when it is not signalled.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }

    /// The descriptor to watch.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}

/// Begins a connection to `target`, from `source` if there is one, without waiting.
///
/// No option is set that a handshake can do without: every call is part of what `connect` costs.
pub(crate) fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(source) = source {
        let on: i32 = 1;
        // SAFETY: the descriptor is open, `on` is an i32 and its size is given.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const on).cast(),
                size_of::<i32>() as u32,
            )
        })?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Lets `socket` send small messages although earlier ones are not acknowledged.
pub(crate) fn send_at_once(socket: &OwnedFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// Makes the end of `socket` a reset instead of an orderly one: nothing lingers, and no port stays in TIME_WAIT.
pub(crate) fn reset_on_close(socket: &OwnedFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Receives what is there, without waiting.
#[inline]
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer.
    let count = unsafe {
        libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Sends without waiting and returns how much was taken.
pub(crate) fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    let count = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Ties the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set; the callers' CPU numbers are checked against its size.
    check(unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    })
    .map(drop)
}

/// Lets timers of the calling thread fire on time instead of up to 50 µs late.
pub(crate) fn sharpen_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64) };
}

/// Number of CPUs that this process may run on.
pub(crate) fn allowed_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Raises the soft limit on descriptors to the hard limit and returns it.
pub(crate) fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
    }
    Ok(limit.rlim_cur)
}

/// User and system CPU seconds of this process so far.
pub(crate) fn own_cpu_seconds() -> (f64, f64) {
    // SAFETY: an all-zero rusage is valid and the kernel fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime))
}

/// Clock ticks a second, the unit of `/proc/PID/stat`.
pub(crate) fn ticks_per_second() -> f64 {
    // SAFETY: sysconf touches no memory of ours.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

/// Size of a page of memory.
pub(crate) fn page_bytes() -> i64 {
    // SAFETY: sysconf touches no memory of ours.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
