//! `idle`: what open connections cost a server that has nothing to send but pings.

use std::time::Duration;

use crate::arguments::IdleArguments;
use crate::conductor::{self, Outcome, Plan, Stage};
use crate::document::{Counts, Measurement};
use crate::kernel_memory::KernelMemory;
use crate::links::{Links, Slot};
use crate::modes::PORTS_PER_ADDRESS;
use crate::received::Message;
use crate::settings::Settings;
use crate::worker::{Mode, Opening, Turn};

const DEFAULT_DURATION: Duration = Duration::from_secs(30);

struct Idle {
    settle_ns: u64,
    duration_ns: u64,
    until_ns: u64,
    messages: u64,
    /// Pings answered before the measurement, then in it.
    pings: [u64; 2],
}

/// Runs the mode.
pub(crate) fn run(arguments: IdleArguments) -> Result<Measurement, crate::Failure> {
    let mut settings = Settings::check(arguments.common).map_err(crate::Failure::Arguments)?;
    let duration = *settings.duration.get_or_insert(DEFAULT_DURATION);
    let thread = |index| {
        let mode = Idle {
            settle_ns: arguments.settle.as_nanos() as u64,
            duration_ns: duration.as_nanos() as u64,
            until_ns: 0,
            messages: 0,
            pings: [0; 2],
        };
        (mode, vec![Opening { target: 0, count: settings.share(index) }])
    };
    let plan = Plan {
        threads: (0..settings.threads()).map(thread).collect(),
        targets: settings.targets(),
        ports_per_address: PORTS_PER_ADDRESS,
        expects_progress: false,
        kernel_memory: Some(arguments.settle),
    };
    let outcome = conductor::conduct(&settings, plan).map_err(crate::Failure::Run)?;
    Ok(summarise(settings, outcome))
}

impl Mode for Idle {
    fn on_message(&mut self, _links: &mut Links, _slot: Slot, _message: Message<'_>, _now_ns: u64) {
        self.messages += 1;
    }

    fn on_stage(&mut self, links: &mut Links, stage: Stage, now_ns: u64) {
        match stage {
            Stage::WarmUp => self.until_ns = now_ns + self.settle_ns,
            Stage::Measure => {
                self.until_ns = now_ns + self.duration_ns;
                self.pings[0] = links.pings;
            }
            _ => {}
        }
    }

    fn on_turn(&mut self, links: &mut Links, stage: Stage, now_ns: u64) -> Turn {
        if stage == Stage::Measure {
            self.pings[1] = links.pings - self.pings[0];
        }
        if now_ns >= self.until_ns || links.open_count() == 0 {
            Turn::Done
        } else {
            Turn::WaitUntil(self.until_ns)
        }
    }

    fn progress(&self) -> u64 {
        0
    }
}

fn summarise(settings: Settings, mut outcome: Outcome<Idle>) -> Measurement {
    let foreign = outcome.modes.iter().map(|mode| mode.messages).sum();
    let connections = outcome.connected as f64;
    let pings = outcome.modes.iter().map(|mode| mode.pings[1]).sum();
    let kernel = outcome.kernel.take();
    let counts = Counts {
        sent: outcome.planned as u64,
        expected: outcome.planned as u64,
        delivered: outcome.connected as u64,
        foreign,
        ..Counts::default()
    };
    let mut measurement = Measurement::new("idle", "connection", settings, counts, outcome);
    measurement.figure_rate("pings_per_second", pings);
    if let Some(observations) = kernel {
        let memory = KernelMemory::between(&observations, measurement.connected);
        if let KernelMemory::Growth(growth) = &memory
            && growth.sockets_as_expected
        {
            let all = (growth.objects_bytes + growth.tcp_buffer_bytes) as f64;
            measurement.figure("kernel_bytes_per_connection_both_ends", all / connections);
            measurement
                .figure("server_kernel_bytes_per_connection", growth.server_bytes as f64 / connections);
        }
        measurement.kernel_memory = Some(memory);
    }
    if let Some(server) = measurement.server.clone() {
        let growth = |memory: &crate::document::Memory| {
            (memory.before_measure as f64 - memory.before_connect as f64) / connections
        };
        measurement.figure("server_rss_bytes_per_connection", growth(&server.rss_bytes));
        measurement.figure("server_anonymous_bytes_per_connection", growth(&server.anonymous_bytes));
        measurement
            .figure("server_rss_mib_before_connect", server.rss_bytes.before_connect as f64 / 1_048_576.0);
        measurement.figure("server_cpu_percent", server.cpu.seconds * 100.0 / measurement.measured_seconds);
    }
    measurement
}
