//! Figures for people and for programs.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Sample, WIDTHS};

/// All samples of one contestant for one command on a number of networks.
#[derive(Debug)]
pub struct Series {
    command: &'static str,
    width: usize,
    by: &'static str,
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Series {
    /// No samples yet.
    pub fn new(command: &'static str, width: usize, by: &'static str) -> Series {
        Series {
            command,
            width,
            by,
            wall: Vec::new(),
            cpu: Vec::new(),
        }
    }

    /// Takes a sample in.
    pub fn add(&mut self, sample: Sample) {
        self.wall.push(sample.wall);
        self.cpu.push(sample.cpu);
        self.wall.sort_unstable();
        self.cpu.sort_unstable();
    }

    /// Milliseconds that the share `part` (0 to 1) of the samples stayed below.
    fn wall_ms(&self, part: f64) -> f64 {
        at(&self.wall, part)
    }
}

fn at(sorted: &[Duration], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted
        .get(index)
        .map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}

/// A table for one network and one for several. `faster`: how many times the contestant takes less than the reference
/// plugins, by medians (minima).
pub fn text(all: &[Series]) -> String {
    let mut text = String::new();
    for command in ["ADD", "DEL"] {
        let _ = writeln!(
            text,
            "\n{command:15} {:>9} {:>8} {:>8} {:>8} {:>15} {:>7}",
            "median ms", "p90 ms", "min ms", "cpu ms", "faster", "rounds"
        );
        let of = |series: &&Series| series.command == command && series.width == 1;
        for series in all.iter().filter(of) {
            let faster = ratios(all, series);
            let _ = writeln!(
                text,
                "  {:13} {:9.2} {:8.2} {:8.2} {:8.2} {:>15} {:7}",
                series.by,
                series.wall_ms(0.5),
                series.wall_ms(0.9),
                series.wall_ms(0.0),
                at(&series.cpu, 0.5),
                faster.map_or("-".into(), |(medians, minima)| format!(
                    "{medians:.1} ({minima:.1})"
                )),
                series.wall.len(),
            );
        }
    }
    let _ = writeln!(text, "\nms per network, of");
    let _ = write!(text, "{:19}", "");
    for width in WIDTHS {
        let _ = write!(text, "{width:>9}");
    }
    text.push('\n');
    for (command, by) in [
        ("ADD", "in process"),
        ("ADD", "reference"),
        ("DEL", "in process"),
        ("DEL", "reference"),
    ] {
        let _ = write!(text, "  {command} {by:13}");
        for width in WIDTHS {
            let each =
                find(all, command, width, by).map_or(f64::NAN, |s| s.wall_ms(0.5) / width as f64);
            let _ = write!(text, "{each:9.2}");
        }
        text.push('\n');
    }
    text
}

fn find<'a>(all: &'a [Series], command: &str, width: usize, by: &str) -> Option<&'a Series> {
    all.iter()
        .find(|series| (series.command, series.width, series.by) == (command, width, by))
}

/// How many times the reference plugins take as long: medians, minima. Themselves: none.
fn ratios(all: &[Series], series: &Series) -> Option<(f64, f64)> {
    let reference = find(all, series.command, series.width, "reference")?;
    let ratio = |part| reference.wall_ms(part) / series.wall_ms(part);
    (series.by != reference.by).then(|| (ratio(0.5), ratio(0.0)))
}

/// The same for programs, times in milliseconds.
pub fn json(all: &[Series]) -> Value {
    let series = |series: &Series| {
        json!({
            "command": series.command,
            "networks": series.width,
            "by": series.by,
            "rounds": series.wall.len(),
            "median_ms": series.wall_ms(0.5),
            "p90_ms": series.wall_ms(0.9),
            "min_ms": series.wall_ms(0.0),
            "cpu_median_ms": at(&series.cpu, 0.5),
            "faster_than_reference": ratios(all, series).map(|(medians, _)| medians),
        })
    };
    json!({"series": all.iter().map(series).collect::<Vec<_>>()})
}
