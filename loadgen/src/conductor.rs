//! Leads the threads through the stages of a run and takes the server's and our own CPU and memory at their borders.
//!
//! Invariants:
//! 1. A stage begins for all threads when every thread has done its part of the one before, or the run is stopped.
//! 2. CPU is taken after the warm-up ended and before the measurement is announced, and again when the last thread
//!    has done its part: connecting, warming up and lingering are not in the figures.
//! 3. The first look at the server and the kernel comes before any thread has begun to connect.
//! 4. A run without progress for `timeout` is stopped: lost messages end it with an error instead of hanging it.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::kernel_memory::KernelObservation;
use crate::links::{Faults, Links, Target};
use crate::process::{Machine, Observation, ServerProcess};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::softirq::SoftirqThreads;
use crate::sys::{self, Waker};
use crate::units;
use crate::worker::{Mode, Opening, Worker};

/// How often progress is looked at.
const POLL: Duration = Duration::from_millis(200);
/// After the last message: time in which a duplicate would still be seen.
const LINGER: Duration = Duration::from_millis(100);

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Connect,
    WarmUp,
    Measure,
    Linger,
    Stop,
}

/// What the threads of a run share.
pub(crate) struct Shared {
    stage: AtomicU8,
    wakers: Vec<Waker>,
    open: Vec<AtomicU64>,
    progress: Vec<AtomicU64>,
    done: Mutex<Sender<()>>,
}

impl Shared {
    fn new(threads: usize, done: Sender<()>) -> io::Result<Self> {
        Ok(Self {
            stage: AtomicU8::new(Stage::Connect as u8),
            wakers: (0..threads).map(|_| Waker::new()).collect::<io::Result<_>>()?,
            open: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            progress: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            done: Mutex::new(done),
        })
    }

