//! Bytes of large broadcasts, in pages that all sockets refer to.
//!
//! A send copies: each subscriber that lags has its own copy of a message in the kernel, and a megabyte to 100,000 of
//! them is 100 GB. What [`SharedPages`] holds lies in memory that is a file, from where `sendfile` gives the sockets
//! the pages themselves. It costs a system call for each subscriber, and so serves only where copying costs more.
//!
//! Invariants:
//! 1. Pages are written before the first send refers to them, and never again: sockets read them for as long as a
//!    segment may have to be sent once more. [`SharedPages::release`] gives up all pages whole; those that sockets
//!    still refer to live on without the file, and the file gets new ones.
//! 2. Between broadcasts the file is empty.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::io::{Errno, pwrite};

/// Bytes of a broadcast from which on it goes out from shared pages: where that begins to cost no more than a copy for
/// each subscriber (RESULTS.md, "Large broadcasts").
const LEAST_BYTES: usize = 16 * 1024;

/// Subscribers from which on the pages are worth making.
const LEAST_SUBSCRIBERS: usize = 16;

/// Size of a page, or a divisor of it where pages are larger.
const PAGE_BYTES: u64 = 4096;

/// Where bytes begin in their first page. A reader whose buffer begins as its pages do copies a third slower on x86:
/// its loads seem to depend on the stores before them, of which the processor compares the lowest 12 bits.
const OFFSET_IN_PAGE: u64 = PAGE_BYTES / 2;

/// Where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    start: u64,
    length: usize,
}

impl Place {
    /// Bytes that lie there.
    pub(super) fn length(self) -> usize {
        self.length
    }
}

/// A shard's shared pages.
#[derive(Debug, Default)]
pub(super) struct SharedPages {
    file: File,
    end: u64,
}

#[derive(Debug, Default)]
enum File {
    /// Nothing large has been sent yet.
    #[default]
    Unopened,
    Open(OwnedFd),
    /// The kernel refuses: everything is copied.
    Refused,
}

impl SharedPages {
    /// Whether a broadcast of so many bytes is to go out from here.
    pub(super) fn serves(bytes: usize, subscribers: usize) -> bool {
        bytes >= LEAST_BYTES && subscribers >= LEAST_SUBSCRIBERS
    }

    /// Takes bytes in until the next release. `None` when there is no memory for them: then they must be copied.
    pub(super) fn hold(&mut self, bytes: &[u8]) -> Option<Place> {
        if matches!(self.file, File::Unopened) {
            self.file = match open() {
                Ok(file) => File::Open(file),
                Err(error) => {
                    tracing::warn!(%error, "no shared pages: large broadcasts are copied for each subscriber");
                    File::Refused
                }
            };
        }
        let File::Open(file) = &self.file else { return None };
        let start = self.end.next_multiple_of(PAGE_BYTES) + OFFSET_IN_PAGE;
        self.end = start + bytes.len() as u64;
        match pwrite(file, bytes, start) {
            Ok(written) if written == bytes.len() => return Some(Place { start, length: bytes.len() }),
            Ok(_) => tracing::warn!("too few shared pages: a large broadcast is copied for each subscriber"),
            Err(error) => {
                tracing::warn!(%error, "no shared pages: a large broadcast is copied for each subscriber");
            }
        }
        None
    }

    /// Sends as much as the socket, which must not block, has room for; says how much that was.
    ///
    /// # Errors
    /// The socket's, when the connection is broken. The signal that comes with it must be blocked or ignored
    /// ([`block_signals_of_errors`]): `sendfile` has no flag against it.
    pub(super) fn send(&self, socket: BorrowedFd<'_>, place: Place) -> io::Result<usize> {
        let File::Open(file) = &self.file else { return Ok(0) };
        let mut offset = place.start;
        match sendfile(socket, file.as_fd(), Some(&mut offset), place.length) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets go of what is held. Sockets keep the pages that they still need.
    pub(super) fn release(&mut self) {
        if let (File::Open(file), 1..) = (&self.file, self.end) {
            if ftruncate(file, 0).is_err() {
                // What cannot be given up must not be written again.
                self.file = File::Refused;
            }
        }
        self.end = 0;
    }
}

/// Makes the file. What is in it is not to be executed, and says so where the kernel knows the flag (6.3), which warns of
/// files that do not say either.
fn open() -> Result<OwnedFd, Errno> {
    const NAME: &str = "corecast-broadcast";
    match memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(NAME, MemfdFlags::CLOEXEC),
        result => result,
    }
}

