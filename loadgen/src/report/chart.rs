//! One plot as SVG: title, legend, axes and lines. Text stays text, in whatever sans-serif font the reader has.

use std::io;

use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged as _;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Spread;
use super::axis::Axis;

/// Width, and height below the legend, in pixels.
pub(super) const WIDTH: u32 = 760;
const HEIGHT: u32 = 360;
/// Left and right border of title, legend and plot.
pub(super) const MARGIN: i32 = 20;
/// Space for the labels of the two axes.
const LABELS: (u32, u32) = (48, 86);
const TITLE_PX: f64 = 15.0;
pub(super) const TEXT_PX: f64 = 12.0;
/// Height of a line of the legend, and where the first one stands.
const LEGEND_ROW: i32 = 18;
const LEGEND_TOP: i32 = 42;
/// Length of the sample of a line in the legend.
const SAMPLE: i32 = 22;
/// Pixels between the bars of neighbouring lines.
const BAR_STEP: f64 = 4.0;
/// About what a letter of plain text takes; nobody knows the reader's font.
pub(super) const LETTER_PX: i32 = 7;
/// Letters of a title, which is bold, for which a line has room in the widest of the usual fonts, and most lines of it.
const TITLE_LETTERS: usize = 72;
const TITLE_LINES: usize = 3;
const TITLE_ROW: i32 = 19;
const TITLE_TOP: i32 = 12;
/// Longest title of an axis and longest name that are not cut.
const AXIS_TITLE_MAX: usize = 92;
const NAME_MAX: usize = 60;
/// The backend makes text smaller by this factor.
const BACKEND_FONT_FACTOR: f64 = 1.24;
pub(super) const TEXT: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// Told apart by people who see fewer colours as well (Okabe and Ito, and a brown).
const COLORS: [RGBColor; 9] = [
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x55, 0x55, 0x55),
    RGBColor(0xd6, 0xca, 0x2b),
    RGBColor(0x7a, 0x4a, 0x2a),
];

/// A value over another one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: Spread,
}

/// What belongs to one server.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    /// Number of its colour; there are [`COLORS`], which then begin again.
    pub(super) color: usize,
    pub(super) points: Vec<Point>,
}

/// One plot.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Whether each point has a dot, and a bar from its least to its greatest value.
    pub(super) dotted: bool,
}

impl Chart {
    /// The SVG document.
    pub(super) fn svg(&self) -> io::Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let title = wrapped(&self.title);
        let (entries, legend_bottom) = self.legend(below(&title));
        let size = (WIDTH, legend_bottom + HEIGHT);
        let root = SVGBackend::with_string(text, size).into_drawing_area();
        // A page may be dark, and the text is not.
        root.fill(&WHITE)?;
        draw_title(&root, &title)?;
        for entry in &entries {
            entry.draw(&root)?;
        }
        let (_, body) = root.split_vertically(legend_bottom);
        let (x, y) = (&self.x, &self.y);
        let mut plot = ChartBuilder::on(&body)
            .margin_left(MARGIN)
            .margin_right(MARGIN * 2)
            .margin_bottom(10)
            .x_label_area_size(LABELS.0)
            .y_label_area_size(LABELS.1)
            .build_cartesian_2d(x.clone(), y.clone())?;
        plot.configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(TEXT)
            .label_style(font(TEXT_PX).color(&TEXT))
            .axis_desc_style(font(TEXT_PX).color(&TEXT))
            .x_desc(printable(&x.title, AXIS_TITLE_MAX))
            .y_desc(printable(&y.title, AXIS_TITLE_MAX))
            .draw()?;
        let pixel = (x.range().end - x.range().start) / f64::from(plot.plotting_area().dim_in_pixel().0);
        for (index, line) in self.lines.iter().enumerate() {
            let color = color(line.color);
            // Bars of the same place stand side by side, under their dots.
            let aside = (index as f64 - (self.lines.len() - 1) as f64 / 2.0) * BAR_STEP * pixel;
            let at = |point: &Point, value: f64| (x.position(point.x), y.position(value));
            let path: Vec<_> = line.points.iter().map(|point| at(point, point.y.median)).collect();
            if self.dotted {
                plot.draw_series(line.points.iter().map(|point| {
                    let (from, to) = (at(point, point.y.least), at(point, point.y.greatest));
                    PathElement::new([(from.0 + aside, from.1), (to.0 + aside, to.1)], color)
                }))?;
                plot.draw_series(path.iter().map(|at| Circle::new(*at, 4, color.filled())))?;
            }
            plot.draw_series([PathElement::new(path, color.stroke_width(2))])?;
        }
        root.present()
    }

    /// The entries of the legend, `lower` pixels below a title of one line, in as many rows as they need; and the pixel
    /// below them.
    fn legend(&self, lower: i32) -> (Vec<Entry>, u32) {
        let (mut left, mut middle) = (MARGIN, LEGEND_TOP + lower);
        let mut entries = Vec::new();
        for line in &self.lines {
            let name = printable(&line.name, NAME_MAX);
            let width = SAMPLE + 6 + name.chars().count() as i32 * LETTER_PX + 20;
            if left > MARGIN && left + width > WIDTH as i32 - MARGIN {
                (left, middle) = (MARGIN, middle + LEGEND_ROW);
            }
            entries.push(Entry { name, color: color(line.color), left, middle });
            left += width;
        }
        (entries, (middle + LEGEND_ROW) as u32)
    }
}

