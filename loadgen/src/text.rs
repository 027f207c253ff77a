//! The text block at the end of a run.

use std::fmt::{self, Write};

use crate::document::{Measurement, Round};
use crate::kernel_memory::KernelMemory;
use crate::latency::Summary;
use crate::units::{Nanoseconds, Thousands};

/// The block for `measurement`, with a line feed at its end.
pub(crate) fn block(measurement: &Measurement) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_block(&mut text, measurement);
    text
}

fn write_block(text: &mut String, measurement: &Measurement) -> fmt::Result {
    let counts = &measurement.counts;
    let setting = |name: &str| measurement.settings.get(name).map(ToString::to_string).unwrap_or_default();
    writeln!(
        text,
        "{} {}   {} connections, {} B payload, {} thread(s), {:.3} s measured",
        measurement.mode,
        setting("url").trim_matches('"'),
        Thousands(measurement.connected as u64),
        setting("payload_bytes"),
        setting("threads"),
        measurement.measured_seconds
    )?;
    writeln!(
        text,
        "  sent {}   expected {}   delivered {}   lost {}   duplicated {}   reordered {}   corrupted {}   foreign {}",
        Thousands(counts.sent),
        Thousands(counts.expected),
        Thousands(counts.delivered),
        Thousands(counts.lost),
        Thousands(counts.duplicated),
        Thousands(counts.reordered),
        Thousands(counts.corrupted),
        Thousands(counts.foreign)
    )?;
    if counts.publisher_delivered > 0 {
        writeln!(text, "  delivered to the publisher besides: {}", Thousands(counts.publisher_delivered))?;
    }
    let received = measurement.received;
    if received.messages > 0 {
        writeln!(
            text,
            "  received {} B on the wire for {} B of payload ({:.1} %)   messages compressed {} of {}",
            Thousands(received.wire_bytes),
            Thousands(received.payload_bytes),
            received.wire_bytes as f64 * 100.0 / received.payload_bytes as f64,
            Thousands(received.compressed_messages),
            Thousands(received.messages)
        )?;
    }
    if counts.errors.is_empty() {
        writeln!(text, "  errors none")?;
    }
    for (kind, count) in &counts.errors {
        writeln!(text, "  error {kind}: {}", Thousands(*count))?;
    }
    for fault in &measurement.faults {
        writeln!(
            text,
            "  fault {}: topic {}, subscriber {}: expected {}, got {}",
            fault.what, fault.topic, fault.subscriber, fault.expected, fault.got
        )?;
    }
    write_rounds(text, &measurement.rounds)?;
    if let Some(seed) = measurement.settings.get("seed") {
        writeln!(text, "  seed {seed}")?;
    }
    for (name, value) in &measurement.figures {
        writeln!(text, "  {:<42} {}", name.replace('_', " "), Figure(*value))?;
    }
    for (name, summary) in &measurement.latency {
        write_latency(text, &name.replace('_', " "), summary)?;
    }
    write_kernel_memory(text, measurement.kernel_memory.as_ref())?;
    write_cpu_and_memory(text, measurement)?;
    match measurement.failures.as_slice() {
        [] => writeln!(text, "PASS"),
        failures => writeln!(text, "FAIL: {}", failures.join("; ")),
    }
}

fn write_rounds(text: &mut String, rounds: &[Round]) -> fmt::Result {
    for (index, round) in rounds.iter().enumerate() {
        write!(
            text,
            "  round {}: dropped {:.3} s   first back {:.3} s   last back {:.3} s   ",
            index + 1,
            round.dropped_seconds,
            round.first_back_seconds,
            round.last_back_seconds
        )?;
        if let Some(seconds) = round.receiving_seconds {
            write!(text, "receiving {seconds:.3} s   ")?;
        }
        writeln!(text, "{} handshakes/s", Thousands(round.handshakes_per_second as u64))?;
    }
    Ok(())
}

fn write_kernel_memory(text: &mut String, memory: Option<&KernelMemory>) -> fmt::Result {
    let growth = match memory {
        None => return Ok(()),
        Some(KernelMemory::Unavailable { unavailable }) => {
            return writeln!(text, "  kernel memory left out: {unavailable}");
        }
        Some(KernelMemory::Growth(growth)) => growth,
    };
    let mebibytes = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    writeln!(
        text,
        "  kernel memory of both ends: objects {:+.2} MiB, of them the server's {:+.2} MiB   slab pages {:+.2} MiB \
         (unreclaimable {:+.2})   TCP buffers {:+.2} MiB",
        mebibytes(growth.objects_bytes),
        mebibytes(growth.server_bytes),
        mebibytes(growth.slab_bytes),
        mebibytes(growth.slab_unreclaimable_bytes),
        mebibytes(growth.tcp_buffer_bytes)
    )?;
    if !growth.sockets_as_expected {
        writeln!(
            text,
            "  kernel memory per connection left out: {:+} TCP sockets, expected {:+}; others opened or closed some",
            growth.sockets,
            2 * growth.connections
        )?;
    }
    let caches: Vec<String> = growth.caches.iter().map(ToString::to_string).collect();
    writeln!(text, "  kernel objects by cache: {}", caches.join("   "))
}

fn write_latency(text: &mut String, name: &str, summary: &Summary) -> fmt::Result {
    writeln!(
        text,
        "  {name:<16} p50 {:>8}  p90 {:>8}  p99 {:>8}  p99.9 {:>8}  max {:>8}",
        Nanoseconds(summary.p50),
        Nanoseconds(summary.p90),
        Nanoseconds(summary.p99),
        Nanoseconds(summary.p99_9),
        Nanoseconds(summary.max)
    )
}

fn write_cpu_and_memory(text: &mut String, measurement: &Measurement) -> fmt::Result {
    let share = |seconds: f64| seconds * 100.0 / measurement.measured_seconds.max(1e-9);
    if let Some(server) = &measurement.server {
        let (cpu, rss) = (&server.cpu, &server.rss_bytes);
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            text,
            "  server CPU {:.3} s ({:.0} % of a core; user {:.2}, system {:.2} by ticks)   RSS {:.2} → {:.2} → {:.2} MiB",
            cpu.seconds,
            share(cpu.seconds),
            cpu.user_seconds,
            cpu.system_seconds,
            mebibytes(rss.before_connect),
            mebibytes(rss.before_measure),
            mebibytes(rss.after_measure)
        )?;
    }
    let client = &measurement.client;
    writeln!(
        text,
        "  loadgen CPU {:.3} s ({:.0} % of a core; user {:.2}, system {:.2})",
        client.cpu_seconds,
        share(client.cpu_seconds),
        client.user_seconds,
        client.system_seconds
    )
}

/// A number with as many decimals as its size deserves.
struct Figure(f64);

impl fmt::Display for Figure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.abs() {
            1000.0.. => write!(formatter, "{}", Thousands(self.0.abs().round() as u64)),
            10.0.. => write!(formatter, "{:.1}", self.0),
            _ => write!(formatter, "{:.3}", self.0),
        }
    }
}
