//! Which plots a report has, and the data of each.
//!
//! A scenario has a plot of latency by percentile, and one of handshakes over time where its results have the data; a
//! comparison of many servers ([`Scenario::reference`]) has bars instead, in which as many lines could not be told apart.
//! Over all scenarios there are deliveries and CPU by the number of subscribers, one pair of plots for each load
//! (window or rate, and payload), and memory by the number of connections. Those need a server that was measured with
//! several numbers; where two scenarios have the same one, the first counts, because the servers within a scenario
//! were measured in turn and are comparable.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::Value;

use super::axis::{Axis, Unit};
use super::bars::{Bars, Panel};
use super::chart::{Chart, Line, Point};
use super::{Scenario, Series, Spread};
use crate::units::Thousands;

/// From this ratio on an axis is logarithmic: of the greatest latency to the median, and of the highest points of two servers,
/// of which one would lie flat on the ground else.
const LOGARITHMIC_FROM_RATIO: f64 = 20.0;
/// Most points of a rate over time: with more of them a line is all teeth.
const RATE_POINTS_MAX: f64 = 60.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Where in the report a plot is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// With the table of the scenario of this number.
    Scenario(usize),
    Subscribers,
    Connections,
}

/// One plot of a report.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) place: Place,
    /// File name, the same for the same data.
    pub(super) file: String,
    picture: Picture,
}

#[derive(Debug)]
enum Picture {
    Lines(Chart),
    Bars(Bars),
}

impl Plot {
    pub(super) fn title(&self) -> &str {
        match &self.picture {
            Picture::Lines(chart) => &chart.title,
            Picture::Bars(bars) => &bars.title,
        }
    }

    fn svg(&self) -> io::Result<String> {
        match &self.picture {
            Picture::Lines(chart) => chart.svg(),
            Picture::Bars(bars) => bars.svg(),
        }
    }
}

/// All plots that the data are there for.
pub(super) fn plots(scenarios: &[Scenario]) -> Vec<Plot> {
    let mut palette = Palette::default();
    for series in scenarios.iter().flat_map(|scenario| &scenario.series) {
        palette.color(&series.server);
    }
    let mut plots = Vec::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        let place = Place::Scenario(index);
        if scenario.reference().is_some() {
            let picture = Picture::Bars(bars(scenario, &mut palette));
            plots.push(Plot { place, file: slug(&["bars", &scenario.name]), picture });
            continue;
        }
        let charts = [("latency", latency(scenario, &mut palette)), ("rate", rate(scenario, &mut palette))];
        for (what, chart) in charts {
            plots.extend(chart.map(|chart| Plot {
                place,
                file: slug(&[what, &scenario.name]),
                picture: Picture::Lines(chart),
            }));
        }
    }
    plots.extend(by_subscribers(scenarios, &mut palette));
    plots.extend(by_connections(scenarios, &mut palette));
    let mut taken = BTreeMap::<String, usize>::new();
    for plot in &mut plots {
        let count = taken.entry(plot.file.clone()).or_default();
        *count += 1;
        let number = if *count > 1 { format!("-{count}") } else { String::new() };
        plot.file = format!("{}{number}.svg", plot.file);
    }
    plots
}

/// Writes the files, into a directory that is made if it is not there.
pub(super) fn write(plots: &[Plot], directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    plots.iter().try_for_each(|plot| fs::write(directory.join(&plot.file), plot.svg()?))
}

/// A colour for each name, the same in all plots.
#[derive(Default)]
struct Palette(Vec<String>);

impl Palette {
    fn color(&mut self, name: &str) -> usize {
        self.0.iter().position(|known| known == name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        })
    }

    fn line(&mut self, name: &str, points: Vec<Point>) -> Line {
        Line { name: name.to_owned(), color: self.color(name), points }
    }
}

