//! The system calls of the floor, each in a safe function. The only file with `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

static STOP: AtomicBool = AtomicBool::new(false);

/// True once SIGINT or SIGTERM came.
pub(crate) fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

extern "C" fn request_stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// Makes SIGINT and SIGTERM end the loop.
pub(crate) fn stop_on_signals() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is valid (no flags, empty mask); the handler only stores to an atomic.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = request_stop as extern "C" fn(i32) as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        check(result)?;
    }
    Ok(())
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

/// A non-blocking listener on 127.0.0.1 whose connections have TCP_NODELAY.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    let on: i32 = 1;
    // SAFETY: the descriptor is open, `on` is an i32 and its size is given; listen only changes the backlog.
    unsafe {
        check(libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        ))?;
        check(libc::listen(listener.as_raw_fd(), BACKLOG))?;
    }
    Ok(listener)
}

/// The next waiting connection, non-blocking; `None` if nobody waits. One that is gone already is passed over.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    loop {
        // SAFETY: null address pointers are allowed.
        let result = check(unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
        });
        match result {
            // SAFETY: the descriptor is new and owned by nobody else.
            Ok(socket) => return Ok(Some(unsafe { OwnedFd::from_raw_fd(socket) })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A new epoll set.
pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: the returned descriptor is new and owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?)) }
}

/// Watches `socket` for input; its events carry the descriptor's number.
pub(crate) fn watch(epoll: &OwnedFd, socket: RawFd) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: socket as u64 };
    // SAFETY: both descriptors are open and `event` is valid for the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket, &mut event) }).map(drop)
}

/// Waits for input and fills `ready` with the descriptors that have some.
pub(crate) fn wait(epoll: &OwnedFd, ready: &mut Vec<RawFd>) -> io::Result<()> {
    const EVENTS: usize = 256;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    // SAFETY: the kernel writes at most EVENTS events to the array.
    let count =
        check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, -1) })?;
    ready.clear();
    ready.extend(events[..count as usize].iter().map(|event| event.u64 as RawFd));
    Ok(())
}

/// Receives what is there, without waiting.
pub(crate) fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer.
    let count = unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Sends without waiting and returns whether all of `bytes` was taken.
#[inline]
pub(crate) fn send(socket: RawFd, bytes: &[u8]) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    let count = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count) == Ok(bytes.len())
}

/// Reads what is there; the socket does not block.
#[inline]
pub(crate) fn read(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer.
    let count = unsafe { libc::read(socket, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes and returns whether all of `bytes` was taken; the socket does not block. A peer that is gone is an error and
/// no signal: Rust programs ignore SIGPIPE.
#[inline]
pub(crate) fn write(socket: RawFd, bytes: &[u8]) -> bool {
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    let count = unsafe { libc::write(socket, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(count) == Ok(bytes.len())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
