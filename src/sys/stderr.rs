//! Lines on standard error.
//!
//! *Invariants:* a line that cannot be written is lost and nothing else: `eprintln!` panics, which ends the process, when the disk below a
//! log is full or its reader is gone; a line is one write, so those of several processes do not mix.

use std::fmt::Display;
use std::io::Write;

/// Writes `text` as a line.
pub fn line(text: impl Display) {
    // who cannot be told this way cannot be told at all
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}
