//! What the kernel knows of a peer that it has yet to send something to: whether the peer makes room.
//!
//! A send buffer holds megabytes, and what is said to a slow reader stands at its end. The window that the peer opens
//! tells sooner than any answer whether somebody reads there.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Whether bytes wait in the socket for room at the peer, and some went out and were acknowledged within this time. A peer
/// that is gone acknowledges nothing, and to one that does not read nothing goes out but probes.
pub(super) fn is_taken(socket: BorrowedFd<'_>, within: Duration) -> bool {
    let Ok(info) = tcp_info(socket) else { return false };
    let recent = |millis: u32| Duration::from_millis(u64::from(millis)) < within;
    info.tcpi_notsent_bytes > 0 && recent(info.tcpi_last_data_sent) && recent(info.tcpi_last_ack_recv)
}

fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes `length` bytes at most, which is what `info` has, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is made of integers alone, and those that an older kernel did not fill in are zero.
    Ok(unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_socket_is_taken_from_only_while_its_peer_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        near.write_all(b"little").unwrap();
        far.read_exact(&mut [0; 6]).unwrap();
        assert!(!is_taken(near.as_fd(), LONG), "nothing waits");
        let mut written = 0;
        while let Ok(count) = near.write(&[1; 65536]) {
            written += count;
        }
        assert!(is_taken(near.as_fd(), LONG));
        // What the peer's kernel had no memory for goes out once more; then there is silence.
        let begun = Instant::now();
        let short = Duration::from_millis(200);
        while is_taken(near.as_fd(), short) {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody reads");
            thread::sleep(short / 4);
        }
        let acknowledged = tcp_info(near.as_fd()).unwrap().tcpi_bytes_acked;
        let read = written / 2;
        far.read_exact(&mut vec![0; read]).unwrap();
        let info = tcp_info(near.as_fd()).unwrap();
        assert!(info.tcpi_bytes_acked > acknowledged && info.tcpi_bytes_acked >= read as u64);
        assert!(is_taken(near.as_fd(), LONG) || info.tcpi_notsent_bytes == 0);
    }

    #[test]
    fn what_is_no_tcp_socket_is_never_taken_from() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(!is_taken(near.as_fd(), LONG));
    }
}
