//! The shard's own io_uring: accepting, readiness, batched sends, knocking at other shards, and sleep.
//!
//! glommio's ring drives user tasks and timers; sockets live on this second ring, because an idle connection
//! here costs one poll in the kernel and nothing in user space. It lives on its shard's thread and
//! is entered by no other (`IORING_SETUP_SINGLE_ISSUER`, `IORING_SETUP_DEFER_TASKRUN`: Linux 6.1).
//!
//! Invariants:
//! 1. The only operations that refer to user memory are sends, and they are staged by [`super::batch`] alone,
//!    which keeps the bytes until the submission queue is empty again. A send never waits
//!    (`MSG_DONTWAIT`): when submission returns, the kernel is done with the bytes.
//! 2. A send that was accepted whole posts no completion. A short or failed one does, during submission.
//! 3. Completions carry slot and generation; a slot is free for reuse only after the last completion of each
//!    of its watches.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use glommio::io::BufferedFile;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Entries of the submission queue: most operations that one `io_uring_enter` submits. With many sends in one call the
/// kernel leaves a part of their work to `ksoftirqd`, which has to be scheduled for it.
const SUBMISSION_ENTRIES: u32 = 64;

/// Entries of the completion queue. More completions than this wait in the kernel and are flushed by the next
/// enter; none is lost (`IORING_FEAT_NODROP`).
const COMPLETION_ENTRIES: u32 = 8192;

/// Bits of a slot's generation that a completion carries.
const GENERATION_MASK: u32 = 0x00ff_ffff;

const ACCEPT: u8 = 1;
const READABLE: u8 = 2;
const WRITABLE: u8 = 3;
const SEND: u8 = 4;
const UNWATCH_READABLE: u8 = 5;
const UNWATCH_WRITABLE: u8 = 6;
const KNOCK: u8 = 7;
const TICK: u8 = 8;
const CANCEL_ACCEPT: u8 = 9;

fn user_data(operation: u8, high: u32, low: u32) -> u64 {
    u64::from(operation) << 56 | u64::from(high & GENERATION_MASK) << 32 | u64::from(low)
}

/// What the kernel reports.
#[derive(Debug)]
pub(super) enum Completion {
    /// A connection was accepted, or accepting failed; unless `more`, the listener is no longer armed.
    Accepted { listener: u32, result: io::Result<OwnedFd>, more: bool },
    /// The connection can be read; with `ended`, its end or a failure can be read behind what is left. Unless
    /// `more`, the watch is over.
    Readable { slot: u32, generation: u32, ended: bool, more: bool },
    /// The connection may take bytes again, or has failed. Unless `more`, the watch is over.
    Writable { slot: u32, generation: u32, more: bool },
    /// Ending the watch for reading raced with its wake-up and must be asked for again.
    UnwatchReadableFailed { slot: u32, generation: u32 },
    /// The same for writing.
    UnwatchWritableFailed { slot: u32, generation: u32 },
    /// Another shard or the control thread has sent something, or the tick of a parked shard is over.
    Woken,
}

/// A staged send that the kernel did not take whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShortSend {
    pub(super) slot: u32,
    /// Number of the payload in the batch.
    pub(super) payload: u32,
    /// Bytes taken, or a negative errno.
    pub(super) result: i32,
}

/// Everything reported since the last look. Short sends come apart: they must be handled first, so that
/// nothing is sent behind a gap.
#[derive(Debug, Default)]
pub(super) struct Completions {
    pub(super) short_sends: Vec<ShortSend>,
    pub(super) events: Vec<Completion>,
}

/// Whether two generations are the same as far as a completion can tell.
pub(super) fn same_generation(a: u32, b: u32) -> bool {
    (a ^ b) & GENERATION_MASK == 0
}

/// A shard's io_uring.
pub(super) struct Ring {
    uring: IoUring,
    tick: Box<types::Timespec>,
    tick_armed: bool,
}

