//! The whole of a suite at a glance: `report --summary`.
//!
//! One line for each server that is compared with another, with the first figure of its mode and the median ratio of the
//! pairs; where all servers of idle connections have something to do, with their CPU as well. Comparisons of many servers
//! are one table, a line for each scenario and a column for each server, which has multiples of the reference's figure.

use std::fmt::Write;

use super::{Column, IDLE_CPU, Scenario, Series, Spread, columns_of, digits, pairs, values};

/// The tables of all scenarios.
pub(super) fn document(scenarios: &[Scenario]) -> String {
    let (comparisons, others): (Vec<_>, Vec<_>) =
        scenarios.iter().partition(|scenario| scenario.reference().is_some());
    let mut text = String::new();
    if !others.is_empty() {
        write_pairs(&mut text, &others);
    }
    let mut references: Vec<&str> = comparisons.iter().filter_map(|scenario| scenario.reference()).collect();
    references.dedup();
    for reference in references {
        let scenarios: Vec<&Scenario> =
            comparisons.iter().copied().filter(|scenario| scenario.reference() == Some(reference)).collect();
        write_comparison(&mut text, reference, &scenarios);
    }
    text
}

fn write_pairs(text: &mut String, scenarios: &[&Scenario]) {
    text.push_str("\n| scenario | figure | server | median | ratio | beside | its median | failed runs |\n");
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    for (scenario, Column { title, pointer, .. }) in scenarios.iter().flat_map(|scenario| figures(scenario)) {
        let (first, others) = (&scenario.series[0], &scenario.series[1..]);
        if others.is_empty() {
            let (median, failed) = (median(first, pointer), failures(&[first]));
            let (name, server) = (&scenario.name, &first.server);
            let _ = writeln!(text, "| {name} | {title} | {server} | **{median}** | – | – | – | {failed} |");
        }
        for series in others {
            let _ = writeln!(
                text,
                "| {} | {title} | {} | **{}** | {} | {} | {} | {} |",
                scenario.name,
                series.server,
                median(series, pointer),
                ratio(series, first, pointer),
                first.server,
                median(first, pointer),
                failures(&[series, first]),
            );
        }
    }
}

fn write_comparison(text: &mut String, reference: &str, scenarios: &[&Scenario]) {
    let mut servers: Vec<&str> = Vec::new();
    for series in scenarios.iter().flat_map(|scenario| &scenario.series) {
        if series.server != reference && !servers.contains(&series.server.as_str()) {
            servers.push(&series.server);
        }
    }
    let _ = writeln!(text, "\n| scenario | figure | {reference} has | {} |", servers.join(" | "));
    let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(servers.len()));
    for (scenario, Column { title, pointer, .. }) in scenarios.iter().flat_map(|scenario| figures(scenario)) {
        let find = |server: &str| scenario.series.iter().find(|series| series.server == server);
        let Some(compared) = find(reference) else { continue };
        let _ = write!(text, "| {} | {title} | **{}** |", scenario.name, median(compared, pointer));
        for server in &servers {
            let Some(series) = find(server) else {
                text.push_str(" – |");
                continue;
            };
            let failed = match series.results.len() - series.passed().count() {
                0 => String::new(),
                failed => format!(", {failed} of {} failed", series.results.len()),
            };
            let _ = write!(text, " {}{failed} |", ratio(series, compared, pointer));
        }
        text.push('\n');
    }
}

/// What servers of a scenario are compared by.
fn figures(scenario: &Scenario) -> impl Iterator<Item = (&Scenario, &'static Column)> {
    let is_known =
        |column: &&Column| scenario.series.iter().any(|series| !values(series, column.pointer).is_empty());
    let first = columns_of(scenario.mode()).iter().find(is_known);
    // Nobody is a multiple of nothing.
    let is_at_work =
        |series: &Series| Spread::of(values(series, IDLE_CPU.pointer)).is_some_and(|cpu| cpu.least > 0.0);
    let cpu = (scenario.mode() == "idle" && scenario.series.iter().all(is_at_work)).then_some(&IDLE_CPU);
    first.into_iter().chain(cpu).map(move |column| (scenario, column))
}

fn median(series: &Series, pointer: &str) -> String {
    Spread::of(values(series, pointer)).map_or_else(|| "–".into(), |spread| digits(spread.median))
}