/// The figure that ratios are of, and the rate or what else tells most.
fn bars(scenario: &Scenario, palette: &mut Palette) -> Bars {
    let figures = match scenario.mode() {
        "echo" => [
            ("serving CPU per round trip, µs", "serving_cpu_us_per_round_trip"),
            ("round trips/s", "round_trips_per_second"),
        ],
        "connect" => [
            ("serving CPU per handshake, µs", "serving_cpu_us_per_handshake"),
            ("handshakes/s", "handshakes_per_second"),
        ],
        "idle" => [
            ("server RSS per connection, bytes", "server_rss_bytes_per_connection"),
            ("server CPU, % of a core", "server_cpu_percent"),
        ],
        _ => [
            ("serving CPU per delivery, µs", "serving_cpu_us_per_delivery"),
            ("deliveries/s", "deliveries_per_second"),
        ],
    };
    let panel = |(title, figure): (&'static str, &str)| {
        let value = |series: &Series| Spread::of(super::values(series, &format!("/figures/{figure}")));
        Panel { title, values: scenario.series.iter().map(value).collect() }
    };
    let panels = figures.into_iter().map(panel).collect();
    let color = |series: &Series| (series.server.clone(), palette.color(&series.server));
    Bars { title: scenario.name.clone(), servers: scenario.series.iter().map(color).collect(), panels }
}

fn latency(scenario: &Scenario, palette: &mut Palette) -> Option<Chart> {
    let (name, title) = match scenario.mode() {
        "fanout" => ("delivery", "Delivery latency"),
        "echo" => ("round_trip", "Round trip"),
        "connect" => ("handshake", "Handshake latency"),
        "storm" => ("back", "Time until a connection was back"),
        "verify" => ("reconnect", "Time until a subscriber was back"),
        _ => return None,
    };
    let mut lines = Vec::new();
    let mut passes = Passes::default();
    for series in &scenario.series {
        let curves: Vec<Curve> =
            series.passed().filter_map(|result| Curve::of(&result["latency"][name])).collect();
        let points = median_curve(&curves);
        if points.len() > 1 {
            passes.note(curves.len());
            lines.push(palette.line(&series.server, points));
        }
    }
    let all = || lines.iter().flat_map(|line| &line.points);
    let greatest = all().map(|point| point.y.median).reduce(f64::max)?;
    let least = all().map(|point| point.y.median).reduce(f64::min)?;
    let middle = |line: &Line| line.points.iter().find(|point| point.x >= 50.0).map(|point| point.y.median);
    let middle = lines.iter().filter_map(middle).reduce(f64::min).unwrap_or(greatest);
    let y = if greatest > middle * LOGARITHMIC_FROM_RATIO {
        Axis::logarithmic("latency".into(), (least, greatest), Unit::Time)
    } else {
        Axis::linear("latency".into(), greatest, Unit::Time)
    };
    let last = all().map(|point| point.x).fold(0.0, f64::max);
    let x = Axis::percentiles(format!("percentile{}", passes.medians()), last);
    Some(Chart { title: format!("{title} – {}", scenario.name), x, y, lines, dotted: false })
}

/// (percentile, nanoseconds), ascending, below the 100th.
struct Curve(Vec<(f64, f64)>);

impl Curve {
    fn of(latency: &Value) -> Option<Self> {
        let entry = |entry: &Value| Some((entry[0].as_f64()?, entry[1].as_f64()?));
        let mut curve: Vec<(f64, f64)> = latency["curve"].as_array()?.iter().filter_map(entry).collect();
        curve.retain(|(percentile, _)| (0.0..100.0).contains(percentile));
        curve.sort_by(|a, b| a.0.total_cmp(&b.0));
        (!curve.is_empty()).then_some(Self(curve))
    }

    fn last(&self) -> f64 {
        self.0.last().map_or(0.0, |(percentile, _)| *percentile)
    }

    /// The latency at a percentile, between two known ones in proportion.
    fn at(&self, percentile: f64) -> Option<f64> {
        let after = self.0.partition_point(|(known, _)| *known < percentile);
        let (right, high) = *self.0.get(after)?;
        match after.checked_sub(1).map(|before| self.0[before]) {
            Some((left, low)) if right > percentile => {
                Some(low + (high - low) * (percentile - left) / (right - left))
            }
            _ => Some(high),
        }
    }
}

/// Medians at the percentiles that all curves reach.
fn median_curve(curves: &[Curve]) -> Vec<Point> {
    let last = curves.iter().map(Curve::last).fold(f64::INFINITY, f64::min);
    let mut percentiles: Vec<f64> =
        curves.iter().flat_map(|curve| &curve.0).map(|(percentile, _)| *percentile).collect();
    percentiles.sort_by(f64::total_cmp);
    percentiles.dedup();
    percentiles.retain(|percentile| *percentile <= last);
    let point = |x: f64| {
        let values = curves.iter().filter_map(|curve| curve.at(x)).collect();
        Spread::of(values).map(|y| Point { x, y })
    };
    percentiles.into_iter().filter_map(point).collect()
}

