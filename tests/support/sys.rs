//! The few system calls that std has no name for: limits, signals, CPU sets, poll, a seccomp filter.
#![allow(unsafe_code)] // thin wrappers over libc; each block says why it is sound

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

/// What the server process is given before it starts.
#[derive(Debug, Clone, Default)]
pub struct Cage {
    /// RLIMIT_NOFILE, soft and hard.
    pub descriptors: Option<u64>,
    /// RLIMIT_MEMLOCK in bytes, soft and hard; the privilege that lifts it is taken away too.
    pub memlock: Option<u64>,
    /// RLIMIT_FSIZE in bytes, soft and hard.
    pub file_bytes: Option<u64>,
    /// The CPUs the process may run on.
    pub cpus: Option<Vec<usize>>,
    /// `io_uring_setup` fails with this errno, as under a container's default profile.
    pub io_uring_errno: Option<i32>,
    /// Descriptors it gets as 3, 4, 5 …, as a service manager hands over sockets; open until it has started.
    pub descriptors_from_3: Vec<RawFd>,
}

impl Cage {
    /// Starts the command inside. It is killed when the *thread* that started it ends, so that no server
    /// survives a test that was stopped halfway.
    pub fn spawn(self, command: &mut Command) -> io::Result<Child> {
        // SAFETY: `enter` makes plain system calls on what it owns; it neither allocates nor locks.
        unsafe { command.pre_exec(move || self.enter()) };
        command.spawn()
    }

    /// Applies it to the calling process.
    fn enter(&self) -> io::Result<()> {
        // SAFETY: prctl with integer arguments touches no memory of ours.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        if let Some(limit) = self.descriptors {
            set_limit(0, libc::RLIMIT_NOFILE, limit, limit)?;
        }
        if let Some(cpus) = &self.cpus {
            pin(cpus)?;
        }
        if let Some(limit) = self.memlock {
            set_limit(0, libc::RLIMIT_MEMLOCK, limit, limit)?;
            drop_capability(CAP_IPC_LOCK)?;
        }
        if let Some(limit) = self.file_bytes {
            set_limit(0, libc::RLIMIT_FSIZE, limit, limit)?;
        }
        self.hand_over()?;
        if let Some(errno) = self.io_uring_errno {
            refuse_io_uring(errno)?;
        }
        Ok(())
    }

    /// Puts the descriptors into their places, by way of copies that are out of the way of all places.
    fn hand_over(&self) -> io::Result<()> {
        let mut copies = [0; 8];
        for (copy, &descriptor) in copies.iter_mut().zip(&self.descriptors_from_3) {
            // SAFETY: fcntl takes integers only here.
            *copy = check(unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3 + 8) })?;
        }
        for (place, &copy) in (3..).zip(&copies[..self.descriptors_from_3.len()]) {
            // SAFETY: dup2 takes integers only; whatever stood in the place is gone with the exec anyway.
            check(unsafe { libc::dup2(copy, place) })?;
        }
        Ok(())
    }
}

/// Capability that exempts root from RLIMIT_MEMLOCK (linux/capability.h).
const CAP_IPC_LOCK: libc::c_ulong = 14;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Keeps a capability from surviving exec, for root too.
fn drop_capability(capability: libc::c_ulong) -> io::Result<()> {
    // SAFETY: prctl with integer arguments touches no memory of ours.
    let dropped = check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) });
    match dropped {
        // An ordinary user has no such capability to drop.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other.map(drop),
    }
}

/// Sets a resource limit of a process (0: this one).
pub fn set_limit(pid: u32, resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives across the call and the old value is not asked for.
    check(unsafe { libc::prlimit(pid as libc::pid_t, resource, &limit, std::ptr::null_mut()) }).map(drop)
}

/// Lowers the number of descriptors a running process may have; its hard limit stays.
pub fn set_soft_descriptors(pid: u32, soft: u64) -> io::Result<()> {
    let (_, hard) = descriptor_limits(pid)?;
    set_limit(pid, libc::RLIMIT_NOFILE, soft, hard)
}

/// Soft and hard limit on descriptors of a process (0: this one).
pub fn descriptor_limits(pid: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit to write to; no new value is set.
    check(unsafe { libc::prlimit(pid as libc::pid_t, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Lets this test process open as many descriptors as the machine allows.
pub fn raise_descriptor_limit() {
    let (_, hard) = descriptor_limits(0).expect("cannot read RLIMIT_NOFILE");
    set_limit(0, libc::RLIMIT_NOFILE, hard, hard).expect("cannot raise RLIMIT_NOFILE to its hard limit");
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill takes integers only.
    check(unsafe { libc::kill(pid as libc::pid_t, signal) }).map(drop)
}

/// Pins the calling thread (and what it starts) to these CPUs.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        assert!(cpu < libc::CPU_SETSIZE as usize, "no such CPU: {cpu}");
        // SAFETY: `cpu` is inside the set, checked above.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is a valid CPU set of the stated size.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) }).map(drop)
}

/// The CPUs this thread may run on.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writes of the stated size.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) })
        .expect("sched_getaffinity");
    // SAFETY: every index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Which of the descriptors can be read (or have failed) within the limit.
pub fn readable(descriptors: &[RawFd], limit: Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> =
        descriptors.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: pointer and length are those of `polled`, which outlives the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds) };
    match check(ready) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(vec![false; descriptors.len()]),
        Err(error) => Err(error),
        Ok(_) => Ok(polled.iter().map(|entry| entry.revents != 0).collect()),
    }
}

/// Whether the descriptor can be written to (or has failed) within the limit.
pub fn writable(descriptor: RawFd, limit: Duration) -> io::Result<bool> {
    let mut polled = libc::pollfd { fd: descriptor, events: libc::POLLOUT, revents: 0 };
    let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `polled` is one pollfd and outlives the call.
    check(unsafe { libc::poll(&raw mut polled, 1, milliseconds) }).map(|ready| ready > 0)
}

/// One thread of another process, stopped while the rest of that process runs on. Dropping it lets it run again.
pub struct Frozen {
    thread: libc::pid_t,
}

impl Frozen {
    /// Stops a thread; only the caller's thread may let it go again.
    pub fn stop(thread: u32) -> io::Result<Frozen> {
        let thread = thread as libc::pid_t;
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests take no memory; the tracee is a process that this test started.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread, none, none) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let frozen = Frozen { thread };
        // SAFETY: as above.
        if unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut status = 0;
        // SAFETY: `status` is valid for the write; the thread is our tracee and about to stop.
        check(unsafe { libc::waitpid(thread, &mut status, libc::__WALL) })?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as in `stop`. A thread that has died meanwhile is an error nobody needs.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, none, none) };
    }
}

/// From now on `io_uring_setup` fails with `errno` in this process.
fn refuse_io_uring(errno: i32) -> io::Result<()> {
    // The offset of the system call's number in struct seccomp_data is 0.
    let load_number = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump_if_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = [
        libc::sock_filter { code: load_number, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: jump_if_equal, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 },
        libc::sock_filter { code: answer, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | errno as u32 },
        libc::sock_filter { code: answer, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl with integer arguments touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the kernel copies the program, which is valid and lives across the call.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
        .map(drop)
}
