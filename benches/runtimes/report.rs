//! Figures for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::measure::Series;

/// One table per case; ratios are of medians, against the first runtime of the case (below 1: that one is faster).
pub fn table(all: &[Series]) -> String {
    let mut text = String::new();
    let mut case = "";
    let mut own = f64::NAN;
    for series in all {
        let median = series.wall_ms(0.5);
        if series.case != case {
            case = &series.case;
            own = median;
            let _ = writeln!(
                text,
                "\n{case:13} {:>9} {:>8} {:>8} {:>8} {:>9} {:>13} {:>7}",
                "median ms", "p90 ms", "min ms", "cpu ms", "peak KiB", "sampan/this", "rounds"
            );
        }
        let peak = match series.peak_kib {
            0 => "-".to_owned(),
            kib => kib.to_string(),
        };
        let _ = writeln!(
            text,
            "  {:11} {median:9.2} {:8.2} {:8.2} {:8.2} {peak:>9} {:13.2} {:7}",
            series.runtime,
            series.wall_ms(0.9),
            series.wall_ms(0.0),
            series.cpu_ms(0.5),
            own / median,
            series.count(),
        );
    }
    text
}

/// The same for programs, times in milliseconds.
pub fn json(all: &[Series], storms: &[String]) -> Value {
    let series = |series: &Series| {
        json!({
            "case": series.case,
            "runtime": series.runtime,
            "rounds": series.count(),
            "median_ms": series.wall_ms(0.5),
            "p90_ms": series.wall_ms(0.9),
            "min_ms": series.wall_ms(0.0),
            "cpu_median_ms": series.cpu_ms(0.5),
            "peak_kib": (series.peak_kib > 0).then_some(series.peak_kib),
        })
    };
    json!({"series": all.iter().map(series).collect::<Vec<_>>(), "storms": storms})
}