fn rate(scenario: &Scenario, palette: &mut Palette) -> Option<Chart> {
    let mut lines = Vec::new();
    let mut passes = Passes::default();
    for series in &scenario.series {
        let timelines: Vec<Intervals> =
            series.results.iter().filter_map(|result| Intervals::of(&result["timeline"])).collect();
        let points = median_rate(timelines);
        if points.len() > 1 {
            passes.note(series.results.len());
            lines.push(palette.line(&series.server, points));
        }
    }
    let all = || lines.iter().flat_map(|line| &line.points);
    let greatest = all().map(|point| point.y.median).reduce(f64::max)?;
    let last = all().map(|point| point.x).fold(0.0, f64::max);
    Some(Chart {
        title: format!("Handshakes over time – {}", scenario.name),
        x: Axis::linear(format!("seconds{}", passes.medians()), last, Unit::Number),
        y: Axis::linear("handshakes/s".into(), greatest, Unit::Number),
        lines,
        dotted: false,
    })
}

/// Events counted in intervals of the same length.
struct Intervals {
    seconds: f64,
    counts: Vec<f64>,
}

impl Intervals {
    fn of(timeline: &Value) -> Option<Self> {
        let seconds = timeline["interval_seconds"].as_f64().filter(|seconds| *seconds > 0.0)?;
        let mut counts: Vec<f64> = timeline["counts"].as_array()?.iter().filter_map(Value::as_f64).collect();
        // The measurement ended within the last one.
        counts.pop();
        Some(Self { seconds, counts })
    }

    /// The same in intervals of about `seconds`, a multiple of the present length.
    fn coarsened(self, seconds: f64) -> Self {
        let factor = ((seconds / self.seconds).round() as usize).max(1);
        let counts = self.counts.chunks_exact(factor).map(|chunk| chunk.iter().sum()).collect();
        Self { seconds: self.seconds * factor as f64, counts }
    }
}

/// Medians of the rates, at the middles of intervals that all passes can be brought to, as far as all passes go.
fn median_rate(passes: Vec<Intervals>) -> Vec<Point> {
    let longest = passes.iter().map(|pass| pass.seconds).fold(0.0, f64::max);
    let end = |pass: &Intervals| pass.seconds * pass.counts.len() as f64;
    let end = passes.iter().map(end).reduce(f64::min).unwrap_or(0.0);
    let seconds = longest * (end / longest / RATE_POINTS_MAX).ceil().max(1.0);
    let passes: Vec<Intervals> = passes.into_iter().map(|pass| pass.coarsened(seconds)).collect();
    let common = passes.iter().map(|pass| pass.counts.len()).min().unwrap_or(0);
    let point = |index: usize| {
        let rates = passes.iter().map(|pass| pass.counts[index] / pass.seconds).collect();
        Spread::of(rates).map(|y| Point { x: (index as f64 + 0.5) * seconds, y })
    };
    (0..common).filter_map(point).collect()
}

/// Values of one server by number of connections, each with the number of passes behind it.
type BySize = BTreeMap<u64, (usize, Spread)>;

/// Values of several servers, by the names of their lines.
#[derive(Default)]
struct Sizes(Vec<(String, BySize)>);

impl Sizes {
    /// Notes the values of one scenario, unless an earlier one had the same line with the same number.
    fn note(&mut self, line: &str, connections: u64, values: Vec<f64>) {
        let passes = values.len();
        let Some(spread) = Spread::of(values) else {
            return;
        };
        let index = self.0.iter().position(|(name, _)| name == line).unwrap_or_else(|| {
            self.0.push((line.to_owned(), BySize::new()));
            self.0.len() - 1
        });
        self.0[index].1.entry(connections).or_insert((passes, spread));
    }

