//! The progress bar: on stderr, only on a terminal, redrawn a few times a second by the conductor.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::conductor::Stage;
use crate::units::Thousands;

/// A bar, or nothing.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    planned: u64,
    duration: Option<Duration>,
    measuring_since: std::cell::Cell<Option<(Instant, u64)>>,
}

impl Progress {
    /// A bar for `planned` connections and a measurement of `duration`, if `wanted` and there is a terminal.
    pub(crate) fn new(wanted: bool, planned: u64, duration: Option<Duration>) -> Self {
        let bar = wanted.then(|| {
            let style = ProgressStyle::with_template("{prefix:>8} {bar:30} {msg}");
            let bar = ProgressBar::new(planned.max(1));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, planned, duration, measuring_since: std::cell::Cell::new(None) }
    }

    /// Shows where the run stands: connections that are open, and what the mode counts.
    pub(crate) fn show(&self, stage: Stage, open: u64, count: u64) {
        let Some(bar) = &self.bar else { return };
        match stage {
            Stage::Connect => {
                bar.set_prefix("connect");
                bar.set_length(self.planned.max(1));
                bar.set_position(open);
                bar.set_message(format!("{} of {} connections", Thousands(open), Thousands(self.planned)));
            }
            Stage::Measure => {
                let (since, at_start) = self.measuring_since.get().unwrap_or((Instant::now(), count));
                self.measuring_since.set(Some((since, at_start)));
                let elapsed = since.elapsed();
                let rate = (count - at_start) as f64 / elapsed.as_secs_f64().max(0.1);
                bar.set_prefix("measure");
                if let Some(duration) = self.duration {
                    bar.set_length(duration.as_millis() as u64);
                    bar.set_position(elapsed.min(duration).as_millis() as u64);
                }
                bar.set_message(format!(
                    "{:.0} s, {} a second",
                    elapsed.as_secs_f64(),
                    Thousands(rate as u64)
                ));
            }
            _ => bar.set_prefix("warm up"),
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