impl Ring {
    /// Makes the ring for the calling thread.
    pub(super) fn new() -> io::Result<Self> {
        Self::with_entries(SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
    }

    fn with_entries(submission: u32, completion: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completion)
            .build(submission)?;
        Ok(Self { uring, tick: Box::new(types::Timespec::new()), tick_armed: false })
    }

    /// An event descriptor that completions signal between [`Ring::park`] and [`Ring::unpark`]: to be written, and to
    /// be read by the executor. To be called once, on an executor.
    pub(super) fn register_event(&mut self) -> io::Result<(File, BufferedFile)> {
        let event = event_fd()?;
        let writer = File::from(event.try_clone()?);
        self.uring.submitter().register_eventfd(event.as_raw_fd())?;
        self.uring.completion().disable_eventfd();
        // SAFETY: the file takes over this descriptor, of which nobody else knows.
        Ok((writer, unsafe { BufferedFile::from_raw_fd(event.into_raw_fd()) }))
    }

    /// The descriptor that others knock at.
    pub(super) fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Accepts connections until the kernel says otherwise, or one. On a socket that several rings wait at, the
    /// kernel wakes the one that has waited longest: with one at a time they take turns, while one that accepts
    /// on and on stays in front and gets them all.
    pub(super) fn accept(&mut self, listener: u32, socket: BorrowedFd<'_>, once: bool) {
        let (fd, flags) = (types::Fd(socket.as_raw_fd()), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        let entry = match once {
            true => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build(),
            false => opcode::AcceptMulti::new(fd).flags(flags).build(),
        };
        self.push(entry.user_data(user_data(ACCEPT, 0, listener)));
    }

    /// Stops accepting; the last [`Completion::Accepted`] of the listener follows.
    pub(super) fn cancel_accept(&mut self, listener: u32) {
        let entry = opcode::AsyncCancel::new(user_data(ACCEPT, 0, listener)).build();
        self.push(entry.user_data(user_data(CANCEL_ACCEPT, 0, listener)));
    }

    /// Reports when the connection can be read: with `each_time` until [`Ring::unwatch_readable`], else once.
    pub(super) fn watch_readable(
        &mut self,
        slot: u32,
        generation: u32,
        socket: BorrowedFd<'_>,
        each_time: bool,
    ) {
        let interest = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let entry = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), interest).multi(each_time).build();
        self.push(entry.user_data(user_data(READABLE, generation, slot)));
    }

    /// Reports when the connection takes bytes again: once; or with `peer_ended` each time until
    /// [`Ring::unwatch_writable`], because every poll of io_uring reports the peer's end too, and one-shot polls would
    /// do so again and again.
    pub(super) fn watch_writable(
        &mut self,
        slot: u32,
        generation: u32,
        socket: BorrowedFd<'_>,
        peer_ended: bool,
    ) {
        let fd = types::Fd(socket.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLOUT as u32).multi(peer_ended).build();
        self.push(entry.user_data(user_data(WRITABLE, generation, slot)));
    }

    /// Ends a watch for reading; its last [`Completion::Readable`] follows.
    pub(super) fn unwatch_readable(&mut self, slot: u32, generation: u32) {
        let entry = opcode::PollRemove::new(user_data(READABLE, generation, slot)).build();
        self.push(entry.user_data(user_data(UNWATCH_READABLE, generation, slot)));
    }

    /// Ends a watch for writing; its last [`Completion::Writable`] follows.
    pub(super) fn unwatch_writable(&mut self, slot: u32, generation: u32) {
        let entry = opcode::PollRemove::new(user_data(WRITABLE, generation, slot)).build();
        self.push(entry.user_data(user_data(UNWATCH_WRITABLE, generation, slot)));
    }

    /// Wakes the shard that sleeps on another ring.
    pub(super) fn knock(&mut self, ring_fd: RawFd) {
        let entry = opcode::MsgRingData::new(types::Fd(ring_fd), 0, user_data(KNOCK, 0, 0), None).build();
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(user_data(KNOCK, 0, 0)));
    }

    /// Stages a send that takes what the socket has room for.
    ///
    /// # Safety
    /// `bytes` must stay valid and unchanged until [`Ring::is_submitted`] is true.
    pub(super) unsafe fn stage_send(&mut self, slot: u32, payload: u32, socket: RawFd, bytes: *const [u8]) {
        // MSG_WAITALL makes a short send count as a failure, so that it posts a completion in spite of
        // SKIP_SUCCESS; MSG_DONTWAIT keeps the kernel from waiting for room with our bytes in hand.
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = opcode::Send::new(types::Fd(socket), bytes.cast(), bytes.len() as u32).flags(flags);
        let entry = entry.build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(user_data(SEND, payload, slot)));
    }

    /// Free places in the submission queue.
    pub(super) fn room(&mut self) -> usize {
        let queue = self.uring.submission();
        queue.capacity() - queue.len()
    }

    /// Operations that the kernel has yet to be given.
    pub(super) fn staged(&mut self) -> usize {
        self.uring.submission().len()
    }

    /// Whether the kernel has taken everything that was staged.
    pub(super) fn is_submitted(&mut self) -> bool {
        self.uring.submission().is_empty()
    }

    /// Hands all staged operations to the kernel, without waiting, and collects what is complete. That is all of it, and
    /// so every send that fell short, also where there were more completions than the queue holds.
    pub(super) fn submit(&mut self, completions: &mut Completions) -> io::Result<()> {
        loop {
            let queue = self.uring.submission();
            let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
            drop(queue);
            if idle {
                self.collect(completions);
                return Ok(());
            }
            match self.enter() {
                Ok(()) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            self.collect(completions);
            let queue = self.uring.submission();
            if queue.is_empty() && !queue.cq_overflow() {
                return Ok(());
            }
        }
    }

    /// Submits, then sleeps until something is complete, and collects. A tick of `timeout` completes if none is
    /// armed already: a timer of the sleep's own would be set anew for each, which costs more than the rest of a
    /// short sleep.
    pub(super) fn wait(&mut self, timeout: Duration, completions: &mut Completions) -> io::Result<()> {
        self.arm_tick(timeout);
        let result = self.uring.submitter().submit_and_wait(1);
        self.collect(completions);
        match result {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// As [`Ring::wait`], for less time than a tick that may be armed.
    pub(super) fn wait_at_most(
        &mut self,
        timeout: Duration,
        completions: &mut Completions,
    ) -> io::Result<()> {
        let timeout = types::Timespec::from(timeout);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        let result = self.uring.submitter().submit_with_args(1, &arguments);
        self.collect(completions);
        match result {
            Err(error) if !is_transient(&error) && error.raw_os_error() != Some(libc::ETIME) => Err(error),
            _ => Ok(()),
        }
    }

    /// Arms a tick, unless one is armed from an earlier sleep: it ends this one within a tick, early or late, and both
    /// do no harm.
    fn arm_tick(&mut self, timeout: Duration) {
        if !self.tick_armed {
            self.tick_armed = true;
            *self.tick = types::Timespec::from(timeout);
            let entry = opcode::Timeout::new(&raw const *self.tick).build();
            self.push(entry.user_data(user_data(TICK, 0, 0)));
        }
    }

    fn enter(&mut self) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        let staged = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed, so nothing but the rings that io_uring mapped itself is read;
        // the staged entries uphold invariant 1.
        unsafe { self.uring.submitter().enter::<libc::sigset_t>(staged, 0, GETEVENTS, None) }.map(drop)
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: entries refer to no memory, except for sends (bytes kept by the batch) and the tick
            // (boxed in self); both outlive their submission.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: the kernel takes it all. Transient failures are tried again; any other
            // error shows in the next submit, which reports it.
            let _ = self.enter();
        }
    }

    fn collect(&mut self, completions: &mut Completions) {
        for entry in self.uring.completion() {
            let (data, result, more) = (entry.user_data(), entry.result(), cqueue::more(entry.flags()));
            let (high, low) = ((data >> 32) as u32 & GENERATION_MASK, data as u32);
            let retry = result == -libc::EALREADY;
            let event = match (data >> 56) as u8 {
                SEND => {
                    completions.short_sends.push(ShortSend { slot: low, payload: high, result });
                    continue;
                }
                READABLE => {
                    let ended = result < 0
                        || result & i32::from(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0;
                    Completion::Readable { slot: low, generation: high, ended, more }
                }
                ACCEPT => Completion::Accepted { listener: low, result: accepted(result), more },
                WRITABLE => Completion::Writable { slot: low, generation: high, more },
                UNWATCH_READABLE if retry => {
                    Completion::UnwatchReadableFailed { slot: low, generation: high }
                }
                UNWATCH_WRITABLE if retry => {
                    Completion::UnwatchWritableFailed { slot: low, generation: high }
                }
                KNOCK => Completion::Woken,
                TICK => {
                    self.tick_armed = false;
                    Completion::Woken
                }
                _ => continue,
            };
            completions.events.push(event);
        }
    }

    /// Prepares for sleep of at most `timeout` in the executor: completions signal the event descriptor. True when
    /// there is nothing to handle first.
    pub(super) fn park(&mut self, timeout: Duration) -> io::Result<bool> {
        self.arm_tick(timeout);
        self.uring.completion().enable_eventfd();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        while !self.is_submitted() {
            match self.enter() {
                Err(error) if !is_transient(&error) => return Err(error),
                _ => {}
            }
        }
        let pending = self.uring.submission().taskrun();
        Ok(!pending && self.uring.completion().is_empty())
    }

    /// Ends what [`Ring::park`] began.
    pub(super) fn unpark(&mut self) {
        self.uring.completion().disable_eventfd();
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn accepted(result: i32) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the completion of an accept hands a new descriptor to us and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Knocks at rings from a thread that has no ring of its own.
pub(super) struct Knocker(IoUring);

impl Knocker {
    pub(super) fn new() -> io::Result<Self> {
        IoUring::new(8).map(Self)
    }

    /// Wakes the shard that sleeps on `ring_fd`.
    pub(super) fn knock(&mut self, ring_fd: RawFd) {
        let entry = opcode::MsgRingData::new(types::Fd(ring_fd), 0, user_data(KNOCK, 0, 0), None).build();
        // SAFETY: the entry refers to no memory.
        while unsafe { self.0.submission().push(&entry) }.is_err() {
            let _ = self.0.submit();
        }
        // A shard that cannot be woken is one that is about to end, or that wakes at its next tick.
        let _ = self.0.submit();
        self.0.completion().for_each(drop);
    }
}

/// A new event descriptor with a count of zero.
pub(super) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers; its result is checked before it is owned.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes and drops a ring as the shards need it, to learn at start whether they can be had.
pub(crate) fn probe() -> io::Result<()> {
    Ring::new().map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sends_that_fell_short_are_collected_from_an_overflow_too() {
        let mut ring = Ring::with_entries(4, 8).unwrap();
        let (mut full, _reader) = UnixStream::pair().unwrap();
        full.set_nonblocking(true).unwrap();
        while full.write(&[0; 4096]).is_ok() {}
        let readable = || {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            peer.write_all(b"to be read").unwrap();
            (peer, socket)
        };
        let sockets: Vec<_> = (0..100).map(|_| readable()).collect();
        let bytes = [0; 100];
        for (slot, (_, socket)) in sockets.iter().enumerate() {
            ring.watch_readable(slot as u32, 0, socket.as_fd(), false);
        }
        // SAFETY: the bytes live until the test's end.
        unsafe { ring.stage_send(7, 3, full.as_raw_fd(), &raw const bytes[..]) };
        let mut completions = Completions::default();
        ring.submit(&mut completions).unwrap();
        let short: Vec<_> = completions.short_sends.iter().map(|short| (short.slot, short.payload)).collect();
        assert_eq!(short, [(7, 3)]);
        assert_eq!(completions.events.len(), sockets.len());
    }
}
