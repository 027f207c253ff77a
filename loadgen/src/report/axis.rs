//! An axis of a plot: where a value stands on it, where its ticks are, and what is written there.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::units::Thousands;

/// Ticks that a linear axis has at least room for.
const LINEAR_TICKS: f64 = 5.0;
/// A logarithmic axis over fewer decades than this has ticks at 2 and 5 times the powers of ten as well.
const DECADES_WITH_TICKS_BETWEEN: f64 = 2.5;
/// Least value on a logarithmic axis; zero has no place there.
const LOGARITHM_MIN: f64 = 1e-9;
/// With more nines than these, every second one of the further ones has a tick: the labels need the space.
const NINES_ALL_LABELLED: usize = 7;
/// What the last binary digits of a round number may be off by.
const ROUNDING: f64 = 1e-9;
/// Space left of the first and right of the last tick of a logarithmic axis, as a share of its length.
const LOGARITHM_MARGIN: f64 = 0.03;

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Logarithmic,
    /// Of percentiles: by `log10(1 / (1 - p))`, so that each further nine takes the same space.
    Nines,
}

/// How the values at ticks are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    /// Plain numbers.
    Number,
    /// Nanoseconds, written with a unit that fits.
    Time,
}

/// One axis.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) title: String,
    scale: Scale,
    /// First and last position.
    range: (f64, f64),
    /// Position and label of each tick, ascending.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to a round number not below `greatest`.
    pub(super) fn linear(title: String, greatest: f64, unit: Unit) -> Self {
        let greatest = if greatest > 0.0 { greatest } else { 1.0 };
        let step = round_step(greatest);
        let steps = (greatest / step - ROUNDING).ceil();
        let decimals = (-(step.log10() + ROUNDING).floor()).max(0.0) as usize;
        let label = |value: f64| match unit {
            Unit::Time => time(value),
            Unit::Number if decimals > 0 => format!("{value:.decimals$}"),
            Unit::Number => Thousands(value.round() as u64).to_string(),
        };
        let values = (0..=steps as u32).map(|index| f64::from(index) * step);
        let ticks = values.map(|value| (value, label(value))).collect();
        Self { title, scale: Scale::Linear, range: (0.0, steps * step), ticks }
    }

    /// From the tick not above `least` to the one not below `greatest`, and a little space on both sides.
    pub(super) fn logarithmic(title: String, (least, greatest): (f64, f64), unit: Unit) -> Self {
        let (least, greatest) = (least.max(LOGARITHM_MIN), greatest.max(LOGARITHM_MIN));
        let factors: &[f64] =
            if (greatest / least).log10() < DECADES_WITH_TICKS_BETWEEN { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let powers = least.log10().floor() as i32..=greatest.log10().floor() as i32 + 1;
        let values: Vec<f64> =
            powers.flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power))).collect();
        let first = values.iter().rposition(|value| *value <= least).unwrap_or(0);
        let last = values.iter().position(|value| *value >= greatest).unwrap_or(values.len() - 1);
        // A single value has a tick of its own on both sides.
        let last = if last <= first { (first + 1).min(values.len() - 1) } else { last };
        let label = |value: f64| match unit {
            Unit::Time => time(value),
            Unit::Number if value < 1.0 => value.to_string(),
            Unit::Number => Thousands(value.round() as u64).to_string(),
        };
        let ticks: Vec<(f64, String)> =
            values[first..=last].iter().map(|value| (value.log10(), label(*value))).collect();
        let (from, to) = (values[first].log10(), values[last].log10());
        let margin = (to - from) * LOGARITHM_MARGIN;
        Self { title, scale: Scale::Logarithmic, range: (from - margin, to + margin), ticks }
    }

    /// Percentiles from 0 to `greatest`, which is below 100.
    pub(super) fn percentiles(title: String, greatest: f64) -> Self {
        let to = nines(greatest).max(1.0);
        let label = |count: usize| match count {
            0 => "0%".to_owned(),
            1 => "90%".to_owned(),
            2 => "99%".to_owned(),
            _ => format!("99.{}%", "9".repeat(count - 2)),
        };
        let last = (to + ROUNDING) as usize;
        let is_shown = |count: &usize| *count < 3 || last <= NINES_ALL_LABELLED || count % 2 == 0;
        let ticks = (0..=last).filter(is_shown).map(|count| (count as f64, label(count)));
        let mut ticks: Vec<(f64, String)> = ticks.collect();
        ticks.insert(1, (nines(50.0), "50%".to_owned()));
        Self { title, scale: Scale::Nines, range: (0.0, to), ticks }
    }

    /// Where `value` stands.
    pub(super) fn position(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.max(LOGARITHM_MIN).log10(),
            Scale::Nines => nines(value),
        }
    }
}

