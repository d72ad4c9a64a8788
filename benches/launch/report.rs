//! Figures for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::measure::Held;

/// Tasks that were sent all at once.
#[derive(Debug)]
pub struct Burst {
    /// What they were attached to.
    pub network: &'static str,
    /// How many.
    pub tasks: usize,
    /// Seconds from the first LAUNCH to the last RUNNING.
    pub running: f64,
    /// Seconds from the first LAUNCH to the last FINISHED.
    pub over: f64,
    /// Seconds of processor time, from the start of the executor to its end.
    pub cpu: f64,
    /// Most anonymous memory of all processes together, in bytes.
    pub peak: u64,
}

impl Burst {
    fn rate(&self) -> f64 {
        self.tasks as f64 / self.running
    }

    fn cpu_ms(&self) -> f64 {
        self.cpu * 1e3 / self.tasks as f64
    }
}

/// All figures.
#[derive(Debug, Default)]
pub struct Report {
    /// By network.
    pub bursts: Vec<Burst>,
    /// Sorted seconds from LAUNCH to RUNNING of single tasks.
    pub latencies: Vec<(&'static str, Vec<f64>)>,
    /// Memory while tasks run.
    pub held: Vec<(&'static str, Held)>,
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn at(sorted: &[f64], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(index).map_or(f64::NAN, |value| value * 1e3)
}

impl Report {
    /// Tables.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "\n{:16} {:>6} {:>9} {:>9} {:>11} {:>9} {:>9}",
            "sent at once", "tasks", "tasks/s", "per core", "cpu ms/task", "over s", "peak MiB"
        );
        for burst in &self.bursts {
            let _ = writeln!(
                text,
                "  {:14} {:6} {:9.1} {:9.1} {:11.1} {:9.1} {:9.0}",
                burst.network,
                burst.tasks,
                burst.rate(),
                burst.rate() / processors() as f64,
                burst.cpu_ms(),
                burst.over,
                burst.peak as f64 / 1048576.0,
            );
        }
        let _ = writeln!(
            text,
            "\n{:16} {:>9} {:>9} {:>9}",
            "one by one", "median ms", "p90 ms", "min ms"
        );
        for (network, latencies) in &self.latencies {
            let _ = writeln!(
                text,
                "  {network:14} {:9.1} {:9.1} {:9.1}",
                at(latencies, 0.5),
                at(latencies, 0.9),
                at(latencies, 0.0)
            );
        }
        for (network, held) in &self.held {
            let _ = writeln!(
                text,
                "\n{:16} {:>6} {:>9} {:>9}",
                network, "number", "RSS KiB", "PSS KiB"
            );
            for (kind, [number, rss, pss]) in &held.by_kind {
                let _ = writeln!(
                    text,
                    "  {kind:14} {number:6} {:9} {:9}   each",
                    rss / number,
                    pss / number
                );
            }
            let _ = writeln!(
                text,
                "  all gone {:.2} s after SHUTDOWN",
                held.end.as_secs_f64()
            );
        }
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let bursts = self.bursts.iter().map(|burst| {
            json!({
                "network": burst.network, "tasks": burst.tasks, "tasks_per_second": burst.rate(), "processors": processors(),
                "cpu_ms_per_task": burst.cpu_ms(), "running_s": burst.running, "over_s": burst.over, "peak_bytes": burst.peak,
            })
        });
        let latencies = self.latencies.iter().map(|(network, all)| {
            json!({"network": network, "median_ms": at(all, 0.5), "p90_ms": at(all, 0.9), "min_ms": at(all, 0.0)})
        });
        let held = self.held.iter().map(|(network, held)| {
            let kinds = held.by_kind.iter().map(|(kind, [number, rss, pss])| {
                ((*kind).to_owned(), json!({"number": number, "rss_kib": rss, "pss_kib": pss}))
            });
            json!({"network": network, "shutdown_s": held.end.as_secs_f64(), "processes": kinds.collect::<serde_json::Map<_, _>>()})
        });
        json!({"bursts": bursts.collect::<Vec<_>>(), "one_by_one": latencies.collect::<Vec<_>>(), "held": held.collect::<Vec<_>>()})
    }
}
