//! `report`: Markdown tables and SVG plots from JSON results.
//!
//! Results are grouped by the labels `scenario` and `server`; each cell is the median of the passes with least and
//! greatest. Ratios to the baseline are medians of the ratios of runs with the same label `pass`, so that what
//! disturbs the machine for a while disturbs both sides of a pair. A column that no result has a value for is left out.
//! A run that failed is counted and its reason told; its figures are left out, since they are of less work than asked for.
//! Where results have a label `reference`, the scenario is a comparison of many servers: there are ratios to the server
//! of that name as well, and what was told of a server's command is not repeated.
//! Servers are compared by [`whole_cost`].
//! The [`plots`] are of the same groups, and the tables refer to them. The [`summary`] is of the same groups, too.

mod axis;
mod bars;
mod chart;
mod plots;
mod summary;
mod whole_cost;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{fs, io};

use serde_json::Value;

use crate::arguments::{PlotsChoice, ReportArguments};
use crate::units::{Nanoseconds, Thousands};
use plots::{Place, Plot};

/// How the numbers of a column are written.
#[derive(Debug, Clone, Copy)]
enum Format {
    /// Three significant digits.
    Number,
    /// A whole number with commas.
    Count,
    /// Nanoseconds with a unit.
    Time,
}

struct Column {
    title: &'static str,
    /// JSON pointer within a result.
    pointer: &'static str,
    format: Format,
}

const fn column(title: &'static str, pointer: &'static str, format: Format) -> Column {
    Column { title, pointer, format }
}

const FANOUT: &[Column] = &[
    column("serving CPU µs per delivery", "/figures/serving_cpu_us_per_delivery", Format::Number),
    column("the server's own", "/figures/server_cpu_us_per_delivery", Format::Number),
    column("loadgen CPU µs per delivery", "/figures/client_cpu_us_per_delivery", Format::Number),
    column("loadgen, % of a core", "/figures/client_cpu_percent", Format::Number),
    column("wire bytes per delivery", "/figures/wire_bytes_per_delivery", Format::Number),
    column("deliveries/s", "/figures/deliveries_per_second", Format::Count),
    column("delivery p50", "/latency/delivery/p50", Format::Time),
    column("delivery p99", "/latency/delivery/p99", Format::Time),
    column("last subscriber p50", "/latency/last_subscriber/p50", Format::Time),
    column("ksoftirqd's CPU, % of a core", "/figures/ksoftirqd_cpu_percent", Format::Number),
    column("others' CPU, % of a core", "/figures/other_cpu_percent", Format::Number),
];
const ECHO: &[Column] = &[
    column("serving CPU µs per round trip", "/figures/serving_cpu_us_per_round_trip", Format::Number),
    column("the server's own", "/figures/server_cpu_us_per_round_trip", Format::Number),
    column("loadgen CPU µs per round trip", "/figures/client_cpu_us_per_round_trip", Format::Number),
    column("loadgen, % of a core", "/figures/client_cpu_percent", Format::Number),
    column("wire bytes per round trip", "/figures/wire_bytes_per_round_trip", Format::Number),
    column("round trips/s", "/figures/round_trips_per_second", Format::Count),
    column("p50", "/latency/round_trip/p50", Format::Time),
    column("p99", "/latency/round_trip/p99", Format::Time),
    column("ksoftirqd's CPU, % of a core", "/figures/ksoftirqd_cpu_percent", Format::Number),
    column("others' CPU, % of a core", "/figures/other_cpu_percent", Format::Number),
];
const CONNECT: &[Column] = &[
    column("serving CPU µs per handshake", "/figures/serving_cpu_us_per_handshake", Format::Number),
    column("the server's own", "/figures/server_cpu_us_per_handshake", Format::Number),
    column("loadgen CPU µs per handshake", "/figures/client_cpu_us_per_handshake", Format::Number),
    column("loadgen, % of a core", "/figures/client_cpu_percent", Format::Number),
    column("handshakes per second of server CPU", "/figures/handshakes_per_server_cpu_second", Format::Count),
    column("handshakes/s", "/figures/handshakes_per_second", Format::Count),
    column("p50", "/latency/handshake/p50", Format::Time),
    column("p99", "/latency/handshake/p99", Format::Time),
    column("ksoftirqd's CPU, % of a core", "/figures/ksoftirqd_cpu_percent", Format::Number),
    column("others' CPU, % of a core", "/figures/other_cpu_percent", Format::Number),
];
const IDLE_CPU: Column = column("server CPU, % of a core", "/figures/server_cpu_percent", Format::Number);
const IDLE: &[Column] = &[
    column("server RSS, bytes per connection", "/figures/server_rss_bytes_per_connection", Format::Number),
    column(
        "anonymous, bytes per connection",
        "/figures/server_anonymous_bytes_per_connection",
        Format::Number,
    ),
    column(
        "server's kernel objects, bytes per connection",
        "/figures/server_kernel_bytes_per_connection",
        Format::Count,
    ),
    column("RSS before the first connection, MiB", "/figures/server_rss_mib_before_connect", Format::Number),
    IDLE_CPU,
    column("ksoftirqd's CPU, % of a core", "/figures/ksoftirqd_cpu_percent", Format::Number),
    column("others' CPU, % of a core", "/figures/other_cpu_percent", Format::Number),
];