/// Median of the pairs, and in brackets the least and the greatest.
fn ratio(series: &Series, baseline: &Series, pointer: &str) -> String {
    match pairs(series, baseline, pointer) {
        Some(Spread { median, .. }) if series.results.len() == 1 => format!("**{}**", multiple(median)),
        Some(Spread { least, median, greatest }) => {
            format!("**{}** ({}–{})", multiple(median), multiple(least), multiple(greatest))
        }
        None => "–".into(),
    }
}

/// As many digits as a ratio of measurements has at best.
fn multiple(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// How many runs of the two failed.
fn failures(compared: &[&Series]) -> String {
    let all: usize = compared.iter().map(|series| series.results.len()).sum();
    match all - compared.iter().map(|series| series.passed().count()).sum::<usize>() {
        0 => "0".into(),
        failed => format!("{failed} of {all}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::group;
    use super::*;

    fn result(scenario: &str, server: &str, pass: usize, cpu: f64) -> Value {
        json!({
            "mode": "fanout", "passed": true,
            "labels": { "scenario": scenario, "server": server, "pass": pass.to_string() },
            "figures": { "serving_cpu_us_per_delivery": cpu },
        })
    }

    #[test]
    fn a_pair_is_a_line() {
        let mut results = Vec::new();
        for (pass, (floor, corecast)) in [(4.0, 2.0), (10.0, 9.0), (4.0, 3.0)].into_iter().enumerate() {
            results.push(result("1k", "corecast", pass, corecast));
            results.push(result("1k", "floor", pass, floor));
        }
        let text = document(&group(results.clone(), "floor"));
        let line = "| 1k | serving CPU µs per delivery | corecast | **3.00** | **0.75** (0.50–0.90) | floor | 4.00 | 0 |";
        assert!(text.lines().any(|shown| shown == line), "{text}");
        results[3]["passed"] = json!(false);
        let text = document(&group(results, "floor"));
        assert!(text.contains("| **0.62** (0.50–0.75) | floor | 4.00 | 1 of 6 |"), "{text}");
    }

    #[test]
    fn of_idle_connections_the_cpu_is_told_if_all_have_some() {
        let idle = |server: &str, cpu: f64| {
            let mut result = result("idle", server, 1, 0.0);
            result["mode"] = json!("idle");
            result["figures"] =
                json!({ "server_rss_bytes_per_connection": 100.0, "server_cpu_percent": cpu });
            result
        };
        let text = document(&group(vec![idle("floor", 0.0), idle("corecast", 0.5)], "floor"));
        assert_eq!(text.trim().lines().count(), 3, "{text}");
        let text = document(&group(vec![idle("floor", 2.0), idle("corecast", 0.5)], "floor"));
        let last = "| idle | server CPU, % of a core | corecast | **0.500** | **0.25** | floor | 2.00 | 0 |";
        assert_eq!(text.trim().lines().last(), Some(last), "{text}");
    }

    #[test]
    fn a_lone_server_is_told_without_a_ratio() {
        let text = document(&group(vec![result("1k", "floor", 1, 4.0)], "floor"));
        assert!(text.contains("| floor | **4.00** | – | – | – | 0 |"), "{text}");
    }

    #[test]
    fn a_comparison_is_a_line_of_multiples() {
        let mut results = Vec::new();
        for pass in 1..=2 {
            let scale = pass as f64;
            for (scenario, server, cpu) in [
                ("a", "floor", 1.0),
                ("a", "corecast", 2.0),
                ("a", "slow", 250.0),
                ("b", "corecast", 2.0),
                ("b", "slow", 4.0),
            ] {
                let mut result = result(scenario, server, pass, cpu * scale);
                result["labels"]["reference"] = json!("corecast");
                results.push(result);
            }
        }
        results[9]["passed"] = json!(false);
        let text = document(&group(results, "floor"));
        let lines: Vec<&str> = text.trim().lines().collect();
        assert_eq!(lines[0], "| scenario | figure | corecast has | floor | slow |");
        assert_eq!(
            lines[2],
            "| a | serving CPU µs per delivery | **3.00** | **0.50** (0.50–0.50) | **125** (125–125) |"
        );
        assert_eq!(
            lines[3],
            "| b | serving CPU µs per delivery | **3.00** | – | **2.00** (2.00–2.00), 1 of 2 failed |"
        );
        assert_eq!(lines.len(), 4, "{text}");
    }
}