/// The coordinates of the drawing are positions on the axis.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, position: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (position - self.range.0) / (self.range.1 - self.range.0);
        // Logarithms differ in their last bit between builds; what lies half-way between pixels must not.
        let place = (share * f64::from(last - first) * 1e6).round() / 1e6;
        first + place.round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(position, _)| *position).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.0..self.range.1
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, position: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick == position);
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

/// 1, 2 or 5 times a power of ten, for some [`LINEAR_TICKS`] up to `greatest`.
fn round_step(greatest: f64) -> f64 {
    let least = greatest / LINEAR_TICKS;
    let power = 10_f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least * (1.0 - ROUNDING));
    factor.unwrap_or(10.0) * power
}

/// Nanoseconds with a unit that fits, and no more digits than they have.
fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ..1e3 => (nanoseconds, "ns"),
        ..1e6 => (nanoseconds / 1e3, "µs"),
        ..1e9 => (nanoseconds / 1e6, "ms"),
        _ => (nanoseconds / 1e9, "s"),
    };
    if value == 0.0 { "0".to_owned() } else { format!("{} {unit}", (value * 1e3).round() / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    fn linear(greatest: f64, unit: Unit) -> Axis {
        Axis::linear(String::new(), greatest, unit)
    }

    fn logarithmic(least: f64, greatest: f64, unit: Unit) -> Axis {
        Axis::logarithmic(String::new(), (least, greatest), unit)
    }

    #[test]
    fn linear_axes_end_at_a_round_number_above_the_data() {
        let axis = linear(111_179.0, Unit::Number);
        assert_eq!(labels(&axis), ["0", "50,000", "100,000", "150,000"]);
        assert_eq!(axis.range, (0.0, 150_000.0));
        assert_eq!(labels(&linear(0.42, Unit::Number)), ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(labels(&linear(8e6, Unit::Time)), ["0", "2 ms", "4 ms", "6 ms", "8 ms"]);
        assert_eq!(linear(0.0, Unit::Number).range, (0.0, 1.0));
    }

    #[test]
    fn logarithmic_axes_enclose_the_data() {
        let axis = logarithmic(1.0, 10_000.0, Unit::Number);
        assert_eq!(labels(&axis), ["1", "10", "100", "1,000", "10,000"]);
        assert!(axis.range.0 < 0.0 && axis.range.1 > 4.0);
        assert_eq!(axis.position(1000.0), 3.0);
        assert_eq!(labels(&logarithmic(1100.0, 1900.0, Unit::Number)), ["1,000", "2,000"]);
        assert_eq!(
            labels(&logarithmic(70e3, 2.1e6, Unit::Time)),
            ["50 µs", "100 µs", "200 µs", "500 µs", "1 ms", "2 ms", "5 ms"]
        );
        assert_eq!(labels(&logarithmic(100.0, 100.0, Unit::Number)), ["100", "200"]);
        let from_nothing = logarithmic(0.0, 0.0, Unit::Number);
        assert!(from_nothing.range.0 < from_nothing.range.1 && from_nothing.position(0.0).is_finite());
    }

    #[test]
    fn each_nine_takes_the_same_space() {
        let axis = Axis::percentiles(String::new(), 99.995);
        assert_eq!(labels(&axis), ["0%", "50%", "90%", "99%", "99.9%", "99.99%"]);
        assert!((axis.position(99.9) - 3.0).abs() < 1e-9 && axis.position(0.0) == 0.0);
        assert_eq!(labels(&Axis::percentiles(String::new(), 0.0)), ["0%", "50%", "90%"]);
        assert_eq!(labels(&Axis::percentiles(String::new(), 99.0)), ["0%", "50%", "90%", "99%"]);
        let dense = Axis::percentiles(String::new(), 99.999_999_9);
        assert_eq!(labels(&dense)[3..], ["99%", "99.99%", "99.9999%", "99.999999%"]);
    }
}