const STORM: &[Column] = &[
    column("last back, s", "/figures/last_back_seconds", Format::Number),
    column("receiving, s", "/figures/receiving_seconds", Format::Number),
    column("handshakes/s in the storm", "/figures/handshakes_per_second", Format::Count),
    column("handshakes/s at first", "/figures/first_connect_handshakes_per_second", Format::Count),
    column("server CPU µs per handshake", "/figures/server_cpu_us_per_handshake", Format::Number),
    column("handshake p50", "/latency/handshake/p50", Format::Time),
    column("handshake p99", "/latency/handshake/p99", Format::Time),
];
const VERIFY: &[Column] = &[
    column("server CPU µs per delivery", "/figures/server_cpu_us_per_delivery", Format::Number),
    column("deliveries", "/counts/delivered", Format::Count),
    column("reconnects", "/figures/reconnects", Format::Count),
    column("lost", "/counts/lost", Format::Count),
    column("repeated", "/counts/duplicated", Format::Count),
    column("reordered", "/counts/reordered", Format::Count),
    column("corrupted", "/counts/corrupted", Format::Count),
    column("failed recoveries", "/counts/errors/failed_recovery", Format::Count),
];

/// Results of one server in one scenario.
struct Series {
    server: String,
    results: Vec<Value>,
}

impl Series {
    /// The runs that did not fail.
    fn passed(&self) -> impl Iterator<Item = &Value> {
        self.results.iter().filter(|result| result["passed"] == true)
    }

    /// How many runs failed, and the first reason.
    fn failures(&self) -> String {
        let mut failed = self.results.iter().filter(|result| result["passed"] != true).peekable();
        let Some(first) = failed.peek() else {
            return "0".into();
        };
        let reason = first["failures"][0].as_str().unwrap_or("no reason given").replace(['|', '\n'], " ");
        format!("{} of {}: {reason}", failed.count(), self.results.len())
    }

    fn command(&self) -> Option<&str> {
        self.results[0]["labels"]["server_command"].as_str()
    }
}

struct Scenario {
    name: String,
    series: Vec<Series>,
}

impl Scenario {
    /// The mode of its results.
    fn mode(&self) -> &str {
        self.series[0].results[0]["mode"].as_str().unwrap_or_default()
    }

    /// The server besides the baseline that the others are compared with, if this is such a comparison.
    fn reference(&self) -> Option<&str> {
        let results = self.series.iter().flat_map(|series| &series.results);
        results.filter_map(|result| result["labels"]["reference"].as_str()).next()
    }
}