    /// The plot of the lines with several points; none without any.
    fn chart(
        self,
        palette: &mut Palette,
        title: String,
        (x, y): (&str, &str),
        axis: impl Fn(String, (f64, f64), Unit) -> Axis,
    ) -> Option<Chart> {
        let mut passes = Passes::default();
        let mut lines = Vec::new();
        for (name, points) in self.0.into_iter().filter(|(_, points)| points.len() > 1) {
            let point = |(connections, (count, y))| {
                passes.note(count);
                Point { x: connections as f64, y }
            };
            let points = points.into_iter().map(point).collect();
            lines.push(palette.line(&name, points));
        }
        let all = || lines.iter().flat_map(|line| &line.points);
        let least = all().map(|point| point.x).reduce(f64::min)?;
        let greatest = all().map(|point| point.x).reduce(f64::max)?;
        let highest = all().map(|point| point.y.greatest).reduce(f64::max)?;
        let x = axis(format!("{x}{}", passes.medians_and_bars()), (least, greatest), Unit::Number);
        let top = |line: &Line| line.points.iter().map(|point| point.y.greatest).fold(0.0, f64::max);
        let lowest_top = lines.iter().map(top).fold(highest, f64::min);
        let lowest = all().map(|point| point.y.least).reduce(f64::min)?;
        let y = if lowest > 0.0 && highest > lowest_top * LOGARITHMIC_FROM_RATIO {
            Axis::logarithmic(y.into(), (lowest, highest), Unit::Number)
        } else {
            Axis::linear(y.into(), highest, Unit::Number)
        };
        Some(Chart { title, x, y, lines, dotted: true })
    }
}

fn by_subscribers(scenarios: &[Scenario], palette: &mut Palette) -> Vec<Plot> {
    const FIGURES: [(&str, &str, &str, &str); 2] = [
        ("deliveries", "Deliveries per second", "deliveries/s", "deliveries_per_second"),
        ("cpu", "Serving CPU per delivery", "serving CPU per delivery, µs", "serving_cpu_us_per_delivery"),
    ];
    // In the order in which the loads occur.
    let mut loads: Vec<(String, [Sizes; 2])> = Vec::new();
    for series in scenarios.iter().filter(|scenario| scenario.mode() == "fanout").flat_map(|s| &s.series) {
        for ((load, connections, compressed), results) in by_load(series) {
            let index = loads.iter().position(|(known, _)| *known == load).unwrap_or_else(|| {
                loads.push((load, Default::default()));
                loads.len() - 1
            });
            let compressed = if compressed { ", compressed" } else { "" };
            let line = format!("{}{compressed}", series.server);
            for ((.., figure), sizes) in FIGURES.iter().zip(&mut loads[index].1) {
                let values = results.iter().filter_map(|result| result["figures"][figure].as_f64()).collect();
                sizes.note(&line, connections, values);
            }
        }
    }
    let mut plots = Vec::new();
    for (load, figures) in loads {
        for ((what, title, unit, _), sizes) in FIGURES.into_iter().zip(figures) {
            let title = format!("{title} by number of subscribers, {load}");
            let chart = sizes.chart(palette, title, ("subscribers", unit), Axis::logarithmic);
            if let Some(chart) = chart {
                plots.push(Plot {
                    place: Place::Subscribers,
                    file: slug(&[what, &load]),
                    picture: Picture::Lines(chart),
                });
            }
        }
    }
    plots
}

/// Results of a series by load, connections, and whether compression was offered.
fn by_load(series: &Series) -> BTreeMap<(String, u64, bool), Vec<&Value>> {
    let mut groups = BTreeMap::<_, Vec<&Value>>::new();
    for result in series.passed() {
        let settings = &result["settings"];
        let pace = match (settings["window"].as_u64(), settings["rate_per_second"].as_f64()) {
            (Some(1), _) => "1 message in flight".to_owned(),
            (Some(window), _) => format!("{} messages in flight", Thousands(window)),
            (None, Some(rate)) => format!("{rate} messages/s"),
            (None, None) => continue,
        };
        let payload = settings["payload_bytes"].as_u64().unwrap_or(0);
        let Some(connections) = settings["connections"].as_u64() else {
            continue;
        };
        let load = format!("{pace}, {} B", Thousands(payload));
        groups.entry((load, connections, !settings["compression"].is_null())).or_default().push(result);
    }
    groups
}

