//! Bars as SVG: a row for each server, a panel for each figure, every panel with a scale of its own from zero.

use std::io;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{MARGIN, TEXT, TEXT_PX, TITLE_MAX, TITLE_PX, WIDTH, color, font, printable};
use super::{Spread, digits};
use crate::units::Thousands;

/// Where the first row begins, and the height of a row and of the bar in it.
const ROWS_TOP: i32 = 66;
const ROW: i32 = 22;
const BAR: i32 = 14;
/// Space for the names of the servers, and for the number right of a bar.
const NAMES: i32 = 130;
const NUMBER: i32 = 64;
const NAME_MAX: usize = 20;

/// One figure of all servers.
#[derive(Debug, Clone)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    /// In the order of the servers; none where nothing was measured.
    pub(super) values: Vec<Option<Spread>>,
}

/// Figures of the servers of one scenario.
#[derive(Debug, Clone)]
pub(super) struct Bars {
    pub(super) title: String,
    /// Names and colours of the servers.
    pub(super) servers: Vec<(String, usize)>,
    pub(super) panels: Vec<Panel>,
}

impl Bars {
    /// The SVG document.
    pub(super) fn svg(&self) -> io::Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let height = ROWS_TOP + ROW * self.servers.len() as i32 + MARGIN / 2;
        let root = SVGBackend::with_string(text, (WIDTH, height as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        let bold = font(TITLE_PX).style(FontStyle::Bold).color(&TEXT);
        root.draw(&Text::new(printable(&self.title, TITLE_MAX), (MARGIN, 12), bold))?;
        let plain = font(TEXT_PX).color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        for (row, (name, _)) in self.servers.iter().enumerate() {
            root.draw(&Text::new(printable(name, NAME_MAX), (MARGIN, middle(row)), plain.clone()))?;
        }
        let width = (WIDTH as i32 - MARGIN - NAMES) / self.panels.len().max(1) as i32;
        for (index, panel) in self.panels.iter().enumerate() {
            self.draw_panel(&root, panel, MARGIN + NAMES + width * index as i32, width - NUMBER)?;
        }
        root.present()
    }

    fn draw_panel(
        &self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        panel: &Panel,
        left: i32,
        width: i32,
    ) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let plain = font(TEXT_PX).color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(panel.title, (left, ROWS_TOP - ROW / 2), plain.clone()))?;
        let greatest = panel.values.iter().flatten().map(|value| value.greatest).fold(0.0, f64::max);
        let at = |value: f64| left + (value / greatest * f64::from(width)).round() as i32;
        for (row, (value, (_, number))) in panel.values.iter().zip(&self.servers).enumerate() {
            let Some(value) = value.as_ref().filter(|_| greatest > 0.0) else {
                root.draw(&Text::new("–", (left, middle(row)), plain.clone()))?;
                continue;
            };
            let (top, bottom) = (middle(row) - BAR / 2, middle(row) + BAR / 2);
            root.draw(&Rectangle::new([(left, top), (at(value.median), bottom)], color(*number).filled()))?;
            let spread = [(at(value.least), middle(row)), (at(value.greatest), middle(row))];
            root.draw(&PathElement::new(spread, TEXT))?;
            let right = (at(value.greatest) + 4, middle(row));
            root.draw(&Text::new(written(value.median), right, plain.clone()))?;
        }
        Ok(())
    }
}

fn middle(row: usize) -> i32 {
    ROWS_TOP + ROW * row as i32 + ROW / 2
}

fn written(value: f64) -> String {
    if value >= 1000.0 { Thousands(value.round() as u64).to_string() } else { digits(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let spread = |median: f64| Some(Spread { least: median, median, greatest: median });
        let bars = Bars {
            title: "a < b".into(),
            servers: ["one", "two", "none"].into_iter().zip(0..).map(|(name, n)| (name.into(), n)).collect(),
            panels: vec![
                Panel { title: "µs", values: vec![spread(10.0), spread(5.0), None] },
                Panel { title: "/s", values: vec![spread(1000.0), spread(4000.0), None] },
            ],
        };
        let svg = bars.svg().unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let widths: Vec<i32> = document
            .descendants()
            .filter(|node| node.has_tag_name("rect"))
            .skip(1) // the background
            .map(|node| node.attribute("width").unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 4, "{svg}");
        assert!(
            (widths[0] - 2 * widths[1]).abs() <= 1 && (widths[3] - 4 * widths[2]).abs() <= 2,
            "{widths:?}"
        );
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        for expected in ["a < b", "one", "10.0", "5.00", "4,000", "–"] {
            assert!(texts.contains(&expected), "{expected} is not in {texts:?}");
        }
    }
}