/// One entry of the legend.
struct Entry {
    name: String,
    color: RGBColor,
    left: i32,
    middle: i32,
}

impl Entry {
    fn draw(&self, root: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let (left, middle) = (self.left, self.middle);
        let sample = [(left, middle), (left + SAMPLE, middle)];
        root.draw(&PathElement::new(sample, self.color.stroke_width(2)))?;
        let style = font(TEXT_PX).color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(self.name.clone(), (left + SAMPLE + 6, middle), style))
    }
}

/// The lines of a title, broken at spaces; what has no room in them is cut off.
pub(super) fn wrapped(title: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in printable(title, TITLE_LETTERS * TITLE_LINES).split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= TITLE_LETTERS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    if lines.len() > TITLE_LINES {
        let rest = lines.split_off(TITLE_LINES - 1).join(" ");
        lines.push(rest);
    }
    lines.into_iter().map(|line| printable(&line, TITLE_LETTERS)).collect()
}

/// Pixels by which what stands below a title is lower than below one of a single line.
pub(super) fn below(title: &[String]) -> i32 {
    title.len().saturating_sub(1) as i32 * TITLE_ROW
}

/// Draws the lines of a title at the top.
pub(super) fn draw_title(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[String],
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let style = font(TITLE_PX).style(FontStyle::Bold).color(&TEXT);
    for (line, row) in lines.iter().zip(0..) {
        root.draw(&Text::new(line.clone(), (MARGIN, TITLE_TOP + row * TITLE_ROW), style.clone()))?;
    }
    Ok(())
}

pub(super) fn font(pixels: f64) -> FontDesc<'static> {
    (FontFamily::SansSerif, pixels * BACKEND_FONT_FACTOR).into_font()
}

pub(super) fn color(number: usize) -> RGBColor {
    COLORS[number % COLORS.len()]
}

/// What XML and a line of text can hold of `text`, not longer than `length`.
pub(super) fn printable(text: &str, length: usize) -> String {
    let plain = |letter: char| {
        if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { letter }
    };
    if text.chars().count() <= length {
        return text.chars().map(plain).collect();
    }
    text.chars().take(length - 1).map(plain).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::axis::Unit;

    #[test]
    fn long_titles_are_broken_at_spaces() {
        assert_eq!(wrapped("short – title"), ["short – title"]);
        let long = "Handshake latency – Handshakes of a busy core: 1,000 connections, the oldest reset for each new one, \
                    half of the CPU for the server";
        let lines = wrapped(long);
        assert_eq!((lines.join(" ").as_str(), lines.len()), (long, 2));
        assert!(lines.iter().all(|line| line.chars().count() <= TITLE_LETTERS), "{lines:?}");
        let longest = wrapped(&"seven x ".repeat(90));
        assert_eq!((longest.len(), below(&longest)), (TITLE_LINES, 2 * TITLE_ROW));
        assert!(longest[2].ends_with('…') && longest[2].chars().count() <= TITLE_LETTERS, "{longest:?}");
    }

    #[test]
    fn hostile_names_leave_the_document_well_formed() {
        let line = |name: &str, color| Line {
            name: name.to_owned(),
            color,
            points: vec![
                Point { x: 1.0, y: Spread { least: 1.0, median: 2.0, greatest: 3.0 } },
                Point { x: 2.0, y: Spread { least: 2.0, median: 2.0, greatest: 2.0 } },
            ],
        };
        let name = "</text><script>&\"\u{0}\u{1b}\u{ffff}";
        let chart = Chart {
            title: "x".repeat(300),
            x: Axis::linear("a < b".into(), 2.0, Unit::Number),
            y: Axis::linear("c & d".into(), 3.0, Unit::Number),
            lines: (0..40).map(|index| line(name, index)).collect(),
            dotted: true,
        };
        let svg = chart.svg().unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        assert!(texts.contains(&"</text><script>&\"\u{fffd}\u{fffd}\u{fffd}"), "{texts:?}");
        assert!(texts.contains(&"a < b") && texts.contains(&format!("{}…", "x".repeat(71)).as_str()));
        assert!(document.descendants().all(|node| node.tag_name().name() != "script"));
    }
}