/// Writes the plots and prints the tables.
pub(crate) fn run(arguments: &ReportArguments) -> Result<(), crate::Failure> {
    let mut results = Vec::new();
    for path in &arguments.files {
        let refused = |reason: String| crate::Failure::Arguments(format!("{}: {reason}", path.display()));
        let text = fs::read(path).map_err(|error| refused(error.to_string()))?;
        let mut result: Value = serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
        if result["tool"] != "loadgen" || result["schema_version"] != 1 {
            return Err(refused("not a result of this loadgen (schema_version 1)".into()));
        }
        whole_cost::add(&mut result);
        add_client_share(&mut result);
        results.push(result);
    }
    let machine = machine(&results);
    let scenarios = group(results, &arguments.baseline);
    if arguments.summary {
        print!("{machine}{}", summary::document(&scenarios));
        return Ok(());
    }
    let (plots, directory) = match &arguments.plots {
        PlotsChoice::Off => (Vec::new(), Path::new("")),
        PlotsChoice::Directory(directory) => {
            let plots = plots::plots(&scenarios);
            plots::write(&plots, directory).map_err(|error| {
                let reason = format!("--plots {}: {error}", directory.display());
                crate::Failure::Run(io::Error::new(error.kind(), reason))
            })?;
            (plots, directory.as_path())
        }
    };
    print!("{machine}{}", document(&scenarios, &plots, directory));
    Ok(())
}

/// Adds how busy loadgen was: near 100 % of each of its threads, the figures are its own limit and not the server's.
fn add_client_share(result: &mut Value) {
    let number = |pointer: &str| result.pointer(pointer).and_then(Value::as_f64);
    let seconds = number("/client/cpu_seconds").zip(number("/measured_seconds"));
    let percent = seconds.map(|(used, measured)| used * 100.0 / measured);
    if let Some(percent) = percent.filter(|percent| percent.is_finite()) {
        result["figures"]["client_cpu_percent"] = percent.into();
    }
}

/// The tables, with references to the plots in `directory`.
fn document(scenarios: &[Scenario], plots: &[Plot], directory: &Path) -> String {
    let mut text = String::new();
    let mut told = Vec::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        write_table(&mut text, scenario);
        write_commands(&mut text, scenario, &mut told);
        write_plots(&mut text, plots, Place::Scenario(index), directory);
    }
    for (place, heading) in
        [(Place::Subscribers, "By number of subscribers"), (Place::Connections, "By number of connections")]
    {
        if plots.iter().any(|plot| plot.place == place) {
            let _ = writeln!(text, "\n### {heading}");
            write_plots(&mut text, plots, place, directory);
        }
    }
    text
}

fn write_plots(text: &mut String, plots: &[Plot], place: Place, directory: &Path) {
    for plot in plots.iter().filter(|plot| plot.place == place) {
        let title = plot.title().replace(['[', ']', '\\', '\n'], " ");
        let path = directory.join(&plot.file).display().to_string();
        let path = if path.contains([' ', '(', ')']) { format!("<{path}>") } else { path };
        let _ = writeln!(text, "\n![{title}]({path})");
    }
}

/// The results by scenario and server, the baseline first.
fn group(results: Vec<Value>, baseline: &str) -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for result in results {
        let label = |name: &str| result["labels"][name].as_str();
        let name = label("scenario").or(result["mode"].as_str()).unwrap_or("run").to_owned();
        let server = label("server").unwrap_or("server").to_owned();
        let scenario = match scenarios.iter().position(|scenario| scenario.name == name) {
            Some(index) => &mut scenarios[index],
            None => {
                scenarios.push(Scenario { name, series: Vec::new() });
                let last = scenarios.len() - 1;
                &mut scenarios[last]
            }
        };
        match scenario.series.iter_mut().find(|series| series.server == server) {
            Some(series) => series.results.push(result),
            None => scenario.series.push(Series { server, results: vec![result] }),
        }
    }
    for scenario in &mut scenarios {
        if let Some(position) = scenario.series.iter().position(|series| series.server == baseline) {
            scenario.series.swap(0, position);
        }
    }
    scenarios
}

/// Where the results come from: every machine and commit that occurs.
fn machine(results: &[Value]) -> String {
    let mut machines: Vec<String> = Vec::new();
    // What never ran has no host.
    for result in results.iter().filter(|result| result["host"].is_object()) {
        let host = &result["host"];
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let line = format!(
            "{} cores, {}, Linux {}, {:.0} GiB; commit {}{}",
            host["cores"],
            text(&host["cpu_model"]),
            text(&host["kernel"]),
            host["memory_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 30),
            text(&result["commit"]).chars().take(12).collect::<String>(),
            if text(&result["commit"]).ends_with('+') { " with changes" } else { "" }
        );
        if !machines.contains(&line) {
            machines.push(line);
        }
    }
    format!("{}\n", machines.join("\n"))
}

/// The figures of a mode; the first is what servers are compared by.
fn columns_of(mode: &str) -> &'static [Column] {
    match mode {
        "fanout" => FANOUT,
        "echo" => ECHO,
        "connect" => CONNECT,
        "storm" => STORM,
        "verify" => VERIFY,
        _ => IDLE,
    }
}

