//! The CPU that serving took, whoever's it was.
//!
//! The kernel hands softirq work that lasts too long to its thread `ksoftirqd`, whose time is nobody's. Of a server that
//! sends to many with one system call, a part of the sending is done there, while one that makes a system call for each
//! pays for all of it itself. So servers are compared by the server's own CPU and that of `ksoftirqd` on its CPUs, both in
//! nanoseconds. Results that do not tell of `ksoftirqd` have all CPU instead that was used but loadgen's, by clock ticks:
//! on a quiet machine that is the kernel's threads.

use serde_json::Value;

/// Units of work that CPU is told for.
const UNITS: [&str; 3] = ["delivery", "round_trip", "handshake"];

/// Adds the figures `serving_cpu_us_per_…` to a result that tells of the server's CPU.
pub(super) fn add(result: &mut Value) {
    let number = |pointer: &str| result.pointer(pointer).and_then(Value::as_f64);
    let percent = number("/figures/ksoftirqd_cpu_percent").or_else(|| number("/figures/other_cpu_percent"));
    let others = percent.zip(number("/measured_seconds"));
    let others_seconds = others.map_or(0.0, |(percent, seconds)| percent / 100.0 * seconds);
    let share = number("/server/cpu/seconds").map_or(0.0, |server_seconds| others_seconds / server_seconds);
    let figures = UNITS.map(|unit| {
        let own = number(&format!("/figures/server_cpu_us_per_{unit}"))?;
        Some((format!("serving_cpu_us_per_{unit}"), own * (1.0 + share)))
    });
    for (name, value) in figures.into_iter().flatten().filter(|(_, value)| value.is_finite()) {
        result["figures"][name] = value.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_used_is_added_by_its_share() {
        let mut result = json!({
            "measured_seconds": 10.0,
            "server": { "cpu": { "seconds": 4.0 } },
            "figures": { "server_cpu_us_per_delivery": 8.0, "other_cpu_percent": 20.0 },
        });
        add(&mut result);
        assert_eq!(
            result["figures"]["serving_cpu_us_per_delivery"], 12.0,
            "2 s of others beside 4 s of its own"
        );
        assert!(result["figures"].get("serving_cpu_us_per_handshake").is_none());
    }

    #[test]
    fn exact_time_of_ksoftirqd_goes_before_ticks_of_everything_else() {
        let mut result = json!({
            "measured_seconds": 10.0,
            "server": { "cpu": { "seconds": 4.0 } },
            "figures": {
                "server_cpu_us_per_delivery": 8.0, "other_cpu_percent": -3.0, "ksoftirqd_cpu_percent": 10.0
            },
        });
        add(&mut result);
        assert_eq!(result["figures"]["serving_cpu_us_per_delivery"], 10.0, "1 s beside 4 s of its own");
    }

    #[test]
    fn without_others_it_is_the_servers_own_and_without_a_server_nothing() {
        let mut result = json!({ "figures": { "server_cpu_us_per_round_trip": 8.0 } });
        add(&mut result);
        assert_eq!(result["figures"]["serving_cpu_us_per_round_trip"], 8.0);
        let mut unknown = json!({ "figures": { "round_trips_per_second": 8.0 } });
        let before = unknown.clone();
        add(&mut unknown);
        assert_eq!(unknown, before);
    }
}