/// Keeps signals from the calling thread, for good, that come with errors of [`SharedPages`] and end a program that has
/// not said otherwise: SIGPIPE of a broken connection, SIGXFSZ of a file beyond the limit for files (`RLIMIT_FSIZE`).
pub(super) fn block_signals_of_errors() -> io::Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    SigSet::from_iter([Signal::SIGPIPE, Signal::SIGXFSZ]).thread_block().map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        server.set_nonblocking(true).unwrap();
        (server, client)
    }

    fn pattern(seed: u32, length: usize) -> Vec<u8> {
        (0..length as u32).map(|at| (at.wrapping_mul(seed) >> 7) as u8).collect()
    }

    #[test]
    fn what_a_socket_has_taken_is_not_changed_by_what_follows() {
        let mut pages = SharedPages::default();
        let (server, mut client) = pair();
        let mut expected = Vec::new();
        // Nobody reads: all of it waits in the kernel while the file is emptied and written again.
        for (seed, length) in [(3, 30_000), (5, 1), (7, 4_096), (11, 25_001), (13, 2_048)] {
            let bytes = pattern(seed, length);
            let place = pages.hold(&bytes).unwrap();
            assert_eq!(pages.send(server.as_fd(), place).unwrap(), length);
            pages.release();
            let _ = pages.hold(&[0xff; 65_536]).unwrap();
            pages.release();
            expected.extend(bytes);
        }
        drop(server);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == expected, "{} of {} bytes, or others", received.len(), expected.len());
    }

    #[test]
    fn two_payloads_are_held_apart_and_nothing_after_the_release() {
        let mut pages = SharedPages::default();
        let (first, second) = (pattern(3, 5_000), pattern(5, 70_000));
        let places = [pages.hold(&first).unwrap(), pages.hold(&second).unwrap()];
        for (place, bytes) in places.into_iter().zip([first, second]) {
            let (server, mut client) = pair();
            assert_eq!(pages.send(server.as_fd(), place).unwrap(), bytes.len());
            drop(server);
            let mut received = Vec::new();
            client.read_to_end(&mut received).unwrap();
            assert!(received == bytes);
        }
        pages.release();
        let File::Open(file) = &pages.file else { panic!("the file was opened") };
        assert_eq!(rustix::fs::fstat(file).unwrap().st_size, 0);
    }

    #[test]
    fn a_full_socket_takes_a_part_and_then_nothing() {
        let mut pages = SharedPages::default();
        let (server, mut client) = pair();
        let bytes = pattern(3, 200_000);
        let place = pages.hold(&bytes).unwrap();
        let mut sent = Vec::new();
        while let Ok(count @ 1..) = pages.send(server.as_fd(), place) {
            sent.extend_from_slice(&bytes[..count]);
        }
        assert_ne!(sent.len() % bytes.len(), 0, "the last one was taken in part");
        drop(server);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
    }

    #[test]
    fn a_broken_connection_is_an_error_and_the_signal_waits() {
        let test = || {
            block_signals_of_errors().unwrap();
            let mut pages = SharedPages::default();
            let (server, _client) = pair();
            let place = pages.hold(&[0; 20_000]).unwrap();
            server.shutdown(std::net::Shutdown::Write).unwrap();
            let error = pages.send(server.as_fd(), place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
            let pending = u64::from_str_radix(pending.trim(), 16).unwrap();
            assert_eq!(pending, 1 << (libc::SIGPIPE - 1), "it was raised and not delivered");
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn without_a_file_everything_is_left_to_copying() {
        let mut pages = SharedPages { file: File::Refused, end: 0 };
        assert_eq!(pages.hold(&[0; 100]), None);
        pages.release();
        // A file that cannot be written, as without memory.
        let unwritable = std::fs::File::open("/dev/null").unwrap().into();
        let mut pages = SharedPages { file: File::Open(unwritable), end: 0 };
        assert_eq!(pages.hold(&[0; 100]), None);
        pages.release();
        assert!(matches!(pages.file, File::Refused), "what cannot be emptied is not used again");
    }
}
