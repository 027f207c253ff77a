//! The plots of `report`: what stands in the SVG files is what stands in the results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use roxmltree::{Document, Node};
use serde_json::{Value, json};

/// A directory that goes away at the end.
struct Work(PathBuf);

impl Work {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("loadgen-report-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Runs `report` over the results, in this directory.
    fn report(&self, results: &[Value], arguments: &[&str]) -> Output {
        let schema: Value = serde_json::from_str(include_str!("../schema.json")).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        command.arg("report").args(arguments).current_dir(&self.0);
        for (index, result) in results.iter().enumerate() {
            let wrong: Vec<String> = validator.iter_errors(result).map(|error| error.to_string()).collect();
            assert_eq!(wrong, Vec::<String>::new(), "a fixture is a valid result");
            let name = format!("{index}.json");
            fs::write(self.0.join(&name), serde_json::to_vec(result).unwrap()).unwrap();
            command.arg(name);
        }
        command.output().unwrap()
    }

    /// The same, which succeeds; gives the Markdown.
    fn markdown(&self, results: &[Value], arguments: &[&str]) -> String {
        let output = self.report(results, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn svg(&self, name: &str) -> String {
        let path = self.0.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn files(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(directory)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn result(mode: &str, scenario: &str, server: &str, pass: usize, connections: u64) -> Value {
    json!({
        "schema_version": 1, "tool": "loadgen", "version": "0.1.0", "mode": mode, "unit": "delivery",
        "passed": true, "failures": [], "started_unix_ms": 1,
        "host": {
            "name": "h", "kernel": "6.1", "cpu_model": "m", "cores": 2, "cores_allowed": 1,
            "memory_bytes": 1_u64 << 30
        },
        "commit": null, "command": ["loadgen", mode],
        "labels": { "scenario": scenario, "server": server, "pass": pass.to_string() },
        "settings": {
            "url": "ws://127.0.0.1:1/", "connections": connections, "threads": 1, "payload_bytes": 64,
            "compression": null, "window": 1
        },
        "measured_seconds": 1.0,
        "counts": {
            "sent": 1, "expected": 1, "delivered": 1, "publisher_delivered": 0, "lost": 0, "duplicated": 0,
            "reordered": 0, "corrupted": 0, "foreign": 0, "errors": {}
        },
        "received": { "messages": 1, "compressed_messages": 0, "wire_bytes": 66, "payload_bytes": 64 },
        "connected": connections, "pings_answered": 0, "figures": {}, "latency": {},
        "client": { "cpu_seconds": 0.0, "user_seconds": 0.0, "system_seconds": 0.0 },
        "server": null
    })
}

fn fanout(server: &str, pass: usize, connections: u64, rate: f64, cpu_us: f64) -> Value {
    let mut result = result("fanout", &format!("{connections} subscribers"), server, pass, connections);
    result["figures"] = json!({ "deliveries_per_second": rate, "server_cpu_us_per_delivery": cpu_us });
    result
}

fn with_curve(mut result: Value, name: &str, curve: &[(f64, u64)]) -> Value {
    result["latency"][name] = json!({
        "count": 1000, "min": 1, "mean": 1.0, "p50": 1, "p90": 1, "p99": 1, "p99.9": 1, "max": 1, "curve": curve
    });
    result
}

/// One plot, read back from its picture.
struct Plot<'a> {
    document: Document<'a>,
}

impl<'a> Plot<'a> {
    fn of(svg: &'a str) -> Self {
        let document = Document::parse(svg).unwrap();
        let root = document.root_element();
        assert_eq!(
            (root.tag_name().name(), root.tag_name().namespace()),
            ("svg", Some("http://www.w3.org/2000/svg"))
        );
        assert!(svg.len() < 40_000, "a plot is a light thing: {} bytes", svg.len());
        Self { document }
    }

    fn all(&self, tag: &'static str) -> impl Iterator<Item = Node<'_, 'a>> {
        self.document.descendants().filter(move |node| node.has_tag_name(tag))
    }

    fn texts(&self) -> Vec<&str> {
        self.all("text").filter_map(|node| node.text()).map(str::trim).collect()
    }

    #[track_caller]
    fn assert_says(&self, text: &str) {
        assert!(self.texts().contains(&text), "{text} is not in {:?}", self.texts());
    }

    /// Labels of an axis and the pixels at which they stand.
    fn ticks(&self, anchor: &str, dy: &str, axis: &str) -> Vec<(String, f64)> {
        let at = |node: &Node<'_, '_>| {
            node.attribute("text-anchor") == Some(anchor)
                && node.attribute("dy") == Some(dy)
                && node.attribute("transform").is_none()
        };
        let ticks = self.all("text").filter(at).map(|node| {
            (node.text().unwrap().trim().to_owned(), node.attribute(axis).unwrap().parse().unwrap())
        });
        ticks.collect()
    }

    fn x_ticks(&self) -> Vec<(String, f64)> {
        self.ticks("middle", "0.76em", "x")
    }

    fn y_ticks(&self) -> Vec<(String, f64)> {
        self.ticks("end", "0.5ex", "y")
    }

    /// Colour of a line by its sample in the legend, which stands left of its name.
    fn color(&self, name: &str) -> String {
        let text = self.all("text").find(|node| node.text().is_some_and(|text| text.trim() == name));
        let text = text.unwrap_or_else(|| panic!("{name} is not in {:?}", self.texts()));
        let right = text.attribute("x").unwrap().parse::<f64>().unwrap() - 6.0;
        let y = text.attribute("y").unwrap().parse::<f64>().unwrap();
        let sample = self.all("polyline").find(|line| points(*line).last() == Some(&(right, y)));
        sample.unwrap_or_else(|| panic!("no sample of {name}")).attribute("stroke").unwrap().to_owned()
    }

    /// Asserts that the line `name` goes through `expected`, positions that the scales have along with the ticks.
    #[track_caller]
    fn assert_line(&self, name: &str, x: &Scale, y: &Scale, expected: &[(f64, f64)]) {
        let color = self.color(name);
        let lines: Vec<Vec<(f64, f64)>> = self
            .all("polyline")
            .filter(|line| {
                line.attribute("stroke") == Some(&color) && line.attribute("stroke-width") == Some("2")
            })
            .map(points)
            .collect();
        // The first one is the sample in the legend.
        assert_eq!(lines.len(), 2, "{name}: {lines:?}");
        let expected: Vec<(f64, f64)> =
            expected.iter().map(|(at, value)| (x.pixel(*at), y.pixel(*value))).collect();
        assert_eq!(lines[1].len(), expected.len(), "{name}: {lines:?} for {expected:?}");
        for (drawn, expected) in lines[1].iter().zip(&expected) {
            let off = (drawn.0 - expected.0).abs().max((drawn.1 - expected.1).abs());
            assert!(off <= 1.5, "{name}: {drawn:?} for {expected:?}");
        }
    }
}

fn points(line: Node<'_, '_>) -> Vec<(f64, f64)> {
    let pair = |pair: &str| {
        let (x, y) = pair.split_once(',').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    line.attribute("points").unwrap().split_whitespace().map(pair).collect()
}

/// Where values stand, worked out from two labels of an axis.
struct Scale {
    position: fn(f64) -> f64,
    first: (f64, f64),
    last: (f64, f64),
}

impl Scale {
    /// Of the ticks labelled `first` and `last`, whose values are given.
    #[track_caller]
    fn of(ticks: &[(String, f64)], position: fn(f64) -> f64, first: (&str, f64), last: (&str, f64)) -> Self {
        let pixel = |(label, value): (&str, f64)| {
            let tick = ticks.iter().find(|(text, _)| text == label);
            (position(value), tick.unwrap_or_else(|| panic!("no tick {label} in {ticks:?}")).1)
        };
        Self { position, first: pixel(first), last: pixel(last) }
    }

    fn pixel(&self, value: f64) -> f64 {
        let ((from, left), (to, right)) = (self.first, self.last);
        left + ((self.position)(value) - from) / (to - from) * (right - left)
    }
}

fn linear(value: f64) -> f64 {
    value
}

fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

#[test]
fn latency_is_the_median_of_the_passes_on_a_scale_of_nines() {
    let work = Work::new();
    let curve = |factor: u64| {
        [
            (0.0, 100_000 * factor),
            (50.0, 400_000 * factor),
            (90.0, 1_000_000 * factor),
            (99.0, 2_000_000 * factor),
        ]
        .into_iter()
        .chain([(100.0, 50_000_000)])
        .collect::<Vec<_>>()
    };
    let mut results = Vec::new();
    for (pass, factor) in [(1, 1), (2, 9), (3, 2)] {
        results.push(with_curve(fanout("quick", pass, 10, 1.0, 1.0), "delivery", &curve(factor)));
        results.push(with_curve(fanout("slow", pass, 10, 1.0, 1.0), "delivery", &curve(factor * 2)));
    }
    let markdown = work.markdown(&results, &["--plots", "out/of the way"]);
    let link = "![Delivery latency – 10 subscribers](<out/of the way/latency-10-subscribers.svg>)";
    assert!(markdown.contains(link), "{markdown}");
    assert_eq!(work.files("out/of the way"), ["latency-10-subscribers.svg"], "one size has no plot by size");

    let svg = work.svg("out/of the way/latency-10-subscribers.svg");
    let plot = Plot::of(&svg);
    plot.assert_says("Delivery latency – 10 subscribers");
    plot.assert_says("percentile (medians of 3 passes)");
    plot.assert_says("latency");
    let labels: Vec<String> = plot.x_ticks().into_iter().map(|(label, _)| label).collect();
    assert_eq!(labels, ["0%", "50%", "90%", "99%"]);
    let x = Scale::of(&plot.x_ticks(), nines, ("0%", 0.0), ("99%", 99.0));
    assert!((x.pixel(90.0) - plot.x_ticks()[2].1).abs() <= 1.0, "the nines are equally far apart");
    let y = Scale::of(&plot.y_ticks(), linear, ("0", 0.0), ("8 ms", 8e6));
    plot.assert_line("quick", &x, &y, &[(0.0, 2e5), (50.0, 8e5), (90.0, 2e6), (99.0, 4e6)]);
    plot.assert_line("slow", &x, &y, &[(0.0, 4e5), (50.0, 16e5), (90.0, 4e6), (99.0, 8e6)]);
}

#[test]
fn a_long_tail_has_a_logarithmic_axis() {
    let work = Work::new();
    let curve = [(0.0, 20_000), (50.0, 40_000), (90.0, 100_000), (99.9, 3_000_000)];
    work.markdown(&[with_curve(fanout("one", 1, 10, 1.0, 1.0), "delivery", &curve)], &[]);
    let svg = work.svg("plots/latency-10-subscribers.svg");
    let plot = Plot::of(&svg);
    plot.assert_says("percentile");
    let x = Scale::of(&plot.x_ticks(), nines, ("0%", 0.0), ("99.9%", 99.9));
    let y = Scale::of(&plot.y_ticks(), f64::log10, ("20 µs", 2e4), ("5 ms", 5e6));
    plot.assert_line("one", &x, &y, &[(0.0, 2e4), (50.0, 4e4), (90.0, 1e5), (99.9, 3e6)]);
}

#[test]
fn deliveries_and_cpu_are_drawn_over_the_number_of_subscribers() {
    let work = Work::new();
    let mut results = Vec::new();
    for (pass, noise) in [(1, 0.5), (2, 1.0), (3, 1.5)] {
        for (size, rate, cpu) in [(10, 40_000.0, 12.0), (1000, 100_000.0, 8.0)] {
            results.push(fanout("floor", pass, size, rate * noise, cpu * noise));
            results.push(fanout("other", pass, size, rate * noise * 0.5, cpu * noise * 2.0));
        }
    }
    let alone = fanout("alone", 1, 10, 1.0, 1.0);
    let mut compressed = fanout("other", 1, 10, 30_000.0, 1.0);
    compressed["settings"]["compression"] = json!("permessage-deflate");
    let mut again = fanout("floor", 1, 1000, 1.0, 1.0);
    again["labels"]["scenario"] = json!("later");
    let mut other_load = fanout("floor", 1, 500, 1.0, 1.0);
    other_load["settings"]["window"] = json!(50);
    results.extend([alone, compressed, again, other_load]);

    let markdown = work.markdown(&results, &[]);
    let (_, section) = markdown.split_once("### By number of subscribers\n").expect("a section of its own");
    let links: Vec<&str> = section.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(
        links,
        [
            "![Deliveries per second by number of subscribers, 1 message in flight, 64 B](plots/deliveries-1-message-in-flight-64-b.svg)",
            "![Serving CPU per delivery by number of subscribers, 1 message in flight, 64 B](plots/cpu-1-message-in-flight-64-b.svg)",
        ]
    );
    assert_eq!(
        work.files("plots"),
        ["cpu-1-message-in-flight-64-b.svg", "deliveries-1-message-in-flight-64-b.svg"]
    );

    let svg = work.svg("plots/deliveries-1-message-in-flight-64-b.svg");
    let plot = Plot::of(&svg);
    let x = Scale::of(&plot.x_ticks(), f64::log10, ("10", 10.0), ("1,000", 1000.0));
    let y = Scale::of(&plot.y_ticks(), linear, ("0", 0.0), ("150,000", 150_000.0));
    plot.assert_line("floor", &x, &y, &[(10.0, 40_000.0), (1000.0, 100_000.0)]);
    plot.assert_line("other", &x, &y, &[(10.0, 20_000.0), (1000.0, 50_000.0)]);
    plot.assert_says("deliveries/s");
    plot.assert_says("subscribers (medians of 3 passes, bars from least to greatest)");
    assert!(!plot.texts().iter().any(|text| text.contains("alone") || text.contains("compressed")));
    let bars = plot.all("polyline").map(points).filter(|bar| bar.len() == 2 && bar[0].0 == bar[1].0);
    let greatest = y.pixel(150_000.0);
    assert!(bars.flatten().any(|(_, top)| (top - greatest).abs() <= 1.5), "a bar reaches the greatest value");

    let svg = work.svg("plots/cpu-1-message-in-flight-64-b.svg");
    let plot = Plot::of(&svg);
    let y = Scale::of(&plot.y_ticks(), linear, ("0", 0.0), ("30", 30.0));
    plot.assert_line("floor", &x, &y, &[(10.0, 12.0), (1000.0, 8.0)]);
    plot.assert_line("other", &x, &y, &[(10.0, 24.0), (1000.0, 16.0)]);
    plot.assert_says("serving CPU per delivery, µs");
}

#[test]
fn memory_is_drawn_from_before_the_first_connection() {
    let work = Work::new();
    let idle = |server: &str, connections: u64, mib: u64| {
        let mut result = result("idle", &format!("{connections} idle"), server, 1, connections);
        let memory = |mib: u64| json!({ "before_connect": 2_u64 << 20, "before_measure": mib << 20, "after_measure": 1 });
        result["server"] = json!({
            "pid": 1, "rss_bytes": memory(mib), "anonymous_bytes": memory(1),
            "cpu": { "seconds": 0.0, "user_seconds": 0.0, "system_seconds": 0.0, "source": "stat" },
        });
        result
    };
    let markdown = work.markdown(&[idle("one", 10_000, 6), idle("one", 20_000, 9)], &[]);
    assert!(markdown.contains("\n### By number of connections\n\n![Memory of the server"), "{markdown}");
    let svg = work.svg("plots/memory.svg");
    let plot = Plot::of(&svg);
    plot.assert_says("MiB");
    plot.assert_says("idle connections");
    let x = Scale::of(&plot.x_ticks(), linear, ("0", 0.0), ("20,000", 20_000.0));
    let y = Scale::of(&plot.y_ticks(), linear, ("0", 0.0), ("10", 10.0));
    plot.assert_line("one", &x, &y, &[(0.0, 2.0), (10_000.0, 6.0), (20_000.0, 9.0)]);

    // One that takes far more than the others hides nobody.
    work.markdown(&[idle("one", 20_000, 9), idle("other", 20_000, 1300)], &[]);
    let svg = work.svg("plots/memory.svg");
    let plot = Plot::of(&svg);
    let y = Scale::of(&plot.y_ticks(), f64::log10, ("10", 10.0), ("1,000", 1000.0));
    plot.assert_line("one", &x, &y, &[(0.0, 2.0), (20_000.0, 9.0)]);
    plot.assert_line("other", &x, &y, &[(0.0, 2.0), (20_000.0, 1300.0)]);
}

#[test]
fn handshakes_are_drawn_over_time_without_the_last_interval() {
    let work = Work::new();
    let mut results = Vec::new();
    for (pass, counts) in [(1, [100, 200, 300, 7]), (2, [300, 400, 100, 5]), (3, [200, 900, 200, 1])] {
        let mut result = result("connect", "handshakes", "one", pass, 10);
        result["timeline"] = json!({ "interval_seconds": 0.1, "counts": counts });
        results.push(result);
    }
    let markdown = work.markdown(&results, &[]);
    assert!(
        markdown.contains("![Handshakes over time – handshakes](plots/rate-handshakes.svg)"),
        "{markdown}"
    );
    let svg = work.svg("plots/rate-handshakes.svg");
    let plot = Plot::of(&svg);
    plot.assert_says("handshakes/s");
    plot.assert_says("seconds (medians of 3 passes)");
    let x = Scale::of(&plot.x_ticks(), linear, ("0.00", 0.0), ("0.25", 0.25));
    let y = Scale::of(&plot.y_ticks(), linear, ("0", 0.0), ("4,000", 4000.0));
    plot.assert_line("one", &x, &y, &[(0.05, 2000.0), (0.15, 4000.0), (0.25, 2000.0)]);
}

#[test]
fn plots_can_be_left_out() {
    let work = Work::new();
    let markdown = work.markdown(&[fanout("one", 1, 10, 1.0, 1.0)], &["--plots", "off"]);
    assert!(markdown.contains("| one | 1 | 0 |") && !markdown.contains("!["), "{markdown}");
    assert_eq!(work.files("."), ["0.json"]);
}

#[test]
fn the_tables_tell_how_busy_loadgen_was() {
    let work = Work::new();
    let mut busy = fanout("one", 1, 10, 1.0, 1.0);
    busy["measured_seconds"] = json!(2.0);
    busy["client"]["cpu_seconds"] = json!(1.9);
    let markdown = work.markdown(&[busy], &["--plots", "off"]);
    let rows: Vec<&str> = markdown.lines().filter(|line| line.starts_with("| ")).collect();
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let column = cells(rows[0]).iter().position(|title| title == "loadgen, % of a core").expect("the column");
    assert_eq!(cells(rows[1])[column], "95.0", "{markdown}");
}

#[test]
fn results_of_one_name_keep_their_plots_apart() {
    let work = Work::new();
    let curve = [(0.0, 1000), (50.0, 2000)];
    let named = |scenario: &str| {
        let mut result = with_curve(fanout("one", 1, 10, 1.0, 1.0), "delivery", &curve);
        result["labels"]["scenario"] = json!(scenario);
        result
    };
    let markdown = work.markdown(&[named("a b"), named("A/B")], &[]);
    assert_eq!(work.files("plots"), ["latency-a-b-2.svg", "latency-a-b.svg"]);
    assert!(markdown.contains("![Delivery latency – A/B](plots/latency-a-b-2.svg)"), "{markdown}");
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let work = Work::new();
    fs::write(work.0.join("file"), "").unwrap();
    let results = [fanout("one", 1, 10, 1.0, 1.0)];
    let output = work.report(&results, &["--plots", "file/below"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("--plots file/below: "), "{text}");
    assert!(Path::new(&work.0.join("file")).is_file() && output.stdout.is_empty());
    let output = work.report(&results, &["--plots", ""]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--plots") && text.contains("expected a directory, or off"), "{text}");
}

/// A result of a comparison of several servers with `b`.
fn compared(server: &str, pass: usize, cpu_us: f64) -> Value {
    let mut result = fanout(server, pass, 10, 1.0, cpu_us);
    result["labels"]["reference"] = json!("b");
    result["labels"]["server_command"] = json!(format!("{server} PORT"));
    result
}

#[test]
fn a_comparison_has_ratios_to_two_servers_and_bars() {
    let work = Work::new();
    let mut results = Vec::new();
    for pass in [1, 2, 3] {
        results.extend([compared("c", pass, 8.0), compared("b", pass, 4.0), compared("floor", pass, 2.0)]);
    }
    let mut other = compared("c", 1, 1.0);
    other["labels"]["scenario"] = json!("another");
    results.push(other);
    let markdown = work.markdown(&results, &[]);
    assert!(markdown.contains(" ratio to floor | ratio to b |\n"), "{markdown}");
    let row = |name: &str| markdown.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
    assert!(row("c").ends_with(" **4.000** (4.000–4.000) | **2.000** (2.000–2.000) |"), "{markdown}");
    assert!(row("floor").ends_with(" 1 | **0.500** (0.500–0.500) |"), "{markdown}");
    assert_eq!(markdown.matches("- c: `c PORT`").count(), 1, "a command is told once: {markdown}");
    assert_eq!(work.files("plots"), ["bars-10-subscribers.svg", "bars-another.svg"]);
    let svg = work.svg("plots/bars-10-subscribers.svg");
    let plot = Plot::of(&svg);
    for text in ["10 subscribers", "serving CPU per delivery, µs", "deliveries/s", "floor", "b", "c", "8.00"]
    {
        plot.assert_says(text);
    }
}

#[test]
fn failed_runs_are_counted_and_their_figures_left_out() {
    let work = Work::new();
    let mut results = vec![compared("b", 1, 4.0), compared("b", 2, 4.0), compared("b", 3, 4.0)];
    for pass in [1, 2, 3] {
        let mut part = compared("sometimes", pass, 100.0 * pass as f64);
        part["passed"] = json!(pass == 2);
        part["failures"] = json!(["3 messages lost", "2 × reset"]);
        results.push(part);
    }
    let failed = |files: &mut Vec<Value>, server: &str| {
        let mut all = compared(server, 1, 7.0);
        all["passed"] = json!(false);
        all["failures"] = json!(["it | did not start"]);
        files.push(all);
    };
    failed(&mut results, "never");
    let markdown = work.markdown(&results, &[]);
    let row = |name: &str| markdown.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
    assert!(row("sometimes").starts_with("| sometimes | 3 | 2 of 3: 3 messages lost | "), "{markdown}");
    assert!(row("sometimes").contains(" **200** (200–200) |"), "{markdown}");
    assert!(row("sometimes").ends_with(" **50.000** (50.000–50.000) |"), "{markdown}");
    assert!(row("never").starts_with("| never | 1 | 1 of 1: it   did not start | – |"), "{markdown}");
    assert_eq!(row("never").matches('|').count(), row("b").matches('|').count(), "{markdown}");
}

#[test]
fn a_run_without_a_result_is_a_row_as_well() {
    let work = Work::new();
    let good = work.0.join("good.json");
    fs::write(&good, compared("b", 1, 4.0).to_string()).unwrap();
    // As scripts/bench.sh writes it when there is no result.
    let stub = json!({
        "schema_version": 1, "tool": "loadgen", "mode": "fanout", "passed": false,
        "failures": ["took longer than 60 s"], "command": ["loadgen", "fanout"],
        "labels": { "scenario": "10 subscribers", "server": "slow", "pass": "1", "reference": "b" }
    });
    let bad = work.0.join("bad.json");
    fs::write(&bad, stub.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .arg("report")
        .args([good, bad])
        .current_dir(&work.0)
        .output()
        .unwrap();
    let markdown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(markdown.contains("\n| slow | 1 | 1 of 1: took longer than 60 s | – |"), "{markdown}");
    assert_eq!(markdown.matches("ratio to b").count(), 1, "the baseline is no second reference: {markdown}");
    assert!(!markdown.contains("null cores"), "no machine is known of it, and none is told: {markdown}");
}