fn write_table(text: &mut String, scenario: &Scenario) {
    let first = &scenario.series[0];
    let all = columns_of(scenario.mode());
    let is_known =
        |column: &&Column| scenario.series.iter().any(|series| !values(series, column.pointer).is_empty());
    let columns: Vec<&Column> = all.iter().filter(is_known).collect();
    let mut out = format!("\n### {}\n\n| server | passes | failed |", scenario.name);
    for column in &columns {
        let _ = write!(out, " {} |", column.title);
    }
    let is_reference = |series: &&Series| scenario.reference() == Some(series.server.as_str());
    // Without the baseline among them the first server is one, and perhaps the reference itself.
    let compared: Vec<&Series> =
        [first].into_iter().chain(scenario.series[1..].iter().find(is_reference)).collect();
    for other in &compared {
        let _ = write!(out, " ratio to {} |", other.server);
    }
    let _ = writeln!(out, "\n|---|---|---|{}", "---|".repeat(columns.len() + compared.len()));
    for series in &scenario.series {
        let _ = write!(out, "| {} | {} | {} |", series.server, series.results.len(), series.failures());
        for column in &columns {
            let _ = write!(out, " {} |", cell(series, column));
        }
        for other in &compared {
            let _ = write!(out, " {} |", ratio(series, other, all[0].pointer));
        }
        out.push('\n');
    }
    text.push_str(&out);
}

/// The commands behind the table; in a comparison not those that are among `told`, which they join.
fn write_commands<'a>(text: &mut String, scenario: &'a Scenario, told: &mut Vec<(&'a str, Option<&'a str>)>) {
    let first = &scenario.series[0];
    let load = |series: &Series| command(&series.results[0], PASS_FLAGS);
    let _ = writeln!(text, "\n- load: `{}`", load(first));
    for series in &scenario.series {
        let what = |series: &Series| command(&series.results[0], URL_AND_PASS_FLAGS);
        if what(series) != what(first) {
            let _ = writeln!(text, "- load of {}: `{}`", series.server, load(series));
        }
    }
    for series in &scenario.series {
        let entry = (series.server.as_str(), series.command());
        if scenario.reference().is_some() && told.contains(&entry) {
            continue;
        }
        told.push(entry);
        if let Some(command) = series.command() {
            let _ = writeln!(text, "- {}: `{command}`", series.server);
        }
    }
}

/// Of the runs that passed; counts, which tell what went wrong, of all.
fn values(series: &Series, pointer: &str) -> Vec<f64> {
    let counts = |result: &&Value| result["passed"] == true || pointer.starts_with("/counts/");
    series.results.iter().filter(counts).filter_map(|result| result.pointer(pointer)?.as_f64()).collect()
}

fn cell(series: &Series, column: &Column) -> String {
    let Some(spread) = Spread::of(values(series, column.pointer)) else {
        return "–".into();
    };
    let number = |value: f64| match column.format {
        Format::Number => digits(value),
        Format::Count => Thousands(value.round() as u64).to_string(),
        Format::Time => Nanoseconds(value.round() as u64).to_string(),
    };
    if series.results.len() == 1 {
        return number(spread.median);
    }
    format!("**{}** ({}–{})", number(spread.median), number(spread.least), number(spread.greatest))
}

/// Median of the ratios of pairs; a dash for the baseline itself and where nothing can be paired.
fn ratio(series: &Series, baseline: &Series, pointer: &str) -> String {
    if series.server == baseline.server {
        return "1".into();
    }
    match pairs(series, baseline, pointer) {
        Some(spread) => {
            format!("**{:.3}** ({:.3}–{:.3})", spread.median, spread.least, spread.greatest)
        }
        None => "–".into(),
    }
}