    /// The current stage.
    #[inline]
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Connect,
            1 => Stage::WarmUp,
            2 => Stage::Measure,
            3 => Stage::Linger,
            _ => Stage::Stop,
        }
    }

    /// What wakes thread `index`.
    pub(crate) fn waker(&self, index: usize) -> &Waker {
        &self.wakers[index]
    }

    /// Gives every thread a turn.
    pub(crate) fn wake_all(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }

    /// Shows the conductor how thread `index` gets on.
    #[inline]
    pub(crate) fn note_progress(&self, index: usize, open: usize, progress: u64) {
        self.open[index].store(open as u64, Ordering::Relaxed);
        self.progress[index].store(progress, Ordering::Relaxed);
    }

    /// Tells the conductor that the calling thread has done its part of the stage.
    pub(crate) fn report_done(&self) {
        // The conductor is gone only when the run has ended.
        let _ = self.done.lock().map(|sender| sender.send(()));
    }

    fn begin(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
        self.wake_all();
    }

    fn open_count(&self) -> u64 {
        self.open.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn progress_count(&self) -> u64 {
        self.progress.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// What a mode asks of a run.
pub(crate) struct Plan<M> {
    /// One for each thread, with the connections that it opens before the measurement.
    pub(crate) threads: Vec<(M, Vec<Opening>)>,
    /// Servers to connect to.
    pub(crate) targets: Vec<Target>,
    /// Local ports that one source address is good for.
    pub(crate) ports_per_address: usize,
    /// Whether silence of `timeout` means that something is wrong.
    pub(crate) expects_progress: bool,
    /// Whether to look at the kernel's memory, too, before connecting and before measuring; and how long to wait before
    /// the first look, for the kernel frees later what a process held that has ended.
    pub(crate) kernel_memory: Option<Duration>,
}

/// What a run gave.
pub(crate) struct Outcome<M> {
    pub(crate) modes: Vec<M>,
    pub(crate) faults: Faults,
    pub(crate) pings: u64,
    /// Connections that were open when the measurement began.
    pub(crate) connected: usize,
    pub(crate) planned: usize,
    pub(crate) timed_out: Option<Stage>,
    pub(crate) seconds: f64,
    pub(crate) client_cpu: (f64, f64),
    /// CPU seconds used on the whole machine, and stolen from it by a hypervisor.
    pub(crate) machine_cpu: (f64, f64),
    /// CPU seconds of the rival.
    pub(crate) rival_cpu: Option<f64>,
    /// CPU seconds of `ksoftirqd` on the server's CPUs; none where that cannot be read.
    pub(crate) softirq_cpu: Option<f64>,
    /// Before connecting, before measuring, after measuring.
    pub(crate) server: Option<[Observation; 3]>,
    /// Before connecting, before measuring; if the plan asks for it.
    pub(crate) kernel: Option<[io::Result<KernelObservation>; 2]>,
    /// The server process was there at the beginning and not at the end.
    pub(crate) server_gone: bool,
}

/// Runs `plan` to its end.
pub(crate) fn conduct<M: Mode>(settings: &Settings, plan: Plan<M>) -> io::Result<Outcome<M>> {
    let (sender, receiver) = channel();
    let threads = plan.threads.len();
    let shared = Shared::new(threads, sender)?;
    let planned: usize =
        plan.threads.iter().flat_map(|(_, openings)| openings).map(|opening| opening.count).sum();
    let handshakes_max = settings.handshakes.div_ceil(threads).max(1);
    let mut workers = Vec::new();
    for (index, (mode, openings)) in plan.threads.into_iter().enumerate() {
        let sources = units::choose_sources(
            settings.url.address,
            settings.source_ips.as_ref(),
            settings.connections,
            plan.ports_per_address,
        );
        let links = Links::new(plan.targets.clone(), settings.compression, sources, index)?;
        workers.push(Worker::new(index, &shared, links, mode, openings, handshakes_max));
    }
    let before = Before::look(settings.pid.map(ServerProcess), plan.kernel_memory)?;
    std::thread::scope(|scope| {
        let handles: Vec<_> = workers
            .into_iter()
            .enumerate()
            .map(|(index, worker)| {
                let cpu = settings.cpus.as_ref().map(|cpus| cpus.0[index]);
                scope.spawn(move || {
                    if let Some(cpu) = cpu {
                        sys::pin(cpu)
                            .map_err(|error| io::Error::new(error.kind(), format!("CPU {cpu}: {error}")))?;
                    }
                    worker.run()
                })
            })
            .collect();
        let conductor = Conductor { settings, shared: &shared, receiver, threads, planned };
        let taken = conductor.lead(before, plan.expects_progress);
        shared.begin(Stage::Stop);
        let mut outcome = Outcome {
            modes: Vec::new(),
            faults: Faults::new(),
            pings: 0,
            connected: 0,
            planned,
            timed_out: None,
            seconds: 0.0,
            client_cpu: (0.0, 0.0),
            machine_cpu: (0.0, 0.0),
            rival_cpu: None,
            softirq_cpu: None,
            server: None,
            kernel: None,
            server_gone: false,
        };
        for handle in handles {
            let (mode, links) = handle.join().map_err(|_| io::Error::other("a thread panicked"))??;
            outcome.modes.push(mode);
            outcome.pings += links.pings;
            for (kind, count) in links.faults {
                *outcome.faults.entry(kind).or_default() += count;
            }
        }
        let taken = taken?;
        outcome.connected = taken.connected;
        outcome.timed_out = taken.timed_out;
        outcome.seconds = taken.seconds;
        outcome.client_cpu = taken.client_cpu;
        outcome.machine_cpu = taken.machine_cpu;
        outcome.rival_cpu = taken.rival_cpu;
        outcome.softirq_cpu = taken.softirq_cpu;
        outcome.server = taken.server;
        outcome.kernel = taken.kernel;
        outcome.server_gone = taken.server_gone;
        Ok(outcome)
    })
}

/// What was there before the first connection.
struct Before {
    server: Option<Observation>,
    kernel: Option<io::Result<KernelObservation>>,
}

impl Before {
    /// Looks at the server, and at the kernel after `settle` if that is asked for.
    fn look(server: Option<ServerProcess>, settle: Option<Duration>) -> io::Result<Self> {
        let kernel = settle.map(|settle| {
            std::thread::sleep(settle);
            KernelObservation::take(server)
        });
        Ok(Self { server: server.map(ServerProcess::observe).transpose()?, kernel })
    }
}

/// What the conductor itself measures.
#[derive(Default)]
struct Taken {
    connected: usize,
    timed_out: Option<Stage>,
    seconds: f64,
    client_cpu: (f64, f64),
    machine_cpu: (f64, f64),
    rival_cpu: Option<f64>,
    softirq_cpu: Option<f64>,
    server: Option<[Observation; 3]>,
    kernel: Option<[io::Result<KernelObservation>; 2]>,
    server_gone: bool,
}

struct Conductor<'a> {
    settings: &'a Settings,
    shared: &'a Shared,
    receiver: Receiver<()>,
    threads: usize,
    planned: usize,
}

impl Conductor<'_> {
    fn lead(&self, before: Before, expects_progress: bool) -> io::Result<Taken> {
        let mut taken = Taken::default();
        let server = self.settings.pid.map(ServerProcess);
        let progress = Progress::new(self.settings.progress, self.planned as u64, self.settings.duration);
        let connected = self.finish_stage(Stage::Connect, true, &progress);
        taken.connected = self.shared.open_count() as usize;
        if !connected || taken.connected < self.planned {
            taken.timed_out = (!connected).then_some(Stage::Connect);
            return Ok(taken);
        }
        self.shared.begin(Stage::WarmUp);
        if !self.finish_stage(Stage::WarmUp, expects_progress, &progress) {
            taken.timed_out = Some(Stage::WarmUp);
            return Ok(taken);
        }
        // The look at the kernel takes a while, and may hold up the server: it is no part of what is measured.
        taken.kernel = before.kernel.map(|before| [before, KernelObservation::take(server)]);
        let softirq = server.and_then(SoftirqThreads::of);
        let ready = server.map(ServerProcess::observe).transpose()?;
        let rival = self.settings.rival.map(ServerProcess);
        let rival_before = rival.map(ServerProcess::observe).transpose()?;
        let client_before = sys::own_cpu_seconds();
        let machine_before = Machine::observe();
        let softirq_seconds = || softirq.as_ref().and_then(SoftirqThreads::seconds);
        let softirq_before = softirq_seconds();
        let start = Instant::now();
        self.shared.begin(Stage::Measure);
        if !self.finish_stage(Stage::Measure, expects_progress, &progress) {
            taken.timed_out = Some(Stage::Measure);
        }
        taken.seconds = start.elapsed().as_secs_f64();
        let client_after = sys::own_cpu_seconds();
        taken.client_cpu = (client_after.0 - client_before.0, client_after.1 - client_before.1);
        taken.softirq_cpu = softirq_seconds().zip(softirq_before).map(|(after, before)| after - before);
        taken.machine_cpu = Machine::observe().since(machine_before);
        let after = server.map(ServerProcess::observe);
        let rival_after = rival.map(ServerProcess::observe).transpose().map_err(|error| {
            io::Error::new(error.kind(), format!("the rival was gone at the end of the measurement: {error}"))
        })?;
        taken.rival_cpu =
            rival_after.zip(rival_before).map(|(after, before)| after.cpu_since(&before).seconds);
        progress.finish();
        self.shared.begin(Stage::Linger);
        std::thread::sleep(LINGER);
        match (before.server, ready, after) {
            (Some(before), Some(ready), Some(Ok(after))) => taken.server = Some([before, ready, after]),
            (.., Some(Err(_))) => taken.server_gone = true,
            _ => {}
        }
        Ok(taken)
    }

    /// Waits until every thread has done its part; false if the run got stuck.
    fn finish_stage(&self, stage: Stage, expects_progress: bool, progress: &Progress) -> bool {
        let count = || self.shared.open_count() + self.shared.progress_count();
        let mut seen = count();
        let mut seen_at = Instant::now();
        let mut remaining = self.threads;
        while remaining > 0 {
            match self.receiver.recv_timeout(POLL) {
                Ok(()) => remaining -= 1,
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    progress.show(stage, self.shared.open_count(), self.shared.progress_count());
                    let now = count();
                    if now != seen {
                        (seen, seen_at) = (now, Instant::now());
                    } else if expects_progress && seen_at.elapsed() >= self.settings.timeout {
                        return false;
                    }
                }
            }
        }
        true
    }
}