fn by_connections(scenarios: &[Scenario], palette: &mut Palette) -> Option<Plot> {
    let mut sizes = Sizes::default();
    for series in scenarios.iter().filter(|scenario| scenario.mode() == "idle").flat_map(|s| &s.series) {
        let mut groups = BTreeMap::<u64, Vec<f64>>::new();
        for result in series.passed() {
            let memory = &result["server"]["rss_bytes"];
            let connected = result["connected"].as_u64();
            for (connections, bytes) in [(Some(0), "before_connect"), (connected, "before_measure")] {
                if let (Some(connections), Some(bytes)) = (connections, memory[bytes].as_f64()) {
                    groups.entry(connections).or_default().push(bytes / MIB);
                }
            }
        }
        for (connections, values) in groups {
            sizes.note(&series.server, connections, values);
        }
    }
    let title = "Memory of the server (RSS) by number of idle connections".to_owned();
    let linear = |title, (_, greatest), unit| Axis::linear(title, greatest, unit);
    let chart = sizes.chart(palette, title, ("idle connections", "MiB"), linear)?;
    Some(Plot { place: Place::Connections, file: "memory".into(), picture: Picture::Lines(chart) })
}

/// Least and greatest number of passes behind the points of a plot.
#[derive(Debug, Default)]
struct Passes(Option<(usize, usize)>);

impl Passes {
    fn note(&mut self, count: usize) {
        let (least, greatest) = self.0.unwrap_or((count, count));
        self.0 = Some((least.min(count), greatest.max(count)));
    }

    /// What the title of an axis says about them; nothing if there was one pass.
    fn medians(&self) -> String {
        match self.0 {
            None | Some((_, 1)) => String::new(),
            Some((least, greatest)) if least == greatest => format!(" (medians of {least} passes)"),
            Some((least, greatest)) => format!(" (medians of {least} to {greatest} passes)"),
        }
    }

    fn medians_and_bars(&self) -> String {
        self.medians().replace(')', ", bars from least to greatest)")
    }
}

/// Lower-case letters, digits and hyphens.
fn slug(parts: &[&str]) -> String {
    let mut slug = String::new();
    for part in parts {
        for letter in part.chars() {
            match letter.to_ascii_lowercase() {
                letter @ ('a'..='z' | '0'..='9') => slug.push(letter),
                ',' => {}
                _ if slug.ends_with('-') => {}
                _ => slug.push('-'),
            }
        }
        if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_of_different_density_have_a_median() {
        let curve = |points: &[(f64, f64)]| Curve(points.to_vec());
        let curves = [
            curve(&[(0.0, 10.0), (50.0, 20.0), (90.0, 60.0)]),
            curve(&[(0.0, 20.0), (90.0, 200.0), (99.0, 900.0)]),
            curve(&[(0.0, 30.0), (50.0, 40.0), (90.0, 50.0)]),
        ];
        let points: Vec<(f64, f64)> =
            median_curve(&curves).iter().map(|point| (point.x, point.y.median)).collect();
        assert_eq!(points, [(0.0, 20.0), (50.0, 40.0), (90.0, 60.0)]);
        assert_eq!(curves[1].at(50.0), Some(120.0));
        assert!(median_curve(&[]).is_empty());
    }

    #[test]
    fn rates_of_passes_with_different_intervals_have_a_median() {
        let pass = |seconds, counts: &[f64]| Intervals { seconds, counts: counts.to_vec() };
        let points = median_rate(vec![
            pass(0.1, &[1.0, 2.0, 3.0, 4.0, 5.0]),
            pass(0.2, &[5.0, 9.0, 1.0]),
            pass(0.1, &[9.0, 9.0, 0.0, 0.0]),
        ]);
        let points: Vec<(f64, f64)> = points.iter().map(|point| (point.x, point.y.median.round())).collect();
        assert_eq!(points, [(0.1, 25.0), (0.30000000000000004, 35.0)]);
        let points = median_rate(vec![pass(0.5, &[3.0; 150])]);
        assert_eq!((points.len(), points[0].x, points[49].y.median), (50, 0.75, 6.0));
        assert!(median_rate(Vec::new()).is_empty());
    }

    #[test]
    fn slugs_are_good_file_names() {
        assert_eq!(slug(&["latency", "1,000 subscribers: 1 KiB/…/"]), "latency-1000-subscribers-1-kib");
        assert_eq!(slug(&["cpu", "…"]), "cpu");
    }

    #[test]
    fn the_title_tells_the_number_of_passes() {
        let mut passes = Passes::default();
        passes.note(1);
        assert_eq!(passes.medians_and_bars(), "");
        passes.note(5);
        assert_eq!(passes.medians(), " (medians of 1 to 5 passes)");
        assert_eq!(passes.medians_and_bars(), " (medians of 1 to 5 passes, bars from least to greatest)");
    }
}