/// The ratios of runs of the same pass.
fn pairs(series: &Series, baseline: &Series, pointer: &str) -> Option<Spread> {
    let by_pass = |series: &Series| -> BTreeMap<String, f64> {
        let entry = |result: &Value| {
            Some((result["labels"]["pass"].as_str()?.to_owned(), result.pointer(pointer)?.as_f64()?))
        };
        series.passed().filter_map(entry).collect()
    };
    let reference = by_pass(baseline);
    let ratios = by_pass(series).into_iter().filter_map(|(pass, value)| Some(value / reference.get(&pass)?));
    Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect())
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Flags whose values differ from pass to pass.
const PASS_FLAGS: &[&str] = &["--json", "--label", "--pid", "--progress", "--rival"];
/// The same, and where the server happened to listen.
const URL_AND_PASS_FLAGS: &[&str] = &["--url", "--json", "--label", "--pid", "--progress", "--rival"];

/// The command without the flags `left_out` and their values.
fn command(result: &Value, left_out: &[&str]) -> String {
    let words = result["command"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut kept = vec!["loadgen"];
    let mut skip = false;
    for word in words.skip(1) {
        if std::mem::take(&mut skip) {
            continue;
        }
        skip = left_out.contains(&word);
        if !skip {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Median, least and greatest.
#[derive(Debug, Clone, PartialEq)]
struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { least, median, greatest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(server: &str, pass: &str, cpu: f64) -> Value {
        json!({
            "mode": "fanout", "passed": true, "commit": "abc",
            "host": { "cores": 2, "cpu_model": "m", "kernel": "k", "memory_bytes": 1_u64 << 30 },
            "labels": { "scenario": "1k", "server": server, "pass": pass },
            "command": ["/x/loadgen", "fanout", "--json", "f", "--window", "1", "--pid", "4"],
            "figures": { "serving_cpu_us_per_delivery": cpu, "deliveries_per_second": 1_234_567.0 },
            "latency": { "delivery": { "p50": 1500 } },
        })
    }

    fn tables(results: Vec<Value>, baseline: &str) -> String {
        document(&group(results, baseline), &[], Path::new(""))
    }

    #[test]
    fn spread_of_odd_even_and_none() {
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { least: 1.0, median: 2.0, greatest: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]).map(|spread| spread.median), Some(2.5));
    }

    #[test]
    fn ratios_are_paired_and_the_baseline_comes_first() {
        let results = vec![
            result("corecast", "1", 2.0),
            result("floor", "1", 4.0),
            result("corecast", "2", 9.0),
            result("floor", "2", 10.0),
            result("corecast", "3", 3.0),
            result("floor", "3", 4.0),
        ];
        let text = tables(results, "floor");
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert!(rows[1].starts_with("| floor | 3 | 0 | **4.00** (4.00–10.0) |"), "{text}");
        assert!(rows[2].ends_with("| **0.750** (0.500–0.900) |"), "{text}");
        assert!(
            rows[2].contains("| **1.50 µs** (1.50 µs–1.50 µs) |") && rows[2].contains("1,234,567"),
            "{text}"
        );
        assert!(
            !rows[0].contains("p99") && rows[0].contains("p50"),
            "what no result has is left out: {text}"
        );
        assert!(text.contains("- load: `loadgen fanout --window 1`") && !text.contains("load of"), "{text}");
    }

    #[test]
    fn what_only_some_servers_have_is_told() {
        let mut plain = result("corecast-plain", "1", 2.0);
        let mut compressed = result("corecast", "1", 1.0);
        compressed["figures"]["wire_bytes_per_delivery"] = json!(404.4);
        for (result, words) in
            [(&mut plain, ["--url", "ws://a:1/"]), (&mut compressed, ["--url", "ws://a:2/"])]
        {
            result["command"].as_array_mut().unwrap().extend(words.map(Value::from));
        }
        let text = tables(vec![plain.clone(), compressed.clone()], "floor");
        assert!(!text.contains("load of"), "another port is no other load: {text}");
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        assert!(rows[1].starts_with("| corecast-plain | 1 | 0 | 2.00 | – |"), "{text}");
        assert!(rows[2].starts_with("| corecast | 1 | 0 | 1.00 | 404 |"), "{text}");
        compressed["command"].as_array_mut().unwrap().push("--compression".into());
        let text = tables(vec![plain, compressed], "floor");
        assert!(
            text.contains("- load of corecast: `loadgen fanout --window 1 --url ws://a:2/ --compression`")
        );
    }
}
