//! How things look: messages, tables, JSON, progress.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::image::Progress;
use crate::sys::stderr;

/// `sampan: …` on standard error.
pub fn error(text: &str) {
    stderr::line(format_args!("sampan: {text}"));
}

/// `sampan: warning: …` on standard error.
pub fn warning(text: &str) {
    stderr::line(format_args!("sampan: warning: {text}"));
}

/// What a pod's supervisor tells while a command waits for it.
pub fn progress(service: &str, text: &str) {
    if service.is_empty() {
        stderr::line(text);
    } else {
        stderr::line(format_args!("{service} {text}"));
    }
}

/// `--format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For machines: one document.
    Json,
}

/// One JSON document on standard output.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<u8> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(0)
}

/// Text on standard output.
pub fn print(text: &str) -> anyhow::Result<u8> {
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(0)
}

/// A table without lines, as container tools have it.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<u8> {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    print(&format!("{}\n", lines.join("\n")))
}

/// Bytes as people read them, in powers of 1000 as image tools show them.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Progress of long work with images: a bar on a terminal, silence elsewhere. What is done leaves no line; drop it
/// before anything else is printed.
pub struct Bars {
    bars: Option<Mutex<Vec<(String, ProgressBar)>>>,
    multi: indicatif::MultiProgress,
}

/// Most columns for what a bar is about.
const LABEL: usize = 40;

impl Bars {
    /// For standard error.
    pub fn new() -> Bars {
        Bars {
            bars: std::io::stderr().is_terminal().then(Mutex::default),
            multi: indicatif::MultiProgress::new(),
        }
    }
}

impl Progress for Bars {
    fn advance(&self, what: &str, done: u64, total: u64) {
        let Some(bars) = &self.bars else { return };
        let Ok(mut bars) = bars.lock() else { return };
        if !bars.iter().any(|(name, _)| name == what) {
            let template = match total {
                0 => "{msg} {decimal_bytes}",
                _ => "{msg:40} {decimal_bytes:>10} {bar:30} {decimal_total_bytes}",
            };
            let bar = self.multi.add(ProgressBar::new(total));
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(label(what));
            bars.push((what.to_string(), bar));
        }
        if let Some((_, bar)) = bars.iter().find(|(name, _)| name == what) {
            bar.set_length(total.max(done));
            bar.set_position(done);
            if total > 0 && done >= total {
                bar.finish_and_clear();
                // the next work of this name is another one
                bars.retain(|(name, _)| name != what);
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // a terminal that cannot be cleared keeps the bars
        let _ = self.multi.clear();
    }
}

/// Digests as short as the lists show them, names of files by their end.
fn label(what: &str) -> String {
    let text = match what.split_once("sha256:") {
        Some((before, hex)) => format!("{before}{}", hex.chars().take(12).collect::<String>()),
        None => what.to_string(),
    };
    match text.chars().count() {
        0..=LABEL => text,
        count => format!(
            "…{}",
            text.chars().skip(count + 1 - LABEL).collect::<String>()
        ),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn labels() {
        let digest = format!("blob sha256:0123456789abcdef{}", "0".repeat(48));
        let path = format!("/{}/image.tar", "x".repeat(60));
        for (what, label) in [
            ("packages", "packages".to_string()),
            (digest.as_str(), "blob 0123456789ab".to_string()),
            (path.as_str(), format!("…{}/image.tar", "x".repeat(29))),
        ] {
            assert_eq!(super::label(what), label);
        }
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_550_000, "1.6 MB"),
            (999_960_000, "1.0 GB"),
        ] {
            assert_eq!(super::size(bytes), text);
        }
    }
}
