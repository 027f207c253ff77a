//! Bars as SVG: a row for each server, a panel for each figure, every panel with a scale of its own from zero.

use std::io;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{
    LETTER_PX, MARGIN, TEXT, TEXT_PX, WIDTH, below, color, draw_title, font, printable, wrapped,
};
use super::{Spread, digits};
use crate::units::Thousands;

/// Where the first row begins below a title of one line, and the height of a row and of the bar in it.
const ROWS_TOP: i32 = 66;
const ROW: i32 = 22;
const BAR: i32 = 14;
/// Space for the names of the servers, and least space for the number right of a bar, which stands a little off it.
const NAMES: i32 = 130;
const NUMBER: i32 = 64;
const NUMBER_GAP: i32 = 4;
const NAME_MAX: usize = 20;

/// One figure of all servers.
#[derive(Debug, Clone)]
pub(super) struct Panel {
    pub(super) title: &'static str,
    /// In the order of the servers; none where nothing was measured.
    pub(super) values: Vec<Option<Spread>>,
}

impl Panel {
    /// Space for the numbers right of the bars.
    fn number_width(&self) -> i32 {
        let letters = self.values.iter().flatten().map(|value| written(value.median).chars().count());
        NUMBER.max(letters.max().unwrap_or(0) as i32 * LETTER_PX + 2 * NUMBER_GAP)
    }
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
        let title = wrapped(&self.title);
        let rows_top = ROWS_TOP + below(&title);
        let height = rows_top + ROW * self.servers.len() as i32 + MARGIN / 2;
        let root = SVGBackend::with_string(text, (WIDTH, height as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        draw_title(&root, &title)?;
        let plain = font(TEXT_PX).color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        for (row, (name, _)) in self.servers.iter().enumerate() {
            root.draw(&Text::new(
                printable(name, NAME_MAX),
                (MARGIN, rows_top + middle(row)),
                plain.clone(),
            ))?;
        }
        let width = (WIDTH as i32 - MARGIN - NAMES) / self.panels.len().max(1) as i32;
        for (index, panel) in self.panels.iter().enumerate() {
            let left = MARGIN + NAMES + width * index as i32;
            self.draw_panel(&root, panel, (left, rows_top), width - panel.number_width())?;
        }
        root.present()
    }

    fn draw_panel(
        &self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        panel: &Panel,
        (left, rows_top): (i32, i32),
        width: i32,
    ) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let plain = font(TEXT_PX).color(&TEXT).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(panel.title, (left, rows_top - ROW / 2), plain.clone()))?;
        let greatest = panel.values.iter().flatten().map(|value| value.greatest).fold(0.0, f64::max);
        let at = |value: f64| left + (value / greatest * f64::from(width)).round() as i32;
        for (row, (value, (_, number))) in panel.values.iter().zip(&self.servers).enumerate() {
            let middle = rows_top + middle(row);
            let Some(value) = value.as_ref().filter(|_| greatest > 0.0) else {
                root.draw(&Text::new("–", (left, middle), plain.clone()))?;
                continue;
            };
            let (top, bottom) = (middle - BAR / 2, middle + BAR / 2);
            root.draw(&Rectangle::new([(left, top), (at(value.median), bottom)], color(*number).filled()))?;
            let spread = [(at(value.least), middle), (at(value.greatest), middle)];
            root.draw(&PathElement::new(spread, TEXT))?;
            let right = (at(value.greatest) + NUMBER_GAP, middle);
            root.draw(&Text::new(written(value.median), right, plain.clone()))?;
        }
        Ok(())
    }
}

/// The middle of a row, below the top of the first one.
fn middle(row: usize) -> i32 {
    ROW * row as i32 + ROW / 2
}

fn written(value: f64) -> String {
    if value >= 1000.0 { Thousands(value.round() as u64).to_string() } else { digits(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_have_room_right_of_the_bars() {
        let spread = |median: f64| Some(Spread { least: median, median, greatest: median });
        let panel = |value| Panel { title: "/s", values: vec![spread(value)] };
        let bars = Bars {
            title: "title of many words ".repeat(6),
            servers: vec![("one".into(), 0)],
            panels: vec![panel(26_556_350.0), panel(26_556_350.0)],
        };
        let svg = bars.svg().unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let right = |text: roxmltree::Node<'_, '_>| {
            let (x, letters) = (text.attribute("x").unwrap(), text.text().unwrap().trim().chars().count());
            x.parse::<i32>().unwrap() + letters as i32 * LETTER_PX
        };
        let number = |node: &roxmltree::Node<'_, '_>| node.text().map(str::trim) == Some("26,556,350");
        let ends: Vec<i32> = document
            .descendants()
            .filter(|node| node.has_tag_name("text"))
            .filter(number)
            .map(right)
            .collect();
        assert_eq!(ends.len(), 2, "{svg}");
        assert!(
            ends[0] < MARGIN + NAMES + (WIDTH as i32 - MARGIN - NAMES) / 2 && ends[1] < WIDTH as i32,
            "{ends:?}"
        );
        assert_eq!(svg.matches("words").count(), 6, "{svg}");
    }

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
